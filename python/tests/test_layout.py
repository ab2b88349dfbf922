"""Layouts of engines' tensors, and memory of all kinds."""

from __future__ import annotations

import array
import itertools
import unittest
from collections.abc import Sequence

import undercroft

BLOCKS = 6
# Wider than any engine's: pages have at least 512 bytes.
ITEM = 8


class FakeDevice:
    type = "cpu"


class Tensor:
    """What a layout asks of a torch tensor, over a buffer of its own or another tensor's."""

    device = FakeDevice()

    def __init__(
        self,
        shape: Sequence[int],
        strides: Sequence[int] | None = None,
        *,
        offset: int = 0,
        base: Tensor | None = None,
    ) -> None:
        dense = [1] * len(shape)
        for at in range(len(shape) - 1, 0, -1):
            dense[at - 1] = dense[at] * shape[at]
        self.shape = tuple(shape)
        self._strides = tuple(strides or dense)
        last = sum((n - 1) * s for n, s in zip(self.shape, self._strides, strict=True))
        self.memory = array.array("Q", bytes(ITEM * (last + 1))) if base is None else base.memory
        self.offset = offset

    def stride(self) -> tuple[int, ...]:
        return self._strides

    def element_size(self) -> int:
        return ITEM

    def data_ptr(self) -> int:
        return self.memory.buffer_info()[0] + ITEM * self.offset

    def at(self, index: Sequence[int]) -> int:
        return self.offset + sum(i * s for i, s in zip(index, self._strides, strict=True))

    def block(self, dim: int, block: int) -> list[int]:
        """Where the elements of a block lie: the order is that of the shape."""
        ranges = [range(n) if at != dim else [block] for at, n in enumerate(self.shape)]
        return [self.at(index) for index in itertools.product(*ranges)]


def places_of(layout: undercroft.Layout, block: int, bases: list[int]) -> list[int]:
    """Addresses of a block's bytes by the layout, in the order of a page."""
    parts = layout.geometry.part_bytes
    found: list[int] = []
    for fragment, (tensor, offset, stride, rows, row_stride) in enumerate(layout.places):
        bytes_ = parts[fragment % len(parts)] // rows
        for row in range(rows):
            start = bases[tensor] + offset + block * stride + row * row_stride
            found += range(start, start + bytes_)
    return found


class Engines(unittest.TestCase):
    """A layout names each byte of a block once, and none of another one."""

    def check(self, tensors: list[Tensor], dim: int, parts: list[int]) -> None:
        layout = undercroft.Layout.of_tensors(tensors, block_dim=dim, blocks=BLOCKS)
        self.assertEqual(layout.geometry.part_bytes, parts)
        self.assertEqual((layout.geometry.layers, layout.blocks), (len(tensors), BLOCKS))
        starts = sorted({tensor.memory.buffer_info()[0] for tensor in tensors})
        for block in range(BLOCKS):
            expected: set[int] = set()
            for tensor in tensors:
                base = tensor.memory.buffer_info()[0]
                per = tensor.shape[dim] // BLOCKS
                for kernel_block in range(block * per, (block + 1) * per):
                    for element in tensor.block(dim, kernel_block):
                        expected |= set(range(base + ITEM * element, base + ITEM * (element + 1)))
            found = places_of(layout, block, starts)
            self.assertEqual(len(found), len(set(found)), "a byte twice")
            self.assertEqual(set(found), expected)
        undercroft.HostDevice(layout)

    def test_blocks_first_and_dense(self) -> None:
        self.check([Tensor((BLOCKS, 3, 4, 16)) for _ in range(2)], 0, [3 * 4 * 16 * ITEM])

    def test_latent_of_all_heads(self) -> None:
        self.check([Tensor((BLOCKS, 4, 24))], 0, [4 * 24 * ITEM])

    def test_keys_and_values_outside_of_blocks(self) -> None:
        self.check([Tensor((2, BLOCKS, 4, 3, 8)) for _ in range(3)], 1, [96 * ITEM, 96 * ITEM])

    def test_keys_and_values_inside_of_blocks(self) -> None:
        self.check([Tensor((BLOCKS, 2, 4, 3, 8))], 0, [192 * ITEM])

    def test_heads_in_another_order_of_memory(self) -> None:
        # Seen as [blocks, tokens, heads, width], kept as [blocks, heads, tokens, width].
        self.check([Tensor((BLOCKS, 4, 3, 8), (96, 8, 32, 1))], 0, [96 * ITEM])

    def test_blocks_with_room_between_them(self) -> None:
        self.check([Tensor((BLOCKS, 4, 16), (80, 16, 1))], 0, [64 * ITEM])

    def test_tokens_with_room_between_them(self) -> None:
        self.check([Tensor((BLOCKS, 4, 16), (4 * 20, 20, 1))], 0, [64 * ITEM])

    def test_several_blocks_of_the_kernels_are_one(self) -> None:
        self.check([Tensor((4 * BLOCKS, 4, 16))], 0, [4 * 64 * ITEM])
        self.check([Tensor((2, 4 * BLOCKS, 4, 16))], 1, [4 * 64 * ITEM, 4 * 64 * ITEM])

    def test_layers_in_one_storage(self) -> None:
        whole = Tensor((BLOCKS, 3, 4, 16))
        views = [
            Tensor((BLOCKS, 4, 16), (3 * 64, 16, 1), offset=64 * layer, base=whole)
            for layer in range(3)
        ]
        self.check(views, 0, [64 * ITEM])

    def test_the_page_has_the_order_of_memory(self) -> None:
        tensor = Tensor((2, BLOCKS, 4, 8))
        layout = undercroft.Layout.of_tensors([tensor], block_dim=1, blocks=BLOCKS)
        found = places_of(layout, 3, [0])
        part = 32 * ITEM
        self.assertEqual(found[:part], list(range(3 * part, 4 * part)))
        self.assertEqual(found[part:], list(range((BLOCKS + 3) * part, (BLOCKS + 4) * part)))


