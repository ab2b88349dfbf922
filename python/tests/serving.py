"""A daemon for a test, and what tests make of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import undercroft

PATIENCE = 20.0


def program() -> str:
    """The daemon's program: what the tests were built with, or what is installed."""
    found = os.environ.get("UNDERCROFT_BIN") or shutil.which("undercroft")
    if found is None:
        raise FileNotFoundError("no undercroft program: set UNDERCROFT_BIN or install it")
    return found


class Daemon:
    """A daemon with a directory of its own. It can be started again there."""

    def __init__(
        self, dram: str = "64MiB", ssd: str = "0", staging: str = "1MiB", extra: str = ""
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="undercroft-test-")
        self.directory = Path(self._directory.name)
        self.socket = self.directory / "u.sock"
        config = [
            "[server]",
            f'socket = "{self.socket}"',
            'metrics = "off"',
            "[arena]",
            f'size = "{dram}"',
            f'staging = "{staging}"',
            'huge_pages = "off"',
            "[ssd]",
            f'path = "{self.directory}"',
            f'size = "{ssd}"',
        ]
        self._config = self.directory / "config.toml"
        self._config.write_text("\n".join([*config, extra, ""]))
        self._log = (self.directory / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        command = [program(), "serve", "--config", str(self._config)]
        state = {"STATE_DIRECTORY": str(self.directory)}
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env={**os.environ, **state}
        )
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended: {self.log()}")
            try:
                undercroft.Client(self.socket, wait=1.0, copy_mode=True).close()
                return
            except undercroft.ConnectError:
                time.sleep(0.02)
        raise TimeoutError(f"the daemon does not answer: {self.log()}")

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(PATIENCE)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)
        self._log.close()
        self._directory.cleanup()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def family(layers: int = 2, **changes: object) -> undercroft.Family:
    """A model that exists nowhere."""
    fields: dict[str, object] = {
        "model": bytes(range(32)),
        "dtype": "bf16",
        "layers": layers,
        "kv_heads": 1,
        "page_tokens": 16,
    }
    return undercroft.Family(**{**fields, **changes})  # type: ignore[arg-type]


def page(number: int, page_bytes: int = 4096) -> bytearray:
    """A page with bytes of its own."""
    return bytearray((number * 7 + at) % 251 for at in range(page_bytes))
