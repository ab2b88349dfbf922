"""Undercroft beneath vLLM's own offloading: `"secondary_tiers": [{"type": "UndercroftTier",
"module_path": "undercroft.vllm.tier"}]` of an `OffloadingConnector` with `TieringOffloadingSpec`.

vLLM keeps chunks in memory of its own and hands over which of them are to be kept below, or wanted
back. All calls come from its scheduler and return at once; threads of ours do the work, and each
job ends once, at its deadline at the latest. Whoever has no such tier yet is better off with the
connector of `undercroft.vllm`, which does without the copy in between.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import vllm
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    RequestOffloadingContext,
    get_offload_block_hash,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

import undercroft
from undercroft.tiering import Limits, Models, Shelf, Tier, Workers


@dataclass
class Request:
    """What is known of the chunks a request has asked for."""

    context: Any
    there: dict[bytes, bool | None] = field(default_factory=dict)
    """`None`: nobody has answered yet."""
    unasked: list[bytes] = field(default_factory=list)
    at: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """Keys by group and the number of their last token."""
    holds: list[undercroft.Hold] = field(default_factory=list)


@dataclass(frozen=True)
class Chunk:
    """A chunk of a job: its key, where it lies, and the chain it is the next of."""

    key: bytes
    block: int
    group: int
    parent: bytes | None = None
    index: int = 0


class UndercroftTier(SecondaryTierManager):
    """A tier whose pages are whole chunks, with what all workers have of them."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **config: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        locality = config.pop("locality", None)
        self.locality = None if locality is None else Locality(locality)
        socket, model = config.pop("socket", None), config.pop("model", None)
        limits = Limits.taken_from(config)
        if config:
            allowed = ["socket", "model", "locality", *Limits.__dataclass_fields__]
            raise ValueError(f"unknown settings {sorted(config)}, allowed {allowed}")
        name = offloading_spec.config.model.name
        self._model = Models({} if model is None else {name: model}).digest(name)
        self._identity = identity_of(offloading_spec)
        self._chunk_tokens = [
            tokens * offloading_spec.blocks_per_chunk for tokens in offloading_spec.tokens_per_block
        ]
        self._device = device_of(primary_kv_view)
        self._tier = Tier("vllm-tier", limits, socket)
        self._lookups = Workers("tier-lookup", 1, limits.max_tasks)
        self._copies = Workers("tier-copy", limits.threads, limits.max_tasks)
        self._requests: dict[str, Request] = {}
        self._done: list[JobResult] = []
        self._lock = threading.Lock()
        if self._model is None:
            self._tier.tell("model", "no digest of the model %r is given, no chunk is kept: name "
                            "one as `model`", name)

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def lookup(self, key: bytes, req_context: Any) -> LookupResult:
        key = bytes(key)
        with self._lock:
            request = self._requests.setdefault(req_context.req_id, Request(req_context))
            if key not in request.there:
                request.there[key] = None
                request.unasked.append(key)
                place(request, key)
            there = request.there[key]
        if there is None:
            return LookupResult.RETRY
        return LookupResult.HIT if there else LookupResult.MISS

    def on_schedule_end(self, context: Any) -> None:
        """Asks about what this step wanted to know, all of a request at once."""
        with self._lock:
            asked = [(request, request.unasked) for request in self._requests.values()
                     if request.unasked]
            for request, _ in asked:
                request.unasked = []
        for request, keys in asked:
            self._lookups.submit(
                lambda request=request, keys=keys: self._look_up(request, keys),
                lambda request=request, keys=keys: self._answer(request, keys, set()),
            )

    def on_request_finished(self, req_context: Any) -> None:
        with self._lock:
            request = self._requests.pop(req_context.req_id, None)
            holds = [] if request is None else request.holds
        if holds:
            self._lookups.submit(lambda: [hold.drop() for hold in holds], lambda: None)

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._store)

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._load)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        with self._lock:
            done, self._done = self._done, []
        return done

    def drain_jobs(self) -> None:
        self._copies.wait_idle()

    def shutdown(self) -> None:
        # First of all the session: with it calls under way end.
        self._tier.close()
        self._lookups.close()
        self._copies.close()

    def _submit(self, job: TransferJob, work: Callable[[list[Chunk]], set[bytes]]) -> None:
        keys = [bytes(key) for key in job.keys]
        with self._lock:
            # The scheduler's own thread looks at its request; ours look at chunks.
            request = self._requests.get(job.req_context.req_id) or Request(job.req_context)
            places = [place(request, key) for key in keys]
            above = dict(request.at)

        def run() -> None:
            began = time.monotonic()
            done: set[bytes] = set()
            try:
                done = work(self._chunks(job, keys, places, above))
            except Exception as error:  # noqa: BLE001  vLLM waits for this job
                self._tier.tell("error", "a job of vLLM's failed: %s: %s",
                                type(error).__name__, error)
            self._finish(job, done, time.monotonic() - began)

        self._copies.submit(run, lambda: self._finish(job, set(), 0.0))

    def _finish(self, job: TransferJob, done: set[bytes], seconds: float) -> None:
        failed = {bytes(key) for key in job.keys} - done
        partly = tuple(key for key in job.keys if bytes(key) in done) if failed and done else None
        result = JobResult(
            job_id=job.job_id,
            success=not failed,
            successful_keys=partly if job.is_promotion else None,
            transfer_time=seconds,
            transfer_bytes=len(done) * self.block_size_bytes,
        )
        with self._lock:
            self._done.append(result)
            if job.is_promotion:
                # vLLM would ask for them again, and for ever.
                for request in self._requests.values():
                    request.there.update((key, False) for key in failed & request.there.keys())

    def _chunks(
        self,
        job: TransferJob,
        keys: list[bytes],
        places: list[tuple[int, int] | None],
        above: dict[tuple[int, int], bytes],
    ) -> list[Chunk]:
        """A job's chunks, those of a group in the order of their chain."""
        chunks: list[tuple[int, Chunk]] = []
        for key, block, placed in zip(keys, job.chunk_ids, places, strict=True):
            group = get_offload_group_idx(key)
            if placed is None:
                chunks.append((0, Chunk(key, int(block), group)))
                continue
            end, tokens = placed[1], self._chunk_tokens[group]
            parent = above.get((group, end - tokens))
            index = end // tokens - 1 if parent is not None else 0
            chunks.append((end, Chunk(key, int(block), group, parent, index)))
        chunks.sort(key=lambda chunk: (chunk[1].group, chunk[0]))
        return [chunk for _, chunk in chunks]

    def _shelf(self, group: int, deadline: float) -> Shelf | None:
        if self._model is None:
            return None
        identity = {**self._identity, "group": self._identity["groups"][group]}
        size = self.block_size_bytes
        return self._tier.shelf(identity, self._model, [size], deadline, group=group)

    def _look_up(self, request: Request, keys: list[bytes]) -> None:
        there: set[bytes] = set()
        holds: list[undercroft.Hold] = []
        limits = self._tier.limits
        try:
            for group, of_group in by_group(keys):
                shelf = self._shelf(group, limits.lookup_deadline)
                if shelf is None:
                    continue
                names = shelf.keys([get_offload_block_hash(key) for key in of_group])
                for first, count, hold in shelf.find(names, limits.lookup_deadline, limits.hold):
                    there.update(of_group[first : first + count])
                    if hold is not None:
                        holds.append(hold)
        except Exception as error:  # noqa: BLE001  a request waits for this answer
            self._tier.tell("error", "a lookup of vLLM's failed: %s", error)
        self._answer(request, keys, there, holds)

    def _answer(
        self,
        request: Request,
        keys: list[bytes],
        there: set[bytes],
        holds: Collection[undercroft.Hold] = (),
    ) -> None:
        with self._lock:
            request.there.update((key, key in there) for key in keys)
            is_wanted = self._requests.get(request.context.req_id) is request
            if is_wanted:
                request.holds.extend(holds)
        if not is_wanted:
            for hold in holds:
                hold.drop()

    def _load(self, chunks: list[Chunk]) -> set[bytes]:
        limits = self._tier.limits
        end = time.monotonic() + limits.load_deadline
        loaded: set[bytes] = set()
        for group, of_group in by_group(chunks):
            left = max(0.0, end - time.monotonic())
            shelf = self._shelf(group, left)
            if shelf is None:
                continue
            names = shelf.keys([get_offload_block_hash(chunk.key) for chunk in of_group])
            got = shelf.load(names, self._device, [chunk.block for chunk in of_group], left)
            loaded.update(chunk.key for chunk, ok in zip(of_group, got) if ok)
        return loaded

    def _store(self, chunks: list[Chunk]) -> set[bytes]:
        end = time.monotonic() + self._tier.limits.store_deadline
        stored: set[bytes] = set()
        for group, of_group in by_group(chunks):
            shelf = self._shelf(group, max(0.0, end - time.monotonic()))
            if shelf is None:
                continue
            for run in chains(of_group):
                names = shelf.keys([get_offload_block_hash(chunk.key) for chunk in run])
                above = run[0].parent
                parent = None if above is None else shelf.keys([get_offload_block_hash(above)])[0]
                there = shelf.store(
                    names, self._device, [chunk.block for chunk in run],
                    max(0.0, end - time.monotonic()), parent, run[0].index,
                )
                stored.update(chunk.key for chunk, ok in zip(run, there) if ok)
        return stored


