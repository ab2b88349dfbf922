use super::{Board, BoardView, load};
use crate::mapping::Mapping;
use rustix::fs::{SeekFrom, seek};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use undercroft_wire::PageKey;

/// Counters of the table, a byte each. With two places for a key, one of 500 keys that are not
/// there seems to be among 100,000 that are, and one of 7 among a million: (1 - e^(-2n/m))^2.
const COUNTERS: usize = 1 << 22;
/// A counter that got here counts no more and stays: what it says is "maybe", for good.
const FULL: u8 = u8::MAX;
/// The word that says whether the table is whole: it is while the number is odd, and the number
/// grows whenever that changes.
const WHOLE: usize = 10;

/// Bytes that the table takes.
pub(super) const BYTES: u64 = COUNTERS as u64;

/// Where a board has its table of first pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Firsts {
    start: usize,
}

impl Firsts {
    /// One that starts at this byte.
    pub(super) fn at(start: usize) -> Self {
        Self { start }
    }

    fn range(self) -> Range<usize> {
        self.start..self.start + COUNTERS
    }

    /// Maps all of it. Keys name places at random: looking at one would be a page fault nearly
    /// every time, on an engine's scheduler.
    pub(super) fn prepare(self, mapping: &Mapping) {
        let _slower_where_refused = mapping.populate(&self.range(), false);
    }

    fn counters(self, mapping: &Mapping) -> &[AtomicU8] {
        &mapping.bytes()[self.range()]
    }

    fn of<'a>(self, mapping: &'a Mapping, key: &PageKey) -> [&'a AtomicU8; 2] {
        let counters = self.counters(mapping);
        places(key).map(|place| &counters[place])
    }

    /// Every counter that may be another number is 0 again.
    fn clear(self, mapping: &Mapping, fd: BorrowedFd<'_>) {
        let counters = self.counters(mapping);
        let mut from = self.start;
        // Looking at what was never touched would give it memory.
        while let Some(touched) = next_touched(fd, from..self.range().end) {
            for counter in &counters[touched.start - self.start..touched.end - self.start] {
                counter.store(0, Ordering::Relaxed);
            }
            from = touched.end;
        }
    }
}

/// A key is a hash: each half of its first eight bytes names a counter by itself.
fn places(key: &PageKey) -> [usize; 2] {
    let bits = key.bucket();
    [bits as u32, (bits >> 32) as u32].map(|half| half as usize % COUNTERS)
}

/// The first bytes of `range` that the file has memory for; all of it where the system does not
/// say.
fn next_touched(fd: BorrowedFd<'_>, range: Range<usize>) -> Option<Range<usize>> {
    if range.is_empty() {
        return None;
    }
    let find = |from| seek(fd, from).map(|at| (at as usize).clamp(range.start, range.end));
    match find(SeekFrom::Data(range.start as u64)) {
        Ok(start) if start == range.end => None,
        Ok(start) => {
            let end = find(SeekFrom::Hole(start as u64)).unwrap_or(range.end);
            Some(start..if end > start { end } else { range.end })
        }
        // No more up to the file's end.
        Err(rustix::io::Errno::NXIO) => None,
        Err(_) => Some(range),
    }
}

impl Board {
    /// From now on there may be a chain that begins with this page. To be said before anybody is
    /// told of the page.
    pub fn first_came(&self, key: &PageKey) {
        let Some(firsts) = self.form.firsts else { return };
        for counter in firsts.of(&self.mapping, key) {
            let more = |count: u8| count.checked_add(1);
            // Full, it stays.
            let _full = counter.fetch_update(Ordering::Release, Ordering::Relaxed, more);
        }
    }

    /// What was said of this page with [`Board::first_came`], once, is over.
    pub fn first_went(&self, key: &PageKey) {
        let Some(firsts) = self.form.firsts else { return };
        for counter in firsts.of(&self.mapping, key) {
            let less = |count: u8| if count == FULL { None } else { count.checked_sub(1) };
            let _full = counter.fetch_update(Ordering::Release, Ordering::Relaxed, less);
        }
    }

    /// Nothing is known of first pages: until [`Board::first_pages_are_known`] there may be any.
    pub fn forget_firsts(&self) {
        let Some(firsts) = self.form.firsts else { return };
        self.set_whole(false);
        // Whoever sees a counter that was cleared sees that the table is not whole.
        fence(Ordering::Release);
        firsts.clear(&self.mapping, self.fd());
    }

    /// All first pages that there may be were told of: any other begins nothing.
    pub fn first_pages_are_known(&self) {
        if self.form.firsts.is_some() {
            self.set_whole(true);
        }
    }

    fn set_whole(&self, whole: bool) {
        let word = &self.mapping.words()[WHOLE];
        let found = word.load(Ordering::Relaxed);
        if (found % 2 == 1) != whole {
            word.store(found.wrapping_add(1), Ordering::Release);
        }
    }
}

impl BoardView {
    /// Whether there is a table of first pages on it at all.
    #[must_use]
    pub fn has_firsts(&self) -> bool {
        self.form.firsts.is_some()
    }

    /// Whether a chain that begins with this page may be found. `false`: no lookup would have found
    /// one when this was called.
    #[must_use]
    pub fn may_start(&self, key: &PageKey) -> bool {
        let Some(firsts) = self.form.firsts else { return true };
        let word = &self.mapping.words()[WHOLE];
        let before = load(word);
        if before.is_multiple_of(2) {
            return true;
        }
        // Memory that this process cannot write may be loaded only so.
        let counted = |counter: &AtomicU8| counter.load(Ordering::Relaxed) > 0;
        if firsts.of(&self.mapping, key).into_iter().all(counted) {
            return true;
        }
        fence(Ordering::Acquire);
        // Another number: another daemon has begun to count anew meanwhile.
        load(word) != before
    }
}
