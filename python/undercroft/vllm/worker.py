"""A worker's half: carries pages between the engine's blocks and the daemon.

Everything begun is reported, once, however it went: a load that is not reported is a request that
never ends, and a store that is not reported keeps blocks from the engine. Nothing is given up
while a copy may still be under way; the client ends every task by its deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .guard import ENDS, complaints
from .messages import KEY_BYTES, LoadJob, Reports, Step, StoreJob
from .requests import named
from .settings import Settings

# Beyond a task's own deadline, for a batch that a device has begun: after it, a line in the log.
GRACE_S = 30.0


@dataclass
class GroupIo:
    """A group's space and the device of its blocks."""

    space: Any
    device: Any
    layers: Mapping[str, int]
    """Which layer of the page an engine's layer reads, by its name."""


@dataclass
class Loading:
    """A load under way: one task a group."""

    job: LoadJob
    tasks: list[Any]
    began: float
    broken: bool = False
    """A group's task could not be begun, a layer was computed before it was there, or what it
    loads is no longer wanted: nothing of it is of use."""


@dataclass
class Storing:
    """A store under way: the tasks of its groups, and how many pages each has."""

    tasks: list[tuple[Any, int]] = field(default_factory=list)
    broken: bool = False
    """A group's task could not be begun: the daemon has not every page."""


@dataclass
class Finished:
    """What became of loads since it was last asked."""

    requests: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    blocks: set[int] = field(default_factory=set)


