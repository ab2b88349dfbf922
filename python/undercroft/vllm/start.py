"""Builds the connector's halves out of the engine's configuration."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import vllm

import undercroft

from . import identity, versions
from .blocks import BlocksError, GroupMemory, group_memories
from .digests import DigestError
from .events import Announced, Maker
from .guard import complaints, logger
from .messages import Handshake
from .obstacles import group_kind
from .scheduler import Scheduler
from .settings import Settings
from .worker import GroupIo, Worker

OPEN_DEADLINE_S = 2.0
FIRST_WAIT_S = 0.5


class CannotStart(Exception):
    """Why a half stays off, for people."""


@dataclasses.dataclass
class Started:
    """A worker's half that goes."""

    worker: Worker
    client: undercroft.Client
    handshake: Handshake
    after: Callable[[Any], Any] | None


def insist_on_recompute(transfer_config: Any) -> None:
    """A cache may always miss; the engine's default makes a miss in a load the request's end."""
    if transfer_config.kv_load_failure_policy != "recompute":
        logger.warning(
            "undercroft: kv_load_failure_policy is %s; set to recompute, a load may always miss",
            transfer_config.kv_load_failure_policy,
        )
        transfer_config.kv_load_failure_policy = "recompute"


def fitting(settings: Settings, vllm_config: Any, kv_cache_config: Any) -> Settings:
    """The settings as this engine and model can have them."""
    role = getattr(vllm_config.kv_transfer_config, "kv_role", "kv_both")
    if role == "kv_producer":
        # The engine gives blocks away under a step in flight unless its connector consumes.
        settings = dataclasses.replace(settings, load="off")
    elif role == "kv_consumer":
        settings = dataclasses.replace(settings, store=False)
    if settings.load == "layers" and (why := _why_not_layers(vllm_config, kv_cache_config)):
        logger.warning("undercroft: load=layers: %s; loading between steps", why)
        return dataclasses.replace(settings, load="async")
    return settings


def _why_not_layers(vllm_config: Any, kv_cache_config: Any) -> str | None:
    """A load inside of a step that fails makes the step's own tokens wrong: the engine must hear of
    it before it uses them, or another step has begun on them."""
    if len(getattr(kv_cache_config, "kv_cache_groups", None) or ()) > 1:
        return "blocks of several KV cache groups have no numbers of their own"
    if getattr(vllm_config, "max_concurrent_batches", 1) > 1:
        return "the engine's steps overlap"
    if getattr(vllm_config, "speculative_config", None) is not None:
        return "with speculative decoding a failure is heard of a step late"
    return None


def scheduler(
    vllm_config: Any, kv_cache_config: Any, settings: Settings, shim: versions.Shim
) -> Scheduler:
    """The scheduler's half, without a daemon yet."""
    groups = kv_cache_config.kv_cache_groups
    page_tokens = groups[0].kv_cache_spec.block_size
    half = Scheduler(
        settings, shim, page_tokens, _hash_tokens(vllm_config, kv_cache_config), _world(vllm_config)
    )
    events = getattr(vllm_config, "kv_events_config", None)
    if events is not None and events.enable_kv_cache_events:
        half.announce(Announced(_maker(groups), page_tokens, half.hash_tokens))
    return half


def _hash_tokens(vllm_config: Any, kv_cache_config: Any) -> int:
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

    return resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)[1]


def _maker(groups: Any) -> Maker:
    from vllm.distributed.kv_events import MEDIUM_CPU, BlockRemoved, BlockStored
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

    return Maker(
        stored=BlockStored,
        removed=BlockRemoved,
        name=maybe_convert_block_hash,
        medium=MEDIUM_CPU,
        groups=[_told(number, group.kv_cache_spec) for number, group in enumerate(groups)],
        extra=_extra_keys,
    )


def _told(number: int, spec: Any) -> dict[str, Any]:
    """What a group's events of stored blocks say about it."""
    from vllm.v1.kv_cache_interface import (
        get_kv_cache_spec_kind,
        get_kv_cache_spec_sliding_window,
    )

    return {
        "group_idx": number,
        "kv_cache_spec_kind": get_kv_cache_spec_kind(spec).value,
        "kv_cache_spec_sliding_window": get_kv_cache_spec_sliding_window(spec),
    }


def _extra_keys(request: Any, bounds: Sequence[int]) -> Any:
    """What the hashes of blocks between `bounds` bind beside tokens, in the events' own form."""
    from vllm.v1.core import kv_cache_utils

    each, image = [], 0
    for start, end in itertools.pairwise(bounds):
        keys, image = kv_cache_utils.generate_block_hash_extra_keys(request, start, end, image)
        each.append(keys)
    # Until 0.30 events have the keys as they are hashed.
    public = getattr(kv_cache_utils, "to_event_extra_keys", list)
    return public(each)


