"""Every process that a suite has started, so that none outlives it."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess

started: list[subprocess.Popen] = []


def started_by_us(process: subprocess.Popen) -> None:
    """Keeps a process, which leads a group of its own, in mind."""
    started.append(process)


def end_all() -> None:
    """Ends what is left of all of them, with what they have started."""
    for process in started:
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


atexit.register(end_all)
