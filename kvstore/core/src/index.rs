use crate::Policy;
use crate::heat::Heat;
use crate::in_dram::InDrams;
use crate::names::Name;
use crate::order::OrderKey;
use crate::page::{Page, PageId};
use std::{iter, ops};
use undercroft_wire::{PageKey, SpaceId};

/// What an entry may take, bytes. A bucket and a record's place in its segment take 10 more, tables of
/// what left 2, what is known of a page in DRAM 28, and what the page log knows of a record 33: all of it is what
/// `undercroft status` shows as the heap of each page.
const _: () = assert!(size_of::<Option<Page>>() <= 88, "there is an entry for each page");

/// All known pages by (space, key), in a table of bounded size.
///
/// The table is a linear hash table (Litwin, 1980): with each page that is one more than there
/// were ever before one bucket is split in two. So it takes memory for the pages there are and not
/// for those there may be, and never stalls the control thread to be made larger.
#[derive(Debug)]
pub(crate) struct PageIndex {
    /// The first page of each bucket; each names the next one.
    buckets: Vec<Option<PageId>>,
    entries: Vec<Option<Page>>,
    free: Vec<PageId>,
    pub(crate) in_dram: InDrams,
    limit: usize,
    seed: u64,
    policy: Policy,
}

/// Where the next page of a chain may stand.
#[derive(Debug)]
pub(crate) struct Guide {
    next: usize,
    /// How often in a row it did not.
    failures: u32,
}

impl Guide {
    const PATIENCE: u32 = 4;
}

impl Default for Guide {
    fn default() -> Self {
        Self { next: usize::MAX, failures: 0 }
    }
}

impl PageIndex {
    /// Room for `limit` pages is reserved at once: moving them would stall the control thread.
    /// What is not used stays untouched memory.
    pub(crate) fn new(limit: u32, seed: u64, policy: Policy) -> Self {
        let limit = limit as usize;
        Self {
            buckets: Vec::with_capacity(limit),
            entries: Vec::with_capacity(limit),
            free: Vec::with_capacity(limit),
            in_dram: InDrams::new(limit),
            limit,
            seed,
            policy,
        }
    }

