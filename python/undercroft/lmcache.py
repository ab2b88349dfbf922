"""Undercroft as the L2 of an LMCache server: `{"type": "plugin", "module_path":
"undercroft.lmcache", "class_name": "UndercroftL2Adapter", "adapter_params": {...}}`.

LMCache has two ways in. This one, `plugin`, and not `native_plugin`, because only here a lookup
says which shape and type an object has: the one thing, beside its key, that tells a restarted
server what it is allowed to find. And what LMCache locks between lookup and load is held by the
daemon, too; the other way locks nothing.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping, Sequence

import lmcache
from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface

import undercroft
from undercroft.models import Models
from undercroft.tiering import Limits, Shelf, Tier, version
from undercroft.workers import Deadline, Workers, logger

#: Shorter hashes than this are too likely to be another chunk's, bytes.
MIN_HASH_BYTES = 16
#: The type that engines keep numbers of several formats in.
BYTES = "uint8"
#: How many results nobody asked for, and how many places of chunks, are remembered.
MAX_REMEMBERED = 65_536


@dataclass(frozen=True)
class Row:
    """Objects of one kind: what they have in common, and which of a call's they are."""

    model_name: str
    kv_rank: int
    object_group_id: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    page_bytes: int
    places: list[int] = field(default_factory=list, compare=False)

    @property
    def rank(self) -> tuple[int, int] | None:
        """Which of how many workers, as LMCache packs it."""
        count, index = self.kv_rank >> 24 & 0xFF, self.kv_rank >> 16 & 0xFF
        return (index, count) if index < count else None


@dataclass
class Pin:
    """A hold, and how many of the objects under it are locked still."""

    hold: undercroft.Hold
    objects: int
    until: float


