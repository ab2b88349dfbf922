"""What adapters see of LMCache, SGLang and vLLM where these are not installed: the classes they
build on with the signatures of the real ones, and nothing else. Where a real package can be
imported it is used instead, so that the same tests hold for both."""

from __future__ import annotations

import abc
import ctypes
import enum
import importlib
import logging
import os
import select
import sys
import types
from dataclasses import dataclass
from typing import Any


# What goes wrong here goes wrong on purpose.
logging.getLogger("undercroft").setLevel(logging.CRITICAL)


def use_lmcache() -> bool:
    """Says whether it is the real one."""
    return _is_installed("lmcache.v1.distributed.l2_adapters.base") or not _put(_lmcache())


def use_sglang() -> bool:
    """Says whether it is the real one."""
    return _is_installed("sglang.srt.mem_cache.hicache_storage") or not _put(_sglang())


def use_vllm() -> bool:
    """Says whether it is the real one. The stand-in is there for one import: whoever looks for vLLM
    after it finds none."""
    if _is_installed("vllm.v1.kv_offload.tiering.base"):
        return True
    modules = _vllm()
    _put(modules)
    importlib.import_module("undercroft.vllm.tier")
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]
    return False


def _is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001  engines fail in many ways where they cannot run
        return False
    return True


def _put(modules: dict[str, dict[str, Any]]) -> bool:
    for name, content in modules.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            package = ".".join(parts[:depth])
            module = sys.modules.setdefault(package, types.ModuleType(package))
            module.__path__ = []  # type: ignore[attr-defined]
        vars(sys.modules[name]).update(content)
    return True


@dataclass(frozen=True)
class Dtype:
    """An element's type."""

    name: str
    itemsize: int

    def __str__(self) -> str:
        return self.name


BF16 = Dtype("bfloat16", 2)


class Panic(BaseException):
    """As the native module raises one: no `Exception`."""


class Memory:
    """Bytes as an engine has them: an address, and no buffer protocol."""

    def __init__(self, data: bytes) -> None:
        self.array = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)

    @property
    def data_ptr(self) -> int:
        return ctypes.addressof(self.array)

    def bytes(self) -> bytes:
        return bytes(self.array)


