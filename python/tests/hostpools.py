"""A pool of pages in the host's memory and what goes with it, as SGLang has them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

PAGE_TOKENS = 4
LAYERS = 3
HEAD_BYTES = 128
#: K or V of one token of one layer is `HEAD_BYTES`.
PAGE_BYTES = 2 * LAYERS * PAGE_TOKENS * HEAD_BYTES
PAGES = 64


@dataclass
class Config:
    """SGLang's HiCacheStorageConfig."""

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    attn_cp_rank: int = 0
    attn_cp_size: int = 1
    is_mla_model: bool = False
    enable_storage_metrics: bool = False
    is_page_first_layout: bool = True
    model_name: str | None = "m"
    tp_lcm_size: int | None = None
    should_split_heads: bool = False
    dp_rank: int = 0
    extra_config: dict[str, Any] | None = None
    dcp_size: int = 1
    dcp_rank: int = 0
    logical_page_size: int | None = None

    @property
    def is_storage_writer(self) -> bool:
        return not self.is_mla_model or self.tp_rank == self.dcp_rank


class Tensor:
    """What of torch's tensor is used of one in the host's memory."""

    class Device:
        type = "cpu"

    device = Device()

    def __init__(self, data: bytes) -> None:
        self.array = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
        self.shape = (len(data),)

    def data_ptr(self) -> int:
        return ctypes.addressof(self.array)

    def numel(self) -> int:
        return len(self.array)

    def element_size(self) -> int:
        return 1

    def stride(self) -> tuple[int]:
        return (1,)

    def contiguous(self) -> "Tensor":
        return self

    def bytes(self) -> bytes:
        return bytes(self.array)


class Pool:
    """A host pool: K of all pages, then V, each page by layer (`page_first`), or each layer with
    all pages (`layer_first`)."""

    dtype = "bfloat16"
    storage_format_tag = None
    start_layer, end_layer = 0, LAYERS
    head_num, head_dim = 1, HEAD_BYTES // 2

    def __init__(self, layout: str = "page_first") -> None:
        self.layout = layout
        self.page_size = PAGE_TOKENS
        self.kv_buffer = (ctypes.c_ubyte * (PAGES * PAGE_BYTES))()

    def runs(self, page: int) -> list[tuple[int, int]]:
        """Where a page's fragments lie in the pool, in the order of its bytes."""
        half, token = PAGES * PAGE_BYTES // 2, HEAD_BYTES
        if self.layout == "page_first":
            size = PAGE_BYTES // 2
            return [(page * size, size), (half + page * size, size)]
        size, layer = PAGE_TOKENS * token, PAGES * PAGE_TOKENS * token
        both = [(kv * half + at * layer, size) for at in range(LAYERS) for kv in (0, 1)]
        return [(start + page * size, size) for start, size in both]

    def get_page_buffer_meta(self, indices: Any) -> tuple[list[int], list[int]]:
        if self.layout not in ("page_first", "layer_first"):
            raise ValueError(f"Unsupported layout: {self.layout}")
        assert len(indices) % self.page_size == 0
        slots = indices.tolist()
        base = ctypes.addressof(self.kv_buffer)
        pages = [slots[at] // self.page_size for at in range(0, len(slots), self.page_size)]
        runs = [run for page in pages for run in self.runs(page)]
        return [base + start for start, _ in runs], [size for _, size in runs]

    def get_dummy_flat_data_page(self) -> Tensor:
        return Tensor(bytes(PAGE_BYTES))

    def get_data_page(self, index: int, flat: bool = True) -> Tensor:
        return Tensor(self.page(index // self.page_size))

    def set_from_flat_data_page(self, index: int, data_page: Tensor) -> None:
        self.fill(index // self.page_size, data_page.bytes())

    def page(self, page: int) -> bytes:
        return b"".join(bytes(self.kv_buffer[at : at + size]) for at, size in self._runs(page))

    def fill(self, page: int, data: bytes) -> None:
        for start, size in self._runs(page):
            self.kv_buffer[start : start + size] = data[:size]
            data = data[size:]

    def _runs(self, page: int) -> list[tuple[int, int]]:
        if self.layout in ("page_first", "layer_first"):
            return self.runs(page)
        return [(page * PAGE_BYTES, PAGE_BYTES)]


class MLATokenToKVPoolHost(Pool):
    """A pool whose pages are the same on every rank."""
