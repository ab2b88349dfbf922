use crate::claims::{Claim, Claimed, Purpose};
use crate::gathering::Rest;
use crate::jobs::{Delivery, Job};
use crate::letting::Grip;
use crate::page::{Dram, PageId};
use crate::races::Race;
use crate::sessions::Slot;
use crate::spaces::ClassId;
use crate::timers::Timer;
use crate::{Action, Core, Micros};
use std::collections::VecDeque;
use undercroft_wire::{
    FetchEnd, FetchOutcome, FetchReady, LeaseId, Mode, PagePlace, Reply, RequestId, SessionId,
    SlotId, SpaceId,
};

/// Numbers fetches; a fetch becomes the lease of what it delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FetchId(pub(crate) u64);

/// For whom pages are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A session, under a lease.
    Lease { session: SessionId, lease: LeaseId, request: RequestId, mode: Mode },
    /// Nobody yet: pages are lifted to DRAM and left there.
    Prefetch,
}

impl Reader {
    pub(crate) fn session(self) -> Option<SessionId> {
        match self {
            Self::Lease { session, .. } => Some(session),
            Self::Prefetch => None,
        }
    }
}

/// A run of pages on its way to a reader, and the lease of those that arrived.
///
/// The run is cut in pieces, in order: `released` pages are given back, `delivered` are the
/// reader's, up to `copied` a copy into a slot has begun (copy mode only), `issued` have their
/// frame and are there or being read, and those up to `limit` are only kept from leaving their
/// last tier. Pages are issued strictly in order, so a page further on never holds the frame
/// that an earlier one waits for.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) id: FetchId,
    pub(crate) reader: Reader,
    pub(crate) space: SpaceId,
    pub(crate) class: ClassId,
    pub(crate) pages: Vec<PageId>,
    /// The reader's index of each page where that is not its position: in a restored lease.
    pub(crate) numbers: Vec<u32>,
    /// What it has not taken in yet.
    pub(crate) rest: Option<Box<Rest>>,
    pub(crate) released: u32,
    pub(crate) delivered: u32,
    pub(crate) copied: u32,
    pub(crate) issued: u32,
    pub(crate) limit: u32,
    /// How the fetch ends once `limit` pages are delivered.
    pub(crate) outcome: FetchOutcome,
    /// Whether each page in `delivered..issued` had to be read.
    pub(crate) reads: VecDeque<bool>,
    /// Copy mode: the slots of `released..copied`, and whether their copy is done.
    pub(crate) slots: VecDeque<(SlotId, bool)>,
    /// Delivered pages that had to be read.
    pub(crate) ssd: u32,
    /// When it was asked for; `None` of a lease that it did not begin as.
    pub(crate) began: Option<Micros>,
    /// What it is weighed against, if it is.
    pub(crate) race: Option<Box<Race>>,
    pub(crate) deadline: Micros,
    /// Whether the deadline has passed while there was more to take in or to deliver of what lies in
    /// DRAM: the fetch ends with that.
    pub(crate) late: bool,
    pub(crate) active: bool,
    /// Whether its pages were leased before, by who handed them over: these stay the reader's even if
    /// they are to be found no more.
    pub(crate) handed_over: bool,
    pub(crate) waits_for_frame: bool,
    /// Until a device has little to read.
    pub(crate) waits_for_lull: bool,
    pub(crate) waits_for_slot: bool,
}

impl Fetch {
    pub(crate) fn is_copy(&self) -> bool {
        matches!(self.reader, Reader::Lease { mode: Mode::Copy, .. })
    }

    /// The pages whose frames this fetch pins.
    pub(crate) fn pinned(&self) -> std::ops::Range<usize> {
        let start = if self.is_copy() { self.copied } else { self.released };
        start as usize..self.issued as usize
    }

    fn reply(&self, reply: Reply) -> Option<Action> {
        match self.reader {
            Reader::Lease { session, request, .. } => {
                Some(Action::Reply { session, request, reply })
            }
            Reader::Prefetch => None,
        }
    }
}

