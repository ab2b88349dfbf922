//! In which pieces the layers of a block are copied, worked out once for a layout.

use crate::{KvLayout, Strip};
use std::ops::Range;

/// What a kernel's blocks take at once, bytes of a page.
pub(super) const TILE_BYTES: usize = 8192;
/// Copies by rows are slow for few rows, so layers are taken together but for the first ones.
const MOST_LAYERS_AT_ONCE: u32 = 8;

/// Layers that are copied together, and done together.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) layers: Range<u32>,
    pub(super) strips: Vec<Strip>,
    /// Bytes of one page.
    pub(super) bytes: u64,
    /// Where its strips begin in the kernel's table.
    pub(super) first_strip: usize,
    /// Tiles of one page.
    pub(super) tiles: u32,
}

/// The three orders in which layers are copied.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// All layers together.
    pub(super) whole: Vec<Group>,
    /// The first layers alone, the further ones in ever larger groups.
    pub(super) growing: Vec<Group>,
    /// Each layer alone.
    pub(super) single: Vec<Group>,
    /// The largest power of two up to 16 that divides every address and length there is.
    pub(super) unit: u32,
}

/// One entry of the kernel's table, as `kernels/pages.cu` has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StripRow {
    at: u64,
    block_stride: u64,
    pitch: u64,
    in_page: u32,
    row_bytes: u32,
    rows: u32,
    first_tile: u32,
}

pub(super) const STRIP_ROW_BYTES: usize = 40;
const _: () = assert!(size_of::<StripRow>() == STRIP_ROW_BYTES, "the kernel's struct Strip");

impl Plan {
    pub(super) fn of(layout: &KvLayout) -> Self {
        let layers = layout.geometry().layers();
        let mut first_strip = 0;
        let mut groups = |ends: &[u32]| -> Vec<Group> {
            let starts = std::iter::once(0).chain(ends.iter().copied());
            starts
                .zip(ends)
                .map(|(start, end)| {
                    let group = Group::of(layout, start..*end, first_strip);
                    first_strip += group.strips.len();
                    group
                })
                .collect()
        };
        let whole = groups(&[layers]);
        let growing = groups(&growing_ends(layers));
        let single = groups(&(1..=layers).collect::<Vec<u32>>());
        // Not of the whole alone: fragments that join there are looked at one by one in the others.
        let all = [&whole, &growing, &single].into_iter().flatten();
        let unit = unit(all.flat_map(|group| &group.strips));
        Self { whole, growing, single, unit }
    }

    /// The table that [`Group::first_strip`] counts in, as the kernel reads it.
    pub(super) fn table(&self) -> Vec<u8> {
        let groups = self.whole.iter().chain(&self.growing).chain(&self.single);
        groups.flat_map(Group::rows).flat_map(StripRow::to_bytes).collect()
    }
}

/// 1, 2, 4, 8, 16, 24, … up to all layers.
fn growing_ends(layers: u32) -> Vec<u32> {
    let mut ends = Vec::new();
    let mut end = 1;
    while end < layers {
        ends.push(end);
        end += end.min(MOST_LAYERS_AT_ONCE);
    }
    ends.push(layers);
    ends
}

/// All that the addresses of every row of every block are made of.
fn unit<'a>(strips: impl IntoIterator<Item = &'a Strip>) -> u32 {
    let of = |strip: &Strip| {
        let pitch = if strip.rows > 1 { strip.pitch } else { 0 };
        strip.at | strip.block_stride | pitch | strip.in_page as u64 | strip.row_bytes as u64
    };
    let all = strips.into_iter().map(of).fold(16, |all, one| all | one);
    1 << all.trailing_zeros()
}

impl Group {
    fn of(layout: &KvLayout, layers: Range<u32>, first_strip: usize) -> Self {
        let strips = layout.strips(layers.clone());
        let bytes = strips.iter().map(|strip| strip.bytes() as u64).sum();
        let tiles = strips.iter().map(tiles).sum();
        Self { layers, strips, bytes, first_strip, tiles }
    }

