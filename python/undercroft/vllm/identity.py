"""The identity under which this engine's pages mean something: the family of its spaces."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from . import digests
from .digests import DigestError
from .obstacles import group_kind, kv_dtype

# A text of an identity has at most 256 bytes; what does not fit is told apart by its digest.
TEXT_BYTES = 256
# Formats that read weights out of files beside the config.
FILE_FORMATS = (
    "auto",
    "hf",
    "safetensors",
    "fastsafetensors",
    "instanttensor",
    "pt",
    "npcache",
    "gguf",
    "mistral",
    "bitsandbytes",
)
# Which files a format reads, where it is not the first that there are.
SUFFIXES = {
    "safetensors": (".safetensors",),
    "pt": (".bin", ".pt"),
    "npcache": (".bin",),
    "gguf": (".gguf",),
}
# Rope types whose frequencies do not depend on how long the engine lets a sequence be.
STEADY_ROPES = ("default", "linear", "llama3", "yarn", "deepseek_yarn", "mrope", "proportional")


def model_digest(
    vllm_config: Any, given: str | None = None, samples: bool = True
) -> bytes:
    """What the model is: its config and its weights.

    Raises DigestError where the weights cannot be read.
    """
    model = vllm_config.model_config
    whole = hashlib.blake2b(digest_size=32, person=b"undercroft model")
    whole.update(digests.config_digest(_config(model.hf_config)))
    whole.update(_text([str(model.dtype), str(getattr(model, "quantization", None))]))
    whole.update(_text([_multimodal(model)]))
    load_format = str(vllm_config.load_config.load_format).rsplit(".", 1)[-1].lower()
    if given is not None:
        whole.update(b"given" + bytes.fromhex(given))
    elif load_format == "dummy":
        # Weights out of a seed: equal in processes of one seed, and of nobody else.
        whole.update(_text(["dummy", str(model.seed)]))
    elif load_format in FILE_FORMATS:
        whole.update(digests.files_digest(_checkpoint(vllm_config, load_format), samples))
    else:
        raise DigestError(f"load_format {load_format} keeps its weights where they cannot be read")
    return whole.digest()


def family(
    vllm_config: Any,
    kv_cache_config: Any,
    model: bytes,
    layouts: Sequence[str],
    version: tuple[int, int],
) -> dict[str, Any]:
    """The arguments of `undercroft.Family`. `layouts` says, group by group, how a block's bytes
    are ordered: attention backend, shape and strides."""
    config, cache = vllm_config.model_config, vllm_config.cache_config
    tokens = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
    quantization = str(cache.cache_dtype)
    return {
        "model": model,
        "dtype": kv_dtype(vllm_config),
        "layers": max(1, int(_layers(config))),
        "kv_heads": max(1, int(config.get_total_num_kv_heads())),
        "page_tokens": int(tokens),
        "quantization": "none" if quantization == "auto" else _short(quantization),
        "attention": _short(_attention(config, kv_cache_config)),
        "layout": _short(_layout(vllm_config, layouts, version)),
    }


def _attention(config: Any, kv_cache_config: Any) -> str:
    """Rope and windows. Their settings are in the config's digest too; here for people, and for
    what the engine makes of them."""
    plain = _config(config.hf_text_config)
    rope = plain.get("rope_parameters") or plain.get("rope_scaling")
    parts = [f"rope={json.dumps(rope, sort_keys=True, default=str)}"]
    kinds = _rope_kinds(rope)
    if any(kind not in STEADY_ROPES for kind in kinds):
        parts.append(f"max_model_len={config.max_model_len}")
    for group in kv_cache_config.kv_cache_groups:
        window = getattr(group.kv_cache_spec, "sliding_window", None)
        chunk = getattr(group.kv_cache_spec, "attention_chunk_size", None)
        parts.append(f"{group_kind(group)}/{len(group.layer_names)}/{window}/{chunk}")
    return " ".join(parts)


def _layout(vllm_config: Any, layouts: Sequence[str], version: tuple[int, int]) -> str:
    # The engine's hashes name the pages: what makes them differ belongs to the identity. So does
    # the engine's minor: another one may order the same shape differently.
    cache = vllm_config.cache_config
    algorithm = getattr(cache, "prefix_caching_hash_algo", "sha256")
    seed = os.environ.get("PYTHONHASHSEED", "")
    head = f"vllm {version[0]}.{version[1]} {algorithm} seed={seed}"
    return " ".join([head, *_stages(vllm_config), *layouts])


def _stages(vllm_config: Any) -> list[str]:
    """Where the engine cuts the layers into stages: a rank's number alone does not say which of
    them it has."""
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages == 1:
        return []
    cut = os.environ.get("VLLM_PP_LAYER_PARTITION", "even")
    return [f"stages={stages}/{cut}"]


def _rope_kinds(rope: Any) -> list[str]:
    if not isinstance(rope, dict):
        return []
    kind = rope.get("rope_type", rope.get("type"))
    nested = [inner for value in rope.values() for inner in _rope_kinds(value)]
    return nested + ([str(kind)] if kind is not None else [])


def _layers(config: Any) -> int:
    text = config.hf_text_config
    return getattr(text, "num_hidden_layers", 0) or getattr(text, "n_layer", 0) or 1


def _config(config: Any) -> dict[str, Any]:
    return dict(config.to_dict()) if hasattr(config, "to_dict") else dict(vars(config))


def _multimodal(model: Any) -> str:
    """What of the engine's own settings changes how a picture becomes tokens' KV."""
    settings = getattr(model, "multimodal_config", None)
    return str(getattr(settings, "mm_processor_kwargs", None))


def _checkpoint(vllm_config: Any, load_format: str) -> list[str]:
    model, load = vllm_config.model_config, vllm_config.load_config
    name = str(model.model)
    suffixes = SUFFIXES.get(load_format, digests.WEIGHT_SUFFIXES)
    if os.path.isdir(name):
        return digests.weight_files(name, suffixes)
    if os.path.isfile(name):
        return [name]
    try:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            name,
            revision=getattr(model, "revision", None),
            cache_dir=load.download_dir,
            local_files_only=True,
        )
    except Exception as error:
        raise DigestError(f"the files of {name} cannot be found here: {error}") from error
    return digests.weight_files(folder, suffixes)


def _text(parts: Sequence[str]) -> bytes:
    raw = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(8, "little") + part for part in raw)


def _short(text: str) -> str:
    """The text; if it is too long, as much as fits and the digest of all of it."""
    raw = text.encode()
    if len(raw) <= TEXT_BYTES:
        return text
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    kept = raw[: TEXT_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{kept}#{digest}"
