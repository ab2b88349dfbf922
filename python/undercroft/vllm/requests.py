"""What the scheduler's half remembers of a request, from its first lookup to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from .guard import ENDS, complaints
from .messages import KEY_BYTES


class Known:
    """One request. The engine's own object is kept, not copied: its hashes grow with it.

    Most requests change little of this, and every one's beginning is the scheduler's time.
    """

    salt = b""
    """Bound into every key, where the engine's hash does not say everything."""
    usable = True
    """Whether pages of this request can be named at all."""
    items = 0
    """How many pictures and the like it has that were looked at for that."""
    last = b""
    """The engine's hash of the last page whose key is known."""
    cursor = 0
    """Pages before this one are known to be with the daemon, or were offered."""
    computed = 0
    """Tokens whose KV steps that were scheduled have computed, or loads brought."""
    rewind = False
    """Its computed tokens went back: the cursor must follow."""
    preemptions = 0
    """How often it had been preempted when we last looked."""
    local = 0
    """The engine's own hit when it last asked, pages. The engine's request still says 0 when
    it allocates blocks, so what it told us then is what counts."""
    epoch = -1
    """The number of preemptions at which a load was last begun: one load for each, so that a
    load that failed is never tried again."""
    loading = False
    layer_step = 0
    """The step its load is part of; 0 for one between steps."""
    failed = False
    blocks: frozenset[int] = frozenset()
    """The blocks being loaded."""
    begun: Any = None
    """A lookup on its way, of which keys, and since when."""
    begun_keys = b""
    begun_at = 0.0
    hold: Any = None
    is_absent = False
    """The daemon had nothing of it when the engine last asked, and did not need to be asked."""
    seen: int | None = None
    """Leading pages the last lookup found; None if it was not answered."""
    seen_at = float("-inf")
    stamp = 0
    sources = (0, 0)
    """Of these, pages in DRAM and on SSD."""

    keys = b""
    """Keys of its leading pages, as far as they were needed."""

    def __init__(self, request: Any) -> None:
        self.request = request

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
        self._family: Any = None
        self._name: Callable[[Sequence[bytes]], bytes] | None = None
        self._salt = b""

    def bind(self, family: Any) -> None:
        """From here on keys are made by this family."""
        self._family, self._name = family, family.keys

    def forget(self, salt: bytes) -> None:
        """From here on every key is another one: nothing stored before is found again."""
        self._salt = salt

    def hashes(self, known: Known, first: int, end: int) -> tuple[list[bytes], bytes]:
        """What the keys of these pages are made of, as many as have a hash: the engine's hashes,
        and what is bound into every key beside them."""
        hashes, salt = known.request.block_hashes, self._salt + known.salt
        if self._each == 1:
            return hashes[first:end], salt
        # The hash at a page's end covers all of the prefix before it.
        return hashes[(first + 1) * self._each - 1 : end * self._each : self._each], salt

    def may_begin(self, client: Any, known: Known, peek: bool) -> bool | None:
        """Whether the daemon may have its first page; None if it has none, or nobody is there to
        tell. Asks nobody."""
        hashes = known.request.block_hashes
        if len(hashes) < self._each:
            return None
        first = hashes[self._each - 1]
        salt = self._salt + known.salt
        if salt:
            first = _salted(salt, first)
        return client.may_begin(self._family, first, peek=peek)

    def pages(self, known: Known) -> int:
        """How many full pages of the request have a hash by now."""
        return len(known.request.block_hashes) // self._each

    def first(self, known: Known, pages: int) -> bytes:
        """The keys of its first pages, as many as have a hash."""
        have = len(known.keys) // KEY_BYTES
        if have and not self._still_holds(known, have):
            known.keys = b""
            have = known.cursor = 0
        want = min(pages, self.pages(known))
        if want > have:
            known.keys += self._named(known, have, want)
            known.last = known.request.block_hashes[want * self._each - 1]
        return known.keys[: want * KEY_BYTES]

    def _still_holds(self, known: Known, have: int) -> bool:
        """A conversation that is streamed in may take tokens back, and with them hashes."""
        hashes = known.request.block_hashes
        return have <= self.pages(known) and hashes[have * self._each - 1] == known.last

    def of_all(self, known: Known) -> bytes:
        """The keys of all its pages, made anew: for threads other than the scheduler's."""
        return self._named(known, 0, self.pages(known))

    def _named(self, known: Known, first: int, end: int) -> bytes:
        assert self._name is not None, "keys are asked for before there is a family"
        hashes, salt = self.hashes(known, first, end)
        return named(self._name, salt, hashes)


def named(
    name: Callable[[Sequence[bytes]], bytes], salt: bytes, hashes: Sequence[bytes]
) -> bytes:
    """The keys of pages by the engine's hashes of them, made by a family's `keys`."""
    if salt:
        hashes = [_salted(salt, one) for one in hashes]
    return name(hashes)


def _salted(salt: bytes, value: bytes) -> bytes:
    return hashlib.sha256(salt + value).digest()
