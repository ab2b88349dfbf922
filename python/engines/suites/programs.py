"""Engines in C's and Rust's reach: llama.cpp keeps its sequences through the C ABI, a candle model its
pages through the client. Each restored engine says what the one said that computed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from make_models import gguf_path

from harness.engine import environment
from harness.setting import Setting

EXAMPLE = Path(__file__).resolve().parents[3] / "client" / "ffi" / "examples" / "llama_sequence.py"
BOUND_S = 1800.0


def run(setting: Setting) -> None:
    with setting.daemon() as daemon:
        socket = str(daemon.socket)
        if setting.wanted("llama.cpp"):
            python = named("UNDERCROFT_LLAMA_PYTHON")
            library = named("UNDERCROFT_LIBRARY")
            command = [python, str(EXAMPLE), str(gguf_path()), "--check", "--socket", socket]
            check(setting, "llama.cpp", [*command, "--library", library, "--threads", "1"])
        if setting.wanted("candle"):
            check(setting, "candle", [named("UNDERCROFT_CANDLE"), "--check", socket])
        counted = daemon.counters()
    served = counted["hits.dram_pages"]
    setting.report.check("the daemon served pages", served > 0, f"{served} pages")


def named(variable: str) -> str:
    """A file that `cargo xtask engines` has made."""
    path = os.environ.get(variable)
    if not path or not Path(path).is_file():
        raise RuntimeError(f"{variable} is {path!r}: it must name a file")
    return path


def check(setting: Setting, name: str, command: Sequence[str]) -> None:
    """A program that compares by itself and says with its status whether all was the same."""
    log = setting.folder / f"{name}.log"
    with log.open("wb") as file:
        done = subprocess.run(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=BOUND_S,
        )
    said = log.read_text(errors="replace").strip()
    print("  " + said.replace("\n", "\n  "), file=sys.stdout, flush=True)
    detail = said[-300:] if done.returncode else ""
    setting.report.check(f"{name}: the same after it was restored", done.returncode == 0, detail)
