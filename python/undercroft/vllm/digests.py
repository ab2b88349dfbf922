"""Digests of weights: what a checkpoint or an adapter is, never where it lies.

Names, sizes and headers alone would not tell two fine-tunes of one base apart: their tensors have
the same names and shapes. So each digest also reads samples of every tensor, or where that is asked
for, all of it: an edit of some rows of one tensor may lie between the samples.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

EDGE_BYTES = 64 << 10
SAMPLE_BYTES = 1024
# Tensors up to this are read whole.
SMALL_BYTES = 64 << 10
# Of a file that does not say where its tensors are.
SAMPLES_PER_FILE = 4096
# Of each tensor; of those of a file with very many, fewer.
SAMPLES_PER_TENSOR = 16
MANY_TENSORS = 4096
SAMPLES_PER_MANY = 4
CHUNK_BYTES = 8 << 20
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
    text = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def _plain(value: Any) -> Any:
    """What JSON has for it. What would be another text in the next process is refused."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in value if key not in UNTRUE_CONFIG_KEYS}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_plain(one), sort_keys=True) for one in value)
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    text = str(value)
    if " at 0x" in text:
        raise DigestError(f"the model's config holds a {type(value).__name__}, which has no text")
    return text


def files_digest(paths: Iterable[str], samples: bool = True) -> bytes:
    """Of weight files: names, sizes, and headers and samples of the weights, or every byte."""
    whole = hashlib.blake2b(digest_size=32, person=b"samples" if samples else b"whole")
    count = 0
    for path in sorted(paths, key=os.path.basename):
        _feed_file(whole, path, samples)
        count += 1
    if count == 0:
        raise DigestError("there are no weight files")
    whole.update(count.to_bytes(8, "little"))
    return whole.digest()


def weight_files(folder: str, suffixes: Sequence[str] = WEIGHT_SUFFIXES) -> list[str]:
    """The weight files of a checkpoint's or adapter's folder: of the first suffix that there is."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DigestError(f"{folder} cannot be read: {error.strerror}") from error
    for suffix in suffixes:
        found = [os.path.join(folder, name) for name in names if name.endswith(suffix)]
        if found:
            return found
    raise DigestError(f"{folder} has no {' or '.join(suffixes)} file")


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
    whole.update(files_digest(weight_files(folder), samples=False))
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


def _feed_file(whole: Any, path: str, samples: bool) -> None:
    name = os.path.basename(path).encode()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            whole.update(len(name).to_bytes(8, "little") + name)
            whole.update(size.to_bytes(8, "little"))
            if not samples:
                while chunk := file.read(CHUNK_BYTES):
                    whole.update(chunk)
                return
            spans = _tensor_spans(file, size, whole) if path.endswith(".safetensors") else None
            for offset, length in _samples(size) if spans is None else spans:
                file.seek(offset)
                whole.update(offset.to_bytes(8, "little") + file.read(length))
    except OSError as error:
        raise DigestError(f"{path} cannot be read: {error.strerror}") from error


def _tensor_spans(file: Any, size: int, whole: Any) -> list[tuple[int, int]] | None:
    """Feeds a safetensors header; answers where to sample: at several places of every tensor."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, max(size - 8, 0)):
        return None
    header = file.read(length)
    whole.update(header)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"] for key, entry in entries.items() if key != "__metadata__"]
        ends = sorted((int(begin), int(end)) for begin, end in ends)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    most = SAMPLES_PER_TENSOR if len(ends) <= MANY_TENSORS else SAMPLES_PER_MANY
    spans = []
    for begin, end in ends:
        spans += [(8 + length + begin + at, n) for at, n in _spread(end - begin, most)]
    return spans


def _spread(length: int, most: int) -> list[tuple[int, int]]:
    """At most so many samples, evenly from the first byte to the last one."""
    if length <= max(SMALL_BYTES, most * SAMPLE_BYTES):
        return [(0, length)]
    last = length - SAMPLE_BYTES
    return [(last * at // (most - 1), SAMPLE_BYTES) for at in range(most)]


def _samples(size: int) -> list[tuple[int, int]]:
    """Both edges, and evenly between them."""
    edges = [(0, EDGE_BYTES), (max(0, size - EDGE_BYTES), EDGE_BYTES)]
    return edges + _spread(size, SAMPLES_PER_FILE)
