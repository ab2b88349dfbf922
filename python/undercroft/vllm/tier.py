"""Undercroft beneath vLLM's own offloading: `"secondary_tiers": [{"type": "UndercroftTier",
"module_path": "undercroft.vllm.tier"}]` of an `OffloadingConnector` with `TieringOffloadingSpec`.

vLLM keeps chunks in memory of its own and hands over which of them are to be kept below, or wanted
back. All calls come from its scheduler and return at once; threads of ours do the work, and each
job ends once, at its deadline at the latest, counted from when it was submitted. Whoever has no
such tier yet is better off with the connector of `undercroft.vllm`, which does without the copy in
between.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
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
from undercroft.models import Models
from undercroft.tiering import Limits, Shelf, Tier
from undercroft.workers import Deadline, Workers


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
        identity = config.pop("identity", "")
        limits = Limits.taken_from(config)
        if config:
            allowed = ["socket", "model", "identity", "locality", *Limits.__dataclass_fields__]
            raise ValueError(f"unknown settings {sorted(config)}, allowed {allowed}")
        name = offloading_spec.config.model.name
        self._model = Models({} if model is None else {name: model}).digest(name)
        self._identity = identity_of(offloading_spec)
        # By the numbers that keys have: groups that are not offloaded have one, too.
        groups = offloading_spec.config.groups
        self._groups = {
            group.group_id: [group.tokens_per_block, *group.layer_names] for group in groups
        }
        self._chunk_tokens = {
            group.group_id: group.tokens_per_block * offloading_spec.blocks_per_chunk
            for group in groups
        }
        self._device = device_of(primary_kv_view)
        self._tier = Tier("vllm-tier", limits, socket, identity)
        self._lookups = Workers("tier-lookup", 1, limits.max_tasks)
        # Stores are long and nobody waits for one; a request waits for a load.
        self._loads = Workers("tier-load", limits.threads, limits.max_tasks)
        self._stores = Workers("tier-store", limits.threads, limits.max_tasks)
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
            deadline = self._tier.limits.lookup()
            self._lookups.submit(
                partial(self._look_up, request, keys, deadline),
                partial(self._answer, request, keys, set()),
                deadline,
            )

    def on_request_finished(self, req_context: Any) -> None:
        with self._lock:
            request = self._requests.pop(req_context.req_id, None)
            holds = [] if request is None else request.holds
        if holds:
            self._lookups.submit(lambda: [hold.drop() for hold in holds], lambda: None)

    def submit_store(self, job_metadata: TransferJob) -> None:
        deadline = Deadline(self._tier.limits.store_deadline)
        self._submit(job_metadata, self._stores, self._store, deadline)

    def submit_load(self, job_metadata: TransferJob) -> None:
        deadline = Deadline(self._tier.limits.load_deadline)
        self._submit(job_metadata, self._loads, self._load, deadline)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        with self._lock:
            done, self._done = self._done, []
        return done

    def drain_jobs(self) -> None:
        """The scheduler waits here: for what is under way, which ends by its deadline. What has not
        begun is given up."""
        self._stores.drain()
        self._loads.drain()

    def shutdown(self) -> None:
        try:
            # First of all the session: with it calls under way end.
            self._tier.close()
        finally:
            for workers in (self._lookups, self._loads, self._stores):
                workers.close()

    def _submit(
        self,
        job: TransferJob,
        workers: Workers,
        work: Callable[[list[Chunk], Deadline], set[bytes]],
        deadline: Deadline,
    ) -> None:
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
                done = work(self._chunks(job, keys, places, above), deadline)
            except BaseException as error:  # noqa: BLE001  vLLM waits for this job
                self._tier.tell("error", "a job of vLLM's failed: %s: %s",
                                type(error).__name__, error)
            self._finish(job, done, time.monotonic() - began)

        workers.submit(run, lambda: self._finish(job, set(), 0.0), deadline)

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
            tokens = self._chunk_tokens.get(group)
            if placed is None or tokens is None:
                chunks.append((0, Chunk(key, int(block), group)))
                continue
            end = placed[1]
            parent = above.get((group, end - tokens))
            index = end // tokens - 1 if parent is not None else 0
            chunks.append((end, Chunk(key, int(block), group, parent, index)))
        chunks.sort(key=lambda chunk: (chunk[1].group, chunk[0]))
        return [chunk for _, chunk in chunks]

    def _shelf(self, group: int, deadline: Deadline) -> Shelf | None:
        if self._model is None:
            return None
        if group not in self._groups:
            self._tier.tell("group", "vLLM has said nothing of group %d, its chunks are not kept",
                            group)
            return None
        identity = {**self._identity, "group": self._groups[group]}
        size = self.block_size_bytes
        return self._tier.shelf(identity, self._model, [size], deadline, group=group)

    def _look_up(self, request: Request, keys: list[bytes], deadline: Deadline) -> None:
        there: set[bytes] = set()
        holds: list[undercroft.Hold] = []
        hold_for = self._tier.limits.hold
        try:
            for group, of_group in by_group(keys):
                shelf = self._shelf(group, deadline)
                if shelf is None:
                    continue
                names = shelf.keys([get_offload_block_hash(key) for key in of_group])
                for first, count, hold in shelf.find(names, deadline, hold_for):
                    there.update(of_group[first : first + count])
                    if hold is not None:
                        holds.append(hold)
        except BaseException as error:  # noqa: BLE001  a request waits for this answer
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

    def _load(self, chunks: list[Chunk], deadline: Deadline) -> set[bytes]:
        loaded: set[bytes] = set()
        for group, of_group in by_group(chunks):
            shelf = self._shelf(group, deadline)
            if shelf is None:
                continue
            names = shelf.keys([get_offload_block_hash(chunk.key) for chunk in of_group])
            blocks = [chunk.block for chunk in of_group]
            got = shelf.load(names, self._device, blocks, deadline)
            loaded.update(chunk.key for chunk, ok in zip(of_group, got) if ok)
        return loaded

    def _store(self, chunks: list[Chunk], deadline: Deadline) -> set[bytes]:
        stored: set[bytes] = set()
        for group, of_group in by_group(chunks):
            shelf = self._shelf(group, deadline)
            if shelf is None:
                continue
            for run in chains(of_group):
                names = shelf.keys([get_offload_block_hash(chunk.key) for chunk in run])
                above = run[0].parent
                parent = None if above is None else shelf.keys([get_offload_block_hash(above)])[0]
                there = shelf.store(
                    names, self._device, [chunk.block for chunk in run], deadline, parent,
                    run[0].index,
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
        # Where the engine cuts the layers into stages.
        "stages": os.environ.get("VLLM_PP_LAYER_PARTITION") if parallel.pp_size > 1 else None,
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
