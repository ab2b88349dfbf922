"""No exception leaves a hook: a miss is the answer, and one line a kind in the engine's log."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..workers import ENDS

# A child of the engine's own logger, so that it appears in the engine's format and level.
logger = logging.getLogger("vllm.undercroft")

QUIET_S = 60.0
_MAX_KINDS = 256

F = TypeVar("F", bound=Callable[..., Any])


class Complaints:
    """Says each kind of thing at most once a minute, and how often it was held back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def say(self, kind: str, message: str, *args: object, level: int = logging.WARNING) -> bool:
        """Whether it was said."""
        now = self._clock()
        with self._lock:
            last = self._last.get(kind)
            if last is not None and now - last < QUIET_S:
                self._held[kind] = self._held.get(kind, 0) + 1
                return False
            if len(self._last) >= _MAX_KINDS:
                self._last.clear()
                self._held.clear()
            self._last[kind] = now
            held = self._held.pop(kind, 0)
        if held:
            message = f"{message} (and {held} more of these)"
        logger.log(level, message, *args)
        return True


complaints = Complaints()


def failed(name: str, error: BaseException) -> None:
    """A hook has raised: what it answers is a miss. Called where the error is handled; what ends
    the process goes on."""
    if isinstance(error, ENDS):
        raise
    kind = type(error).__name__
    message = "undercroft: %s failed and answers with a miss: %s: %s"
    complaints.say(f"{name}:{kind}", message, name, kind, error)
    logger.debug("undercroft: %s failed", name, exc_info=True)


def harmless(answer: Callable[..., Any]) -> Callable[[F], F]:
    """A hook that answers `answer(self, *args, **kwargs)` where it would have raised.

    The harmless answer differs from hook to hook: where the engine waits for a load, silence
    would be a request that never ends.
    """

    def decorate(hook: F) -> F:
        @functools.wraps(hook)
        def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return hook(self, *args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - nothing may reach the engine
                failed(hook.__name__, error)
            try:
                return answer(self, *args, **kwargs)
            except ENDS:
                raise
            except BaseException as error:  # noqa: BLE001 - not even the answer may raise
                complaints.say("answer", "undercroft: %s has no answer: %r", hook.__name__, error)
            return None

        return guarded  # type: ignore[return-value]

    return decorate


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """The answer of hooks that have none."""
