"""The scheduler's half: what to load, what to store, and what becomes of it.

The hold of a lookup stays with the scheduler's session and the workers fetch by key. A hold
belongs to one session at a time: handing it over by token would take a round trip here and one in
a worker, and one hold for each of several ranks. Kept here, one hold keeps the pages for all
ranks alike, until the load is over; a page that is gone all the same is a failed block.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import MutableMapping, Sequence
from typing import Any

from .adapters import Adapters
from .events import Announced
from .guard import ENDS, complaints, logger
from .items import are_named_by_content
from .lookups import Lookups
from .messages import KEY_BYTES, LoadJob, Reports, Run, Step
from .prefetches import Prefetches
from .prefill import Prefill
from .requests import Keys, Known
from .settings import Settings
from .stores import Stores
from .versions import Shim, block_table


class Scheduler:
    """The state of every request the engine has not ended, and nothing of those it has."""

    def __init__(
        self, settings: Settings, shim: Shim, page_tokens: int, hash_tokens: int, workers: int
    ) -> None:
        self.count: MutableMapping[str, float] = {}
        self._settings = settings
        self._shim = shim
        self._workers = workers
        self._keys = Keys(page_tokens, hash_tokens)
        self.hash_tokens = hash_tokens
        self._lookups = Lookups(settings, self._keys, self.count)
        self._stores = Stores(self._keys, workers, settings.max_pinned_share, self.count)
        self._adapters = Adapters()
        self._prefill = Prefill(page_tokens, settings.prefill_tokens_per_s)
        self._known: dict[str, Known] = {}
        self._loading: dict[str, Known] = {}
        self._loads: list[LoadJob] = []
        self._forgets = False
        self._has_come = False
        """Whether a request has come since the last step."""
        self._was_connected = False
        """Whether the daemon has been there since the last step."""
        self._steps = 0
        self._layered: dict[int, int] = {}
        self._client: Any = None
        self._spaces: list[Any] | None = None
        self._null = 0
        self._prefetches: Prefetches | None = None
        self.announced: Announced | None = None

    def announce(self, announced: Announced) -> None:
        """From here on stores and losses are told as events."""
        self.announced = self._lookups.announced = announced
        self._stores.are_told = True

    def bind_pool(self, pool: Any) -> None:
        """The engine's blocks."""
        self._null = pool.null_block.block_id
        self._stores.bind(pool)

    def bind_daemon(self, client: Any, spaces: list[Any], family: Any) -> None:
        """The daemon's client, the spaces of all ranks and groups, and what names their pages."""
        self._keys.bind(family)
        self._client, self._spaces = client, spaces
        if self._settings.prefetch and self._settings.load != "off":
            self._prefetches = Prefetches(self._settings, self._keys, spaces)

    def spaces(self) -> list[Any] | None:
        """All spaces, where the daemon is there to be asked."""
        if self._spaces is None or not self._client.is_connected:
            return None
        return self._spaces

    # Requests come and go.

    def known(self, request: Any) -> Known:
        """What is remembered of a request."""
        known = self._known.get(request.request_id)
        if known is None or known.request is not request:
            if known is not None:
                self._lookups.ended(known)
            known = Known(request)
            if request.lora_request is not None:
                self._name_adapter(known, request.lora_request)
            self._known[request.request_id] = known
        if len(request.mm_features) != known.items:
            self._name_items(known)
        return known

    def _name_adapter(self, known: Known, lora: Any) -> None:
        # One that is loaded over another of its name may come while requests run.
        is_steady = not getattr(lora, "load_inplace", False)
        salt = self._adapters.salt(lora.lora_path) if is_steady else None
        known.usable = salt is not None
        known.salt = salt or b""

    def _name_items(self, known: Known) -> None:
        """Conversations that are streamed in get more of them."""
        was_usable, known.usable = known.usable, False
        known.items = len(known.request.mm_features)
        known.usable = was_usable and are_named_by_content(known.request)

    def arrived(self, request: Any) -> None:
        """The engine has put a request into its queue."""
        if not (self._known or self._has_come):
            # It does not wait: its turn is next.
            self._has_come = True
            return
        known = self.known(request)
        if self._spaces is None or not known.usable or self._settings.load == "off":
            return
        may_hit = self._lookups.begin(self._client, self._spaces, known)
        if may_hit and self._prefetches is not None:
            self._prefetches.add(known)

    def finished(self, request: Any, tables: Sequence[Sequence[int]]) -> None:
        """The engine is done with a request and about to free its blocks."""
        known = self._known.pop(request.request_id, None)
        if known is None:
            return
        if len(request.mm_features) != known.items:
            self._name_items(known)
        if known.begun is not None:
            self._lookups.ended(known)
        if known.loading:
            # Its blocks stay until the workers are done writing to them.
            return
        if known.hold is not None:
            known.drop_hold()
        if known.computed // self._keys.page_tokens <= known.cursor or not self._settings.store:
            return
        if self.spaces() is not None:
            tokens = min(known.computed, request.num_computed_tokens)
            self._stores.plan(known, tables, tokens)

    # Loads.

    def claim(self, request: Any, computed_tokens: int) -> int:
        """How many tokens beyond the engine's own hit are worth loading."""
        known = self.known(request)
        if request.num_preemptions != known.preemptions:
            known.notice_preemption()
        known.local = computed_tokens // self._keys.page_tokens
        if self._spaces is None or self._settings.load == "off" or not known.usable:
            return 0
        if getattr(request, "skip_reading_prefix_cache", False):
            return 0
        if known.epoch == request.num_preemptions:
            return 0
        may_begin = self._keys.may_begin(self._client, known, known.is_absent)
        if may_begin:
            known.is_absent = False
            # The lookup may find that it hangs.
            self._was_connected = False
            return self._lookups.claim(self._client, self._spaces, known, computed_tokens)
        if may_begin is not None:
            self._was_connected = True
        self._lookups.absent(known, may_begin is not None)
        return 0

    def allocated(self, request: Any, tables: Sequence[Sequence[int]], tokens: int) -> None:
        """The engine has blocks for what we claimed, or for `tokens` of it."""
        known = self.known(request)
        if tokens <= 0:
            return
        page_tokens = self._keys.page_tokens
        first = known.local
        pages = -(-tokens // page_tokens)
        keys = self._keys.first(known, first + pages)[first * KEY_BYTES :]
        runs = tuple(self._run(table[first : first + pages]) for table in tables)
        by_layer = self._settings.load == "layers"
        job = LoadJob(request.request_id, keys, runs, known.stamp, by_layer)
        self._begin(known, job)
        known.computed = max(known.computed, (first + pages) * page_tokens)

    def unused(self, request: Any) -> None:
        """The engine has blocks for a request, and loads nothing of what we claimed."""
        known = self._known.get(request.request_id)
        if known is None:
            return
        # Where the engine's own hit is enough, nobody has taken the answer.
        if known.begun is not None:
            self._lookups.ended(known)
        if known.hold is not None and not known.loading:
            known.drop_hold()

    def must_fail(self, request: Any, tables: Sequence[Sequence[int]]) -> None:
        """The engine waits for a load that could not be planned: it is to fail at once."""
        known = self.known(request)
        runs = tuple(self._run(table[known.local :]) for table in tables)
        self._begin(known, LoadJob(request.request_id, b"", runs, 0))

    def _begin(self, known: Known, job: LoadJob) -> None:
        known.epoch = known.request.num_preemptions
        known.loading, known.failed = True, False
        known.blocks = frozenset(block for run in job.runs for block in run.blocks)
        self._loading[job.req_id] = known
        self._loads.append(job)

    def _run(self, table: Sequence[int]) -> Run:
        skip = max((i + 1 for i, block in enumerate(table) if block == self._null), default=0)
        return Run(skip, tuple(table[skip:]))

    def _load_over(self, req_id: str) -> None:
        known = self._loading.pop(req_id, None)
        if known is None:
            return
        known.loading = False
        known.drop_hold()
        if known.failed:
            known.rewind = True
            known.computed = 0

    # Steps.

    def step(self, scheduler_output: Any) -> Step:
        """What the workers are to do in this step."""
        self._steps += 1
        self._has_come = False
        if self._lookups.has_asked:
            self._lookups.new_step()
        step = Step(self._steps, self._loads, forgets=self._forgets)
        self._loads, self._forgets = [], False
        step.is_timed = self._prefill.planned(step.number, scheduler_output)
        if self._spaces is not None and (page_s := self._prefill.news()) is not None:
            self._tell_prefill(page_s)
            step.page_s = page_s
        for job in step.loads:
            if job.by_layer:
                self._layered[step.number] = 0
                if (known := self._loading.get(job.req_id)) is not None:
                    known.layer_step = step.number
        try:
            self._plan(scheduler_output)
        except ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - loads and pinned blocks must reach workers
            complaints.say("plan", "undercroft: stores of a step were not planned: %r", error)
        self._was_connected = False
        step.stores = self._stores.take()
        return step

    def _tell_prefill(self, page_s: float) -> None:
        for space in self._spaces or ():
            space.set_recompute(page_s)
        rate = self._prefill.tokens_per_s
        logger.info("undercroft: loads are weighed against computing %.0f tokens a second", rate)

    def _plan(self, scheduler_output: Any) -> None:
        may_store: bool | None = None
        fresh: dict[str, Any] = {}
        for req_id, scheduled in scheduler_output.num_scheduled_tokens.items():
            known = self._known.get(req_id)
            if known is None:
                continue
            request = known.request
            if len(request.mm_features) != known.items:
                self._name_items(known)
            if request.num_preemptions != known.preemptions:
                known.notice_preemption()
            computed = request.num_computed_tokens
            if known.rewind or computed < known.computed:
                known.cursor = min(known.cursor, computed // self._keys.page_tokens)
                known.rewind = False
            known.computed = computed + scheduled
            if known.computed // self._keys.page_tokens <= known.cursor:
                continue
            if may_store is None:
                may_store = self._may_store()
                if may_store:
                    # What the engine has made for its workers anyway.
                    for new in scheduler_output.scheduled_new_reqs:
                        fresh[new.req_id] = new.block_ids
            if may_store:
                tables = fresh.get(req_id)
                if tables is None:
                    tables = block_table(self._shim, scheduler_output, req_id)
                if tables is not None:
                    self._stores.plan(known, tables, known.computed)

    def _may_store(self) -> bool:
        # A load inside of a step may fail in it, and what was computed upon it is wrong: until
        # every rank has said that the step was right, nothing computed is offered.
        if self._layered or not self._settings.store:
            return False
        return self._was_connected or self.spaces() is not None

    def heard(self, output: Any) -> None:
        """What the workers say after a step."""
        invalid = getattr(output, "invalid_block_ids", None)
        if invalid:
            for known in self._known.values():
                known.rewind = True
            for known in self._loading.values():
                known.failed |= not known.blocks.isdisjoint(invalid)
        for req_id in getattr(output, "failed_recving", None) or ():
            if req_id in self._loading:
                self._loading[req_id].failed = True
        for req_id in output.finished_recving or ():
            self._load_over(req_id)
        reports = output.kv_connector_worker_meta
        self._prefill.over(reports.over if isinstance(reports, Reports) else [])
        if isinstance(reports, Reports):
            self._settle(reports)

    def _settle(self, reports: Reports) -> None:
        done = []
        for number, (workers, whole) in reports.stores.items():
            try:
                pinned = self._stores.report(number, workers, whole)
                if pinned is not None and pinned.whole and pinned.of is not None:
                    done.append(pinned.of)
            except ENDS:
                raise
            except BaseException as error:  # noqa: BLE001 - the other stores are over all the same
                complaints.say("report", "undercroft: a store was not settled: %r", error)
        for number, workers in reports.layered.items():
            if number in self._layered:
                self._layered[number] += workers
                if self._layered[number] >= self._workers:
                    del self._layered[number]
                    self._layers_over(number)
        # Last: nothing that ends hangs on what is told of it.
        for known, job in done:
            if self.announced is not None:
                self.announced.stored(known, job.first, job.pages)

    def _layers_over(self, step: int) -> None:
        for req_id in [r for r, known in self._loading.items() if known.layer_step == step]:
            self._load_over(req_id)

    @property
    def has_pending(self) -> bool:
        """Whether workers have yet to say that they are done with blocks of ended requests."""
        return self._stores.is_under_way

    @property
    def will_free(self) -> bool:
        """Whether stores that end will soon give the engine blocks."""
        return self._stores.will_free()

    def sources(self, request: Any, tokens: int) -> tuple[int, int]:
        """How many of `tokens` loaded came from DRAM and from SSD."""
        known = self._known.get(request.request_id)
        dram, ssd = known.sources if known is not None else (1, 0)
        from_ssd = tokens * ssd // max(dram + ssd, 1)
        return tokens - from_ssd, from_ssd

    def forget(self) -> None:
        """Nothing stored before may be found again: the weights may have changed."""
        self._keys.forget(os.urandom(32))
        self._stores.forget()
        for known in self._known.values():
            known.keys = b""
            known.drop_hold()
            self._lookups.ended(known)
            known.seen, known.cursor = None, 0
        # Those planned are to fail where they are begun; those begun are to fail when over.
        self._loads = [dataclasses.replace(job, keys=b"") for job in self._loads]
        self._forgets = bool(self._loading)
        for known in self._loading.values():
            known.failed = True
        if self.announced is not None:
            self.announced.forgotten()

    def close(self) -> None:
        """Gives back every hold."""
        if self._prefetches is not None:
            self._prefetches.close()
        for known in [*self._known.values(), *self._loading.values()]:
            known.drop_hold()
        self._known.clear()
