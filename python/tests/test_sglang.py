"""Undercroft as SGLang's storage: a contract test of every call, also where it cannot be served.
The engine itself needs a GPU and is not run here."""

from __future__ import annotations

import hashlib
import signal
import time
import unittest
from dataclasses import dataclass
from typing import Any
from unittest import mock

import standins
from hostpools import (
    LAYERS, PAGE_BYTES, PAGE_TOKENS, PAGES, Config, MLATokenToKVPoolHost, Pool, Tensor,
)
from serving import Daemon

IS_REAL = standins.use_sglang()

from sglang.srt.mem_cache import hicache_storage as sg  # noqa: E402

from undercroft.hostpool import Indices, repeats  # noqa: E402
from undercroft.sglang import UndercroftHiCache  # noqa: E402  needs SGLang or its stand-in

PATIENCE = 20.0


def keys(numbers: range | list[int]) -> list[str]:
    return [hashlib.sha256(b"page%d" % n).hexdigest() for n in numbers]


def data(number: int, size: int = PAGE_BYTES) -> bytes:
    return hashlib.shake_256(b"data%d" % number).digest(size)


def slots(pages: range | list[int]) -> Indices:
    return Indices(page * PAGE_TOKENS + at for page in pages for at in range(PAGE_TOKENS))


class Case(unittest.TestCase):
    def setUp(self) -> None:
        # A slab for each size that the tests keep.
        self.daemon = Daemon(dram="128MiB")
        self.addCleanup(self.daemon.close)

    def backend(
        self, pool: Any = None, v1: bool = True, settings: dict[str, Any] | None = None,
        **fields: Any,
    ) -> UndercroftHiCache:
        given = {"socket": str(self.daemon.socket), "model": "none", "lookup_deadline": 5.0,
                 **(settings or {})}
        extra = {"backend_name": "undercroft", "interface_v1": int(v1), "undercroft": given}
        backend = UndercroftHiCache(Config(extra_config=extra, **fields), {})
        self.addCleanup(backend.close)
        self.assertTrue(backend._tier.client.wait_connected(PATIENCE))
        backend.register_mem_pool_host(Pool() if pool is None else pool)
        backend.on_host_pools_registered()
        return backend

    def filled(self, layout: str = "page_first", kind: type[Pool] = Pool) -> Any:
        pool = kind(layout)
        for page in range(PAGES):
            pool.fill(page, data(page))
        return pool


