"""The connector itself, with vLLM's own base class, torch tensors and a real daemon, for one rank
and for several; the engine around it is simulated."""

from __future__ import annotations

import time
import unittest
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from serving import Daemon
from vllm_fakes import PAGE, Heard, Output, Pool, Request, table

try:
    import torch
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

    from undercroft.vllm import UndercroftConnector, start

    MISSING = None
except ImportError as error:
    MISSING = str(error)

BLOCKS = 24
HEADS, HEAD = 2, 32


class FullAttentionSpec(SimpleNamespace):
    """By its name as the engine's."""


class SlidingWindowSpec(SimpleNamespace):
    """By its name as the engine's."""


class MLAAttentionSpec(SimpleNamespace):
    """By its name as the engine's."""


def engine(
    socket: str, world: int, groups: list[Any] | None, events: bool, **extra: Any
) -> Any:
    """What the connector reads of vLLM's configuration."""
    hf = SimpleNamespace(to_dict=lambda: {"hidden_size": 64}, num_hidden_layers=2)
    transfer = SimpleNamespace(
        kv_connector_extra_config={"socket": socket, "lookup_deadline_ms": 1000.0, **extra},
        kv_load_failure_policy="fail",
        is_kv_producer=True,
    )
    specs = groups or [FullAttentionSpec(block_size=PAGE)]
    kv_cache_config = SimpleNamespace(
        num_blocks=BLOCKS,
        kv_cache_groups=[
            SimpleNamespace(kv_cache_spec=spec, layer_names=[f"g{at}.0", f"g{at}.1"])
            for at, spec in enumerate(specs)
        ],
    )
    config = SimpleNamespace(
        kv_transfer_config=transfer,
        kv_events_config=SimpleNamespace(enable_kv_cache_events=events),
        model_config=SimpleNamespace(
            model="none",
            hf_config=hf,
            hf_text_config=hf,
            dtype="torch.bfloat16",
            quantization=None,
            seed=0,
            max_model_len=4096,
            get_total_num_kv_heads=lambda: HEADS,
        ),
        load_config=SimpleNamespace(load_format="dummy", download_dir=None),
        cache_config=SimpleNamespace(
            cache_dtype="auto", prefix_caching_hash_algo="sha256", enable_prefix_caching=True
        ),
        parallel_config=SimpleNamespace(
            world_size=world, tensor_parallel_size=world, pipeline_parallel_size=1
        ),
        compilation_config=SimpleNamespace(static_forward_context={}),
    )
    return SimpleNamespace(config=config, kv_cache_config=kv_cache_config)


