use crate::commits::NOT_OPEN;
use crate::cost::LoadPolicy;
use crate::findings::Outcome;
use crate::holds::Hold;
use crate::index::Guide;
use crate::letting::Grip;
use crate::page::{Dram, Page, PageId};
use crate::weighing::{Weighing, Worth};
use crate::{Action, Core};
use std::collections::{BTreeSet, VecDeque};
use undercroft_wire::{
    Finding, HoldId, Lookup, LookupReply, Missed, PageKey, RefusedReason, Reply, RequestId,
    SessionId, SpaceId, Stamp,
};

/// What a lookup found so far.
#[derive(Debug, Default)]
struct Found {
    pages: u32,
    /// Pages that are in DRAM in every space.
    dram: u32,
    /// Bytes to be read from each SSD, over all spaces, beyond those that it has been asked for; empty
    /// for none.
    ssd_bytes: Vec<Option<u64>>,
    /// Which part of it is worth loading, where that is weighed.
    weighing: Option<Weighing>,
}

/// A lookup. One that is long takes several steps: what it has found is held meanwhile if it is to be
/// held, and may else be gone when it is answered, as at any time after.
#[derive(Debug)]
struct Search {
    session: SessionId,
    request: RequestId,
    spaces: Vec<SpaceId>,
    /// Empty while it is the message's.
    keys: Vec<PageKey>,
    /// Keys looked for so far.
    at: usize,
    found: Found,
    guides: Vec<Guide>,
    hold_ms: u32,
    /// A page in each space for each key found, and whether it is pinned (or else kept).
    held: Vec<(PageId, bool)>,
    stamp: u64,
    /// How many keys there are, and the first that was not found.
    asked: u32,
    missed: Option<PageKey>,
}

/// Lookups under way.
#[derive(Debug, Default)]
pub(crate) struct Searching {
    queue: VecDeque<Search>,
    /// Probes that the step under way may still make.
    pub(crate) left: u32,
}

/// Probes that take as long as holding, leasing or letting go of a page.
pub(crate) const PROBES_PER_PAGE: u32 = 8;
/// Probes in one turn of one lookup.
const TURN_PROBES: u32 = 256 * PROBES_PER_PAGE;

impl Core {
    pub(crate) fn lookup(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Lookup<'_>,
        actions: &mut Vec<Action>,
    ) {
        let opened = match self.sessions.get(&session) {
            Some(state) => body.spaces.iter().all(|space| state.stagings.contains_key(space)),
            None => false,
        };
        if !opened || body.spaces.is_empty() {
            return self.refuse(session, request, RefusedReason::Unknown, NOT_OPEN, actions);
        }
        if body.spaces.iter().enumerate().any(|(at, space)| body.spaces[..at].contains(space)) {
            let detail = "a lookup names each space once";
            return self.refuse(session, request, RefusedReason::Invalid, detail, actions);
        }
        let keys = body.keys.as_slice();
        self.stats.lookups = self.stats.lookups.saturating_add(1);
        self.stats.lookup_keys = self.stats.lookup_keys.saturating_add(keys.len() as u64);
        let stamp = self.next_stamp(session);
        self.note_length(session, stamp, keys.len());
        let mut search = Search {
            session,
            request,
            spaces: body.spaces.clone(),
            keys: Vec::new(),
            at: 0,
            found: Found { weighing: self.weighing(body), ..Found::default() },
            guides: body.spaces.iter().map(|_| Guide::default()).collect(),
            hold_ms: body.hold_ms,
            held: Vec::new(),
            stamp,
            asked: keys.len() as u32,
            missed: None,
        };
        if self.search(&mut search, keys, u32::MAX) {
            self.answer_search(search, keys, actions);
        } else {
            search.keys = keys.to_vec();
            self.searching.queue.push_back(search);
        }
    }

    /// Lookups that the board has answered.
    pub(crate) fn missed(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Missed,
        actions: &mut Vec<Action>,
    ) {
        let stats = &mut self.stats;
        // Its owner chose the number: it is taken for what it is, and breaks nothing.
        for count in [&mut stats.lookups, &mut stats.board_lookups, &mut stats.lookup_keys] {
            *count = count.saturating_add(u64::from(body.lookups));
        }
        if body.lookups > 0 {
            self.note_finding(session, Finding::Board { lookups: body.lookups });
        }
        if request.0 != 0 {
            actions.push(Action::Reply { session, request, reply: Reply::Done });
        }
    }

    /// Goes on with the lookups under way, as far as the step may.
    pub(crate) fn search_on(&mut self, actions: &mut Vec<Action>) {
        while self.searching.left > 0
            && let Some(mut search) = self.searching.queue.pop_front()
        {
            let keys = std::mem::take(&mut search.keys);
            if self.search(&mut search, &keys, TURN_PROBES) {
                self.answer_search(search, &keys, actions);
            } else {
                search.keys = keys;
                self.searching.queue.push_back(search);
            }
        }
    }

