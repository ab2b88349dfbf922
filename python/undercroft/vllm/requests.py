"""What the scheduler's half remembers of a request, from its first lookup to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from .guard import ENDS, complaints
from .messages import KEY_BYTES


class Known:
    """One request. The engine's own object is kept, not copied: its hashes grow with it."""

    __slots__ = (
        "begun",
        "begun_at",
        "begun_keys",
        "blocks",
        "computed",
        "cursor",
        "epoch",
        "failed",
        "hold",
        "keys",
        "last",
        "layer_step",
        "loading",
        "local",
        "preemptions",
        "request",
        "rewind",
        "salt",
        "seen",
        "seen_at",
        "sources",
        "stamp",
        "usable",
    )

    def __init__(self, request: Any) -> None:
        self.request = request
        self.salt = b""
        """Bound into every key, where the engine's hash does not say everything."""
        self.usable = True
        """Whether pages of this request can be named at all."""
        self.keys = bytearray()
        """Keys of its leading pages, as far as they were needed."""
        self.last = b""
        """The engine's hash of the last of them."""
        self.cursor = 0
        """Pages before this one are known to be with the daemon, or were offered."""
        self.computed = 0
        """Tokens whose KV steps that were scheduled have computed, or loads brought."""
        self.rewind = False
        """Its computed tokens went back: the cursor must follow."""
        self.preemptions = 0
        """How often it had been preempted when we last looked."""
        self.local = 0
        """The engine's own hit when it last asked, pages. The engine's request still says 0 when
        it allocates blocks, so what it told us then is what counts."""
        self.epoch = -1
        """The number of preemptions at which a load was last begun: one load for each, so that a
        load that failed is never tried again."""
        self.loading = False
        self.layer_step = 0
        """The step its load is part of; 0 for one between steps."""
        self.failed = False
        self.blocks: frozenset[int] = frozenset()
        """The blocks being loaded."""
        self.begun: Any = None
        """A lookup on its way, of which keys, and since when."""
        self.begun_keys, self.begun_at = b"", 0.0
        self.hold: Any = None
        self.seen: int | None = None
        """Leading pages the last lookup found; None if it was not answered."""
        self.seen_at = float("-inf")
        self.stamp = 0
        self.sources = (0, 0)
        """Of these, pages in DRAM and on SSD."""

    def notice_preemption(self) -> None:
        """The engine takes a request's blocks at once, and tells its connector later if at all."""
        if self.request.num_preemptions != self.preemptions:
            self.preemptions = self.request.num_preemptions
            self.rewind, self.computed = True, 0
            self.seen_at = float("-inf")
            self.drop_hold()

    def drop_hold(self) -> None:
        """Gives back what the last lookup kept from eviction."""
        hold, self.hold = self.hold, None
        if hold is None:
            return
        try:
            hold.drop()
        except ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - it ends by itself; whoever drops it goes on
            complaints.say("hold", "undercroft: a hold was not given back: %r", error)


class Keys:
    """Names pages: the engine's chained block hashes, bound to the family of our spaces."""

    def __init__(self, page_tokens: int, hash_tokens: int) -> None:
        if page_tokens % hash_tokens:
            raise ValueError(f"page_tokens {page_tokens} is no multiple of {hash_tokens}")
        self.page_tokens = page_tokens
        self._each = page_tokens // hash_tokens
        self._name: Callable[[Sequence[bytes]], bytes] | None = None
        self._salt = b""

    def bind(self, name: Callable[[Sequence[bytes]], bytes]) -> None:
        """From here on keys are made by the family's `keys`."""
        self._name = name

    def forget(self, salt: bytes) -> None:
        """From here on every key is another one: nothing stored before is found again."""
        self._salt = salt

    def pages(self, known: Known) -> int:
        """How many full pages of the request have a hash by now."""
        return len(known.request.block_hashes) // self._each

    def first(self, known: Known, pages: int) -> bytes:
        """The keys of its first pages, as many as have a hash."""
        have = len(known.keys) // KEY_BYTES
        if have and not self._still_holds(known, have):
            known.keys.clear()
            have = known.cursor = 0
        want = min(pages, self.pages(known))
        if want > have:
            known.keys += self._named(known, have, want)
            known.last = known.request.block_hashes[want * self._each - 1]
        return bytes(known.keys[: want * KEY_BYTES])

    def _still_holds(self, known: Known, have: int) -> bool:
        """A conversation that is streamed in may take tokens back, and with them hashes."""
        hashes = known.request.block_hashes
        return have <= self.pages(known) and hashes[have * self._each - 1] == known.last

    def of_all(self, known: Known) -> bytes:
        """The keys of all its pages, made anew: for threads other than the scheduler's."""
        return self._named(known, 0, self.pages(known))

    def _named(self, known: Known, first: int, end: int) -> bytes:
        assert self._name is not None, "keys are asked for before there is a family"
        hashes = known.request.block_hashes
        # The hash at a page's end covers all of the prefix before it.
        ends = [hashes[(page + 1) * self._each - 1] for page in range(first, end)]
        salt = self._salt + known.salt
        if salt:
            ends = [hashlib.sha256(salt + end).digest() for end in ends]
        return self._name(ends)
