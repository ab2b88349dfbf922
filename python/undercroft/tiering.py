"""Undercroft beneath another cache: what all adapters of `undercroft.lmcache`, `undercroft.sglang`
and `undercroft.vllm.tier` share.

Such a cache keeps objects of a few sizes under keys of its own, and asks for them in any order. An
object is one page here. What its cache tells of it beyond the key is its identity, and becomes a
space; objects of another identity or size are in another space and are never found by mistake.

Nothing here raises because of the daemon, waits beyond a deadline that was given, or answers
anything but "not there" when something is wrong.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import undercroft
from undercroft.vllm.digests import DigestError, config_digest, files_digest, weight_files

logger = logging.getLogger("undercroft")

#: What a page may have, bytes.
MIN_PAGE_BYTES = 512
MAX_PAGE_BYTES = 64 << 20
#: Why a page is not to be had although the ones behind it may be.
ONLY_THIS_PAGE = frozenset({"absent", "damaged", "changed"})
#: How many single keys are asked for beyond a missing one before the rest counts as missing, too.
MAX_PROBES = 256
#: The same thing is told in the log once in this long, seconds.
TELL_AGAIN_S = 60.0
#: A space that is new is waited for longer than for an answer about pages, seconds: its staging
#: area is made, and what is asked before it is open misses.
OPENS_S = 1.0
#: A daemon that has refused a space is asked for none in this long, seconds.
ASK_AGAIN_S = 5.0


@dataclass(frozen=True)
class Limits:
    """How long calls may take and how much an adapter keeps. All times are seconds."""

    lookup_deadline: float = 0.05
    load_deadline: float = 5.0
    store_deadline: float = 10.0
    hold: float = 10.0
    max_spaces: int = 32
    threads: int = 4
    max_tasks: int = 256

    @classmethod
    def taken_from(cls, settings: dict[str, Any]) -> "Limits":
        """Takes what is named like a field out of an adapter's settings."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in settings:
                continue
            found, is_whole = settings.pop(field.name), isinstance(field.default, int)
            fits = isinstance(found, int if is_whole else (int, float))
            if not fits or isinstance(found, bool) or found <= 0:
                allowed = "a whole number above 0" if is_whole else "seconds above 0"
                raise ValueError(f"{field.name} is {found!r}, allowed {allowed}")
            given[field.name] = found if is_whole else float(found)
        return cls(**given)


class Models:
    """The digests of models of which a cache tells no more than the name.

    `table` names each model's digest: 64 hexadecimal digits, the directory it is loaded from, or
    `none` for whoever vouches that the name alone tells models apart. A name that is not in it and
    is itself a directory with a config and weights is taken for that.
    """

    def __init__(self, table: Mapping[str, str]) -> None:
        self._given = dict(table)
        self._known: dict[str, bytes | None] = {}
        for name, value in table.items():
            if not isinstance(value, str):
                raise ValueError(f"models[{name!r}] is {value!r}, allowed a text")
            if self._of(value) is None:
                allowed = "64 hexadecimal digits, a model's directory, or none"
                raise ValueError(f"models[{name!r}] is {value!r}, allowed {allowed}")

    def digest(self, name: str) -> bytes | None:
        """`None`: nobody says what stands behind the name."""
        if name not in self._known:
            if len(self._known) >= 1024:
                return None
            self._known[name] = self._of(self._given.get(name, name))
        return self._known[name]

    @staticmethod
    def _of(value: str) -> bytes | None:
        if value == "none":
            return bytes(32)
        if len(value) == 64 and all(c in "0123456789abcdefABCDEF" for c in value):
            return bytes.fromhex(value)
        try:
            return model_digest(value) if Path(value).is_dir() else None
        except (OSError, ValueError, DigestError) as error:
            logger.warning("undercroft: no digest of the model %s: %s", value, error)
            return None


def model_digest(folder: str) -> bytes:
    """Of a model's folder: its config and its weights."""
    config = json.loads(Path(folder, "config.json").read_bytes())
    whole = hashlib.blake2b(config_digest(config), digest_size=32)
    whole.update(files_digest(weight_files(folder)))
    return whole.digest()