class ZeroCopy(Case):
    def test_pages_come_back_where_they_are_wanted_whatever_the_pools_layout(self) -> None:
        for layout in ("page_first", "layer_first", "unknown"):
            with self.subTest(layout):
                backend = self.backend(self.filled(layout))
                stored = backend.batch_set_v1(keys(range(10)), slots(range(10)))
                self.assertEqual(stored, [True] * 10)
                empty = Pool(layout)
                other = self.backend(empty)
                self.assertEqual(other.batch_exists(keys(range(12))), 10)
                places = [40, 3, 17, 2, 60, 5, 6, 7, 8, 9]
                self.assertEqual(other.batch_get_v1(keys(range(10)), slots(places)), [True] * 10)
                for page, place in enumerate(places):
                    self.assertEqual(empty.page(place), data(page))
                untouched = [page for page in range(PAGES) if page not in places]
                self.assertTrue(all(empty.page(page) == bytes(PAGE_BYTES) for page in untouched))

    def test_layouts_are_never_mixed(self) -> None:
        # Without `v1` pages are asked for in tensors; where they lie they are the same.
        self.backend(self.filled()).batch_set_v1(keys(range(4)), slots(range(4)))
        for fields in ({"pool": Pool("layer_first")}, {"v1": False}, {"model_name": "n"},
                       {"tp_rank": 1, "tp_size": 2}, {"pp_rank": 1, "pp_size": 2},
                       {"settings": {"model": "ab" * 32}}):
            with self.subTest(**{name: str(field) for name, field in fields.items()}):
                backend = self.backend(**fields)
                self.assertEqual(backend.batch_exists(keys(range(4))), 0)
                got = backend.batch_get_v1(keys(range(4)), slots(range(4)))
                self.assertEqual(got, [not backend._is_v1] * 4)

    def test_what_the_engine_and_people_say_is_a_part_of_the_identity(self) -> None:
        self.backend(self.filled()).batch_set_v1(keys(range(2)), slots(range(2)))
        other_layers, of_fp8 = Pool(), Pool()
        other_layers.start_layer, other_layers.end_layer = 1, 1 + LAYERS
        of_fp8.device_pool = Device("float8_e5m2")  # type: ignore[attr-defined]
        for what, fields in {
            "the same": {}, "said": {"settings": {"identity": "rope_theta=1e6"}},
            "stage": {"pool": other_layers}, "numbers": {"pool": of_fp8},
        }.items():
            with self.subTest(what):
                found = self.backend(**fields).batch_exists(keys(range(2)))
                self.assertEqual(found, 2 if what == "the same" else 0)
        for what in ({"version": lambda _: "0.6"}, {"options": lambda: ["quantization=fp8"]}):
            with self.subTest(what), mock.patch.multiple("undercroft.sglang", **what):
                self.assertEqual(self.backend().batch_exists(keys(range(2))), 0)

    def test_bytes_of_which_nobody_says_what_they_are_are_not_kept(self) -> None:
        pool = self.filled()
        pool.dtype = "torch.uint8"
        two = (keys(range(2)), slots(range(2)))
        self.assertEqual(self.backend(pool).batch_set_v1(*two), [False] * 2)
        said = self.backend(pool, settings={"identity": "kv_cache_dtype=fp8_e4m3"})
        self.assertEqual(said.batch_set_v1(*two), [True] * 2)
        pool.device_pool = Device("torch.float8_e4m3fn")
        self.assertEqual(self.backend(pool).batch_set_v1(*two), [True] * 2)
        pool.device_pool = Device("torch.float8_e5m2")
        self.assertEqual(self.backend(pool).batch_exists(two[0]), 0)
        with mock.patch("undercroft.sglang.version", lambda _: ""):
            self.assertEqual(self.backend(self.filled()).batch_set_v1(*two), [False] * 2)

    def test_a_missing_page_hides_none_behind_it(self) -> None:
        backend = self.backend(self.filled())
        backend.batch_set_v1(keys([0, 1, 4]), slots([0, 1, 4]))
        empty = Pool()
        other = self.backend(empty)
        self.assertEqual(other.batch_exists(keys(range(6))), 2)
        got = other.batch_get_v1(keys(range(6)), slots(range(6)))
        self.assertEqual(got, [True, True, False, False, True, False])
        self.assertEqual(empty.page(4), data(4))

    def test_batches_of_one_chain_hang_together_and_apart(self) -> None:
        backend = self.backend(self.filled())
        all_keys = keys(range(30))
        for first in (0, 10, 20):
            info = sg.HiCacheStorageExtraInfo(prefix_keys=all_keys[:first])
            run = range(first, first + 10)
            self.assertEqual(backend.batch_set_v1(keys(run), slots(run), info), [True] * 10)
        self.assertEqual(backend.batch_exists(all_keys), 30)
        # A chain whose beginning nobody has.
        info = sg.HiCacheStorageExtraInfo(prefix_keys=keys(range(100, 105)))
        run = range(40, 44)
        self.assertEqual(backend.batch_set_v1(keys(run), slots(run), info), [True] * 4)
        self.assertEqual(backend.batch_exists(keys(run)), 4)

    def test_replicated_pages_are_stored_by_one_rank_and_found_by_all(self) -> None:
        mla = {"is_mla_model": True, "tp_size": 2}
        pool = self.filled(kind=MLATokenToKVPoolHost)
        second = self.backend(pool, tp_rank=1, **mla)
        self.assertEqual(second.batch_set_v1(keys([0]), slots([0])), [True])
        self.assertEqual(second.batch_exists(keys([0])), 0, "the other rank stores it")
        first = self.backend(pool, tp_rank=0, **mla)
        self.assertEqual(first.batch_set_v1(keys([0]), slots([0])), [True])
        self.assertEqual(second.batch_exists(keys([0])), 1)

    def test_figures_are_collected_once(self) -> None:
        backend = self.backend(self.filled(), enable_storage_metrics=True)
        backend.batch_set_v1(keys(range(3)), slots(range(3)))
        backend.batch_get_v1(keys(range(3)), slots(range(3)))
        stats = backend.get_stats()
        self.assertEqual((stats.backup_pgs, stats.prefetch_pgs), ([3], [3]))
        self.assertTrue(stats.backup_bandwidth[0] > 0 and stats.prefetch_bandwidth[0] > 0)
        self.assertEqual(backend.get_stats().backup_pgs, [])
        self.assertIsNone(self.backend().get_stats())


