"""Time and threads of the adapters that Undercroft is a tier by: an engine submits and goes on, and
each piece of work ends by its deadline, counted from then."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator

logger = logging.getLogger("undercroft")

#: What ends a process or a thread on purpose. All else that is raised ends a task and no more, also
#: what is no `Exception`, as a panic of the native module is.
ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


class Deadline:
    """What a call has left of its time, from when it was asked for. Up to `opening` seconds that
    spaces take to open are not counted."""

    def __init__(self, seconds: float, opening: float = 0.0) -> None:
        self._until = time.monotonic() + seconds
        self._opening = opening

    @property
    def left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self.left <= 0.0

    @contextmanager
    def opens(self) -> Iterator[float]:
        """How long a space may take to open."""
        began = time.monotonic()
        try:
            yield max(self.left, self._opening)
        finally:
            free = min(self._opening, time.monotonic() - began)
            self._opening -= free
            self._until += free


@dataclass(frozen=True)
class Work:
    """What is to be done, or given up."""

    do: Callable[[], None]
    give_up: Callable[[], None]
    deadline: Deadline | None


class Workers:
    """Threads that do what an engine only submits. Each piece of work is done once or, where there
    is no room for it or no time left, given up once.

    Work is begun in the order it comes in. Where all of it has as much time, none of it ends later
    than its own deadline: what is before it in the line has ended by then.
    """

    def __init__(self, name: str, threads: int, max_tasks: int) -> None:
        self._max_tasks = max_tasks
        self._waiting: deque[Work] = deque()
        self._lock = threading.Condition()
        self._running = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"undercroft-{name}-{at}", daemon=True)
            for at in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def are_alive(self) -> bool:
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def submit(
        self,
        do: Callable[[], None],
        give_up: Callable[[], None],
        deadline: Deadline | None = None,
    ) -> None:
        """Has `do` called by one of the threads before the deadline; `give_up` instead if that
        cannot be, by this one or another."""
        with self._lock:
            taken = not self._closed and len(self._waiting) < self._max_tasks
            if taken:
                self._waiting.append(Work(do, give_up, deadline))
                self._lock.notify()
        if not taken:
            give_up()

    def drain(self) -> None:
        """Gives up what waits, and waits for what is under way."""
        with self._lock:
            left = self._take_waiting()
        for work in left:
            work.give_up()
        with self._lock:
            self._lock.wait_for(lambda: not self._running)

    def close(self) -> None:
        """What has not begun is given up; what has is waited for."""
        with self._lock:
            self._closed = True
            left = self._take_waiting()
            self._lock.notify_all()
        for work in left:
            work.give_up()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _take_waiting(self) -> list[Work]:
        left = list(self._waiting)
        self._waiting.clear()
        return left

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                work = self._waiting.popleft()
                self._running += 1
            is_late = work.deadline is not None and work.deadline.is_over
            try:
                (work.give_up if is_late else work.do)()
            except BaseException:  # noqa: BLE001  a thread that ends here serves nobody after
                logger.exception("undercroft: a task failed that must not")
            # Not kept until the next one comes: it has a hand on an engine's memory.
            del work
            with self._lock:
                self._running -= 1
                self._lock.notify_all()