class Shelf:
    """The pages of one space, each found by itself and not only as a part of a chain."""

    def __init__(self, space: undercroft.Space, family: undercroft.Family) -> None:
        self.space = space
        self._family = family

    def keys(self, names: Sequence[bytes]) -> list[bytes]:
        """The keys of objects, from what their cache calls them."""
        run = self._family.keys(list(names))
        return [run[at : at + 32] for at in range(0, len(run), 32)]

    def leading(self, keys: Sequence[bytes], deadline: float) -> int:
        """How many pages are there before the first missing one."""
        return self.space.lookup(b"".join(keys), deadline=deadline).pages if keys else 0

    def find(
        self, keys: Sequence[bytes], deadline: float, hold: float | None = None
    ) -> list[tuple[int, int, "undercroft.Hold | None"]]:
        """Runs of pages that are there: first, count, and the hold on them."""
        end = time.monotonic() + deadline
        runs: list[tuple[int, int, undercroft.Hold | None]] = []
        at = probes = 0
        alone = False
        while at < len(keys) and probes < MAX_PROBES:
            left = end - time.monotonic()
            if left <= 0:
                break
            # Behind a missing page there is often nothing more: one key is asked for, not all.
            asked = keys[at : at + 1] if alone else keys[at:]
            found = self.space.lookup(b"".join(asked), hold=hold, deadline=left)
            if found.pages:
                runs.append((at, found.pages, found.hold))
                at += found.pages
            if found.pages == len(asked):
                alone = False
                continue
            if found.why not in ONLY_THIS_PAGE:
                break
            at += 1
            probes += 1
            alone = True
        return runs

    def load(
        self, keys: Sequence[bytes], device: Any, blocks: Sequence[int], deadline: float
    ) -> list[bool]:
        """Which pages lie in their blocks. When it returns, nothing writes to a block any more."""
        got = [False] * len(keys)
        end = time.monotonic() + deadline
        at = probes = 0
        while at < len(keys) and probes < MAX_PROBES:
            left = end - time.monotonic()
            if left <= 0:
                break
            run = b"".join(keys[at:])
            loaded = self.space.load(device, run, list(blocks[at:]), deadline=left)
            got[at : at + loaded.pages] = [True] * loaded.pages
            at += loaded.pages
            if loaded.why not in ONLY_THIS_PAGE:
                break
            at += 1
            probes += 1
        return got

    def store(
        self,
        keys: Sequence[bytes],
        device: Any,
        blocks: Sequence[int],
        deadline: float,
        parent: bytes | None = None,
        first: int = 0,
    ) -> list[bool]:
        """Stores a chain whose first page is number `first` and hangs on `parent`, and says which
        of its pages are there now. Pages the daemon takes for no part of that chain, as their
        parent is gone, are stored as pages that stand alone."""
        end = time.monotonic() + deadline
        stored = self.space.store(
            device, b"".join(keys), list(blocks), parent=parent, first=first,
            deadline=deadline, wait_for_credits=True,
        )
        if stored.stored + stored.held == len(keys):
            return [True] * len(keys)
        there = [False] * len(keys)
        for start, count, _ in self.find(keys, max(0.0, end - time.monotonic())):
            there[start : start + count] = [True] * count
        if parent is None and len(keys) == 1:
            return there
        if stored.why not in (None, "refused") and not stored.declined.get("parent"):
            return there
        for at, key in enumerate(keys):
            left = end - time.monotonic()
            if not there[at] and left > 0:
                alone = self.space.store(
                    device, key, [blocks[at]], deadline=left, wait_for_credits=True
                )
                there[at] = alone.stored + alone.held == 1
        return there


