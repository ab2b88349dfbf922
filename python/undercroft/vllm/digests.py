"""Digests of weights: what a checkpoint or an adapter is, never where it lies.

Names, sizes and headers alone would not tell two fine-tunes of one base apart: their tensors have
the same names and shapes. So each digest also reads samples of the weights themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

EDGE_BYTES = 64 << 10
SAMPLE_BYTES = 256
SAMPLES_PER_FILE = 256
MAX_HEADER_BYTES = 256 << 20

# Name, size and time of change of each file.
Signature: TypeAlias = tuple[tuple[str, int, int], ...]

# By preference, as the engine chooses them.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
# Says where the config came from or who wrote it, not what it is.
UNTRUE_CONFIG_KEYS = ("_name_or_path", "_commit_hash", "transformers_version")


class DigestError(Exception):
    """Why there is no digest, for people."""


def config_digest(config: Mapping[str, Any]) -> bytes:
    """Of a model's config: its canonical JSON."""
    plain = {key: value for key, value in config.items() if key not in UNTRUE_CONFIG_KEYS}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def files_digest(paths: Iterable[str]) -> bytes:
    """Of weight files: names, sizes, headers and samples of the weights."""
    whole = hashlib.blake2b(digest_size=32)
    count = 0
    for path in sorted(paths, key=os.path.basename):
        _feed_file(whole, path)
        count += 1
    if count == 0:
        raise DigestError("there are no weight files")
    whole.update(count.to_bytes(8, "little"))
    return whole.digest()


def weight_files(folder: str) -> list[str]:
    """The weight files of a checkpoint's or adapter's folder."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DigestError(f"{folder} cannot be read: {error.strerror}") from error
    for suffix in WEIGHT_SUFFIXES:
        found = [os.path.join(folder, name) for name in names if name.endswith(suffix)]
        if found:
            return found
    raise DigestError(f"{folder} has no {' or '.join(WEIGHT_SUFFIXES)} file")


def adapter_digest(folder: str) -> bytes:
    """Of a LoRA adapter's folder: its config and its weights."""
    whole = hashlib.blake2b(digest_size=32)
    try:
        with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError) as error:
        raise DigestError(f"{folder} has no readable adapter_config.json: {error}") from error
    config.pop("base_model_name_or_path", None)
    whole.update(config_digest(config))
    whole.update(files_digest(weight_files(folder)))
    return whole.digest()


def signature(folder: str) -> Signature:
    """What changes when a folder's files do: cheap, to know when a digest is outdated."""
    entries = []
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_file():
                stat = entry.stat()
                entries.append((entry.name, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(entries))


def _feed_file(whole: Any, path: str) -> None:
    name = os.path.basename(path).encode()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            whole.update(len(name).to_bytes(8, "little") + name)
            whole.update(size.to_bytes(8, "little"))
            spans = _tensor_spans(file, size, whole) if path.endswith(".safetensors") else None
            for offset, length in _samples(size) if spans is None else spans:
                file.seek(offset)
                whole.update(offset.to_bytes(8, "little") + file.read(length))
    except OSError as error:
        raise DigestError(f"{path} cannot be read: {error.strerror}") from error


def _tensor_spans(file: Any, size: int, whole: Any) -> list[tuple[int, int]] | None:
    """Feeds a safetensors header; answers where to sample: in the middle of its tensors."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, max(size - 8, 0)):
        return None
    header = file.read(length)
    whole.update(header)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"] for key, entry in entries.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    ends.sort()
    step = max(1, -(-len(ends) // SAMPLES_PER_FILE))
    return [(8 + length + (a + b) // 2, min(SAMPLE_BYTES, b - a)) for a, b in ends[::step]]


def _samples(size: int) -> list[tuple[int, int]]:
    """Both edges, and evenly between them."""
    edges = [(0, EDGE_BYTES), (max(0, size - EDGE_BYTES), EDGE_BYTES)]
    step = max(SAMPLE_BYTES, size // SAMPLES_PER_FILE)
    return edges + [(offset, SAMPLE_BYTES) for offset in range(0, size, step)]
