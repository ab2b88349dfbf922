"""The connector's worker half: all it begins is reported once, however it went."""

from __future__ import annotations

import unittest
from unittest import mock

import standins
from undercroft.vllm.guard import ENDS, harmless
from undercroft.vllm.messages import LoadJob, Reports, Run, Step, StoreJob
from undercroft.vllm.settings import Settings
from undercroft.vllm.worker import GroupIo, Worker
from vllm_fakes import Broken, Space, loaded, stored

HASHES = [bytes(range(at, at + 32)) for at in range(4)]
KEYS = b"".join(HASHES)


def bench(groups: int = 1, storing: bool = True) -> tuple[Worker, list[Space]]:
    spaces = [Space() for _ in range(groups)]
    ios = [GroupIo(space, f"device{at}", {"layer.0": 0}) for at, space in enumerate(spaces)]
    return Worker(Settings(), ios, storing, b"".join), spaces


def load_job(*runs: Run, req: str = "a", by_layer: bool = False) -> LoadJob:
    return LoadJob(req, KEYS, runs or (Run(0, (5, 6, 7, 8)),), 7, by_layer)


def store_job(number: int, *runs: Run) -> StoreJob:
    return StoreJob(number, "a", 0, HASHES, b"", runs or (Run(0, (1, 2, 3, 4)),), 7)


