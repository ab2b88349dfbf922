use crate::page::PageId;
use std::collections::BTreeSet;
use std::ops::Bound;

/// A page's place in the eviction order, least first: older stamp, then deeper, then (never
/// needed by one chain, but the order must be total) the number of the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey(u128);

impl OrderKey {
    pub(crate) fn new(stamp: u64, depth: u32, page: PageId) -> Self {
        Self(u128::from(stamp) << 64 | u128::from(!depth) << 32 | u128::from(page.0))
    }

    pub(crate) fn page(self) -> PageId {
        PageId(self.0 as u32)
    }
}

/// The pages of one frame size that may be evicted, coldest first, and how far from the cold
/// end they have been sent to SSD ahead of need.
#[derive(Debug, Default)]
pub(crate) struct Order {
    keys: BTreeSet<OrderKey>,
    /// Everything up to here has been looked at by [`Order::advance`].
    ahead: Option<OrderKey>,
    /// Keys up to `ahead`.
    ahead_len: usize,
    /// A key came in below `ahead` after the cursor had passed.
    stale: bool,
}

impl Order {
    pub(crate) fn insert(&mut self, key: OrderKey) {
        let new = self.keys.insert(key);
        assert!(new, "a page stands in the eviction order once");
        if Some(key) <= self.ahead {
            self.ahead_len += 1;
            self.stale = true;
        }
    }

    pub(crate) fn remove(&mut self, key: OrderKey) {
        let known = self.keys.remove(&key);
        assert!(known, "an ordered page is found under its key");
        if Some(key) <= self.ahead {
            self.ahead_len -= 1;
        }
    }

    /// Something about the key has changed: if the cursor has passed it, it must look again.
    pub(crate) fn revisit(&mut self, key: OrderKey) {
        self.stale |= Some(key) <= self.ahead;
    }

    /// Something about all keys may have changed.
    pub(crate) fn revisit_all(&mut self) {
        self.stale = true;
    }

    pub(crate) fn coldest(&self) -> Option<OrderKey> {
        self.keys.first().copied()
    }

    /// The next key after one that may be gone.
    pub(crate) fn after(&self, key: Option<OrderKey>) -> Option<OrderKey> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range((from, Bound::Unbounded)).next().copied()
    }

    /// Whether at least `count` keys are colder than this one.
    pub(crate) fn has_below(&self, key: OrderKey, count: usize) -> bool {
        self.keys.range(..key).nth(count - 1).is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Moves the cursor to the next key while fewer than `target` lie behind it.
    pub(crate) fn advance(&mut self, target: usize) -> Option<OrderKey> {
        if self.stale {
            self.ahead = None;
            self.ahead_len = 0;
            self.stale = false;
        }
        if self.ahead_len >= target {
            return None;
        }
        let next = self.after(self.ahead)?;
        self.ahead = Some(next);
        self.ahead_len += 1;
        Some(next)
    }

    /// Checks the cursor's count; returns the number of keys.
    pub(crate) fn audit(&self) -> usize {
        let behind = self.keys.iter().filter(|key| Some(**key) <= self.ahead).count();
        assert_eq!(behind, self.ahead_len, "the demotion cursor counts the keys behind it");
        self.keys.len()
    }

    pub(crate) fn contains(&self, key: OrderKey) -> bool {
        self.keys.contains(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeper_pages_of_one_stamp_are_colder() {
        let key = |stamp, depth, id| OrderKey::new(stamp, depth, PageId(id));
        assert!(key(1, 0, 0) < key(2, 9, 0));
        assert!(key(2, 9, 0) < key(2, 8, 0));
        assert!(key(2, 9, 0) < key(2, 9, 1));
        assert_eq!(key(2, 9, 77).page(), PageId(77));
    }

    #[test]
    fn the_cursor_passes_every_key_once_and_returns_for_late_ones() {
        let mut order = Order::default();
        let key = |stamp| OrderKey::new(stamp, 0, PageId(stamp as u32));
        for stamp in [10, 20, 30, 40] {
            order.insert(key(stamp));
        }
        assert_eq!(order.advance(2), Some(key(10)));
        assert_eq!(order.advance(2), Some(key(20)));
        assert_eq!(order.advance(2), None);
        order.remove(key(10));
        assert_eq!(order.advance(2), Some(key(30)));
        order.insert(key(15));
        order.audit();
        assert_eq!(order.advance(2), Some(key(15)));
        order.audit();
    }
}
