"""What lookups may cost a step of the engine's scheduler, whatever the daemon takes for them."""

from __future__ import annotations

import unittest
from typing import Any

from test_vllm_scheduler import Bench
from vllm_fakes import PAGE, Daemon, Family, Output, Request


class Slow(Daemon):
    """Takes its time for each lookup, and gives up at the deadline."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.takes = 0.0
        self.deadlines: list[float] = []

    def lookup(self, spaces: list[int], keys: bytes, *, hold: float, deadline: float) -> Any:
        self.deadlines.append(round(deadline, 6))
        self.now += min(self.takes, deadline)
        self.why = "deadline" if self.takes >= deadline else None
        return super().lookup(spaces, keys, hold=hold, deadline=deadline)


class OfAStep(unittest.TestCase):
    def bench(self, takes: float, **extra: object) -> tuple[Bench, Slow]:
        bench, daemon = Bench(lookup_deadline_ms=10, **extra), Slow()
        daemon.takes = takes
        bench.half.bind_daemon(daemon, [0], Family())
        bench.half._lookups._clock = lambda: daemon.now
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


if __name__ == "__main__":
    unittest.main()
