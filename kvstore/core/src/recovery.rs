use crate::page::{Mark, Page, PageId, Ssd};
use crate::stats::DeviceState;
use crate::{Core, RecoveredRecord};
use undercroft_wire::{DeviceId, DomainId, Extent, PageIdentity, PageKey, SpaceId};

/// What became of a record found at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recovered {
    Taken,
    /// The page is known from a record at least as good.
    Duplicate,
    /// There is no room for it, or it is at odds with another.
    Ignored,
    /// It was purged, or is older than its domain keeps pages.
    Gone,
}

/// The page of the record before this one, and its parent. Runs are written page by page, tail
/// first as a rule: the next record is mostly about one of them or a neighbour.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Guess {
    page: Option<PageId>,
    parent: Option<PageId>,
}

impl Core {
    /// Takes over records found on a device, in the order they were appended.
    pub(crate) fn recovered(
        &mut self,
        device: DeviceId,
        records: &[RecoveredRecord],
        free_segments: u32,
        last: bool,
    ) {
        let Some(state) = self.devices.find_mut(device) else {
            return;
        };
        if state.state != DeviceState::Recovering {
            self.stats.recovery_ignored += records.len() as u64;
            return;
        }
        state.free_segments = free_segments;
        let mut guess = Guess::default();
        for record in records {
            match self.recover(device, record, &mut guess) {
                Recovered::Taken => self.stats.recovered_records += 1,
                Recovered::Duplicate => self.stats.recovery_duplicates += 1,
                Recovered::Ignored => self.stats.recovery_ignored += 1,
                Recovered::Gone => self.stats.recovery_gone += 1,
            }
        }
        if last {
            self.change_device(device, |device| {
                device.state = DeviceState::Ready;
                device.segments.total =
                    Some(device.segments.count() + u64::from(device.free_segments));
            });
            self.devices.spread_ages(self.last_segment);
        }
    }

    fn recover(
        &mut self,
        device: DeviceId,
        record: &RecoveredRecord,
        guess: &mut Guess,
    ) -> Recovered {
        let RecoveredRecord { identity, origin, extent, sealed, purged, .. } = record;
        if extent.device != device {
            return Recovered::Ignored;
        }
        // The log keeps the segment even if none of its records is of use. Somebody has to free it.
        let segments = &mut self.devices.get_mut(device).segments;
        if !segments.note_found(*extent, &mut self.last_segment, &mut self.segments) {
            return Recovered::Ignored;
        }
        let (domain, digest, page_bytes) = (identity.domain, identity.space, identity.page_bytes);
        self.learn_time(origin.born);
        if *purged || self.is_record_too_old(domain, origin.born) {
            return Recovered::Gone;
        }
        let Ok(space) = self.intern_space(domain, digest, page_bytes) else {
            return Recovered::Ignored;
        };
        let Some(writer) = self.users.number(self.domain_of_space(space), origin.writer) else {
            return Recovered::Ignored;
        };
        let Some(page) = self.recovered_page(space, identity, guess) else {
            return Recovered::Ignored;
        };
        // Who is named as a page's writer wrote all of it.
        let known = &self.index[page];
        let others = known.has_frame() && known.writer != writer;
        if others || !self.supersedes(page, *extent, *sealed) {
            self.prune(page);
            return Recovered::Duplicate;
        }
        if self.index[page].has_record() {
            self.leave_ssd(page);
        }
        let entry = &mut self.index[page];
        entry.born = if entry.has_frame() { entry.born.min(origin.born) } else { origin.born };
        entry.writer = writer;
        let entered = self.enter_ssd(page, *extent, *sealed);
        if entered && !sealed {
            self.devices.get_mut(device).to_prove.push_back((page, *extent));
        }
        self.index[page].set(Mark::Touched, false);
        self.settle(page);
        self.prune(page);
        if entered { Recovered::Taken } else { Recovered::Ignored }
    }

    fn is_record_too_old(&self, domain: DomainId, born: u32) -> bool {
        let domain = self.domains.find(domain).map(|at| self.domains.get(at));
        domain.is_some_and(|domain| self.is_too_old(domain.config.max_age_s, born))
    }

    /// Whether a record is to be believed rather than what is known: one that can be read now
    /// rather than one that cannot, then one that need not be proved, then the later one. Which of
    /// two on different devices is later nobody can tell, nor does it matter.
    fn supersedes(&self, page: PageId, extent: Extent, sealed: bool) -> bool {
        let (known, proved) = match self.ssd_of(&self.index[page]) {
            Ssd::None => return true,
            Ssd::Writing(_) => return false,
            Ssd::On(known) => (known, true),
            Ssd::Unproved(known) => (known, false),
        };
        let new = (self.devices.answers(extent.device), sealed);
        let old = (self.devices.answers(known.device), proved);
        new > old || (new == old && extent.device == known.device)
    }

    /// The entry of a recovered page, hung below its parent. A parent that is not known (yet)
    /// gets an entry without any tier.
    pub(crate) fn recovered_page(
        &mut self,
        space: SpaceId,
        identity: &PageIdentity,
        guess: &mut Guess,
    ) -> Option<PageId> {
        let depth = identity.depth;
        if identity.parent.is_some() != (depth > 0) || identity.parent == Some(identity.key) {
            return None;
        }
        let known = self.find_recovered(space, &identity.key, *guess);
        if let Some(page) = known {
            let page = &self.index[page];
            let parent = page.parent.map(|parent| self.index[parent].key);
            if page.depth != depth || (parent.is_some() && parent != identity.parent) {
                return None;
            }
        }
        let parent = match identity.parent {
            Some(key) => Some(self.recovered_entry(space, key, depth - 1, *guess)?),
            None => None,
        };
        let page = match known {
            Some(page) => Some(page),
            None => self.recovered_entry(space, identity.key, depth, Guess::default()),
        };
        *guess = Guess { page, parent };
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

    /// The page called `key`, looked for first where the record before this one points.
    fn find_recovered(&self, space: SpaceId, key: &PageKey, guess: Guess) -> Option<PageId> {
        let is_it = |id: &PageId| {
            self.index.get(*id).is_some_and(|page| page.key == *key && page.space == space)
        };
        let guessed = guess.page.filter(is_it).or(guess.parent.filter(is_it));
        guessed.or_else(|| self.index.find(space, key))
    }

    fn recovered_entry(
        &mut self,
        space: SpaceId,
        key: PageKey,
        depth: u32,
        guess: Guess,
    ) -> Option<PageId> {
        if let Some(page) = self.find_recovered(space, &key, guess) {
            return (self.index[page].depth == depth).then_some(page);
        }
        self.know(Page::new(space, key, depth))
    }
}