class Worker:
    """Loads and stores of one rank."""

    def __init__(
        self,
        settings: Settings,
        groups: Sequence[GroupIo],
        is_storing: bool,
        name: Callable[[Sequence[bytes]], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count: MutableMapping[str, float] = {}
        self._settings = settings
        self._groups = list(groups)
        self._is_storing = is_storing
        self._name = name
        self._clock = clock
        self._loading: dict[str, Loading] = {}
        self._layered: dict[int, list[Loading]] = {}
        self._storing: dict[int, Storing] = {}
        self._finished = Finished()
        self._reports = Reports()

    def begin(self, step: Step) -> None:
        """Takes in what the scheduler says beside what there is to do."""
        if step.is_timed:
            self._reports.over.append(step.number)
        if step.page_s is None:
            return
        try:
            for group in self._groups:
                group.space.set_recompute(step.page_s)
        except ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - loads are not weighed, and go on
            complaints.say("prefill", "undercroft: the prefill rate was not told: %s", error)

    # Loads.

    def load(self, step: Step) -> None:
        """Begins a step's loads."""
        if step.forgets:
            for loading in self._loading.values():
                loading.broken = True
        for loading in self._enter(step):
            try:
                self._begin(loading)
            except ENDS:
                raise
            except BaseException as error:  # noqa: BLE001 - it is known by now, and ends as failed
                loading.broken = True
                complaints.say("load", "undercroft: a load could not be begun: %s", error)

    def refuse_loads(self, step: Step) -> None:
        """Those of a step's loads that are not known yet are over, and failed."""
        for loading in self._enter(step):
            loading.broken = True

    def _enter(self, step: Step) -> Iterable[Loading]:
        """Each of a step's loads that is not known yet, known before anything of it is begun."""
        layered = {loading.job.req_id for loading in self._layered.get(step.number, ())}
        for job in step.loads:
            loading = Loading(job, [], self._clock())
            if job.by_layer and job.req_id not in layered:
                self._layered.setdefault(step.number, []).append(loading)
                yield loading
            elif not job.by_layer and job.req_id not in self._loading:
                self._loading[job.req_id] = loading
                yield loading

    def _begin(self, loading: Loading) -> None:
        job = loading.job
        self._add("loads", 1)
        if not job.keys:
            loading.broken = True
            return
        for group, run in zip(self._groups, job.runs):
            try:
                keys = job.keys[run.skip * KEY_BYTES :]
                pages = len(keys) // KEY_BYTES
                loading.tasks.append(
                    group.space.start_load(
                        group.device,
                        keys,
                        list(run.blocks[:pages]),
                        stamp=job.stamp,
                        deadline=self._settings.load_deadline_ms / 1000,
                        by_layer=job.by_layer,
                    )
                )
            except ENDS:
                raise
            except BaseException as error:  # noqa: BLE001 - the other groups' go on all the same
                loading.broken = True
                complaints.say("load", "undercroft: a load could not be begun: %s", error)
                break

    def wait_layer(self, layer: str) -> None:
        """Waits until a layer of every load inside of this step is in place, or will not be."""
        timeout = self._settings.load_deadline_ms / 1000 + GRACE_S
        for loading in [one for loads in self._layered.values() for one in loads]:
            for group, task in zip(self._groups, loading.tasks):
                if layer not in group.layers:
                    continue
                try:
                    if task.wait_layer(group.layers[layer], timeout) is None:
                        loading.broken = True
                except ENDS:
                    raise
                except BaseException as error:  # noqa: BLE001 - the layer is computed all the same
                    loading.broken = True
                    complaints.say("layer", "undercroft: a layer was not waited for: %s", error)

    def end_layers(self) -> None:
        """The step is over: so are the loads inside of it. Waits for each, however long it takes:
        its blocks are computed again as soon as it is told as failed."""
        for number, loads in self._layered.items():
            for loading in loads:
                try:
                    self._outwait(loading)
                except ENDS:
                    raise
                except BaseException as error:  # noqa: BLE001 - the other loads end all the same
                    loading.broken = True
                    complaints.say("layer", "undercroft: a load was not waited for: %s", error)
                self._settle(loading, told=False)
            self._reports.layered[number] = 1
        self._layered = {}

    def _outwait(self, loading: Loading) -> None:
        timeout = self._settings.load_deadline_ms / 1000 + GRACE_S
        for task in loading.tasks:
            while not task.wait(timeout):
                complaints.say(
                    "outwait",
                    "undercroft: a load of %s is not over %d s after its deadline: waiting on",
                    loading.job.req_id,
                    GRACE_S,
                )

    def poll(self) -> Finished:
        """Loads that are over since the last call."""
        for req_id in [r for r, one in self._loading.items() if all(t.done for t in one.tasks)]:
            self._settle(self._loading.pop(req_id), told=True)
        finished, self._finished = self._finished, Finished()
        return finished

    def _settle(self, loading: Loading, told: bool) -> None:
        job, finished = loading.job, self._finished
        if told:
            finished.requests.add(job.req_id)
        try:
            bad = self._missing(loading)
        except ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - it is told all the same, and as failed
            complaints.say("settle", "undercroft: nothing is known of a load: %s", error)
            bad = {block for run in job.runs for block in run.blocks}
        if bad:
            self._add("loads_failed", 1)
            finished.failed.add(job.req_id)
            finished.blocks |= bad

    def _missing(self, loading: Loading) -> set[int]:
        """The blocks of a load that is over whose page is not in place."""
        job = loading.job
        self._add("load_seconds", self._clock() - loading.began)
        bad: set[int] = set()
        for run, task in zip(job.runs, loading.tasks):
            loaded = task.result(0)
            pages = loaded.pages if loaded is not None and not loading.broken else 0
            bad.update(run.blocks[pages:])
            self._add("loaded_pages", pages)
            if loaded is not None:
                self._add("loaded_bytes", loaded.bytes)
                self._explain(loaded, len(run.blocks))
        for run in job.runs[len(loading.tasks) :]:
            bad.update(run.blocks)
        return bad

    def _explain(self, loaded: Any, wanted: int) -> None:
        if loaded.pages < wanted:
            complaints.say(
                f"load:{loaded.why}",
                "undercroft: a load brought %d of %d pages (%s): the rest is computed",
                loaded.pages,
                wanted,
                loaded.fault or loaded.why,
            )

    # Stores.

    def store(self, step: Step, after: Callable[[Any], Any] | None = None) -> None:
        """Begins a step's stores. `after` orders a device's reads after the step's compute."""
        if not step.stores:
            return
        if not self._is_storing:
            for job in step.stores:
                self._reports.stores[job.number] = (1, True)
            return
        try:
            devices = self._devices(after)
        except ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - stores that are not begun are later misses
            complaints.say("store", "undercroft: a step's stores could not be begun: %s", error)
            self.refuse_stores(step)
            return
        for job in step.stores:
            # Known before anything of it is begun: whatever raises, it is told.
            storing = self._storing[job.number] = Storing()
            try:
                self._begin_store(job, devices, storing)
            except ENDS:
                raise
            except BaseException as error:  # noqa: BLE001 - a store not begun is a later miss
                storing.broken = True
                complaints.say("store", "undercroft: a store could not be begun: %s", error)

    def refuse_stores(self, step: Step) -> None:
        """Those of a step's stores that are not known yet are over, and nothing was stored."""
        for job in step.stores:
            if job.number not in self._storing:
                self._reports.stores.setdefault(job.number, (1, False))

    def _devices(self, after: Callable[[Any], Any] | None) -> list[Any]:
        if after is None:
            return [group.device for group in self._groups]
        return [after(group.device) for group in self._groups]

    def _begin_store(self, job: StoreJob, devices: Sequence[Any], storing: Storing) -> None:
        self._add("stores", 1)
        all_keys = named(self._name, job.salt, job.hashes)
        for group, device, run in zip(self._groups, devices, job.runs):
            if not run.blocks:
                continue
            try:
                # Before the run comes the page before it, where there is one.
                begins = (run.skip + (job.first > 0)) * KEY_BYTES
                task = group.space.start_store(
                    device,
                    all_keys[begins:],
                    list(run.blocks),
                    parent=all_keys[begins - KEY_BYTES : begins] or None,
                    first=job.first + run.skip,
                    stamp=job.stamp,
                    deadline=self._settings.store_deadline_ms / 1000,
                    wait_for_credits=True,
                )
                storing.tasks.append((task, len(run.blocks)))
            except ENDS:
                raise
            except BaseException as error:  # noqa: BLE001 - the other groups' go on all the same
                storing.broken = True
                complaints.say("store", "undercroft: a store could not be begun: %s", error)

    def take_reports(self) -> Reports | None:
        """What is done since the last call; None if nothing is."""
        for number, storing in list(self._storing.items()):
            if not all(task.done for task, _pages in storing.tasks):
                continue
            del self._storing[number]
            self._reports.stores[number] = (1, self._all_whole(storing))
        reports, self._reports = self._reports, Reports()
        return None if reports.is_empty() else reports

    def _all_whole(self, storing: Storing) -> bool:
        try:
            whole = [self._is_whole(task.result(0), pages) for task, pages in storing.tasks]
        except ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - it is told all the same
            complaints.say("stored", "undercroft: nothing is known of a store: %s", error)
            return False
        return all(whole) and not storing.broken

    def _is_whole(self, stored: Any, pages: int) -> bool:
        if stored is None:
            return False
        declined = sum(stored.declined.values())
        self._add("stored_pages", stored.stored)
        self._add("held_pages", stored.held)
        self._add("declined_pages", declined)
        self._add("failed_pages", stored.failed + stored.unsettled)
        if stored.failed or stored.fault:
            complaints.say(
                "stored", "undercroft: %d pages not stored: %s", stored.failed, stored.fault
            )
        return stored.stored + stored.held == pages

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._loading and not self._storing and not self._layered

    def drain(self, seconds: float) -> None:
        """Waits for stores under way, at most so long."""
        until = self._clock() + seconds
        for storing in self._storing.values():
            for task, _pages in storing.tasks:
                task.wait(max(0.0, until - self._clock()))

    def _add(self, name: str, value: float) -> None:
        self.count[name] = self.count.get(name, 0) + value
