"""A session that fetches pages under a lease and gives the lease away, as the wire has it: Python
takes leases and has no call that gives one."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

HEADER = struct.Struct("<4sHHII")
VERSION = 2
HELLO, OPEN_SPACE, FETCH, GIVE = 1, 2, 4, 13
FETCH_END, REFUSED, GIVEN = 106, 111, 115
PATIENCE = 20.0


def number(value: int) -> bytes:
    """As messages have it: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def text(value: str) -> bytes:
    return number(len(value)) + value.encode()


class Lender:
    """It lives as long as its leases are to, and knows the family of `serving.family`."""

    def __init__(self, path: Path, layers: int, parts: tuple[int, ...]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._requests = 0
        self._unread = b""
        self._ask(HELLO, number(VERSION), number(VERSION), text("lender"), b"\0")
        family = bytes(range(32)) + bytes(32) + number(0) + text("none") + text("") + text("")
        family += number(layers) + number(1) + number(16)
        sizes = [*parts, *[0] * (8 - len(parts))]
        geometry = number(layers) + b"".join(map(number, sizes))
        no_probe = b"\0"
        opened = self._ask(OPEN_SPACE, family, number(0), number(0), geometry, no_probe)
        assert opened[0] < 128, "the first spaces have small numbers"
        self._space = opened[:1]

    def lend(self, keys: bytes) -> bytes:
        """A token for a lease of as many of these pages as are there."""
        lease = number(1)
        source = number(0) + number(len(keys)) + keys
        no_stamp, deadline, no_cost = number(0), number(5000), number(0)
        self._ask(
            FETCH, self._space, lease, source, no_stamp, deadline, no_cost, until=FETCH_END
        )
        token = self._ask(GIVE, number(1), lease, until=GIVEN)
        assert len(token) == 16, token
        return token

    def close(self) -> None:
        self._socket.close()

    def _ask(self, kind: int, *body: bytes, until: int | None = None) -> bytes:
        """Sends a request and gives the body of its answer, or of the one of that kind."""
        self._requests += 1
        whole = b"".join(body)
        head = HEADER.pack(b"UCFT", VERSION, kind, len(whole), self._requests)
        self._socket.sendall(head + whole)
        while True:
            _, _, kind, length, request = HEADER.unpack(self._read(HEADER.size))
            answer = self._read(length)
            if kind == REFUSED:
                raise ConnectionError(f"the daemon refuses: {answer!r}")
            if request == self._requests and kind == (until or kind):
                return answer

    def _read(self, count: int) -> bytes:
        while len(self._unread) < count:
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError("the daemon has closed the connection")
            self._unread += more
        read, self._unread = self._unread[:count], self._unread[count:]
        return read
