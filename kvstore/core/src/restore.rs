use crate::fetches::{Fetch, FetchId, Reader};
use crate::heat::Heat;
use crate::notes::Note;
use crate::order::OrderKey;
use crate::page::{Dram, Mark, PageId};
use crate::recovery::Guess;
use crate::restored::{
    Restored, RestoredFrame, RestoredLease, RestoredPage, RestoredSession, RestoredSlab,
    RestoredSpace,
};
use crate::sessions::Session;
use crate::spaces::{ClassId, Space};
use crate::{Core, Micros};
use std::collections::BTreeSet;
use undercroft_wire::{
    FrameId, MAX_PAGE_BYTES, MIN_PAGE_BYTES, Mode, PageIdentity, RequestId, SessionId, frame_bytes,
};

/// A frame with a page that could not be taken over.
#[derive(Debug)]
pub(crate) struct Withheld {
    pub(crate) class: ClassId,
    /// Sessions of an earlier daemon that may be reading it.
    readers: BTreeSet<SessionId>,
}

impl Withheld {
    /// How many sessions may be reading it.
    pub(crate) fn readers(&self) -> usize {
        self.readers.len()
    }
}

/// Taking over what an earlier daemon left in memory. None of it is believed further than it
/// agrees with the rest, and a frame that may be in use is given to nobody.
impl Core {
    pub(crate) fn restored(&mut self, piece: &Restored<'_>) {
        if self.has_restored || !self.frames.is_restoring() && self.index.len() > 0 {
            let Restored { spaces, slabs, pages, quarantined, sessions, leases, .. } = piece;
            let ignored = [spaces.len(), slabs.len(), pages.len(), quarantined.len()];
            let ignored = ignored.into_iter().sum::<usize>() + sessions.len() + leases.len();
            self.stats.restore_ignored += ignored as u64;
            return;
        }
        self.frames.keep_unused();
        for space in piece.spaces {
            let taken = self.restore_space(space);
            self.count_restored(taken);
        }
        let mut frames = 0;
        for slab in piece.slabs {
            let taken = self.restore_slab(slab);
            frames += if taken { slab.bytes / u64::from(slab.frame_bytes) } else { 0 };
            self.count_restored(taken);
        }
        self.index.expect(frames as usize);
        for frame in piece.quarantined {
            let taken = self.restore_quarantined(frame);
            self.count_restored(taken);
        }
        let mut guess = Guess::default();
        for page in piece.pages {
            let taken = self.restore_page(page, &mut guess);
            self.stats.restored_pages += u64::from(taken);
            self.count_restored(taken);
        }
        for session in piece.sessions {
            let taken = self.restore_session(session);
            self.count_restored(taken);
        }
        if !piece.leases.is_empty() {
            self.restored_frames.sort_unstable();
        }
        for lease in piece.leases {
            let taken = self.restore_lease(lease);
            self.stats.restored_leases += u64::from(taken);
            self.count_restored(taken);
        }
        if piece.last {
            self.finish_restoring();
        }
    }

    fn count_restored(&mut self, taken: bool) {
        self.stats.restore_ignored += u64::from(!taken);
    }

    fn restore_space(&mut self, space: &RestoredSpace) -> bool {
        let RestoredSpace { space: id, domain, digest, page_bytes, probe } = *space;
        let at = self.domains.find(domain);
        let sized = (MIN_PAGE_BYTES..=MAX_PAGE_BYTES).contains(&page_bytes);
        if let Some(at) = at.filter(|_| sized) {
            let class = self.frames.class_of(at, frame_bytes(page_bytes));
            let space = Space { probe, ..Space::new((domain, digest), page_bytes, class) };
            if self.spaces.restore(id, space, self.config.limits.max_spaces) {
                self.frames.class_mut(class).spaces += 1;
                return true;
            }
        }
        if self.spaces.info(id).is_none() {
            self.notes.add(|| Note::SpaceGone { space: id });
        }
        false
    }

    fn restore_slab(&mut self, slab: &RestoredSlab) -> bool {
        let RestoredSlab { part, offset, .. } = *slab;
        let taken = self.frames.restore_slab(slab);
        if !taken && !self.frames.has_slab(part, offset) {
            self.notes.add(|| Note::SlabGone { part, offset });
        }
        taken
    }

    fn restore_quarantined(&mut self, at: &RestoredFrame) -> bool {
        let found = self.frames.find(at.part, at.offset);
        let Some((class, frame)) = found.filter(|(_, frame)| self.frames.take_this(*frame)) else {
            return false;
        };
        self.quarantine.insert((class, frame));
        true
    }

