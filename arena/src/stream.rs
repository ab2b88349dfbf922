#![expect(unsafe_code, reason = "stores past the cache are instructions, not Rust")]

//! Copying pages past the cache.
//!
//! A page is copied to be read by a device, by an SSD or much later, so the cache lines it would
//! take are lost to everybody and each would first be read from memory only to be overwritten.
//! Non-temporal stores do neither. Going through four pages at a time keeps several of the
//! memory's banks and of the processor's prefetchers busy. glibc does both, but only above a
//! size that it derives from the last-level cache, which virtual machines overstate: there its
//! memcpy of a page has two thirds of this speed.

use std::mem::MaybeUninit;
use std::{ptr, slice};

/// Bytes that are copied before they are summed: they lie in the first-level cache still.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;

/// Room in the cache for one chunk.
#[repr(C, align(64))]
pub(crate) struct Chunk(MaybeUninit<[u8; CHUNK_BYTES]>);

impl Chunk {
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Copies `len` bytes, reading each of them once, and returns them as they were written. They
    /// are visible to others after the next [`fence`].
    ///
    /// # Safety
    /// `source` is valid for reads and `target` for writes of `len` bytes; they do not overlap.
    pub(crate) unsafe fn copy(&mut self, source: *const u8, target: *mut u8, len: usize) -> &[u8] {
        assert!(len <= CHUNK_BYTES, "a chunk holds {CHUNK_BYTES} bytes, not {len}");
        let kept = self.0.as_mut_ptr().cast::<u8>();
        // SAFETY: the caller vouches for source and target; `kept` has room for `len` bytes and is
        // ours alone, and all of them are written before they are looked at.
        unsafe {
            imp::copy::<true>(source, target, kept, len);
            slice::from_raw_parts(kept, len)
        }
    }
}

/// Copies `len` bytes.
///
/// # Safety
/// `source` is valid for reads and `target` for writes of `len` bytes. They may overlap.
#[inline]
pub(crate) unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    let apart = (source as usize).abs_diff(target as usize);
    // SAFETY: the caller vouches for both ranges. Streams are used only where they are disjoint.
    unsafe {
        if len < imp::LEAST_BYTES || apart < len {
            ptr::copy(source, target, len);
        } else {
            imp::copy::<false>(source, target, ptr::null_mut(), len);
            fence();
        }
    }
}

/// Makes streamed bytes visible, which otherwise happens in any order: whoever is told that a copy
/// is done must find all of it.
pub(crate) fn fence() {
    imp::fence();
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_setzero_si128, _mm_sfence,
        _mm_storeu_si128, _mm_stream_si128,
    };
    use std::ptr;

    /// Below this the cache is the better place.
    pub(super) const LEAST_BYTES: usize = 4096;
    /// Two cache lines at a time.
    const STEP: usize = 128;
    const PAGE: usize = 4096;
    const AHEAD: usize = 512;

    /// Copies `len` bytes past the cache, and with `KEEP` also to `kept`.
    ///
    /// # Safety
    /// `source` is valid for reads, `target` and with `KEEP` also `kept` are valid for writes of
    /// `len` bytes; the three do not overlap.
    pub(super) unsafe fn copy<const KEEP: bool>(
        source: *const u8,
        target: *mut u8,
        kept: *mut u8,
        len: usize,
    ) {
        let mut at = target.align_offset(64).min(len);
        // SAFETY: every range copied below starts at `at` and ends at or before `len`.
        unsafe {
            cached::<KEEP>(source, target, kept, 0, at);
            at = streams::<4, KEEP>(source, target, kept, at, len);
            at = streams::<2, KEEP>(source, target, kept, at, len);
            while len - at >= STEP {
                step::<KEEP>(source, target, kept, at);
                at += STEP;
            }
            cached::<KEEP>(source, target, kept, at, len - at);
        }
    }

    /// Copies from `at` on as long as `STREAMS` whole pages are left, one step of each in turn, and
    /// returns where it stopped.
    ///
    /// # Safety
    /// As `copy`; `target + at` is a multiple of 64.
    #[inline(always)]
    unsafe fn streams<const STREAMS: usize, const KEEP: bool>(
        source: *const u8,
        target: *mut u8,
        kept: *mut u8,
        mut at: usize,
        len: usize,
    ) -> usize {
        while len - at >= STREAMS * PAGE {
            for offset in (0..PAGE).step_by(STEP) {
                for stream in 0..STREAMS {
                    // SAFETY: the step ends inside the pages that are left, and pages and steps
                    // keep the alignment.
                    unsafe { step::<KEEP>(source, target, kept, at + stream * PAGE + offset) };
                }
            }
            at += STREAMS * PAGE;
        }
        at
    }

    pub(super) fn fence() {
        // SAFETY: the instruction is part of every x86-64 processor.
        unsafe { _mm_sfence() };
    }

    /// # Safety
    /// As `copy`, for `STEP` bytes from `at` on; `target + at` is a multiple of 64.
    #[inline(always)]
    unsafe fn step<const KEEP: bool>(source: *const u8, target: *mut u8, kept: *mut u8, at: usize) {
        // SAFETY: the caller vouches for the ranges and the alignment; a prefetch never faults.
        unsafe {
            let from = source.add(at);
            let mut lanes = [_mm_setzero_si128(); STEP / 16];
            for (lane, value) in lanes.iter_mut().enumerate() {
                *value = _mm_loadu_si128(from.add(lane * 16).cast());
            }
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + 64).cast());
            for (lane, value) in lanes.iter().enumerate() {
                _mm_stream_si128(target.add(at + lane * 16).cast(), *value);
            }
            if KEEP {
                for (lane, value) in lanes.iter().enumerate() {
                    _mm_storeu_si128(kept.add(at + lane * 16).cast(), *value);
                }
            }
        }
    }

    /// # Safety
    /// As `copy`, for `len` bytes from `at` on.
    #[inline(always)]
    unsafe fn cached<const KEEP: bool>(
        source: *const u8,
        target: *mut u8,
        kept: *mut u8,
        at: usize,
        len: usize,
    ) {
        // SAFETY: the caller vouches for the ranges. What is kept is read from the source once and
        // handed on, so that both copies are the same.
        unsafe {
            if KEEP {
                ptr::copy_nonoverlapping(source.add(at), kept.add(at), len);
                ptr::copy_nonoverlapping(kept.add(at), target.add(at), len);
            } else {
                ptr::copy_nonoverlapping(source.add(at), target.add(at), len);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    use std::ptr;

    pub(super) const LEAST_BYTES: usize = usize::MAX;

    pub(super) fn fence() {}

    /// Copies `len` bytes, with `KEEP` by way of `kept`.
    ///
    /// # Safety
    /// `source` is valid for reads, `target` and with `KEEP` also `kept` are valid for writes of
    /// `len` bytes; the three do not overlap.
    pub(super) unsafe fn copy<const KEEP: bool>(
        source: *const u8,
        target: *mut u8,
        kept: *mut u8,
        len: usize,
    ) {
        // SAFETY: the caller vouches for the ranges.
        unsafe {
            if KEEP {
                ptr::copy_nonoverlapping(source, kept, len);
                ptr::copy_nonoverlapping(kept, target, len);
            } else {
                ptr::copy_nonoverlapping(source, target, len);
            }
        }
    }
}
