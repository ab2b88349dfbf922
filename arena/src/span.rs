#![expect(unsafe_code, reason = "bytes shared with other processes are reached by raw pointers")]

use crate::ArenaError;
use crate::region::{Access, MappingId, Region};
use crate::stream::{self, CHUNK_BYTES, Chunk};
use std::fmt;
use std::ptr;
use std::slice;
use std::sync::Arc;
use undercroft_wire::PartId;

/// A run of bytes in a part, a staging area or plain memory. Cheap to clone; keeps its memory
/// mapped. Read the contract at the head of this crate before use.
#[derive(Clone)]
pub struct Span {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl Span {
    /// `offset..offset + len` lies inside the region: `Region::span` and `sub` check it.
    pub(crate) fn new(region: Arc<Region>, offset: usize, len: usize) -> Self {
        Self { region, offset, len }
    }

    /// Length, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether its bytes may be changed through it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.region.access != Access::ReadOnly
    }

    pub(crate) fn is_foreign(&self) -> bool {
        self.region.access == Access::Foreign
    }

    /// A piece of it.
    ///
    /// # Errors
    /// A piece that does not lie inside.
    pub fn sub(&self, offset: usize, len: usize) -> Result<Self, ArenaError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {
                Ok(Self::new(Arc::clone(&self.region), self.offset + offset, len))
            }
            _ => Err(ArenaError::OutOfRange {
                offset: offset as u64,
                len: len as u64,
                bytes: self.len as u64,
            }),
        }
    }

    /// Which part of the arena it lies in and where it starts there; `None` outside the arena.
    /// This is how a registered buffer is found.
    #[must_use]
    pub fn part_offset(&self) -> Option<(PartId, usize)> {
        self.region.part.map(|part| (part, self.offset))
    }

    /// Which mapping it lies in, among all that there are and were.
    #[must_use]
    pub fn mapping_id(&self) -> MappingId {
        MappingId::of(&self.region)
    }

    /// Its address, for the kernel or a device. Valid while the span or a clone of it lives.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.start()
    }

    /// Its address, to be written to. Valid while the span or a clone of it lives.
    ///
    /// # Panics
    /// On a read-only span.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        assert!(self.is_writable(), "only a writable span is written to");
        self.start()
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the constructor keeps `offset` inside the mapping, which lives as long as the
        // region.
        unsafe { self.region.mapping.base().as_ptr().add(self.offset) }
    }

    fn check(&self, at: usize, len: usize) {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{at}..+{len} lies inside a span of {} bytes", self.len);
    }

    /// Fills it from `source`, which must be as long. The two may overlap.
    ///
    /// # Panics
    /// On a read-only span or a source of another length.
    pub fn copy_from(&self, source: &Self) {
        assert_eq!(self.len, source.len, "source and destination are of one length");
        self.copy_at(0, source, 0, self.len);
    }

    /// Copies `len` bytes from `source_at` in `source` to `at` in this span. Pages and their
    /// fragments go past the cache.
    ///
    /// # Panics
    /// On a read-only span, or where a range is outside its span.
    #[inline]
    pub fn copy_at(&self, at: usize, source: &Self, source_at: usize, len: usize) {
        self.check(at, len);
        source.check(source_at, len);
        let to = self.as_mut_ptr();
        // SAFETY: both ranges were checked to lie inside their spans. The bytes may be changed by
        // another process meanwhile: then the copy holds a mixture, which is why it is the copy
        // that gets checked.
        unsafe { stream::copy(source.as_ptr().add(source_at), to.add(at), len) };
    }

    /// As [`Span::copy_at`] from the same place of a source that does not overlap. Hands the bytes
    /// that were written to `look`, a chunk at a time and in order.
    pub(crate) fn copy_chunks(&self, source: &Self, mut look: impl FnMut(&[u8])) {
        assert_eq!(self.len, source.len, "source and destination are of one length");
        let (from, to) = (source.as_ptr(), self.as_mut_ptr());
        let apart = (from as usize).abs_diff(to as usize);
        assert!(apart >= self.len, "source and destination are apart");
        let mut chunk = Chunk::new();
        for at in (0..self.len).step_by(CHUNK_BYTES) {
            let len = CHUNK_BYTES.min(self.len - at);
            // SAFETY: the range lies inside both spans, and they do not overlap.
            look(unsafe { chunk.copy(from.add(at), to.add(at), len) });
        }
        stream::fence();
    }

    /// Fills it from `source`, which must be as long.
    ///
    /// # Panics
    /// On a read-only span or a source of another length.
    pub fn copy_from_slice(&self, source: &[u8]) {
        assert_eq!(self.len, source.len(), "source and destination are of one length");
        // SAFETY: the lengths are equal and both sides are valid for them.
        unsafe { ptr::copy(source.as_ptr(), self.as_mut_ptr(), self.len) };
    }

    /// Copies it into `target`, which must be as long.
    ///
    /// # Panics
    /// On a target of another length.
    pub fn copy_to_slice(&self, target: &mut [u8]) {
        assert_eq!(self.len, target.len(), "source and destination are of one length");
        // SAFETY: the lengths are equal and both sides are valid for them.
        unsafe { ptr::copy(self.as_ptr(), target.as_mut_ptr(), self.len) };
    }

    /// Looks at its bytes in place. Nobody may change them meanwhile.
    ///
    /// # Panics
    /// On a staging area seen by the daemon: what a client can change is copied out, never read.
    pub fn read<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        assert!(self.region.access != Access::Foreign, "staging is copied out, never read");
        // SAFETY: the constructor keeps the range inside the mapping; the contract of a span keeps
        // others from changing its bytes for the time of the call, and the slice cannot leave it.
        look(unsafe { slice::from_raw_parts(self.as_ptr(), self.len) })
    }

    /// Changes its bytes in place. Nobody may look at or change them meanwhile.
    ///
    /// # Panics
    /// On a read-only span, and on a staging area seen by the daemon.
    pub fn write<R>(&self, change: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(self.region.access != Access::Foreign, "staging is copied into, never written");
        // SAFETY: the constructor keeps the range inside the mapping; the contract of a span gives
        // the caller its bytes alone for the time of the call, and the slice cannot leave it.
        change(unsafe { slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) })
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({}..+{}", self.offset, self.len)?;
        if let Some(part) = self.region.part {
            write!(f, " of part {part}")?;
        }
        f.write_str(")")
    }
}
