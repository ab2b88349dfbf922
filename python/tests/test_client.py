"""The client against a real daemon."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable

import undercroft
from lender import Lender
from serving import Daemon, family, page

GEOMETRY = undercroft.Geometry(2, (1024, 1024))
PAGE_BYTES = 4096


class WithDaemon(unittest.TestCase):
    """Each test has a daemon, a client and a space of its own."""

    def setUp(self) -> None:
        self.daemon = Daemon()
        self.addCleanup(self.daemon.close)
        self.client = undercroft.Client(self.daemon.socket, name="test", wait=5.0)
        self.addCleanup(self.client.close)
        self.family = family()
        self.space = self.client.open_space(self.family, GEOMETRY)

    def keys(self, pages: int, seed: int = 0) -> bytes:
        return self.family.chain(range(seed, seed + 16 * pages))

    def stored(self, pages: int, seed: int = 0) -> tuple[bytes, list[bytearray]]:
        """Pages that the daemon has, and their bytes."""
        images = [page(seed + number) for number in range(pages)]
        keys = self.keys(pages, seed)
        device = undercroft.Buffers(GEOMETRY, images, writable=False)
        stored = self.space.store(device, keys, range(pages), wait_for_credits=True)
        self.assertEqual((stored.stored, stored.why), (pages, None), stored)
        return keys, images


class Pages(WithDaemon):
    def test_what_was_stored_is_found_and_loaded_bit_by_bit(self) -> None:
        keys, images = self.stored(5)
        found = self.space.lookup(keys, hold=5.0)
        self.assertEqual((found.pages, found.dram, found.why), (5, 5, None))
        assert found.hold is not None
        again = [bytearray(PAGE_BYTES) for _ in range(5)]
        loaded = self.space.load(undercroft.Buffers(GEOMETRY, again), found.hold, range(5))
        self.assertEqual((loaded.pages, loaded.bytes, loaded.why), (5, 5 * PAGE_BYTES, None))
        self.assertEqual(again, images)

    def test_a_piece_of_a_hold_and_keys_alone_are_loaded_as_well(self) -> None:
        keys, images = self.stored(5)
        hold = self.space.lookup(keys, hold=5.0).hold
        assert hold is not None
        again = [bytearray(PAGE_BYTES) for _ in range(2)]
        device = undercroft.Buffers(GEOMETRY, again)
        self.assertEqual(self.space.load(device, (hold, 3, 2), [1, 0]).pages, 2)
        self.assertEqual(again, [images[4], images[3]])
        asked = [keys[:32], keys[32:64]]
        self.assertEqual(self.space.load(device, asked, [0, 1]).pages, 2)
        self.assertEqual(again, images[:2])

    def test_a_first_page_that_was_stored_may_be_found(self) -> None:
        self.assertTrue(self.client.is_connected)
        self.assertFalse(self.client.may_hold(self.keys(2)[:32]))
        keys, _ = self.stored(2)
        self.assertTrue(self.client.may_hold(keys[:32]))
        self.assertFalse(self.client.may_hold(self.keys(1, seed=5)))
        for wrong in (b"", keys[:31], keys):
            with self.assertRaisesRegex(ValueError, f"first has {len(wrong)} bytes, allowed 32"):
                self.client.may_hold(wrong)
        for wrong in (None, 7, "a"):
            with self.assertRaises(TypeError):
                self.client.may_hold(wrong)  # type: ignore[arg-type]
        self.daemon.kill()
        until = time.monotonic() + 10.0
        while self.client.is_connected and time.monotonic() < until:
            time.sleep(0.01)
        self.assertFalse(self.client.may_hold(keys[:32]))
        self.assertIsNone(self.client.may_begin(self.family, b"0"))

    def test_a_beginning_is_known_by_the_engines_hash(self) -> None:
        hashes = [bytes([number]) * 32 for number in range(2)]
        device = undercroft.Buffers(GEOMETRY, [bytearray(PAGE_BYTES)])
        self.assertIs(self.client.may_begin(self.family, hashes[0]), False)
        self.assertEqual(self.space.store(device, self.family.keys(hashes[:1]), [0]).stored, 1)
        self.assertIs(self.client.may_begin(self.family, hashes[0]), True)
        before = self.counted("board_lookups")
        for _ in range(3):
            self.assertIs(self.client.may_begin(self.family, hashes[1], peek=True), False)
        self.assertIs(self.client.may_begin(self.family, hashes[1]), False)
        self.assertEqual(self.counted("board_lookups") - before, 1, "the others were mere peeks")

    def counted(self, name: str) -> int:
        status = self.client.status()
        assert status is not None
        return int(status["hits"][name])

    def test_what_nobody_stored_is_absent(self) -> None:
        keys, _ = self.stored(2)
        longer = self.keys(4)
        found = self.space.lookup(longer)
        self.assertEqual((found.pages, found.why, found.hold), (2, "absent", None))
        again = [bytearray(PAGE_BYTES) for _ in range(4)]
        loaded = self.space.load(undercroft.Buffers(GEOMETRY, again), longer, range(4))
        self.assertEqual((loaded.pages, loaded.why), (2, "absent"))
        self.assertEqual(self.space.lookup(self.keys(2, seed=5)).pages, 0)
        self.assertEqual(len(keys), 64)

    def test_a_later_piece_of_a_chain_hangs_on_its_parent(self) -> None:
        keys = self.keys(4)
        device = undercroft.Buffers(GEOMETRY, [page(n) for n in range(4)])
        orphan = self.space.store(device, keys[64:], [2, 3], parent=keys[32:64], first=2)
        self.assertEqual((orphan.stored, orphan.declined["parent"]), (0, 2))
        self.assertEqual(self.space.store(device, keys[:64], [0, 1]).stored, 2)
        rest = self.space.store(device, keys[64:], [2, 3], parent=keys[32:64], first=2)
        self.assertEqual(rest.stored, 2)
        self.assertEqual(self.space.lookup(keys).pages, 4)

    def test_a_page_counts_only_when_all_spaces_have_it(self) -> None:
        ranks = [self.client.open_space(self.family, GEOMETRY, rank=(n, 2)) for n in range(2)]
        keys = self.keys(3)
        device = undercroft.Buffers(GEOMETRY, [page(n) for n in range(3)])
        self.assertEqual(ranks[0].store(device, keys, [0, 1, 2]).stored, 3)
        self.assertEqual(ranks[1].store(device, keys[:32], [0]).stored, 1)
        self.assertEqual(self.client.lookup(ranks, keys).pages, 1)
        self.assertEqual(self.space.lookup(keys).pages, 0)
        self.assertEqual((ranks[0].rank, self.space.rank), ((0, 2), None))

    def test_a_hold_goes_to_another_session_by_its_token(self) -> None:
        keys, images = self.stored(2)
        hold = self.space.lookup(keys, hold=5.0).hold
        assert hold is not None
        token = hold.give()
        assert token is not None
        with undercroft.Client(self.daemon.socket, wait=5.0) as other:
            space = other.open_space(self.family, GEOMETRY)
            taken = other.take_hold(token)
            assert taken is not None
            self.assertIsNone(other.take_hold(token), "a token is good once")
            again = [bytearray(PAGE_BYTES) for _ in range(2)]
            self.assertEqual(space.load(undercroft.Buffers(GEOMETRY, again), taken, [0, 1]).pages, 2)
        self.assertEqual(again, images)

    def test_a_lease_of_fewer_pages_than_blocks_is_a_miss(self) -> None:
        _, images = self.stored(3)
        lender = Lender(self.daemon.socket, 2, (1024, 1024))
        self.addCleanup(lender.close)
        again = [bytearray(PAGE_BYTES) for _ in range(5)]
        token = lender.lend(self.keys(5))
        loaded = self.space.take(undercroft.Buffers(GEOMETRY, again), token, range(5))
        self.assertEqual((loaded.pages, loaded.why), (3, "absent"))
        self.assertEqual(again[:3], images)

    def test_hints_and_prefetches_are_heard(self) -> None:
        keys, _ = self.stored(2)
        self.assertEqual(self.space.prefetch(keys, ttl=1.0, deadline=1.0).resident, 2)
        for kind, seconds in [("active", None), ("pin", 1.0), ("expected", 2.0), ("ended", None)]:
            self.assertIsNone(self.space.hint(keys, kind, seconds, deadline=1.0), kind)


class Tasks(WithDaemon):
    def test_what_is_started_comes_to_its_end_by_itself(self) -> None:
        keys, images = self.keys(3), [page(n) for n in range(3)]
        device = undercroft.Buffers(GEOMETRY, images)
        store = self.space.start_store(device, keys, [0, 1, 2])
        stored = store.result(10.0)
        assert stored is not None
        self.assertEqual((stored.stored, store.done, store.cancel()), (3, True, False))
        again = [bytearray(PAGE_BYTES) for _ in range(3)]
        load = self.space.start_load(undercroft.Buffers(GEOMETRY, again), keys, [0, 1, 2])
        self.assertTrue(load.wait(10.0))
        loaded = load.result()
        assert loaded is not None
        self.assertEqual((loaded.pages, again), (3, images))

    def test_layers_are_waited_for_one_by_one(self) -> None:
        keys, images = self.stored(3)
        again = [bytearray(PAGE_BYTES) for _ in range(3)]
        device = undercroft.Buffers(GEOMETRY, again)
        task = self.space.start_load(device, keys, [0, 1, 2], by_layer=True)
        self.assertEqual([task.wait_layer(layer, 10.0) for layer in range(2)], [3, 3])
        with self.assertRaisesRegex(ValueError, "less than 2"):
            task.wait_layer(2)
        self.assertEqual(task.result(10.0).pages, 3)
        self.assertEqual(again, images)
        with self.assertRaisesRegex(ValueError, "by_layer"):
            self.space.start_load(device, keys, [0, 1, 2]).wait_layer(0)

    def test_more_than_may_wait_are_refused_and_settled(self) -> None:
        client = undercroft.Client(self.daemon.socket, wait=5.0, threads=1, max_tasks=1)
        self.addCleanup(client.close)
        space = client.open_space(self.family, GEOMETRY)
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        device = undercroft.Buffers(GEOMETRY, [bytearray(PAGE_BYTES)])
        tasks = [space.start_load(device, self.keys(1), [0], deadline=0.5) for _ in range(4)]
        settled = [task.result(10.0) for task in tasks]
        self.assertNotIn(None, settled)
        whys = [loaded.why for loaded in settled if loaded is not None]
        self.assertIn("busy", whys)
        self.assertEqual(whys[0], "deadline")
        self.assertTrue(set(whys) <= {"busy", "deadline", "hung"}, whys)

    def test_a_task_that_has_not_begun_is_called_off(self) -> None:
        client = undercroft.Client(self.daemon.socket, wait=5.0, threads=1)
        self.addCleanup(client.close)
        space = client.open_space(self.family, GEOMETRY)
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        device = undercroft.Buffers(GEOMETRY, [bytearray(PAGE_BYTES)])
        first = space.start_load(device, self.keys(1), [0], deadline=0.5)
        second = space.start_load(device, self.keys(1), [0], deadline=5.0)
        self.assertTrue(second.cancel())
        self.assertEqual(second.result(10.0).why, "released")
        self.assertEqual(first.result(10.0).pages, 0)

    def test_a_closed_client_has_no_tasks_and_only_misses(self) -> None:
        keys, _ = self.stored(1)
        self.assertTrue(self.client.close())
        device = undercroft.Buffers(GEOMETRY, [bytearray(PAGE_BYTES)])
        self.assertEqual(self.space.start_load(device, keys, [0]).result(1.0).why, "disconnected")
        self.assertEqual(self.space.load(device, keys, [0]).why, "disconnected")
        self.assertEqual(self.space.lookup(keys).why, "disconnected")
        self.assertIsNone(self.client.status())


class Absence(WithDaemon):
    def test_without_a_daemon_all_is_a_miss_and_it_is_found_when_it_comes(self) -> None:
        keys, images = self.stored(1)
        self.daemon.kill()
        before = time.monotonic()
        self.assertEqual(self.space.lookup(keys, deadline=0.2).pages, 0)
        self.assertLess(time.monotonic() - before, 2.0)
        self.daemon.start()
        self.assertTrue(self.client.wait_connected(10.0))
        until = time.monotonic() + 10.0
        while not self.space.is_open and time.monotonic() < until:
            time.sleep(0.01)
        device = undercroft.Buffers(GEOMETRY, images)
        self.assertIn(self.space.store(device, keys, [0]).why, [None])
        self.assertEqual(self.space.lookup(keys).pages, 1)

    def test_a_stopped_daemon_costs_no_more_than_the_deadline(self) -> None:
        keys, _ = self.stored(1)
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        before = time.monotonic()
        self.assertEqual(self.space.lookup(keys, deadline=0.2).why, "deadline")
        self.assertLess(time.monotonic() - before, 2.0)
        self.assertEqual(self.space.lookup(keys, deadline=5.0).why, "hung")
        self.assertEqual(self.client.state, "hung")
        self.assertFalse(self.client.is_connected or self.client.may_hold(keys[:32]))

    def test_a_client_waits_for_nobody_unless_told_to(self) -> None:
        with undercroft.Client(self.daemon.directory / "nobody.sock") as client:
            self.assertEqual(client.state, "connecting")
            self.assertFalse(client.is_connected or client.may_hold(bytes(32)))
            space = client.open_space(self.family, GEOMETRY, deadline=0.0)
            self.assertEqual(space.lookup(self.keys(1)).why, "disconnected")
        with self.assertRaisesRegex(undercroft.ConnectError, "nobody.sock"):
            undercroft.Client(self.daemon.directory / "nobody.sock", wait=0.1)

    def test_other_threads_run_while_a_call_waits(self) -> None:
        self.daemon.signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.signal, signal.SIGCONT)
        turns: list[float] = []
        ended = threading.Event()

        def turn() -> None:
            while not ended.is_set():
                turns.append(time.monotonic())
                time.sleep(0.001)

        thread = threading.Thread(target=turn)
        thread.start()
        before = len(turns)
        self.space.lookup(self.keys(1), deadline=0.3)
        after = len(turns)
        ended.set()
        thread.join()
        self.assertGreater(after - before, 10)


def _child(forked: Callable[[], list[object]], pipe: multiprocessing.connection.Connection) -> None:
    pipe.send(forked())


class Processes(WithDaemon):
    def test_a_forked_child_only_misses_and_connects_anew(self) -> None:
        keys, images = self.stored(2)
        device = undercroft.Buffers(GEOMETRY, [bytearray(PAGE_BYTES) for _ in range(2)])
        self.daemon.signal(signal.SIGSTOP)
        waiting = self.space.start_load(device, keys, [0, 1], deadline=30.0)
        asked = self.client.start_lookup([self.space], keys)
        # Forked while another thread waits for its answer, and has what it waits with.
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(asked.result(20.0).pages))
        thread.start()
        time.sleep(0.2)

        def forked() -> list[object]:
            seen: list[object] = [self.client.state, self.space.lookup(keys).why]
            seen.append(self.client.is_connected or self.client.may_hold(keys[:32]))
            seen.append(self.space.start_load(device, keys, [0, 1]).result().why)
            seen.append(waiting.result().why if waiting.done else None)
            seen.append(asked.result(20.0).why)
            os.kill(self.daemon.pid, signal.SIGCONT)
            with undercroft.Client(self.daemon.socket, wait=5.0) as own:
                space = own.open_space(self.family, GEOMETRY)
                again = [bytearray(PAGE_BYTES) for _ in range(2)]
                loaded = space.load(undercroft.Buffers(GEOMETRY, again), keys, [0, 1])
                seen += [loaded.pages, again == images]
            return seen

        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        child = context.Process(target=_child, args=(forked, there))
        child.start()
        self.assertTrue(here.poll(20.0), "the child says nothing")
        forks = ["forked", "forked", False, "forked", "forked", "forked", 2, True]
        self.assertEqual(here.recv(), forks)
        child.join(20.0)
        self.assertEqual(child.exitcode, 0)
        self.assertEqual(waiting.result(20.0).pages, 2, "the parent's goes on")
        thread.join()
        self.assertEqual(answers, [2])

    def test_an_interpreter_ends_with_tasks_under_way(self) -> None:
        script = (
            "import undercroft, sys\n"
            f"client = undercroft.Client({str(self.daemon.socket)!r}, wait=5.0)\n"
            "family = undercroft.Family(model=bytes(32), dtype='bf16', layers=1, kv_heads=1,"
            " page_tokens=1)\n"
            "space = client.open_space(family, undercroft.Geometry(1, (4096,)))\n"
            "pages = [bytearray(4096) for _ in range(64)]\n"
            "device = undercroft.Buffers(4096, pages)\n"
            "keys = family.chain(range(64))\n"
            "tasks = [space.start_store(device, keys, range(64)) for _ in range(50)]\n"
            "tasks += [space.start_load(device, keys, range(64)) for _ in range(50)]\n"
        )
        for _ in range(5):
            ended = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True)
            self.assertEqual((ended.returncode, ended.stderr), (0, b""))


class Arguments(WithDaemon):
    def test_what_cannot_be_is_named_with_what_is_allowed(self) -> None:
        device = undercroft.Buffers(GEOMETRY, [bytearray(PAGE_BYTES)])
        wrong: list[tuple[Callable[[], object], str]] = [
            (lambda: self.space.lookup(b"x" * 33), "33 bytes, allowed multiples of 32"),
            (lambda: self.space.lookup([b"x"]), "a key has 1 bytes, allowed 32"),
            (lambda: self.space.lookup("x"), "keys are bytes"),
            (lambda: self.space.lookup(b"", deadline=-1.0), "deadline is -1"),
            (lambda: self.space.hint(b"", "pin"), "pin"),
            (lambda: self.space.hint(b"", "gone"), "gone"),
            (lambda: family(dtype="f64"), "f64"),
            (lambda: family(model=b"short"), "model has 5 bytes, allowed 32"),
            (lambda: family(layers=0), "layers is 0"),
            (lambda: undercroft.Geometry(0, (1,)), "layers"),
            (lambda: undercroft.Client(threads=0), "threads is 0, allowed 1 to 64"),
            (lambda: undercroft.Buffers(4096, [bytes(4096)]), "HostReadOnly"),
            (lambda: undercroft.Buffers(4096, [bytearray(4095)]), "4095 bytes, allowed 4096"),
            (lambda: undercroft.Buffers(4096, [object()]), "type object"),
            (lambda: undercroft.CudaDevice(layout()), "Host"),
        ]
        for call, words in wrong:
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                call()
        self.assertEqual(self.space.load(device, self.keys(1), [7]).why, "absent")
        keys, _ = self.stored(1)
        self.assertEqual(self.space.load(device, keys, [7]).why, "device")
        self.assertIn("block 7", self.space.load(device, keys, [7]).fault or "")
        self.assertEqual(self.space.load(device, self.keys(2), [0, 0]).why, "invalid")

    def test_a_space_that_cannot_be_is_not_opened(self) -> None:
        with self.assertRaisesRegex(undercroft.OpenError, "rank"):
            self.client.open_space(self.family, GEOMETRY, rank=(2, 2))

    def test_a_space_that_others_name_otherwise_is_not_opened(self) -> None:
        told, other = self.family.key(b"one hash"), self.family.key(b"another hash")
        geometry = undercroft.Geometry(2, (2048,))
        first = self.client.open_space(self.family, geometry, probe=told)
        with undercroft.Client(self.daemon.socket, name="other", wait=5.0) as client:
            self.assertEqual(client.open_space(self.family, geometry).digest, first.digest)
        for probe, opens in ((told, True), (other, False)):
            with undercroft.Client(self.daemon.socket, name="other", wait=5.0) as client:
                if opens:
                    self.assertTrue(client.open_space(self.family, geometry, probe=probe).is_open)
                    continue
                with self.assertRaisesRegex(undercroft.OpenError, told[:8].hex()):
                    client.open_space(self.family, geometry, probe=probe)
        with self.assertRaisesRegex(undercroft.OpenError, "another probe"):
            self.client.open_space(self.family, geometry, probe=other)
        with self.assertRaisesRegex(ValueError, "probe"):
            self.client.open_space(self.family, geometry, probe=b"short")

    def test_status_is_what_the_command_line_shows(self) -> None:
        status = self.client.status()
        assert status is not None
        self.assertEqual(status["pid"], self.daemon.pid)
        self.assertIn("test", [session["name"] for session in status["sessions"]])
        self.assertEqual(self.client.mode, "zero_copy")
        self.assertLess(self.client.ping() or 1.0, 1.0)


def layout() -> undercroft.Layout:
    return undercroft.Layout(GEOMETRY, 1, [bytearray(PAGE_BYTES)], [(0, n * 1024, PAGE_BYTES) for n in range(4)])


if __name__ == "__main__":
    unittest.main()
