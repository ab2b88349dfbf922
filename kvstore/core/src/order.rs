use crate::index::PageIndex;
use crate::page::{Links, PageId};
use std::cmp::Ordering;

/// A page's place in the eviction order, least first: whether it was laid aside
/// ([`crate::expected`]), by rank ([`crate::heat`]), then deeper, then
/// (never needed by one chain, but the order must be total) the number of the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey(u128);

/// Ranks by heat are less than this.
const WARM: u64 = 1 << 63;

impl OrderKey {
    /// That of a page by its heat. One of rank 0 was cooled, and leaves before all others.
    pub(crate) fn new(rank: u64, depth: u32, page: PageId) -> Self {
        let warm = if rank == 0 { 0 } else { WARM };
        Self::of(rank | warm, depth, page)
    }

    /// That of a page that was laid aside: after those that were cooled and before all others.
    pub(crate) fn aside(place: u8, depth: u32, page: PageId) -> Self {
        Self::of(place.into(), depth, page)
    }

    fn of(bits: u64, depth: u32, page: PageId) -> Self {
        Self(u128::from(bits) << 64 | u128::from(!depth) << 32 | u128::from(page.number()))
    }

    /// Its rank by heat. Of what was laid aside that is lower than any that counts.
    pub(crate) fn rank(self) -> u64 {
        (self.0 >> 64) as u64 & !WARM
    }

    pub(crate) fn page(self) -> PageId {
        PageId::from_number(self.0 as u32).expect("a key is made of a page's number")
    }
}

/// The pages of one frame size that may be evicted, coldest first, and how far from the cold
/// end they have been sent to SSD ahead of need.
///
/// It is a treap whose nodes are the pages themselves: a search tree by [`OrderKey`] and a heap by
/// a number drawn for each page, so that it is about as deep as a balanced tree whatever order
/// pages come in. Links to all neighbours let a page leave without being searched for.
#[derive(Debug, Default)]
pub(crate) struct Order {
    root: Option<PageId>,
    first: Option<OrderKey>,
    len: usize,
    /// Everything up to here has been looked at by [`Order::advance`].
    ahead: Option<OrderKey>,
    /// Keys up to `ahead`.
    ahead_len: usize,
    /// A key came in below `ahead` after the cursor had passed.
    stale: bool,
}

fn key_of(pages: &PageIndex, id: PageId) -> OrderKey {
    pages.order_key(id)
}

impl Order {
    /// Puts a page in its place; from here on its key must not change.
    pub(crate) fn insert(&mut self, pages: &mut PageIndex, id: PageId) {
        let key = key_of(pages, id);
        let (mut up, mut next) = (None, self.root);
        while let Some(at) = next {
            up = next;
            next = match key.cmp(&key_of(pages, at)) {
                Ordering::Less => pages.links(at).left,
                Ordering::Greater => pages.links(at).right,
                Ordering::Equal => unreachable!("a page stands in the eviction order once"),
            };
        }
        pages.set_ordered(id, true);
        pages.set_links(id, Links { up, ..Links::default() });
        match up {
            Some(up) => {
                let mut links = pages.links(up);
                let side = if key < key_of(pages, up) { &mut links.left } else { &mut links.right };
                *side = Some(id);
                pages.set_links(up, links);
            }
            None => self.root = Some(id),
        }
        while let Some(up) = pages.links(id).up
            && pages.priority(id) > pages.priority(up)
        {
            self.rotate_up(pages, id);
        }
        self.len += 1;
        self.first = Some(self.first.map_or(key, |first| first.min(key)));
        if Some(key) <= self.ahead {
            self.ahead_len += 1;
            self.stale = true;
        }
    }

    /// Puts pages in their places when there are none yet, as [`Order::insert`] would one by one:
    /// sorted, each needs to be looked at together with its neighbours only.
    pub(crate) fn fill(&mut self, pages: &mut PageIndex, mut keys: Vec<OrderKey>) {
        assert!(self.is_empty(), "an order is filled before anything stands in it");
        keys.sort_unstable();
        // From the root along its right side: what comes next goes below some page of these, and
        // takes what was right of that to its left.
        let mut side: Vec<PageId> = Vec::new();
        for key in &keys {
            let id = key.page();
            pages.set_ordered(id, true);
            let lower = |up: &mut PageId| pages.priority(*up) < pages.priority(id);
            let mut left = None;
            while let Some(below) = side.pop_if(lower) {
                left = Some(below);
            }
            let up = side.last().copied();
            pages.set_links(id, Links { up, left, right: None });
            if let Some(left) = left {
                let links = Links { up: Some(id), ..pages.links(left) };
                pages.set_links(left, links);
            }
            if let Some(up) = up {
                let links = Links { right: Some(id), ..pages.links(up) };
                pages.set_links(up, links);
            }
            side.push(id);
        }
        self.root = side.first().copied();
        self.first = keys.first().copied();
        self.len = keys.len();
        self.stale = true;
    }