class Engine:
    """A scheduler's and some workers' connectors, stepped as vLLM does it."""

    def __init__(
        self, socket: str, world: int = 1, groups: Any = None, events: bool = False, **extra: Any
    ) -> None:
        parts = engine(socket, world, groups, events, **extra)
        is_mla = isinstance((groups or [None])[0], MLAAttentionSpec)
        self.caches: list[dict[str, Any]] = []
        self.workers: list[Any] = []
        self.pool = Pool(BLOCKS)
        for rank in range(world):
            shape = (BLOCKS, PAGE, 72) if is_mla else (BLOCKS, HEADS, PAGE, 2 * HEAD)
            names = [n for g in parts.kv_cache_config.kv_cache_groups for n in g.layer_names]
            caches = {name: torch.zeros(shape, dtype=torch.bfloat16) for name in names}
            worker = UndercroftConnector(
                parts.config, KVConnectorRole.WORKER, parts.kv_cache_config
            )

            def shard(_config: Any, groups: Any, rank: int = rank) -> Any:
                return start.shard(groups, rank, world, 0, 1)

            with mock.patch.object(start, "_rank", shard):
                worker.register_kv_caches(caches)
            self.caches.append(caches)
            self.workers.append(worker)
        with mock.patch.object(start, "_hash_tokens", lambda *_: PAGE):
            self.scheduler = UndercroftConnector(
                parts.config, KVConnectorRole.SCHEDULER, parts.kv_cache_config
            )
        self.scheduler.bind_gpu_block_pool(self.pool)
        shakes = {(0, rank): one.get_handshake_metadata() for rank, one in enumerate(self.workers)}
        self.scheduler.set_xfer_handshake_metadata_pp_aware(shakes)
        self.policy = parts.config.kv_transfer_config.kv_load_failure_policy

    def step(self, scheduled: dict[str, int], tables: dict[str, Any]) -> Heard:
        """One step of all workers, and the scheduler hears of it."""
        meta = self.scheduler.build_connector_meta(Output(scheduled, tables))
        heard, reports = Heard(finished_recving=set()), None
        counts: dict[str, int] = {}
        for worker in self.workers:
            worker.bind_connector_metadata(meta)
            worker.start_load_kv(None)
            worker.wait_for_save()
            results = worker.get_transfer_results(set())
            heard.invalid_block_ids |= worker.get_block_ids_with_load_errors()
            heard.failed_recving |= results.failed_recving
            for req_id in results.finished_recving:
                counts[req_id] = counts.get(req_id, 0) + 1
            told = worker.build_connector_worker_meta()
            reports = told if reports is None else reports.aggregate(told) if told else reports
            worker.clear_connector_metadata()
        self._told = getattr(self, "_told", {})
        for req_id, count in counts.items():
            self._told[req_id] = self._told.get(req_id, 0) + count
            if self._told[req_id] == len(self.workers):
                heard.finished_recving.add(self._told.pop(req_id) and req_id)
        heard.kv_connector_worker_meta = reports
        self.scheduler.update_connector_output(heard)
        return heard

    def until(self, done: Callable[[Heard], bool], patience: float = 20.0) -> Heard:
        """Empty steps until something is so."""
        end = time.monotonic() + patience
        total = Heard(finished_recving=set())
        while time.monotonic() < end:
            heard = self.step({}, {})
            total.finished_recving |= heard.finished_recving or set()
            total.invalid_block_ids |= heard.invalid_block_ids
            total.failed_recving |= heard.failed_recving
            if done(total):
                return total
            time.sleep(0.005)
        raise TimeoutError("the workers did not get there in time")

    def fill(self, seed: int) -> None:
        """Computes: every block of every rank gets bytes of its own."""
        for rank, caches in enumerate(self.caches):
            for at, tensor in enumerate(caches.values()):
                torch.manual_seed(seed + 100 * rank + at)
                tensor.copy_(torch.randn(tensor.shape).to(torch.bfloat16))

    def store(self, request: Request, blocks: Any) -> None:
        """A request is computed, stored, and ends."""
        self.scheduler.get_num_new_matched_tokens(request, 0)
        self.scheduler.update_state_after_alloc(request, table(*blocks), 0)
        self.step({request.request_id: request.num_tokens}, {request.request_id: blocks})
        request.num_computed_tokens = request.num_tokens
        assert self.scheduler.request_finished_all_groups(request, blocks) == (False, None)
        self.until(lambda _: not self.scheduler.has_pending_push_work())

    def load(self, request: Request, blocks: Any, local: int = 0) -> tuple[int, Heard | None]:
        """A request comes back: how many tokens were claimed, and what became of their load."""
        tokens, is_async = self.scheduler.get_num_new_matched_tokens(request, local)
        if not tokens:
            return 0, None
        assert is_async
        self.scheduler.update_state_after_alloc(request, table(*blocks), tokens)
        return tokens, self.until(lambda heard: request.request_id in heard.finished_recving)

    def close(self) -> None:
        for one in [self.scheduler, *self.workers]:
            one.shutdown()


