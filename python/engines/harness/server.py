"""vLLM's OpenAI server, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.engine import BEGINS_S, ENDS_S, PAGE, EngineError, environment
from harness.processes import started_by_us


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def request(url: str, *, post: bool = False, timeout: float = 30.0) -> str:
    asked = urllib.request.Request(url, data=b"" if post else None)
    with urllib.request.urlopen(asked, timeout=timeout) as answer:
        return answer.read().decode()


class Process:
    """A server that says over HTTP when it is ready."""

    def __init__(self, command: Sequence[str], health: str, log: Path, env: dict[str, str]) -> None:
        self.log, self.health = log, health
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=env,
                start_new_session=True,
            )
        started_by_us(self.process)

    def ready(self, seconds: float = BEGINS_S) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise EngineError(
                    f"the server ended with {self.process.returncode}: see {self.log}"
                )
            try:
                request(self.health, timeout=5.0)
                return self
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
        raise EngineError(f"the server is not ready after {seconds:.0f} s: see {self.log}")

    def stop(self) -> None:
        """As Ctrl-C would; whatever it has started ends with it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(ENDS_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise EngineError(
                    f"the server did not end within {ENDS_S:.0f} s: see {self.log}"
                ) from None

    def crash(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.crash()


class Server(Process):
    """vLLM's OpenAI server in front of one model, called `model`."""

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        kv_transfer: dict[str, Any] | None = None,
        core: int = 0,
        python: str = sys.executable,
        options: Sequence[str] = (),
        dtype: str = "bfloat16",
        max_model_len: int = 8192,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model),
            "--served-model-name",
            "model",
            "--dtype",
            dtype,
            "--max-model-len",
            str(max_model_len),
            "--block-size",
            str(PAGE),
            "--enforce-eager",
            "--max-num-batched-tokens",
            str(max_model_len),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--seed",
            "0",
            *options,
        ]
        if kv_transfer is not None:
            command += ["--kv-transfer-config", json.dumps(kv_transfer)]
        # The mode has the path that forgets the engine's own prefix cache.
        env = environment(core) | {"VLLM_SERVER_DEV_MODE": "1"}
        super().__init__(command, f"{self.url}/health", log, env)

    def client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=600, max_retries=0)

    def forget(self, seconds: float = 30.0) -> None:
        """Empties the engine's own prefix cache. Blocks of stores under way keep it from that,
        which only its log says."""
        done = "Successfully reset prefix cache"
        before = self.log.read_text(errors="replace").count(done)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            request(f"{self.url}/reset_prefix_cache", post=True)
            time.sleep(0.1)
            if self.log.read_text(errors="replace").count(done) > before:
                return
        raise EngineError(f"{self.log.name}: the prefix cache is not empty after {seconds:.0f} s")

    def metrics(self) -> dict[str, float]:
        """Counters and gauges of its Prometheus page, labels added up."""
        found: dict[str, float] = {}
        for line in request(f"{self.url}/metrics").splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def compute(self, tokens: Sequence[int]) -> None:
        """Has it compute a prompt, and whoever stands behind it store that."""
        self.client().completions.create(model="model", prompt=list(tokens), max_tokens=1)

    def first_token(self, tokens: Sequence[int]) -> float:
        """Seconds from asking to the first token's arrival."""
        client = self.client()
        start = time.perf_counter()
        stream = client.completions.create(
            model="model",
            prompt=list(tokens),
            max_tokens=1,
            temperature=0.0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for chunk in stream:
            if chunk.choices:
                seconds = time.perf_counter() - start
                break
        else:
            raise EngineError(f"no token came: see {self.log}")
        for _ in stream:
            pass
        return seconds
