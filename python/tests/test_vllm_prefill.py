"""How fast the engine computes prompts, as the connector's scheduler half measures it."""

from __future__ import annotations

import unittest
from types import SimpleNamespace
from typing import Any

from test_vllm_scheduler import SHIM
from vllm_fakes import Daemon, Family, Output, Pool

from undercroft.vllm.messages import Reports
from undercroft.vllm.prefill import LEAST_STEPS, MOST_UNDER_WAY, Prefill
from undercroft.vllm.scheduler import Scheduler
from undercroft.vllm.settings import checked

PAGE = 16


def scheduled(*tokens: int) -> Any:
    each = {str(at): count for at, count in enumerate(tokens)}
    return SimpleNamespace(num_scheduled_tokens=each, total_num_scheduled_tokens=sum(tokens))


class Measuring(unittest.TestCase):
    def setUp(self) -> None:
        self.now = 100.0
        self.prefill = Prefill(PAGE, None, lambda: self.now)
        self.number = 0

    def step(self, output: Any, took: float, idle: float = 0.0) -> None:
        self.now += idle
        self.number += 1
        told = [self.number] if self.prefill.planned(self.number, output) else []
        self.now += took
        self.prefill.over(told)

    def test_steps_that_compute_prompts_tell_the_rate(self) -> None:
        for _ in range(LEAST_STEPS):
            self.assertIsNone(self.prefill.news())
            self.step(scheduled(2000), 0.2, idle=3.0)
        self.assertAlmostEqual(self.prefill.news() or 0, PAGE / 10_000)
        self.assertIsNone(self.prefill.news(), "it is told once")

    def test_steps_that_mostly_decode_or_are_short_tell_nothing(self) -> None:
        for _ in range(20):
            self.step(scheduled(*[1] * 600), 0.1)
            self.step(scheduled(600, *[1] * 200), 0.1)
            self.step(scheduled(100), 0.1)
        self.assertEqual(self.prefill.tokens_per_s, 0)

    def test_a_step_planned_ahead_begins_when_the_one_before_is_over(self) -> None:
        for number in range(1, 9):
            self.assertTrue(self.prefill.planned(number + 1, scheduled(1000)))
            self.now += 0.1
            self.prefill.over([number] if number > 1 else [])
        self.assertAlmostEqual(self.prefill.tokens_per_s, 10_000)

    def test_steps_held_up_do_not_make_the_engine_slow(self) -> None:
        for at in range(16):
            self.step(scheduled(1000), 0.5 if at % 2 else 0.1)
        self.assertAlmostEqual(self.prefill.tokens_per_s, 10_000)

    def test_only_what_has_changed_notably_is_told_again(self) -> None:
        for _ in range(16):
            self.step(scheduled(1000), 0.1)
        self.assertIsNotNone(self.prefill.news())
        for _ in range(16):
            self.step(scheduled(1000), 0.105)
        self.assertIsNone(self.prefill.news())
        for _ in range(16):
            self.step(scheduled(1000), 0.2)
        self.assertAlmostEqual(self.prefill.news() or 0, PAGE / 5_000)

    def test_workers_that_never_answer_cost_no_memory(self) -> None:
        for number in range(100):
            self.prefill.planned(number, scheduled(1000))
        self.assertLessEqual(len(self.prefill._under_way), MOST_UNDER_WAY)


class Space:
    def __init__(self) -> None:
        self.told: list[float] = []

    def set_recompute(self, page: float) -> None:
        self.told.append(page)


class Telling(unittest.TestCase):
    def half(self, **extra: object) -> tuple[Scheduler, list[Space]]:
        spaces = [Space(), Space()]
        half = Scheduler(checked(extra), SHIM, PAGE, PAGE, 1)
        half.bind_pool(Pool(8))
        half.bind_daemon(Daemon(2), spaces, Family())
        return half, spaces

    def test_a_configured_rate_is_told_once_and_nothing_is_measured(self) -> None:
        half, spaces = self.half(prefill_tokens_per_s=8000)
        first = half.step(Output({"a": 4000}, {}))
        self.assertEqual((first.page_s, first.is_timed), (PAGE / 8000, False))
        self.assertEqual([space.told for space in spaces], [[PAGE / 8000]] * 2)
        self.assertIsNone(half.step(Output({"a": 4000}, {})).page_s)

    def test_a_rate_of_0_is_not_told(self) -> None:
        half, spaces = self.half(prefill_tokens_per_s=0)
        step = half.step(Output({"a": 4000}, {}))
        self.assertEqual((step.page_s, step.is_timed, spaces[0].told), (None, False, []))

    def test_a_measured_rate_reaches_the_workers_and_the_daemon(self) -> None:
        half, spaces = self.half()
        for _ in range(LEAST_STEPS):
            step = half.step(Output({"a": 4000}, {}))
            self.assertTrue(step.is_timed and step.page_s is None)
            half.heard(
                SimpleNamespace(
                    finished_recving=None, kv_connector_worker_meta=Reports(over=[step.number])
                )
            )
        step = half.step(Output({"a": 1}, {}))
        self.assertEqual([space.told for space in spaces], [[step.page_s]] * 2)

    def test_a_step_of_several_ranks_is_over_once(self) -> None:
        both = Reports(over=[3]).aggregate(Reports(over=[3]))
        self.assertEqual((both.over, both.is_empty()), ([3], False))


if __name__ == "__main__":
    unittest.main()
