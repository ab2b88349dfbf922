"""Asks the daemon what a request need not compute, and never waits long for the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from typing import Any

from .events import Announced
from .messages import KEY_BYTES
from .requests import Keys, Known
from .settings import Settings

# A request that could not be scheduled is asked for again at every step; the answer is not.
ASK_AGAIN_S = 1.0
# So many requests that nobody has been asked for yet may have a lookup on its way.
MOST_BEGUN = 64
# With less than this left of a step's time for lookups none is asked: it would be no answer.
LEAST_S = 0.0005


class Lookups:
    """Lookups over every space of the family: all ranks and groups."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        count: MutableMapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._count = count
        self._clock = clock
        self._due = settings.load_deadline_ms / 1000
        self._left = 0.0
        self._begun = 0
        self.new_step()
        self.announced: Announced | None = None

    def new_step(self) -> None:
        """One step's lookups have one deadline together, however many requests there are."""
        self.has_asked = False
        self._left = self._settings.lookup_deadline_ms / 1000

    def begin(self, client: Any, spaces: list[Any], known: Known) -> bool:
        """Asks for a request that has just come: by its turn the answer is there. Whether anything
        may be found."""
        if not self._keys.may_begin(client, known, peek=True):
            return False
        self._begin(client, spaces, known)
        return True

    def _begin(self, client: Any, spaces: list[Any], known: Known) -> None:
        if self._begun >= MOST_BEGUN:
            return
        pages = self._most(known)
        if pages * self._keys.page_tokens < max(self._settings.min_tokens, 1):
            return
        asked = min(pages, self._settings.first_slice_pages)
        keys = self._keys.first(known, asked)
        hold = self._settings.hold_ms / 1000
        known.begun = client.start_lookup(spaces, keys, hold=hold, deadline=0.0, due=self._due)
        known.begun_keys, known.begun_at = keys, self._clock()
        self._begun += 1

    def ended(self, known: Known) -> Any:
        """Its answer is taken or of no use any more."""
        begun, known.begun = known.begun, None
        if begun is not None:
            self._begun -= 1
        return begun

    def _most(self, known: Known) -> int:
        """Pages that may be worth loading. The last token is always computed: its logits are what
        the request is about."""
        most = (known.request.num_tokens - 1) // self._keys.page_tokens
        return min(most, self._keys.pages(known))

    def claim(self, client: Any, spaces: list[Any], known: Known, computed_tokens: int) -> int:
        """How many tokens beyond `computed_tokens` are worth loading."""
        page_tokens = self._keys.page_tokens
        limit = self._most(known)
        gain = (limit - known.local) * page_tokens
        if computed_tokens % page_tokens or gain < max(self._settings.min_tokens, 1):
            return 0
        self._look(client, spaces, known, limit)
        pages = min(known.seen or 0, limit) - known.local
        tokens = pages * page_tokens
        if pages <= 0 or tokens < self._settings.min_tokens or known.hold is None:
            known.drop_hold()
            return 0
        self._count["claimed_tokens"] = self._count.get("claimed_tokens", 0) + tokens
        return tokens

    def absent(self, known: Known, is_told: bool) -> None:
        """Nothing of it can be found: there is no page, nobody is there, or the daemon's board has
        told that it has no such beginning."""
        known.seen_at, known.cursor = float("-inf"), 0
        if known.begun is not None:
            self.ended(known)
        if known.hold is not None:
            known.drop_hold()
        if known.is_absent or not is_told:
            return
        known.is_absent = True
        self._count["absent"] = self._count.get("absent", 0) + 1
        if self.announced is not None:
            self.announced.missed(known, 0, self._most(known))

    def _look(self, client: Any, spaces: list[Any], known: Known, limit: int) -> None:
        now = self._clock()
        fresh = min(ASK_AGAIN_S, self._settings.hold_ms / 2000)
        if now - known.seen_at < fresh:
            return
        known.drop_hold()
        known.seen = None
        if self._left < LEAST_S:
            self._count["lookup_skipped"] = self._count.get("lookup_skipped", 0) + 1
            return
        known.seen_at = now
        slice_pages = self._settings.first_slice_pages
        asked = min(limit, slice_pages)
        begun = self.ended(known)
        is_fresh = begun is not None and now - known.begun_at < fresh
        if is_fresh and known.begun_keys == self._keys.first(known, asked):
            found = self._take(known, begun.result)
        else:
            found = self._ask(client, spaces, known, asked)
        is_cut = found is not None and found.present == asked < limit
        # What it had to read of pages that the engine has itself is of no account.
        is_off = is_fresh and found is not None and known.local > 0 and found.worth < found.present
        if (is_cut or is_off) and self._left >= LEAST_S:
            known.drop_hold()
            found = self._ask(client, spaces, known, limit)
        if found is None:
            return
        known.seen, known.stamp = found.pages, found.stamp
        known.sources = (found.dram, found.ssd)
        known.cursor = found.pages
        if self.announced is not None and found.why == "absent":
            self.announced.missed(known, found.pages, limit)
        self._add("found_pages", found.present)
        self._add("unworthy_pages", found.present - found.worth)
        if found.estimate > self._settings.load_deadline_ms / 1000:
            known.drop_hold()

    def _ask(self, client: Any, spaces: list[Any], known: Known, pages: int) -> Any:
        keys = self._keys.first(known, pages)
        if len(keys) < pages * KEY_BYTES:
            return None
        hold = self._settings.hold_ms / 1000
        return self._take(
            known,
            lambda left: client.lookup(
                spaces, keys, hold=hold, deadline=left, due=self._due, have=known.local
            ),
        )

    def _take(self, known: Known, answer: Callable[[float], Any]) -> Any:
        """An answer, within what is left of the step's time."""
        self.has_asked = True
        began = self._clock()
        found = answer(self._left)
        took = self._clock() - began
        self._left -= took
        count = self._count
        count["lookups"] = count.get("lookups", 0) + 1
        count["lookup_seconds"] = count.get("lookup_seconds", 0) + took
        known.hold = found.hold
        if found.why not in (None, "absent", "too_long", "slower"):
            known.drop_hold()
            count["lookup_missed"] = count.get("lookup_missed", 0) + 1
            return None
        return found

    def _add(self, name: str, value: float) -> None:
        self._count[name] = self._count.get(name, 0) + value
