"""A real `undercroft serve` in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.processes import started_by_us

READY_S = 30.0
ENDS_S = 30.0


def binary() -> Path:
    """The program under test: `cargo xtask engines` says which."""
    named = os.environ.get("UNDERCROFT_BIN")
    if not named or not Path(named).is_file():
        raise SystemExit(f"UNDERCROFT_BIN is {named!r}: it must name the `undercroft` program")
    return Path(named)


class Daemon:
    """One daemon; started again it finds the same folder, its SSD's pages included."""

    # What is used last leaves DRAM last, and all that does is written: then a suite can say what is
    # where. By the daemon's own policy beginnings of prefixes stay in DRAM, and are lost with it. A
    # disk that holds a write up for seconds costs time, and not what would have been written.
    LEAVES_IN_ORDER = 'stall_ms = 15000\n[policy]\neviction = "lru"\nadmission = "demote"\n'

    def __init__(
        self,
        folder: Path,
        *,
        dram: str = "256MiB",
        ssd: str = "1GiB",
        policy: str = "",
        socket: Path | None = None,
    ) -> None:
        self.folder = folder
        self.policy = policy
        self.socket = socket or folder / "undercroft.sock"
        self.log = folder / "daemon.log"
        self.ssd = folder / "ssd"
        self.ssd.mkdir(parents=True, exist_ok=True)
        # A path longer than a socket's address may be is found out here, not in an engine's log.
        if len(os.fsencode(self.socket)) > 107:
            raise SystemExit(f"{self.socket}: longer than the 107 bytes of a unix socket's path")
        self.config = folder / "undercroft.toml"
        self.config.write_text(
            f'[server]\nsocket = "{self.socket}"\nmetrics = "off"\n'
            f'[arena]\nsize = "{dram}"\nstaging = "32MiB"\n'
            f'[ssd]\npath = "{self.ssd}"\nsize = "{ssd}"\n{policy}'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        with self.log.open("ab") as log:
            command = [str(binary()), "serve", "--config", str(self.config)]
            # A session of its own: Ctrl-C is for the suite, which then ends the daemon itself.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        started_by_us(self.process)
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"the daemon ended with {self.process.returncode}: see {self.log}"
                )
            if self.status() is not None:
                return self
            time.sleep(0.05)
        raise RuntimeError(f"the daemon does not answer after {READY_S:.0f} s: see {self.log}")

    @property
    def pid(self) -> int:
        assert self.process is not None, "the daemon was never started"
        return self.process.pid

    def status(self) -> dict[str, Any] | None:
        """What `undercroft status --json` says; None if it cannot be had."""
        command = [str(binary()), "status", "--json", "--socket", str(self.socket)]
        try:
            asked = subprocess.run(command, capture_output=True, timeout=10)
        except subprocess.TimeoutExpired:
            return None
        return json.loads(asked.stdout) if asked.returncode == 0 else None

    def counters(self) -> dict[str, int]:
        """What it has counted since it started: hits, stores, what its SSD read."""
        status = self.status()
        if status is None:
            raise RuntimeError(f"the daemon does not answer: see {self.log}")
        hits, stores, ssd = status["hits"], status["stores"], status["ssd"]
        # Why lookups found no more is a list.
        numbers = {name: value for name, value in hits.items() if isinstance(value, int)}
        counted = {f"hits.{name}": value for name, value in numbers.items()}
        counted |= {f"stores.{name}": value for name, value in stores.items()}
        counted |= {
            f"ssd.{name}": ssd[name] for name in ("read_bytes", "corrupt_records", "io_errors")
        }
        return counted | {"ssd.pages": ssd["tier"]["pages"], "dram.pages": status["dram"]["pages"]}

    def wait_stored(self, pages: int, seconds: float = 20.0) -> int:
        """Waits until so many pages have been stored since it started; how many there are."""
        until = time.monotonic() + seconds
        while True:
            stored = self.counters()["stores.stored"]
            if stored >= pages or time.monotonic() >= until:
                return stored
            time.sleep(0.05)

    def page_bytes(self) -> int:
        """Bytes that a page of the only model there is takes on the SSD: whole blocks."""
        sizes = {space["page_bytes"] for space in (self.status() or {})["spaces"]}
        if len(sizes) != 1:
            raise RuntimeError(f"pages of {len(sizes)} sizes")
        return -(-int(sizes.pop()) // 4096) * 4096

    def wait_on_ssd(self, seconds: float = 30.0) -> int:
        """Waits until no more pages come onto the SSD; how many lie there."""
        until, before, since = time.monotonic() + seconds, -1, time.monotonic()
        while time.monotonic() < until:
            pages = self.counters()["ssd.pages"]
            if pages != before:
                before, since = pages, time.monotonic()
            elif time.monotonic() - since > 1.0:
                break
            time.sleep(0.1)
        return before

    def wait_engine(self, seconds: float = 15.0) -> bool:
        """Waits until both halves of an engine's connector have found it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.status()
            names = {session["name"] for session in status["sessions"]} if status else set()
            if names >= {"vllm worker", "vllm scheduler"}:
                return True
            time.sleep(0.05)
        return False

    def restart_cold(self, store: Callable[[], object], seconds: float = 240.0) -> None:
        """Stops and starts it with all its pages on the SSD alone. `store` has an engine store
        pages that nobody asks for: what was in DRAM leaves for the SSD before them, if it leaves in
        order."""
        if self.policy != self.LEAVES_IN_ORDER:
            raise RuntimeError("what is in DRAM then is lost, unless pages leave it in order")
        status = self.status() or {}
        frames = status["dram"]["capacity_bytes"] // status["spaces"][0]["page_bytes"]
        evicted = status["dram"]["evicted_pages"]
        until = time.monotonic() + seconds
        while status["dram"]["evicted_pages"] < evicted + frames:
            if time.monotonic() >= until:
                raise RuntimeError(f"DRAM was not filled within {seconds:.0f} s: see {self.log}")
            store()
            status = self.status() or status
        self.wait_on_ssd()
        self.stop()
        self.start()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As an operator would."""
        self._end(signal.SIGTERM)

    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _end(self, how: signal.Signals) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(how)
        # What is stopped hears nothing but SIGKILL.
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(
                f"the daemon did not end within {ENDS_S:.0f} s of {how.name}"
            ) from None

    def __enter__(self) -> Daemon:
        return self if self.is_up() else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