class UndercroftL2Adapter(L2AdapterInterface):
    """Stores LMCache's objects as pages of Undercroft. Every task that is submitted completes
    once, whatever becomes of the daemon: as a failure at the latest when its deadline has passed,
    counted from when it was submitted. LMCache gives an object's memory to others some minutes
    after that: a task that has not begun by its deadline touches no object.
    """

    def __init__(self, config: Mapping[str, Any], l1_memory_desc: Any = None) -> None:
        super().__init__()
        settings = dict(config)
        socket = settings.pop("socket", None)
        identity = settings.pop("identity", "")
        self._models = Models(settings.pop("models", {}), is_elsewhere=True)
        limits = Limits.taken_from(settings)
        if settings:
            allowed = ["socket", "models", "identity", *Limits.__dataclass_fields__]
            raise ValueError(f"unknown settings {sorted(settings)}, allowed {allowed}")
        self._version = version("lmcache")
        self._tier = Tier("lmcache", limits, socket, identity)
        self._lookups = Workers("lookup", 1, limits.max_tasks)
        # Stores are long and nobody waits for one; a request waits for a load.
        self._loads = Workers("load", limits.threads, limits.max_tasks)
        self._stores = Workers("store", limits.threads, limits.max_tasks)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        # Their numbers are asked for after the end, too.
        self._bells = {kind: os.eventfd(0, flags) for kind in ("store", "lookup", "load")}
        self._can_ring = True
        self._results: dict[str, OrderedDict[int, Any]] = {k: OrderedDict() for k in self._bells}
        self._pins: OrderedDict[Any, list[Pin]] = OrderedDict()
        self._before: OrderedDict[bytes, tuple[bytes | None, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._next_task = 0
        self._closed = False

    def get_store_event_fd(self) -> int:
        return self._bells["store"]

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._bells["lookup"]

    def get_load_event_fd(self) -> int:
        return self._bells["load"]

    def submit_store_task(self, keys: Sequence[Any], objects: Sequence[Any]) -> int:
        stored: list[int] = []
        deadline = Deadline(self._tier.limits.store_deadline)

        def work() -> None:
            stored.extend(self._store(keys, objects, deadline))

        def result() -> L2StoreResult:
            sizes = [objects[at].get_size() for at in stored]
            if stored:
                self._notify_keys_stored([keys[at] for at in stored], sizes)
            return L2StoreResult(len(stored) == len(keys), sum(sizes))

        failure = L2StoreResult(False, 0)
        return self._submit(self._stores, "store", work, result, failure, deadline)

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        with self._lock:
            done, self._results["store"] = self._results["store"], OrderedDict()
        return dict(done)

    def submit_lookup_and_lock_task(
        self, keys: Sequence[Any], group_layout_descs: Mapping[int, Any]
    ) -> int:
        found, nothing = Bitmap(len(keys)), Bitmap(len(keys))
        deadline = self._tier.limits.lookup()

        def work() -> None:
            for at in self._look_up(keys, group_layout_descs, deadline):
                found.set(at)

        return self._submit(self._lookups, "lookup", work, lambda: found, nothing, deadline)

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        with self._lock:
            return self._results["lookup"].pop(task_id, None)

    def submit_unlock(self, keys: Sequence[Any]) -> None:
        free: list[undercroft.Hold] = []
        with self._lock:
            for key in keys:
                pins = self._pins.get(key)
                if not pins:
                    continue
                # The oldest, whoever unlocks: it is the first to expire, and those who have the
                # key locked still keep the newer ones.
                pin = pins.pop(0)
                pin.objects -= 1
                if not pin.objects:
                    free.append(pin.hold)
                if not pins:
                    del self._pins[key]
        if free:
            # Where nobody can tell the daemon at once, the hold ends by itself.
            self._lookups.submit(lambda: [hold.drop() for hold in free], lambda: None)

    def submit_load_task(self, keys: Sequence[Any], objects: Sequence[Any]) -> int:
        loaded: list[int] = []
        deadline = Deadline(self._tier.limits.load_deadline)

        def work() -> None:
            loaded.extend(self._load(keys, objects, deadline))

        def result() -> Bitmap:
            bits = Bitmap(len(keys))
            for at in loaded:
                bits.set(at)
            if loaded:
                self._notify_keys_accessed([keys[at] for at in loaded])
            return bits

        return self._submit(self._loads, "load", work, result, Bitmap(len(keys)), deadline)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        with self._lock:
            return self._results["load"].pop(task_id, None)

    def report_status(self) -> dict[str, Any]:
        """Whether this adapter does its work. A daemon that is away makes misses, and no server
        unhealthy: its state is beside."""
        client = self._tier.client
        workers = (self._lookups, self._loads, self._stores)
        return {
            "is_healthy": all(threads.are_alive for threads in workers),
            "type": type(self).__name__,
            "state": client.state,
            "failure": client.failure,
            "counts": dict(self._tier.counts),
        }

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            # First of all the session: with it calls under way end, and LMCache's memory is free.
            self._tier.close()
        finally:
            for workers in (self._lookups, self._loads, self._stores):
                workers.close()
            with self._lock:
                self._can_ring = False
                for bell in self._bells.values():
                    os.close(bell)

    def _submit(
        self,
        workers: Workers,
        kind: str,
        work: Callable[[], None],
        result: Callable[[], Any],
        failure: Any,
        deadline: Deadline,
    ) -> int:
        with self._lock:
            task = self._next_task
            self._next_task += 1

        def run() -> None:
            outcome = failure
            try:
                work()
                outcome = result()
            except BaseException as error:  # noqa: BLE001  LMCache waits for this task
                self._tier.tell("error", "a %s of LMCache's failed: %s", kind, error)
            self._complete(kind, task, outcome)

        workers.submit(run, lambda: self._complete(kind, task, failure), deadline)
        return task

    def _complete(self, kind: str, task: int, outcome: Any) -> None:
        with self._lock:
            results = self._results[kind]
            results[task] = outcome
            while len(results) > MAX_REMEMBERED:
                results.popitem(last=False)
            if self._can_ring:
                os.eventfd_write(self._bells[kind], 1)

    def _shelf(self, row: Row, deadline: Deadline) -> Shelf | None:
        model = self._models.digest(row.model_name)
        if model is None:
            self._tier.tell("model", "no digest of the model %r is given, its objects are not "
                            "kept: name it in `models`", row.model_name)
            return None
        identity = {
            "cache": "lmcache", "version": self._version, "engines": engines_device(),
            "model": row.model_name, "kv_rank": row.kv_rank,
            "shapes": row.shapes, "dtypes": row.dtypes,
        }
        return self._tier.shelf(
            identity, model, [row.page_bytes], deadline, rank=row.rank, group=row.object_group_id,
            unknown=self._unknown(row),
        )

    def _unknown(self, row: Row) -> str | None:
        """What LMCache does not tell of these objects, and their bytes depend on."""
        if not self._version:
            return "LMCache's version"
        device = engines_device()
        if device != "cuda":
            return f"in which order engines on {device} keep a block's tokens, and how long it is"
        if any(dtype.endswith(BYTES) for dtype in row.dtypes):
            return "what numbers these bytes are (kv_cache_dtype)"
        return None

    def _look_up(
        self, keys: Sequence[Any], layouts: Mapping[int, Any], deadline: Deadline
    ) -> list[int]:
        hold_for = self._tier.limits.hold
        found: list[int] = []
        self._forget_expired()
        for row in rows(keys, lambda at: shape_of_layout(layouts.get(keys[at].object_group_id))):
            shelf = self._shelf(row, deadline)
            if shelf is None:
                continue
            names = shelf.keys([name_of(keys[at]) for at in row.places])
            self._remember(names)
            for first, count, hold in shelf.find(names, deadline, hold_for):
                places = row.places[first : first + count]
                found.extend(places)
                if hold is not None:
                    self._pin(hold, [keys[at] for at in places])
        return found

    def _store(
        self, keys: Sequence[Any], objects: Sequence[Any], deadline: Deadline
    ) -> list[int]:
        stored: list[int] = []
        for row, shelf in self._kept(keys, objects, deadline):
            names = shelf.keys([name_of(keys[at]) for at in row.places])
            device = buffers(row, objects, is_load=False)
            for start, stop in self._chains(names):
                parent, first = self._before.get(names[start], (None, 0))
                there = shelf.store(
                    names[start:stop], device, range(start, stop), deadline, parent, first
                )
                stored.extend(row.places[start + at] for at, ok in enumerate(there) if ok)
        return stored

    def _load(
        self, keys: Sequence[Any], objects: Sequence[Any], deadline: Deadline
    ) -> list[int]:
        loaded: list[int] = []
        for row, shelf in self._kept(keys, objects, deadline):
            names = shelf.keys([name_of(keys[at]) for at in row.places])
            device = buffers(row, objects, is_load=True)
            got = shelf.load(names, device, range(len(names)), deadline)
            loaded.extend(place for place, ok in zip(row.places, got) if ok)
        return loaded

    def _kept(
        self, keys: Sequence[Any], objects: Sequence[Any], deadline: Deadline
    ) -> Iterable[tuple[Row, Shelf]]:
        if len(keys) != len(objects):
            raise ValueError(f"{len(keys)} keys and {len(objects)} objects")
        for row in rows(keys, lambda at: shape_of_object(objects[at])):
            shelf = self._shelf(row, deadline)
            if shelf is not None:
                yield row, shelf

    def _remember(self, names: Sequence[bytes]) -> None:
        """A lookup's row is in order of its chunks: which chunk hangs on which."""
        for at, name in enumerate(names):
            self._before[name] = (names[at - 1] if at else None, at)
            self._before.move_to_end(name)
        while len(self._before) > MAX_REMEMBERED:
            self._before.popitem(last=False)

    def _chains(self, names: Sequence[bytes]) -> Iterable[tuple[int, int]]:
        """Stretches in which each chunk hangs on the one before."""
        start = 0
        for at in range(1, len(names) + 1):
            parent, _ = self._before.get(names[at], (None, 0)) if at < len(names) else (None, 0)
            if parent is None or parent != names[at - 1]:
                yield start, at
                start = at

    def _pin(self, hold: undercroft.Hold, keys: Sequence[Any]) -> None:
        pin = Pin(hold, len(keys), time.monotonic() + self._tier.limits.hold)
        with self._lock:
            for key in keys:
                self._pins.setdefault(key, []).append(pin)
                self._pins.move_to_end(key)

    def _forget_expired(self) -> None:
        """Of locks that nobody has taken back the daemon's holds are gone by themselves."""
        now = time.monotonic()
        with self._lock:
            while self._pins:
                key, pins = next(iter(self._pins.items()))
                if pins[-1].until > now:
                    return
                del self._pins[key]


def engines_device() -> str:
    """On what the engines of this node run, as LMCache's server sees it."""
    device = str(getattr(lmcache, "torch_device_type", "a device it does not name"))
    torch = sys.modules.get("torch")
    # Its name for AMD's is the same, and their engines tile a block.
    is_hip = getattr(getattr(torch, "version", None), "hip", None) is not None
    return "rocm" if device == "cuda" and is_hip else device


Shape = tuple[tuple[tuple[int, ...], ...], tuple[str, ...], int]


def rows(keys: Sequence[Any], shape: Callable[[int], Shape | None]) -> list[Row]:
    """A call's objects by kind. What cannot be told apart from others is in none."""
    kinds: dict[Row, Row] = {}
    for at, key in enumerate(keys):
        shaped = shape(at)
        if shaped is None or len(key.chunk_hash) < MIN_HASH_BYTES:
            logger.debug("undercroft: LMCache's object %s is of no known shape or hash", key)
            continue
        row = Row(key.model_name, key.kv_rank, key.object_group_id, *shaped)
        kinds.setdefault(row, row).places.append(at)
    return list(kinds.values())


def shape_of_layout(layout: Any) -> Shape | None:
    """What a lookup says of the objects it asks for."""
    if layout is None or not layout.shapes:
        return None
    return shape_of(layout.shapes, layout.dtypes)


def shape_of_object(obj: Any) -> Shape | None:
    """What an object says of itself."""
    shaped = shape_of(obj.get_shapes(), obj.get_dtypes())
    return shaped if shaped[2] == obj.get_size() else None


def shape_of(shapes: Sequence[Sequence[int]], dtypes: Sequence[Any]) -> Shape:
    sizes = tuple(tuple(int(size) for size in shape) for shape in shapes)
    total = 0
    for shape, dtype in zip(sizes, dtypes, strict=True):
        elements = 1
        for size in shape:
            elements *= size
        total += elements * dtype.itemsize
    return sizes, tuple(str(dtype) for dtype in dtypes), total


def buffers(row: Row, objects: Sequence[Any], is_load: bool) -> "undercroft.Buffers":
    """The memory of a row's objects: block `i` is the `i`-th of them."""
    memories = [(objects[at].data_ptr, row.page_bytes) for at in row.places]
    return undercroft.Buffers(row.page_bytes, memories, writable=is_load)


def name_of(key: Any) -> bytes:
    """What tells an object apart from others of its row: chunk and salt. Salts are many, so they
    make keys and not spaces."""
    salt = key.cache_salt.encode()
    name = hashlib.sha256(len(salt).to_bytes(4, "little") + salt)
    name.update(key.chunk_hash)
    return name.digest()
