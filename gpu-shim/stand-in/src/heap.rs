//! Memory of the heap, so that an address sanitizer sees what is used too long or overrun.
#![expect(unsafe_code, reason = "memory is allocated by layout and handed out by address")]

use std::alloc::Layout;
use std::ptr::NonNull;

/// What fresh memory is filled with where that is cheap: nobody should count on zeros.
const FILL: u8 = 0xd5;
const FILL_AT_MOST: usize = 16 << 20;

/// A piece of the heap, freed when dropped.
#[derive(Debug)]
pub(crate) struct Block {
    at: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a `Block` owns its memory, and nobody reaches that through it but by address.
unsafe impl Send for Block {}

impl Block {
    /// `None` where there is no such memory. The alignment is a power of two.
    pub(crate) fn new(bytes: u64, align: usize) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
        let layout = Layout::from_size_align(bytes, align).ok()?;
        // SAFETY: the layout is not empty.
        let at = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        if bytes <= FILL_AT_MOST {
            // SAFETY: these bytes were just allocated.
            unsafe { at.as_ptr().write_bytes(FILL, bytes) };
        }
        Some(Self { at, layout })
    }

    /// Its address, exposed: copies reach it by number.
    pub(crate) fn address(&self) -> u64 {
        self.at.as_ptr().expose_provenance() as u64
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.at.as_ptr(), self.layout) };
    }
}
