"""What Undercroft is held against, in front of the same engine."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from harness.engine import PAGE, environment
from harness.server import Process, Server, free_port

HERE = Path(__file__).resolve().parent


def lmcache(model: Path, folder: Path, stack: ExitStack) -> Server | str:
    """LMCache's server with DRAM, and an engine in front of it; or why not."""
    python = os.environ.get("UNDERCROFT_LMCACHE_PYTHON")
    if not python or not Path(python).is_file():
        return f"no environment with LMCache: UNDERCROFT_LMCACHE_PYTHON is {python!r}"
    port, http = free_port(), free_port()
    command = [
        python,
        "-m",
        "lmcache.cli.main",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--http-host",
        "127.0.0.1",
        "--http-port",
        str(http),
        "--chunk-size",
        str(4 * PAGE),
        "--l1-size-gb",
        "1.5",
        "--eviction-policy",
        "LRU",
        "--max-workers",
        "1",
        "--disable-metrics",
        "--supported-transfer-mode",
        "auto",
    ]
    env = environment() | {"LMCACHE_TRACK_USAGE": "false"}
    server = Process(
        command, f"http://127.0.0.1:{http}/healthz", folder / "lmcache-server.log", env
    )
    stack.enter_context(server)
    server.ready(120.0)
    chosen = {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": port,
        },
    }
    return Server(model, folder / "lmcache.log", kv_transfer=chosen, python=python)


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