    fn rows(&self) -> impl Iterator<Item = StripRow> + '_ {
        let mut first_tile = 0;
        self.strips.iter().map(move |strip| {
            let row = StripRow {
                at: strip.at,
                block_stride: strip.block_stride,
                pitch: strip.pitch,
                // A page is at most 64 MiB.
                in_page: strip.in_page as u32,
                row_bytes: strip.row_bytes as u32,
                rows: strip.rows as u32,
                first_tile,
            };
            first_tile += tiles(strip);
            row
        })
    }
}

fn tiles(strip: &Strip) -> u32 {
    strip.bytes().div_ceil(TILE_BYTES) as u32
}

impl StripRow {
    fn to_bytes(self) -> [u8; STRIP_ROW_BYTES] {
        let mut bytes = [0; STRIP_ROW_BYTES];
        let wide = [self.at, self.block_stride, self.pitch].map(u64::to_le_bytes);
        let narrow =
            [self.in_page, self.row_bytes, self.rows, self.first_tile].map(u32::to_le_bytes);
        for (to, from) in bytes.iter_mut().zip(wide.concat().into_iter().chain(narrow.concat())) {
            *to = from;
        }
        bytes
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use undercroft_wire::Geometry;

    #[test]
    fn every_order_has_each_layer_once_and_the_first_one_alone() {
        for layers in [1, 2, 5, 32, 61, 80] {
            let geometry = Geometry::new(layers, 2, 1024).unwrap();
            let plan = Plan::of(&KvLayout::packed(geometry, 4).unwrap());
            for groups in [&plan.whole, &plan.growing, &plan.single] {
                let all = groups.iter().flat_map(|group| group.layers.clone());
                assert_eq!(all.collect::<Vec<_>>(), (0..layers).collect::<Vec<_>>());
                let bytes: u64 = groups.iter().map(|group| group.bytes).sum();
                assert_eq!(bytes, u64::from(geometry.page_bytes()));
            }
            assert_eq!(plan.growing[0].layers, 0..1);
            assert_eq!((plan.whole.len(), plan.single.len()), (1, layers as usize));
            let most = plan.growing.iter().map(|group| group.layers.len()).max().unwrap();
            assert!(most <= 8, "{most}");
        }
    }

    #[test]
    fn the_kernels_table_is_what_the_groups_point_into() {
        let geometry = Geometry::of_parts(3, &[4096, 16_384]).unwrap();
        let layout = KvLayout::block_first(geometry, 2, &[0, 1 << 20, 3 << 20]).unwrap();
        let plan = Plan::of(&layout);
        let table = plan.table();
        let strips = plan.whole[0].strips.len() + plan.growing.len() + plan.single.len();
        assert_eq!(table.len(), strips * STRIP_ROW_BYTES);
        let last = &plan.single[2];
        let row = &table[last.first_strip * STRIP_ROW_BYTES..];
        assert_eq!(row[..8], (3_u64 << 20).to_le_bytes());
        assert_eq!(row[24..28], (2 * 20_480_u32).to_le_bytes());
        assert_eq!((last.tiles, plan.whole[0].tiles), (3, 9));
    }

    #[test]
    fn a_unit_divides_whatever_there_is() {
        let strip =
            Strip { at: 4096, block_stride: 512, pitch: 0, in_page: 0, row_bytes: 256, rows: 1 };
        assert_eq!(unit(&[strip]), 16);
        assert_eq!(unit(&[strip, Strip { at: 4104, ..strip }]), 8);
        assert_eq!(unit(&[Strip { row_bytes: 36, ..strip }]), 4);
        // A pitch that is never stepped counts for nothing.
        assert_eq!(unit(&[Strip { pitch: 1, ..strip }]), 16);
        assert_eq!(unit(&[Strip { pitch: 1, rows: 2, ..strip }]), 1);
    }

    #[test]
    fn a_unit_divides_what_is_in_one_piece_only_where_layers_are_taken_together() {
        // 528 bytes, a multiple of 16, of two layers that are not.
        let geometry = Geometry::new(2, 1, 264).unwrap();
        let plan = Plan::of(&KvLayout::cross_layer(geometry, 2, 0).unwrap());
        assert_eq!(plan.whole[0].strips.len(), 1);
        assert_eq!(unit(&plan.whole[0].strips), 16);
        assert_eq!(plan.unit, 8);
    }
}