def _world(vllm_config: Any) -> int:
    parallel = vllm_config.parallel_config
    return parallel.tensor_parallel_size * parallel.pipeline_parallel_size


def _client(settings: Settings, name: str, **more: Any) -> undercroft.Client:
    client = undercroft.Client(
        settings.socket, name=name, copy_mode=settings.copy_mode, threads=settings.threads, **more
    )
    if not client.wait_connected(FIRST_WAIT_S):
        complaints.say(
            "no-daemon",
            "undercroft: no daemon yet (%s): all is a miss until there is one",
            client.failure,
        )
    return client


# Workers.


def worker(
    vllm_config: Any, kv_cache_config: Any, settings: Settings, kv_caches: Mapping[str, Any]
) -> Started:
    """A worker's half: this rank's blocks and spaces.

    Raises CannotStart.
    """
    groups = kv_cache_config.kv_cache_groups
    try:
        memories = group_memories(
            groups, kv_caches, kv_cache_config.num_blocks, _backends(vllm_config, groups)
        )
        layouts = [
            undercroft.Layout.of_tensors(
                memory.tensors, block_dim=memory.block_dims, blocks=kv_cache_config.num_blocks
            )
            for memory in memories
        ]
        samples = settings.weights == "samples"
        model = identity.model_digest(vllm_config, settings.model_digest, samples)
    except (BlocksError, DigestError, ValueError, TypeError) as error:
        raise CannotStart(str(error)) from error
    version = versions.minor(vllm.__version__) or (0, 0)
    family = identity.family(
        vllm_config, kv_cache_config, model, [memory.text for memory in memories], version
    )
    rank, is_storing = _rank(vllm_config, groups)
    shapes = [(layout.geometry.layers, list(layout.geometry.part_bytes)) for layout in layouts]
    handshake = Handshake(None, family, rank, shapes)
    devices, after = _devices(memories, layouts)
    client = _connected(settings, devices, is_cuda=after is not None)
    try:
        spaces = _open(client, handshake, _opening(client))
        keys = undercroft.Family(**family).keys
    except CannotStart:
        client.close()
        raise
    logger.info("undercroft: rank %s: pages of %s bytes", rank, [s.page_bytes for s in spaces])
    ios = [GroupIo(s, d, m.index) for s, d, m in zip(spaces, devices, memories)]
    return Started(Worker(settings, ios, is_storing, keys), client, handshake, after)


def _connected(settings: Settings, devices: list[Any], is_cuda: bool) -> undercroft.Client:
    """A worker's client. It knows its GPU from the start: without the means to pin memory that is
    only read, pages come through staging."""
    if not is_cuda:
        return _client(settings, "vllm worker")
    try:
        client = _client(settings, "vllm worker", gpu=devices[0])
        for device in devices[1:]:
            client.attach_gpu(device)
    except undercroft.UndercroftError as error:
        raise CannotStart(f"the GPU cannot be used: {error}") from error
    return client


def _opening(client: undercroft.Client) -> float:
    """When all spaces are to be open. Without a daemon nobody waits: they open when it comes."""
    patience = OPEN_DEADLINE_S if client.state == "connected" else 0.0
    return time.monotonic() + patience


def _open(
    client: undercroft.Client,
    handshake: Handshake,
    until: float,
    probe_hash: bytes | None = None,
) -> list[Any]:
    try:
        family = undercroft.Family(**handshake.family)
        probe = None if probe_hash is None else family.key(probe_hash)
        return [
            client.open_space(
                family,
                undercroft.Geometry(layers, parts),
                rank=handshake.rank,
                group=number,
                deadline=max(0.0, until - time.monotonic()),
                probe=probe,
            )
            for number, (layers, parts) in enumerate(handshake.shapes)
        ]
    except (undercroft.UndercroftError, ValueError, TypeError) as error:
        raise CannotStart(f"a space cannot be opened: {error}") from error


def _rank(vllm_config: Any, groups: Any) -> tuple[tuple[int, int] | None, bool]:
    """Which shard this worker is, and whether it is the one of its likes that stores."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    parallel = vllm_config.parallel_config
    tp, pp = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    tp_rank, pp_rank = get_tp_group().rank_in_group, get_pp_group().rank_in_group
    return shard(groups, tp_rank, tp, pp_rank, pp)


def shard(
    groups: Any, tp_rank: int, tp: int, pp_rank: int, pp: int
) -> tuple[tuple[int, int] | None, bool]:
    """MLA's latent is the same on every rank of a tensor-parallel group: one of them stores it,
    and all load it."""
    if all(group_kind(group) == "MLAAttentionSpec" for group in groups):
        return (None if pp == 1 else (pp_rank, pp)), tp_rank == 0
    return (pp_rank * tp + tp_rank, tp * pp), True


def _backends(vllm_config: Any, groups: Any) -> dict[str, str]:
    """How each layer's attention reads its cache: its backend, and the instruction set where
    that decides the order of a block's bytes."""
    layers = vllm_config.compilation_config.static_forward_context
    found = {}
    for group in groups:
        for name in group.layer_names:
            layer = layers.get(name)
            backend = getattr(layer, "attn_backend", None)
            text = backend.get_name() if hasattr(backend, "get_name") else "?"
            isa = getattr(layer, "isa", None)
            found[name] = f"{text}/{isa}" if isa else text
    return found


