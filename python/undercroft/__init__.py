"""Undercroft's client: KV-cache pages kept by the daemon of this node.

A miss is a value (`why` of what a call answers says why); exceptions are for arguments that cannot
be and for what cannot be made or opened. Every call that can wait takes a deadline and lets other
threads run. A client belongs to the process that made it: in a forked child every call misses.

    client = undercroft.Client(wait=2.0)
    family = undercroft.Family(model=digest, dtype="bf16", layers=32, kv_heads=8, page_tokens=16)
    space = client.open_space(family, undercroft.Geometry(32, (65536,)))
    found = space.lookup(keys, hold=5.0)
    loaded = space.load(device, found.hold, blocks)
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Any

from . import _native
from ._native import (
    Buffers,
    ConnectError,
    CudaDevice,
    Device,
    DeviceError,
    Family,
    Found,
    Geometry,
    Hold,
    HostDevice,
    Layout,
    Loaded,
    LoadTask,
    LookupTask,
    OpenError,
    Prefetched,
    Space,
    Stored,
    StoreTask,
    UndercroftError,
    __version__,
    probe_cuda,
)

__all__ = [
    "Buffers",
    "Client",
    "ConnectError",
    "CudaDevice",
    "Device",
    "DeviceError",
    "Family",
    "Found",
    "Geometry",
    "Hold",
    "HostDevice",
    "Layout",
    "LoadTask",
    "LookupTask",
    "Loaded",
    "OpenError",
    "Prefetched",
    "Space",
    "StoreTask",
    "Stored",
    "UndercroftError",
    "__version__",
    "probe_cuda",
]

# Where the daemon's user has another number here, as in a container with users of its own.
DAEMON_UID = "UNDERCROFT_DAEMON_UID"

# Seconds that all clients together may take to end when the interpreter does.
_CLOSING = 2.0

_open: weakref.WeakSet[Client] = weakref.WeakSet()


class Client(_native.Client):
    """A connection to the daemon of this node, kept up behind the caller's back."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Client:
        named = os.environ.get(DAEMON_UID)
        if named and kwargs.get("daemon_uid") is None:
            if not named.isdecimal():
                raise ValueError(f"{DAEMON_UID} is {named!r}, allowed a user's number")
            kwargs["daemon_uid"] = int(named)
        client = super().__new__(cls, *args, **kwargs)
        _open.add(client)
        return client

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Everything is made by then."""


@atexit.register
def _close_all() -> None:
    # Copies that a client's threads have under way must not outlive the memory of the process.
    for client in list(_open):
        client.close(_CLOSING)
