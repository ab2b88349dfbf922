"""What lookups may cost a step of the engine's scheduler, whatever the daemon takes for them."""

from __future__ import annotations

import unittest
from types import SimpleNamespace
from typing import Any

from test_vllm_scheduler import Bench
from undercroft.vllm.lookups import MOST_BEGUN
from undercroft.vllm.requests import named
from vllm_fakes import PAGE, Daemon, Family, Output, Request


class Slow(Daemon):
    """Takes its time for each lookup, and gives up at the deadline."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.takes = 0.0
        self.deadlines: list[float] = []
        self.state_after: str | None = None
        """What it is found to be by a lookup."""

    def lookup(self, spaces: list[Any], keys: bytes, **more: Any) -> Any:
        deadline = more["deadline"]
        self.deadlines.append(round(deadline, 6))
        self.now += min(self.takes, deadline)
        self.why = "deadline" if self.takes >= deadline else None
        self.state = self.state_after or self.state
        return super().lookup(spaces, keys, **more)


class OfAStep(unittest.TestCase):
    def bench(self, takes: float, **extra: object) -> tuple[Bench, Slow]:
        bench, daemon = Bench(lookup_deadline_ms=10, **extra), Slow()
        daemon.takes = takes
        bench.half.bind_daemon(daemon, [0], Family())
        bench.half._lookups._clock = lambda: daemon.now
        # One that is next is not asked for before its turn.
        bench.half.arrived(Request("the first", range(9000, 9000 + PAGE * 3)))
        self.assertEqual(daemon.begun, 0)
        return bench, daemon

    def test_lookups_of_one_step_take_one_deadline_together(self) -> None:
        bench, daemon = self.bench(0.004)
        requests = [Request(str(at), range(at * 1000, at * 1000 + PAGE * 3)) for at in range(9)]
        for request in requests:
            daemon.keep(request, 2)
        claims = [bench.half.claim(request, 0) for request in requests]
        self.assertEqual(daemon.deadlines, [0.01, 0.006, 0.002])
        self.assertEqual(round(daemon.now - 100, 6), 0.01)
        self.assertEqual(claims, [PAGE * 2] * 2 + [0] * 7)
        self.assertEqual(bench.half.count["lookup_skipped"], 6)
        # Those it had no time for, and still wait, are asked about in the next.
        bench.half.step(Output({}, {}))
        self.assertEqual(bench.half.claim(requests[5], 0), PAGE * 2)

    def test_what_the_first_slice_found_is_used_where_there_is_no_time_for_more(self) -> None:
        bench, daemon = self.bench(0.0097, first_slice_pages=2)
        request = Request("a", range(PAGE * 6 + 1))
        daemon.keep(request, 6)
        self.assertEqual(bench.half.claim(request, 0), PAGE * 2)
        self.assertEqual(daemon.asked, [2])
        self.assertFalse(daemon.holds[0].dropped)

    def test_an_answer_asked_for_when_a_request_came_is_taken_at_its_turn(self) -> None:
        bench, daemon = self.bench(0.0)
        request = Request("a", range(PAGE * 6 + 1))
        daemon.keep(request, 4)
        bench.half.arrived(request)
        self.assertEqual((daemon.begun, daemon.asked), (1, []))
        self.assertEqual(bench.half.claim(request, 0), PAGE * 4)
        self.assertEqual(daemon.asked, [6], "not asked for again")
        self.assertEqual(bench.half._lookups._begun, 0)

    def test_an_answer_that_is_old_or_of_other_tokens_is_not_taken(self) -> None:
        for case in ("old", "other tokens"):
            with self.subTest(case):
                bench, daemon = self.bench(0.0)
                request = Request("a", range(PAGE * 3 + 1))
                bench.half.arrived(request)
                if case == "old":
                    daemon.now += 1.5
                else:
                    request.all_token_ids = list(range(7, PAGE * 3 + 8))
                    request.block_hashes.clear()
                    request.grow([])
                daemon.keep(request, 3)
                direct: list[float] = []
                real = daemon.lookup

                def lookup(*told: Any, **more: Any) -> Any:
                    direct.append(more["deadline"])
                    return real(*told, **more)

                daemon.lookup = lambda *told, **more: lookup(*told, **more)  # type: ignore[method-assign]
                known = bench.half.known(request)
                begun = known.begun
                known.begun = type("Begun", (), {"result": self.fail})()
                self.assertIsNotNone(begun)
                self.assertEqual(bench.half.claim(request, 0), PAGE * 3)
                self.assertEqual(len(direct), 1)

    def test_what_was_asked_for_is_given_up_with_its_request_and_when_all_is_forgotten(
        self,
    ) -> None:
        bench, daemon = self.bench(0.0)
        requests = [Request(str(at), range(at * 1000, at * 1000 + PAGE * 3)) for at in range(3)]
        for request in requests:
            bench.half.arrived(request)
        self.assertEqual(bench.half._lookups._begun, 3)
        bench.half.finished(requests[0], ([1, 2],))
        self.assertEqual(bench.half._lookups._begun, 2)
        # All of it is the engine's own.
        self.assertEqual(bench.half.claim(requests[1], PAGE * 2), 0)
        bench.half.unused(requests[1])
        self.assertEqual(bench.half._lookups._begun, 1)
        bench.half.forget()
        self.assertEqual(bench.half._lookups._begun, 0)
        self.assertIsNone(bench.half.known(requests[1]).begun)

    def test_what_the_board_has_no_beginning_of_is_not_asked_for(self) -> None:
        bench, daemon = self.bench(0.0)
        daemon.has_board = True
        here, gone = (Request(str(at), range(at * 1000, at * 1000 + PAGE * 3)) for at in range(2))
        daemon.keep(here, 2)
        for request in (here, gone):
            bench.half.arrived(request)
        self.assertEqual(daemon.begun, 1)
        self.assertEqual(bench.half.claim(gone, 0), 0)
        self.assertEqual(daemon.asked, [])
        self.assertEqual(bench.half.claim(here, 0), PAGE * 2)
        self.assertEqual(bench.half.count["absent"], 1)
        # Stored meanwhile, or gone: what the board says counts when the engine asks.
        daemon.keep(gone, 2)
        self.assertEqual(bench.half.claim(gone, 0), PAGE * 2)
        daemon.held[0].clear()
        self.assertEqual(bench.half.claim(here, 0), 0)
        self.assertEqual(bench.half.count["absent"], 2)
        self.assertTrue(daemon.holds[0].dropped)
        for _ in range(9):
            self.assertEqual(bench.half.claim(here, 0), 0)
        self.assertEqual(bench.half.count["absent"], 2, "the same request, and the same answer")
        self.assertEqual(daemon.spared, 2, "and as many lookups")
        daemon.state = "hung"
        other = Request("other", range(PAGE * 7, PAGE * 10))
        self.assertEqual(bench.half.claim(other, 0), 0)
        self.assertEqual(bench.half.claim(Request("short", range(3)), 0), 0)
        self.assertEqual(bench.half.count["absent"], 2, "nobody knows")

    def test_nothing_is_offered_to_a_daemon_that_was_found_to_hang_in_the_same_step(self) -> None:
        for hangs in (False, True):
            with self.subTest(hangs):
                bench, daemon = self.bench(1.0)
                daemon.has_board = True
                gone, here = (Request(str(at), range(at, at + PAGE * 3)) for at in (0, 999))
                daemon.keep(here, 1)
                self.assertEqual(bench.half.claim(gone, 0), 0)
                if hangs:
                    daemon.state_after = "hung"
                self.assertEqual(bench.half.claim(here, 0), 0)
                stores = bench.run(gone, [1, 2, 3], 0, PAGE * 3).stores
                self.assertEqual(len(stores), 0 if hangs else 1)

    def test_what_is_gone_at_its_turn_is_offered_from_its_beginning(self) -> None:
        for why in ("gone", "no daemon"):
            with self.subTest(why):
                bench, daemon = self.bench(0.0)
                daemon.has_board = True
                request = Request("a", range(PAGE * 6 + 1))
                daemon.keep(request, 4)
                bench.half.arrived(request)
                self.assertEqual(bench.half.claim(request, 0), PAGE * 4)
                daemon.now += 2.0
                daemon.held[0].clear()
                daemon.state = "hung" if why == "no daemon" else "connected"
                self.assertEqual(bench.half.claim(request, 0), 0)
                daemon.state = "connected"
                (job,) = bench.run(request, [1, 2, 3, 4, 5, 6, 7], 0, PAGE * 6 + 1).stores
                self.assertEqual((job.first, job.pages), (0, 6))

    def test_a_lookup_under_way_is_given_up_where_the_board_says_it_is_gone(self) -> None:
        bench, daemon = self.bench(0.0)
        daemon.has_board = True
        request = Request("a", range(PAGE * 3 + 1))
        daemon.keep(request, 2)
        bench.half.arrived(request)
        self.assertEqual(bench.half._lookups._begun, 1)
        daemon.held[0].clear()
        self.assertEqual(bench.half.claim(request, 0), 0)
        self.assertEqual((bench.half._lookups._begun, daemon.asked), (0, []))

    def test_the_board_is_asked_by_the_name_that_stores_and_loads_have(self) -> None:
        bench, daemon = self.bench(0.0)
        adapter = bench.half._adapters
        adapter.salt = lambda path: b"of an adapter"  # type: ignore[method-assign]
        asked: list[bytes] = []

        def may_begin(family: Family, value: bytes, *, peek: bool) -> bool:
            asked.append(family.keys([value]))
            return True

        daemon.may_begin = may_begin  # type: ignore[method-assign]
        looked: list[bytes] = []
        real = daemon.lookup

        def lookup(spaces: list[int], keys: bytes, **more: Any) -> Any:
            looked.append(keys[:32])
            return real(spaces, keys, **more)

        daemon.lookup = lookup  # type: ignore[method-assign]
        for forgotten in (False, True):
            for lora in (None, SimpleNamespace(lora_path="somewhere", load_inplace=False)):
                with self.subTest(forgotten=forgotten, lora=lora):
                    request = Request(f"{forgotten} {lora}", range(PAGE * 2 + 1), lora)
                    bench.half.claim(request, 0)
                    (job,) = bench.run(request, [1, 2, 3], 0, PAGE * 2 + 1).stores
                    stored = named(Family().keys, job.salt, job.hashes)
                    self.assertEqual((asked[-1], looked[-1]), (stored[:32], stored[:32]))
                    bench.half._stores.report(job.number, 1, True)
            self.assertTrue(bench.pool.reset_prefix_cache())
            bench.half.forget()
        self.assertEqual(len(set(asked)), 4)

    def test_not_more_than_so_many_are_on_their_way(self) -> None:
        bench, daemon = self.bench(0.0)
        for at in range(MOST_BEGUN + 5):
            bench.half.arrived(Request(str(at), range(at * 1000, at * 1000 + PAGE * 3)))
        self.assertEqual((daemon.begun, bench.half._lookups._begun), (MOST_BEGUN, MOST_BEGUN))


if __name__ == "__main__":
    unittest.main()
