//! The state file as words, and the order of stores that makes a row whole or none.

use crate::mapping::Mapping;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes of one word.
pub(super) const WORD_BYTES: usize = size_of::<u64>();
/// The state word of a row that holds nothing.
pub(super) const EMPTY: u64 = 0;

/// The file, mapped. All of it is words that are loaded and stored whole, so that whoever reads
/// it, at whatever moment the writer stopped, finds values that were stored.
///
/// The daemon's control thread is the only writer. The kernel keeps what a killed process stored,
/// in the order of its program: a row is whole if its state word was cleared before and set after
/// everything else, and the compiler keeps that order.
#[derive(Debug)]
pub(super) struct Words {
    mapping: Mapping,
    fd: OwnedFd,
}

impl Words {
    /// `mapping` is one of `fd`, writable and from its start.
    pub(super) fn new(mapping: Mapping, fd: OwnedFd) -> Self {
        Self { mapping, fd }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The words of a row of `N` words.
    ///
    /// # Panics
    /// A row that is not in the file: the layout keeps them in it.
    fn row<const N: usize>(&self, at: usize) -> &[AtomicU64; N] {
        self.mapping.words()[at..at + N].try_into().expect("the slice has N words")
    }

    pub(super) fn load(&self, at: usize) -> u64 {
        self.mapping.words()[at].load(Ordering::Acquire)
    }

    /// Stores one word, after everything that was stored before it.
    pub(super) fn store(&self, at: usize, value: u64) {
        self.mapping.words()[at].store(value, Ordering::Release);
    }

    /// Writes a whole row of `N` words. As long as it is being written its state is `meanwhile`;
    /// then it is the first word of `row`.
    pub(super) fn write_row<const N: usize>(&self, at: usize, meanwhile: u64, row: &[u64; N]) {
        let words = self.row::<N>(at);
        words[0].store(meanwhile, Ordering::Relaxed);
        // What follows is not stored before the state was.
        fence(Ordering::Release);
        for (word, value) in words.iter().zip(row).skip(1) {
            word.store(*value, Ordering::Relaxed);
        }
        words[0].store(row[0], Ordering::Release);
    }

    /// Reads a row of `N` words.
    pub(super) fn read_row<const N: usize>(&self, at: usize) -> [u64; N] {
        let words = self.row::<N>(at);
        let state = words[0].load(Ordering::Acquire);
        let mut row = [0; N];
        for (value, word) in row.iter_mut().zip(words).skip(1) {
            *value = word.load(Ordering::Relaxed);
        }
        row[0] = state;
        row
    }

    /// The first run of pages inside `range`, words, that are in memory, cut to it. All else there
    /// reads as zero, but reading it would put pages there.
    pub(super) fn present(&self, range: Range<usize>) -> Option<Range<usize>> {
        let seek = |from: SeekFrom| rustix::fs::seek(&self.fd, from);
        let byte = |at: usize| (at * WORD_BYTES) as u64;
        let start = match seek(SeekFrom::Data(byte(range.start))) {
            Ok(start) => (start as usize / WORD_BYTES).max(range.start),
            Err(Errno::NXIO) => return None,
            Err(_) => range.start,
        };
        if start >= range.end {
            return None;
        }
        let end = seek(SeekFrom::Hole(byte(start)));
        let end = end.map_or(range.end, |end| (end as usize).div_ceil(WORD_BYTES).min(range.end));
        Some(start..end.max(start + 1))
    }

    /// Fills the page tables for `range`, words, of which all pages are in memory: many times
    /// faster than a fault for each.
    pub(super) fn populate(&self, range: &Range<usize>) {
        let start = range.start * WORD_BYTES / 4096 * 4096;
        let end = (range.end * WORD_BYTES).next_multiple_of(4096).min(self.mapping.len());
        // Refused before Linux 5.14: then each page faults when it is touched.
        let _slower = self.mapping.populate(&(start..end), true);
    }

    /// Gives the memory of the whole pages inside `range`, words, back to the system. They read
    /// as zero afterwards.
    pub(super) fn give_back(&self, range: Range<usize>) {
        let start = (range.start * WORD_BYTES).next_multiple_of(4096) as u64;
        let end = (range.end * WORD_BYTES / 4096 * 4096) as u64;
        if start < end {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // What cannot be given back is kept: it costs memory and nothing else.
            let _kept = rustix::fs::fallocate(&self.fd, flags, start, end - start);
        }
    }
}
