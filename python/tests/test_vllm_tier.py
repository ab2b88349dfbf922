"""Undercroft as a secondary tier of vLLM's offloading, at the level of its manager: the connector
on top needs a GPU, or a copy worker of one's own."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
import unittest
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import standins
from serving import Daemon

IS_REAL = standins.use_vllm()

from undercroft.vllm import tier as tiers  # noqa: E402  needs vLLM or its stand-in

LookupResult, TransferJob = tiers.LookupResult, tiers.TransferJob
CHUNK_BYTES = 8192
CHUNKS = 64
TOKENS = 16
PATIENCE = 20.0


class Context:
    """vLLM's ReqContext."""

    def __init__(self, req_id: str, keys: list[bytes] | None = None) -> None:
        self.req_id = req_id
        self.ends = {key: (at + 1) * TOKENS for at, key in enumerate(keys or [])}

    def get_offload_key_position(self, key: bytes) -> int | None:
        return self.ends.get(key)


def keys(numbers: range | list[int], group: int = 0) -> list[bytes]:
    return [hashlib.sha256(b"%d" % n).digest() + group.to_bytes(4, "big") for n in numbers]


def data(number: int) -> bytes:
    return hashlib.shake_256(b"chunk%d" % number).digest(CHUNK_BYTES)


def spec(group_ids: tuple[int, ...] = (0, 1), pp_size: int = 1, **model: Any) -> Any:
    """vLLM's OffloadingSpec, as far as a tier looks at it."""
    groups = [SimpleNamespace(tokens_per_block=TOKENS, layer_names=(f"layer{at}",), group_id=at)
              for at in group_ids]
    parallel = SimpleNamespace(
        world_size=pp_size, tp_size=1, pp_size=pp_size, pcp_size=1, dcp_size=1
    )
    config = SimpleNamespace(
        model=SimpleNamespace(**{"name": "m", "dtype": "bfloat16", **model}),
        cache=SimpleNamespace(tokens_per_hash=TOKENS, blocks_per_chunk=1),
        worker_kv_bytes_per_block=CHUNK_BYTES, parallel=parallel, replicated_layout=False,
        canonical_layout=False, kv_cache_layout="NHD", groups=groups,
    )
    tokens = (TOKENS,) * len(groups)
    return SimpleNamespace(config=config, blocks_per_chunk=1, tokens_per_block=tokens)


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.daemon = Daemon(dram="128MiB")
        self.addCleanup(self.daemon.close)
        self.jobs = 0

    def tier(self, memory: bytearray | None = None, engine: Any = None, **settings: Any) -> Any:
        view = memoryview(memory or bytearray(CHUNKS * CHUNK_BYTES))
        given = {"socket": str(self.daemon.socket), "model": "none", "lookup_deadline": 5.0}
        tier = tiers.UndercroftTier(
            spec(**(engine or {})), view.cast("B", (CHUNKS, CHUNK_BYTES)), "UndercroftTier",
            **{**given, **settings},
        )
        self.addCleanup(tier.shutdown)
        self.assertTrue(tier._tier.client.wait_connected(PATIENCE))
        return tier

    def filled(self) -> bytearray:
        return bytearray(b"".join(data(n) for n in range(CHUNKS)))

    def job(self, context: Context, keys: list[bytes], chunks: Any, is_load: bool) -> Any:
        self.jobs += 1
        return TransferJob(self.jobs, keys, list(chunks), is_load, context)

    def finished(self, tier: Any, job: Any) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for result in tier.get_finished_jobs():
                self.assertEqual(result.job_id, job.job_id)
                return result
            time.sleep(0.002)
        self.fail("the job never ended")

    def store(self, tier: Any, context: Context, keys: list[bytes], chunks: Any) -> Any:
        job = self.job(context, keys, chunks, False)
        tier.submit_store(job)
        return self.finished(tier, job)

    def load(self, tier: Any, context: Context, keys: list[bytes], chunks: Any) -> Any:
        job = self.job(context, keys, chunks, True)
        tier.submit_load(job)
        return self.finished(tier, job)

    def look_up(self, tier: Any, context: Context, keys: list[bytes]) -> list[Any]:
        """As vLLM does: each step asks for all, until nothing is to be asked again."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found = [tier.lookup(key, context) for key in keys]
            if LookupResult.RETRY not in found:
                return found
            tier.on_schedule_end(None)
            time.sleep(0.002)
        self.fail("a lookup was never answered")


class Kept(Case):
    def test_chunks_come_back_after_the_engine_began_anew(self) -> None:
        first = self.tier(self.filled())
        wanted = keys(range(12))
        context = Context("a", wanted)
        self.assertTrue(self.store(first, context, wanted, range(12)).success)
        first.shutdown()
        memory = bytearray(CHUNKS * CHUNK_BYTES)
        second = self.tier(memory)
        context = Context("b", wanted + keys([99]))
        found = self.look_up(second, context, wanted + keys([99]))
        self.assertEqual(found, [LookupResult.HIT] * 12 + [LookupResult.MISS])
        chunks = list(range(40, 52))
        loaded = self.load(second, context, wanted, chunks)
        self.assertTrue(loaded.success)
        self.assertEqual(loaded.transfer_bytes, 12 * CHUNK_BYTES)
        second.on_request_finished(context)
        for n, chunk in enumerate(chunks):
            got = memory[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            self.assertEqual(bytes(got), data(n))
        self.assertEqual(bytes(memory[: 40 * CHUNK_BYTES]), bytes(40 * CHUNK_BYTES))

    def test_jobs_in_any_order_with_and_without_places_are_kept(self) -> None:
        tier = self.tier(self.filled())
        wanted = keys(range(8))
        context = Context("a", wanted)
        back = list(reversed(range(4, 8)))
        self.assertTrue(self.store(tier, context, [wanted[n] for n in back], back).success)
        self.assertTrue(self.store(tier, context, wanted[:4], range(4)).success)
        nowhere = Context("b")
        self.assertTrue(self.store(tier, nowhere, keys([20, 21]), [20, 21]).success)
        everything = wanted + keys([20, 21])
        self.assertEqual(
            self.look_up(tier, Context("c"), everything), [LookupResult.HIT] * len(everything)
        )

    def test_groups_and_identities_are_apart(self) -> None:
        tier = self.tier(self.filled())
        self.store(tier, Context("a"), keys([0]), [0])
        found = self.look_up(tier, Context("b"), keys([0]) + keys([0], group=1))
        self.assertEqual(found, [LookupResult.HIT, LookupResult.MISS])
        self.assertEqual(self.look_up(self.tier(), Context("c"), keys([0])), [LookupResult.HIT])
        for other in (self.tier(engine={"name": "n"}), self.tier(engine={"dtype": "float16"}),
                      self.tier(model=None), self.tier(model="ab" * 32)):
            self.assertEqual(self.look_up(other, Context("d"), keys([0])), [LookupResult.MISS])

    def test_groups_are_known_by_their_numbers_and_not_by_their_places(self) -> None:
        ids = {"group_ids": (0, 2)}
        tier = self.tier(self.filled(), engine=ids)
        both = keys(range(3)) + keys(range(3), group=2)
        context = Context("a")
        context.ends = {key: (at % 3 + 1) * TOKENS for at, key in enumerate(both)}
        self.assertTrue(self.store(tier, context, both, range(6)).success)
        unknown = keys([0], group=1)
        self.assertFalse(self.store(tier, Context("b"), unknown, [0]).success)
        memory = bytearray(CHUNKS * CHUNK_BYTES)
        again = self.tier(memory, engine=ids)
        found = self.look_up(again, Context("c"), both + unknown)
        self.assertEqual(found, [LookupResult.HIT] * 6 + [LookupResult.MISS])
        self.assertTrue(self.load(again, Context("c"), both, range(6)).success)
        self.assertEqual(bytes(memory[: 6 * CHUNK_BYTES]), b"".join(data(n) for n in range(6)))

    def test_stages_of_other_layers_are_apart_and_what_is_said_beside(self) -> None:
        staged = {"pp_size": 3}
        with mock.patch.dict(os.environ, {"VLLM_PP_LAYER_PARTITION": "8,8,16"}):
            tier = self.tier(self.filled(), engine=staged)
            self.store(tier, Context("a"), keys([0]), [0])
            same = self.tier(engine=staged)
            said = self.tier(engine=staged, identity="rope_theta=1e6")
        with mock.patch.dict(os.environ, {"VLLM_PP_LAYER_PARTITION": "6,8,18"}):
            other = self.tier(engine=staged)
        for one, found in ((same, "HIT"), (said, "MISS"), (other, "MISS")):
            self.assertEqual(self.look_up(one, Context("b"), keys([0])), [LookupResult[found]])

    def test_a_load_that_finds_some_says_which_and_is_not_asked_for_again(self) -> None:
        memory = self.filled()
        tier = self.tier(memory)
        self.store(tier, Context("a"), keys([0, 2]), [0, 2])
        context = Context("b")
        wanted = keys(range(3))
        self.assertEqual(self.look_up(tier, context, wanted),
                         [LookupResult.HIT, LookupResult.MISS, LookupResult.HIT])
        result = self.load(tier, context, wanted, [10, 11, 12])
        self.assertFalse(result.success)
        self.assertEqual(set(result.successful_keys), {wanted[0], wanted[2]})
        self.assertEqual(bytes(memory[12 * CHUNK_BYTES : 13 * CHUNK_BYTES]), data(2))
        self.assertEqual(tier.lookup(wanted[1], context), LookupResult.MISS)


class Blocked(list[int]):
    """Places of chunks that are not told until they are let go."""

    def __init__(self, places: list[int]) -> None:
        super().__init__(places)
        self.is_begun, self.go = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[int]:
        self.is_begun.set()
        self.go.wait(PATIENCE)
        return super().__iter__()


class Late(Case):
    """A deadline counts from when a job was submitted."""

    def block(self, tier: Any) -> tuple[Any, Blocked]:
        """Keeps the thread that stores."""
        blocked = Blocked([9])
        self.addCleanup(blocked.go.set)
        job = self.job(Context("blocked"), keys([9]), [], False)
        job.chunk_ids = blocked
        tier.submit_store(job)
        self.assertTrue(blocked.is_begun.wait(PATIENCE))
        return job, blocked

    def test_a_load_ends_by_its_deadline_though_all_threads_store(self) -> None:
        tier = self.tier(self.filled(), threads=1, load_deadline=2.0)
        self.store(tier, Context("a"), keys([0]), [0])
        self.block(tier)
        began = time.monotonic()
        self.assertTrue(self.load(tier, Context("b"), keys([0]), [20]).success)
        self.assertLess(time.monotonic() - began, 2.0)

    def test_a_job_that_would_begin_after_its_deadline_touches_no_chunk(self) -> None:
        tier = self.tier(self.filled(), threads=1, store_deadline=0.3)
        _, blocked = self.block(tier)
        late = Blocked([1])
        late.go.set()
        job = self.job(Context("late"), keys([1]), [], False)
        job.chunk_ids = late
        tier.submit_store(job)
        time.sleep(0.4)
        blocked.go.set()
        results = self.all_finished(tier, 2)
        self.assertFalse(results[job.job_id])
        self.assertFalse(late.is_begun.is_set())

    def test_draining_waits_for_what_is_under_way_and_gives_up_what_is_not(self) -> None:
        tier = self.tier(self.filled(), threads=1)
        job, blocked = self.block(tier)
        waiting = [self.job(Context("w"), keys([n]), [n], False) for n in range(8)]
        for one in waiting:
            tier.submit_store(one)
        threading.Timer(0.3, blocked.go.set).start()
        began = time.monotonic()
        tier.drain_jobs()
        self.assertGreater(time.monotonic() - began, 0.25)
        results = {result.job_id: result.success for result in tier.get_finished_jobs()}
        self.assertEqual(results, {job.job_id: True, **{one.job_id: False for one in waiting}})

    def test_what_is_no_exception_ends_a_job_all_the_same(self) -> None:
        tier = self.tier(self.filled())
        with mock.patch.object(tier._tier, "shelf", side_effect=standins.Panic("!")):
            self.assertFalse(self.store(tier, Context("a"), keys([0]), [0]).success)
            self.assertFalse(self.load(tier, Context("a"), keys([0]), [0]).success)
            found = self.look_up(tier, Context("b"), keys([0]))
            self.assertEqual(found, [LookupResult.MISS])
        self.assertTrue(self.store(tier, Context("a"), keys([0]), [0]).success)

    def all_finished(self, tier: Any, count: int) -> dict[int, bool]:
        results: dict[int, bool] = {}
        until = time.monotonic() + PATIENCE
        while len(results) < count:
            self.assertLess(time.monotonic(), until)
            results.update((one.job_id, one.success) for one in tier.get_finished_jobs())
            time.sleep(0.002)
        return results


class Wrong(Case):
    def test_no_call_waits_and_every_job_ends_though_the_daemon_hangs(self) -> None:
        limits = {"lookup_deadline": 0.2, "load_deadline": 0.3, "store_deadline": 0.3}
        tier = self.tier(self.filled(), **limits)
        self.store(tier, Context("a"), keys([0]), [0])
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        began = time.monotonic()
        context = Context("b")
        load = self.job(context, keys([0]), [1], True)
        store = self.job(context, keys([5]), [5], False)
        self.assertEqual(tier.lookup(keys([0])[0], context), LookupResult.RETRY)
        tier.on_schedule_end(None)
        tier.submit_load(load)
        tier.submit_store(store)
        self.assertLess(time.monotonic() - began, 0.2)
        tier.drain_jobs()
        results = {result.job_id: result.success for result in tier.get_finished_jobs()}
        self.assertEqual(results, {load.job_id: False, store.job_id: False})
        self.assertEqual(self.look_up(tier, context, keys([0])), [LookupResult.MISS])
        self.daemon.signal(signal.SIGCONT)

    def test_a_daemon_that_dies_costs_misses_and_one_that_returns_is_used(self) -> None:
        tier = self.tier(self.filled())
        self.store(tier, Context("a"), keys([0]), [0])
        self.daemon.kill()
        self.assertEqual(self.look_up(tier, Context("b"), keys([0])), [LookupResult.MISS])
        self.assertFalse(self.store(tier, Context("b"), keys([1]), [1]).success)
        self.assertFalse(self.load(tier, Context("b"), keys([0]), [9]).success)
        self.daemon.start()
        self.assertTrue(tier._tier.client.wait_connected(PATIENCE))
        until = time.monotonic() + PATIENCE
        while not self.store(tier, Context("c"), keys([2]), [2]).success:
            self.assertLess(time.monotonic(), until)
        self.assertEqual(self.look_up(tier, Context("d"), keys([2])), [LookupResult.HIT])

    def test_jobs_that_cannot_be_and_jobs_after_the_end_fail(self) -> None:
        tier = self.tier(self.filled())
        context = Context("a")
        self.assertFalse(self.store(tier, context, keys([0]), [CHUNKS]).success)
        self.assertFalse(self.store(tier, context, keys([0, 1]), [0]).success)
        self.assertFalse(self.store(tier, context, keys([0], group=7), [0]).success)
        tier.shutdown()
        self.assertFalse(self.store(tier, context, keys([0]), [0]).success)
        self.assertFalse(self.load(tier, context, keys([0]), [0]).success)
        self.assertEqual(self.look_up(tier, context, keys([0])), [LookupResult.MISS])

    def test_what_no_request_waits_for_is_forgotten(self) -> None:
        tier = self.tier(self.filled())
        context = Context("a", keys(range(4)))
        self.store(tier, context, keys(range(4)), range(4))
        self.look_up(tier, context, keys(range(4)))
        tier.on_request_finished(context)
        self.assertEqual(tier._requests, {})
        tier.on_request_finished(context)

    def test_settings_that_mean_nothing_are_refused_by_name(self) -> None:
        for settings in ({"modell": "none"}, {"model": "nowhere"}, {"hold": 0},
                         {"identity": ["x"]}):
            with self.subTest(settings), self.assertRaises(ValueError):
                self.tier(**settings)


class Real(Case):
    @unittest.skipUnless(IS_REAL, "vLLM is not installed: its stand-in was used")
    def test_vllms_own_manager_keeps_chunks_in_it_and_gets_them_back(self) -> None:
        from vllm.v1.kv_offload.base import ReqContext, ScheduleEndContext
        from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
        from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
        from vllm.v1.kv_offload.tiering.manager import (
            CPUPrimaryTierOffloadingManager,
            TieringOffloadingManager,
        )

        step = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())

        def manager(name: str) -> Any:
            region = SharedOffloadRegion(
                engine_id=f"undercroft-test-{name}-{self.daemon.pid}", num_chunks=8, rank=None,
                kv_bytes_per_chunk=CHUNK_BYTES, cpu_page_size=CHUNK_BYTES,
            )
            primary = CPUPrimaryTierOffloadingManager(num_chunks=8, mmap_region=region)
            config = {
                "type": "UndercroftTier", "module_path": "undercroft.vllm.tier", "model": "none",
                "socket": str(self.daemon.socket), "lookup_deadline": 5.0,
            }
            view = primary.get_kv_memoryview()
            tier = SecondaryTierFactory.create_secondary_tier(config, view, spec())
            self.assertTrue(tier._tier.client.wait_connected(PATIENCE))
            return TieringOffloadingManager(primary, [tier]), view.cast("B"), tier

        wanted = keys(range(6))
        first, memory, tier = manager("a")
        context = ReqContext("a")
        for at, key in enumerate(wanted):
            context.set_offload_key_position(key, (at + 1) * TOKENS)
        first.on_new_request(context)
        placed = first.prepare_store(wanted, context)
        for n, chunk in enumerate(placed.store_spec.chunk_ids):
            memory[int(chunk) * CHUNK_BYTES : (int(chunk) + 1) * CHUNK_BYTES] = data(n)
        first.complete_store(wanted, context)
        until = time.monotonic() + PATIENCE
        while first._jobs:
            self.assertLess(time.monotonic(), until)
            first.on_schedule_end(step)
            time.sleep(0.005)
        first.reset_cache()
        first.on_request_finished(context)
        memory.release()
        tier.shutdown()
        first.primary_tier.shutdown()

        second, memory, tier = manager("b")
        context = ReqContext("b")
        second.on_new_request(context)
        until = time.monotonic() + PATIENCE
        while any(second.lookup(key, context).name != "HIT" for key in wanted):
            self.assertLess(time.monotonic(), until)
            second.on_schedule_end(step)
            time.sleep(0.005)
        got = second.prepare_load(wanted, context)
        for n, chunk in enumerate(got.chunk_ids):
            start = int(chunk) * CHUNK_BYTES
            self.assertEqual(bytes(memory[start : start + CHUNK_BYTES]), data(n))
        second.complete_load(wanted, context)
        second.on_request_finished(context)
        memory.release()
        tier.shutdown()
        second.primary_tier.shutdown()


if __name__ == "__main__":
    unittest.main()