@unittest.skipIf(MISSING is not None, f"needs vllm and torch: {MISSING}")
class OneRank(unittest.TestCase):
    def setUp(self) -> None:
        self.daemon = Daemon()
        self.addCleanup(self.daemon.close)

    def start(self, **options: Any) -> Engine:
        made = Engine(str(self.daemon.socket), **options)
        self.addCleanup(made.close)
        return made

    def test_what_one_engine_stored_another_loads_bit_by_bit(self) -> None:
        first = self.start()
        first.fill(1)
        first.store(Request("a", range(PAGE * 4 + 3)), ([1, 2, 3, 4, 5],))
        self.assertEqual(first.pool.held, [])
        second = self.start()
        tokens, heard = second.load(Request("b", range(PAGE * 4 + 3)), ([7, 9, 8, 11],))
        assert heard is not None
        self.assertEqual((tokens, heard.invalid_block_ids), (PAGE * 4, set()))
        for name in first.caches[0]:
            for ours, theirs in zip((1, 2, 3, 4), (7, 9, 8, 11)):
                self.assertTrue(
                    torch.equal(first.caches[0][name][ours], second.caches[0][name][theirs])
                )
            self.assertFalse(second.caches[0][name][10].any(), "a block that was not asked for")

    def test_the_engine_is_made_to_recompute_what_does_not_come(self) -> None:
        self.assertEqual(self.start().policy, "recompute")

    def test_a_daemon_killed_before_the_load_fails_it_and_nothing_else(self) -> None:
        made = self.start()
        made.fill(1)
        made.store(Request("a", range(PAGE * 4 + 3)), ([1, 2, 3, 4, 5],))
        request = Request("b", range(PAGE * 4 + 3))
        tokens, _ = made.scheduler.get_num_new_matched_tokens(request, PAGE)
        self.assertEqual(tokens, PAGE * 3)
        self.daemon.kill()
        made.scheduler.update_state_after_alloc(request, table([6, 7, 8, 9]), tokens)
        heard = made.until(lambda heard: "b" in heard.finished_recving)
        self.assertEqual(heard.invalid_block_ids, {7, 8, 9})
        self.assertEqual(made.scheduler.get_num_new_matched_tokens(request, PAGE), (0, False))
        made.store(Request("c", range(1000, 1000 + PAGE * 3)), ([1, 2, 3],))
        self.assertEqual(made.pool.held, [])

    def test_a_hook_that_breaks_at_any_point_never_leaves_the_engine_waiting(self) -> None:
        made = self.start()
        made.fill(1)
        made.store(Request("a", range(PAGE * 4 + 3)), ([1, 2, 3, 4, 5],))
        for number, (owner, name) in enumerate(
            (
                (made.scheduler._scheduler, "allocated"),
                (made.workers[0]._worker._groups[0], "space"),
            )
        ):
            request = Request(f"b{number}", range(PAGE * 4 + 3))
            tokens, _ = made.scheduler.get_num_new_matched_tokens(request, 0)
            self.assertEqual(tokens, PAGE * 4)
            with mock.patch.object(owner, name, None):
                made.scheduler.update_state_after_alloc(request, table([6, 7, 8, 9]), tokens)
                made.step({}, {})
            if not made.workers[0]._worker.is_idle:
                made.until(lambda _: made.workers[0]._worker.is_idle)
            self.assertEqual(made.scheduler.get_num_new_matched_tokens(request, 0), (0, False))
            self.assertEqual(made.scheduler._scheduler._loading, {})

    def layered(self, made: Engine, request: Request, blocks: list[int], tokens: int) -> Heard:
        """One step with a load inside of it."""
        made.scheduler.update_state_after_alloc(request, table(blocks), tokens)
        request.num_computed_tokens = tokens
        rest = request.num_tokens - tokens
        return made.step({request.request_id: rest}, {request.request_id: (blocks,)})

    def test_a_load_inside_of_a_step_is_there_layer_by_layer(self) -> None:
        first = self.start()
        first.fill(1)
        first.store(Request("a", range(PAGE * 4 + 3)), ([1, 2, 3, 4, 5],))
        second = self.start(load="layers")
        request = Request("b", range(PAGE * 4 + 3))
        tokens, is_async = second.scheduler.get_num_new_matched_tokens(request, 0)
        self.assertEqual((tokens, is_async), (PAGE * 4, False))
        worker, seen = second.workers[0], []

        def forward() -> None:
            for name, tensor in first.caches[0].items():
                worker.wait_for_layer_load(name)
                seen.append(torch.equal(tensor[1:5], second.caches[0][name][7:11]))

        with mock.patch.object(worker, "wait_for_save", self.before(worker.wait_for_save, forward)):
            heard = self.layered(second, request, [7, 8, 9, 10, 11], tokens)
        self.assertEqual(seen, [True, True])
        self.assertEqual((heard.invalid_block_ids, heard.finished_recving), (set(), set()))

    def before(self, then: Callable[[], None], first: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            first()
            then()

        return both

    def test_a_load_inside_of_a_step_that_fails_is_told_in_it_and_nothing_upon_it_is_stored(
        self,
    ) -> None:
        made = self.start(load="layers")
        made.fill(1)
        made.store(Request("a", range(PAGE * 2 + 3)), ([1, 2, 3],))
        request = Request("b", range(PAGE * 4 + 3))
        tokens, _ = made.scheduler.get_num_new_matched_tokens(request, 0)
        self.assertEqual(tokens, PAGE * 2)
        self.daemon.kill()
        heard = self.layered(made, request, [7, 8, 9, 10, 11], tokens)
        self.assertEqual(heard.invalid_block_ids, {7, 8})
        self.assertEqual(made.workers[0]._worker.count["stored_pages"], 2, "those of the first")
        self.assertEqual(made.pool.held, [])
        self.assertEqual(made.scheduler.get_num_new_matched_tokens(request, 0), (0, False))

    def test_events_tell_what_came_and_what_was_found_gone(self) -> None:
        made = self.start(events=True)
        made.fill(1)
        request = Request("a", range(PAGE * 3 + 3), salt="mine")
        made.store(request, ([1, 2, 3, 4],))
        (event,) = made.scheduler.take_events()
        hashes = [maybe_convert_block_hash(one) for one in request.block_hashes[:3]]
        self.assertEqual(event.block_hashes, hashes)
        self.assertEqual((event.block_size, event.medium, event.group_idx), (PAGE, "CPU", 0))
        self.assertEqual(event.token_ids, list(range(PAGE * 3)))
        self.assertEqual(event.extra_keys, [("mine",), None, None])
        self.assertEqual(list(made.scheduler.take_events()), [])
        made.scheduler._scheduler.forget()
        again = Request("b", range(PAGE * 3 + 3))
        self.assertEqual(made.load(again, ([5, 6, 7],)), (0, None))
        (gone,) = made.scheduler.take_events()
        self.assertEqual(type(gone).__name__, "BlockRemoved")
        self.assertEqual(gone.block_hashes, hashes)

    def test_events_say_what_kind_of_attention_a_group_has(self) -> None:
        from vllm.v1 import kv_cache_interface as interface

        shape = {"block_size": 16, "num_kv_heads": 1, "head_size": 8, "dtype": torch.bfloat16}
        groups = [
            SimpleNamespace(kv_cache_spec=interface.FullAttentionSpec(**shape)),
            SimpleNamespace(kv_cache_spec=interface.SlidingWindowSpec(**shape, sliding_window=64)),
        ]
        full, sliding = start._maker(groups).groups
        self.assertEqual((full["group_idx"], full["kv_cache_spec_kind"]), (0, "full_attention"))
        self.assertIsNone(full["kv_cache_spec_sliding_window"])
        self.assertEqual(sliding["kv_cache_spec_kind"], "sliding_window")
        self.assertEqual(sliding["kv_cache_spec_sliding_window"], 64)

    def test_a_worker_that_is_off_keeps_all_off(self) -> None:
        made = self.start(model_digest=None, groups=[FullAttentionSpec(block_size=PAGE)])
        made.workers[0]._handshake.off = "for a test"
        made.scheduler._scheduler._spaces = None
        made.scheduler.set_xfer_handshake_metadata_pp_aware(
            {(0, 0): made.workers[0].get_handshake_metadata()}
        )
        self.assertEqual(made.load(Request("a", range(PAGE * 3)), ([1, 2],)), (0, None))


@unittest.skipIf(MISSING is not None, f"needs vllm and torch: {MISSING}")
class SeveralRanks(unittest.TestCase):
    def setUp(self) -> None:
        self.daemon = Daemon()
        self.addCleanup(self.daemon.close)

    def start(self, **options: Any) -> Engine:
        made = Engine(str(self.daemon.socket), **options)
        self.addCleanup(made.close)
        return made

    def test_each_rank_gets_its_own_shard(self) -> None:
        first = self.start(world=2)
        first.fill(1)
        first.store(Request("a", range(PAGE * 3 + 3)), ([1, 2, 3, 4],))
        second = self.start(world=2)
        tokens, heard = second.load(Request("b", range(PAGE * 3 + 3)), ([7, 9, 8],))
        assert heard is not None
        self.assertEqual((tokens, heard.invalid_block_ids), (PAGE * 3, set()))
        for rank in range(2):
            for name, tensor in first.caches[rank].items():
                for ours, theirs in zip((1, 2, 3), (7, 9, 8)):
                    self.assertTrue(
                        torch.equal(tensor[ours], second.caches[rank][name][theirs])
                    )

    def test_a_page_that_one_rank_lacks_is_no_hit(self) -> None:
        first = self.start(world=2)
        first.fill(1)
        # What this rank stores is declined, whatever it is.
        first.workers[1]._worker._is_storing = False
        first.store(Request("a", range(PAGE * 3 + 3)), ([1, 2, 3, 4],))
        second = self.start(world=2)
        self.assertEqual(second.load(Request("b", range(PAGE * 3 + 3)), ([7, 9, 8],)), (0, None))

    def test_other_numbers_of_ranks_share_nothing(self) -> None:
        first = self.start(world=1)
        first.fill(1)
        first.store(Request("a", range(PAGE * 3 + 3)), ([1, 2, 3, 4],))
        second = self.start(world=2)
        self.assertEqual(second.load(Request("b", range(PAGE * 3 + 3)), ([7, 9, 8],)), (0, None))

    def test_mla_is_stored_once_and_loaded_by_all(self) -> None:
        latent = [MLAAttentionSpec(block_size=PAGE)]
        first = self.start(world=2, groups=latent)
        first.fill(1)
        first.store(Request("a", range(PAGE * 3 + 3)), ([1, 2, 3, 4],))
        self.assertGreater(first.workers[0]._worker.count["stored_pages"], 0)
        self.assertNotIn("stored_pages", first.workers[1]._worker.count)
        second = self.start(world=4, groups=latent)
        tokens, heard = second.load(Request("b", range(PAGE * 3 + 3)), ([7, 9, 8],))
        assert heard is not None
        self.assertEqual((tokens, heard.invalid_block_ids), (PAGE * 3, set()))
        for rank in range(4):
            for name, tensor in first.caches[0].items():
                self.assertTrue(torch.equal(tensor[2], second.caches[rank][name][9]))

    def test_groups_are_claimed_together_and_a_window_loads_its_own_part(self) -> None:
        hybrid = [
            FullAttentionSpec(block_size=PAGE),
            SlidingWindowSpec(block_size=PAGE, sliding_window=PAGE),
        ]
        first = self.start(groups=hybrid)
        first.fill(1)
        first.store(Request("a", range(PAGE * 4 + 3)), ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]))
        second = self.start(groups=hybrid)
        tokens, heard = second.load(
            Request("b", range(PAGE * 4 + 3)), ([11, 12, 13, 14], [0, 0, 15, 16])
        )
        assert heard is not None
        self.assertEqual(tokens, PAGE * 4)
        self.assertEqual((heard.invalid_block_ids, heard.failed_recving), (set(), set()))
        caches, loaded = first.caches[0], second.caches[0]
        self.assertTrue(torch.equal(caches["g0.0"][4], loaded["g0.0"][14]))
        self.assertTrue(torch.equal(caches["g1.1"][9], loaded["g1.1"][16]))
        self.assertFalse(loaded["g1.1"][0].any(), "the null block is nobody's")

    def test_a_failed_load_of_groups_is_told_by_request(self) -> None:
        hybrid = [
            FullAttentionSpec(block_size=PAGE),
            SlidingWindowSpec(block_size=PAGE, sliding_window=PAGE),
        ]
        made = self.start(groups=hybrid)
        made.fill(1)
        made.store(Request("a", range(PAGE * 3 + 3)), ([1, 2, 3, 4], [6, 7, 8, 9]))
        request = Request("b", range(PAGE * 3 + 3))
        tokens, _ = made.scheduler.get_num_new_matched_tokens(request, 0)
        self.daemon.kill()
        made.scheduler.update_state_after_alloc(
            request, table([11, 12, 13], [0, 14, 15]), tokens
        )
        heard = made.until(lambda heard: "b" in heard.finished_recving)
        self.assertEqual((heard.invalid_block_ids, heard.failed_recving), (set(), {"b"}))
        self.assertEqual(made.scheduler.get_num_new_matched_tokens(request, 0), (0, False))


if __name__ == "__main__":
    unittest.main()