class Refused(unittest.TestCase):
    def test_what_has_no_layout_is_said(self) -> None:
        good = Tensor((BLOCKS, 4, 16))
        cases: list[tuple[list[Tensor], int, int, str]] = [
            ([], 0, BLOCKS, "no tensors"),
            ([good], 3, BLOCKS, "block_dim is 3"),
            ([good], 0, 4, "6 entries, allowed a multiple of 4"),
            ([good, Tensor((BLOCKS, 4, 8))], 0, BLOCKS, "alike"),
            ([Tensor((BLOCKS, 4, 3, 8), (400, 90, 20, 1))], 0, BLOCKS, "more than one distance"),
            ([good, good], 0, BLOCKS, "overlap"),
            ([Tensor((9, BLOCKS, 4, 16))], 1, BLOCKS, "9 parts in a block, allowed 1 to 8"),
            ([Tensor((BLOCKS, 4), (1 << 62, 1), base=good)], 0, BLOCKS, "bytes|outside"),
        ]
        for tensors, dim, blocks, words in cases:
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                undercroft.Layout.of_tensors(tensors, block_dim=dim, blocks=blocks)
        with self.assertRaisesRegex(ValueError, "2 entries for 1 tensors"):
            undercroft.Layout.of_tensors([good], block_dim=[0, 0], blocks=BLOCKS)

    def test_a_place_outside_of_its_tensor_is_refused(self) -> None:
        geometry, memory = undercroft.Geometry(1, (512,)), bytearray(1024)
        undercroft.Layout(geometry, 2, [memory], [(0, 0, 512)])
        with self.assertRaisesRegex(ValueError, "tensor"):
            undercroft.Layout(geometry, 2, [memory], [(0, 1, 512)])
        with self.assertRaisesRegex(ValueError, "place"):
            undercroft.Layout(geometry, 2, [memory], [(0, 1)])


class Memory(unittest.TestCase):
    """All kinds of memory are the same memory."""

    def test_addresses_buffers_and_tensors(self) -> None:
        tensor = Tensor((4096 // ITEM,))
        kinds = [(tensor.data_ptr(), 4096), tensor, bytearray(4096), memoryview(bytearray(4096))]
        for kind in kinds:
            self.assertEqual(undercroft.Buffers(4096, [kind]).blocks, 1)

    def test_a_buffer_that_is_lent_is_not_resized(self) -> None:
        memory = bytearray(4096)
        device = undercroft.Buffers(4096, [memory])
        with self.assertRaises(BufferError):
            memory.append(0)
        del device
        memory.append(0)

    def test_torch_and_dlpack(self) -> None:
        try:
            import torch
        except ImportError:
            self.skipTest("torch is not installed")
        tensor = torch.zeros(6, 4, 64, dtype=torch.bfloat16)
        layout = undercroft.Layout.of_tensors([tensor], block_dim=0, blocks=6)
        self.assertEqual(layout.places, [(0, 0, 512, 1, 0)])

        class Foreign:
            """Only what DLPack asks for."""

            def __dlpack__(self) -> object:
                return tensor.__dlpack__()

        again = undercroft.Layout.of_tensors([Foreign()], block_dim=0, blocks=6)
        self.assertEqual(again.places, layout.places)


if __name__ == "__main__":
    unittest.main()