def _devices(
    memories: list[GroupMemory], layouts: list[Any]
) -> tuple[list[Any], Callable[[Any], Any] | None]:
    kind = memories[0].tensors[0].device.type
    if kind == "cpu":
        return [undercroft.HostDevice(layout) for layout in layouts], None
    if kind != "cuda":
        raise CannotStart(f"KV caches on {kind}; served: cpu, cuda")
    why = undercroft.probe_cuda()
    if why is not None:
        raise CannotStart(f"the GPU cannot be used: {why}")
    import torch

    def after(device: Any) -> Any:
        return device.after(torch.cuda.current_stream().cuda_stream)

    try:
        return [undercroft.CudaDevice(layout) for layout in layouts], after
    except undercroft.DeviceError as error:
        raise CannotStart(f"the GPU cannot be used: {error}") from error


# The scheduler, once the workers have said what they store.


def lookups(
    half: Scheduler, vllm_config: Any, settings: Settings, shakes: Mapping[Any, Any]
) -> undercroft.Client:
    """Opens the spaces of all ranks and groups for the scheduler.

    Raises CannotStart.
    """
    told = agreed(shakes, _world(vllm_config))
    client = _client(settings, "vllm scheduler")
    until = _opening(client)
    probe_hash = probe(vllm_config, told[0].family["page_tokens"], half.hash_tokens)
    spaces: list[Any] = []
    try:
        for handshake in told:
            spaces += _open(client, handshake, until, probe_hash)
    except CannotStart:
        client.close()
        raise
    half.bind_daemon(client, spaces, undercroft.Family(**told[0].family))
    logger.info("undercroft: lookups in %d spaces", len(spaces))
    return client


def probe(vllm_config: Any, page_tokens: int, hash_tokens: int) -> bytes | None:
    """What this engine's hash makes of one page of the token ids 1, 2, 3 and so on: function, seed
    and versions are in it, whatever the identity says of them. None where the engine does not let
    itself be asked."""
    try:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core import kv_cache_utils

        name = getattr(vllm_config.cache_config, "prefix_caching_hash_algo", "sha256")
        function = get_hash_fn_by_name(name)
        if not hasattr(kv_cache_utils, "NONE_HASH"):
            # As the engine does by itself, right after it has connected its halves.
            kv_cache_utils.init_none_hash(function)
        found = None
        for first in range(1, page_tokens + 1, hash_tokens):
            tokens = tuple(range(first, first + hash_tokens))
            found = kv_cache_utils.hash_block_tokens(function, found, tokens, None)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        complaints.say("probe", "undercroft: the daemon is not told how prompts are hashed: %r", error)
        return None
    return None if found is None else bytes(found)


def agreed(shakes: Mapping[Any, Any], world: int) -> list[Handshake]:
    """One handshake for each shard, in their order: all ranks must be there and of one family.

    Raises CannotStart.
    """
    told = [shakes[at] for at in sorted(shakes)]
    if len(told) != world or not all(isinstance(one, Handshake) for one in told):
        raise CannotStart(f"{len(told)} of {world} workers said what they store")
    for at, one in zip(sorted(shakes), told):
        if one.off is not None:
            raise CannotStart(f"worker {at} is off: {one.off}")
        if one.family != told[0].family:
            raise CannotStart(f"worker {at} stores another family than worker {sorted(shakes)[0]}")
    shards: dict[tuple[int, int] | None, Handshake] = {}
    for one in told:
        if shards.setdefault(one.rank, one).shapes != one.shapes:
            raise CannotStart(f"workers of shard {one.rank} have pages of different shapes")
    return list(shards.values())


# The engine's own objects.


def results(finished: set[str], failed: set[str]) -> Any:
    """What the engine wants to know of loads."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

    return KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)


def hit_sources(dram: int, ssd: int) -> dict[Any, int]:
    """Tokens by tier, in the engine's words."""
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    tiers = {CacheHitSource.HOST: dram, CacheHitSource.DISK: ssd}
    return {tier: tokens for tier, tokens in tiers.items() if tokens}
