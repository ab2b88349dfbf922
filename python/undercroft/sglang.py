"""Undercroft as SGLang's storage beneath the host's memory: `--hicache-storage-backend dynamic`,
with `module_path` `undercroft.sglang` and `class_name` `UndercroftHiCache` in
`--hicache-storage-backend-extra-config`.

SGLang calls from two threads that nothing replaces if they die. So no call here raises, none
answers `None` where a list is due, and each has one deadline, however many pools it is about: what
is wrong is a page that is not there, or not stored.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Callable, Sequence, TypeVar

from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    PoolHitPolicy,
    PoolName,
    PoolTransferResult,
)

import undercroft
from undercroft.hostpool import PagedPool, memory_bytes
from undercroft.models import Models
from undercroft.tiering import OPENS_S, Limits, Shelf, Tier, version
from undercroft.workers import ENDS, Deadline

T = TypeVar("T")

#: What of the engine's own options changes KV, or how it lies, at the same shape.
OPTIONS = (
    "json_model_override_args", "quantization", "quantization_param_path", "kv_cache_dtype",
    "dtype", "context_length", "load_format", "model_impl", "revision", "attention_backend",
    "prefill_attention_backend", "decode_attention_backend", "mm_process_config",
)
#: The type that host pools keep numbers of other formats in.
BYTES = "uint8"
#: How many batches' figures wait for SGLang to collect them.
MAX_FIGURES = 4096


class UndercroftHiCache(HiCacheStorage):
    """One rank's pages. The constructor's second argument is what SGLang passes and is not used."""

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        extra = dict(storage_config.extra_config or {})
        settings = extra.get("undercroft", {})
        if not isinstance(settings, dict):
            raise ValueError(f"undercroft is {settings!r}, allowed a table of settings")
        settings = dict(settings)
        socket = settings.pop("socket", None)
        name = storage_config.model_name or ""
        model, identity = settings.pop("model", None), settings.pop("identity", "")
        limits = Limits.taken_from(settings)
        if settings:
            allowed = ["socket", "model", "identity", *Limits.__dataclass_fields__]
            found = sorted(settings)
            raise ValueError(f"unknown settings {found} in undercroft, allowed {allowed}")
        self._config = storage_config
        self._model = Models({} if model is None else {name: model}).digest(name)
        self._is_v1 = bool(extra.get("interface_v1", 0))
        self._version, self._options = version("sglang"), options()
        self._tier = Tier("sglang", limits, socket, identity)
        self._pools: dict[tuple[str, int], PagedPool] = {}
        self._lock = threading.Lock()
        self._figures: dict[str, deque[tuple[int, float]]] = {
            "prefetch": deque(maxlen=MAX_FIGURES), "backup": deque(maxlen=MAX_FIGURES),
        }
        if self._model is None:
            self._tier.tell("model", "no digest of the model %r is given, nothing is kept: name "
                            "one as `model`", name)
        if has_adapters():
            self._tier.tell("lora", "SGLang's keys have a LoRA adapter's name and path, not its "
                            "weights: never put another one in the same place")

    # Whole pages in tensors of their own.

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        return self.batch_get([key], [target_location], target_sizes)[0]

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[Any]:
        targets = list(target_locations or [])
        targets += [None] * (len(keys) - len(targets))
        got = self._safely([False] * len(keys), lambda: self._get_tensors(keys, targets))
        return [target if ok else None for target, ok in zip(targets, got)]

    def set(
        self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
    ) -> bool:
        return self.batch_set([key], [value])

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        return self._safely(False, lambda: self._set_tensors(keys, list(values or [])))

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        return self._safely(0, lambda: self._leading(keys, self._tier.limits.lookup()))

    # Pages where they lie in the host's pool.

    def batch_get_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        return self._safely(
            [False] * len(keys),
            lambda: self._load(PoolName.KV, keys, host_indices, self._deadline("load")),
        )

    def batch_set_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        deadline = self._deadline("store")
        return self._safely(
            [False] * len(keys),
            lambda: self._store(PoolName.KV, keys, host_indices, extra_info, deadline),
        )

    def batch_exists_v2(
        self, keys: list[str], pool_transfers: Any = None, extra_info: Any = None
    ) -> PoolTransferResult:
        return self._safely(
            PoolTransferResult.empty(), lambda: self._prefixes(keys, list(pool_transfers or []))
        )

    def batch_get_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        deadline = self._deadline("load")

        def load(transfer: Any) -> list[bool]:
            keys, indices = transfer.keys or [], transfer.host_indices
            return self._load(transfer.name, keys, indices, deadline)

        return self._each(transfers, load)

    def batch_set_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        deadline = self._deadline("store")

        def store(transfer: Any) -> list[bool]:
            # A window's pages are found one by one: they hang on nothing.
            is_chain = transfer.hit_policy == PoolHitPolicy.ALL_PAGES
            keys, indices = transfer.keys or [], transfer.host_indices
            return self._store(transfer.name, keys, indices, extra_info, deadline, is_chain)

        return self._each(transfers, store)

    # Looking after it.

    def clear(self) -> bool:
        """Has the pages of all its spaces forgotten, for every rank and process that shares them.
        Says whether the daemon did so."""
        return self._safely(False, self._tier.purge)

    def get_stats(self) -> Any:
        """SGLang's own record of batches since the last call; `None` where it wants none."""
        if not self._config.enable_storage_metrics:
            return None
        return self._safely(None, self._metrics)

    def close(self) -> None:
        self._safely(None, self._tier.close)

    def _metrics(self) -> Any:
        from sglang.srt.observability.metrics_collector import StorageMetrics

        metrics = StorageMetrics()
        for kind, figures in self._figures.items():
            taken = [figures.popleft() for _ in range(len(figures))]
            getattr(metrics, f"{kind}_pgs").extend(pages for pages, _ in taken)
            getattr(metrics, f"{kind}_bandwidth").extend(speed for _, speed in taken)
        return metrics

    def _safely(self, otherwise: T, do: Callable[[], T]) -> T:
        try:
            return do()
        except ENDS:
            raise
        except BaseException as error:  # noqa: BLE001  SGLang's thread would be gone for good
            self._tier.tell("error", "a call of SGLang's failed: %s: %s",
                            type(error).__name__, error)
            return otherwise

    def _each(
        self, transfers: list[Any], do: Callable[[Any], list[bool]]
    ) -> dict[Any, list[bool]]:
        results: dict[Any, list[bool]] = {}
        for transfer in transfers:
            failed = [False] * len(transfer.keys or [])
            results[transfer.name] = self._safely(failed, lambda t=transfer: do(t))
        return results

    def _deadline(self, kind: str) -> Deadline:
        """One call's, from now on. A pool's first call has a while longer: its space opens."""
        return Deadline(getattr(self._tier.limits, f"{kind}_deadline"), OPENS_S)

    def _pool(self, name: str) -> PagedPool | None:
        pools = getattr(self, "registered_pools", {})
        pool = pools.get(name)
        if pool is None and name == PoolName.KV:
            pool = getattr(self, "mem_pool_host", None)
        if pool is None:
            return None
        with self._lock:
            # A pool that was registered anew is another one.
            known = self._pools.get((str(name), id(pool)))
            if known is None:
                known = self._pools[str(name), id(pool)] = PagedPool(pool)
            return known

    def _rank(self, name: str, pool: Any) -> tuple[int, int] | None:
        """`None`: the pages are the same on every rank."""
        config = self._config
        own = (config.tp_rank, config.tp_size)
        if not config.is_mla_model or name == PoolName.MAMBA:
            return own
        if name in (PoolName.DRAFT, PoolName.DRAFT_SWA):
            kind = type(pool).__name__
            return None if kind.startswith(("MLA", "DeepSeekV4")) else own
        return None

    def _shelf(
        self, name: str, pool: Any, form: str, shape: tuple[int, Sequence[int]], deadline: Deadline
    ) -> Shelf | None:
        if self._model is None:
            return None
        config = self._config
        identity = {
            "cache": "sglang",
            "version": self._version,
            "options": self._options,
            "model": config.model_name,
            "pool": str(name),
            "form": form,
            "layout": str(getattr(pool, "layout", "")),
            # A host pool's type is that of its bytes, the device pool's what they mean.
            "dtype": [str(getattr(pool, "dtype", "")), device_dtype(pool)],
            "tag": str(getattr(pool, "storage_format_tag", None)),
            "tokens": getattr(pool, "page_size", 0),
            "layers": [getattr(pool, end, None) for end in ("start_layer", "end_layer")],
            "heads": [getattr(pool, size, None) for size in ("head_num", "head_dim")],
            "pp": [config.pp_rank, config.pp_size],
            "cp": [config.attn_cp_rank, config.attn_cp_size],
            "dcp": [config.dcp_rank, config.dcp_size],
            "tp": config.tp_size if self._rank(name, pool) else None,
        }
        layers, parts = shape
        rank = self._rank(name, pool)
        return self._tier.shelf(
            identity, self._model, parts, deadline, layers, rank, unknown=self._unknown(pool)
        )

    def _unknown(self, pool: Any) -> str | None:
        """What SGLang does not tell of a pool's pages, and their bytes depend on."""
        if not self._version:
            return "SGLang's version"
        is_bytes = str(getattr(pool, "dtype", "")).endswith(BYTES)
        if is_bytes and device_dtype(pool) is None and self._options is None:
            return "what numbers a pool's bytes are (kv_cache_dtype)"
        return None

    def _pool_shelf(self, name: str, paged: PagedPool, deadline: Deadline) -> Shelf | None:
        return self._shelf(name, paged.pool, paged.form, paged.shape, deadline)

    def _flat_shelf(self, page_bytes: int, deadline: Deadline) -> Shelf | None:
        pool = getattr(self, "mem_pool_host", None)
        return self._shelf(PoolName.KV, pool, "tensor", (1, [page_bytes]), deadline)

    def _leading(self, keys: list[str], deadline: Deadline) -> int:
        paged = self._pool(PoolName.KV)
        if paged is None or not keys:
            return 0
        if paged.is_logical:
            return len(keys)
        shelf = (
            self._pool_shelf(PoolName.KV, paged, deadline)
            if self._is_v1
            else self._flat_shelf(paged.flat_bytes(), deadline)
        )
        return 0 if shelf is None else shelf.leading(shelf.keys(names(keys)), deadline)

    def _prefixes(self, keys: list[str], transfers: list[Any]) -> PoolTransferResult:
        """Prefixes for which every pool has what its policy asks for."""
        deadline = self._tier.limits.lookup()
        kv_pages = self._leading(keys, deadline)
        hits: dict[Any, int] = {PoolName.KV: kv_pages} if kv_pages else {}
        left = set(range(1, kv_pages + 1))
        for transfer in transfers:
            if transfer.hit_policy not in (PoolHitPolicy.ALL_PAGES, PoolHitPolicy.TRAILING_PAGES):
                continue
            there = self._there(transfer.name, keys[:kv_pages], deadline)
            window = kv_pages
            if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
                window = max(1, len(transfer.keys or [None]))
            served, run = set(), 0
            for pages, is_there in enumerate(there, 1):
                run = run + 1 if is_there else 0
                if run >= min(window, pages):
                    served.add(pages)
            if served:
                hits[transfer.name] = max(served)
            left &= served
        restorable = sorted(left)
        return PoolTransferResult(restorable[-1] if restorable else 0, hits, restorable)

    def _there(self, name: str, keys: list[str], deadline: Deadline) -> list[bool]:
        paged = self._pool(name)
        shelf = None if paged is None else self._pool_shelf(name, paged, deadline)
        there = [False] * len(keys)
        if shelf is not None:
            for first, count, _ in shelf.find(shelf.keys(names(keys)), deadline):
                there[first : first + count] = [True] * count
        return there

    def _load(
        self, name: str, keys: list[str], indices: Any, deadline: Deadline
    ) -> list[bool]:
        paged = self._pool(name)
        if paged is None or not keys:
            return [False] * len(keys)
        if paged.is_logical:
            return [True] * len(keys)
        shelf = self._pool_shelf(name, paged, deadline)
        if shelf is None:
            return [False] * len(keys)
        began = time.monotonic()
        batch = paged.batch(indices, len(keys), is_load=True)
        got = shelf.load(shelf.keys(names(keys)), batch.device, range(len(keys)), deadline)
        batch.settle(got)
        self._count("prefetch", sum(got), shelf, began)
        return got

    def _store(
        self,
        name: str,
        keys: list[str],
        indices: Any,
        extra_info: Any,
        deadline: Deadline,
        is_chain: bool = True,
    ) -> list[bool]:
        paged = self._pool(name)
        if paged is None or not keys:
            return [False] * len(keys)
        if paged.is_logical or self._is_anothers(name, paged):
            return [True] * len(keys)
        shelf = self._pool_shelf(name, paged, deadline)
        if shelf is None:
            return [False] * len(keys)
        began = time.monotonic()
        device = paged.batch(indices, len(keys), is_load=False).device
        page_keys = shelf.keys(names(keys))
        if is_chain:
            stored = self._store_chain(shelf, page_keys, device, extra_info, deadline)
        else:
            stored = [
                shelf.store([key], device, [at], deadline)[0] for at, key in enumerate(page_keys)
            ]
        self._count("backup", sum(stored), shelf, began)
        return stored

    def _store_chain(
        self, shelf: Shelf, keys: list[bytes], device: Any, extra_info: Any, deadline: Deadline
    ) -> list[bool]:
        prefix = getattr(extra_info, "prefix_keys", None) or []
        parent = shelf.keys(names(prefix[-1:]))[0] if prefix else None
        return shelf.store(keys, device, range(len(keys)), deadline, parent, len(prefix))

    def _is_anothers(self, name: str, paged: PagedPool) -> bool:
        """Pages that are the same on every rank are stored by one of them."""
        return self._rank(name, paged.pool) is None and not self._config.is_storage_writer

    def _get_tensors(self, keys: list[str], targets: list[Any]) -> list[bool]:
        got = [False] * len(keys)
        sizes = {memory_bytes(target) for target in targets if target is not None}
        deadline = self._deadline("load")
        shelf = self._flat_shelf(sizes.pop(), deadline) if len(sizes) == 1 else None
        places = [at for at, target in enumerate(targets) if target is not None]
        if shelf is None or not places:
            return got
        began = time.monotonic()
        device = undercroft.Buffers(shelf.space.page_bytes, [targets[at] for at in places])
        found = shelf.keys(names([keys[at] for at in places]))
        loaded = shelf.load(found, device, range(len(places)), deadline)
        for at, ok in zip(places, loaded):
            got[at] = ok
        self._count("prefetch", sum(got), shelf, began)
        return got

    def _set_tensors(self, keys: list[str], values: list[Any]) -> bool:
        if not keys or len(values) != len(keys) or any(value is None for value in values):
            return False
        if self._config.is_mla_model and not self._config.is_storage_writer:
            return True
        values = [value.contiguous() for value in values]
        sizes = {memory_bytes(value) for value in values}
        deadline = self._deadline("store")
        shelf = self._flat_shelf(sizes.pop(), deadline) if len(sizes) == 1 else None
        if shelf is None:
            return False
        began = time.monotonic()
        device = undercroft.Buffers(shelf.space.page_bytes, values, writable=False)
        stored = self._store_chain(shelf, shelf.keys(names(keys)), device, None, deadline)
        self._count("backup", sum(stored), shelf, began)
        return all(stored)

    def _count(self, kind: str, pages: int, shelf: Shelf, began: float) -> None:
        self._tier.counts[f"{kind}_pages"] += pages
        if pages and self._config.enable_storage_metrics:
            took = max(time.monotonic() - began, 1e-9)
            self._figures[kind].append((pages, pages * shelf.space.page_bytes / took / 1e9))


def server_args() -> Any:
    """The engine's options, if this is its process."""
    try:
        from sglang.srt.runtime_context import get_server_args

        return get_server_args()
    except (ImportError, RuntimeError, ValueError):
        return None


def options() -> list[str] | None:
    """What of the engine's options belongs to the identity of its pages."""
    given = server_args()
    return None if given is None else [f"{name}={getattr(given, name, None)}" for name in OPTIONS]


def has_adapters() -> bool:
    given = server_args()
    return bool(getattr(given, "enable_lora", None) or getattr(given, "lora_paths", None))


def device_dtype(pool: Any) -> str | None:
    """The type of the pool that a host pool is filled from, where it says so."""
    dtype = getattr(getattr(pool, "device_pool", None), "dtype", None)
    return None if dtype is None else str(dtype)


def names(keys: Sequence[str]) -> list[bytes]:
    return [key.encode() for key in keys]
