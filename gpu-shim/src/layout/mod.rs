//! Where an engine keeps its pages, described by data.

mod apart;
mod engines;
mod error;
mod strips;

pub use error::LayoutError;
pub use strips::Strip;

use crate::BlockId;
use std::ops::Range;
use undercroft_arena::Span;
use undercroft_wire::{Geometry, frame_bytes};

/// One allocation of the engine that holds fragments: addresses on the device, or offsets where a
/// device has memory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    /// Its first byte.
    pub base: u64,
    /// Its length, bytes.
    pub bytes: u64,
}

/// Where one fragment, which is one part of one layer, of every block lies. A fragment may be cut
/// into rows of equal length, one token each for instance, with those of other layers between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the tensor it lies in.
    pub tensor: usize,
    /// Where it begins for block 0, bytes from the tensor's first.
    pub offset: u64,
    /// From one block to the next, bytes.
    pub block_stride: u64,
    /// Into how many rows it is cut; 1 where it is in one piece.
    pub rows: u32,
    /// From one row to the next, bytes; of no meaning with one row.
    pub row_stride: u64,
}

/// Bytes that lie together both in a block and in its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index of the tensor it lies in.
    pub tensor: usize,
    /// Where on the device.
    pub at: u64,
    /// Where in the page, bytes from its start.
    pub in_page: usize,
    /// How many.
    pub bytes: usize,
}

/// Where the fragments of each block of an engine's KV cache lie. Two blocks never share a byte,
/// and no fragment reaches beyond its tensor: both are checked when the layout is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    geometry: Geometry,
    blocks: u32,
    tensors: Vec<Tensor>,
    /// One for each fragment, in the order they have in a page.
    places: Vec<Place>,
}

impl KvLayout {
    /// A layout of `blocks` blocks, with one place for each fragment in the order fragments have
    /// in a page: layer 0 part 0, layer 0 part 1, layer 1 part 0, …
    ///
    /// # Errors
    /// No blocks, a place too many or too few, rows that do not divide a fragment, a fragment
    /// outside its tensor, tensors that overlap, fragments that overlap.
    pub fn new(
        geometry: Geometry,
        blocks: u32,
        tensors: Vec<Tensor>,
        places: Vec<Place>,
    ) -> Result<Self, LayoutError> {
        let layout = Self { geometry, blocks, tensors, places };
        layout.check_counts()?;
        for index in 0..layout.places.len() {
            layout.check_place(index)?;
        }
        layout.check_tensors()?;
        layout.check_apart()?;
        Ok(layout)
    }