def place(request: Request, key: bytes) -> tuple[int, int] | None:
    """Where in its request a chunk ends, where the engine says so."""
    end = request.context.get_offload_key_position(key)
    if end is None:
        return None
    request.at[get_offload_group_idx(key), end] = key
    return get_offload_group_idx(key), end


def identity_of(spec: Any) -> dict[str, Any]:
    """What vLLM says of its chunks: a chunk has the bytes of all workers, one after another."""
    config, parallel = spec.config, spec.config.parallel
    return {
        "cache": "vllm-tier",
        "version": list(vllm.__version_tuple__[:2]),
        "model": config.model.name,
        "dtype": str(config.model.dtype),
        "tokens_per_hash": config.cache.tokens_per_hash,
        "blocks_per_chunk": config.cache.blocks_per_chunk,
        "worker_bytes": config.worker_kv_bytes_per_block,
        "parallel": [parallel.world_size, parallel.tp_size, parallel.pp_size, parallel.pcp_size,
                     parallel.dcp_size],
        "layout": [config.replicated_layout, config.canonical_layout, config.kv_cache_layout],
        "groups": [[group.tokens_per_block, *group.layer_names] for group in config.groups],
    }


def device_of(view: memoryview) -> undercroft.HostDevice:
    """vLLM's chunks as blocks. vLLM keeps the memory for as long as it keeps its tiers."""
    chunks, chunk_bytes = view.shape[0], view.strides[0]
    geometry = undercroft.Geometry(1, [chunk_bytes])
    # The address alone: a buffer that is exported could not be closed.
    base = ctypes.addressof(ctypes.c_char.from_buffer(view))
    places = [(0, 0, chunk_bytes)]
    layout = undercroft.Layout(geometry, chunks, [(base, chunks * chunk_bytes)], places)
    return undercroft.HostDevice(layout)


def by_group(items: list[Any]) -> list[tuple[int, list[Any]]]:
    """Keys or chunks by their group, each in the order they come in."""
    groups: dict[int, list[Any]] = {}
    for item in items:
        group = item.group if isinstance(item, Chunk) else get_offload_group_idx(item)
        groups.setdefault(group, []).append(item)
    return list(groups.items())


def chains(chunks: list[Chunk]) -> list[list[Chunk]]:
    """Stretches in which each chunk hangs on the one before."""
    runs: list[list[Chunk]] = []
    for chunk in chunks:
        if runs and chunk.parent is not None and chunk.parent == runs[-1][-1].key:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    return runs
