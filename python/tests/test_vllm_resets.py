"""What a reset of the engine's caches finds of stores and loads under way, and leaves of them."""

from __future__ import annotations

import unittest

from test_vllm_scheduler import Bench
from undercroft.vllm import events
from undercroft.vllm.events import Announced, Maker
from undercroft.vllm.messages import Reports, Run, Step
from vllm_fakes import PAGE, Heard, Output, Pool, Request, loaded

try:
    from vllm.v1.core.block_pool import BlockPool

    MISSING = None
except ImportError as error:
    MISSING = str(error)


def storing(bench: Bench, name: str = "a", tokens: int = PAGE * 2 + 1) -> tuple[Request, int]:
    """A request whose blocks 1 and 2 are in a store, and the store's number."""
    request = Request(name, range(tokens))
    bench.half.claim(request, 0)
    (job,) = bench.run(request, [1, 2, 3], 0, PAGE * 2 + 1).stores
    return request, job.number


class OfTheEngine(unittest.TestCase):
    def test_a_store_under_way_does_not_keep_the_engine_from_a_reset(self) -> None:
        bench = Bench()
        _, number = storing(bench)
        self.assertTrue(bench.pool.reset_prefix_cache())
        self.assertEqual(bench.pool.held, [1, 2], "the store still reads them")
        bench.half.heard(Heard(kv_connector_worker_meta=Reports({number: (1, True)})))
        self.assertEqual(bench.pool.held, [])

    def test_a_block_of_a_request_keeps_it_as_ever(self) -> None:
        bench = Bench()
        storing(bench)
        bench.pool.touch([bench.pool.blocks[2]])
        self.assertFalse(bench.pool.reset_prefix_cache())
        self.assertEqual([b.ref_cnt for b in bench.pool.blocks[1:4]], [1, 2, 0])

    def test_a_reset_that_raises_leaves_the_blocks_held(self) -> None:
        def broken() -> bool:
            raise RuntimeError("broken")

        pool = Pool()
        pool.reset_prefix_cache = broken  # type: ignore[method-assign]
        bench = Bench()
        bench.pool = pool
        bench.half.bind_pool(pool)
        storing(bench)
        self.assertRaises(RuntimeError, pool.reset_prefix_cache)
        self.assertEqual(pool.held, [1, 2])

    @unittest.skipIf(MISSING is not None, f"needs vllm: {MISSING}")
    def test_the_engines_own_pool_never_gives_away_what_is_in_a_store(self) -> None:
        pool = BlockPool(num_gpu_blocks=8, enable_caching=True, hash_block_size=PAGE)
        bench = Bench()
        bench.half.bind_pool(pool)
        taken = pool.get_new_blocks(3)
        self.assertEqual([block.block_id for block in taken], [1, 2, 3])
        _, number = storing(bench)
        self.assertFalse(pool.reset_prefix_cache())
        pool.free_blocks(taken)  # the request ends
        self.assertTrue(pool.reset_prefix_cache())
        others = pool.get_new_blocks(pool.get_num_free_blocks())
        self.assertEqual(sorted(block.block_id for block in others), [3, 4, 5, 6, 7])
        pool.free_blocks(others)
        bench.half.heard(Heard(kv_connector_worker_meta=Reports({number: (1, True)})))
        self.assertEqual(pool.get_num_free_blocks(), 7)


