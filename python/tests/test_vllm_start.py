"""What the connector makes of the engine's settings; needs vLLM."""

from __future__ import annotations

import importlib.util
import time
import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

import undercroft
from serving import Daemon
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


@unittest.skipUnless(HAS_VLLM, "vllm is not installed")
class Probing(unittest.TestCase):
    def probe(self, algorithm: str = "sha256", seed: bytes = b"seed", hash_tokens: int = 16) -> Any:
        from undercroft.vllm import start
        from vllm.v1.core import kv_cache_utils

        cache = SimpleNamespace(prefix_caching_hash_algo=algorithm)
        with mock.patch.object(kv_cache_utils, "NONE_HASH", seed, create=True):
            return start.probe(SimpleNamespace(cache_config=cache), 16, hash_tokens)

    def test_what_makes_hashes_differ_makes_the_probe_differ(self) -> None:
        told = self.probe()
        self.assertEqual(told, self.probe())
        self.assertIsInstance(told, bytes)
        others = [self.probe(seed=b"other"), self.probe("sha256_cbor"), self.probe(hash_tokens=8)]
        self.assertEqual(len({told, *others}), 4)

    def test_it_is_what_the_engine_makes_of_a_prompt(self) -> None:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core import kv_cache_utils

        function = get_hash_fn_by_name("sha256")
        with mock.patch.object(kv_cache_utils, "NONE_HASH", b"seed", create=True):
            hashes = kv_cache_utils.get_request_block_hasher(16, function)(prompt(range(1, 17)))
        self.assertEqual(self.probe(), hashes[0])

    def test_an_engine_that_cannot_be_asked_is_not_held_against_others(self) -> None:
        self.assertIsNone(self.probe("no such function"))

    def test_a_space_that_others_name_otherwise_keeps_the_half_off(self) -> None:
        from undercroft.vllm import start
        from undercroft.vllm.messages import Handshake

        with Daemon() as daemon:
            described = {"model": bytes(32), "dtype": "bf16", "layers": 2, "kv_heads": 1}
            shake = Handshake(None, {**described, "page_tokens": 16}, None, [(2, [4096])])
            clients = [undercroft.Client(daemon.socket, wait=5.0) for _ in range(3)]
            for client in clients:
                self.addCleanup(client.close)
            until = time.monotonic() + 5.0
            first = start._open(clients[0], shake, until, self.probe())
            self.assertEqual(len(start._open(clients[1], shake, until)), len(first))
            with self.assertRaisesRegex(start.CannotStart, "PYTHONHASHSEED"):
                start._open(clients[2], shake, until, self.probe(seed=b"other"))


def prompt(tokens: Any) -> Any:
    """What the engine's hasher reads of a request."""
    return SimpleNamespace(
        all_token_ids=list(tokens),
        num_tokens=len(tokens),
        block_hashes=[],
        mm_features=[],
        lora_request=None,
        cache_salt=None,
        prompt_embeds=None,
    )


if __name__ == "__main__":
    unittest.main()