class Tensors(Case):
    def test_every_call_of_the_first_interface(self) -> None:
        backend = self.backend(v1=False)
        values = [Tensor(data(n)) for n in range(3)]
        self.assertTrue(backend.set(keys([9])[0], Tensor(data(9))))
        self.assertTrue(backend.batch_set(keys(range(3)), values))
        self.assertTrue(backend.exists(keys([9])[0]))
        self.assertFalse(backend.exists(keys([8])[0]))
        self.assertEqual(backend.batch_exists(keys(range(5))), 3)
        target = Tensor(bytes(PAGE_BYTES))
        self.assertIs(backend.get(keys([9])[0], target), target)
        self.assertEqual(target.bytes(), data(9))
        targets = [Tensor(bytes(PAGE_BYTES)) for _ in range(4)]
        got = backend.batch_get(keys(range(4)), targets)
        self.assertEqual([one is not None for one in got], [True, True, True, False])
        self.assertEqual([one.bytes() for one in got[:3]], [data(n) for n in range(3)])

    def test_wrong_sizes_and_nothing_to_read_into_are_misses(self) -> None:
        backend = self.backend(v1=False)
        backend.set(keys([0])[0], Tensor(data(0)))
        self.assertIsNone(backend.get(keys([0])[0]))
        self.assertIsNone(backend.get(keys([0])[0], Tensor(bytes(PAGE_BYTES // 2))))
        self.assertIsNone(backend.get(keys([0])[0], Tensor(bytes(8))))
        self.assertIsNone(backend.get(keys([0])[0], object()))
        self.assertFalse(backend.set(keys([1])[0]))
        self.assertFalse(backend.set(keys([1])[0], "text"))
        self.assertFalse(backend.batch_set(keys([1, 2]), [Tensor(data(1))]))


class Hybrid(Case):
    def backend_of(self, *names: Any, **fields: Any) -> UndercroftHiCache:
        backend = self.backend(self.filled(), **fields)
        self.pools = {name: self.filled() for name in names}
        for name, pool in self.pools.items():
            backend.register_mem_host_pool_v2(pool, name)
        return backend

    def transfer(self, name: Any, numbers: range | list[int], **fields: Any) -> Any:
        return sg.PoolTransfer(name, slots(numbers), keys=keys(numbers), **fields)

    def test_pools_are_stored_and_loaded_each_for_itself(self) -> None:
        names = (sg.PoolName.SWA, sg.PoolName.MAMBA)
        backend = self.backend_of(*names)
        stored = backend.batch_set_v2([self.transfer(name, range(3)) for name in names])
        self.assertEqual(stored, {name: [True] * 3 for name in names})
        self.assertEqual(backend.batch_exists(keys(range(3))), 0, "another pool's pages")
        for pool in self.pools.values():
            pool.fill(7, bytes(PAGE_BYTES))
        wanted = [sg.PoolTransfer(name, slots([7]), keys=keys([2])) for name in names]
        self.assertEqual(backend.batch_get_v2(wanted), {name: [True] for name in names})
        self.assertTrue(all(pool.page(7) == data(2) for pool in self.pools.values()))

    def test_a_prefix_counts_where_every_pool_has_what_it_needs(self) -> None:
        swa, indexer = sg.PoolName.SWA, sg.PoolName.INDEXER
        trailing = sg.PoolHitPolicy.TRAILING_PAGES
        backend = self.backend_of(swa, indexer)
        backend.batch_set_v1(keys(range(8)), slots(range(8)))
        backend.batch_set_v2([
            self.transfer(swa, [1, 2, 5, 6], hit_policy=trailing),
            self.transfer(indexer, range(6)),
        ])
        asked = [self.transfer(swa, [0, 1], hit_policy=trailing), self.transfer(indexer, [])]
        found = backend.batch_exists_v2(keys(range(10)), asked[:1])
        self.assertEqual((found.kv_hit_pages, found.restorable_prefix_pages), (7, [3, 7]))
        self.assertEqual(found.extra_pool_hit_pages, {sg.PoolName.KV: 8, swa: 7})
        both = backend.batch_exists_v2(keys(range(10)), asked)
        self.assertEqual((both.kv_hit_pages, both.restorable_prefix_pages), (3, [3]))
        alone = backend.batch_exists_v2(keys(range(10)))
        self.assertEqual((alone.kv_hit_pages, alone.restorable_prefix_pages),
                         (8, list(range(1, 9))))

    def test_a_pool_that_is_not_there_or_a_call_that_cannot_be_is_a_miss(self) -> None:
        backend = self.backend_of(sg.PoolName.SWA)
        strange = self.transfer(sg.PoolName.MAMBA, range(2))
        none = sg.PoolTransfer(sg.PoolName.SWA, None, keys=keys(range(2)))
        odd = sg.PoolTransfer(sg.PoolName.SWA, Indices([0]), keys=keys(range(2)))
        for call in (backend.batch_set_v2, backend.batch_get_v2):
            for wrong in (strange, none, odd):
                self.assertEqual(call([wrong]), {wrong.name: [False] * 2})
            self.assertEqual(call([sg.PoolTransfer(sg.PoolName.SWA)]), {sg.PoolName.SWA: []})
            self.assertEqual(call([]), {})

    def test_a_pool_without_bytes_stands_in_nobodys_way(self) -> None:
        logical = Pool()
        logical.kv_buffer = None  # type: ignore[assignment]
        backend = self.backend(logical)
        self.assertEqual(backend.batch_set_v1(keys([0]), slots([0])), [True])
        self.assertEqual(backend.batch_get_v1(keys([0]), slots([0])), [True])
        self.assertEqual(backend.batch_exists_v2(keys(range(3))).kv_hit_pages, 3)

    def test_sharded_state_of_a_replicated_model_is_each_ranks_own(self) -> None:
        mla = {"is_mla_model": True, "tp_size": 2}
        first = self.backend_of(sg.PoolName.MAMBA, sg.PoolName.DRAFT, tp_rank=0, **mla)
        both = [self.transfer(name, range(2)) for name in (sg.PoolName.MAMBA, sg.PoolName.DRAFT)]
        first.batch_set_v2(both)
        second = self.backend_of(sg.PoolName.MAMBA, sg.PoolName.DRAFT, tp_rank=1, **mla)
        got = second.batch_get_v2(both)
        self.assertEqual(set(map(tuple, got.values())), {(False, False)})


@dataclass
class Device:
    """The pool that a host pool is filled from."""

    dtype: str


class Wrong(Case):
    def test_what_is_no_exception_is_a_miss_and_what_ends_the_process_is_not_kept_back(self) -> None:
        backend = self.backend(self.filled())
        with mock.patch.object(backend._tier, "shelf", side_effect=standins.Panic("!")):
            two = (keys(range(2)), slots(range(2)))
            self.assertEqual(backend.batch_get_v1(*two), [False, False])
            self.assertEqual(backend.batch_set_v1(*two), [False, False])
            self.assertEqual(backend.batch_exists(two[0]), 0)
        with mock.patch.object(backend._tier, "purge", side_effect=KeyboardInterrupt):
            self.assertRaises(KeyboardInterrupt, backend.clear)

    def test_forgetting_many_spaces_has_one_deadline(self) -> None:
        backend = self.backend(settings={"store_deadline": 0.3})
        sizes = [Tensor(bytes(512 * (at + 1))) for at in range(8)]
        for at, value in enumerate(sizes):
            backend.set(keys([at])[0], value)
        self.assertEqual(len(backend._tier._shelves), 8)
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        began = time.monotonic()
        self.assertIs(backend.clear(), False)
        self.assertLess(time.monotonic() - began, 1.3)
        self.daemon.signal(signal.SIGCONT)

    def every_call(self, backend: UndercroftHiCache) -> None:
        """Nothing is there, nothing is stored, nothing is raised, and lists are lists."""
        two, at = keys(range(2)), slots(range(2))
        transfer = sg.PoolTransfer(sg.PoolName.KV, at, keys=two)
        self.assertEqual(backend.batch_get_v1(two, at), [False, False])
        self.assertEqual(backend.batch_set_v1(two, at), [False, False])
        self.assertEqual(backend.batch_get_v2([transfer]), {sg.PoolName.KV: [False, False]})
        self.assertEqual(backend.batch_set_v2([transfer]), {sg.PoolName.KV: [False, False]})
        self.assertEqual(backend.batch_exists(two), 0)
        self.assertEqual(backend.batch_exists_v2(two, [transfer]).kv_hit_pages, 0)
        self.assertIsNone(backend.get(two[0], Tensor(bytes(PAGE_BYTES))))
        self.assertEqual(backend.batch_get(two, [Tensor(bytes(PAGE_BYTES))] * 2), [None, None])
        self.assertIs(backend.set(two[0], Tensor(data(0))), False)
        self.assertIs(backend.batch_set(two, [Tensor(data(0)), Tensor(data(1))]), False)
        self.assertIs(backend.exists(two[0]), False)
        self.assertIs(backend.clear(), False)

    def test_without_a_daemon(self) -> None:
        backend = self.backend()
        self.daemon.kill()
        self.every_call(backend)
        self.daemon.start()
        self.assertTrue(backend._tier.client.wait_connected(PATIENCE))
        until = time.monotonic() + PATIENCE
        while backend.batch_set_v1(keys([0]), slots([0])) != [True]:
            self.assertLess(time.monotonic(), until)
        self.assertEqual(backend.batch_exists(keys([0])), 1)

    def test_with_a_daemon_that_hangs_each_call_ends_at_its_deadline(self) -> None:
        limits = {"lookup_deadline": 0.1, "load_deadline": 0.2, "store_deadline": 0.2}
        backend = self.backend(settings=limits)
        backend.batch_set_v1(keys([5]), slots([5]))
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        began = time.monotonic()
        self.every_call(backend)
        self.assertLess(time.monotonic() - began, 13 * 1.0)
        self.daemon.signal(signal.SIGCONT)

    def test_after_it_was_closed(self) -> None:
        backend = self.backend()
        backend.close()
        self.every_call(backend)
        backend.close()

    def test_without_a_model_or_a_pool(self) -> None:
        extra = {"undercroft": {"socket": str(self.daemon.socket)}}
        nameless = UndercroftHiCache(Config(extra_config=extra))
        self.addCleanup(nameless.close)
        nameless.register_mem_pool_host(Pool())
        self.every_call(nameless)
        extra = {"undercroft": {"socket": str(self.daemon.socket), "model": "none"}}
        poolless = UndercroftHiCache(Config(extra_config=extra, model_name=None))
        self.addCleanup(poolless.close)
        self.assertEqual(poolless.batch_get_v1(keys([0]), slots([0])), [False])
        self.assertEqual(poolless.batch_set_v1(keys([0]), slots([0])), [False])
        self.assertEqual(poolless.batch_exists(keys([0])), 0)

    def test_killed_between_and_during_batches(self) -> None:
        backend = self.backend(self.filled())
        for round_ in range(3):
            self.assertEqual(len(backend.batch_set_v1(keys(range(20)), slots(range(20)))), 20)
            self.daemon.kill()
            self.assertEqual(backend.batch_get_v1(keys(range(20)), slots(range(20))),
                             [False] * 20)
            self.daemon.start()
            self.assertTrue(backend._tier.client.wait_connected(PATIENCE))

    def test_a_full_daemon_says_what_it_took(self) -> None:
        backend = self.backend(self.filled())
        pages = (128 << 20) // PAGE_BYTES
        for first in range(0, 2 * pages, 64):
            stored = backend.batch_set_v1(keys(range(first, first + 64)), slots(range(64)))
            self.assertEqual(len(stored), 64)
        last = keys(range(first, first + 64))
        self.assertEqual(backend.batch_exists(last), stored.index(False) if False in stored else 64)

    def test_settings_that_mean_nothing_are_refused_by_name(self) -> None:
        for settings in ({"modell": "none"}, {"model": "nowhere"}, {"threads": -1},
                         {"identity": 1}):
            with self.subTest(settings), self.assertRaises(ValueError):
                UndercroftHiCache(Config(extra_config={"undercroft": settings}))


class Forgetting(Case):
    def test_clear_has_the_daemon_forget_what_is_its_own(self) -> None:
        backend = self.backend(self.filled())
        other = self.backend(self.filled(), model_name="n")
        for one in (backend, other):
            one.batch_set_v1(keys(range(4)), slots(range(4)))
        self.assertIs(backend.clear(), True)
        self.assertEqual(backend.batch_exists(keys(range(4))), 0)
        self.assertEqual(other.batch_exists(keys(range(4))), 4)
        self.assertEqual(backend.batch_set_v1(keys(range(4)), slots(range(4))), [True] * 4)


class Shapes(unittest.TestCase):
    def test_fragments_that_repeat_make_layers(self) -> None:
        self.assertEqual(repeats([8, 8, 8]), (3, [8]))
        self.assertEqual(repeats([8, 4, 8, 4]), (2, [8, 4]))
        self.assertEqual(repeats([8, 4, 2]), (1, [8, 4, 2]))
        self.assertIsNone(repeats(list(range(1, 10))))


if __name__ == "__main__":
    unittest.main()