class OfTheConnector(unittest.TestCase):
    def test_running_requests_do_not_offer_what_they_computed_before(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 5 + 1))
        bench.half.claim(request, 0)
        blocks = [1, 2, 3, 4, 5, 6]
        bench.pool.touch(bench.pool.blocks[1:7])  # the request's own
        bench.run(request, blocks, 0, PAGE * 2)
        self.assertFalse(bench.pool.reset_prefix_cache())
        bench.half.forget()
        self.assertEqual(bench.run(request, blocks, PAGE * 2, PAGE * 2).stores, [])
        # Nor does one that begins in the engine's blocks of before.
        other = Request("b", range(PAGE * 5 + 1))
        bench.half.claim(other, PAGE * 2)
        self.assertEqual(bench.run(other, blocks, PAGE * 2, PAGE * 2).stores, [])

    def test_once_the_engine_has_reset_its_own_cache_pages_are_offered_again(self) -> None:
        bench = Bench()
        bench.half.forget()
        request = Request("a", range(PAGE * 2 + 1))
        bench.half.claim(request, 0)
        self.assertEqual(bench.run(request, [1, 2, 3], 0, PAGE * 2 + 1).stores, [])
        bench.half.finished(request, ([1, 2, 3],))
        self.assertTrue(bench.pool.reset_prefix_cache())
        storing(bench, "b")
        self.assertTrue(bench.pool.reset_prefix_cache())
        bench.half.forget()
        again = Request("c", range(PAGE * 2 + 1))
        bench.half.claim(again, 0)
        (job,) = bench.run(again, [4, 5, 6], 0, PAGE * 2 + 1).stores
        self.assertEqual((job.first, job.runs[0].blocks), (0, (4, 5)))

    def test_a_reset_of_long_ago_is_not_taken_for_this_one(self) -> None:
        bench = Bench()
        self.assertTrue(bench.pool.reset_prefix_cache())
        bench.half.step(Output({}, {}))
        bench.half.forget()
        request = Request("a", range(PAGE * 2 + 1))
        bench.half.claim(request, 0)
        self.assertEqual(bench.run(request, [1, 2, 3], 0, PAGE * 2 + 1).stores, [])

    def test_loads_that_were_planned_or_begun_fail(self) -> None:
        from test_vllm_worker import bench as worker_bench
        from test_vllm_worker import load_job

        bench = Bench()
        first, second = Request("a", range(PAGE * 3 + 1)), Request("b", range(PAGE * 3 + 1))
        bench.daemon.keep(first, 3)
        bench.half.claim(first, 0)
        bench.half.allocated(first, ([1, 2, 3],), PAGE * 3)
        self.assertFalse(bench.half.step(Output({}, {})).forgets)
        bench.half.claim(second, 0)
        bench.half.allocated(second, ([4, 5, 6],), PAGE * 3)
        bench.half.forget()
        step = bench.half.step(Output({}, {}))
        self.assertTrue(step.forgets)
        self.assertEqual([(job.req_id, job.keys) for job in step.loads], [("b", b"")])
        self.assertFalse(bench.half.step(Output({}, {})).forgets)

        worker, (space,) = worker_bench()
        worker.load(Step(1, [load_job(Run(0, (1, 2, 3, 4)))]))
        worker.load(Step(2, [load_job(Run(0, (5, 6)), req="c")], forgets=True))
        for task in space.tasks:
            task.value = loaded(4)
        told = worker.poll()
        self.assertEqual((told.requests, told.blocks), ({"a", "c"}, {1, 2, 3, 4}))


class Events(unittest.TestCase):
    def setUp(self) -> None:
        def removed(**said: object) -> object:
            return "removed", said["block_hashes"]

        def stored(**said: object) -> object:
            return "stored", said["block_hashes"]

        self.bench = Bench()
        maker = Maker(stored, removed, lambda value: value, "CPU", [{}])
        self.bench.half.announce(Announced(maker, PAGE, PAGE))

    def take(self) -> list[object]:
        assert self.bench.half.announced is not None
        return self.bench.half.announced.take()

    def test_what_can_no_longer_be_found_is_told_as_removed_and_anew_when_stored_again(
        self,
    ) -> None:
        bench = self.bench
        request, number = storing(bench)
        bench.half.heard(Heard(kv_connector_worker_meta=Reports({number: (1, True)})))
        hashes = request.block_hashes[:2]
        self.assertEqual(self.take(), [("stored", hashes)])
        self.assertTrue(bench.pool.reset_prefix_cache())
        bench.half.forget()
        self.assertEqual(self.take(), [("removed", hashes)])
        _, number = storing(bench, "b")
        bench.half.heard(Heard(kv_connector_worker_meta=Reports({number: (1, True)})))
        self.assertEqual(self.take(), [("stored", hashes)])

    def test_a_store_that_ends_after_it_is_not_told(self) -> None:
        _, number = storing(self.bench)
        self.bench.half.forget()
        told = Reports({number: (1, True)})
        self.bench.half.heard(Heard(kv_connector_worker_meta=told))
        self.assertEqual(self.take(), [])

    def test_what_is_no_longer_remembered_is_told_as_removed(self) -> None:
        bound, events.MAX_ANNOUNCED = events.MAX_ANNOUNCED, 1
        try:
            request, number = storing(self.bench)
            told = Reports({number: (1, True)})
            self.bench.half.heard(Heard(kv_connector_worker_meta=told))
        finally:
            events.MAX_ANNOUNCED = bound
        hashes = request.block_hashes
        self.assertEqual(self.take(), [("stored", hashes[:2]), ("removed", hashes[:1])])

    def test_what_could_not_be_told_is_told_later(self) -> None:
        bound, events.MAX_EVENTS = events.MAX_EVENTS, 0
        try:
            _, number = storing(self.bench)
            told = Reports({number: (1, True)})
            self.bench.half.heard(Heard(kv_connector_worker_meta=told))
        finally:
            events.MAX_EVENTS = bound
        self.assertEqual(self.take(), [])
        request, number = storing(self.bench, "b")
        self.bench.half.heard(Heard(kv_connector_worker_meta=Reports({number: (1, True)})))
        self.assertEqual(self.take(), [("stored", request.block_hashes[:2])])


if __name__ == "__main__":
    unittest.main()
