//! Moving bytes.
#![expect(unsafe_code, reason = "bytes are moved by address, as the driver is told them")]

use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// What a failed copy leaves behind.
const SCRIBBLE: u8 = 0xee;

/// Equal rows at regular distances, from one place to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) from: u64,
    pub(crate) from_pitch: u64,
    pub(crate) to: u64,
    pub(crate) to_pitch: u64,
    pub(crate) width: u64,
    pub(crate) count: u64,
}

impl Rows {
    /// Bytes from one place to another.
    pub(crate) fn one(from: u64, to: u64, bytes: u64) -> Self {
        Self { from, from_pitch: bytes, to, to_pitch: bytes, width: bytes, count: 1 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.width == 0 || self.count == 0
    }

    /// From the first byte read to the last. `None`: more than addresses can say.
    pub(crate) fn read_span(&self) -> Option<u64> {
        self.span(self.from, self.from_pitch)
    }

    /// From the first byte written to the last.
    pub(crate) fn written_span(&self) -> Option<u64> {
        self.span(self.to, self.to_pitch)
    }

    fn span(&self, start: u64, pitch: u64) -> Option<u64> {
        let bytes = self.count.checked_sub(1)?.checked_mul(pitch)?.checked_add(self.width)?;
        start.checked_add(bytes).map(|_| bytes)
    }

    /// Moves the bytes.
    ///
    /// # Safety
    /// Both spans are memory that lives while this runs, the one written is writable, and nobody
    /// else writes the one or uses the other meanwhile.
    pub(crate) unsafe fn copy(&self) {
        for row in 0..self.count {
            let from = with_exposed_provenance::<u8>((self.from + row * self.from_pitch) as usize);
            let to = with_exposed_provenance_mut::<u8>((self.to + row * self.to_pitch) as usize);
            // SAFETY: the caller answers for both rows; they may overlap.
            unsafe { to.copy_from(from, self.width as usize) };
        }
    }

    /// Spoils what would have been written, in part.
    ///
    /// # Safety
    /// As [`Rows::copy`].
    pub(crate) unsafe fn scribble(&self) {
        for row in (0..self.count).step_by(2) {
            let to = with_exposed_provenance_mut::<u8>((self.to + row * self.to_pitch) as usize);
            // SAFETY: the caller answers for the row.
            unsafe { to.write_bytes(SCRIBBLE, self.width.div_ceil(2) as usize) };
        }
    }
}
