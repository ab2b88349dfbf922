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
            split, dim = _split(tensor, blocks, name)
            tensors.append(_in_order(split, dim))
            dims.append(dim)
            texts.add(f"{backends.get(name, '?')} {_order_text(split, dim)}")
        index[name] = known[place]
    return GroupMemory(tensors, dims, index, "|".join(sorted(texts)))


def by_blocks(tensor: Any, blocks: int, name: str = "") -> tuple[Any, int]:
    """A view of a layer's tensor, and which of its dimensions counts the blocks: before it what
    lies outside of a block, after it a block's inside in the order of memory.

    Takes `[blocks, heads, tokens, 2*d]`, `[2, blocks, …]`, `[blocks, 2, …]`, MLA's
    `[blocks, tokens, d]`, and each of them with its blocks cut into equal kernel blocks.
    """
    split, dim = _split(tensor, blocks, name)
    return _in_order(split, dim), dim


def _split(tensor: Any, blocks: int, name: str) -> tuple[Any, int]:
    """The tensor with as many entries in one dimension as there are blocks, and which that is."""
    dim, pieces = _block_dim(tuple(tensor.shape), blocks, name)
    return (tensor.unflatten(dim, (blocks, pieces)) if pieces > 1 else tensor), dim


def _inside(tensor: Any, dim: int) -> list[int]:
    """The dimensions inside of a block, in the order of memory: a logical order other than the
    physical one is only a name for it."""
    strides = tensor.stride()
    return sorted(range(dim + 1, len(tensor.shape)), key=lambda at: (-strides[at], at))


def _in_order(tensor: Any, dim: int) -> Any:
    return tensor.permute(*range(dim + 1), *_inside(tensor, dim))


def _block_dim(shape: tuple[int, ...], blocks: int, name: str) -> tuple[int, int]:
    """Which dimension counts blocks, and how many kernel blocks make one."""
    candidates = [
        dim for dim in (0, 1) if dim < len(shape) - 1 and shape[dim] and shape[dim] % blocks == 0
    ]
    unclear = blocks == 2 and shape[0] == 2 and len(candidates) == 2
    if not candidates or unclear:
        raise BlocksError(f"layer {name} of shape {list(shape)} does not show its {blocks} blocks")
    return candidates[0], shape[candidates[0]] // blocks


def _order_text(tensor: Any, dim: int) -> str:
    """What each byte of a page is: which logical dimension, `number:size`, follows which in memory.
    Two orders of equal sizes differ. Neither how many blocks there are nor room between what they
    hold is part of a page, and so not of this."""
    element = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    outside = [f"{at}:{shape[at]}" for at in range(dim)]
    inside = [f"{at}:{shape[at]}" for at in _inside(tensor, dim) if shape[at] != 1]
    return f"{element}[{','.join([*outside, 'B', *inside])}]"