    /// Keys are hashes already, but their owner chose them: the seed keeps the owner from
    /// choosing which of them meet in one bucket.
    fn hash(seed: u64, space: SpaceId, key: &PageKey) -> u64 {
        let a = key.bucket() ^ seed;
        let b =
            seed.rotate_left(29) ^ (u64::from(space.0) << 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let product = u128::from(a) * u128::from(b | 1);
        product as u64 ^ (product >> 64) as u64
    }

    /// What the page is called in tables of names.
    pub(crate) fn name(&self, space: SpaceId, key: &PageKey) -> Name {
        Name::new(Self::hash(self.seed, space, key))
    }

    pub(crate) fn find(&self, space: SpaceId, key: &PageKey) -> Option<PageId> {
        let mut next = *self.buckets.get(self.bucket_of(space, key))?;
        while let Some(id) = next {
            let page = &self[id];
            if page.key == *key && page.space == space {
                return Some(id);
            }
            next = page.chained;
        }
        None
    }

    /// The bucket of a key while there are that many: those above the highest power of two are
    /// split off from those below.
    fn bucket_of(&self, space: SpaceId, key: &PageKey) -> usize {
        let hash = Self::hash(self.seed, space, key) as usize;
        let (buckets, mask) = (self.buckets.len(), self.buckets.len().next_power_of_two() - 1);
        if hash & mask < buckets { hash & mask } else { hash & (mask >> 1) }
    }

    /// Adds a bucket and moves into it those pages of another that belong there now.
    fn split(&mut self) {
        let new = self.buckets.len();
        self.buckets.push(None);
        if new == 0 {
            return;
        }
        let old = new & ((new + 1).next_power_of_two() / 2 - 1);
        let mut next = self.buckets[old].take();
        while let Some(id) = next {
            let (space, key) = (self[id].space, self[id].key);
            next = self[id].chained;
            let bucket = self.bucket_of(space, &key);
            assert!(bucket == old || bucket == new, "a page stays or moves to the new bucket");
            self[id].chained = self.buckets[bucket].replace(id);
        }
    }

    /// Makes buckets for as many pages more, if there are none to be split for that.
    pub(crate) fn expect(&mut self, pages: usize) {
        if self.len() == 0 {
            let buckets = (self.buckets.len() + pages).min(self.limit);
            self.buckets.resize(buckets, None);
        }
    }

    /// A number that stays the page's when it is forgotten and comes again, and over restarts:
    /// what hangs on it is the same wherever the same is asked.
    pub(crate) fn hash_of(space: SpaceId, key: &PageKey) -> u64 {
        Self::hash(0x2545_f491_4f6c_dd1d, space, key)
    }

    /// A number that nobody outside can tell from the page's.
    pub(crate) fn priority(&self, id: PageId) -> u64 {
        let mixed = (u64::from(id.number()) ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93 ^ self.seed << 1);
        mixed ^ mixed >> 32
    }

    /// Where a page stands in the eviction order.
    pub(crate) fn order_key(&self, id: PageId) -> OrderKey {
        let page = &self[id];
        match page.aside() {
            aside if aside > 0 && !{ page.heat }.is_cooled() => {
                OrderKey::aside(aside, page.depth, id)
            }
            _ => page.heat.order_key(self.policy, page.depth, id),
        }
    }

    /// Where a page would stand that is not known: below all that are known and no colder.
    pub(crate) fn order_key_of(&self, heat: Heat, depth: u32) -> OrderKey {
        heat.order_key(self.policy, depth, PageId::LAST)
    }

    /// As [`PageIndex::find`], for the key that follows `guide`'s last one in a chain. Pages stored
    /// together have neighbouring numbers, and looking there first reads memory in a row.
    pub(crate) fn find_next(
        &self,
        guide: &mut Guide,
        space: SpaceId,
        key: &PageKey,
    ) -> Option<PageId> {
        if guide.failures < Guide::PATIENCE {
            if let Some(Some(page)) = self.entries.get(guide.next)
                && page.key == *key
                && page.space == space
            {
                let found = PageId::at(guide.next);
                guide.next += 1;
                guide.failures = 0;
                return Some(found);
            }
            guide.failures += 1;
        }
        let found = self.find(space, key)?;
        guide.next = found.place() + 1;
        Some(found)
    }

    pub(crate) fn contains(&self, id: PageId) -> bool {
        self.get(id).is_some()
    }

    /// For those who do not keep the page known: the number may be another page's by now.
    pub(crate) fn get(&self, id: PageId) -> Option<&Page> {
        self.entries[id.place()].as_ref()
    }

    /// Places that pages have, or had.
    pub(crate) fn places(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Takes in a page that is not known yet; `None` when the table is full.
    pub(crate) fn insert(&mut self, mut page: Page) -> Option<PageId> {
        if self.len() >= self.limit {
            return None;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            PageId::at(self.entries.len() - 1)
        });
        while self.buckets.len() < self.len() {
            self.split();
        }
        let bucket = self.bucket_of(page.space, &page.key);
        let chained = self.buckets[bucket].replace(id);
        page.chained = chained;
        self.entries[id.place()] = Some(page);
        Some(id)
    }

    pub(crate) fn remove(&mut self, id: PageId) -> Page {
        let page = self.entries[id.place()].take().expect("a page is removed once");
        assert_eq!(page.in_dram, 0, "a page without frame and pins has no entry for them");
        let bucket = self.bucket_of(page.space, &page.key);
        let (mut before, mut next) = (None, self.buckets[bucket]);
        while next != Some(id) {
            before = next;
            next = self[next.expect("a live page is in its bucket")].chained;
        }
        match before {
            Some(before) => self[before].chained = page.chained,
            None => self.buckets[bucket] = page.chained,
        }
        self.free.push(id);
        page
    }

    /// Checks that the table names every page once; returns how many.
    pub(crate) fn audit(&self) -> usize {
        assert!(self.buckets.len() >= self.len(), "there is a bucket for each page");
        let chain = |first: Option<PageId>| iter::successors(first, |id| self[*id].chained);
        let chains = self.buckets.iter().enumerate();
        let named = chains.flat_map(|(bucket, first)| chain(*first).map(move |id| (bucket, id)));
        let mut count = 0;
        for (bucket, id) in named {
            let page = &self[id];
            assert_eq!(bucket, self.bucket_of(page.space, &page.key), "a page is in its bucket");
            count += 1;
        }
        count
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageId, &Page)> {
        let numbered = self.entries.iter().enumerate();
        numbered.filter_map(|(at, page)| page.as_ref().map(|page| (PageId::at(at), page)))
    }
}

impl ops::Index<PageId> for PageIndex {
    type Output = Page;

    fn index(&self, id: PageId) -> &Page {
        self.entries[id.place()].as_ref().expect("whoever names a page keeps it known")
    }
}

impl ops::IndexMut<PageId> for PageIndex {
    fn index_mut(&mut self, id: PageId) -> &mut Page {
        self.entries[id.place()].as_mut().expect("whoever names a page keeps it known")
    }
}