class Tier:
    """A client and the shelves it has open."""

    def __init__(self, name: str, limits: Limits, socket: str | None = None) -> None:
        self.limits = limits
        self.counts: Counter[str] = Counter()
        self._client = undercroft.Client(socket, name=name)
        self._shelves: dict[tuple[Any, ...], Shelf] = {}
        self._refused_until = 0.0
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}

    @property
    def client(self) -> undercroft.Client:
        return self._client

    @property
    def is_connected(self) -> bool:
        return self._client.state == "connected"

    def shelf(
        self,
        identity: Mapping[str, Any],
        model: bytes,
        part_bytes: Sequence[int],
        deadline: float,
        layers: int = 1,
        rank: tuple[int, int] | None = None,
        group: int = 0,
    ) -> Shelf | None:
        """The pages of this identity and shape. `identity` is bound to its last field; it is of
        plain numbers, texts and lists. `None`: there are too many already, or there can be none
        of this size. One that is new is waited for up to a second, and opens behind one's back if
        that is not enough."""
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        name = (text, model, tuple(part_bytes), layers, rank, group)
        with self._lock:
            shelf = self._shelves.get(name)
            if shelf is not None or time.monotonic() < self._refused_until:
                return shelf
            if len(self._shelves) >= self.limits.max_spaces:
                self.tell("spaces", "more than max_spaces=%d identities and sizes; what is of "
                          "others is not kept: %s", self.limits.max_spaces, text)
                return None
        shelf = self._open(text, model, part_bytes, deadline, layers, rank, group)
        with self._lock:
            return None if shelf is None else self._shelves.setdefault(name, shelf)

    def _open(
        self,
        text: str,
        model: bytes,
        part_bytes: Sequence[int],
        deadline: float,
        layers: int,
        rank: tuple[int, int] | None,
        group: int,
    ) -> Shelf | None:
        page_bytes = layers * sum(part_bytes)
        if not MIN_PAGE_BYTES <= page_bytes <= MAX_PAGE_BYTES:
            self.tell("size", "objects of %d bytes are not kept, allowed %d to %d: %s",
                      page_bytes, MIN_PAGE_BYTES, MAX_PAGE_BYTES, text)
            return None
        # The bytes are its cache's, of a shape only that knows: all that is said of them is in the
        # digest, and the fields that tell tensors apart stand for a run of bytes.
        bound = hashlib.sha256(b"undercroft tier v1\0" + model + text.encode()).digest()
        family = undercroft.Family(
            model=bound, dtype="int8", layers=layers, kv_heads=1, page_tokens=1, layout="object"
        )
        geometry = undercroft.Geometry(layers, list(part_bytes))
        try:
            space = self._client.open_space(
                family, geometry, rank=rank, group=group, deadline=max(deadline, OPENS_S)
            )
        except undercroft.OpenError as error:
            self.tell("open", "a space is refused, its objects are not kept: %s", error)
            self._refused_until = time.monotonic() + ASK_AGAIN_S
            return None
        return Shelf(space, family)

    def tell(self, kind: str, message: str, *arguments: Any) -> None:
        """Counts it, and logs it once in a while."""
        self.counts[kind] += 1
        now = time.monotonic()
        if now - self._told.get(kind, -TELL_AGAIN_S) >= TELL_AGAIN_S:
            self._told[kind] = now
            logger.warning("undercroft: " + message, *arguments)

    def purge(self) -> bool:
        """Has all pages of its shelves forgotten, whoever else uses them. Says whether the daemon
        did so."""
        with self._lock:
            shelves = list(self._shelves.values())
        done = [shelf.space.purge(self.limits.store_deadline) for shelf in shelves]
        return self.is_connected and all(done)

    def close(self, deadline: float = 2.0) -> None:
        self._client.close(deadline)


class Workers:
    """Threads that do what an engine only submits. Each piece of work is done once or, where there
    is no room for it or no time left, given up once."""

    def __init__(self, name: str, threads: int, max_tasks: int) -> None:
        self._max_tasks = max_tasks
        self._waiting: deque[tuple[Callable[[], None], Callable[[], None]]] = deque()
        self._lock = threading.Condition()
        self._running = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"undercroft-{name}-{at}", daemon=True)
            for at in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Has `work` called by one of the threads; `give_up` instead if that cannot be, by this
        one or another."""
        with self._lock:
            taken = not self._closed and len(self._waiting) < self._max_tasks
            if taken:
                self._waiting.append((work, give_up))
                self._lock.notify()
        if not taken:
            give_up()

    def wait_idle(self) -> None:
        """Waits until nothing is waiting or under way. Each piece of work has its deadline."""
        with self._lock:
            self._lock.wait_for(lambda: not self._waiting and not self._running)

    def close(self) -> None:
        """What has not begun is given up; what has is waited for."""
        with self._lock:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._lock.notify_all()
        for _, give_up in left:
            give_up()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                work, _ = self._waiting.popleft()
                self._running += 1
            try:
                work()
            except BaseException:  # noqa: BLE001  a thread that ends here serves nobody after
                logger.exception("undercroft: a task failed that must not")
            with self._lock:
                self._running -= 1
                self._lock.notify_all()