impl Core {
    /// Takes a fetch as far as it goes now. `first_in_line` says that it stood at the head of
    /// those who wait for a frame, and may stand there again.
    pub(crate) fn progress(&mut self, id: FetchId, first_in_line: bool, actions: &mut Vec<Action>) {
        if !self.fetches.get(&id).is_some_and(|fetch| fetch.active && fetch.rest.is_none()) {
            return;
        }
        let mut fetch = self.fetches.remove(&id).expect("found above");
        let first = fetch.delivered;
        let mut places = Vec::new();
        loop {
            let before = (fetch.issued, fetch.copied, fetch.delivered);
            self.issue(id, &mut fetch, first_in_line, actions);
            if fetch.is_copy() {
                self.copy_out(id, &mut fetch, actions);
            }
            let read = fetch.ssd;
            self.deliver(&mut fetch, &mut places);
            if fetch.delivered > before.2 {
                self.race_on(&mut fetch, read);
            }
            if before == (fetch.issued, fetch.copied, fetch.delivered) {
                break;
            }
        }
        if let Reader::Lease { lease, .. } = fetch.reader
            && !places.is_empty()
        {
            let ready = Reply::FetchReady(FetchReady { lease, first, places });
            actions.extend(fetch.reply(ready));
        }
        if fetch.delivered == fetch.limit {
            let outcome = fetch.outcome;
            self.finish(id, &mut fetch, outcome, actions);
        } else if fetch.late && !self.gathering.delivering.contains(&id) {
            self.finish(id, &mut fetch, FetchOutcome::Deadline, actions);
        }
        let session = fetch.reader.pinning_session();
        self.put_back(id, fetch);
        if let Some(session) = session {
            // What room it has left is the next one's.
            self.wake_stopped(session);
        }
    }

    /// Keeps a fetch while it is under way or a lease on anything.
    fn put_back(&mut self, id: FetchId, fetch: Fetch) {
        if fetch.active || fetch.released < fetch.delivered {
            self.fetches.insert(id, fetch);
        } else {
            self.forget_lease(id, &fetch);
        }
    }

    pub(crate) fn forget_lease(&mut self, id: FetchId, fetch: &Fetch) {
        match fetch.reader {
            Reader::Prefetch => {
                self.has_brought(id);
                let domain = self.frames.class(fetch.class).domain;
                self.domains.get_mut(domain).prefetches -= 1;
            }
            Reader::Lease { session, lease, .. } => {
                if let Some(state) = self.sessions.get_mut(&session) {
                    let removed = state.leases.remove(&lease);
                    assert_eq!(removed, Some(id), "a lease is the session's until forgotten");
                    state.leased_pages -= fetch.pages.len() as u32;
                    let domain = state.domain;
                    self.domains.get_mut(domain).leased_pages -= fetch.pages.len() as u32;
                }
                self.forget_session_if_done(session);
            }
        }
    }

    fn issue(
        &mut self,
        id: FetchId,
        fetch: &mut Fetch,
        first_in_line: bool,
        actions: &mut Vec<Action>,
    ) {
        let before = fetch.pinned().len();
        let room = self.lease_room(fetch).min(fetch.pages.len()) as u32;
        let most = fetch.limit.min(fetch.issued.saturating_add(room));
        let ends = self.issue_up_to(most, (id, first_in_line), fetch, actions);
        self.count_pinned(fetch, before);
        if let Some(outcome) = ends {
            self.truncate(fetch, fetch.issued, outcome);
        }
        let stopped = fetch.issued == most && most < fetch.limit && self.may_issue(fetch);
        self.note_stopped(fetch, stopped);
    }

    /// Whether nothing but its session's bound keeps a fetch from going on.
    pub(crate) fn may_issue(&self, fetch: &Fetch) -> bool {
        let waits = fetch.waits_for_frame || fetch.waits_for_lull;
        let window = fetch.race.as_ref().map_or(u32::MAX, |race| race.window);
        fetch.issued - fetch.delivered < window.min(self.config.fetch_window) && !waits
    }

