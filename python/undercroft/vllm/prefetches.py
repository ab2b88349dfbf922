"""Lifts pages of requests that wait in the engine's queue to DRAM, on a thread of its own.

A request that waits behind others is looked up only when its turn has come. What it needs from an
SSD can be read until then; asking for that must cost the scheduler nothing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

from .guard import ENDS, complaints
from .requests import Keys, Known
from .settings import Settings

MAX_WAITING = 256
DEADLINE_S = 0.05


class Prefetches:
    """A bounded queue of requests, and the thread that asks for their pages."""

    def __init__(self, settings: Settings, keys: Keys, spaces: Sequence[Any]) -> None:
        self._ttl = settings.hold_ms / 1000
        self._keys = keys
        self._spaces = list(spaces)
        self._queue: queue.Queue[Known | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None

    def add(self, known: Known) -> bool:
        """Never waits: where too many wait already, this one is not asked for."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="undercroft-pre", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(known)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Ends the thread after what it is at."""
        if self._thread is None:
            return
        while True:
            try:
                self._queue.put_nowait(None)
                break
            except queue.Full:
                self._queue.get_nowait()
        self._thread.join(DEADLINE_S * len(self._spaces) + 1.0)

    def _run(self) -> None:
        while (known := self._queue.get()) is not None:
            try:
                self._ask(known)
            except ENDS:
                raise
            except BaseException as error:  # noqa: BLE001 - a prefetch not made costs time alone
                complaints.say("prefetch", "undercroft: pages were not prefetched: %r", error)

    def _ask(self, known: Known) -> None:
        keys = self._keys.of_all(known)
        for space in self._spaces:
            if not keys or space.prefetch(keys, ttl=self._ttl, deadline=DEADLINE_S).why is not None:
                return