class Loads(unittest.TestCase):
    def test_a_load_is_told_when_it_is_over_and_only_then(self) -> None:
        worker, (space,) = bench()
        worker.load(Step(1, [load_job()]))
        self.assertEqual(worker.poll().requests, set())
        space.tasks[0].value = loaded(4)
        told = worker.poll()
        self.assertEqual((told.requests, told.failed, told.blocks), ({"a"}, set(), set()))
        self.assertEqual(worker.poll().requests, set())

    def test_pages_that_did_not_arrive_are_bad_blocks(self) -> None:
        worker, (space,) = bench()
        worker.load(Step(1, [load_job()]))
        space.tasks[0].value = loaded(1, "absent")
        told = worker.poll()
        self.assertEqual((told.requests, told.failed, told.blocks), ({"a"}, {"a"}, {6, 7, 8}))

    def test_a_load_that_cannot_be_begun_is_over_and_failed(self) -> None:
        worker, (space,) = bench()
        space.fails = True
        worker.load(Step(1, [load_job()]))
        told = worker.poll()
        self.assertEqual((told.requests, told.blocks), ({"a"}, {5, 6, 7, 8}))

    def test_a_load_without_keys_is_over_and_failed(self) -> None:
        worker, (space,) = bench()
        worker.load(Step(1, [LoadJob("a", b"", (Run(0, (5, 6)),), 0)]))
        self.assertEqual(worker.poll().blocks, {5, 6})
        self.assertEqual(space.loads, [])

    def test_one_group_that_cannot_begin_waits_for_the_others_and_spoils_them(self) -> None:
        worker, spaces = bench(groups=2)
        spaces[1].fails = True
        runs = (Run(0, (5, 6, 7, 8)), Run(2, (9, 10)))
        worker.load(Step(1, [load_job(*runs)]))
        self.assertEqual(worker.poll().requests, set())  # a copy is still under way
        spaces[0].tasks[0].value = loaded(4)
        self.assertEqual(worker.poll().blocks, {5, 6, 7, 8, 9, 10})

    def test_a_window_loads_the_pages_it_has_blocks_for(self) -> None:
        worker, spaces = bench(groups=2)
        worker.load(Step(1, [load_job(Run(0, (5, 6, 7, 8)), Run(2, (9, 10)))]))
        self.assertEqual(spaces[1].loads[0][1:3], (KEYS[64:], [9, 10]))
        for space, pages in zip(spaces, (4, 1)):
            space.tasks[0].value = loaded(pages)
        self.assertEqual(worker.poll().blocks, {10})

    def test_blocks_without_a_key_fail(self) -> None:
        worker, (space,) = bench()
        worker.load(Step(1, [load_job(Run(0, (1, 2, 3, 4, 5)))]))
        self.assertEqual(space.loads[0][2], [1, 2, 3, 4])
        space.tasks[0].value = loaded(4)
        self.assertEqual(worker.poll().blocks, {5})

    def test_loads_inside_of_a_step_end_with_it(self) -> None:
        worker, (space,) = bench()
        worker.load(Step(9, [load_job(by_layer=True)]))
        worker.wait_layer("layer.0")
        worker.wait_layer("a layer of another group")
        self.assertEqual(space.tasks[0].waited, 1)
        space.tasks[0].value = loaded(2, "deadline")
        worker.end_layers()
        told = worker.poll()
        self.assertEqual((told.requests, told.blocks), (set(), {7, 8}))
        reports = worker.take_reports()
        assert reports is not None
        self.assertEqual(reports.layered, {9: 1})

    def test_a_layer_that_was_not_there_when_it_was_computed_spoils_the_load(self) -> None:
        for spoil in ({"layer": None}, {"breaks": True}):
            worker, (space,) = bench()
            worker.load(Step(9, [load_job(by_layer=True)]))
            task = space.tasks[0]
            vars(task).update(spoil)
            worker.wait_layer("layer.0")
            task.value, task.breaks = loaded(4), False  # all of it came, too late
            worker.end_layers()
            self.assertEqual(worker.poll().blocks, {5, 6, 7, 8})

    def test_a_load_inside_of_a_step_is_never_given_up(self) -> None:
        worker, (space,) = bench()
        worker.load(Step(9, [load_job(by_layer=True)]))
        space.tasks[0].comes_late = loaded(3, "deadline")
        worker.end_layers()
        self.assertEqual(space.tasks[0].waited, 2)
        self.assertEqual(worker.poll().blocks, {8})

    def test_a_load_whose_end_cannot_be_read_is_over_and_failed(self) -> None:
        worker, (space,) = bench()
        worker.load(Step(1, [load_job(), load_job(req="b")]))
        for task in space.tasks:
            task.value = loaded(4)
        space.tasks[0].breaks = True
        told = worker.poll()
        self.assertEqual((told.requests, told.failed), ({"a", "b"}, {"a"}))
        self.assertEqual(told.blocks, {5, 6, 7, 8})

    def test_loads_that_were_not_begun_can_be_refused_and_those_that_were_go_on(self) -> None:
        worker, (space,) = bench()
        begun, other = load_job(), load_job(Run(0, (1, 2)), req="b")
        worker.load(Step(1, [begun]))
        worker.refuse_loads(Step(1, [begun, other, load_job(Run(0, (3,)), req="c", by_layer=True)]))
        worker.end_layers()
        told = worker.poll()
        self.assertEqual((told.requests, told.blocks), ({"b"}, {1, 2, 3}))
        space.tasks[0].value = loaded(4)
        told = worker.poll()
        self.assertEqual((told.requests, told.blocks), ({"a"}, set()))
        self.assertEqual(worker.take_reports(), Reports(layered={1: 1}))


