"""A pool of pages in the host's memory, as SGLang keeps them: where each page lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import undercroft

#: The most fragments of different sizes that repeat from layer to layer.
MAX_PARTS = 8


class Indices(list):  # type: ignore[type-arg]
    """Numbers of token slots where no tensor of them is needed."""

    def tolist(self) -> list[int]:
        return list(self)


class PagedPool:
    """How a pool's pages are reached: where they lie (`form` is `pages`), or where the pool does
    not say so, by copies in tensors of their own (`flat`)."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        #: A pool that stands for others and has no bytes.
        self.is_logical = hasattr(pool, "kv_buffer") and pool.kv_buffer is None
        self.form = "pages"
        self.shape: tuple[int, list[int]] = (1, [0])
        self._sizes: list[int] = []
        if self.is_logical:
            return
        sizes = self._fragments()
        shape = None if sizes is None else repeats(sizes)
        if sizes is None or shape is None:
            self.form, self.shape = "flat", (1, [self.flat_bytes()])
        else:
            self._sizes, self.shape = sizes, shape

    def flat_bytes(self) -> int:
        """Bytes of a page as the pool hands it out in one piece."""
        return memory_bytes(self.pool.get_dummy_flat_data_page())

    def batch(self, indices: Any, pages: int, is_load: bool) -> "Batch":
        """The pages whose tokens lie in these slots, one after another."""
        slots = 0 if indices is None else len(indices)
        if slots == 0 or slots % pages:
            raise ValueError(f"{slots} slots of tokens for {pages} pages")
        layers, parts = self.shape
        geometry = undercroft.Geometry(layers, parts)
        if self.form == "pages":
            return Batch(undercroft.Buffers(geometry, self._lie(indices, pages), writable=is_load))
        firsts = [int(indices[at]) for at in range(0, slots, slots // pages)]
        if is_load:
            copies = [self.pool.get_dummy_flat_data_page() for _ in firsts]
        else:
            copies = [self.pool.get_data_page(at, flat=True).contiguous() for at in firsts]
        device = undercroft.Buffers(geometry, copies, writable=is_load)
        return Batch(device, self.pool, list(zip(firsts, copies)))

    def _lie(self, indices: Any, pages: int) -> list[Any]:
        """For each page, the addresses and sizes of its fragments."""
        addresses, sizes = self.pool.get_page_buffer_meta(indices)
        each = len(self._sizes)
        if list(sizes) != self._sizes * pages or len(addresses) != len(sizes):
            raise ValueError(f"{len(addresses)} fragments of {pages} pages, allowed {each} a page")
        lie = list(zip(addresses, sizes))
        return lie if each == 1 else [lie[at : at + each] for at in range(0, len(lie), each)]

    def _fragments(self) -> list[int] | None:
        """Sizes of a page's fragments; `None` where the pool does not say where they lie."""
        try:
            meta = self.pool.get_page_buffer_meta(first_page(self.pool))
        except (AssertionError, AttributeError, NotImplementedError, TypeError, ValueError):
            return None
        return list(meta[1]) if meta and meta[1] else None


@dataclass
class Batch:
    """Some pages of a pool: block `i` is the `i`-th."""

    device: "undercroft.Buffers"
    pool: Any = None
    copies: Sequence[tuple[int, Any]] = ()

    def settle(self, got: Sequence[bool]) -> None:
        """Puts what was loaded into copies where it belongs."""
        for (first, copy), is_there in zip(self.copies, got):
            if is_there:
                self.pool.set_from_flat_data_page(first, copy)


def first_page(pool: Any) -> Any:
    """The slots of a pool's first page, as the pool takes them."""
    slots = range(getattr(pool, "logical_page_size", None) or pool.page_size)
    try:
        import torch
    except ImportError:
        return Indices(slots)
    return torch.arange(len(slots), dtype=torch.int64)


def repeats(sizes: Sequence[int]) -> tuple[int, list[int]] | None:
    """As a number of layers and the parts of one, if they repeat."""
    for parts in range(1, min(MAX_PARTS, len(sizes)) + 1):
        layers, rest = divmod(len(sizes), parts)
        if not rest and list(sizes) == list(sizes[:parts]) * layers:
            return layers, [int(size) for size in sizes[:parts]]
    return None


def memory_bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
