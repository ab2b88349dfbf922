"""How fast this engine computes prompts: what loading is weighed against."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

# Fewer tokens of prompts than this in a step tell nothing: a step takes a while whatever is in it.
LEAST_TOKENS = 512
# And they must be most of what the step computes.
LEAST_SHARE = 0.9
# So many steps are remembered, and so many are needed to tell anything.
STEPS, LEAST_STEPS = 16, 3
# What is told is told anew when it is off by this part.
NOTABLE = 0.15
# Of steps that differ (long contexts take longer), the rate of this part is not exceeded: an engine
# that is taken for faster than it is loads less, and no request is slower for it.
FAST = 0.75
# Steps on their way whose end nobody has told.
MOST_UNDER_WAY = 8


class Prefill:
    """Measures steps that compute prompts, from when workers could begin to when they were done.

    A step begins when it is planned or, where the step before was not over by then, when that was.
    """

    def __init__(
        self, page_tokens: int, fixed: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._page_tokens = page_tokens
        self._measures = fixed is None
        self._clock = clock
        self._told = 0.0
        """Tokens a second, as workers and the daemon know it; 0: nothing."""
        self._now = fixed or 0.0
        self._rates: deque[float] = deque(maxlen=STEPS)
        self._under_way: dict[int, tuple[int, float]] = {}
        self._last_over = float("-inf")

    @property
    def tokens_per_s(self) -> float:
        """As it is known now; 0 where it is not."""
        return self._now

    def planned(self, number: int, output: Any) -> bool:
        """A step is about to be computed. Whether workers are to tell when it is."""
        if not self._measures or output.total_num_scheduled_tokens < LEAST_TOKENS:
            return False
        each = output.num_scheduled_tokens.values()
        prompts = sum(tokens for tokens in each if tokens > 1)
        if prompts < max(LEAST_TOKENS, LEAST_SHARE * output.total_num_scheduled_tokens):
            return False
        if len(self._under_way) >= MOST_UNDER_WAY:
            self._under_way.clear()
        self._under_way[number] = (prompts, self._clock())
        return True

    def over(self, numbers: list[int]) -> None:
        """Workers have said something, and that these steps are over."""
        if not self._measures:
            return
        now = self._clock()
        for number in numbers:
            tokens, planned = self._under_way.pop(number, (0, 0.0))
            took = now - max(planned, self._last_over)
            # Several at once: when each was over nobody has told.
            if tokens and took > 0 and len(numbers) == 1:
                self._rates.append(tokens / took)
        self._last_over = now
        if len(self._rates) >= LEAST_STEPS:
            rates = sorted(self._rates)
            self._now = rates[int(FAST * (len(rates) - 1))]

    def news(self) -> float | None:
        """Seconds that a page takes, where that has changed since it was last told."""
        if abs(self._now - self._told) <= NOTABLE * self._told:
            return None
        self._told = self._now
        return self._page_tokens / self._now
