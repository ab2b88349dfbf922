"""Undercroft beneath another cache: what all adapters of `undercroft.lmcache`, `undercroft.sglang`
and `undercroft.vllm.tier` share.

Such a cache keeps objects of a few sizes under keys of its own, and asks for them in any order. An
object is one page here. What its cache tells of it beyond the key is its identity, and becomes a
space; objects of another identity or size are in another space and are never found by mistake.

Nothing here raises because of the daemon, waits beyond a deadline that was given, or answers
anything but "not there" when something is wrong. A deadline counts from when a cache asked for
something, not from when a thread of ours came to it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, Callable, Mapping, Sequence

import undercroft
from undercroft.workers import Deadline

logger = logging.getLogger("undercroft")

#: What a page may have, bytes.
MIN_PAGE_BYTES = 512
MAX_PAGE_BYTES = 64 << 20
#: Why a page is not to be had although the ones behind it may be.
ONLY_THIS_PAGE = frozenset({"absent", "damaged", "changed"})
#: How many single keys are asked for behind missing ones before the rest counts as missing, too.
MAX_PROBES = 64
#: So many pages behind a missing one are asked for one by one; further on it goes by jumps.
NEAR_PAGES = 8
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

    def lookup(self) -> Deadline:
        """A lookup's, from now on."""
        return Deadline(self.lookup_deadline, OPENS_S)


class Shelf:
    """The pages of one space, each found by itself and not only as a part of a chain."""

    def __init__(self, space: undercroft.Space, family: undercroft.Family) -> None:
        self.space = space
        self._family = family

    def keys(self, names: Sequence[bytes]) -> list[bytes]:
        """The keys of objects, from what their cache calls them."""
        run = self._family.keys(list(names))
        return [run[at : at + 32] for at in range(0, len(run), 32)]

    def leading(self, keys: Sequence[bytes], deadline: Deadline) -> int:
        """How many pages are there before the first missing one."""
        return self.space.lookup(b"".join(keys), deadline=deadline.left).pages if keys else 0

    def find(
        self, keys: Sequence[bytes], deadline: Deadline, hold: float | None = None
    ) -> list[tuple[int, int, "undercroft.Hold | None"]]:
        """Runs of pages that are there: first, count, and the hold on them."""
        runs: list[tuple[int, int, undercroft.Hold | None]] = []
        probes = MAX_PROBES

        def is_there(at: int) -> bool:
            nonlocal probes
            probes -= 1
            if probes < 0 or deadline.is_over:
                return False
            return self.space.lookup(keys[at], deadline=deadline.left).pages == 1

        at: int | None = 0
        while at is not None and at < len(keys) and not deadline.is_over:
            found = self.space.lookup(b"".join(keys[at:]), hold=hold, deadline=deadline.left)
            if found.pages:
                runs.append((at, found.pages, found.hold))
            at += found.pages
            if at < len(keys) and found.why not in ONLY_THIS_PAGE:
                break
            at = behind(at, len(keys), is_there)
        return runs

    def load(
        self, keys: Sequence[bytes], device: Any, blocks: Sequence[int], deadline: Deadline
    ) -> list[bool]:
        """Which pages lie in their blocks. When it returns, nothing writes to a block any more."""
        got = [False] * len(keys)
        at = probes = 0
        while at < len(keys) and probes < MAX_PROBES and not deadline.is_over:
            run = b"".join(keys[at:])
            loaded = self.space.load(device, run, list(blocks[at:]), deadline=deadline.left)
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
        deadline: Deadline,
        parent: bytes | None = None,
        first: int = 0,
    ) -> list[bool]:
        """Stores a chain whose first page is number `first` and hangs on `parent`, and says which
        of its pages are there now. Pages the daemon takes for no part of that chain, as their
        parent is gone, are stored as pages that stand alone."""
        there = [False] * len(keys)
        if deadline.is_over:
            return there
        stored = self.space.store(
            device, b"".join(keys), list(blocks), parent=parent, first=first,
            deadline=deadline.left, wait_for_credits=True,
        )
        if stored.stored + stored.held == len(keys):
            return [True] * len(keys)
        for start, count, _ in self.find(keys, deadline):
            there[start : start + count] = [True] * count
        if parent is None and len(keys) == 1:
            return there
        if stored.why not in (None, "refused") and not stored.declined.get("parent"):
            return there
        for at, key in enumerate(keys):
            if not there[at] and not deadline.is_over:
                alone = self.space.store(
                    device, key, [blocks[at]], deadline=deadline.left, wait_for_credits=True
                )
                there[at] = alone.stored + alone.held == 1
        return there


def version(package: str) -> str:
    """Major and minor of what is installed: another one may order the same bytes differently."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = str(getattr(sys.modules.get(package), "__version__", ""))
    parts = found.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[0].isdigit() else ""


def behind(hole: int, count: int, is_there: Callable[[int], bool]) -> int | None:
    """The first of the next pages that are there, behind one that is missing. What is missing is a
    stretch as a rule, and so is what is there: jumps find it, and halves its beginning."""
    missing, step, last = hole, 1, count - 1
    while missing < last:
        there = min(missing + step, last)
        if is_there(there):
            break
        missing = there
        if there - hole >= NEAR_PAGES:
            step *= 2
    else:
        return None
    while there - missing > 1:
        middle = (missing + there) // 2
        if is_there(middle):
            there = middle
        else:
            missing = middle
    return there


class Tier:
    """A client and the shelves it has open. `identity` is what people say of the engine's KV
    beside what its cache does; it is bound to every space."""

    def __init__(
        self, name: str, limits: Limits, socket: str | None = None, identity: str = ""
    ) -> None:
        if not isinstance(identity, str):
            raise ValueError(f"identity is {identity!r}, allowed a text")
        self.limits = limits
        self._identity = identity
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
        deadline: Deadline,
        layers: int = 1,
        rank: tuple[int, int] | None = None,
        group: int = 0,
        unknown: str | None = None,
    ) -> Shelf | None:
        """The pages of this identity and shape. `identity` is bound to its last field; it is of
        plain numbers, texts and lists. `unknown` is what its cache does not tell and KV depends on:
        people must. `None`: they did not, there are too many already, or there can be none
        of this size. One that is new opens behind one's back where there is no time for it."""
        if unknown is not None and not self._identity:
            self.tell("identity", "nothing tells %s, and nothing is kept: say it in the setting "
                      "`identity`", unknown)
            return None
        text = json.dumps(
            {**identity, "said": self._identity}, sort_keys=True, separators=(",", ":")
        )
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
        deadline: Deadline,
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
            with deadline.opens() as seconds:
                space = self._client.open_space(
                    family, geometry, rank=rank, group=group, deadline=seconds
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
        deadline = Deadline(self.limits.store_deadline)
        done = [
            not deadline.is_over and shelf.space.purge(deadline.left) for shelf in shelves
        ]
        return self.is_connected and all(done)

    def close(self, deadline: float = 2.0) -> None:
        self._client.close(deadline)
