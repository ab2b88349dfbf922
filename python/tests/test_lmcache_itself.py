"""LMCache itself over Undercroft: its own memory, keys and controllers, where it is installed."""

from __future__ import annotations

import ctypes
import hashlib
import time
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import standins
from serving import Daemon
from test_lmcache import IS_REAL, OBJECT_BYTES, PATIENCE, SHAPE, UndercroftL2Adapter, data


@unittest.skipUnless(IS_REAL, "LMCache is not installed: its stand-in was used")
class Real(unittest.TestCase):
    def test_lmcache_itself_makes_the_adapter_from_its_configuration(self) -> None:
        from lmcache.v1.distributed.l2_adapters import create_l2_adapter
        from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class

        with Daemon() as daemon:
            config = get_l2_adapter_config_class("plugin").from_dict({
                "module_path": "undercroft.lmcache",
                "class_name": "UndercroftL2Adapter",
                "adapter_params": {"socket": str(daemon.socket)},
            })
            adapter = create_l2_adapter(config)
            try:
                self.assertIsInstance(adapter, UndercroftL2Adapter)
                fds = {adapter.get_store_event_fd(), adapter.get_lookup_and_lock_event_fd(),
                       adapter.get_load_event_fd()}
                self.assertEqual(len(fds), 3)
            finally:
                adapter.close()

    def test_lmcaches_own_memory_gets_back_what_was_in_it_before_it_began_anew(self) -> None:
        from lmcache.v1.distributed.api import ObjectKey

        with Daemon(dram="128MiB") as daemon:
            asked = [
                ObjectKey(hashlib.sha256(b"%d" % n).digest(), "m", 1 << 24 | 1 << 8)
                for n in range(8)
            ]
            with manager(daemon) as first:
                self.write(first, asked[:6])
                # Their L1 holds them, so they are asked of a daemon's other session.
                other = UndercroftL2Adapter(adapter_settings(daemon))
                self.addCleanup(other.close)
                self.assertTrue(other._tier.client.wait_connected(PATIENCE))
                until = time.monotonic() + PATIENCE
                while self.there(other, asked) != [True] * 6 + [False] * 2:
                    self.assertLess(time.monotonic(), until, "LMCache never stored them below")
                    time.sleep(0.02)
            with manager(daemon) as second:
                self.read_back(second, asked)
            with manager(daemon, identity="another block size") as third:
                self.assertEqual(self.prefetched(third, asked).l2_hit_count, 0)

    def write(self, manager: Any, keys: list[Any]) -> None:
        reserved = manager.reserve_write(keys, layout())
        self.assertEqual(len(reserved), len(keys))
        for n, key in enumerate(keys):
            memory, found = reserved[key], data(n)
            ctypes.memmove(memory.data_ptr, found, len(found))
        manager.finish_write(keys)

    def there(self, adapter: UndercroftL2Adapter, keys: list[Any]) -> list[bool]:
        task = adapter.submit_lookup_and_lock_task(keys, {0: layout()})
        self.assertTrue(standins.is_signalled(adapter.get_lookup_and_lock_event_fd(), PATIENCE))
        found = adapter.query_lookup_and_lock_result(task)
        adapter.submit_unlock([key for at, key in enumerate(keys) if found.test(at)])
        return [found.test(at) for at in range(len(keys))]

    def prefetched(self, manager: Any, keys: list[Any]) -> Any:
        from lmcache.v1.distributed.api import GroupedObjectKeys, PrefetchTaskSpec

        spec = PrefetchTaskSpec([GroupedObjectKeys(keys, 0, layout())])
        handle = manager.submit_prefetch_task(spec)
        self.assertTrue(manager.wait_prefetch_status(handle, PATIENCE))
        return manager.query_prefetch_status(handle)

    def read_back(self, manager: Any, keys: list[Any]) -> None:
        result = self.prefetched(manager, keys)
        self.assertEqual((result.l1_hit_count, result.l2_hit_count), (0, 6))
        with manager.read_prefetched_results(keys[:6], result.l1_owners) as memories:
            self.assertIsNotNone(memories)
            for n, memory in enumerate(memories):
                self.assertEqual(ctypes.string_at(memory.data_ptr, OBJECT_BYTES), data(n))
        manager.finish_read_prefetched(keys[:6], l1_owners=result.l1_owners)


def adapter_settings(daemon: Daemon, identity: str = "a test") -> dict[str, Any]:
    return {"socket": str(daemon.socket), "models": {"m": "none"}, "identity": identity,
            "lookup_deadline": 5.0}


def layout() -> Any:
    """LMCache's own of what tests store."""
    import torch
    from lmcache.v1.distributed.api import MemoryLayoutDesc

    return MemoryLayoutDesc([torch.Size(SHAPE)], [torch.bfloat16])


@contextmanager
def manager(daemon: Daemon, **settings: str) -> Iterator[Any]:
    """LMCache's server without its sockets: memory, and Undercroft beneath."""
    from lmcache.v1.distributed.config import (
        EvictionConfig, L1ManagerConfig, L1MemoryManagerConfig, StorageManagerConfig,
    )
    from lmcache.v1.distributed.l2_adapters.config import (
        L2AdaptersConfig, get_l2_adapter_config_class,
    )
    from lmcache.v1.distributed.storage_manager import StorageManager

    below = get_l2_adapter_config_class("plugin").from_dict({
        "module_path": "undercroft.lmcache", "class_name": "UndercroftL2Adapter",
        "adapter_params": adapter_settings(daemon, **settings),
    })
    memory = L1MemoryManagerConfig(64 << 20, use_lazy=False, shm_name="")
    made = StorageManager(StorageManagerConfig(
        L1ManagerConfig(memory), EvictionConfig("LRU"), L2AdaptersConfig([below])
    ))
    try:
        for _, adapter in made.l2_adapters():
            client = adapter._tier.client
            assert client.wait_connected(PATIENCE), client.failure
        yield made
    finally:
        made.close()


if __name__ == "__main__":
    unittest.main()