    /// Gives pages before `most` their frames; says how the run ends if the next cannot come.
    fn issue_up_to(
        &mut self,
        most: u32,
        (id, first_in_line): (FetchId, bool),
        fetch: &mut Fetch,
        actions: &mut Vec<Action>,
    ) -> Option<FetchOutcome> {
        while fetch.issued < most && self.may_issue(fetch) {
            let page = fetch.pages[fetch.issued as usize];
            if self.is_purged(page) {
                return Some(FetchOutcome::Missing);
            }
            match self.index[page].dram {
                Dram::Resident => {
                    self.keep_to_pin(page);
                    fetch.reads.push_back(false);
                }
                Dram::Reading => {
                    self.keep_to_pin(page);
                    fetch.reads.push_back(true);
                    self.join_read(page, id);
                }
                Dram::None if self.counts_on_ssd(&self.index[page]) => {
                    if !self.make_room_for_turn(id) {
                        return Some(FetchOutcome::Full);
                    }
                    if !self.may_read_now(id, fetch, page) {
                        return None;
                    }
                    let queue = &self.frames.class(fetch.class).waiting;
                    let claimed = if queue.is_empty() || first_in_line {
                        let purpose = match fetch.reader {
                            Reader::Prefetch if self.is_for_turn(id) => Purpose::Turn,
                            Reader::Prefetch => Purpose::Prefetch(self.index.order_key(page)),
                            Reader::Lease { .. } => Purpose::Read,
                        };
                        self.claim_frame(fetch.class, purpose, actions)
                    } else {
                        Claimed::Wait
                    };
                    match claimed {
                        Claimed::Frame(frame) => {
                            self.keep_to_pin(page);
                            fetch.reads.push_back(true);
                            self.promise_turn(id);
                            self.start_read(page, frame, id, actions);
                        }
                        Claimed::Wait => {
                            self.queue_for_frame(id, fetch, first_in_line);
                            return None;
                        }
                        Claimed::Full => return Some(FetchOutcome::Full),
                    }
                }
                _ => return Some(FetchOutcome::Missing),
            }
            fetch.issued += 1;
        }
        None
    }

    /// Whether the page was purged after the fetch had begun.
    fn must_not_reach(&self, fetch: &Fetch, page: PageId) -> bool {
        !fetch.handed_over && self.is_purged(page)
    }

    fn queue_for_frame(&mut self, id: FetchId, fetch: &mut Fetch, first_in_line: bool) {
        fetch.waits_for_frame = true;
        self.count_awaited((fetch.reader, fetch.class), true);
        let claim = Claim::Read(id);
        if first_in_line {
            return self.frames.class_mut(fetch.class).waiting.push_front(claim);
        }
        match fetch.reader {
            Reader::Prefetch => self.frames.class_mut(fetch.class).waiting.push_back(claim),
            Reader::Lease { .. } => self.line_up(fetch.class, claim),
        }
        // One more waits: one more page is to be demoted.
        self.wake(fetch.class);
    }

    /// Copy mode: starts copying what has arrived into free slots.
    fn copy_out(&mut self, id: FetchId, fetch: &mut Fetch, actions: &mut Vec<Action>) {
        let Reader::Lease { session, .. } = fetch.reader else {
            return;
        };
        while fetch.copied < fetch.issued && !fetch.waits_for_slot {
            let page = fetch.pages[fetch.copied as usize];
            if self.must_not_reach(fetch, page) {
                return self.truncate(fetch, fetch.copied, FetchOutcome::Missing);
            }
            if self.index[page].dram != Dram::Resident {
                return;
            }
            let Some(staging) = self.staging_mut(session, fetch.space) else {
                return;
            };
            if staging.slots.is_empty() {
                return self.truncate(fetch, fetch.copied, FetchOutcome::Full);
            }
            let Some(slot) = staging.take(Slot::Delivering) else {
                staging.waiting.push_back(id);
                fetch.waits_for_slot = true;
                return;
            };
            fetch.slots.push_back((slot, false));
            let at = fetch.copied;
            fetch.copied += 1;
            let space = fetch.space;
            self.frames.class_mut(fetch.class).busy += 1;
            let delivery = Delivery { page, fetch: id, at, session, space, slot };
            let job = self.new_job(Job::CopyOut(delivery));
            let frame =
                self.index.frame_of(&self.index[page]).expect("a resident page has a frame");
            let frame = self.frames.place(fetch.class, frame);
            let page_bytes = self.spaces.get(space).page_bytes;
            actions.push(Action::CopyOut { job, session, space, slot, frame, page_bytes });
        }
    }

