//! A block as few regular pieces: what one call of a copy engine, or one tile of a kernel, can move.

use super::KvLayout;
use std::ops::Range;

/// Rows of one length, at equal distances on the device and one after another in the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strip {
    /// Where the first row of block 0 lies on the device.
    pub at: u64,
    /// From one block to the next, bytes.
    pub block_stride: u64,
    /// From one row to the next on the device, bytes; of no meaning with one row.
    pub pitch: u64,
    /// Where the first row lies in the page, bytes from its start.
    pub in_page: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// How many rows.
    pub rows: usize,
}

impl Strip {
    /// Bytes of all its rows.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.row_bytes * self.rows
    }

    /// Where a row of a block lies on the device.
    #[must_use]
    pub fn row_at(&self, block: u32, row: usize) -> u64 {
        let into = if row == 0 { 0 } else { row as u64 * self.pitch };
        self.at + u64::from(block) * self.block_stride + into
    }

    /// One row instead of several that lie one after another.
    fn flattened(self) -> Self {
        if self.rows > 1 && self.pitch == self.row_bytes as u64 {
            return Self { row_bytes: self.bytes(), rows: 1, pitch: 0, ..self };
        }
        self
    }

    /// Both as one row, where `next` goes on where this one ends.
    fn lengthened(self, next: Self) -> Option<Self> {
        let goes_on = self.rows == 1
            && next.rows == 1
            && self.block_stride == next.block_stride
            && self.at + self.row_bytes as u64 == next.at;
        goes_on.then(|| Self { row_bytes: self.row_bytes + next.row_bytes, ..self })
    }

    /// Both as one strip, where the rows of `next` are further rows of this one.
    fn heightened(self, next: Self) -> Option<Self> {
        if self.block_stride != next.block_stride || self.row_bytes != next.row_bytes {
            return None;
        }
        let last = if self.rows == 1 { self.at } else { self.row_at(0, self.rows - 1) };
        let pitch = next.at.checked_sub(last)?;
        let even = (self.rows == 1 || self.pitch == pitch)
            && (next.rows == 1 || next.pitch == pitch)
            && pitch >= self.row_bytes as u64;
        even.then(|| Self { pitch, rows: self.rows + next.rows, ..self })
    }
}

impl KvLayout {
    /// What a page's layers are made of, in the order of the page: as few strips as neighbours
    /// give. Each lies in one tensor: no call reaches from one allocation of the engine's into
    /// another, however near they are.
    ///
    /// # Panics
    /// On a layer that is not there.
    #[must_use]
    pub fn strips(&self, layers: Range<u32>) -> Vec<Strip> {
        assert!(layers.end <= self.geometry.layers(), "layers {layers:?} of {:?}", self.geometry);
        let parts = self.geometry.parts();
        let fragments = (layers.start * parts..layers.end * parts).map(|fragment| {
            let place = &self.places[fragment as usize];
            let strip = Strip {
                at: self.tensors[place.tensor].base + place.offset,
                block_stride: place.block_stride,
                pitch: place.row_stride,
                in_page: self.in_page(fragment / parts, fragment % parts),
                row_bytes: self.row_bytes(fragment as usize) as usize,
                rows: place.rows as usize,
            };
            (place.tensor, strip.flattened())
        });
        // What is one run comes first: it leaves rows that are alike from layer to layer.
        let rows = join(fragments, Strip::lengthened);
        let strips = join(rows.into_iter(), Strip::heightened);
        strips.into_iter().map(|(_, strip)| strip).collect()
    }
}

/// Joins neighbours of one tensor where `both` says they can be.
fn join(
    strips: impl Iterator<Item = (usize, Strip)>,
    both: impl Fn(Strip, Strip) -> Option<Strip>,
) -> Vec<(usize, Strip)> {
    let mut joined: Vec<(usize, Strip)> = Vec::new();
    for (tensor, strip) in strips {
        let last = joined.last_mut().filter(|(of, _)| *of == tensor);
        match last.and_then(|(_, last)| Some((both(*last, strip)?, last))) {
            Some((longer, last)) => *last = longer,
            None => joined.push((tensor, strip)),
        }
    }
    joined
}