    /// Takes out a page that stands in it.
    pub(crate) fn remove(&mut self, pages: &mut PageIndex, id: PageId) {
        let key = key_of(pages, id);
        if self.first == Some(key) {
            self.first = self.after(pages, Some(key));
        }
        loop {
            let Links { left, right, .. } = pages.links(id);
            let child = match (left, right) {
                (Some(left), Some(right)) if pages.priority(left) > pages.priority(right) => left,
                (_, Some(right)) => right,
                (Some(left), None) => left,
                (None, None) => break,
            };
            self.rotate_up(pages, child);
        }
        let up = pages.links(id).up;
        self.replace_below(pages, up, id, None);
        pages.set_ordered(id, false);
        self.len -= 1;
        if Some(key) <= self.ahead {
            self.ahead_len -= 1;
        }
    }

    /// Lets a page and the one above it change places.
    fn rotate_up(&mut self, pages: &mut PageIndex, id: PageId) {
        let mut links = pages.links(id);
        let up = links.up.expect("the root has nothing above it");
        let mut above = pages.links(up);
        let between = if above.left == Some(id) {
            let between = links.right.replace(up);
            above.left = between;
            between
        } else {
            let between = links.left.replace(up);
            above.right = between;
            between
        };
        links.up = above.up.replace(id);
        self.replace_below(pages, links.up, up, Some(id));
        pages.set_links(id, links);
        pages.set_links(up, above);
        if let Some(between) = between {
            let links = Links { up: Some(up), ..pages.links(between) };
            pages.set_links(between, links);
        }
    }

    /// Has `up` name another page where it names `old`.
    fn replace_below(
        &mut self,
        pages: &mut PageIndex,
        up: Option<PageId>,
        old: PageId,
        new: Option<PageId>,
    ) {
        let Some(up) = up else {
            self.root = new;
            return;
        };
        let mut links = pages.links(up);
        let side = if links.left == Some(old) { &mut links.left } else { &mut links.right };
        *side = new;
        pages.set_links(up, links);
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
        self.first
    }

    /// The next key after one that may be gone.
    pub(crate) fn after(&self, pages: &PageIndex, key: Option<OrderKey>) -> Option<OrderKey> {
        let Some(key) = key else {
            return self.first;
        };
        let (mut best, mut next) = (None, self.root);
        while let Some(at) = next {
            let (here, links) = (key_of(pages, at), pages.links(at));
            if here > key {
                best = Some(here);
                next = links.left;
            } else {
                next = links.right;
            }
        }
        best
    }

