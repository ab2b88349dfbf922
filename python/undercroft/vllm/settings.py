"""What `kv_connector_extra_config` may say, checked before anything is connected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

LOAD_MODES = ("async", "layers", "off")
WEIGHTS = ("samples", "whole")


@dataclass(frozen=True)
class Settings:
    """Checked settings of one connector. Seconds and milliseconds as the names say."""

    socket: str | None = None
    """The daemon's socket; None: $UNDERCROFT_SOCKET, else the daemon's default path."""
    load: str = "async"
    """`async`: between steps; `layers`: in the step, layer by layer; `off`: never."""
    store: bool = True
    """Whether computed blocks are offered to the daemon."""
    min_tokens: int = 0
    """Fewer tokens than this beyond the engine's own hit are computed, not loaded."""
    lookup_deadline_ms: float = 20.0
    """The longest the scheduler waits for the answers to one step's lookups, together."""
    load_deadline_ms: float = 5000.0
    """A load that is not complete by then ends; what is missing is recomputed."""
    store_deadline_ms: float = 10000.0
    """A store not settled by then ends; its blocks are the engine's again."""
    hold_ms: float = 20000.0
    """How long a lookup keeps what it found from being evicted before it is loaded."""
    prefill_tokens_per_s: float | None = None
    """The engine's prefill rate, which the daemon weighs loads against; None: measured; 0: nothing
    is said of it, and everything is loaded."""
    max_pinned_share: float = 0.5
    """The part of the engine's blocks that stores under way may keep from reuse."""
    prefetch: bool = True
    """Whether pages of requests that queue behind others are lifted to DRAM ahead of need."""
    first_slice_pages: int = 16
    """Pages asked about first; more only if all of these were found. Bounds a miss's cost."""
    drain_ms: float = 3000.0
    """How long the shutdown of a worker waits for stores under way."""
    threads: int = 2
    """Threads of a worker's client that carry loads."""
    copy_mode: bool = False
    """Deliver pages through the session's staging area instead of the shared arena."""
    weights: str = "samples"
    """What of the weight files names the model: `samples` of every tensor, or the `whole` files."""
    model_digest: str | None = None
    """64 hexadecimal digits naming the weights, where their files cannot be read."""


_RANGES: dict[str, tuple[float, float]] = {
    "min_tokens": (0, 1 << 30),
    "lookup_deadline_ms": (0.1, 1000),
    "load_deadline_ms": (1, 600_000),
    "store_deadline_ms": (1, 600_000),
    "hold_ms": (1, 3_600_000),
    "prefill_tokens_per_s": (0, 1e9),
    "max_pinned_share": (0.0, 1.0),
    "first_slice_pages": (1, 65_536),
    "drain_ms": (0, 600_000),
    "threads": (1, 64),
}


def checked(raw: Mapping[str, Any] | None) -> Settings:
    """Settings out of the engine's extra config.

    Raises ValueError naming the key, its value and what is allowed.
    """
    raw = dict(raw or {})
    known = {field.name: field for field in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            allowed = ", ".join(sorted(known))
            raise ValueError(f"kv_connector_extra_config has {key!r}, allowed: {allowed}")
        if value is not None:
            values[key] = _one(key, value)
    return Settings(**values)


def _one(key: str, value: Any) -> Any:
    if key in _RANGES:
        return _number(key, value)
    default = getattr(Settings, key)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}, allowed: true or false")
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {value!r}, allowed: a text that is not empty")
    if key == "load" and value not in LOAD_MODES:
        raise ValueError(f"load is {value!r}, allowed: {', '.join(LOAD_MODES)}")
    if key == "weights" and value not in WEIGHTS:
        raise ValueError(f"weights is {value!r}, allowed: {', '.join(WEIGHTS)}")
    if key == "model_digest" and not _is_digest(value):
        raise ValueError(f"model_digest is {value!r}, allowed: 64 hexadecimal digits")
    return value


def _number(key: str, value: Any) -> Any:
    low, high = _RANGES[key]
    whole = isinstance(getattr(Settings, key), int)
    kind = "a whole number" if whole else "a number"
    right = isinstance(value, int) if whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not right or not low <= value <= high:
        raise ValueError(f"{key} is {value!r}, allowed: {kind} in {low}..={high}")
    return value if whole else float(value)


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(digit in "0123456789abcdefABCDEF" for digit in text)
