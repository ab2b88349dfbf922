"""SGLang's own factory, controller's steps and host pools over Undercroft, where it is installed: MHA
and MLA, of bf16 and of fp8, in every layout, and both ways in."""

from __future__ import annotations

import unittest
from typing import Any

from serving import Daemon
from test_sglang import IS_REAL, PATIENCE, UndercroftHiCache, keys, sg

PAGE_TOKENS, PAGES, LAYERS, HEADS, HEAD_DIM, LATENT = 4, 8, 2, 2, 32, 80
TOKENS = PAGES * PAGE_TOKENS
MHA_SHAPES = {
    "layer_first": (2, LAYERS, TOKENS, HEADS, HEAD_DIM),
    "page_first": (2, TOKENS, LAYERS, HEADS, HEAD_DIM),
    "page_first_direct": (2, PAGES, LAYERS, PAGE_TOKENS, HEADS, HEAD_DIM),
    "page_head": (2, PAGES, HEADS, PAGE_TOKENS, LAYERS, HEAD_DIM),
}
MLA_SHAPES = {
    "layer_first": (LAYERS, TOKENS, 1, LATENT),
    "page_first": (TOKENS, LAYERS, 1, LATENT),
    "page_first_direct": (PAGES, LAYERS, PAGE_TOKENS, 1, LATENT),
}


def pool(is_mla: bool, layout: str, is_fp8: bool) -> Any:
    """SGLang's pool in memory of ours: as its constructor leaves it, which wants a GPU's."""
    import torch
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
    from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

    kind = MLATokenToKVPoolHost if is_mla else MHATokenToKVPoolHost
    made = kind.__new__(kind)
    made.layout, made.page_size, made.size, made.page_num = layout, PAGE_TOKENS, TOKENS, PAGES
    made.layer_num, made.start_layer, made.end_layer = LAYERS, 0, LAYERS
    made.dcp_size, made.dcp_rank = 1, 0
    made.device, made.pin_memory = "cpu", False
    # Of fp8, whichever, SGLang's host pools are bytes.
    made.dtype = torch.uint8 if is_fp8 else torch.bfloat16
    if is_mla:
        made.kv_cache_dim, shape = LATENT, MLA_SHAPES[layout]
    else:
        made.head_num, made.head_dim, made.v_head_dim = HEADS, HEAD_DIM, HEAD_DIM
        shape = MHA_SHAPES[layout]
    made.kv_buffer = torch.zeros(shape, dtype=made.dtype)
    return made


@unittest.skipUnless(IS_REAL, "SGLang is not installed: its stand-in was used")
class Real(unittest.TestCase):
    def setUp(self) -> None:
        self.daemon = Daemon(dram="256MiB")
        self.addCleanup(self.daemon.close)

    def backend(
        self, host: Any, is_mla: bool, is_v1: bool, identity: str = "fp8_e4m3"
    ) -> UndercroftHiCache:
        from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

        extra = {
            "backend_name": "undercroft", "module_path": "undercroft.sglang",
            "class_name": "UndercroftHiCache", "interface_v1": int(is_v1),
            "undercroft": {"socket": str(self.daemon.socket), "model": "none",
                           "identity": identity, "lookup_deadline": 5.0},
        }
        config = sg.HiCacheStorageConfig(
            0, 1, 0, 1, 0, 1, is_mla, False, host.layout == "page_first", "real",
            extra_config=extra,
        )
        backend = StorageBackendFactory.create_backend("dynamic", config, host)
        self.addCleanup(backend.close)
        self.assertIsInstance(backend, UndercroftHiCache)
        backend.register_mem_pool_host(host)
        self.assertTrue(backend._tier.client.wait_connected(PATIENCE))
        return backend

    def store(self, backend: UndercroftHiCache, host: Any, is_v1: bool) -> None:
        import torch

        if is_v1:
            stored = backend.batch_set_v1(keys(range(PAGES)), torch.arange(TOKENS))
            self.assertEqual(stored, [True] * PAGES)
            return
        # As SGLang's controller does without it.
        firsts = range(0, TOKENS, PAGE_TOKENS)
        pages = [host.get_data_page(first) for first in firsts]
        self.assertIs(backend.batch_set(keys(range(PAGES)), pages), True)

    def load(self, backend: UndercroftHiCache, host: Any, is_v1: bool) -> None:
        import torch

        if is_v1:
            loaded = backend.batch_get_v1(keys(range(PAGES)), torch.arange(TOKENS))
            self.assertEqual(loaded, [True] * PAGES)
            return
        targets = [host.get_dummy_flat_data_page() for _ in range(PAGES)]
        for at, page in enumerate(backend.batch_get(keys(range(PAGES)), targets)):
            self.assertIsNotNone(page)
            host.set_from_flat_data_page(at * PAGE_TOKENS, page)

    def test_pools_hold_what_is_loaded(self) -> None:
        import torch

        every = [
            (is_mla, layout, is_fp8, is_v1)
            for is_mla, shapes in ((False, MHA_SHAPES), (True, MLA_SHAPES))
            for layout in shapes for is_fp8 in (False, True) for is_v1 in (False, True)
            # SGLang itself hands out no page of its own of this one.
            if is_v1 or layout != "page_head"
        ]
        for case in every:
            is_mla, layout, is_fp8, is_v1 = case
            with self.subTest(mla=is_mla, layout=layout, fp8=is_fp8, v1=is_v1):
                full, empty = (pool(is_mla, layout, is_fp8) for _ in range(2))
                full.kv_buffer.view(torch.uint8).random_(256)
                first = self.backend(full, is_mla, is_v1)
                self.store(first, full, is_v1)
                again = self.backend(empty, is_mla, is_v1)
                self.assertEqual(again.batch_exists(keys(range(PAGES + 1))), PAGES)
                self.load(again, empty, is_v1)
                one, two = (host.kv_buffer.view(torch.uint8) for host in (full, empty))
                self.assertTrue(torch.equal(one, two))
                other = self.backend(empty, is_mla, is_v1, identity="fp8_e5m2")
                self.assertEqual(other.batch_exists(keys(range(1))), 0)
                # A daemon has so many sessions and no more.
                for backend in (first, again, other):
                    backend.close()

    def test_bytes_are_not_kept_where_sglang_says_nothing_of_them(self) -> None:
        host = pool(False, "page_first", True)
        backend = self.backend(host, False, True, identity="")
        import torch

        stored = backend.batch_set_v1(keys(range(PAGES)), torch.arange(TOKENS))
        self.assertEqual(stored, [False] * PAGES)


if __name__ == "__main__":
    unittest.main()