    /// Looks for the next keys, and holds what it finds; true once the answer is known.
    fn search(&mut self, search: &mut Search, keys: &[PageKey], most: u32) -> bool {
        let each = if search.hold_ms > 0 { PROBES_PER_PAGE } else { 1 };
        let cost = search.spaces.len() * each as usize;
        let turn = (most.min(self.searching.left) as usize / cost).max(1);
        let end = keys.len().min(search.at + turn);
        let spent = (end - search.at) * cost;
        self.searching.left = self.searching.left.saturating_sub(spent as u32);
        let slice = &keys[search.at..end];
        let before = search.found.pages;
        match search.spaces.as_slice() {
            [space] => {
                self.longest_run_of_one(&mut search.found, &mut search.guides[0], *space, slice)
            }
            spaces => self.longest_run_of_all(&mut search.found, &mut search.guides, spaces, slice),
        }
        let found = (search.found.pages - before) as usize;
        self.hold_found(search, &slice[..found]);
        search.at = end;
        search.missed = slice.get(found).copied();
        found < slice.len() || end == keys.len()
    }

    fn answer_search(&mut self, mut search: Search, keys: &[PageKey], actions: &mut Vec<Action>) {
        let Search { session, request, ref found, stamp, .. } = search;
        self.stats.prefix_pages += u64::from(found.pages);
        self.stats.prefix_dram_pages += u64::from(found.dram);
        let (present, all) = (found.pages, self.all_of(found, &search.spaces));
        let worth = found.weighing.as_ref().map_or(all, |weighing| weighing.worth());
        let is_bound = self.config.load == LoadPolicy::Enforced;
        let Worth { pages, dram, ssd_us, copy_us } = if is_bound { worth } else { all };
        let worth = worth.pages;
        if worth < present {
            self.stats.cost.trimmed_lookups += 1;
            self.stats.cost.trimmed_pages += u64::from(present - worth);
        }
        let unworthy = (pages < present).then(|| keys[pages as usize]);
        let missed = unworthy.or(search.missed);
        let (spaces, keys, ssd) = (&search.spaces, search.asked, pages - dram);
        let is_there = unworthy.is_some();
        self.explain(&Outcome { session, spaces, keys, dram, ssd, missed, is_there });
        if pages < present {
            self.trim(&mut search, pages);
        }
        let hold = self.keep_hold(search);
        let stamp = Stamp(stamp);
        let (estimate_us, copy_us) = (ssd_us as u64, copy_us as u64);
        let reply = Reply::Lookup(LookupReply {
            pages,
            dram,
            ssd,
            hold,
            stamp,
            estimate_us,
            present,
            worth,
            copy_us,
        });
        actions.push(Action::Reply { session, request, reply });
    }

    /// The lookups of a session are not to be answered any more.
    pub(crate) fn drop_searches_of(&mut self, session: SessionId) {
        let queue = std::mem::take(&mut self.searching.queue);
        let (gone, stay): (VecDeque<_>, _) =
            queue.into_iter().partition(|search| search.session == session);
        self.searching.queue = stay;
        for search in gone {
            self.let_go_held(session, search.held);
        }
    }

    /// Pages of these spaces are to be found no more: lookups of them start anew.
    pub(crate) fn search_again_in(&mut self, spaces: &BTreeSet<SpaceId>) {
        let mut queue = std::mem::take(&mut self.searching.queue);
        for search in &mut queue {
            if search.spaces.iter().any(|space| spaces.contains(space)) {
                let weighing = search.found.weighing.take().map(Weighing::restarted);
                (search.at, search.found) = (0, Found { weighing, ..Found::default() });
                self.let_go_held(search.session, std::mem::take(&mut search.held));
            }
        }
        self.searching.queue = queue;
    }

    fn let_go_held(&mut self, session: SessionId, held: Vec<(PageId, bool)>) {
        let grip = |(page, pinned)| if pinned { Grip::Pin(page) } else { Grip::Keep(page) };
        self.let_go(Some(session), held.into_iter().map(grip));
    }

    fn longest_run_of_one(
        &self,
        found: &mut Found,
        guide: &mut Guide,
        space: SpaceId,
        keys: &[PageKey],
    ) {
        for key in keys {
            let Some(id) = self.index.find_next(guide, space, key) else {
                return;
            };
            if !self.is_visible(id) {
                return;
            }
            let page = &self.index[id];
            let in_dram = page.dram == Dram::Resident;
            if !in_dram {
                self.note_read(found, page);
            }
            found.add_page(in_dram);
        }
    }

    fn longest_run_of_all(
        &self,
        found: &mut Found,
        guides: &mut [Guide],
        spaces: &[SpaceId],
        keys: &[PageKey],
    ) {
        let mut to_read = Vec::new();
        for key in keys {
            let mut in_dram = true;
            to_read.clear();
            for (space, guide) in spaces.iter().zip(&mut *guides) {
                let found_page = self.index.find_next(guide, *space, key);
                let Some(id) = found_page.filter(|id| self.is_visible(*id)) else {
                    return;
                };
                let page = &self.index[id];
                if page.dram != Dram::Resident {
                    in_dram = false;
                    to_read.push(page);
                }
            }
            for page in &to_read {
                self.note_read(found, page);
            }
            found.add_page(in_dram);
        }
    }

