"""Which blocks are offered to the daemon, and how they are kept from reuse until it has them.

A full block never changes while somebody holds it, so a store may read it at any time after the
step that filled it. What it must never read is a block the engine has given to someone else. The
engine frees blocks when a request ends, at once when it is preempted, and when a window has moved
on; none of these asks us first in a way that covers all three. So a block in a store is held like
a request holds it: by the pool's own count of references, taken when the store is planned and
given back when every worker has said that it is done.

The engine resets its prefix cache only while no block is taken, and some of its ways of doing so
raise where it cannot. Blocks in a store are only read, and a reset gives none of them away: for
its time, and no longer, they are set aside.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from .guard import complaints
from .messages import Run, StoreJob
from .requests import Keys, Known

# The longest the engine is asked to wait for blocks when no store gives any back: then it preempts.
PATIENCE_S = 0.1


@dataclass(slots=True)
class Pinned:
    """A store under way."""

    blocks: list[Any]
    """The pool's own, each once."""
    of: tuple[Known, StoreJob] | None
    """Whose pages they are, where that is to be told of them. Else nothing is kept of a request
    that may have ended: whoever lets go of it last takes it apart, token by token."""
    reports: int = 0
    whole: bool = True
    """The daemon has every page, under keys that are still asked for."""


class Stores:
    """Plans stores and keeps their blocks."""

    def __init__(
        self,
        keys: Keys,
        workers: int,
        share: float,
        count: MutableMapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._workers = workers
        self._share = share
        self._count = count
        self._clock = clock
        self._waits_since: float | None = None
        self._pool: Any = None
        self._budget = 0
        self._null = 0
        self._pinned: dict[int, Pinned] = {}
        self._most = 0
        """How many blocks are kept from reuse, if none is in two stores."""
        self._twice = 0
        """How many fewer they are, at least."""
        self._is_counted = self._may_count = True
        """Whether that is exact, and whether it was not yet counted in this step."""
        self._next = 0
        self._waiting: list[StoreJob] = []
        self._was_reset = False
        self._is_stale = False
        self.are_told = False
        """Whether what was stored is told as events."""

    def bind(self, pool: Any) -> None:
        """The pool whose blocks these are."""
        self._pool = pool
        self._null = pool.null_block.block_id
        self._budget = int(len(pool.blocks) * self._share)
        reset = pool.reset_prefix_cache
        pool.reset_prefix_cache = lambda: self._reset(reset)

    def _reset(self, reset: Callable[[], bool]) -> bool:
        """The engine's own reset, as if nothing were in a store."""
        blocks = [block for one in self._pinned.values() for block in one.blocks]
        if blocks:
            self._pool.free_blocks(blocks[::-1])
        try:
            # On the scheduler's thread: nobody takes a block until they are held again.
            self._was_reset = bool(reset())
        finally:
            if blocks:
                self._pool.touch(blocks)
        self._is_stale = self._is_stale and not self._was_reset
        return self._was_reset

    def forget(self) -> None:
        """What was computed before may not be offered from here on. vLLM resets its own cache in
        the same call, before; where it could not, requests run on and begin in blocks of before:
        until it can, nothing is offered."""
        for pinned in self._pinned.values():
            pinned.whole = False
        self._is_stale = not self._was_reset
        if self._is_stale:
            complaints.say(
                "stale",
                "undercroft: the engine's own prefix cache was not reset: nothing is stored "
                "until it is",
            )

    @property
    def is_under_way(self) -> bool:
        """Whether any block is kept from reuse."""
        return bool(self._pinned)

    def will_free(self) -> bool:
        """Whether a running request that finds no block does better to wait than to be preempted:
        some block is taken by stores alone. Nobody is kept waiting on a daemon that is stuck."""
        if not self._has_own():
            return False
        now = self._clock()
        if self._waits_since is None:
            self._waits_since = now
        return now - self._waits_since < PATIENCE_S

    def _has_own(self) -> bool:
        """Whether stores alone keep some block."""
        held = [block for one in self._pinned.values() for block in one.blocks]
        if any(block.ref_cnt == 1 for block in held):
            return True
        if self._is_counted and not self._twice:
            return False
        ours = Counter(block.block_id for block in held)
        return any(block.ref_cnt == ours[block.block_id] for block in held)

    @property
    def pinned_blocks(self) -> int:
        """How many blocks are kept from reuse."""
        return len({block.block_id for one in self._pinned.values() for block in one.blocks})

    def plan(self, known: Known, tables: Sequence[Sequence[int]], tokens: int) -> None:
        """Plans to store the pages of a request whose KV is computed up to `tokens`: those that
        have a hash, so none with tokens the engine only guessed. What is beyond the budget stays
        for a later step."""
        if self._pool is None or not known.usable or self._is_stale:
            return
        first = known.cursor
        base = first - (first > 0)
        hashes, salt = self._keys.hashes(known, base, tokens // self._keys.page_tokens)
        end = base + len(hashes)
        has_gaps = False
        for table in tables:
            end = min(end, len(table))
            has_gaps = has_gaps or self._null in table[first:end]
        if has_gaps:
            first = max(first, self._first_whole(tables, first, end))
        if end <= first:
            return
        # Worst case: none of them is pinned yet, and each group has its own.
        room = (self._budget - self._most) // len(tables)
        if room < end - first:
            # Only now it is worth the time to count those in two stores once, and once a step.
            if self._may_count and not self._is_counted:
                self._twice = self._most - self.pinned_blocks
                self._is_counted, self._may_count = True, False
            room = (self._budget - self._most + self._twice) // len(tables)
        if room <= 0:
            self._count["deferred_stores"] = self._count.get("deferred_stores", 0) + 1
            return
        end = min(end, first + room)
        if has_gaps:
            runs = tuple([self._run(table, first, end) for table in tables])
        else:
            runs = tuple([Run(0, tuple(table[first:end])) for table in tables])
        hashes = hashes[first - (first > 0) - base : end - base]
        number, self._next = self._next, self._next + 1
        job = StoreJob(number, known.request.request_id, first, hashes, salt, runs, known.stamp)
        held = runs[0].blocks
        if len(runs) > 1:
            held = tuple(dict.fromkeys(block for run in runs for block in run.blocks))
        blocks = list(map(self._pool.blocks.__getitem__, held))
        self._pool.touch(blocks)
        self._most += len(blocks)
        self._is_counted = False
        self._pinned[number] = Pinned(blocks, (known, job) if self.are_told else None)
        self._waiting.append(job)
        known.cursor = end

    def take(self) -> list[StoreJob]:
        """The stores planned since the last call, for the workers."""
        self._was_reset, self._may_count = False, True
        jobs, self._waiting = self._waiting, []
        return jobs

    def report(self, number: int, workers: int, whole: bool) -> Pinned | None:
        """Workers are done with a store. Answers it once all of them are."""
        pinned = self._pinned.get(number)
        if pinned is None:
            return None
        pinned.reports += workers
        pinned.whole = pinned.whole and whole
        if pinned.reports < self._workers:
            return None
        self._waits_since = None
        del self._pinned[number]
        self._most -= len(pinned.blocks)
        if self._twice:
            self._twice = max(self._twice - len(pinned.blocks), 0)
            self._is_counted = False
        # Later pages first: where the engine must evict, a prefix outlives what hangs below it.
        self._pool.free_blocks(pinned.blocks[::-1])
        return pinned

    def _first_whole(self, tables: Sequence[Sequence[int]], first: int, end: int) -> int:
        """The first page from which on the group that holds most has every block: pages before
        it are gone from all groups, and nothing is known of them."""
        null = self._null
        gaps = [
            max((page + 1 for page in range(first, end) if table[page] == null), default=first)
            for table in tables
        ]
        return min(gaps, default=first)

    def _run(self, table: Sequence[int], first: int, end: int) -> Run:
        """The trailing blocks of a run that the engine still has."""
        blocks = list(table[first:end])
        skip = max((i + 1 for i, block in enumerate(blocks) if block == self._null), default=0)
        return Run(skip, tuple(blocks[skip:]))
