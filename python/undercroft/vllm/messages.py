"""What the scheduler's half and the workers' halves of the connector tell each other.

Plain data: it is pickled between the engine's processes. Keys travel as one run of 32 bytes each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorHandshakeMetadata,
        KVConnectorMetadata,
        KVConnectorWorkerMetadata,
    )
except ImportError:  # without the engine: the bookkeeping alone, in tests
    KVConnectorHandshakeMetadata = object  # type: ignore[assignment,misc]
    KVConnectorMetadata = object  # type: ignore[assignment,misc]
    KVConnectorWorkerMetadata = object  # type: ignore[assignment,misc]

KEY_BYTES = 32


@dataclass(slots=True)
class Run:
    """The blocks of one group that a run of pages lies in, without the pages before `skip`: a
    sliding window has let go of their blocks."""

    skip: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class LoadJob:
    """Pages to load for a request: one run of keys, and where they go in each group."""

    req_id: str
    keys: bytes
    runs: tuple[Run, ...]
    stamp: int
    by_layer: bool = False

    @property
    def pages(self) -> int:
        """How many pages there are, for groups that hold all of them."""
        return len(self.keys) // KEY_BYTES


@dataclass(slots=True)
class StoreJob:
    """Pages to store: what names them in chain order, the page before them, and where they lie.

    Workers make the keys: the scheduler's time is every request's.
    """

    number: int
    req_id: str
    first: int
    hashes: list[bytes]
    """The engine's, one a page; before them that of the page before, if there is one."""
    salt: bytes
    runs: tuple[Run, ...]
    stamp: int

    @property
    def pages(self) -> int:
        """How many pages there are, for groups that hold all of them."""
        return len(self.hashes) - (self.first > 0)


@dataclass
class Step(KVConnectorMetadata):
    """What the workers are to do in one step."""

    number: int = 0
    loads: list[LoadJob] = field(default_factory=list)
    stores: list[StoreJob] = field(default_factory=list)
    forgets: bool = False
    """Loads that are under way when it begins are of no use: they are to fail."""
    is_timed: bool = False
    """Workers are to tell when it is over."""
    page_s: float | None = None
    """What computing a page costs from now on, where that has changed."""


@dataclass
class Reports(KVConnectorWorkerMetadata):
    """What workers have done since they last reported."""

    stores: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """By job: how many workers are done with it, and whether all of them hold every page."""
    layered: dict[int, int] = field(default_factory=dict)
    """By step: how many workers are done with the loads inside of it."""
    over: list[int] = field(default_factory=list)
    """Steps that were to be told of and are over, by the first worker that says so."""

    def aggregate(self, other: Reports) -> Reports:
        """The reports of both."""
        for number, (workers, whole) in other.stores.items():
            mine, mine_whole = self.stores.get(number, (0, True))
            self.stores[number] = (mine + workers, mine_whole and whole)
        for step, workers in other.layered.items():
            self.layered[step] = self.layered.get(step, 0) + workers
        self.over += [step for step in other.over if step not in self.over]
        return self

    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.stores or self.layered or self.over)


@dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """What a worker stores, so that the scheduler can look up in the very same spaces."""

    off: str | None = None
    """Why this worker stays off; None if it does not."""
    family: dict[str, Any] = field(default_factory=dict)
    """The arguments of `undercroft.Family`."""
    rank: tuple[int, int] | None = None
    """Which shard of how many; None: the same page on every rank."""
    shapes: list[tuple[int, list[int]]] = field(default_factory=list)
    """Of each group: layers, and the bytes of each part of one layer."""