    fn deliver(&mut self, fetch: &mut Fetch, places: &mut Vec<PagePlace>) {
        let slot_bytes = u64::from(self.frames.class(fetch.class).frame_bytes);
        while fetch.delivered < fetch.issued {
            if self.gathering.deliveries_left == 0 {
                // Others have their turn in between.
                return self.gathering.delivering.push(fetch.id);
            }
            let at = fetch.delivered;
            let page = fetch.pages[at as usize];
            if !fetch.is_copy() && self.must_not_reach(fetch, page) {
                return self.truncate(fetch, at, FetchOutcome::Missing);
            }
            if fetch.is_copy() {
                match fetch.slots.get((at - fetch.released) as usize) {
                    Some(&(slot, true)) => {
                        let offset = u64::from(slot.0) * slot_bytes;
                        places.push(PagePlace { part: PagePlace::STAGING, offset });
                    }
                    _ => return,
                }
            } else if self.index[page].dram != Dram::Resident {
                return;
            }
            self.gathering.deliveries_left -= 1;
            fetch.delivered += 1;
            let read = fetch.reads.pop_front().expect("each issued page is noted");
            match fetch.reader {
                Reader::Prefetch => {
                    fetch.released += 1;
                    if !self.hold_for_turn(fetch.id, page) {
                        self.unpin(page);
                    }
                }
                Reader::Lease { mode, .. } => {
                    self.note_used(page);
                    fetch.ssd += u32::from(read);
                    self.stats.delivered_ssd_pages += u64::from(read);
                    self.stats.delivered_dram_pages += u64::from(!read);
                    if mode == Mode::ZeroCopy {
                        let frame = self
                            .index
                            .frame_of(&self.index[page])
                            .expect("a resident page has a frame");
                        let place = self.frames.place(fetch.class, frame);
                        places.push(PagePlace { part: place.part, offset: place.offset });
                        self.note_leased(fetch, at);
                    }
                }
            }
        }
    }

    /// Ends the run before page `limit`: it and those after it will not be delivered.
    pub(crate) fn truncate(&mut self, fetch: &mut Fetch, limit: u32, outcome: FetchOutcome) {
        assert!(fetch.delivered <= limit && limit <= fetch.limit, "only the rest can be cut off");
        let (from, issued, old) = (limit as usize, fetch.issued as usize, fetch.limit as usize);
        let pinned = fetch.pinned();
        let before = pinned.len();
        if let Some(rest) = fetch.rest.take() {
            self.break_off(fetch, &rest);
        }
        if limit <= fetch.copied {
            // It needs no more slots: those given back below are for others.
            self.stop_waiting_for_slot(fetch);
        }
        fetch.issued = fetch.issued.min(limit);
        fetch.limit = limit;
        fetch.outcome = outcome;
        fetch.reads.truncate((fetch.issued - fetch.delivered) as usize);
        self.count_pinned(fetch, before);
        let pins = &fetch.pages[pinned.start.max(from)..pinned.end.max(from)];
        let keeps = &fetch.pages[issued.max(from)..old];
        let pins = pins.iter().map(|page| Grip::Pin(*page));
        self.let_go(fetch.reader.session(), pins.chain(keeps.iter().map(|page| Grip::Keep(*page))));
        while fetch.copied > limit {
            fetch.copied -= 1;
            let (slot, done) = fetch.slots.pop_back().expect("each copied page has a slot");
            // A copy under way gives its slot back when it ends.
            if let (true, Reader::Lease { session, .. }) = (done, fetch.reader) {
                self.free_slot(session, fetch.space, slot);
            }
        }
        if let (true, Reader::Lease { session, .. }) = (limit <= fetch.copied, fetch.reader) {
            // It may have been next in line for a slot that it no longer takes.
            self.wake_for_slot(session, fetch.space);
        }
    }

    fn stop_waiting_for_slot(&mut self, fetch: &mut Fetch) {
        let waits = std::mem::take(&mut fetch.waits_for_slot);
        if let (true, Reader::Lease { session, .. }) = (waits, fetch.reader)
            && let Some(staging) = self.staging_mut(session, fetch.space)
        {
            staging.waiting.retain(|waiting| *waiting != fetch.id);
        }
    }

