"""vLLM as a process: given orders, watched, ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.processes import started_by_us

HERE = Path(__file__).resolve().parent
BEGINS_S = 420.0
ENDS_S = 60.0
PAGE = 32


class EngineError(RuntimeError):
    """The engine raised, died, or did not answer in time."""


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from, and the salt that keeps them apart from the same tokens of others."""

    tokens: tuple[int, ...]
    salt: str = ""

    def order(self) -> dict[str, Any]:
        return {"tokens": list(self.tokens), "salt": self.salt}


@dataclass(frozen=True)
class Answer:
    """What came of a prompt."""

    tokens: tuple[int, ...]
    logprob: str
    finish: str
    cached: int
    external: int
    seconds: float

    def same(self, other: Answer) -> bool:
        """The same tokens with the same probabilities, in every bit."""
        return self.tokens == other.tokens and self.logprob == other.logprob


def environment(core: int = 0) -> dict[str, str]:
    """What keeps an engine on this machine, off the network, and the same from run to run: it
    computes with one thread, on one of the processors that there are."""
    processors = sorted(os.sched_getaffinity(0))
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "HF_"))
    }
    here = str(HERE.parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    return kept | {
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # A connector changes the default, and with it the last bits of what is computed.
        "VLLM_CPU_OMP_THREADS_BIND": str(processors[-1 - core % len(processors)]),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A thread that spins while it waits takes the processor from the one that it waits for.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
    }


def transfer(
    socket: Path,
    *,
    connector: str = "UndercroftConnector",
    module: str = "undercroft.vllm",
    **extra: Any,
) -> dict[str, Any]:
    """The engine's option that puts the connector in."""
    return {
        "kv_connector": connector,
        "kv_connector_module_path": module,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        # Models so small are computed faster than anything is loaded, and loads are what is tried.
        "kv_connector_extra_config": {"socket": str(socket), "prefill_tokens_per_s": 0, **extra},
    }


class Engine:
    """One engine. Everything asked of it has a bound, after which it counts as hung."""

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        kv_transfer: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        separate: bool = False,
        core: int = 0,
        python: str = sys.executable,
        **options: Any,
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.arguments = {
            "model": str(model),
            "dtype": "bfloat16",
            "max_model_len": 2048,
            "block_size": PAGE,
            "enforce_eager": True,
            "disable_log_stats": False,
            "seed": 0,
        } | options
        if kv_transfer is not None:
            self.arguments["kv_transfer_config"] = kv_transfer
        surroundings = environment(core) | {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(separate))}
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [python, "-m", "harness.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                env=surroundings | (env or {}),
                start_new_session=True,
            )
        started_by_us(self.process)
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._send({"order": "begin", "arguments": self.arguments})
        self._begun = False

    def ready(self) -> Engine:
        """Waits until it has loaded its model."""
        if not self._begun:
            self._receive(BEGINS_S)
            self._begun = True
        return self

    def generate(
        self,
        prompts: list[Prompt],
        max_tokens: int = 8,
        *,
        serial: bool = True,
        bound: float | None = None,
    ) -> list[Answer]:
        orders = [prompt.order() for prompt in prompts]
        bound = bound if bound is not None else 120.0 + 30.0 * len(prompts)
        got = self.ask("generate", bound, prompts=orders, max_tokens=max_tokens, serial=serial)
        return [Answer(**(answer | {"tokens": tuple(answer["tokens"])})) for answer in got]

    def metrics(self) -> dict[str, float]:
        return self.ask("metrics", 60.0)

    def reset(self) -> None:
        if not self.ask("reset", 60.0):
            raise EngineError("the engine would not reset its prefix cache")

    def call(self, module: str, function: str, *arguments: Any) -> Any:
        return self.ask("call", 60.0, module=module, function=function, arguments=list(arguments))

    def ask(self, order: str, bound: float, **arguments: Any) -> Any:
        self.ready()
        self._send({"order": order, **arguments})
        return self._receive(bound)

    def complaints(self) -> list[str]:
        """Lines of its log that speak of an error of the engine."""
        marks = ("Traceback (most recent call last)", "EngineDeadError", " ERROR ", "CRITICAL")
        lines = self.log.read_text(errors="replace").splitlines()
        return [line.strip() for line in lines if any(mark in line for mark in marks)]

    def kill(self) -> None:
        """As a crash would: it and whatever it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Lets it end in its own way; the bound stands for a connector that would not let it."""
        if self.process.poll() is None:
            try:
                self._send({"order": "end"})
                self.process.wait(ENDS_S)
            except (EngineError, subprocess.TimeoutExpired):
                self.kill()
                raise EngineError(
                    f"the engine did not end within {ENDS_S:.0f} s: see {self.log}"
                ) from None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def _send(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise EngineError(f"the engine has ended: see {self.log}") from None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _receive(self, bound: float) -> Any:
        start = time.monotonic()
        try:
            line = self._answers.get(timeout=bound)
        except queue.Empty:
            raise EngineError(f"no answer after {bound:.0f} s, it hangs: see {self.log}") from None
        if line is None:
            code = self.process.wait()
            after = time.monotonic() - start
            raise EngineError(f"the engine ended with {code} after {after:.0f} s: see {self.log}")
        said = json.loads(line)
        if "error" in said:
            raise EngineError(f"{said['error']}: see {self.log}")
        return said["answer"]
