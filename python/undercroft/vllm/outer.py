"""What the engine goes by where this connector is one of several under vLLM's MultiConnector.

Each of them is given a transfer config of its own; the engine reads the outer one, and nothing
that a child is given leads there. The one that makes it is on the stack.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from .guard import logger
from .settings import Settings

# From a connector's constructor to its maker's: a subclass or a wrapper may lie between.
_FRAMES = 8


def transfer_config(connector: Any, base: type) -> Any | None:
    """The transfer config of the connector whose constructor makes this one; None if there is
    none, and its own is what the engine reads."""
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        maker = frame.f_locals.get("self")
        if isinstance(maker, base) and maker is not connector:
            return maker._kv_transfer_config
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def fitting(settings: Settings, outer: Any) -> Settings:
    """The settings under an outer config. It speaks for other connectors too, so it is not
    changed: where it makes a failed load the request's end, nothing is loaded."""
    if settings.load == "off" or outer.kv_load_failure_policy == "recompute":
        return settings
    logger.warning(
        "undercroft: load=off: kv_load_failure_policy of the outer kv_transfer_config is %s, and a "
        "load may always miss; set it to recompute",
        outer.kv_load_failure_policy,
    )
    return dataclasses.replace(settings, load="off")