    fn restore_page(&mut self, row: &RestoredPage, guess: &mut Guess) -> bool {
        let RestoredPage { part, offset, .. } = *row;
        let Some((class, frame)) = self.frames.find(part, offset) else {
            return false;
        };
        if !self.frames.take_this(frame) {
            return false;
        }
        let Some(page) = self.restored_entry(row, class, guess) else {
            // Whether somebody still reads it is told of later.
            self.withheld.insert(frame, Withheld { class, readers: BTreeSet::new() });
            return false;
        };
        self.enter_dram(page, frame, row);
        true
    }

    /// The entry of a page that was in a frame of the class; `None` if it cannot be.
    fn restored_entry(
        &mut self,
        row: &RestoredPage,
        class: ClassId,
        guess: &mut Guess,
    ) -> Option<PageId> {
        let space = self.spaces.info(row.space)?;
        let writer = self.users.number(self.domain_of_space(row.space), row.writer)?;
        self.learn_time(row.born);
        if self.spaces.get(row.space).class != class {
            return None;
        }
        let identity = PageIdentity {
            domain: space.domain,
            space: space.digest,
            key: row.key,
            parent: row.parent,
            depth: row.depth,
            page_bytes: space.page_bytes,
        };
        let page = self.recovered_page(row.space, &identity, guess)?;
        if self.index[page].dram != Dram::None {
            self.prune(page);
            return None;
        }
        self.index[page].writer = writer;
        self.index[page].born = row.born;
        Some(page)
    }

    fn enter_dram(&mut self, id: PageId, frame: FrameId, row: &RestoredPage) {
        let last = self.domains.get(self.domain_of_space(self.index[id].space)).last_stamp;
        // What DRAM had room for may have been more.
        let credit = self.most_credit(self.class_of(id));
        let policy = self.config.policy;
        let page = &mut self.index[id];
        // A descendant that came first has raised it already.
        let told = Heat::from_bits(row.heat);
        let heat = told.at_most(last, credit).joined(page.heat, policy);
        page.heat = heat;
        page.set(Mark::Touched, true);
        // Nobody remembers, and what is written needlessly costs less than what is not.
        page.set_used_again();
        let parent = page.parent;
        self.index.set_frame(id, frame, Dram::Resident);
        self.index.set_crc(id, row.crc);
        let class = self.class_of(id);
        if heat != told {
            let (part, offset, heat) = (row.part, row.offset, heat.to_bits());
            self.notes.add(|| Note::Touched { part, offset, heat });
        }
        self.frames.class_mut(class).resident += 1;
        self.index[id].set(Mark::Purged, row.purged);
        self.note_presence(id);
        self.settle(id);
        if let Some(parent) = parent {
            self.warm(parent, heat);
        }
        self.restored_frames.push((frame, id));
    }

    fn restore_session(&mut self, row: &RestoredSession) -> bool {
        let RestoredSession { session, process, domain } = *row;
        let unknown = !self.sessions.contains_key(&session);
        let Some(domain) = self.domains.find(domain).filter(|_| unknown) else {
            if unknown {
                self.notes.add(|| Note::SessionGone { session });
            }
            return false;
        };
        // However few there may be now: what they read must stay.
        let tenant = self.domains.get_mut(domain);
        tenant.sessions += 1;
        tenant.restored_sessions += 1;
        self.sessions.insert(session, Session::restored(domain, process));
        true
    }

    fn restore_lease(&mut self, row: &RestoredLease) -> bool {
        let Some(page) = self.restored_leased_page(row) else {
            self.withhold(row);
            return false;
        };
        let state = self.sessions.get_mut(&row.session).expect("found above");
        let domain = state.domain;
        state.leased_pages += 1;
        let known = state.leases.get(&row.lease).copied();
        let id = known.unwrap_or_else(|| self.restored_fetch(row, page));
        let fetch = self.fetches.get_mut(&id).expect("a session's leases are known");
        let at = fetch.numbers.partition_point(|number| *number < row.index);
        fetch.numbers.insert(at, row.index);
        fetch.pages.insert(at, page);
        (fetch.delivered, fetch.issued, fetch.limit) =
            (fetch.delivered + 1, fetch.issued + 1, fetch.limit + 1);
        let bytes = self.frames.class(fetch.class).frame_bytes;
        let state = self.sessions.get_mut(&row.session).expect("found above");
        state.pinning.bytes += u64::from(bytes);
        let tenant = self.domains.get_mut(domain);
        tenant.leased_pages += 1;
        tenant.restored_leased_pages += 1;
        self.pin(page);
        true
    }

    /// The page that a restored session reads there is not known any more. Its frame stays as it
    /// is all the same, as long as the process may be reading it.
    fn withhold(&mut self, row: &RestoredLease) {
        let Some((class, frame)) = self.frames.find(row.part, row.offset) else { return };
        let domain = self.frames.class(class).domain;
        let state = self.sessions.get_mut(&row.session);
        let state = state.filter(|state| state.restored && state.domain == domain);
        if let (Some(state), Some(withheld)) = (state, self.withheld.get_mut(&frame)) {
            state.withheld += u64::from(withheld.readers.insert(row.session));
        }
    }

