"""What the adapters share by which Undercroft is a tier: threads, models, and looking for pages."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import standins  # noqa: F401  what goes wrong here goes wrong on purpose
from undercroft import models
from undercroft.models import Models
from undercroft.tiering import Shelf, behind, version
from undercroft.workers import Deadline, Workers

PATIENCE = 20.0


class Threads(unittest.TestCase):
    def workers(self, max_tasks: int = 8) -> Workers:
        workers = Workers("test", 1, max_tasks)
        self.addCleanup(workers.close)
        return workers

    def blocked(self, workers: Workers) -> threading.Event:
        begun, go = threading.Event(), threading.Event()
        self.addCleanup(go.set)
        workers.submit(lambda: (begun.set(), go.wait(PATIENCE)) and None, self.fail)
        self.assertTrue(begun.wait(PATIENCE))
        return go

    def test_work_that_would_begin_after_its_deadline_is_given_up(self) -> None:
        workers, done = self.workers(), []
        go = self.blocked(workers)
        for name, seconds in (("late", 0.05), ("in time", PATIENCE)):
            workers.submit(
                lambda name=name: done.append(f"{name}: done"),
                lambda name=name: done.append(f"{name}: given up"), Deadline(seconds),
            )
        time.sleep(0.1)
        go.set()
        until = time.monotonic() + PATIENCE
        while len(done) < 2:
            self.assertLess(time.monotonic(), until)
            time.sleep(0.002)
        self.assertEqual(done, ["late: given up", "in time: done"])

    def test_what_waits_is_given_up_once_when_it_ends_and_none_begins_after(self) -> None:
        workers, done = self.workers(max_tasks=4), []
        go = self.blocked(workers)
        for at in range(6):
            workers.submit(self.fail, lambda at=at: done.append(at))
        self.assertEqual(done, [4, 5], "there is no room for more than four")
        threading.Timer(0.05, go.set).start()
        workers.close()
        self.assertEqual(sorted(done), list(range(6)))
        self.assertFalse(workers.are_alive)

    def test_a_thread_outlives_what_its_work_raises(self) -> None:
        workers, done = self.workers(), threading.Event()

        def panic() -> None:
            raise standins.Panic("!")

        workers.submit(panic, self.fail)
        workers.submit(done.set, self.fail)
        self.assertTrue(done.wait(PATIENCE))
        self.assertTrue(workers.are_alive)

    def test_time_that_a_space_takes_to_open_is_not_counted_up_to_a_bound(self) -> None:
        deadline = Deadline(0.5, opening=0.2)
        with deadline.opens() as seconds:
            self.assertGreater(seconds, 0.4)
            time.sleep(0.3)
        left = deadline.left
        self.assertTrue(0.2 < left <= 0.4, left)
        over = Deadline(0.0)
        self.assertTrue(over.is_over)
        with over.opens() as seconds:
            self.assertEqual(seconds, 0.0)


class Looking(unittest.TestCase):
    """At pages behind missing ones, with few questions."""

    def find(self, there: set[int], count: int) -> tuple[list[tuple[int, int]], int]:
        asked = 0

        def lookup(keys: bytes, deadline: float, hold: float | None = None) -> Any:
            nonlocal asked
            asked += 1
            numbers = [int.from_bytes(keys[at : at + 32], "big") for at in range(0, len(keys), 32)]
            pages = next((at for at, n in enumerate(numbers) if n not in there), len(numbers))
            why = None if pages == len(numbers) else "absent"
            return SimpleNamespace(pages=pages, hold=None, why=why)

        shelf = Shelf(SimpleNamespace(lookup=lookup), None)  # type: ignore[arg-type]
        keys = [n.to_bytes(32, "big") for n in range(count)]
        found = shelf.find(keys, Deadline(PATIENCE))
        return [(first, pages) for first, pages, _ in found], asked

    def test_what_nobody_has_costs_few_questions(self) -> None:
        for there, runs in ((set(), []), (set(range(100)), [(0, 100)])):
            found, asked = self.find(there, 4000)
            self.assertEqual(found, runs)
            self.assertLess(asked, 24)

    def test_a_window_far_behind_is_found_whole(self) -> None:
        for first in (1, 9, 500, 743, 3984):
            with self.subTest(first):
                found, asked = self.find(set(range(first, 4000)), 4000)
                self.assertEqual(found, [(first, 4000 - first)])
                self.assertLess(asked, 40)

    def test_holes_near_each_other_hide_nothing_between_them(self) -> None:
        found, _ = self.find({0, 1, 4, 5, 9, 11}, 12)
        self.assertEqual(found, [(0, 2), (4, 2), (9, 1), (11, 1)])

    def test_questions_are_bounded_whatever_is_missing(self) -> None:
        _, asked = self.find(set(range(0, 4000, 3)), 4000)
        self.assertLess(asked, 150)

    def test_behind_the_last_there_is_nothing(self) -> None:
        self.assertIsNone(behind(3, 4, lambda at: True))
        self.assertEqual(behind(2, 4, lambda at: True), 3)


class Named(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="undercroft-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.write(b"weights")

    def write(self, weights: bytes) -> None:
        (self.folder / "config.json").write_text(json.dumps({"layers": 2}))
        (self.folder / "model.bin").write_bytes(weights)

    def test_a_model_of_another_process_whose_files_change_is_nobodys(self) -> None:
        name = str(self.folder)
        for table, asked in (({}, name), ({"m": name}, "m")):
            with self.subTest(asked):
                self.write(b"weights")
                elsewhere, own = Models(table, is_elsewhere=True), Models(table)
                digest = elsewhere.digest(asked)
                self.assertIsNotNone(digest)
                self.assertEqual(own.digest(asked), digest)
                self.write(b"other weights")
                with mock.patch.object(models, "LOOK_AGAIN_S", 0.0):
                    self.assertIsNone(elsewhere.digest(asked))
                    self.write(b"weights")
                    self.assertIsNone(elsewhere.digest(asked), "some of them were others'")
                self.assertEqual(own.digest(asked), digest, "what this process has read")

    def test_a_name_is_a_folder_of_another_process_only_if_it_is_a_whole_path(self) -> None:
        name = os.path.relpath(self.folder)
        self.assertIsNone(Models({}, is_elsewhere=True).digest(name))
        self.assertIsNotNone(Models({}).digest(name))
        self.assertIsNotNone(Models({"m": name}, is_elsewhere=True).digest("m"))

    def test_a_folder_is_read_once(self) -> None:
        with mock.patch.object(models, "model_digest", return_value=bytes(32)) as read:
            known = Models({"m": str(self.folder)})
            known.digest("m"), known.digest("m")
        read.assert_called_once()

    def test_versions_are_major_and_minor_or_nothing(self) -> None:
        with mock.patch("importlib.metadata.version", return_value="1.22.3+cpu"):
            self.assertEqual(version("anything"), "1.22")
        self.assertEqual(version("no-such-package-anywhere"), "")


if __name__ == "__main__":
    unittest.main()
