"""Where blocks lie in the engine's tensors, and which rank has which shard."""

from __future__ import annotations

import unittest
from types import SimpleNamespace
from typing import Any

from undercroft.vllm.blocks import BlocksError, by_blocks, group_memories
from undercroft.vllm.messages import Handshake

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

needs_torch = unittest.skipIf(torch is None, "needs torch")


@needs_torch
class Views(unittest.TestCase):
    def check(self, tensor: Any, blocks: int, dim: int, shape: tuple[int, ...]) -> None:
        view, found = by_blocks(tensor, blocks)
        self.assertEqual((found, tuple(view.shape)), (dim, shape))
        self.assertEqual(view.data_ptr(), tensor.data_ptr())

    def test_each_layout_shows_its_blocks(self) -> None:
        self.check(torch.zeros(10, 3, 32, 128), 10, 0, (10, 3, 32, 128))
        self.check(torch.zeros(2, 10, 16, 3, 64), 10, 1, (2, 10, 16, 3, 64))
        self.check(torch.zeros(10, 2, 16, 3, 64), 10, 0, (10, 2, 16, 3, 64))
        self.check(torch.zeros(10, 16, 576), 10, 0, (10, 16, 576))

    def test_kernel_blocks_are_put_together(self) -> None:
        self.check(torch.zeros(20, 3, 16, 128), 10, 0, (10, 2, 3, 16, 128))

    def test_a_blocks_inside_is_taken_in_the_order_of_memory(self) -> None:
        tokens_first = torch.zeros(10, 32, 3, 128).transpose(1, 2)
        self.check(tokens_first, 10, 0, (10, 32, 3, 128))

    def test_blocks_that_do_not_show_are_refused(self) -> None:
        with self.assertRaises(BlocksError):
            by_blocks(torch.zeros(7, 5, 3, 2), 10)
        with self.assertRaises(BlocksError):
            by_blocks(torch.zeros(2, 2, 16, 64), 2)  # K and V, or two blocks?

    def test_layers_that_share_a_tensor_are_one(self) -> None:
        one, two = torch.zeros(10, 3, 32, 128), torch.zeros(10, 3, 32, 128)
        group = SimpleNamespace(layer_names=["a", "b", "c", "elsewhere"])
        caches = {"a": one, "b": two, "c": one}
        (memory,) = group_memories([group], caches, 10, {"a": "X", "b": "X"})
        self.assertEqual(len(memory.tensors), 2)
        self.assertEqual(memory.index, {"a": 0, "b": 1, "c": 0})

    def test_how_many_blocks_there_are_is_no_identity_their_inside_is(self) -> None:
        group = SimpleNamespace(layer_names=["a"])

        def text(tensor: Any, blocks: int) -> str:
            return group_memories([group], {"a": tensor}, blocks, {"a": "X"})[0].text

        self.assertEqual(
            text(torch.zeros(10, 3, 32, 128), 10), text(torch.zeros(20, 3, 32, 128), 20)
        )
        self.assertNotEqual(
            text(torch.zeros(10, 3, 32, 128), 10), text(torch.zeros(10, 6, 32, 64), 10)
        )

    def test_two_orders_of_equal_sizes_are_two_identities(self) -> None:
        group = SimpleNamespace(layer_names=["a"])

        def text(tensor: Any) -> str:
            return group_memories([group], {"a": tensor}, 10, {"a": "X"})[0].text

        # As many heads as tokens, seen alike: heads first in memory, and tokens first.
        heads_first = torch.zeros(10, 16, 16, 128)
        tokens_first = torch.zeros(10, 16, 16, 128).transpose(1, 2)
        self.assertNotEqual(text(heads_first), text(tokens_first))

    def test_strides_over_all_blocks_say_nothing_of_a_page(self) -> None:
        group = SimpleNamespace(layer_names=["a"])

        def text(blocks: int) -> str:
            # One head of all blocks after another.
            tensor = torch.zeros(4, blocks, 16, 64).transpose(0, 1)
            return group_memories([group], {"a": tensor}, blocks, {"a": "X"})[0].text

        self.assertEqual(text(10), text(20))

    def test_a_layer_of_several_tensors_is_refused(self) -> None:
        group = SimpleNamespace(layer_names=["a"])
        with self.assertRaises(BlocksError):
            group_memories([group], {"a": [torch.zeros(2)]}, 10, {})


class MLAAttentionSpec:
    """By its name as the engine's."""


class FullAttentionSpec:
    """By its name as the engine's."""


class Shards(unittest.TestCase):
    """`start` imports the engine; its pure parts are tested where that is there."""

    def setUp(self) -> None:
        try:
            from undercroft.vllm import start
        except ImportError as error:
            self.skipTest(f"needs vllm: {error}")
        self.start = start

    def groups(self, kind: type) -> list[Any]:
        return [SimpleNamespace(kv_cache_spec=kind())]

    def test_every_rank_has_its_own_shard(self) -> None:
        shards = [self.start.shard(self.groups(FullAttentionSpec), tp, 2, pp, 2)
                  for pp in range(2) for tp in range(2)]
        self.assertEqual([one[0] for one in shards], [(0, 4), (1, 4), (2, 4), (3, 4)])
        self.assertTrue(all(one[1] for one in shards))

    def test_mla_is_stored_once_a_tensor_parallel_group(self) -> None:
        latent = self.groups(MLAAttentionSpec)
        self.assertEqual([self.start.shard(latent, tp, 2, 0, 1) for tp in range(2)],
                         [(None, True), (None, False)])
        self.assertEqual(self.start.shard(latent, 1, 2, 1, 2), ((1, 2), False))

    def test_all_ranks_must_agree(self) -> None:
        def one(**changes: Any) -> Handshake:
            fields = {"family": {"model": b"x"}, "rank": (0, 2), "shapes": [(1, [512])]}
            return Handshake(**{**fields, **changes})

        good = {(0, 0): one(), (0, 1): one(rank=(1, 2))}
        self.assertEqual(len(self.start.agreed(good, 2)), 2)
        shared = {(0, 0): one(rank=None), (0, 1): one(rank=None)}
        self.assertEqual(len(self.start.agreed(shared, 2)), 1)
        for bad in (
            {(0, 0): one()},
            {(0, 0): one(), (0, 1): one(off="no")},
            {(0, 0): one(), (0, 1): one(family={"model": b"y"})},
            {(0, 0): one(rank=None), (0, 1): one(rank=None, shapes=[(2, [512])])},
        ):
            with self.assertRaises(self.start.CannotStart):
                self.start.agreed(bad, 2)


if __name__ == "__main__":
    unittest.main()