    /// The session's process is gone: it reads nothing any more.
    pub(crate) fn end_withholding(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.withheld > 0)
        else {
            return;
        };
        session.withheld = 0;
        for withheld in self.withheld.values_mut() {
            withheld.readers.remove(&id);
        }
        self.free_unread();
    }

    fn free_unread(&mut self) {
        let unread = self.withheld.extract_if(.., |_, withheld| withheld.readers.is_empty());
        for (frame, Withheld { class, .. }) in unread.collect::<Vec<_>>() {
            self.give_back(class, frame);
        }
    }

    /// The page that a restored session leases there, if it can have leased it.
    fn restored_leased_page(&self, row: &RestoredLease) -> Option<PageId> {
        let (class, frame) = self.frames.find(row.part, row.offset)?;
        let at = self.restored_frames.binary_search_by_key(&frame, |(frame, _)| *frame);
        let (_, page) = self.restored_frames[at.ok()?];
        self.index.get(page).filter(|page| self.index.frame_of(page) == Some(frame))?;
        let state = self.sessions.get(&row.session).filter(|state| state.restored)?;
        if self.frames.class(class).domain != state.domain {
            return None;
        }
        let known = state.leases.get(&row.lease).map(|id| &self.fetches[id]);
        let twice = known.is_some_and(|fetch| fetch.numbers.binary_search(&row.index).is_ok());
        (!twice).then_some(page)
    }

    /// A lease on nothing yet that has ended otherwise.
    fn restored_fetch(&mut self, row: &RestoredLease, page: PageId) -> FetchId {
        let (session, lease) = (row.session, row.lease);
        let (request, mode) = (RequestId(0), Mode::ZeroCopy);
        let reader = Reader::Lease { session, lease, request, mode };
        let space = self.index[page].space;
        let mut fetch = self.new_fetch(reader, space, Micros(0));
        fetch.active = false;
        self.last_fetch += 1;
        let id = FetchId(self.last_fetch);
        fetch.id = id;
        self.fetches.insert(id, fetch);
        let state = self.sessions.get_mut(&session).expect("the session is known");
        state.leases.insert(lease, id);
        id
    }

    fn finish_restoring(&mut self) {
        self.has_restored = true;
        let restored = std::mem::take(&mut self.restored_frames).into_iter();
        let is_purged = |id: &PageId| self.index.get(*id).is_some_and(|page| page.is(Mark::Purged));
        let purged: Vec<PageId> = restored.map(|(_, id)| id).filter(is_purged).collect();
        for page in purged {
            // Whoever used it may be gone.
            self.drop_purged(page);
            self.prune(page);
        }
        self.free_unread();
        self.frames.drop_unused(&mut self.notes);
        self.fill_orders();
        let idle = self.sessions.iter().filter(|(_, state)| state.restored);
        for session in idle.map(|(id, _)| *id).collect::<Vec<SessionId>>() {
            self.forget_session_if_done(session);
        }
        let classes: Vec<ClassId> = self.frames.classes().map(|(class, _)| class).collect();
        for class in classes {
            self.wake(class);
        }
    }

    /// Puts the pages that may leave DRAM in the order they leave it in: while they were restored
    /// none did.
    fn fill_orders(&mut self) {
        let mut orders: Vec<Vec<OrderKey>> = Vec::new();
        orders.resize_with(self.frames.classes().count(), Vec::new);
        let evictable = self.index.iter().filter(|(id, _)| self.is_evictable(*id));
        for (id, _) in evictable {
            orders[self.class_of(id).0 as usize].push(self.index.order_key(id));
        }
        for (class, keys) in orders.into_iter().enumerate() {
            let leaving: Vec<PageId> = keys.iter().map(|key| key.page()).collect();
            self.frames.class_mut(ClassId(class as u32)).order.fill(&mut self.index, keys);
            leaving.into_iter().for_each(|id| self.note_leaving(id));
        }
    }

    /// Nothing that was under way before is any more.
    pub(crate) fn quarantine_over(&mut self) {
        for (class, frame) in std::mem::take(&mut self.quarantine) {
            self.give_back(class, frame);
        }
    }
}

impl Fetch {
    /// The index that the reader knows page `at` by: a restored lease has only the pages that were
    /// not released before.
    pub(crate) fn index_of(&self, at: u32) -> u32 {
        self.numbers.get(at as usize).copied().unwrap_or(at)
    }

    /// How many pages lie before index `upto`.
    pub(crate) fn count_before(&self, upto: u32) -> u32 {
        if self.numbers.is_empty() || upto == u32::MAX {
            return upto;
        }
        self.numbers.partition_point(|number| *number < upto) as u32
    }
}
