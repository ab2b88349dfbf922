"""Connectors that look at what the real one does, or make it fail: it runs as it is, over a client
that tells this module of every load and store before they begin and after they have ended.

An engine loads one of them in place of `UndercroftConnector`; everything here happens in its
process.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import undercroft

RealClient = undercroft.Client
KEY_BYTES = 32


class Watch:
    """What is done at each load and store. By itself nothing."""

    caches: dict[str, Any] = {}
    """The engine's KV caches, layer by layer."""

    def lookup(self, ask: Callable[[], Any]) -> Any:
        return ask()

    def begin_load(self, begin: Callable[[], Any], blocks: list[int]) -> Any:
        return begin()

    def loaded(self, keys: bytes, blocks: list[int], result: Any) -> Any:
        return result

    def begin_store(self, begin: Callable[[], Any], keys: bytes, blocks: list[int]) -> Any:
        return begin()

    def stored(self, keys: bytes, blocks: list[int], result: Any) -> Any:
        return result

    def allocated(self) -> None:
        """The engine has made room for a load."""


watch = Watch()


def content(block: int) -> bytes:
    """The digest of all that a block holds, over all layers."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(watch.caches):
        whole.update(bytes_of(name, block).numpy().tobytes())
    return whole.digest()


def bytes_of(layer: str, block: int) -> Any:
    """One layer's bytes of one block. The block's dimension comes first in every cache of a CPU."""
    import torch

    return watch.caches[layer][block].contiguous().view(torch.uint8)


class Task:
    """A load or store under way; tells when its result is first seen."""

    def __init__(self, real: Any, seen: Callable[[Any], Any]) -> None:
        self._real = real
        self._seen = seen
        self._result: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def result(self, timeout: float | None = None) -> Any:
        if self._result is None:
            result = self._real.result(timeout)
            if result is not None:
                self._result = self._seen(result)
        return self._result


class Space:
    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def start_load(self, device: Any, keys: bytes, blocks: list[int], **more: Any) -> Any:
        task = watch.begin_load(lambda: self.real.start_load(device, keys, blocks, **more), blocks)
        return Task(task, lambda result: watch.loaded(keys, blocks, result))

    def start_store(self, device: Any, keys: bytes, blocks: list[int], **more: Any) -> Any:
        begin = lambda: self.real.start_store(device, keys, blocks, **more)  # noqa: E731
        task = watch.begin_store(begin, keys, blocks)
        return Task(task, lambda result: watch.stored(keys, blocks, result))


class Client:
    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.real = RealClient(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def open_space(self, *arguments: Any, **more: Any) -> Space:
        return Space(self.real.open_space(*arguments, **more))

    def start_lookup(self, spaces: list[Space], keys: bytes, **more: Any) -> Any:
        begun = self.real.start_lookup([space.real for space in spaces], keys, **more)
        return SimpleNamespace(result=lambda left: watch.lookup(lambda: begun.result(left)))

    def lookup(self, spaces: list[Space], keys: bytes, **more: Any) -> Any:
        return watch.lookup(
            lambda: self.real.lookup([space.real for space in spaces], keys, **more)
        )


undercroft.Client = Client  # type: ignore[misc,assignment]

# After the client was put in its place: what this imports takes the one above.
from undercroft.vllm import UndercroftConnector  # noqa: E402


class Probe(UndercroftConnector):
    """The real connector, watched."""

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        watch.caches = dict(kv_caches)
        super().register_kv_caches(kv_caches)

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        scheduler = self._scheduler
        if scheduler is not None:
            # Inside of the hook: what is raised here meets what the hook is guarded by.
            real = scheduler.allocated

            def allocated(*told: Any) -> Any:
                watch.allocated()
                return real(*told)

            scheduler.allocated = allocated  # type: ignore[method-assign]


def begin_watch(chosen: Watch) -> None:
    global watch
    chosen.caches = watch.caches
    watch = chosen


# Wrong bytes on purpose: would a suite see them?


class Damage(Watch):
    """Turns one byte of every loaded block, in the middle of its layers."""

    def loaded(self, keys: bytes, blocks: list[int], result: Any) -> Any:
        names = sorted(self.caches)
        layer = self.caches[names[len(names) // 2]]
        for block in blocks[: result.pages]:
            part = layer[block].flatten()
            # The sign and exponent of one number: what it says is far from what was stored.
            part[len(part) // 2] = -8.0 * (part[len(part) // 2] + 1.0)
        return result


class DamagingConnector(Probe):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        begin_watch(Damage())
        super().__init__(*arguments, **more)


# Digests of every block that is stored and loaded.


class Digests(Watch):
    """Writes a line for each: what was done, the key, the digest of the block."""

    def __init__(self, path: str) -> None:
        # Lines are appended whole, so that engines may share the file.
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what: str, keys: bytes, blocks: list[int]) -> None:
        lines = [
            f"{what} {keys[at * KEY_BYTES : (at + 1) * KEY_BYTES].hex()} {content(block).hex()}\n"
            for at, block in enumerate(blocks)
        ]
        os.write(self.file, "".join(lines).encode())

    def begin_store(self, begin: Callable[[], Any], keys: bytes, blocks: list[int]) -> Any:
        self.write("offered", keys, blocks)
        return begin()

    def stored(self, keys: bytes, blocks: list[int], result: Any) -> Any:
        # What is under way must not change: it is copied by another thread.
        self.write(
            "stored" if result.stored + result.held == len(blocks) else "settled", keys, blocks
        )
        return result

    def loaded(self, keys: bytes, blocks: list[int], result: Any) -> Any:
        self.write("loaded", keys, blocks[: result.pages])
        return result


class DigestingConnector(Probe):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        begin_watch(Digests(os.environ["UNDERCROFT_DIGESTS"]))
        super().__init__(*arguments, **more)


# Faults.


class Faults(Watch):
    """Does one thing at one point, once, when the suite has armed it."""

    def __init__(self) -> None:
        self.point = ""
        self.act: Callable[[], Any] = lambda: None
        self.short: int | None = None
        self.met = 0

    def arm(self, point: str, act: str, pid: int = 0, short: int | None = None) -> None:
        self.point, self.short, self.met = point, short, 0
        self.act = {
            "raise": lambda: self._raise(),
            "kill": lambda: self._signal(pid, 9),
            "freeze": lambda: self._signal(pid, 19),
            "nothing": lambda: None,
        }[act]

    @staticmethod
    def _raise() -> None:
        raise undercroft.UndercroftError("a fault made on purpose")

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        os.kill(pid, number)
        if number == 9:
            until = time.monotonic() + 5
            while _runs(pid) and time.monotonic() < until:
                time.sleep(0.005)

    def at(self, point: str) -> bool:
        if point != self.point:
            return False
        self.point = ""
        self.met += 1
        self.act()
        return True

    def lookup(self, ask: Callable[[], Any]) -> Any:
        self.at("before lookup")
        found = ask()
        if found.pages:
            self.at("after lookup")
        return found

    def allocated(self) -> None:
        self.at("allocation")

    def begin_load(self, begin: Callable[[], Any], blocks: list[int]) -> Any:
        self.at("before load")
        task = begin()
        self.at("during load")
        return task

    def loaded(self, keys: bytes, blocks: list[int], result: Any) -> Any:
        if not self.at("after load") or self.short is None:
            return result
        # What did not arrive holds something else, as it does when a copy ends in the middle.
        for layer in self.caches.values():
            for block in blocks[self.short :]:
                layer[block].fill_(3.0)
        kept = min(self.short, result.pages)
        return SimpleNamespace(pages=kept, ssd_pages=0, bytes=0, why="damaged", fault=None)

    def begin_store(self, begin: Callable[[], Any], keys: bytes, blocks: list[int]) -> Any:
        self.at("before store")
        task = begin()
        self.at("during store")
        return task

    def stored(self, keys: bytes, blocks: list[int], result: Any) -> Any:
        self.at("after store")
        return result


def _runs(pid: int) -> bool:
    """Whether a process still does anything: a dead one may wait for its parent to look."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


