"""What the connector makes of the engine's settings; needs vLLM."""

from __future__ import annotations

import importlib.util
import unittest
from types import SimpleNamespace
from typing import Any

from undercroft.vllm.settings import Settings

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def engine(role: str = "kv_both", **changes: Any) -> Any:
    transfer = SimpleNamespace(kv_role=role)
    plain = {"max_concurrent_batches": 1, "speculative_config": None}
    return SimpleNamespace(kv_transfer_config=transfer, **{**plain, **changes})


ONE_GROUP = SimpleNamespace(kv_cache_groups=[None])
TWO_GROUPS = SimpleNamespace(kv_cache_groups=[None, None])


@unittest.skipUnless(HAS_VLLM, "vllm is not installed")
class Fitting(unittest.TestCase):
    def fit(self, settings: Settings, config: Any, groups: Any = ONE_GROUP) -> Settings:
        from undercroft.vllm import start

        return start.fitting(settings, config, groups)

    def test_a_producer_never_loads_and_a_consumer_never_stores(self) -> None:
        self.assertEqual(self.fit(Settings(), engine()), Settings())
        self.assertEqual(self.fit(Settings(), engine("kv_producer")), Settings(load="off"))
        self.assertEqual(self.fit(Settings(), engine("kv_consumer")), Settings(store=False))

    def test_layers_are_not_waited_for_where_a_failure_would_come_too_late(self) -> None:
        layers = Settings(load="layers")
        self.assertEqual(self.fit(layers, engine()).load, "layers")
        for config, groups in (
            (engine(max_concurrent_batches=2), ONE_GROUP),
            (engine(speculative_config=SimpleNamespace(method="ngram")), ONE_GROUP),
            (engine(), TWO_GROUPS),
        ):
            self.assertEqual(self.fit(layers, config, groups).load, "async")


if __name__ == "__main__":
    unittest.main()