def is_signalled(fd: int, timeout: float) -> bool:
    """Whether an event descriptor is, which is taken back."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(timeout * 1000):
        return False
    os.eventfd_read(fd)
    return True


def _lmcache() -> dict[str, dict[str, Any]]:
    class Bitmap:
        def __init__(self, size: int) -> None:
            self.bits = [False] * size

        def set(self, at: int) -> None:
            self.bits[at] = True

        def test(self, at: int) -> bool:
            return self.bits[at]

        def popcount(self) -> int:
            return sum(self.bits)

    class L2StoreResult(int):
        def __new__(cls, success: bool, bytes_transferred: int) -> "L2StoreResult":
            return super().__new__(cls, bytes_transferred if success else -1)

        def is_successful(self) -> bool:
            return int(self) >= 0

        def bytes_transferred(self) -> int:
            return max(0, int(self))

    class L2AdapterInterface(abc.ABC):
        def __init__(self, max_capacity_bytes: int = 0) -> None:
            self.stored: list[Any] = []
            self.accessed: list[Any] = []

        def _notify_keys_stored(self, keys: list[Any], sizes: list[int]) -> None:
            self.stored += zip(keys, sizes, strict=True)

        def _notify_keys_accessed(self, keys: list[Any]) -> None:
            self.accessed += keys

        def _asked(self, *arguments: Any) -> Any:
            raise NotImplementedError

    for name in (
        "get_store_event_fd", "get_lookup_and_lock_event_fd", "get_load_event_fd",
        "submit_store_task", "pop_completed_store_tasks", "submit_lookup_and_lock_task",
        "query_lookup_and_lock_result", "submit_unlock", "submit_load_task", "query_load_result",
        "close",
    ):
        asked = abc.abstractmethod(types.FunctionType(
            L2AdapterInterface._asked.__code__, globals(), name
        ))
        setattr(L2AdapterInterface, name, asked)
    abc.update_abstractmethods(L2AdapterInterface)
    return {
        "lmcache": {"__version__": "0.5.6", "torch_device_type": "cuda"},
        "lmcache.lmcache_native": {"Bitmap": Bitmap},
        "lmcache.v1.distributed.internal_api": {"L2StoreResult": L2StoreResult},
        "lmcache.v1.distributed.l2_adapters.base": {"L2AdapterInterface": L2AdapterInterface},
    }


def _sglang() -> dict[str, dict[str, Any]]:
    class PoolName(str, enum.Enum):
        KV = "kv"
        MAMBA = "mamba"
        SWA = "swa"
        INDEXER = "indexer"
        DRAFT = "draft"
        DRAFT_SWA = "draft_swa"

        def __str__(self) -> str:
            return self.value

    class PoolHitPolicy(str, enum.Enum):
        ALL_PAGES = "all_pages"
        TRAILING_PAGES = "trailing_pages"
        BLOCK_GROUPS = "block_groups"

    @dataclass
    class PoolTransferResult:
        kv_hit_pages: int
        extra_pool_hit_pages: dict[str, int]
        restorable_prefix_pages: list[int] | None = None

        @classmethod
        def empty(cls) -> "PoolTransferResult":
            return cls(0, {})

    @dataclass
    class PoolTransfer:
        name: Any
        host_indices: Any = None
        device_indices: Any = None
        keys: list[str] | None = None
        hit_policy: Any = PoolHitPolicy.ALL_PAGES

    @dataclass
    class HiCacheStorageExtraInfo:
        prefix_keys: list[str] | None = None
        extra_info: dict[str, Any] | None = None

    class HiCacheStorage(abc.ABC):
        def register_mem_pool_host(self, mem_pool_host: Any) -> None:
            self.mem_pool_host = mem_pool_host

        def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
            if not hasattr(self, "registered_pools"):
                self.registered_pools: dict[Any, Any] = {}
            self.registered_pools[host_pool_name] = host_pool

        def on_host_pools_registered(self) -> None:
            pass

        @abc.abstractmethod
        def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any: ...

        @abc.abstractmethod
        def batch_get(self, keys: Any, target_locations: Any = None, target_sizes: Any = None
                      ) -> Any: ...

        @abc.abstractmethod
        def set(self, key: str, value: Any = None, target_location: Any = None,
                target_sizes: Any = None) -> bool: ...

        @abc.abstractmethod
        def batch_set(self, keys: Any, values: Any = None, target_locations: Any = None,
                      target_sizes: Any = None) -> bool: ...

        @abc.abstractmethod
        def exists(self, key: str) -> bool: ...

    @dataclass
    class StorageMetrics:
        prefetch_pgs: list[int]
        backup_pgs: list[int]
        prefetch_bandwidth: list[float]
        backup_bandwidth: list[float]

        def __init__(self) -> None:
            self.prefetch_pgs, self.backup_pgs = [], []
            self.prefetch_bandwidth, self.backup_bandwidth = [], []

    return {
        "sglang": {"__version__": "0.5.23"},
        "sglang.srt.mem_cache.hicache_storage": {
            "HiCacheStorage": HiCacheStorage,
            "HiCacheStorageExtraInfo": HiCacheStorageExtraInfo,
            "PoolHitPolicy": PoolHitPolicy,
            "PoolName": PoolName,
            "PoolTransfer": PoolTransfer,
            "PoolTransferResult": PoolTransferResult,
        },
        "sglang.srt.observability.metrics_collector": {"StorageMetrics": StorageMetrics},
    }


def _vllm() -> dict[str, dict[str, Any]]:
    class LookupResult(enum.Enum):
        MISS = enum.auto()
        HIT = enum.auto()
        HIT_PENDING = enum.auto()
        RETRY = enum.auto()

    class Medium(enum.Enum):
        CPU = "CPU"
        STORAGE = "STORAGE"

    class Locality(enum.Enum):
        LOCAL = "LOCAL"
        REMOTE = "REMOTE"

    @dataclass
    class RequestOffloadingContext:
        policy: str = "chunk_level"

    @dataclass
    class TransferJob:
        job_id: int
        keys: Any
        chunk_ids: Any
        is_promotion: bool
        req_context: Any
        submit_time: float = 0.0

    @dataclass
    class JobResult:
        job_id: int
        success: bool
        successful_keys: Any = None
        transfer_time: float | None = None
        transfer_bytes: int | None = None

    class SecondaryTierManager(abc.ABC):
        def __init__(self, offloading_spec: Any, primary_kv_view: memoryview, tier_type: str,
                     backpressure_detector: Any = None) -> None:
            self.tier_type = tier_type
            self._primary_kv_view = primary_kv_view
            self.block_size_bytes = primary_kv_view.strides[0]

    for name in ("lookup", "submit_store", "submit_load", "get_finished_jobs", "on_new_request",
                 "drain_jobs"):
        setattr(SecondaryTierManager, name, abc.abstractmethod(lambda self, *_: None))
    abc.update_abstractmethods(SecondaryTierManager)
    return {
        "vllm": {"__version_tuple__": (0, 32, 0)},
        "vllm.v1.kv_offload.base": {
            "Locality": Locality,
            "LookupResult": LookupResult,
            "Medium": Medium,
            "RequestOffloadingContext": RequestOffloadingContext,
            "get_offload_block_hash": lambda key: key[:-4],
            "get_offload_group_idx": lambda key: int.from_bytes(key[-4:], "big"),
        },
        "vllm.v1.kv_offload.tiering.base": {
            "JobResult": JobResult,
            "SecondaryTierManager": SecondaryTierManager,
            "TransferJob": TransferJob,
        },
    }
