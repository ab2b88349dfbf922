"""Where the blocks of each KV cache group lie in the engine's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class BlocksError(Exception):
    """Why blocks cannot be found in a tensor, for people."""


@dataclass(frozen=True)
class GroupMemory:
    """The memory of a group on this rank."""

    tensors: list[Any]
    """One a layer, in the group's order: see `by_blocks`. Layers that share one count once."""
    block_dims: list[int]
    """Which dimension of each counts the blocks."""
    index: dict[str, int]
    """Which tensor each layer reads, by the layer's name."""
    text: str
    """How a block's bytes are ordered, for the identity."""


def group_memories(
    groups: Sequence[Any],
    kv_caches: Mapping[str, Any],
    blocks: int,
    backends: Mapping[str, str],
) -> list[GroupMemory]:
    """The memory of every group; `backends` names each layer's attention.

    Raises BlocksError where a layer's blocks cannot be told apart.
    """
    memories = []
    for number, group in enumerate(groups):
        memory = _of_group(group, kv_caches, blocks, backends)
        if not memory.tensors:
            raise BlocksError(f"KV cache group {number} has no layer on this rank")
        memories.append(memory)
    return memories


def _of_group(
    group: Any, kv_caches: Mapping[str, Any], blocks: int, backends: Mapping[str, str]
) -> GroupMemory:
    tensors: list[Any] = []
    dims: list[int] = []
    texts: set[str] = set()
    index: dict[str, int] = {}
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    for name in group.layer_names:
        tensor = kv_caches.get(name)
        if tensor is None:
            continue  # a layer of another pipeline stage
        if not hasattr(tensor, "data_ptr"):
            raise BlocksError(f"layer {name} has a {type(tensor).__name__} instead of one tensor")
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in known:
            known[place] = len(tensors)
            view, dim = by_blocks(tensor, blocks, name)
            tensors.append(view)
            dims.append(dim)
            texts.add(f"{backends.get(name, '?')} {_shape_text(view, dim)}")
        index[name] = known[place]
    return GroupMemory(tensors, dims, index, "|".join(sorted(texts)))


def by_blocks(tensor: Any, blocks: int, name: str = "") -> tuple[Any, int]:
    """A view of a layer's tensor, and which of its dimensions counts the blocks: before it what
    lies outside of a block, after it a block's inside in the order of memory.

    Takes `[blocks, heads, tokens, 2*d]`, `[2, blocks, …]`, `[blocks, 2, …]`, MLA's
    `[blocks, tokens, d]`, and each of them with its blocks cut into equal kernel blocks.
    """
    dim, pieces = _block_dim(tuple(tensor.shape), blocks, name)
    if pieces > 1:
        tensor = tensor.unflatten(dim, (blocks, pieces))
    inside = list(range(dim + 1, len(tensor.shape)))
    strides = tensor.stride()
    # Sorted by stride: a logical order other than the physical one is only a name for it.
    inside.sort(key=lambda at: (-strides[at], at))
    return tensor.permute(*range(dim + 1), *inside), dim


def _block_dim(shape: tuple[int, ...], blocks: int, name: str) -> tuple[int, int]:
    """Which dimension counts blocks, and how many kernel blocks make one."""
    candidates = [
        dim for dim in (0, 1) if dim < len(shape) - 1 and shape[dim] and shape[dim] % blocks == 0
    ]
    unclear = blocks == 2 and shape[0] == 2 and len(candidates) == 2
    if not candidates or unclear:
        raise BlocksError(f"layer {name} of shape {list(shape)} does not show its {blocks} blocks")
    return candidates[0], shape[candidates[0]] // blocks


def _shape_text(view: Any, dim: int) -> str:
    """What is outside of a block, and a block's inside with its strides; not how many there are."""
    element = str(view.dtype).removeprefix("torch.")
    shape, strides = tuple(view.shape), view.stride()
    outside = [str(size) for size in shape[:dim]]
    inside = [f"{size}:{stride}" for size, stride in zip(shape[dim + 1 :], strides[dim + 1 :])]
    return f"{element}[{','.join([*outside, 'B', *inside])}]"
