use crate::page::{Page, PageId};
use hashbrown::HashTable;
use std::ops;
use undercroft_wire::{PageKey, SpaceId};

/// All known pages by (space, key), in a table of bounded size.
#[derive(Debug)]
pub(crate) struct PageIndex {
    table: HashTable<PageId>,
    entries: Vec<Option<Page>>,
    free: Vec<PageId>,
    limit: usize,
    seed: u64,
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
    /// Room for `limit` pages is reserved at once: growing would stall the control thread. What
    /// is not used stays untouched memory.
    pub(crate) fn new(limit: u32, seed: u64) -> Self {
        let limit = limit as usize;
        Self {
            table: HashTable::with_capacity(limit),
            entries: Vec::with_capacity(limit),
            free: Vec::with_capacity(limit),
            limit,
            seed,
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

    pub(crate) fn find(&self, space: SpaceId, key: &PageKey) -> Option<PageId> {
        let hash = Self::hash(self.seed, space, key);
        let same = |id: &PageId| {
            let page = &self[*id];
            page.key == *key && page.space == space
        };
        self.table.find(hash, same).copied()
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
                let found = PageId(guide.next as u32);
                guide.next += 1;
                guide.failures = 0;
                return Some(found);
            }
            guide.failures += 1;
        }
        let found = self.find(space, key)?;
        guide.next = found.0 as usize + 1;
        Some(found)
    }

    pub(crate) fn contains(&self, id: PageId) -> bool {
        self.get(id).is_some()
    }

    /// For those who do not keep the page known: the number may be another page's by now.
    pub(crate) fn get(&self, id: PageId) -> Option<&Page> {
        self.entries[id.0 as usize].as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Takes in a page that is not known yet; `None` when the table is full.
    pub(crate) fn insert(&mut self, page: Page) -> Option<PageId> {
        if self.table.len() >= self.limit {
            return None;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            PageId((self.entries.len() - 1) as u32)
        });
        let (seed, hash) = (self.seed, Self::hash(self.seed, page.space, &page.key));
        self.entries[id.0 as usize] = Some(page);
        let entries = &self.entries;
        self.table.insert_unique(hash, id, |id| {
            let page = entries[id.0 as usize].as_ref().expect("the table names live pages only");
            Self::hash(seed, page.space, &page.key)
        });
        Some(id)
    }

    pub(crate) fn remove(&mut self, id: PageId) -> Page {
        let page = self.entries[id.0 as usize].take().expect("a page is removed once");
        let hash = Self::hash(self.seed, page.space, &page.key);
        let entry = self.table.find_entry(hash, |other| *other == id);
        entry.expect("a live page is in the table").remove();
        self.free.push(id);
        page
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageId, &Page)> {
        let numbered = self.entries.iter().enumerate();
        numbered.filter_map(|(at, page)| page.as_ref().map(|page| (PageId(at as u32), page)))
    }
}

impl ops::Index<PageId> for PageIndex {
    type Output = Page;

    fn index(&self, id: PageId) -> &Page {
        self.entries[id.0 as usize].as_ref().expect("whoever names a page keeps it known")
    }
}

impl ops::IndexMut<PageId> for PageIndex {
    fn index_mut(&mut self, id: PageId) -> &mut Page {
        self.entries[id.0 as usize].as_mut().expect("whoever names a page keeps it known")
    }
}