    fn note_read(&self, found: &mut Found, page: &Page) {
        let record = page.record().expect("a page that is read has a record");
        let device = self.segments.device(record.0);
        let bytes = match page.dram {
            // Its device has been asked for it.
            Dram::Reading => 0,
            _ => self.frame_bytes(self.spaces.get(page.space).class),
        };
        found.ssd_bytes.resize(self.config.devices.len(), None);
        *found.ssd_bytes[usize::from(device.0)].get_or_insert_default() += bytes;
        if let Some(weighing) = &mut found.weighing {
            weighing.read(device, bytes);
        }
    }

    /// What the pages of a lookup are weighed against, if they are.
    fn weighing(&self, body: &Lookup<'_>) -> Option<Weighing> {
        if self.config.load == LoadPolicy::Off {
            return None;
        }
        let copying = self.copying(&body.spaces);
        Weighing::new(body.rival, || self.queues(), copying)
    }

    /// What copying pages out of DRAM takes the slowest of these spaces: once, and for each.
    fn copying(&self, spaces: &[SpaceId]) -> (f64, f64) {
        let paces = spaces.iter().map(|space| {
            let space = self.spaces.get(*space);
            let pace = space.copying.at(self.now);
            (pace.latency_us, pace.us_per_byte * f64::from(space.page_bytes))
        });
        paces.fold((0.0, 0.0), |all: (f64, f64), one| (all.0.max(one.0), all.1.max(one.1)))
    }

    /// All of what was found, and what loading it takes.
    fn all_of(&self, found: &Found, spaces: &[SpaceId]) -> Worth {
        let read = found.ssd_bytes.iter().zip(self.devices.iter());
        let times = read.filter_map(|(bytes, device)| {
            let queue = device.reading.queue(self.now);
            bytes.map(|bytes| queue.us(bytes))
        });
        let (once, each) = self.copying(spaces);
        let copy_us = if found.pages > 0 { once + each * f64::from(found.pages) } else { 0.0 };
        let ssd_us = times.fold(0.0, f64::max);
        Worth { pages: found.pages, dram: found.dram, ssd_us, copy_us }
    }

    /// Of what a lookup has found and holds only the first pages are of use.
    fn trim(&mut self, search: &mut Search, pages: u32) {
        search.found.pages = pages;
        let kept = pages as usize * search.spaces.len();
        let rest = search.held.split_off(kept.min(search.held.len()));
        self.let_go_held(search.session, rest);
    }

    /// Holds `keys`, all visible in all spaces of a lookup that wants a hold. At a limit it gets none.
    fn hold_found(&mut self, search: &mut Search, keys: &[PageKey]) {
        if search.hold_ms == 0 || keys.is_empty() {
            return;
        }
        let wished = (search.held.len() + search.spaces.len() * keys.len()) as u64;
        let domain = self.domain_of(search.session);
        if !domain.is_some_and(|domain| self.domains.get(domain).may_hold(wished)) {
            self.stats.holds_declined += 1;
            search.hold_ms = 0;
            return self.let_go_held(search.session, std::mem::take(&mut search.held));
        }
        for key in keys {
            for &space in &search.spaces {
                let page = self.index.find(space, key).expect("the lookup has found it");
                let pinned = self.index[page].dram == Dram::Resident;
                if pinned {
                    self.pin(page);
                } else {
                    self.keep(page);
                }
                search.held.push((page, pinned));
            }
        }
    }

    /// Makes a hold of all that a lookup has held; `None` if there is none, or a limit is reached.
    fn keep_hold(&mut self, search: Search) -> Option<HoldId> {
        let Search { session, spaces, hold_ms, held: pages, found, .. } = search;
        if pages.is_empty() {
            return None;
        }
        let domain = self.domain_of(session)?;
        if !self.domains.get(domain).may_hold(pages.len() as u64) {
            self.stats.holds_declined += 1;
            self.let_go_held(session, pages);
            return None;
        }
        let expires = self.now.after_ms(hold_ms.min(self.config.limits.max_hold_ms));
        let count = found.pages;
        Some(self.insert_hold(Hold { session, domain, spaces, count, pages, expires }))
    }
}

impl Found {
    fn add_page(&mut self, in_dram: bool) {
        self.pages += 1;
        self.dram += u32::from(in_dram);
        if let Some(weighing) = &mut self.weighing {
            weighing.page(in_dram);
        }
    }
}

impl Searching {
    /// Whether a lookup of the session waits for its answer.
    pub(crate) fn has(&self, session: SessionId) -> bool {
        self.queue.iter().any(|search| search.session == session)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What lookups under way hold, and whether they pin (or else keep) it.
    pub(crate) fn held(&self) -> impl Iterator<Item = (PageId, bool)> + '_ {
        self.queue.iter().flat_map(|search| search.held.iter().copied())
    }
}
