"""vLLM's KV connector: `"kv_connector": "UndercroftConnector", "kv_connector_module_path":
"undercroft.vllm"`. Importing this package does not import vLLM; asking for the connector does."""

from __future__ import annotations

from typing import Any

__all__ = ["UndercroftConnector"]


def __getattr__(name: str) -> Any:
    if name == "UndercroftConnector":
        from .connector import UndercroftConnector

        return UndercroftConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