    /// Ends a fetch that is under way: what was delivered stays leased, the rest is let go.
    pub(crate) fn finish(
        &mut self,
        id: FetchId,
        fetch: &mut Fetch,
        outcome: FetchOutcome,
        actions: &mut Vec<Action>,
    ) {
        self.note_stopped(fetch, false);
        self.truncate(fetch, fetch.delivered, outcome);
        fetch.active = false;
        self.timers.remove(&(fetch.deadline, Timer::Fetch(id)));
        self.end_race(fetch, outcome);
        if std::mem::take(&mut fetch.waits_for_frame) {
            self.count_awaited((fetch.reader, fetch.class), false);
            let state = self.frames.class_mut(fetch.class);
            state.waiting.retain(|claim| *claim != Claim::Read(id));
            self.wake(fetch.class);
        }
        let Reader::Lease { session, lease, .. } = fetch.reader else {
            return;
        };
        if std::mem::take(&mut fetch.waits_for_slot)
            && let Some(staging) = self.staging_mut(session, fetch.space)
        {
            staging.waiting.retain(|waiting| *waiting != id);
        }
        if outcome != FetchOutcome::Complete {
            self.stats.incomplete_fetches += 1;
        }
        let (ready, ssd, outcome) = (fetch.delivered, fetch.ssd, outcome.to_byte());
        let is_open = self.sessions.get(&session).is_some_and(|session| session.open);
        if is_open {
            let end = Reply::FetchEnd(FetchEnd { lease, ready, ssd, outcome });
            actions.extend(fetch.reply(end));
        }
    }

    /// Ends a fetch from outside: its time is over, or nobody listens any more.
    pub(crate) fn stop_fetch(
        &mut self,
        id: FetchId,
        outcome: FetchOutcome,
        actions: &mut Vec<Action>,
    ) {
        let Some(mut fetch) = self.fetches.remove(&id) else {
            return;
        };
        if fetch.active {
            self.finish(id, &mut fetch, outcome, actions);
        }
        let session = fetch.reader.pinning_session();
        self.put_back(id, fetch);
        if let Some(session) = session {
            // It may have stood in line before others.
            self.wake_stopped(session);
        }
    }

    pub(crate) fn abandon_fetch(&mut self, id: FetchId, actions: &mut Vec<Action>) {
        self.stop_fetch(id, FetchOutcome::Released, actions);
    }

    /// Gives back the pages before `upto` that were delivered.
    pub(crate) fn release_pages(&mut self, id: FetchId, upto: u32) {
        let Some(mut fetch) = self.fetches.remove(&id) else {
            return;
        };
        let Reader::Lease { session, mode, .. } = fetch.reader else {
            unreachable!("prefetches are no session's leases")
        };
        let mut slots = Vec::new();
        let upto = fetch.count_before(upto).min(fetch.delivered);
        if fetch.released < upto {
            // Before any frame of it may be free.
            self.note_released(&fetch, upto);
        }
        let (from, before) = (fetch.released, fetch.pinned().len());
        fetch.released = from.max(upto);
        self.count_pinned(&fetch, before);
        let released = from as usize..fetch.released as usize;
        match mode {
            Mode::ZeroCopy => {
                let pins = fetch.pages[released].iter().map(|page| Grip::Pin(*page));
                self.let_go(Some(session), pins);
            }
            Mode::Copy => {
                let given_back = fetch.slots.drain(..released.len());
                slots.extend(given_back.map(|(slot, _)| slot));
            }
        }
        let space = fetch.space;
        self.put_back(id, fetch);
        for slot in slots {
            self.free_slot(session, space, slot);
        }
    }

    /// Ends the lease of a fetch that is no longer under way.
    pub(crate) fn end_lease(&mut self, id: FetchId) {
        self.release_pages(id, u32::MAX);
    }

    pub(crate) fn copied_out(&mut self, delivery: Delivery, ok: bool) {
        let Delivery { page, fetch: id, at, session, space, slot } = delivery;
        self.unbusy(self.class_of(page));
        self.unpin(page);
        let fetch = self.fetches.remove(&id);
        let wanted = |fetch: &Fetch| fetch.active && (fetch.delivered..fetch.copied).contains(&at);
        let Some(mut fetch) = fetch else {
            return self.free_slot(session, space, slot);
        };
        let wanted = wanted(&fetch);
        if wanted && ok {
            fetch.slots[(at - fetch.released) as usize].1 = true;
        } else if wanted {
            self.stats.copy_out_failures += 1;
            self.truncate(&mut fetch, at, FetchOutcome::Full);
        }
        self.fetches.insert(id, fetch);
        if !(wanted && ok) {
            self.free_slot(session, space, slot);
        }
        self.ready.push_back(id);
    }
}
