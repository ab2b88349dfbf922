"""What the connector cannot serve right, and therefore stays off for."""

from __future__ import annotations

from typing import Any

from .versions import Shim

# Hash functions whose values are equal in every process and that nobody can make collide.
SOUND_HASHES = ("sha256", "sha256_cbor")
# Drafting without a model: no KV of its own.
KV_FREE_DRAFTERS = ("ngram", "ngram_gpu", "suffix")
# Kinds of groups whose blocks are the KV of a run of tokens, immutable once full.
PAGED_SPECS = ("FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec")
MAX_SPACES = 256

# Names of the engine's KV dtypes against ours.
DTYPES = {
    "bfloat16": "bf16",
    "float16": "f16",
    "half": "f16",
    "float32": "f32",
    "float": "f32",
    "fp8": "fp8_e4m3",
    "fp8_e4m3": "fp8_e4m3",
    "fp8_e5m2": "fp8_e5m2",
    "fp8_inc": "fp8_e4m3",
    "fp8_ds_mla": "fp8_e4m3",
}


def kv_dtype(vllm_config: Any) -> str | None:
    """Our name of the KV's element type; None if there is none."""
    name = str(vllm_config.cache_config.cache_dtype)
    if name == "auto":
        name = str(vllm_config.model_config.dtype).removeprefix("torch.")
    return DTYPES.get(name)


def group_kind(group: Any) -> str:
    """The name of a group's spec."""
    return type(group.kv_cache_spec).__name__


def obstacle(vllm_config: Any, kv_cache_config: Any, shim: Shim) -> str | None:
    """Why the connector stays off; None if nothing is in the way."""
    return _in_engine(vllm_config) or _in_groups(vllm_config, kv_cache_config, shim)


def _in_engine(vllm_config: Any) -> str | None:
    cache, parallel = vllm_config.cache_config, vllm_config.parallel_config
    algorithm = str(getattr(cache, "prefix_caching_hash_algo", "sha256"))
    if algorithm not in SOUND_HASHES:
        return (
            f"prefix_caching_hash_algo is {algorithm}: its values differ between processes or can "
            f"be made to collide; allowed: {', '.join(SOUND_HASHES)}"
        )
    if not getattr(cache, "enable_prefix_caching", True):
        # On platforms whose attention cannot begin in the middle of a prompt (MLA on CPU) the
        # engine turns its prefix cache off by itself; tokens after a loaded prefix would be wrong.
        return "the engine's own prefix caching is off: it may not be able to begin after a prefix"
    for size in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, size, 1) > 1:
            return f"{size} is {getattr(parallel, size)}: pages split over context ranks"
    if str(getattr(parallel, "distributed_executor_backend", "")) == "external_launcher":
        return "the workers are launched from outside: the scheduler does not hear all of them"
    speculative = getattr(vllm_config, "speculative_config", None)
    method = str(getattr(speculative, "method", "")) if speculative is not None else ""
    if method and method not in KV_FREE_DRAFTERS:
        return f"speculative decoding by {method} has KV of a draft model, not part of the identity"
    if kv_dtype(vllm_config) is None:
        return f"kv_cache_dtype {cache.cache_dtype} is none that a space can name"
    if getattr(vllm_config, "weight_transfer_config", None) is not None:
        return "weight_transfer_config: the weights do not stay what their files say"
    if getattr(vllm_config.model_config, "enable_sleep_mode", False):
        return "enable_sleep_mode: blocks lose their memory, and weights may come back others"
    if getattr(cache, "calculate_kv_scales", False):
        return "calculate_kv_scales: the KV's scales differ from process to process"
    return None


def _in_groups(vllm_config: Any, kv_cache_config: Any, shim: Shim) -> str | None:
    groups = list(getattr(kv_cache_config, "kv_cache_groups", None) or ())
    if not groups:
        return "the model has no KV cache"
    for number, group in enumerate(groups):
        kind = group_kind(group)
        if kind not in PAGED_SPECS:
            return f"KV cache group {number} is a {kind}; served: {', '.join(PAGED_SPECS)}"
        cacheable = getattr(group.kv_cache_spec, "prefix_cacheable", True)
        if not cacheable or not getattr(group, "enable_kv_transfer", True):
            return f"KV cache group {number} is not part of the prefix cache"
        if getattr(group.kv_cache_spec, "prefix_replay_tokens", 0):
            return f"KV cache group {number} is rebuilt by replay"
        if getattr(group, "host_resident", False):
            return f"KV cache group {number} lies in host memory"
    sizes = {group.kv_cache_spec.block_size for group in groups}
    if len(sizes) > 1:
        return f"KV cache groups of different block sizes {sorted(sizes)}"
    if len(groups) > 1 and not shim.failed_recving:
        return f"{len(groups)} KV cache groups: this vLLM cannot be told of a failed load"
    world = vllm_config.parallel_config.world_size
    if len(groups) * world > MAX_SPACES:
        return f"{len(groups)} groups on {world} ranks are more than {MAX_SPACES} spaces"
    return None
