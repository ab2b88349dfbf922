//! Ranges of addresses that do not overlap, found by address.

use std::collections::BTreeMap;

/// Where a range of addresses lies among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Wholly inside the range that starts here.
    Inside(u64),
    /// It touches none of them.
    Outside,
    /// Partly inside one, or over several.
    Straddles,
}

/// Values by the ranges they stand for.
#[derive(Debug)]
pub(crate) struct Ranges<T> {
    by_start: BTreeMap<u64, (u64, T)>,
    bytes: u64,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self { by_start: BTreeMap::new(), bytes: 0 }
    }
}

impl<T> Ranges<T> {
    /// Where `bytes` from `start` lie. An end beyond the last address is outside or straddles.
    pub(crate) fn find(&self, start: u64, bytes: u64) -> Found {
        let end = start.saturating_add(bytes.max(1));
        match self.by_start.range(..end).next_back() {
            Some((&first, &(last, _))) if first <= start && end <= last => Found::Inside(first),
            Some((_, &(last, _))) if start < last => Found::Straddles,
            _ => Found::Outside,
        }
    }

    /// The value whose range starts there.
    pub(crate) fn at(&self, start: u64) -> Option<&T> {
        self.by_start.get(&start).map(|(_, value)| value)
    }

    /// The end of the range that starts there.
    pub(crate) fn end(&self, start: u64) -> Option<u64> {
        self.by_start.get(&start).map(|(end, _)| *end)
    }

    /// Enters a range that overlaps none.
    pub(crate) fn insert(&mut self, start: u64, bytes: u64, value: T) {
        assert_eq!(self.find(start, bytes), Found::Outside, "ranges never overlap");
        self.bytes += bytes;
        self.by_start.insert(start, (start + bytes, value));
    }

    /// Takes out the range that starts there.
    pub(crate) fn remove(&mut self, start: u64) -> Option<T> {
        let (end, value) = self.by_start.remove(&start)?;
        self.bytes -= end - start;
        Some(value)
    }

    /// All of them: start, end, value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, &T)> {
        self.by_start.iter().map(|(start, (end, value))| (*start, *end, value))
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}
