"""The worker's hooks in the orders vLLM calls them, and with what breaks between them."""

from __future__ import annotations

import gc
import unittest
import weakref
from typing import Any
from unittest import mock

from test_vllm_connector import MISSING, engine
from undercroft.vllm.messages import LoadJob, Reports, Run, Step, StoreJob
from undercroft.vllm.settings import Settings
from undercroft.vllm.worker import GroupIo, Worker
from vllm_fakes import Space, loaded, stored

if MISSING is None:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from undercroft.vllm import UndercroftConnector, start
    from undercroft.vllm.messages import Handshake

HASHES = [bytes(range(32))] * 2
KEYS = b"".join(HASHES)


def load_job(req: str, *blocks: int, by_layer: bool = False) -> LoadJob:
    return LoadJob(req, KEYS, (Run(0, blocks),), 7, by_layer)


def store_job(number: int) -> StoreJob:
    return StoreJob(number, "a", 0, HASHES, b"", (Run(0, (1, 2)),), 7)


@unittest.skipIf(MISSING is not None, f"needs vllm and torch: {MISSING}")
class Hooks(unittest.TestCase):
    def setUp(self) -> None:
        parts = engine("/nowhere", 1, None, False)
        self.connector: Any = UndercroftConnector(
            parts.config, KVConnectorRole.WORKER, parts.kv_cache_config
        )
        self.space = Space()
        ios = [GroupIo(self.space, "device", {"layer.0": 0})]
        self.connector._worker = Worker(Settings(), ios, True, b"".join)

    def test_stores_begin_though_the_step_is_saved_after_its_results_or_never(self) -> None:
        one = self.connector
        one.bind_connector_metadata(Step(1, [], [store_job(3)]))
        one.start_load_kv(None)
        one.get_transfer_results(set())
        self.assertEqual(len(self.space.stores), 1)
        self.assertIsNone(one.build_connector_worker_meta())
        one.wait_for_save()
        one.clear_connector_metadata()
        self.assertEqual(len(self.space.stores), 1, "the same store once more")
        self.space.tasks[0].value = stored(2)
        one.bind_connector_metadata(Step(2))
        self.assertEqual(one.build_connector_worker_meta(), Reports({3: (1, True)}))

    def test_loads_inside_of_a_step_are_told_with_it_though_it_is_saved_later(self) -> None:
        one = self.connector
        one.bind_connector_metadata(Step(5, [load_job("a", 8, 9, by_layer=True)]))
        one.start_load_kv(None)
        self.space.tasks[0].value = loaded(1, "absent")
        one.get_transfer_results(set())
        self.assertEqual(one.get_block_ids_with_load_errors(), {9})
        self.assertEqual(one.build_connector_worker_meta(), Reports(layered={5: 1}))

    def test_a_step_that_is_never_ended_is_told_with_the_next(self) -> None:
        one = self.connector
        one.bind_connector_metadata(
            Step(1, [load_job("a", 8, 9, by_layer=True)], [store_job(3), store_job(4)])
        )
        one.start_load_kv(None)
        self.space.tasks[0].value = loaded(2)
        one.bind_connector_metadata(Step(2))
        told = one.build_connector_worker_meta()
        self.assertEqual(told, Reports({3: (1, False), 4: (1, False)}, {1: 1}))
        self.assertEqual(self.space.stores, [])

    def test_nothing_is_stored_of_a_step_whose_compute_has_raised(self) -> None:
        one = self.connector
        try:
            raise ValueError("of the caller's, before the step")
        except ValueError:
            one.bind_connector_metadata(Step(1, [], [store_job(3)]))
            one.wait_for_save()
        self.assertEqual(len(self.space.stores), 1)
        one.bind_connector_metadata(Step(2, [], [store_job(4)]))
        try:
            raise RuntimeError("out of memory in the middle of the step")
        except RuntimeError:
            one.wait_for_save()
            one.get_transfer_results(set())
        self.assertEqual(len(self.space.stores), 1)
        self.assertEqual(one.build_connector_worker_meta(), Reports({4: (1, False)}))

    def test_layered_loads_that_break_do_not_take_the_stores_along(self) -> None:
        one = self.connector
        one.bind_connector_metadata(Step(1, [], [store_job(3)]))
        with mock.patch.object(one._worker, "end_layers", side_effect=RuntimeError("broken")):
            one.wait_for_save()
        self.assertEqual(one.build_connector_worker_meta(), Reports({3: (1, False)}))

    def test_loads_that_cannot_be_begun_at_all_are_over_and_failed(self) -> None:
        one = self.connector
        jobs = [load_job("a", 5, 6), load_job("b", 7, 8, by_layer=True)]
        one.bind_connector_metadata(Step(4, jobs))
        with mock.patch.object(one._worker, "load", side_effect=RuntimeError("broken")):
            one.start_load_kv(None)
        results = one.get_transfer_results(set())
        self.assertEqual(results.finished_recving, {"a"})
        self.assertEqual(one.get_block_ids_with_load_errors(), {5, 6, 7, 8})
        self.assertEqual(one.build_connector_worker_meta(), Reports(layered={4: 1}))

    def test_a_worker_that_is_gone_still_tells_everything(self) -> None:
        one = self.connector
        one.shutdown()
        jobs = [load_job("a", 5, 6), load_job("b", 7, 8, by_layer=True)]
        one.bind_connector_metadata(Step(4, jobs, [store_job(3)]))
        one.start_load_kv(None)
        one.wait_for_save()
        results = one.get_transfer_results(set())
        self.assertEqual(results.finished_recving, {"a"})
        self.assertEqual(one.get_block_ids_with_load_errors(), {5, 6, 7, 8})
        told = one.build_connector_worker_meta()
        self.assertEqual(told, Reports({3: (1, False)}, {4: 1}))
        self.assertIsNone(one.build_connector_worker_meta())

    def test_an_engine_that_is_dropped_is_not_kept_until_the_interpreter_ends(self) -> None:
        one, self.connector = self.connector, None
        worker = one._worker
        started = start.Started(worker, mock.Mock(), Handshake(), None)
        with mock.patch.object(start, "worker", return_value=started):
            one.register_kv_caches({})
        self.assertIs(one._worker, worker)
        at_exit = one._at_exit
        dropped = weakref.ref(one)
        del one
        gc.collect()
        self.assertIsNone(dropped())
        at_exit()


if __name__ == "__main__":
    unittest.main()
