"""The connector's counters, as the engine's logs and Prometheus page show them."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

# Name, and what it counts. All are counters, so reports of ranks and steps add up.
COUNTERS: dict[str, str] = {
    "lookups": "Lookups asked of the Undercroft daemon by the scheduler.",
    "absent": "Requests the daemon's board had no beginning of: nothing was asked.",
    "lookup_seconds": "Time the scheduler spent in lookups.",
    "lookup_missed": "Lookups that got no answer: no daemon, or not in time.",
    "lookup_skipped": "Requests not asked about: the step's lookups had taken their time.",
    "hook_seconds": "Time the scheduler spent in the connector's hooks.",
    "found_pages": "Pages that lookups found on every rank.",
    "unworthy_pages": "Of these, pages that are computed faster than loaded.",
    "claimed_tokens": "Tokens the connector offered the engine beyond its own hits.",
    "loads": "Loads begun, one a request and rank.",
    "loads_failed": "Loads of which a page did not arrive: the engine recomputed it.",
    "loaded_pages": "Pages loaded into the engine's blocks.",
    "loaded_bytes": "Bytes loaded into the engine's blocks.",
    "load_seconds": "Time from the start of loads to their end.",
    "stores": "Stores begun, one a job and rank.",
    "stored_pages": "Pages the daemon took.",
    "held_pages": "Pages offered that the daemon held already.",
    "declined_pages": "Pages the daemon did not want.",
    "failed_pages": "Pages that could not be stored, or of which nothing is known.",
    "deferred_stores": "Times stores waited for a later step: too many blocks were pinned.",
}


class UndercroftStats(KVConnectorStats):
    """Counters of one interval."""

    def reset(self) -> None:
        """Forgets them."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """The counters of both."""
        for name, value in other.data.items():
            self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        """As one line of the log."""
        return {name: round(value, 6) for name, value in self.data.items() if value}

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not any(self.data.values())


class UndercroftPromMetrics(KVConnectorPromMetrics):
    """One Prometheus counter a name, `vllm:undercroft_<name>_total`."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[tuple[str, int], Any] = {}
        for name, meaning in COUNTERS.items():
            counter = self._counter_cls(
                name=f"vllm:undercroft_{name}_total", documentation=meaning, labelnames=labelnames
            )
            for engine, values in per_engine_labelvalues.items():
                self._counters[name, engine] = counter.labels(*values)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds an interval's counters."""
        for name, value in transfer_stats_data.items():
            counter = self._counters.get((name, engine_idx))
            if counter is not None and value > 0:
                counter.inc(value)
