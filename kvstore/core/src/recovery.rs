use crate::page::{Page, PageId, Ssd};
use crate::{Core, RecoveredRecord};
use undercroft_wire::{PageIdentity, PageKey, SpaceId};

impl Core {
    /// Takes over what was found on SSD, in the order it was appended: of two records of one
    /// page the later counts.
    pub(crate) fn recovered(&mut self, records: &[RecoveredRecord]) {
        for record in records {
            if self.recover(record).is_some() {
                self.stats.recovered_records += 1;
            } else {
                self.stats.recovery_ignored += 1;
            }
        }
    }

    fn recover(&mut self, record: &RecoveredRecord) -> Option<()> {
        if !self.has_usable_ssd() {
            return None;
        }
        let identity = &record.identity;
        let space = self.intern_space(identity.domain, identity.space, identity.page_bytes).ok()?;
        let page = self.recovered_page(space, identity)?;
        match self.index[page].ssd {
            Ssd::Writing => return None,
            Ssd::On(_) => self.leave_ssd(page),
            Ssd::None => {}
        }
        let entered = self.enter_ssd(page, record.extent);
        self.index[page].touched = false;
        self.settle(page);
        self.prune(page);
        entered.then_some(())
    }

    /// The entry of a recovered page, hung below its parent. A parent that is not known (yet)
    /// gets an entry without any tier.
    fn recovered_page(&mut self, space: SpaceId, identity: &PageIdentity) -> Option<PageId> {
        let depth = identity.depth;
        if identity.parent.is_some() != (depth > 0) || identity.parent == Some(identity.key) {
            return None;
        }
        let known = self.index.find(space, &identity.key);
        if let Some(page) = known {
            let page = &self.index[page];
            let parent = page.parent.map(|parent| self.index[parent].key);
            if page.depth != depth || (parent.is_some() && parent != identity.parent) {
                return None;
            }
        }
        let parent = match identity.parent {
            Some(key) => Some(self.recovered_entry(space, key, depth - 1)?),
            None => None,
        };
        let page = match known {
            Some(page) => Some(page),
            None => self.recovered_entry(space, identity.key, depth),
        };
        if let (Some(page), Some(parent), true) =
            (page, parent, page.is_some_and(|page| self.index[page].parent.is_none()))
        {
            self.link(page, parent);
        }
        if let (None, Some(parent)) = (page, parent) {
            self.prune(parent);
        }
        page
    }

    fn recovered_entry(&mut self, space: SpaceId, key: PageKey, depth: u32) -> Option<PageId> {
        if let Some(page) = self.index.find(space, &key) {
            return (self.index[page].depth == depth).then_some(page);
        }
        let class = self.spaces.get(space).class;
        let page = self.index.insert(Page::new(space, class, key, depth))?;
        self.spaces.get_mut(space).pages += 1;
        Some(page)
    }
}
