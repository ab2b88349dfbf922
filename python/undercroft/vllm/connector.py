"""The connector as vLLM loads it: hooks that answer something harmless whatever happens."""

from __future__ import annotations

import atexit
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)

import undercroft

from . import outer, start, versions
from .guard import failed, harmless, logger, nothing
from .messages import Handshake, Reports, Step
from .obstacles import obstacle
from .settings import Settings, checked
from .stats import UndercroftPromMetrics, UndercroftStats

if TYPE_CHECKING:
    from .scheduler import Scheduler
    from .worker import Finished, Worker


def _shutdown_of(connector: UndercroftConnector) -> Callable[[], None]:
    """For the interpreter's end, without keeping a connector that was dropped, and the engine's
    tensors with it, until then."""
    found = weakref.ref(connector)

    def shutdown() -> None:
        if (still := found()) is not None:
            still.shutdown()

    return shutdown


class UndercroftConnector(KVConnectorBase_V1, SupportsHMA):
    """KV-cache pages kept by the Undercroft daemon of this node."""

    def __init__(
        self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        self._settings: Settings = start.fitting(checked(extra), vllm_config, kv_cache_config)
        self._shim = versions.shim(vllm.__version__)
        self._scheduler: Scheduler | None = None
        self._worker: Worker | None = None
        self._client: undercroft.Client | None = None
        self._handshake = Handshake(off="its KV caches were not registered")
        self._step: Step | None = None
        self._due: Step | None = None
        self._outer_error: BaseException | None = None
        self._finished: Finished | None = None
        self._refused = Reports()
        self._at_exit: Callable[[], None] | None = None
        self._after: Any = None
        self._bad_blocks: set[int] = set()
        self._spent = 0.0
        """Seconds in the scheduler's hooks since that was last told."""
        off = self._why_off(vllm_config, kv_cache_config)
        if off is not None:
            self._handshake = Handshake(off=off)
            logger.warning("undercroft: off: %s", off)
        elif role == KVConnectorRole.SCHEDULER:
            above = outer.transfer_config(self, KVConnectorBase_V1)
            if above is None:
                start.insist_on_recompute(self._kv_transfer_config)
            else:
                self._settings = outer.fitting(self._settings, above)
            self._scheduler = start.scheduler(
                vllm_config, kv_cache_config, self._settings, self._shim
            )

    def _why_off(self, vllm_config: Any, kv_cache_config: Any) -> str | None:
        if self._shim is None:
            return f"vLLM {vllm.__version__} is none of {versions.known()}"
        return obstacle(vllm_config, kv_cache_config, self._shim)

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: a store that is dropped is a later miss."""
        return False

    # Worker: registration.

    @harmless(nothing)
    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Finds the engine's blocks and opens this rank's spaces."""
        if self._shim is None or (off := self._handshake.off) is None:
            return
        if not off.startswith("its KV caches"):
            return
        self._handshake = Handshake(off="its KV caches could not be registered")
        try:
            started = start.worker(
                self._vllm_config, self._kv_cache_config, self._settings, kv_caches
            )
        except start.CannotStart as error:
            self._handshake = Handshake(off=str(error))
            logger.warning("undercroft: off: %s", error)
            return
        self._worker, self._client = started.worker, started.client
        self._handshake, self._after = started.handshake, started.after
        self._at_exit = _shutdown_of(self)
        atexit.register(self._at_exit)

    @harmless(lambda self: Handshake(off="it failed to say what it stores"))
    def get_handshake_metadata(self) -> Handshake:
        """What this rank stores, for the scheduler's lookups."""
        return self._handshake

    # Worker: a step.

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        """Takes what this step is to do."""
        super().bind_connector_metadata(connector_metadata)
        self._end_step(is_computed=False)
        step = connector_metadata if isinstance(connector_metadata, Step) else None
        self._step = self._due = step
        self._outer_error = sys.exc_info()[1]
        if step is not None and self._worker is not None:
            self._worker.begin(step)

    def clear_connector_metadata(self) -> None:
        """The step is over."""
        super().clear_connector_metadata()
        self._step = None

    @harmless(lambda self, *_, **__: self._refuse(self._step))
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begins the step's loads."""
        step = self._step
        if step is None or not (step.loads or step.forgets):
            return
        if self._worker is not None:
            self._worker.load(step)
        else:
            self._refuse(step)

    def _refuse(self, step: Step | None) -> None:
        """Loads nobody can carry: the engine is told that they are over, and failed."""
        from .worker import Finished

        if step is None:
            return
        if self._worker is not None:
            self._worker.refuse_loads(step)
            return
        finished = self._finished = self._finished or Finished()
        for job in step.loads:
            finished.failed.add(job.req_id)
            finished.blocks.update(block for run in job.runs for block in run.blocks)
            if job.by_layer:
                self._refused.layered[step.number] = 1
            else:
                finished.requests.add(job.req_id)

    @harmless(nothing)
    def wait_for_layer_load(self, layer_name: str) -> None:
        """Waits for a layer of the loads inside of this step."""
        if self._worker is not None:
            self._worker.wait_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        """Pages are stored whole, after the step."""

    @harmless(nothing)
    def wait_for_save(self) -> None:
        """Begins the step's stores; they read after the step's compute and go on behind it."""
        self._end_step()

    @harmless(nothing)
    def _end_step(self, is_computed: bool = True) -> None:
        """Ends a step's layered loads and begins its stores: once, at the first hook that comes
        after its compute. With speculation vLLM calls `wait_for_save` after the step's results
        were taken, and on all pipeline stages but the last never."""
        step, self._due = self._due, None
        raised_before, self._outer_error = self._outer_error, None
        if step is None:
            return
        if self._worker is None:
            self._refused.stores.update({job.number: (1, False) for job in step.stores})
            return
        # vLLM calls the hooks also when the step's compute has raised.
        is_computed = is_computed and sys.exc_info()[1] is raised_before
        try:
            self._worker.end_layers()
            if is_computed:
                self._worker.store(step, self._after)
        finally:
            # What was begun is known there; whatever was not is over.
            self._worker.refuse_stores(step)

    def _poll(self) -> Finished:
        from .worker import Finished

        self._end_step()
        finished, self._finished = self._finished or Finished(), None
        if self._worker is not None:
            now = self._worker.poll()
            finished.requests |= now.requests
            finished.failed |= now.failed
            finished.blocks |= now.blocks
        return finished

    @property
    def _has_groups(self) -> bool:
        return len(self._kv_cache_config.kv_cache_groups) > 1

    @harmless(lambda self, finished_req_ids: start.results(set(), set()))
    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """Loads that are over. Which failed is told by request where blocks have no numbers of
        their own across groups; else block by block, so that what arrived is used."""
        finished = self._poll()
        self._bad_blocks = set() if self._has_groups else finished.blocks
        return start.results(finished.requests, finished.failed if self._has_groups else set())

    @harmless(lambda self, finished_req_ids: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """As `get_transfer_results`, for engines that do not know it."""
        finished = self._poll()
        self._bad_blocks = finished.blocks
        return None, finished.requests or None

    @harmless(lambda self: set())
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks of loads that are over and whose page did not arrive."""
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    @harmless(nothing)
    def build_connector_worker_meta(self) -> Reports | None:
        """Stores that are over."""
        self._end_step()
        refused, self._refused = self._refused, Reports()
        told = self._worker.take_reports() if self._worker is not None else None
        if told is not None:
            return told.aggregate(refused)
        return None if refused.is_empty() else refused

    # Scheduler.

    @harmless(nothing)
    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[Any, Any]) -> None:
        """Opens every rank's spaces for lookups."""
        if self._scheduler is None:
            return
        try:
            self._client = start.lookups(
                self._scheduler, self._vllm_config, self._settings, metadata
            )
        except start.CannotStart as error:
            logger.warning("undercroft: off: %s", error)

    @harmless(nothing)
    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """The blocks that stores keep from reuse."""
        if self._scheduler is not None:
            self._scheduler.bind_pool(gpu_block_pool)

    # These are called for every request or step and begin with cold caches, where a wrapper around
    # them would cost as much as what they do: they guard themselves.

    def on_new_request(self, request: Any) -> None:
        """What it needs from an SSD can be read while it waits behind others."""
        if self._scheduler is None:
            return
        began = time.perf_counter()
        try:
            self._scheduler.arrived(request)
        except BaseException as error:  # noqa: BLE001 - nothing may reach the engine
            failed("on_new_request", error)
        self._spent += time.perf_counter() - began

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """What of the prompt is with the daemon, beyond what the engine has itself."""
        if self._scheduler is None:
            return 0, False
        began, tokens = time.perf_counter(), 0
        try:
            tokens = self._scheduler.claim(request, num_computed_tokens)
        except BaseException as error:  # noqa: BLE001 - nothing may reach the engine
            failed("get_num_new_matched_tokens", error)
        self._spent += time.perf_counter() - began
        return tokens, tokens > 0 and self._settings.load != "layers"

    @harmless(nothing)
    def _fail_load(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None and num_external_tokens > 0:
            self._scheduler.must_fail(request, blocks.get_block_ids())

    def update_state_after_alloc(
        self, request: Any, blocks: Any, num_external_tokens: int
    ) -> None:
        """The engine has blocks for what it was told; it may be less."""
        if self._scheduler is None:
            return
        began = time.perf_counter()
        try:
            if num_external_tokens > 0:
                self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)
            else:
                self._scheduler.unused(request)
        except BaseException as error:  # noqa: BLE001 - nothing may reach the engine
            failed("update_state_after_alloc", error)
            self._fail_load(request, blocks, num_external_tokens)
        self._spent += time.perf_counter() - began

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        """What the workers are to do in this step."""
        if self._scheduler is None:
            return Step()
        began, step = time.perf_counter(), None
        try:
            step = self._scheduler.step(scheduler_output)
        except BaseException as error:  # noqa: BLE001 - nothing may reach the engine
            failed("build_connector_meta", error)
        self._spent += time.perf_counter() - began
        return step or Step()

    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers have done."""
        if self._scheduler is None:
            return
        began = time.perf_counter()
        try:
            self._scheduler.heard(connector_output)
        except BaseException as error:  # noqa: BLE001 - nothing may reach the engine
            failed("update_connector_output", error)
        self._spent += time.perf_counter() - began

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """The same, of one group."""
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, None]:
        """Its blocks may be freed at once: those in a store are held by the store."""
        if self._scheduler is None:
            return False, None
        began = time.perf_counter()
        try:
            self._scheduler.finished(request, block_ids)
        except BaseException as error:  # noqa: BLE001 - nothing may reach the engine
            failed("request_finished_all_groups", error)
        self._spent += time.perf_counter() - began
        return False, None

    @harmless(lambda self: False)
    def has_pending_push_work(self) -> bool:
        """Steps must go on until workers have said that they are done with blocks."""
        return self._scheduler is not None and self._scheduler.has_pending

    @harmless(lambda self: False)
    def has_pending_block_frees(self) -> bool:
        """Where blocks run out: whether to wait for stores instead of preempting a request."""
        return self._scheduler is not None and self._scheduler.will_free

    @harmless(lambda self, request, num_external_tokens: {})
    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[Any, int]:
        """From which tier a hit came."""
        if self._scheduler is None or num_external_tokens <= 0:
            return {}
        return start.hit_sources(*self._scheduler.sources(request, num_external_tokens))

    def take_events(self) -> Iterable[Any]:
        """Blocks that came to the daemon or were found gone."""
        if self._scheduler is None or self._scheduler.announced is None:
            return ()
        return self._scheduler.announced.take()

    @harmless(lambda self: False)
    def reset_cache(self) -> bool:
        """Nothing stored before is found again: the weights may have changed."""
        if self._scheduler is not None:
            self._scheduler.forget()
        return True

    # Both.

    def get_kv_connector_stats(self) -> UndercroftStats | None:
        """What was counted since the last call."""
        half = self._scheduler if self._worker is None else self._worker
        if half is None or not (half.count or self._spent):
            return None
        counted = dict(half.count)
        half.count.clear()
        if self._spent:
            counted["hook_seconds"], self._spent = self._spent, 0.0
        return UndercroftStats(data=counted)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> UndercroftStats:
        """Counters out of what travelled between processes."""
        return UndercroftStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> UndercroftPromMetrics:
        """The counters on the engine's Prometheus page."""
        return UndercroftPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Waiting between layers cannot be captured in a graph."""
        return extra_config.get("load") == "layers"

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: Any) -> bool:
        """The blocks' addresses are registered for good."""
        return False

    @harmless(nothing)
    def shutdown(self) -> None:
        """Lets stores under way end, boundedly, and closes the session."""
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None
        worker, self._worker = self._worker, None
        scheduler, self._scheduler = self._scheduler, None
        client, self._client = self._client, None
        if worker is not None:
            worker.drain(self._settings.drain_ms / 1000)
        if scheduler is not None:
            scheduler.close()
        if client is not None:
            client.close()
