use std::collections::{BTreeMap, HashMap};

/// The reference for `--policy lru`: an exact least-recently-used cache of whole pages, written
/// to be obviously right and sharing no code with the daemon.
///
/// Counting rules: requests come one at a time. A request's hits are its *leading* resident
/// pages. Then all its pages are touched or inserted, the last one first, so that the first page
/// of the prefix ends as the most recent; only then is the cache cut back to its capacity, page
/// by page, the least recent first.
#[derive(Debug, Default)]
pub struct ExactLru {
    capacity: usize,
    clock: u64,
    touched: HashMap<u32, u64>,
    order: BTreeMap<u64, u32>,
}

impl ExactLru {
    /// An empty cache of `capacity` pages.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Plays one request and returns its prefix hits, pages.
    pub fn request(&mut self, pages: &[u32]) -> usize {
        let hits = pages.iter().take_while(|page| self.touched.contains_key(page)).count();
        for page in pages.iter().rev() {
            self.clock += 1;
            if let Some(before) = self.touched.insert(*page, self.clock) {
                self.order.remove(&before);
            }
            self.order.insert(self.clock, *page);
        }
        while self.touched.len() > self.capacity {
            let (_, page) = self.order.pop_first().expect("both maps hold the same pages");
            self.touched.remove(&page);
        }
        hits
    }

    /// Resident pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.touched.len()
    }

    /// Whether nothing is resident.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_prefix_outlives_its_tail() {
        let mut lru = ExactLru::new(3);
        assert_eq!(lru.request(&[1, 2, 3, 4]), 0);
        assert_eq!(lru.len(), 3);
        assert_eq!(lru.request(&[1, 2, 3, 4]), 3, "4 was the least recent");
        assert_eq!(lru.request(&[9]), 0);
        assert_eq!(lru.request(&[1, 2, 3]), 2, "9 pushed 3 out");
    }

    #[test]
    fn only_leading_pages_are_hits() {
        let mut lru = ExactLru::new(10);
        lru.request(&[2, 3]);
        assert_eq!(lru.request(&[1, 2, 3]), 0);
        assert_eq!(lru.request(&[1, 2, 3]), 3);
    }

    #[test]
    fn no_capacity_means_no_hits() {
        let mut lru = ExactLru::new(0);
        lru.request(&[1]);
        assert_eq!(lru.request(&[1]), 0);
        assert!(lru.is_empty());
    }
}
