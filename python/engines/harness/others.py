"""What Undercroft is held against, in front of the same engine."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.engine import PAGE, environment
from harness.server import Process, Server, free_port

LMCACHE = "UNDERCROFT_LMCACHE_PYTHON"


def lmcache_python() -> str | None:
    """The Python that has LMCache beside the engine, if there is one."""
    named = os.environ.get(LMCACHE)
    return named if named and Path(named).is_file() else None


class LMCache(Process):
    """LMCache's server. It ends as by a crash: nothing is written out on the way."""

    def __init__(
        self, log: Path, *, chunk: int, l1_gib: float, l2: dict[str, Any] | None = None
    ) -> None:
        self.port, http = free_port(), free_port()
        command = [
            str(lmcache_python()),
            "-m",
            "lmcache.cli.main",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--http-host",
            "127.0.0.1",
            "--http-port",
            str(http),
            "--chunk-size",
            str(chunk),
            "--l1-size-gb",
            str(l1_gib),
            "--eviction-policy",
            "LRU",
            "--max-workers",
            "1",
            "--disable-metrics",
            "--supported-transfer-mode",
            "auto",
        ]
        if l2 is not None:
            command += ["--l2-adapter", json.dumps(l2)]
        env = environment() | {"LMCACHE_TRACK_USAGE": "false"}
        super().__init__(command, f"http://127.0.0.1:{http}/healthcheck", log, env)

    def stop(self) -> None:
        self.crash()

    @property
    def transfer(self) -> dict[str, Any]:
        """The engine's option that puts it behind."""
        extra = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": self.port}
        return {
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        }


def lmcache(model: Path, folder: Path, stack: ExitStack) -> Server | str:
    """LMCache's server with DRAM, and an engine in front of it; or why not."""
    python = lmcache_python()
    if python is None:
        return f"no environment with LMCache: {LMCACHE} is {os.environ.get(LMCACHE)!r}"
    server = LMCache(folder / "lmcache-server.log", chunk=4 * PAGE, l1_gib=1.5)
    stack.enter_context(server)
    server.ready(120.0)
    return Server(model, folder / "lmcache.log", kv_transfer=server.transfer, python=python)


def fs_tier(model: Path, folder: Path, stack: ExitStack) -> Server | str:
    """The engine's own offloading connector with its file-system tier; or why not."""
    from vllm.platforms import current_platform

    if not (current_platform.is_cuda_alike() or current_platform.is_xpu()):
        return "vLLM's offloading connector runs on CUDA and XPU only, this is its CPU platform"
    chosen = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec",
            "cpu_bytes_to_use": 1 << 30,
            "secondary_tiers": [{"type": "fs", "root_dir": str(folder / "fs-tier")}],
        },
    }
    return Server(model, folder / "fs-tier.log", kv_transfer=chosen)