faults = Faults()


def arm(point: str, act: str, pid: int = 0, short: int | None = None) -> None:
    """An order of the suite."""
    faults.arm(point, act, pid, short)


def met() -> int:
    """How often the armed point was reached."""
    return faults.met


class FaultyConnector(Probe):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        begin_watch(faults)
        super().__init__(*arguments, **more)


# Times.

HOOKS = (
    "on_new_request",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
    "request_finished_all_groups",
    "get_external_cache_hit_sources",
    "has_pending_push_work",
    "has_pending_block_frees",
    "take_events",
    "get_kv_connector_stats",
    "handle_preemptions",
    "bind_connector_metadata",
    "start_load_kv",
    "wait_for_layer_load",
    "save_kv_layer",
    "wait_for_save",
    "get_transfer_results",
    "get_block_ids_with_load_errors",
    "finish_forward",
    "build_connector_worker_meta",
    "get_kv_connector_kv_cache_events",
    "clear_connector_metadata",
)
taken: dict[str, list[float]] = {}


class TimedConnector(UndercroftConnector):
    """Adds up the time inside of every hook."""


def _timed(name: str) -> Callable[..., Any]:
    real = getattr(UndercroftConnector, name)

    def hook(self: Any, *arguments: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(self, *arguments, **more)
        finally:
            spent = time.perf_counter() - start
            # Each half is a connector of its own, and both are asked for what they counted.
            taken.setdefault(f"{self.role.name.lower()}.{name}", []).append(spent)

    return hook


for _name in HOOKS:
    if hasattr(UndercroftConnector, _name):
        setattr(TimedConnector, _name, _timed(_name))


def times() -> dict[str, list[float]]:
    """Seconds of each call since the last time this was asked."""
    counted = {name: list(values) for name, values in taken.items()}
    taken.clear()
    return counted