class Stores(unittest.TestCase):
    def test_a_store_is_told_when_every_group_is_done(self) -> None:
        worker, spaces = bench(groups=2)
        worker.store(Step(1, [], [store_job(3, Run(0, (1, 2, 3, 4)), Run(1, (7, 8, 9)))]))
        self.assertEqual(spaces[1].stores[0][1], KEYS[32:])
        self.assertEqual(spaces[1].stores[0][3]["parent"], KEYS[:32])
        self.assertEqual(spaces[1].stores[0][3]["first"], 1)
        spaces[0].tasks[0].value = stored(4)
        self.assertIsNone(worker.take_reports())
        spaces[1].tasks[0].value = stored(1, held=2)
        self.assertEqual(worker.take_reports(), Reports({3: (1, True)}))
        self.assertTrue(worker.is_idle)

    def test_a_store_in_the_middle_names_the_page_before_it(self) -> None:
        worker, spaces = bench(groups=2)
        runs = (Run(0, (2, 3, 4)), Run(1, (13, 14)))
        worker.store(Step(1, [], [StoreJob(3, "a", 5, HASHES, b"", runs, 7)]))
        stores = [space.stores[0] for space in spaces]
        told = [(keys, more["parent"], more["first"]) for _, keys, _, more in stores]
        self.assertEqual(told, [(KEYS[32:], HASHES[0], 5), (KEYS[64:], HASHES[1], 6)])

    def test_pages_the_daemon_did_not_take_are_not_told_as_its_own(self) -> None:
        worker, (space,) = bench()
        worker.store(Step(1, [], [store_job(3)]))
        space.tasks[0].value = stored(3, declined=1)
        self.assertEqual(worker.take_reports(), Reports({3: (1, False)}))

    def test_a_store_that_cannot_be_begun_frees_its_blocks(self) -> None:
        worker, (space,) = bench()
        space.fails = True
        worker.store(Step(1, [], [store_job(3)]))
        self.assertEqual(worker.take_reports(), Reports({3: (1, False)}))

    def test_only_one_rank_of_equal_ones_stores(self) -> None:
        worker, (space,) = bench(storing=False)
        worker.store(Step(1, [], [store_job(3)]))
        self.assertEqual(space.stores, [])
        self.assertEqual(worker.take_reports(), Reports({3: (1, True)}))

    def test_a_stores_device_is_ordered_after_the_step(self) -> None:
        worker, (space,) = bench()
        worker.store(Step(1, [], [store_job(3)]), lambda device: f"{device} after")
        self.assertEqual(space.stores[0][0], "device0 after")

    def test_a_device_that_cannot_be_ordered_frees_the_blocks_of_every_job(self) -> None:
        def broken(_device: object) -> object:
            raise Broken.kind("no event")

        worker, (space,) = bench()
        worker.store(Step(1, [], [store_job(3), store_job(4)]), broken)
        self.assertEqual(space.stores, [])
        self.assertEqual(worker.take_reports(), Reports({3: (1, False), 4: (1, False)}))

    def test_a_store_that_one_group_did_not_begin_is_not_whole(self) -> None:
        worker, spaces = bench(groups=2)
        spaces[1].fails = True
        worker.store(Step(1, [], [store_job(3, Run(0, (1, 2, 3, 4)), Run(1, (7, 8, 9)))]))
        spaces[0].tasks[0].value = stored(4)
        self.assertEqual(worker.take_reports(), Reports({3: (1, False)}))

    def test_a_store_whose_end_cannot_be_read_is_over(self) -> None:
        worker, (space,) = bench()
        worker.store(Step(1, [], [store_job(3), store_job(4)]))
        for task in space.tasks:
            task.value = stored(4)
        space.tasks[0].breaks = True
        self.assertEqual(worker.take_reports(), Reports({3: (1, False), 4: (1, True)}))
        self.assertTrue(worker.is_idle)


class Panicking(unittest.TestCase):
    """The native module panics instead of raising: no `Exception`."""

    def setUp(self) -> None:
        panics = mock.patch.object(Broken, "kind", standins.Panic)
        panics.start()
        self.addCleanup(panics.stop)


class PanickingLoads(Panicking, Loads):
    """All of it once more."""


class PanickingStores(Panicking, Stores):
    """All of it once more."""


class Guarded(unittest.TestCase):
    def test_a_hook_answers_a_panic_and_lets_the_process_end(self) -> None:
        class Engine:
            raised: BaseException

            @harmless(lambda _: "a miss")
            def hook(self) -> str:
                raise self.raised

        engine = Engine()
        engine.raised = standins.Panic("!")
        self.assertEqual(engine.hook(), "a miss")
        for ends in ENDS:
            engine.raised = ends()
            self.assertRaises(ends, engine.hook)


class Aggregation(unittest.TestCase):
    def test_reports_of_ranks_add_up(self) -> None:
        other = Reports({1: (1, False), 2: (1, True)}, {4: 1})
        total = Reports({1: (1, True)}, {4: 1}).aggregate(other)
        self.assertEqual(total, Reports({1: (2, False), 2: (1, True)}, {4: 2}))


if __name__ == "__main__":
    unittest.main()
