"""The connector's scheduler half: what it claims, what it stores, what it forgets."""

from __future__ import annotations

import queue
import random
import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

from undercroft.vllm import versions
from undercroft.vllm.events import Announced, Maker
from undercroft.vllm.messages import Reports
from undercroft.vllm.scheduler import Scheduler
from undercroft.vllm.settings import Settings, checked
from vllm_fakes import PAGE, Broken, Daemon, Family, Heard, Output, Pool, Request, table

SHIM = versions.TABLE[0, 32]


class Bench:
    """A scheduler half between a pool and a daemon."""

    def __init__(
        self, workers: int = 1, spaces: int = 1, blocks: int = 64, **extra: object
    ) -> None:
        self.daemon = Daemon(spaces)
        self.pool = Pool(blocks)
        settings = checked(extra) if extra else Settings()
        self.half = Scheduler(settings, SHIM, PAGE, PAGE, workers)
        self.half.bind_pool(self.pool)
        self.half.bind_daemon(self.daemon, list(range(spaces)), Family())

    def run(self, request: Request, blocks: list[int], computed: int, tokens: int) -> object:
        """One step of a running request."""
        request.num_computed_tokens = computed
        return self.half.step(Output({request.request_id: tokens}, {request.request_id: (blocks,)}))


class Claims(unittest.TestCase):
    def test_a_total_miss_claims_nothing_and_asks_once_boundedly(self) -> None:
        bench = Bench(first_slice_pages=4)
        request = Request("a", range(PAGE * 20))
        self.assertEqual(bench.half.claim(request, 0), 0)
        self.assertEqual(bench.half.claim(request, 0), 0)
        self.assertEqual(bench.daemon.asked, [4])

    def test_the_last_token_is_never_claimed(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 4))
        bench.daemon.keep(request, 4)
        self.assertEqual(bench.half.claim(request, 0), PAGE * 3)
        longer = Request("b", range(PAGE * 4 + 1))
        self.assertEqual(bench.half.claim(longer, 0), PAGE * 4)

    def test_only_what_every_rank_holds_is_claimed(self) -> None:
        bench = Bench(spaces=3)
        request = Request("a", range(PAGE * 6 + 1))
        bench.daemon.keep(request, 6, [0, 1])
        self.assertEqual(bench.half.claim(request, 0), 0)
        bench.daemon.keep(request, 2, [2])
        other = Request("b", range(PAGE * 6 + 1))
        self.assertEqual(bench.half.claim(other, 0), PAGE * 2)

    def test_a_local_hit_is_taken_off_and_placed_right(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 6 + 1))
        bench.daemon.keep(request, 5)
        self.assertEqual(bench.half.claim(request, PAGE * 2), PAGE * 3)
        # The engine still says that nothing is computed when it allocates.
        self.assertEqual(request.num_computed_tokens, 0)
        bench.half.allocated(request, ([1, 2, 3, 4, 5, 6],), PAGE * 3)
        job = bench.half.step(Output({}, {})).loads[0]
        self.assertEqual(job.runs[0].blocks, (3, 4, 5))
        self.assertEqual(job.keys, Family().keys(request.block_hashes[2:5]))

    def test_the_engine_may_take_less_than_was_claimed(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 6 + 1))
        bench.daemon.keep(request, 6)
        self.assertEqual(bench.half.claim(request, 0), PAGE * 6)
        bench.half.allocated(request, ([1, 2, 3, 4, 5, 6, 7],), PAGE * 4)
        job = bench.half.step(Output({}, {})).loads[0]
        self.assertEqual((job.runs[0].blocks, job.pages), ((1, 2, 3, 4), 4))

    def test_asked_again_after_a_load_it_answers_nothing_until_preempted(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        self.assertEqual(bench.half.claim(request, 0), PAGE * 3)
        bench.half.allocated(request, ([1, 2, 3],), PAGE * 3)
        bench.half.step(Output({}, {}))
        bench.half.heard(Heard(finished_recving={"a"}, invalid_block_ids={1}))
        bench.half.known(request).seen_at = float("-inf")  # as if asked much later
        self.assertEqual(bench.half.claim(request, 0), 0)
        request.num_preemptions = 1
        self.assertEqual(bench.half.claim(request, 0), PAGE * 3)

    def test_nothing_is_asked_of_a_daemon_that_is_not_there(self) -> None:
        bench = Bench()
        bench.daemon.state = "hung"
        self.assertEqual(bench.half.claim(Request("a", range(PAGE * 3)), 0), 0)
        self.assertEqual(bench.daemon.asked, [])

    def test_a_lookup_without_an_answer_is_not_repeated_at_once(self) -> None:
        bench = Bench()
        bench.daemon.why = "deadline"
        request = Request("a", range(PAGE * 3))
        for _ in range(5):
            self.assertEqual(bench.half.claim(request, 0), 0)
        self.assertEqual(len(bench.daemon.asked), 1)
        self.assertEqual(bench.half.count["lookup_missed"], 1)

    def test_what_is_slower_than_computing_is_not_claimed(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        bench.daemon.worth = 1
        self.assertEqual(bench.half.claim(request, 0), PAGE)
        self.assertEqual(bench.daemon.weighed, [(5.0, 0)])
        self.assertEqual(bench.half.count["unworthy_pages"], 2)
        bench.daemon.worth, bench.daemon.estimate = None, 6.0
        late = Request("b", range(PAGE * 3 + 1))
        self.assertEqual(bench.half.claim(late, 0), 0)
        self.assertTrue(bench.daemon.holds[1].dropped)

    def test_a_beginning_not_worth_loading_alone_may_be_with_the_rest(self) -> None:
        bench = Bench(first_slice_pages=2)
        request = Request("a", range(PAGE * 6 + 1))
        bench.daemon.keep(request, 6)
        bench.daemon.worth = 0
        bench.half.claim(request, 0)
        self.assertEqual(bench.daemon.asked, [2, 6])

    def test_few_tokens_are_computed(self) -> None:
        bench = Bench(min_tokens=PAGE * 3)
        request = Request("a", range(PAGE * 5 + 1))
        bench.daemon.keep(request, 2)
        self.assertEqual(bench.half.claim(request, 0), 0)
        self.assertEqual(bench.half.claim(request, PAGE * 3), 0)

    def test_a_request_that_could_not_be_named_is_not_cached(self) -> None:
        lora = SimpleNamespace(lora_name="x", lora_path="x", lora_int_id=1)
        item = SimpleNamespace(identifier="0" * 64)
        for name, broken in (
            ("adapter", "undercroft.vllm.adapters.Adapters.salt"),
            ("picture", "undercroft.vllm.scheduler.are_named_by_content"),
        ):
            with self.subTest(name):
                bench = Bench()
                request = Request("a", range(PAGE * 3 + 1), lora if name == "adapter" else None)
                request.mm_features = [item] if name == "picture" else []
                plain = Request("b", range(PAGE * 3 + 1))
                bench.daemon.keep(plain, 3)
                for hook in (bench.half.arrived, lambda one: bench.half.claim(one, 0)):
                    with mock.patch(broken, side_effect=Broken.kind("no thread")):
                        try:
                            self.assertIn(hook(request), (None, 0))
                        except Broken.kind:
                            pass
                step = bench.run(request, [1, 2, 3, 4], 0, PAGE * 3 + 1)
                bench.half.finished(request, ([1, 2, 3, 4],))
                self.assertEqual((step.stores, bench.half.step(Output({}, {})).stores), ([], []))

    def test_a_picture_that_joins_a_conversation_is_looked_at(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE + 1))
        bench.half.claim(request, 0)
        (job,) = bench.run(request, [1, 2], 0, PAGE + 1).stores
        self.assertEqual(job.pages, 1)
        request.mm_features.append(SimpleNamespace(identifier="0" * 64))
        request.grow(range(PAGE))
        (job,) = bench.run(request, [1, 2, 3], PAGE + 1, PAGE).stores
        self.assertEqual((job.first, job.pages), (1, 1))
        request.mm_features.append(SimpleNamespace(identifier="img-0"))
        request.grow(range(PAGE))
        self.assertEqual(bench.run(request, [1, 2, 3, 4], PAGE * 2 + 1, PAGE).stores, [])
        request.num_computed_tokens = PAGE * 3 + 1
        bench.half.finished(request, ([1, 2, 3, 4],))
        self.assertEqual(bench.half.step(Output({}, {})).stores, [])

    def test_an_adapter_that_cannot_be_read_is_not_cached(self) -> None:
        bench = Bench()
        lora = SimpleNamespace(lora_name="x", lora_path="/nowhere/at/all", lora_int_id=1)
        request = Request("a", range(PAGE * 3 + 1), lora)
        bench.daemon.keep(request, 3)
        self.assertEqual(bench.half.claim(request, 0), 0)
        self.assertEqual(bench.run(request, [1, 2, 3, 4], 0, PAGE * 3).stores, [])


class Holds(unittest.TestCase):
    def test_a_hold_is_given_back_once_the_load_is_over(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        bench.half.claim(request, 0)
        bench.half.allocated(request, ([1, 2, 3],), PAGE * 3)
        bench.half.step(Output({}, {}))
        self.assertFalse(bench.daemon.holds[0].dropped)
        bench.half.heard(Heard(finished_recving={"a"}))
        self.assertTrue(bench.daemon.holds[0].dropped)

    def test_a_request_that_ends_before_it_was_scheduled_gives_its_hold_back(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        bench.half.claim(request, 0)
        bench.half.finished(request, ([],))
        self.assertTrue(bench.daemon.holds[0].dropped)
        self.assertEqual(bench.half._known, {})

    def test_a_longer_lookup_gives_the_first_slices_hold_back(self) -> None:
        bench = Bench(first_slice_pages=2)
        request = Request("a", range(PAGE * 6 + 1))
        bench.daemon.keep(request, 6)
        self.assertEqual(bench.half.claim(request, 0), PAGE * 6)
        self.assertEqual(bench.daemon.asked, [2, 6])
        self.assertEqual([hold.dropped for hold in bench.daemon.holds], [True, False])

    def test_preemption_gives_it_back(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        bench.half.claim(request, 0)
        request.num_preemptions = 1
        bench.half.claim(request, 0)
        self.assertEqual([hold.dropped for hold in bench.daemon.holds], [True, False])

    def test_what_the_engine_does_not_take_is_kept_no_longer(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        self.assertEqual(bench.half.claim(request, 0), PAGE * 3)
        bench.half.unused(request)
        self.assertTrue(bench.daemon.holds[0].dropped)

    def test_the_end_of_an_asynchronous_load_is_not_taken_for_its_refusal(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        bench.half.claim(request, 0)
        bench.half.allocated(request, ([1, 2, 3],), PAGE * 3)
        bench.half.unused(request)
        self.assertFalse(bench.daemon.holds[0].dropped)

    def test_a_hold_that_cannot_be_given_back_ends_its_load_all_the_same(self) -> None:
        bench = Bench()
        for name in "ab":
            request = Request(name, range(PAGE * 3 + 1))
            bench.daemon.keep(request, 3)
            bench.half.claim(request, 0)
            bench.half.allocated(request, ([1, 2, 3],), PAGE * 3)
        for hold in bench.daemon.holds:
            hold.breaks = True
        bench.half.step(Output({}, {}))
        bench.half.heard(Heard(finished_recving={"a", "b"}))
        self.assertEqual(bench.half._loading, {})


class Settling(unittest.TestCase):
    def test_events_that_break_keep_no_blocks_and_no_layers(self) -> None:
        bench = Bench()
        maker = Maker(dict, dict, lambda value: value, "CPU", [{}])
        bench.half.announce(Announced(maker, PAGE, PAGE))
        jobs = []
        for at, name in enumerate("ab"):
            request = Request(name, range(at * 1000, at * 1000 + PAGE * 2 + 1))
            bench.half.claim(request, 0)
            blocks = [at * 3 + 1, at * 3 + 2, at * 3 + 3]
            jobs += bench.run(request, blocks, 0, PAGE * 2 + 1).stores
            request.block_hashes.clear()  # its tokens were taken back
        bench.half._layered[9] = 0
        told = Reports({job.number: (1, True) for job in jobs}, {9: 1})
        bench.half.heard(Heard(kv_connector_worker_meta=told))
        self.assertEqual((bench.pool.held, bench.half._layered), ([], {}))

    def test_events_say_of_each_block_what_its_hash_binds_beside_tokens(self) -> None:
        bench = Bench()
        asked = []

        def extra(request: Any, bounds: Any) -> list[str]:
            asked.append(list(bounds))
            return [f"{request.request_id} {start}" for start in bounds[:-1]]

        told = [{"group_idx": 0, "kv_cache_spec_kind": "full_attention"}]
        maker = Maker(dict, dict, lambda value: value, "CPU", told, extra)
        announced = Announced(maker, PAGE, PAGE)
        bench.half.announce(announced)
        request = Request("a", range(PAGE * 3 + 1))
        bench.half.claim(request, 0)
        jobs = bench.run(request, [1, 2, 3, 4], 0, PAGE * 3 + 1).stores
        reports = Reports({job.number: (3, True) for job in jobs}, {})
        bench.half.heard(Heard(kv_connector_worker_meta=reports))
        (event,) = announced.take()
        self.assertEqual(asked, [[0, PAGE, PAGE * 2, PAGE * 3]])
        self.assertEqual(event["extra_keys"], [f"a {page * PAGE}" for page in range(3)])
        self.assertEqual(event["kv_cache_spec_kind"], "full_attention")
        self.assertEqual(len(event["block_hashes"]), 3)

    def test_a_store_that_cannot_be_settled_does_not_keep_the_others(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 2 + 1))
        bench.half.claim(request, 0)
        jobs = bench.run(request, [1, 2, 3], 0, PAGE + 1).stores
        jobs += bench.run(request, [1, 2, 3], PAGE + 1, PAGE).stores
        bench.half._stores._pinned[jobs[0].number].blocks.append(None)
        told = Reports({job.number: (1, True) for job in jobs})
        bench.half.heard(Heard(kv_connector_worker_meta=told))
        self.assertEqual(bench.pool.held, [1])
        self.assertFalse(bench.half.has_pending)

    def test_the_client_is_asked_once_a_step_and_only_where_there_is_something_to_store(
        self,
    ) -> None:
        bench = Bench()
        requests = [Request(str(at), range(at * 1000, at * 1000 + PAGE + 1)) for at in range(9)]
        for request in requests:
            bench.half.claim(request, 0)
        bench.daemon.states_asked = 0
        tables = {one.request_id: ([at + 1],) for at, one in enumerate(requests)}
        step = bench.half.step(Output({one.request_id: PAGE + 1 for one in requests}, tables))
        self.assertEqual((len(step.stores), bench.daemon.states_asked), (9, 1))
        for request in requests:
            request.num_computed_tokens = PAGE + 1
        bench.half.step(Output({one.request_id: 1 for one in requests}, tables))
        self.assertEqual(bench.daemon.states_asked, 1)


class Waiting(unittest.TestCase):
    def setUp(self) -> None:
        self.now = 5.0
        self.bench = Bench()
        self.bench.half._stores._clock = lambda: self.now
        self.numbers = []
        for at, name in enumerate("ab"):
            request = Request(name, range(at * 1000, at * 1000 + PAGE * 2 + 1))
            self.bench.half.claim(request, 0)
            blocks = [at * 3 + 1, at * 3 + 2, at * 3 + 3]
            self.bench.pool.touch([self.bench.pool.blocks[block] for block in blocks])
            self.numbers += self.bench.run(request, blocks, 0, PAGE * 2 + 1).stores

    def end(self, *blocks: int) -> None:
        self.bench.pool.free_blocks([self.bench.pool.blocks[block] for block in blocks])

    def told(self, at: int) -> None:
        reports = Reports({self.numbers[at].number: (1, True)})
        self.bench.half.heard(Heard(kv_connector_worker_meta=reports))

    def test_blocks_that_requests_have_as_well_are_not_waited_for(self) -> None:
        self.assertFalse(self.bench.half.will_free)
        self.end(1, 2, 3)
        self.assertTrue(self.bench.half.will_free)
        self.told(0)
        self.assertFalse(self.bench.half.will_free)

    def test_it_is_not_waited_for_long_unless_stores_end(self) -> None:
        self.end(1, 2, 3, 4, 5, 6)
        self.assertTrue(self.bench.half.will_free)
        self.now += 0.09
        self.assertTrue(self.bench.half.will_free)
        self.told(0)
        self.now += 0.05
        self.assertTrue(self.bench.half.will_free)
        self.now += 0.11
        self.assertFalse(self.bench.half.will_free)


class Stores(unittest.TestCase):
    def test_full_pages_are_stored_once_in_chain_order(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 5))
        bench.half.claim(request, 0)
        step = bench.run(request, [1, 2, 3, 4], 0, PAGE * 3 + 5)
        (job,) = step.stores
        self.assertEqual((job.first, job.runs[0].blocks), (0, (1, 2, 3)))
        self.assertEqual((job.hashes, job.pages), (request.block_hashes, 3))
        self.assertEqual(bench.run(request, [1, 2, 3, 4], PAGE * 3 + 5, 1).stores, [])
        request.grow(range(11))
        (next_job,) = bench.run(request, [1, 2, 3, 4, 5], PAGE * 3 + 15, 1).stores
        self.assertEqual((next_job.first, next_job.runs[0].blocks), (3, (4,)))
        self.assertEqual((next_job.hashes, next_job.pages), (request.block_hashes[2:4], 1))

    def test_tokens_the_engine_only_guessed_are_not_stored(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 2 - 1))
        bench.half.claim(request, 0)
        (job,) = bench.run(request, [1, 2, 3], 0, PAGE * 2 + 3).stores
        self.assertEqual(job.runs[0].blocks, (1,))

    def test_the_blocks_of_new_requests_are_those_told_to_workers(self) -> None:
        bench = Bench()
        requests = [Request(str(at), range(at * 1000, at * 1000 + PAGE + 1)) for at in range(2)]
        for request in requests:
            bench.half.claim(request, 0)
        new = SimpleNamespace(req_id="0", block_ids=([5, 6],))
        output = Output({"0": PAGE + 1, "1": PAGE + 1}, {"1": ([7, 8],)}, [new])
        jobs = bench.half.step(output).stores
        self.assertEqual([job.runs[0].blocks for job in jobs], [(5,), (7,)])

    def test_blocks_in_several_stores_count_once(self) -> None:
        bench = Bench(blocks=64, max_pinned_share=0.5)
        requests = [Request(str(at), [*range(PAGE * 8), *range(at * 1000, at * 1000 + PAGE + 1)])
                    for at in range(1, 9)]
        jobs = []
        for at, request in enumerate(requests):
            bench.half.claim(request, PAGE * 8)
            blocks = [*range(1, 9), 20 + at, 40 + at]
            jobs += bench.run(request, blocks, PAGE * 8, PAGE + 1).stores
        self.assertEqual([job.pages for job in jobs], [9] * 8)
        self.assertEqual(bench.half._stores.pinned_blocks, 16)
        self.assertEqual(bench.pool.blocks[1].ref_cnt, 8)
        self.assertTrue(bench.half.will_free, "the engine has let go of all of them")
        bench.pool.touch([bench.pool.blocks[block] for block in range(1, 9)])
        for job in jobs[::2]:
            bench.half._stores.report(job.number, 1, True)
        self.assertEqual(bench.half._stores.pinned_blocks, 12)
        self.assertTrue(bench.half.will_free, "not of those of one store alone")
        bench.pool.touch([bench.pool.blocks[20 + at] for at in range(1, 8, 2)])
        self.assertFalse(bench.half.will_free)
        for job in jobs[1::2]:
            bench.half._stores.report(job.number, 1, True)
        self.assertEqual(bench.half._stores.pinned_blocks, 0)
        self.assertEqual((bench.pool.blocks[1].ref_cnt, bench.half._stores._most), (1, 0))

    def test_at_random_the_budget_holds_and_is_used(self) -> None:
        for seed in range(60):
            rng = random.Random(seed)
            bench = Bench(blocks=80, max_pinned_share=0.25)
            stores, jobs = bench.half._stores, []
            for name in range(80):
                shared, own = rng.randrange(9), rng.randrange(1, 4)
                request = Request(f"{seed}-{name}", range(name, name + PAGE * (shared + own)))
                blocks = [*range(1, shared + 1), *rng.sample(range(20, 80), own)]
                bench.half.known(request)
                before = stores.pinned_blocks
                planned = bench.run(request, blocks, 0, PAGE * len(blocks)).stores
                pages = sum(job.pages for job in planned)
                room = 20 - before
                self.assertGreaterEqual(pages, min(room, len(blocks)))
                jobs += [job.number for job in planned]
                self.assertLessEqual(stores.pinned_blocks, 20)
                self.assertLessEqual(stores.pinned_blocks, stores._most - stores._twice)
                rng.shuffle(jobs)
                while jobs and rng.random() < 0.4:
                    stores.report(jobs.pop(), 1, True)
                self.assertLessEqual(stores.pinned_blocks, stores._most - stores._twice)
                held = [block for block in bench.pool.blocks if block.ref_cnt]
                self.assertEqual(stores.pinned_blocks, len(held))
                self.assertEqual(stores._has_own(), bool(held), "nobody else has any")
            for job in jobs:
                stores.report(job, 1, True)
            self.assertEqual((bench.pool.held, stores._most, stores._twice), ([], 0, 0))

    def test_blocks_are_held_until_every_worker_is_done(self) -> None:
        bench = Bench(workers=2)
        request = Request("a", range(PAGE * 2 + 1))
        bench.half.claim(request, 0)
        (job,) = bench.run(request, [1, 2, 3], 0, PAGE * 2 + 1).stores
        bench.half.finished(request, ([1, 2, 3],))
        self.assertEqual(bench.pool.held, [1, 2])
        self.assertTrue(bench.half.has_pending)
        bench.half.heard(Heard(kv_connector_worker_meta=Reports({job.number: (1, True)})))
        self.assertEqual(bench.pool.held, [1, 2])
        bench.half.heard(Heard(kv_connector_worker_meta=Reports({job.number: (1, False)})))
        self.assertEqual(bench.pool.held, [])
        self.assertFalse(bench.half.has_pending)

    def test_the_engines_own_hit_is_offered_where_the_daemon_lacks_it(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 5 + 1))
        bench.daemon.keep(request, 1)
        self.assertEqual(bench.half.claim(request, PAGE * 3), 0)
        (job,) = bench.run(request, [1, 2, 3, 4, 5, 6], PAGE * 3, PAGE * 2 + 1).stores
        self.assertEqual((job.first, job.runs[0].blocks), (1, (2, 3, 4, 5)))

    def test_a_preempted_request_offers_again_only_what_it_computes_again(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 4 + 1))
        bench.half.claim(request, 0)
        bench.run(request, [1, 2, 3, 4, 5], 0, PAGE * 4 + 1)
        request.num_preemptions, request.num_computed_tokens = 1, 0
        bench.half.finished(request, ([],))  # aborted while it waits: nothing of it is computed
        self.assertEqual(bench.half.step(Output({}, {})).stores, [])
        again = Request("b", range(PAGE * 4 + 1))
        bench.half.claim(again, 0)
        bench.run(again, [1, 2, 3, 4, 5], 0, PAGE * 4 + 1)
        again.num_preemptions = 1
        (job,) = bench.run(again, [6, 7, 8, 9, 10], PAGE * 2, PAGE * 2 + 1).stores
        self.assertEqual((job.first, job.runs[0].blocks), (2, (8, 9)))

    def test_nothing_is_stored_of_a_load_that_never_came(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        bench.half.claim(request, 0)
        bench.half.allocated(request, ([1, 2, 3],), PAGE * 3)
        request.num_computed_tokens = PAGE * 3  # as the engine says while it waits
        bench.daemon.held[0].clear()
        bench.half.finished(request, ([1, 2, 3],))
        self.assertEqual(bench.half.step(Output({}, {})).stores, [])
        self.assertFalse(bench.daemon.holds[0].dropped, "workers are still loading")
        bench.half.heard(Heard(finished_recving={"a"}))
        self.assertTrue(bench.daemon.holds[0].dropped)
        self.assertEqual(bench.half._loading, {})

    def test_of_an_aborted_request_only_what_was_computed_is_stored(self) -> None:
        bench = Bench(max_pinned_share=0.02)
        request = Request("a", range(PAGE * 5 + 1))
        bench.half.claim(request, 0)
        (job,) = bench.run(request, [1, 2, 3, 4, 5, 6], 0, PAGE * 2 + 3).stores
        bench.half.heard(Heard(kv_connector_worker_meta=Reports({job.number: (1, True)})))
        request.num_computed_tokens = PAGE * 2 + 3
        bench.half._stores._budget = 9
        bench.half.finished(request, ([1, 2, 3, 4, 5, 6],))
        (rest,) = bench.half.step(Output({}, {})).stores
        self.assertEqual((rest.first, rest.runs[0].blocks), (1, (2,)))

    def test_a_load_told_as_failed_by_request_takes_the_cursor_back(self) -> None:
        bench = Bench(spaces=2)
        request = Request("a", range(PAGE * 4 + 1))
        bench.daemon.keep(request, 4)
        bench.half.claim(request, 0)
        bench.half.allocated(request, ([1, 2, 3, 4], [5, 6, 7, 8]), PAGE * 4)
        bench.half.step(Output({}, {}))
        bench.half.heard(Heard(finished_recving={"a"}, failed_recving={"a"}))
        tables = ([1, 2, 3, 4, 9], [5, 6, 7, 8, 10])
        (job,) = bench.half.step(Output({"a": PAGE * 4 + 1}, {"a": tables})).stores
        self.assertEqual((job.first, job.runs[1].blocks), (0, (5, 6, 7, 8)))

    def test_after_a_failed_load_the_recomputed_pages_are_offered(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 4 + 1))
        bench.daemon.keep(request, 4)
        bench.half.claim(request, 0)
        bench.half.allocated(request, ([1, 2, 3, 4],), PAGE * 4)
        bench.half.step(Output({}, {}))
        bench.half.heard(Heard(finished_recving={"a"}, invalid_block_ids={3, 4}))
        (job,) = bench.run(request, [1, 2, 3, 4, 5], PAGE * 2, PAGE * 2 + 1).stores
        self.assertEqual((job.first, job.runs[0].blocks), (2, (3, 4)))

    def test_too_many_pinned_blocks_wait_for_a_later_step(self) -> None:
        bench = Bench(blocks=8, max_pinned_share=0.25)
        request = Request("a", range(PAGE * 5 + 1))
        bench.half.claim(request, 0)
        (job,) = bench.run(request, [1, 2, 3, 4, 5, 6], 0, PAGE * 5 + 1).stores
        self.assertEqual(job.runs[0].blocks, (1, 2))
        self.assertEqual(bench.run(request, [1, 2, 3, 4, 5, 6], PAGE * 5 + 1, 1).stores, [])
        bench.half.heard(Heard(kv_connector_worker_meta=Reports({job.number: (1, True)})))
        (rest,) = bench.run(request, [1, 2, 3, 4, 5, 6], PAGE * 5 + 2, 1).stores
        self.assertEqual((rest.first, rest.runs[0].blocks), (2, (3, 4)))

    def test_a_window_that_moved_on_leaves_the_pages_before_it(self) -> None:
        bench = Bench(spaces=2)
        request = Request("a", range(PAGE * 4 + 1))
        bench.half.claim(request, 0)
        request.num_computed_tokens = 0
        tables = ([1, 2, 3, 4, 5], [0, 0, 13, 14, 15])
        (job,) = bench.half.step(Output({"a": PAGE * 4 + 1}, {"a": tables})).stores
        self.assertEqual((job.runs[0].skip, job.runs[0].blocks), (0, (1, 2, 3, 4)))
        self.assertEqual((job.runs[1].skip, job.runs[1].blocks), (2, (13, 14)))
        self.assertEqual(bench.pool.held, [1, 2, 3, 4, 13, 14])

    def test_a_conversation_that_took_tokens_back_is_named_anew(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.half.claim(request, 0)
        bench.run(request, [1, 2, 3, 4], 0, PAGE * 3 + 1)
        del request.all_token_ids[PAGE * 2 :], request.block_hashes[2:]
        request.grow(range(7000, 7000 + PAGE + 1))
        (job,) = bench.run(request, [1, 2, 3, 4], PAGE * 2, PAGE + 1).stores
        self.assertEqual(job.hashes, request.block_hashes[1:3])

    def test_forgetting_makes_every_key_another_one(self) -> None:
        bench = Bench()
        request = Request("a", range(PAGE * 3 + 1))
        bench.daemon.keep(request, 3)
        bench.half.forget()
        self.assertEqual(bench.half.claim(request, 0), 0)


class Prefetching(unittest.TestCase):
    def test_requests_that_wait_behind_others_are_asked_for_and_the_first_is_not(self) -> None:
        asked: queue.Queue[int] = queue.Queue()

        class Lifting:
            def prefetch(self, keys: bytes, *, ttl: float, deadline: float) -> object:
                asked.put(len(keys) // 32)
                return SimpleNamespace(why=None)

        bench = Bench()
        bench.half.bind_daemon(bench.daemon, [Lifting()], Family())
        bench.half.arrived(Request("a", range(PAGE * 3)))
        bench.half.arrived(Request("b", range(PAGE * 5)))
        self.assertEqual(asked.get(timeout=10), 5)
        bench.half.close()
        self.assertTrue(asked.empty())


class Layered(unittest.TestCase):
    def test_nothing_is_stored_until_the_step_with_a_load_is_known_to_be_right(self) -> None:
        bench = Bench(load="layers")
        request = Request("a", range(PAGE * 5 + 1))
        bench.daemon.keep(request, 2)
        self.assertEqual(bench.half.claim(request, 0), PAGE * 2)
        blocks = [1, 2, 3, 4, 5, 6]
        bench.half.allocated(request, (blocks,), PAGE * 2)
        step = bench.run(request, blocks, PAGE * 2, PAGE * 3 + 1)
        self.assertTrue(step.loads[0].by_layer)
        self.assertEqual(step.stores, [])
        bench.half.heard(Heard(kv_connector_worker_meta=Reports(layered={step.number: 1})))
        self.assertTrue(bench.daemon.holds[0].dropped)
        (job,) = bench.run(request, blocks, PAGE * 5 + 1, 1).stores
        self.assertEqual((job.first, job.runs[0].blocks), (2, (3, 4, 5)))

    def test_what_was_computed_upon_a_failed_load_is_offered_only_once_computed_again(self) -> None:
        bench = Bench(load="layers")
        request = Request("a", range(PAGE * 5 + 1))
        bench.daemon.keep(request, 3)
        bench.half.claim(request, 0)
        blocks = [1, 2, 3, 4, 5, 6]
        bench.half.allocated(request, (blocks,), PAGE * 3)
        step = bench.run(request, blocks, PAGE * 3, PAGE * 2 + 1)
        reports = Reports(layered={step.number: 1})
        bench.half.heard(Heard(invalid_block_ids={2, 3}, kv_connector_worker_meta=reports))
        (job,) = bench.run(request, blocks, PAGE, PAGE * 4 + 1).stores
        self.assertEqual((job.first, job.runs[0].blocks), (1, (2, 3, 4, 5)))


if __name__ == "__main__":
    unittest.main()
