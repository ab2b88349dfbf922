"""Small stand-ins for vLLM's scheduler objects and for the client, to test bookkeeping alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

PAGE = 16


class Broken:
    """What is raised by what breaks."""

    kind: type[BaseException] = RuntimeError


class Block:
    """One block of the engine's pool."""

    def __init__(self, number: int) -> None:
        self.block_id = number
        self.ref_cnt = 0


class Pool:
    """Counts references as the engine's block pool does."""

    def __init__(self, blocks: int = 64) -> None:
        self.blocks = [Block(number) for number in range(blocks)]
        self.null_block = self.blocks[0]

    def reset_prefix_cache(self) -> bool:
        return not self.held

    def touch(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            block.ref_cnt += 1

    def free_blocks(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            assert block.ref_cnt > 0, f"block {block.block_id} is freed more often than taken"
            block.ref_cnt -= 1

    @property
    def held(self) -> list[int]:
        return [block.block_id for block in self.blocks if block.ref_cnt]


class Request:
    """A request with chained block hashes over its tokens."""

    def __init__(
        self, name: str, tokens: Sequence[int], lora: Any = None, salt: str | None = None
    ) -> None:
        self.request_id = name
        self.all_token_ids = list(tokens)
        self.lora_request = lora
        self.cache_salt = salt
        self.mm_features: list[Any] = []
        self.prompt_embeds = None
        self.skip_reading_prefix_cache = False
        self.num_preemptions = 0
        self.num_computed_tokens = 0
        self.block_hashes: list[bytes] = []
        self.grow([])

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    def grow(self, tokens: Sequence[int]) -> None:
        self.all_token_ids += list(tokens)
        while (len(self.block_hashes) + 1) * PAGE <= len(self.all_token_ids):
            at = len(self.block_hashes) * PAGE
            above = self.block_hashes[-1] if self.block_hashes else b""
            text = repr(self.all_token_ids[at : at + PAGE]).encode()
            self.block_hashes.append(hashlib.sha256(above + text).digest())


def table(*groups: Sequence[int]) -> Any:
    """What the engine hands over as allocated blocks."""
    return SimpleNamespace(get_block_ids=lambda: tuple(list(group) for group in groups))


@dataclass
class Output:
    """A scheduler's output of one step."""

    num_scheduled_tokens: dict[str, int]
    tables: dict[str, tuple[list[int], ...]]
    scheduled_new_reqs: Sequence[Any] = ()

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())

    @property
    def kv_connector_block_state(self) -> Any:
        return SimpleNamespace(get_block_ids=self.tables.get, block_ids=self.tables)


@dataclass
class Heard:
    """What the workers' outputs come to."""

    finished_recving: set[str] | None = None
    failed_recving: set[str] = field(default_factory=set)
    invalid_block_ids: set[int] = field(default_factory=set)
    kv_connector_worker_meta: Any = None


class Family:
    """Binds hashes to nothing but itself."""

    def keys(self, hashes: Sequence[bytes]) -> bytes:
        return b"".join(hashlib.blake2b(one, digest_size=32).digest() for one in hashes)


class Hold:
    """Remembers whether it was given back."""

    def __init__(self) -> None:
        self.dropped = False
        self.breaks = False

    def drop(self) -> None:
        self.dropped = True
        if self.breaks:
            raise Broken.kind("this hold is broken")


class Daemon:
    """Keys each space holds, and a client that answers from them."""

    def __init__(self, spaces: int = 1) -> None:
        self.state = "connected"
        self.states_asked = 0
        self.spared = 0
        self.has_board = False
        """Whether it tells what begins a page it holds."""
        self.held: list[set[bytes]] = [set() for _ in range(spaces)]
        self.asked: list[int] = []
        self.begun = 0
        self.holds: list[Hold] = []
        self.why: str | None = None
        self.estimate = 0.0
        self.worth: int | None = None
        """How many pages are worth loading."""
        self.weighed: list[tuple[float | None, int]] = []
        """By when pages were due, and how many the engine had itself."""

    @property
    def is_connected(self) -> bool:
        self.states_asked += 1
        return self.state == "connected"

    def may_begin(self, family: Family, value: bytes, *, peek: bool = False) -> bool | None:
        if self.state != "connected":
            return None
        first = family.keys([value])
        told = not self.has_board or any(first in held for held in self.held)
        self.spared += not told and not peek
        return told

    def lookup(
        self,
        spaces: list[Any],
        keys: bytes,
        *,
        hold: float,
        deadline: float,
        due: float | None = None,
        have: int = 0,
    ) -> Any:
        run = [keys[at : at + 32] for at in range(0, len(keys), 32)]
        self.asked.append(len(run))
        if self.why is not None:
            return SimpleNamespace(
                pages=0, present=0, worth=0, dram=0, ssd=0, stamp=0, estimate=0, hold=None,
                why=self.why,
            )
        pages = 0
        while pages < len(run) and all(run[pages] in self.held[space] for space in spaces):
            pages += 1
        present = pages
        worth = present if self.worth is None else max(min(self.worth, present), have)
        pages = min(pages, worth)
        self.weighed.append((due, have))
        given = Hold() if pages else None
        if given is not None:
            self.holds.append(given)
        why = "slower" if pages < present else None if present == len(run) else "absent"
        return SimpleNamespace(
            pages=pages, present=present, worth=worth, dram=pages, ssd=0, stamp=7,
            estimate=self.estimate, hold=given, why=why,
        )

    def start_lookup(
        self, spaces: list[Any], keys: bytes, *, hold: float, deadline: float, due: float
    ) -> Any:
        self.begun += 1
        return SimpleNamespace(
            result=lambda deadline: self.lookup(spaces, keys, hold=hold, deadline=deadline, due=due)
        )

    def keep(self, request: Request, pages: int, spaces: Sequence[int] | None = None) -> None:
        for space in range(len(self.held)) if spaces is None else spaces:
            for value in request.block_hashes[:pages]:
                self.held[space].add(Family().keys([value]))


class Task:
    """A task that is over when it is told what it came to."""

    def __init__(self) -> None:
        self.value: Any = None
        self.waited = 0
        self.comes_late: Any = None
        """What it comes to once a wait for it has run out."""
        self.layer: int | None = 0
        self.breaks = False

    @property
    def done(self) -> bool:
        return self.value is not None

    def wait(self, timeout: float | None = None) -> bool:
        self.waited += 1
        was_done, self.value = self.done, self.value or self.comes_late
        return was_done

    def result(self, timeout: float | None = None) -> Any:
        if self.breaks:
            raise Broken.kind("this task is broken")
        return self.value

    def wait_layer(self, layer: int, timeout: float | None = None) -> int | None:
        self.waited += 1
        if self.breaks:
            raise Broken.kind("this task is broken")
        return self.layer


class Space:
    """Takes note of what is started."""

    def __init__(self) -> None:
        self.loads: list[tuple[Any, ...]] = []
        self.stores: list[tuple[Any, ...]] = []
        self.tasks: list[Task] = []
        self.fails = False

    def _task(self) -> Task:
        if self.fails:
            raise Broken.kind("this space is broken")
        self.tasks.append(Task())
        return self.tasks[-1]

    def start_load(self, device: Any, keys: bytes, blocks: list[int], **options: Any) -> Task:
        task = self._task()
        self.loads.append((device, keys, blocks, options))
        return task

    def start_store(self, device: Any, keys: bytes, blocks: list[int], **options: Any) -> Task:
        task = self._task()
        self.stores.append((device, keys, blocks, options))
        return task


def loaded(pages: int, why: str | None = None) -> Any:
    return SimpleNamespace(pages=pages, bytes=pages * 100, why=why, fault=None)


def stored(stored: int, held: int = 0, declined: int = 0, failed: int = 0) -> Any:
    return SimpleNamespace(
        stored=stored,
        held=held,
        declined={"parent": declined},
        failed=failed,
        unsettled=0,
        why=None,
        fault=None,
    )