    /// Whether at least `count` keys are colder than this one.
    pub(crate) fn has_below(&self, pages: &PageIndex, key: OrderKey, count: usize) -> bool {
        let keys = std::iter::successors(self.first, |key| self.after(pages, Some(*key)));
        keys.take_while(|other| *other < key).take(count).count() == count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Moves the cursor to the next key while fewer than `target` lie behind it.
    pub(crate) fn advance(&mut self, pages: &PageIndex, target: usize) -> Option<OrderKey> {
        if self.stale {
            self.ahead = None;
            self.ahead_len = 0;
            self.stale = false;
        }
        if self.ahead_len >= target {
            return None;
        }
        let next = self.after(pages, self.ahead)?;
        self.ahead = Some(next);
        self.ahead_len += 1;
        Some(next)
    }

    /// Checks the tree, that it holds pages that say so only, and the cursor's count; returns the
    /// number of keys.
    pub(crate) fn audit(&self, pages: &PageIndex) -> usize {
        let mut keys = Vec::new();
        // From the top: what is left of a page comes before it, what is right of it after.
        let mut open = vec![(self.root, None, false)];
        while let Some((at, up, passed)) = open.pop() {
            let Some(id) = at else { continue };
            let links = pages.links(id);
            if passed {
                keys.push(key_of(pages, id));
                continue;
            }
            assert_eq!(links.up, up, "neighbours in the order know each other");
            let below = up.is_none_or(|up| pages.priority(up) >= pages.priority(id));
            assert!(below, "the order is a heap of what was drawn");
            open.push((links.right, at, false));
            open.push((at, up, true));
            open.push((links.left, at, false));
        }
        assert!(keys.is_sorted_by(|a, b| a < b), "the order is a search tree");
        assert_eq!(keys.first().copied(), self.first, "the coldest page is known");
        assert_eq!(keys.len(), self.len, "the order counts its pages");
        let behind = keys.iter().filter(|key| Some(**key) <= self.ahead).count();
        assert_eq!(behind, self.ahead_len, "the demotion cursor counts the keys behind it");
        self.len
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use crate::Policy;
    use crate::heat::Heat;
    use crate::page::Page;
    use std::collections::BTreeSet;
    use undercroft_wire::{PageKey, SpaceId};

    fn with_page(pages: &mut PageIndex, stamp: u64) -> PageId {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(pages.len() as u64).to_le_bytes());
        let mut page = Page::new(SpaceId(0), PageKey(key), 0);
        page.heat = Heat::new(stamp);
        pages.insert(page).unwrap()
    }

    #[test]
    fn deeper_pages_of_one_rank_are_colder() {
        let key = |rank, depth, id| OrderKey::new(rank, depth, PageId::at(id));
        assert!(key(1, 0, 0) < key(2, 9, 0));
        assert!(key(2, 9, 0) < key(2, 8, 0));
        assert!(key(2, 9, 0) < key(2, 9, 1));
        let aside = |place, depth| OrderKey::aside(place, depth, PageId::at(0));
        assert!(
            key(0, 0, 0) < aside(1, 9) && aside(1, 0) < aside(2, 9) && aside(31, 0) < key(1, 9, 0)
        );
        assert_eq!((key(7, 9, 0).rank(), aside(31, 0).rank()), (7, 31));
        assert_eq!(key(2, 9, 77).page(), PageId::at(77));
    }

    #[test]
    fn pages_put_in_at_once_stand_as_if_one_by_one() {
        for count in [0, 1, 2, 3, 100] {
            let (mut one, mut all) = (Order::default(), Order::default());
            let mut pages = PageIndex::new(200, 7, Policy::Lru);
            let ids: Vec<PageId> =
                (0..count).map(|at| with_page(&mut pages, at * 37 % 101)).collect();
            let keys = ids.iter().map(|id| key_of(&pages, *id)).collect();
            all.fill(&mut pages, keys);
            assert_eq!(all.audit(&pages), ids.len());
            let links: Vec<Links> = ids.iter().map(|id| pages.links(*id)).collect();
            for id in &ids {
                all.remove(&mut pages, *id);
            }
            for id in &ids {
                one.insert(&mut pages, *id);
            }
            assert_eq!(ids.iter().map(|id| pages.links(*id)).collect::<Vec<_>>(), links);
        }
    }

    #[test]
    fn the_cursor_passes_every_key_once_and_returns_for_late_ones() {
        let (mut order, mut pages) = (Order::default(), PageIndex::new(100, 7, Policy::Lru));
        let ids = [10, 20, 30, 40].map(|stamp| with_page(&mut pages, stamp));
        let keys = ids.map(|id| key_of(&pages, id));
        for id in ids {
            order.insert(&mut pages, id);
        }
        assert_eq!(order.advance(&pages, 2), Some(keys[0]));
        assert_eq!(order.advance(&pages, 2), Some(keys[1]));
        assert_eq!(order.advance(&pages, 2), None);
        order.remove(&mut pages, ids[0]);
        assert_eq!(order.advance(&pages, 2), Some(keys[2]));
        let late = with_page(&mut pages, 15);
        order.insert(&mut pages, late);
        order.audit(&pages);
        assert_eq!(order.advance(&pages, 2), Some(key_of(&pages, late)));
        order.audit(&pages);
    }

    #[test]
    fn it_does_as_a_sorted_set_does() {
        let (mut order, mut pages) = (Order::default(), PageIndex::new(1000, 7, Policy::Lru));
        let mut model = BTreeSet::new();
        let stamps = (0_u64..700).map(|at| at * at % 313);
        let ids: Vec<PageId> = stamps.map(|stamp| with_page(&mut pages, stamp)).collect();
        for turn in 0..5000_usize {
            let id = ids[turn * turn * 31 % ids.len()];
            let key = key_of(&pages, id);
            if model.remove(&key) {
                order.remove(&mut pages, id);
            } else {
                order.insert(&mut pages, id);
                model.insert(key);
            }
            assert_eq!(order.coldest(), model.first().copied());
            assert_eq!(
                order.after(&pages, Some(key)),
                model.range(key..).find(|k| **k > key).copied()
            );
            let below = model.range(..key).count();
            assert!(
                order.has_below(&pages, key, below) && !order.has_below(&pages, key, below + 1)
            );
        }
        assert_eq!(order.audit(&pages), model.len());
    }

    #[test]
    fn pages_that_come_in_order_do_not_make_it_deep() {
        let (mut order, mut pages) = (Order::default(), PageIndex::new(10_000, 7, Policy::Lru));
        for stamp in 0..10_000 {
            let id = with_page(&mut pages, stamp);
            order.insert(&mut pages, id);
        }
        let above = |id: PageId| pages.links(id).up;
        let depth = |(id, _)| std::iter::successors(Some(id), |id| above(*id)).count();
        let deepest = pages.iter().map(depth).max().unwrap();
        assert!(deepest < 60, "{deepest} of 10,000, where 2 ln 10,000 are 18");
    }
}
