"""KV events: what the engine's router learns about blocks beyond the engine's own cache.

A block is told as stored when every rank has it with the daemon, and as removed when a lookup
finds it gone: the daemon tells nobody what it evicts, so a removal is known when it matters.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .guard import harmless, nothing
from .requests import Known

MAX_ANNOUNCED = 1 << 16
MAX_EVENTS = 1 << 14


@dataclass(frozen=True)
class Maker:
    """Makes the engine's own event objects."""

    stored: Callable[..., Any]
    removed: Callable[..., Any]
    name: Callable[[bytes], Any]
    """The engine's public form of a block's hash."""
    medium: str
    groups: Sequence[dict[str, Any]]
    """Of each group, what its events of stored blocks say about it."""
    extra: Callable[[Any, Sequence[int]], Any] = lambda request, starts: None
    """What the hashes of a request's blocks bind beside tokens, from where each block starts."""


class Announced:
    """Blocks told as stored, boundedly many, and the events not yet taken."""

    def __init__(self, maker: Maker, page_tokens: int, hash_tokens: int) -> None:
        self._maker = maker
        self._page_tokens = page_tokens
        self._each = page_tokens // hash_tokens
        self._hashes: OrderedDict[bytes, None] = OrderedDict()
        self._events: list[Any] = []

    @harmless(nothing)
    def stored(self, known: Known, first: int, pages: int) -> None:
        """The daemon has these pages of a request, on every rank."""
        request, tokens = known.request, self._page_tokens
        if len(self._events) >= MAX_EVENTS:
            return
        new = [page for page in range(first, first + pages) if self._note(self._hash(known, page))]
        if not new:
            return
        lora = getattr(request, "lora_request", None)
        start, end = new[0], new[-1] + 1
        parent = self._hash(known, start - 1) if start else None
        hashes = [self._maker.name(self._hash(known, page)) for page in range(start, end)]
        extra = self._maker.extra(request, range(start * tokens, (end + 1) * tokens, tokens))
        for group in self._maker.groups:
            self._events.append(
                self._maker.stored(
                    block_hashes=list(hashes),
                    parent_block_hash=None if parent is None else self._maker.name(parent),
                    token_ids=list(request.all_token_ids[start * tokens : end * tokens]),
                    block_size=tokens,
                    lora_id=None if lora is None else lora.lora_int_id,
                    medium=self._maker.medium,
                    lora_name=None if lora is None else lora.lora_name,
                    extra_keys=extra,
                    **group,
                )
            )
        # Told as removed though the daemon may have them: better than never.
        excess = max(len(self._hashes) - MAX_ANNOUNCED, 0)
        self._remove(list(itertools.islice(self._hashes, excess)))

    @harmless(nothing)
    def missed(self, known: Known, first: int, end: int) -> None:
        """A lookup found the page `first` gone: so is what hangs below it."""
        if len(self._events) < MAX_EVENTS:
            self._remove([self._hash(known, page) for page in range(first, end)])

    @harmless(nothing)
    def forgotten(self) -> None:
        """Nothing told so far can be found again."""
        self._remove(list(self._hashes))

    def _remove(self, values: Sequence[bytes]) -> None:
        gone = [value for value in values if value in self._hashes]
        for value in gone:
            self._hashes.pop(value, None)
        if not gone:
            return
        for group in self._maker.groups:
            self._events.append(
                self._maker.removed(
                    block_hashes=[self._maker.name(value) for value in gone],
                    medium=self._maker.medium,
                    group_idx=group.get("group_idx"),
                )
            )

    def take(self) -> list[Any]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def _hash(self, known: Known, page: int) -> bytes:
        return known.request.block_hashes[(page + 1) * self._each - 1]

    def _note(self, value: bytes) -> bool:
        if value in self._hashes:
            self._hashes.move_to_end(value)
            return False
        self._hashes[value] = None
        return True
