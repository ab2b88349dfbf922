"""Undercroft as LMCache's L2: what is submitted completes once, and right."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
import unittest
from dataclasses import dataclass
from typing import Any
from unittest import mock

import standins
from serving import Daemon

IS_REAL = standins.use_lmcache()

from undercroft.lmcache import UndercroftL2Adapter  # noqa: E402  needs LMCache or its stand-in

#: One object: K and V of two layers of 16 tokens of one head.
SHAPE = (2, 2, 16, 64)
OBJECT_BYTES = 2 * 2 * 16 * 64 * 2
PATIENCE = 20.0


@dataclass(frozen=True)
class Key:
    """LMCache's ObjectKey."""

    chunk_hash: bytes
    model_name: str = "m"
    kv_rank: int = 1 << 24 | 1 << 8
    object_group_id: int = 0
    cache_salt: str = ""


class Object(standins.Memory):
    """LMCache's MemoryObj."""

    def __init__(self, data: bytes, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__(data)
        self.shape = shape

    def get_size(self) -> int:
        return len(self.array)

    def get_shapes(self) -> list[tuple[int, ...]]:
        return [self.shape]

    def get_dtypes(self) -> list[standins.Dtype]:
        return [standins.BF16]


@dataclass
class Layout:
    """LMCache's MemoryLayoutDesc."""

    shapes: list[tuple[int, ...]]
    dtypes: list[standins.Dtype]


LAYOUTS = {0: Layout([SHAPE], [standins.BF16])}


def keys(numbers: range | list[int], **fields: Any) -> list[Key]:
    return [Key(hashlib.sha256(b"chunk%d" % n).digest(), **fields) for n in numbers]


def data(number: int, size: int = OBJECT_BYTES) -> bytes:
    return hashlib.shake_256(b"data%d" % number).digest(size)


def objects(numbers: range | list[int]) -> list[Object]:
    return [Object(data(n)) for n in numbers]


def empty(count: int) -> list[Object]:
    return [Object(bytes(OBJECT_BYTES)) for _ in range(count)]


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.daemon = Daemon()
        self.addCleanup(self.daemon.close)
        self.adapter = self.connect()

    def connect(self, **settings: Any) -> UndercroftL2Adapter:
        given = {"socket": str(self.daemon.socket), "models": {"m": "none"},
                 "identity": "a test", "lookup_deadline": 5.0, **settings}
        adapter = UndercroftL2Adapter(given)
        self.addCleanup(adapter.close)
        self.assertTrue(adapter._tier.client.wait_connected(PATIENCE))
        return adapter

    def store(self, keys: list[Key], objects: list[Any], adapter: Any = None) -> Any:
        adapter = adapter or self.adapter
        task = adapter.submit_store_task(keys, objects)
        self.assertTrue(standins.is_signalled(adapter.get_store_event_fd(), PATIENCE))
        done = adapter.pop_completed_store_tasks()
        self.assertEqual(list(done), [task])
        self.assertEqual(adapter.pop_completed_store_tasks(), {})
        return done[task]

    def look_up(self, keys: list[Key], layouts: Any = None, adapter: Any = None) -> list[bool]:
        adapter = adapter or self.adapter
        task = adapter.submit_lookup_and_lock_task(keys, LAYOUTS if layouts is None else layouts)
        self.assertTrue(standins.is_signalled(adapter.get_lookup_and_lock_event_fd(), PATIENCE))
        return self.bits(adapter.query_lookup_and_lock_result, task, len(keys))

    def load(self, keys: list[Key], objects: list[Any], adapter: Any = None) -> list[bool]:
        adapter = adapter or self.adapter
        task = adapter.submit_load_task(keys, objects)
        self.assertTrue(standins.is_signalled(adapter.get_load_event_fd(), PATIENCE))
        return self.bits(adapter.query_load_result, task, len(keys))

    def bits(self, query: Any, task: int, count: int) -> list[bool]:
        found = query(task)
        self.assertIsNone(query(task), "a result is given out once")
        return [found.test(at) for at in range(count)]


class Kept(Case):
    def test_objects_come_back_as_they_were_after_lmcache_began_anew(self) -> None:
        stored = self.store(keys(range(6)), objects(range(6)))
        self.assertTrue(stored.is_successful())
        self.assertEqual(stored.bytes_transferred(), 6 * OBJECT_BYTES)
        self.adapter.close()
        anew = self.connect()
        self.assertEqual(self.look_up(keys(range(8)), adapter=anew), [True] * 6 + [False] * 2)
        loaded = empty(6)
        self.assertEqual(self.load(keys(range(6)), loaded, anew), [True] * 6)
        self.assertEqual([o.bytes() for o in loaded], [data(n) for n in range(6)])
        anew.submit_unlock(keys(range(6)))

    def test_an_object_in_the_middle_that_is_missing_hides_none_behind_it(self) -> None:
        held = [0, 1, 4, 5, 9]
        self.assertTrue(self.store(keys(held), objects(held)).is_successful())
        there = [n in held for n in range(12)]
        self.assertEqual(self.look_up(keys(range(12))), there)
        loaded = empty(12)
        self.assertEqual(self.load(keys(range(12)), loaded), there)
        for n in range(12):
            self.assertEqual(loaded[n].bytes(), data(n) if there[n] else bytes(OBJECT_BYTES))

    def test_nothing_is_found_that_is_of_another_identity(self) -> None:
        one = keys([0])
        self.store(one, objects([0]))
        self.assertEqual(self.look_up(one), [True])
        others = {
            "salt": keys([0], cache_salt="other"),
            "rank": keys([0], kv_rank=2 << 24 | 1 << 16 | 2 << 8 | 1),
            "group": keys([0], object_group_id=1),
            "chunk": keys([1]),
        }
        layouts = {0: LAYOUTS[0], 1: LAYOUTS[0]}
        for what, other in others.items():
            with self.subTest(what):
                self.assertEqual(self.look_up(other, layouts), [False])
                self.assertEqual(self.load(other, empty(1)), [False])
        for what, layout in {
            "shape": Layout([(2, 2, 64, 16)], [standins.BF16]),
            "type": Layout([SHAPE], [standins.Dtype("float16", 2)]),
            "size": Layout([(2, 2, 16, 32)], [standins.BF16]),
        }.items():
            with self.subTest(what):
                self.assertEqual(self.look_up(one, {0: layout}), [False])

    def test_a_model_is_told_by_its_digest_and_not_by_its_name(self) -> None:
        self.store(keys([0]), objects([0]))
        other = self.connect(models={"m": "ab" * 32})
        self.assertEqual(self.look_up(keys([0]), adapter=other), [False])
        nobody = self.connect(models={})
        self.assertFalse(self.store(keys([1]), objects([1]), nobody).is_successful())
        self.assertEqual(self.look_up(keys([0, 1]), adapter=nobody), [False, False])
        self.assertGreater(nobody.report_status()["counts"]["model"], 0)

    def test_sizes_beyond_the_limit_are_failures_and_take_nothing_from_the_others(self) -> None:
        # Room for a slab of each size that is kept.
        self.daemon = Daemon(dram="128MiB")
        self.addCleanup(self.daemon.close)
        adapter = self.connect(max_spaces=2)
        for at, width in enumerate((64, 32, 16, 8)):
            size = 2 * 2 * 16 * width * 2
            wide = Object(data(at, size), (2, 2, 16, width))
            stored = self.store(keys([at]), [wide], adapter)
            self.assertEqual(stored.is_successful(), at < 2)
        loaded = empty(1)
        self.assertEqual(self.load(keys([0]), loaded, adapter), [True])
        self.assertEqual(loaded[0].bytes(), data(0))

    def test_what_is_locked_stays_while_others_fill_the_memory(self) -> None:
        adapter = self.connect(hold=120.0)
        self.store(keys(range(4)), objects(range(4)))
        self.assertEqual(self.look_up(keys(range(4)), adapter=adapter), [True] * 4)
        # Many times what the daemon has room for.
        room = (64 << 20) // OBJECT_BYTES
        for first in range(1000, 1000 + 2 * room, 256):
            many = range(first, first + 256)
            self.store(keys(many), objects(many))
        loaded = empty(4)
        self.assertEqual(self.load(keys(range(4)), loaded), [True] * 4)
        self.assertEqual([o.bytes() for o in loaded], [data(n) for n in range(4)])
        adapter.submit_unlock(keys(range(4)))
        self.assertEqual(adapter._pins, {})
        for first in range(9000, 9000 + 2 * room, 256):
            many = range(first, first + 256)
            self.store(keys(many), objects(many))
        self.assertEqual(self.look_up(keys(range(4))), [False] * 4, "what is unlocked may go")


class Blocked(Object):
    """One whose memory is not to be had until it is let go."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.is_touched, self.go = threading.Event(), threading.Event()

    @property
    def data_ptr(self) -> int:
        self.is_touched.set()
        self.go.wait(PATIENCE)
        return super().data_ptr


class Late(Case):
    """A deadline counts from when a task was submitted."""

    def block(self, adapter: Any) -> Blocked:
        """Keeps the thread that stores."""
        blocked = Blocked(data(100))
        self.addCleanup(blocked.go.set)
        adapter.submit_store_task(keys([100]), [blocked])
        self.assertTrue(blocked.is_touched.wait(PATIENCE))
        return blocked

    def test_a_load_ends_by_its_deadline_though_all_threads_store(self) -> None:
        adapter = self.connect(threads=1, load_deadline=2.0)
        self.store(keys([0]), objects([0]), adapter)
        self.block(adapter)
        began, loaded = time.monotonic(), empty(1)
        self.assertEqual(self.load(keys([0]), loaded, adapter), [True])
        self.assertLess(time.monotonic() - began, 2.0)
        self.assertEqual(loaded[0].bytes(), data(0))

    def test_a_store_that_would_begin_after_its_deadline_touches_no_object(self) -> None:
        adapter = self.connect(threads=1, store_deadline=0.3)
        blocked = self.block(adapter)
        late = Blocked(data(1))
        late.go.set()
        task = adapter.submit_store_task(keys([1]), [late])
        time.sleep(0.4)
        blocked.go.set()
        done: dict[int, Any] = {}
        while task not in done:
            self.assertTrue(standins.is_signalled(adapter.get_store_event_fd(), PATIENCE))
            done.update(adapter.pop_completed_store_tasks())
        self.assertFalse(done[task].is_successful())
        self.assertFalse(late.is_touched.is_set())
        self.assertEqual(self.look_up(keys([1]), adapter=adapter), [False])

    def test_tasks_in_line_end_by_their_deadline_all_of_them(self) -> None:
        limits = {"lookup_deadline": 0.2, "load_deadline": 0.5, "store_deadline": 0.5}
        adapter = self.connect(threads=1, **limits)

        def as_long_as_it_may(*arguments: Any, **_: Any) -> None:
            time.sleep(arguments[3].left)

        with mock.patch.object(adapter._tier, "shelf", as_long_as_it_may):
            began = time.monotonic()
            stores = [adapter.submit_store_task(keys([n]), objects([n])) for n in range(20)]
            loads = [adapter.submit_load_task(keys([n]), empty(1)) for n in range(20)]
            lookups = [adapter.submit_lookup_and_lock_task(keys([n]), LAYOUTS) for n in range(20)]
            while stores or loads or lookups:
                done = adapter.pop_completed_store_tasks()
                stores = [task for task in stores if task not in done]
                loads = [task for task in loads if adapter.query_load_result(task) is None]
                lookups = [t for t in lookups if adapter.query_lookup_and_lock_result(t) is None]
                # One deadline, and a second for a busy machine; one after another they are ten.
                self.assertLess(time.monotonic() - began, 1.5)
                time.sleep(0.005)

    def test_what_is_no_exception_ends_a_task_all_the_same(self) -> None:
        with mock.patch.object(self.adapter._tier, "shelf", side_effect=standins.Panic("!")):
            self.assertFalse(self.store(keys([0]), objects([0])).is_successful())
            self.assertEqual(self.look_up(keys([0])), [False])
            self.assertEqual(self.load(keys([0]), empty(1)), [False])
        self.assertTrue(self.adapter.report_status()["is_healthy"])
        self.assertTrue(self.store(keys([0]), objects([0])).is_successful())

    def test_threads_end_though_the_session_cannot_be_closed(self) -> None:
        with mock.patch.object(self.adapter._tier, "close", side_effect=RuntimeError("no")):
            with self.assertRaises(RuntimeError):
                self.adapter.close()
        self.assertFalse(self.adapter.report_status()["is_healthy"])
        self.adapter._tier.close()


class Identity(Case):
    def test_what_is_said_of_the_engine_beside_is_a_part_of_the_identity(self) -> None:
        self.store(keys([0]), objects([0]))
        for said, is_there in (("a test", True), ("another", False), ("", False)):
            with self.subTest(said):
                other = self.connect(identity=said)
                self.assertEqual(self.look_up(keys([0]), adapter=other), [is_there])

    def test_another_minor_of_lmcache_or_another_kind_of_device_finds_nothing(self) -> None:
        self.store(keys([0]), objects([0]))
        for what, answer in (("version", "0.4"), ("engines_device", "xpu")):
            with self.subTest(what):
                kind = {"version": lambda _: answer, "engines_device": lambda: answer}[what]
                with mock.patch(f"undercroft.lmcache.{what}", kind):
                    other = self.connect()
                    self.assertEqual(self.look_up(keys([0]), adapter=other), [False])

    def test_nothing_is_kept_where_what_bytes_mean_is_not_told(self) -> None:
        # Whatever the machine is that tests run on.
        fp8 = [Object(data(0))]
        fp8[0].get_dtypes = lambda: [standins.Dtype("torch.uint8", 1)]  # type: ignore[method-assign]
        fp8[0].shape = (2, 2, 32, 64)
        for what, device, version, stored in (
            ("a GPU", "cuda", "0.5", objects([0])),
            ("bytes", "cuda", "0.5", fp8),
            ("a CPU", "cpu", "0.5", objects([0])),
            ("no version", "cuda", "", objects([0])),
        ):
            for said in ("", "it"):
                with (
                    self.subTest(what, said=said),
                    mock.patch("undercroft.lmcache.engines_device", lambda: device),
                    mock.patch("undercroft.lmcache.version", lambda _: version),
                ):
                    adapter = self.connect(identity=said)
                    is_kept = self.store(keys([7]), stored, adapter).is_successful()
                    self.assertEqual(is_kept, bool(said) or what == "a GPU")
                    told = adapter.report_status()["counts"].get("identity", 0)
                    self.assertEqual(told, int(not is_kept))


class Wrong(Case):
    def test_a_daemon_that_dies_and_returns_costs_misses_and_no_completion(self) -> None:
        self.store(keys(range(4)), objects(range(4)))
        self.daemon.kill()
        self.assertEqual(self.look_up(keys(range(4))), [False] * 4)
        self.assertFalse(self.store(keys([9]), objects([9])).is_successful())
        self.assertEqual(self.load(keys(range(4)), empty(4)), [False] * 4)
        status = self.adapter.report_status()
        self.assertEqual((status["is_healthy"], status["state"]), (True, "connecting"))
        self.daemon.start()
        self.assertTrue(self.adapter._tier.client.wait_connected(PATIENCE))
        until = time.monotonic() + PATIENCE
        while not self.store(keys([9]), objects([9])).is_successful():
            self.assertLess(time.monotonic(), until, "nothing is stored after the daemon's return")
        self.assertEqual(self.look_up(keys([9])), [True])

    def test_a_daemon_that_hangs_costs_no_more_than_the_deadlines(self) -> None:
        limits = {"lookup_deadline": 0.1, "load_deadline": 0.3, "store_deadline": 0.3}
        adapter = self.connect(**limits)
        self.store(keys([0]), objects([0]), adapter)
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        began = time.monotonic()
        self.assertEqual(self.look_up(keys(range(50)), adapter=adapter), [False] * 50)
        self.assertEqual(self.load(keys([0]), empty(1), adapter), [False])
        self.assertFalse(self.store(keys([1]), objects([1]), adapter).is_successful())
        self.assertLess(time.monotonic() - began, 3.0)
        self.daemon.signal(signal.SIGCONT)

    def test_submitting_never_waits_and_what_there_is_no_room_for_fails(self) -> None:
        adapter = self.connect(max_tasks=4, threads=1, load_deadline=0.5)
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        began = time.monotonic()
        tasks = {adapter.submit_load_task(keys([n]), empty(1)) for n in range(40)}
        self.assertLess(time.monotonic() - began, 0.2)
        self.assertEqual(len(tasks), 40)
        until = time.monotonic() + PATIENCE
        while tasks and time.monotonic() < until:
            standins.is_signalled(adapter.get_load_event_fd(), 1.0)
            tasks = {task for task in tasks if adapter.query_load_result(task) is None}
        self.assertEqual(tasks, set())
        self.daemon.signal(signal.SIGCONT)

    def test_objects_that_cannot_be_are_failures(self) -> None:
        class Gone(Object):
            @property
            def data_ptr(self) -> int:
                raise NotImplementedError("the bytes lie elsewhere")

        short = Object(bytes(100))
        for wrong in (Gone(data(0)), short, object()):
            with self.subTest(type(wrong).__name__):
                self.assertFalse(self.store(keys([0]), [wrong]).is_successful())
                self.assertEqual(self.load(keys([0]), [wrong]), [False])
        self.assertFalse(self.store(keys([0, 1]), objects([0])).is_successful())
        self.assertFalse(self.store([Key(b"short")], objects([0])).is_successful())
        self.assertEqual(self.look_up(keys([0]), {}), [False])

    def test_closing_completes_what_waits_and_can_be_done_again(self) -> None:
        adapter = self.connect(threads=1)
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        tasks = [adapter.submit_load_task(keys([n]), empty(1)) for n in range(8)]
        began = time.monotonic()
        adapter.close()
        self.assertLess(time.monotonic() - began, 5.0)
        for task in tasks:
            self.assertEqual(adapter.query_load_result(task).popcount(), 0)
        adapter.close()
        after = adapter.submit_load_task(keys([0]), empty(1))
        self.assertEqual(adapter.query_load_result(after).popcount(), 0)

    def test_settings_that_mean_nothing_are_refused_by_name(self) -> None:
        for settings, said in (
            ({"sockt": "/x"}, "sockt"),
            ({"threads": 0}, "threads is 0, allowed a whole number above 0"),
            ({"load_deadline": "1s"}, "load_deadline is '1s'"),
            ({"models": {"m": "nothing"}}, "allowed 64 hexadecimal digits"),
            ({"identity": 3}, "identity is 3, allowed a text"),
        ):
            with self.subTest(said), self.assertRaisesRegex(ValueError, said):
                UndercroftL2Adapter(settings)


if __name__ == "__main__":
    unittest.main()
