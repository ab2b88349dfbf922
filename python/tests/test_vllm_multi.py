"""The connector as one of several, made by vLLM's own MultiConnector."""

from __future__ import annotations

import unittest
from typing import Any
from unittest import mock

from test_vllm_connector import MISSING, engine

if MISSING is None:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector

    from undercroft.vllm import UndercroftConnector, start


@unittest.skipIf(MISSING is not None, f"needs vllm and torch: {MISSING}")
class UnderMulti(unittest.TestCase):
    def child(self, policy: str) -> Any:
        """The connector under an outer config with a policy, and one of its own that says fail."""
        parts = engine("/nowhere", 1, None, False)
        config = parts.config
        config.kv_transfer_config.kv_load_failure_policy = policy
        config.kv_transfer_config.engine_id = "engine"
        config.kv_transfer_config.kv_connector_extra_config = {
            "connectors": [
                {
                    "kv_connector": "UndercroftConnector",
                    "kv_connector_module_path": "undercroft.vllm",
                    "kv_role": "kv_both",
                    "kv_connector_extra_config": {"socket": "/nowhere"},
                }
            ]
        }
        config.scheduler_config = mock.Mock(disable_hybrid_kv_cache_manager=False)
        with mock.patch.object(start, "_hash_tokens", lambda *_: 16):
            multi = MultiConnector(config, KVConnectorRole.SCHEDULER, parts.kv_cache_config)
        self.assertEqual(config.kv_transfer_config.kv_load_failure_policy, policy)
        (child,) = multi.sub_connectors
        self.assertIsInstance(child, UndercroftConnector)
        return child

    def test_nothing_is_loaded_where_a_miss_would_be_a_requests_end(self) -> None:
        child = self.child("fail")
        self.assertEqual((child._settings.load, child._scheduler._settings.load), ("off", "off"))

    def test_it_loads_where_the_engine_recomputes(self) -> None:
        self.assertEqual(self.child("recompute")._settings.load, "async")

    def test_alone_it_makes_the_engine_recompute(self) -> None:
        parts = engine("/nowhere", 1, None, False)
        with mock.patch.object(start, "_hash_tokens", lambda *_: 16):
            alone: Any = UndercroftConnector(
                parts.config, KVConnectorRole.SCHEDULER, parts.kv_cache_config
            )
        self.assertEqual(parts.config.kv_transfer_config.kv_load_failure_policy, "recompute")
        self.assertEqual(alone._settings.load, "async")


if __name__ == "__main__":
    unittest.main()