    /// The shape of its pages.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The allocations it lies in.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// One place for each fragment, in the order they have in a page.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The first byte behind all tensors.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.base + tensor.bytes).max().unwrap_or(0)
    }

    /// The same layout with every address `by` bytes further on: for a device that has allocated
    /// what the layout describes from address 0 on. `None` where an address would be beyond the
    /// last one.
    #[must_use]
    pub fn moved(&self, by: u64) -> Option<Self> {
        self.end().checked_add(by)?;
        let tensors =
            self.tensors.iter().map(|tensor| Tensor { base: tensor.base + by, ..*tensor });
        Some(Self { tensors: tensors.collect(), places: self.places.clone(), ..*self })
    }

    /// What a block is made of, in the order of its page, of these layers only.
    ///
    /// # Panics
    /// On a block or layer that is not there.
    pub fn runs(&self, block: BlockId, layers: Range<u32>) -> impl Iterator<Item = Run> + '_ {
        assert!(block.0 < self.blocks, "block {block} of {}", self.blocks);
        assert!(layers.end <= self.geometry.layers(), "layers {layers:?} of {:?}", self.geometry);
        let parts = self.geometry.parts();
        (layers.start * parts..layers.end * parts).flat_map(move |fragment| {
            let (layer, part) = (fragment / parts, fragment % parts);
            let (place, in_page) = (&self.places[fragment as usize], self.in_page(layer, part));
            let bytes = self.row_bytes(fragment as usize) as usize;
            let at = self.tensors[place.tensor].base
                + place.offset
                + u64::from(block.0) * place.block_stride;
            (0..place.rows).map(move |row| Run {
                tensor: place.tensor,
                at: at + u64::from(row) * place.row_stride,
                in_page: in_page + row as usize * bytes,
                bytes,
            })
        })
    }

    /// Bytes of the layers of a page, and so of a block.
    pub(crate) fn layers_bytes(&self, layers: Range<u32>) -> u64 {
        u64::from(layers.end - layers.start) * u64::from(self.geometry.layer_bytes())
    }

    pub(crate) fn has_block(&self, block: BlockId) -> bool {
        block.0 < self.blocks
    }

    pub(crate) fn takes_page(&self, page: &Span) -> bool {
        let page_bytes = self.geometry.page_bytes();
        (page_bytes as usize..=frame_bytes(page_bytes) as usize).contains(&page.len())
    }

    /// Where a fragment begins in its page, bytes.
    fn in_page(&self, layer: u32, part: u32) -> usize {
        let before: u32 = self.geometry.part_bytes()[..part as usize].iter().sum();
        layer as usize * self.geometry.layer_bytes() as usize + before as usize
    }

    fn part_bytes(&self, fragment: usize) -> u32 {
        let parts = self.geometry.part_bytes();
        parts[fragment % parts.len()]
    }

    fn row_bytes(&self, fragment: usize) -> u32 {
        self.part_bytes(fragment) / self.places[fragment].rows
    }

    fn check_counts(&self) -> Result<(), LayoutError> {
        if self.blocks == 0 {
            return Err(LayoutError::NoBlocks);
        }
        let expected = self.geometry.layers() as usize * self.geometry.parts() as usize;
        let found = self.places.len();
        if found != expected { Err(LayoutError::Places { found, expected }) } else { Ok(()) }
    }

    fn check_place(&self, index: usize) -> Result<(), LayoutError> {
        let (place, bytes) = (&self.places[index], self.part_bytes(index));
        if place.rows == 0 || !bytes.is_multiple_of(place.rows) {
            return Err(LayoutError::Rows { fragment: index, rows: place.rows, bytes });
        }
        let Some(tensor) = self.tensors.get(place.tensor) else {
            let (found, count) = (place.tensor, self.tensors.len());
            return Err(LayoutError::NoTensor { fragment: index, found, count });
        };
        let end = last_byte(place, self.blocks, bytes / place.rows);
        if end.is_none_or(|end| end > tensor.bytes) {
            let (tensor, bytes) = (place.tensor, tensor.bytes);
            return Err(LayoutError::Outside { fragment: index, tensor, bytes });
        }
        Ok(())
    }

    fn check_tensors(&self) -> Result<(), LayoutError> {
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by_key(|index| self.tensors[*index].base);
        for index in &order {
            let tensor = &self.tensors[*index];
            if tensor.base.checked_add(tensor.bytes).is_none() {
                return Err(LayoutError::TensorEnd { tensor: *index });
            }
        }
        let overlap = order.windows(2).find(|pair| {
            let [first, second] = [pair[0], pair[1]].map(|index| &self.tensors[index]);
            first.base + first.bytes > second.base
        });
        overlap.map_or(Ok(()), |pair| Err(LayoutError::Tensors { one: pair[0], other: pair[1] }))
    }
}

/// The end of a place's last row of its last block, bytes from the tensor's first.
fn last_byte(place: &Place, blocks: u32, row_bytes: u32) -> Option<u64> {
    let blocks = u64::from(blocks - 1).checked_mul(place.block_stride)?;
    let rows = match place.rows {
        1 => 0,
        rows => u64::from(rows - 1).checked_mul(place.row_stride)?,
    };
    place.offset.checked_add(blocks)?.checked_add(rows)?.checked_add(u64::from(row_bytes))
}
