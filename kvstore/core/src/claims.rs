use crate::commits::CommitId;
use crate::devices::DeviceSet;
use crate::fetches::FetchId;
use crate::jobs::Job;
use crate::lanes::LaneAt;
use crate::letting::Grip;
use crate::order::OrderKey;
use crate::page::{Dram, Mark, OnSsd, PageId};
use crate::spaces::ClassId;
use crate::{Action, Core};
use std::collections::VecDeque;
use undercroft_wire::{
    CommitOutcome, DeviceId, FrameId, MissCause, PageIdentity, SessionId, SlotId, SpaceId,
};

/// A committed slot on its way into a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filling {
    pub(crate) commit: CommitId,
    /// Position among the commit's filled slots.
    pub(crate) at: u32,
    pub(crate) page: PageId,
    pub(crate) session: SessionId,
    /// The number of the session's user.
    pub(crate) writer: u16,
    pub(crate) space: SpaceId,
    pub(crate) slot: SlotId,
}

/// Somebody who waits for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    Commit(Filling),
    /// A fetch whose next page must be read from SSD.
    Read(FetchId),
}

/// What for a frame is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A page to be stored, standing here in the eviction order.
    Store(OrderKey),
    Read,
    /// A page that nobody waits for, standing here in the eviction order.
    Prefetch(OrderKey),
    /// A page for a turn that is expected.
    Turn,
}

/// Whether a frame can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    Frame(FrameId),
    /// Something under way may free one.
    Wait,
    /// Nothing under way will free one, or everything there is worth more.
    Full,
}

/// At most one in so many of a class's frames is written ahead of need, and one at least.
const AHEAD_SHARE: u32 = 8;

impl Core {
    /// A free frame, evicting the coldest page for it if need be. Where no SSD takes that one, a
    /// page colder than everything in DRAM gets none: that is what makes storing page by page end
    /// in the same state as storing everything and cutting back.
    ///
    /// Whoever is told to wait waits for copy workers, for readers, or for a device that answers:
    /// pages being written to one that does not are in no eviction order, and its jobs do not
    /// make a class busy. What was waited for when it stopped answering is looked at again then.
    pub(crate) fn claim_frame(
        &mut self,
        class: ClassId,
        purpose: Purpose,
        actions: &mut Vec<Action>,
    ) -> Claimed {
        loop {
            if let Some(frame) = self.frames.take(class, &mut self.notes) {
                self.wake(class);
                return Claimed::Frame(frame);
            }
            self.drain_colder(class, actions);
            if self.frames.has_available(class, 1) {
                continue;
            }
            let state = self.frames.class(class);
            let Some(coldest) = state.order.coldest() else {
                // Nothing under way will free one.
                let waits = state.busy == 0 && matches!(purpose, Purpose::Store(_) | Purpose::Read);
                if waits && self.yield_turn(class) && !self.frames.class(class).order.is_empty() {
                    continue;
                }
                let state = self.frames.class(class);
                let hopeless = match purpose {
                    Purpose::Store(_) => state.busy == 0,
                    // A lease may be released at any time; only no frames at all is hopeless.
                    Purpose::Read | Purpose::Prefetch(_) => state.total == 0,
                    Purpose::Turn => true,
                };
                return if hopeless { Claimed::Full } else { Claimed::Wait };
            };
            let victim = coldest.page();
            match (self.index[victim].on_ssd(), purpose) {
                // It would be the next to go.
                (_, Purpose::Prefetch(key)) if coldest > key => return Claimed::Full,
                (_, Purpose::Store(key)) if coldest > key && self.is_last_of(victim) => {
                    return Claimed::Full;
                }
                (OnSsd::Writing, _) => return Claimed::Wait,
                _ if self.is_demotable(victim) && self.is_admitted(victim) => {
                    self.demote(victim, actions);
                    return Claimed::Wait;
                }
                _ => self.refuse_or_evict(victim),
            }
        }
    }

    /// Whether a page standing at `key` could get a frame, as far as can be told now.
    pub(crate) fn may_fit(&self, class: ClassId, key: OrderKey) -> bool {
        let state = self.frames.class(class);
        if self.frames.has_available(class, 1) {
            return true;
        }
        match state.order.coldest() {
            None => state.busy > 0 || self.holds_for_turns(class),
            Some(coldest) => coldest < key || !self.is_last_of(coldest.page()),
        }
    }

    /// Whether the page is lost when it leaves DRAM: what is worth less does not displace it. Where no
    /// SSD takes appends what has a record stays, too, as it could not be written again.
    fn is_last_of(&self, id: PageId) -> bool {
        if !self.devices.take_appends() {
            return true;
        }
        let page = &self.index[id];
        let written = page.on_ssd() == OnSsd::Writing || self.counts_on_ssd(page);
        !(written || self.is_demotable(id) && self.is_admitted(id))
    }

    /// Serves those who wait for a frame of the class, in order, then sees to it that the next
    /// victims are on SSD already.
    pub(crate) fn serve(&mut self, class: ClassId, actions: &mut Vec<Action>) {
        self.frames.class_mut(class).hungry = false;
        if std::mem::take(&mut self.frames.class_mut(class).starved) {
            self.drain_colder(class, actions);
        }
        while let Some(claim) = self.frames.class(class).waiting.front().copied() {
            match claim {
                Claim::Read(fetch) => {
                    self.frames.class_mut(class).waiting.pop_front();
                    if let Some(fetch) = self.fetches.get_mut(&fetch) {
                        fetch.waits_for_frame = false;
                        let waiter = (fetch.reader, fetch.class);
                        self.count_awaited(waiter, false);
                    }
                    self.progress(fetch, true, actions);
                    let still = self.fetches.get(&fetch).is_some_and(|f| f.waits_for_frame);
                    if still {
                        self.fail_hopeless_commits(class, actions);
                        break;
                    }
                }
                Claim::Commit(filling) => {
                    if !self.serve_commit(class, filling, actions) {
                        break;
                    }
                }
            }
        }
        self.demote_ahead(class, actions);
    }

    /// Serves the commit at the head of the queue; false if it must wait on.
    fn serve_commit(
        &mut self,
        class: ClassId,
        filling: Filling,
        actions: &mut Vec<Action>,
    ) -> bool {
        let page = filling.page;
        let claimed = if self.is_parent_alive(page) {
            let stands = self.index.order_key(page);
            let key = self.bar(class).map_or(stands, |bar| bar.min(stands));
            self.claim_frame(class, Purpose::Store(key), actions)
        } else {
            self.frames.class_mut(class).waiting.pop_front();
            self.drop_offered(page);
            self.settle_slot(filling, CommitOutcome::Invalid, actions);
            return true;
        };
        match claimed {
            Claimed::Wait => return false,
            Claimed::Full => {
                self.frames.class_mut(class).waiting.pop_front();
                self.drop_offered(page);
                self.settle_slot(filling, CommitOutcome::Full, actions);
            }
            Claimed::Frame(frame) => {
                self.frames.class_mut(class).waiting.pop_front();
                self.start_copy_in(filling, frame, actions);
            }
        }
        true
    }

    /// The fetch at the head waits for a lease to be released, which may take for ever: commits
    /// behind it that nothing under way can help are told so.
    fn fail_hopeless_commits(&mut self, class: ClassId, actions: &mut Vec<Action>) {
        let state = self.frames.class_mut(class);
        if state.busy > 0 || !state.order.is_empty() {
            return;
        }
        let (commits, reads) = std::mem::take(&mut state.waiting)
            .into_iter()
            .partition(|claim| matches!(claim, Claim::Commit(_)));
        state.waiting = reads;
        for claim in commits {
            if let Claim::Commit(filling) = claim {
                self.drop_offered(filling.page);
                self.settle_slot(filling, CommitOutcome::Full, actions);
            }
        }
    }

    fn start_copy_in(&mut self, filling: Filling, frame: FrameId, actions: &mut Vec<Action>) {
        let page = &self.index[filling.page];
        assert_eq!(page.dram, Dram::Offered, "a committed slot's page is offered");
        self.index.set_frame(filling.page, frame, Dram::Filling);
        self.sign(filling.page, filling.writer);
        let class = self.class_of(filling.page);
        self.frames.class_mut(class).busy += 1;
        self.note_filling(class, frame);
        let page_bytes = self.spaces.get(filling.space).page_bytes;
        let job = self.new_job(Job::CopyIn(filling));
        let Filling { session, space, slot, .. } = filling;
        let frame = self.frames.place(class, frame);
        actions.push(Action::CopyIn { job, session, space, slot, frame, page_bytes });
    }

    /// Sends the coldest pages of a nearly full class to SSD before their frames are needed:
    /// as many as configured, and one for everybody who waits for a frame.
    fn demote_ahead(&mut self, class: ClassId, actions: &mut Vec<Action>) {
        if !self.devices.take_appends() {
            return;
        }
        // Running far ahead in a small tier would write the heads of runs before their tails, and
        // reclaim would then find parents in older segments than their children.
        let share = (self.frames.class(class).total / AHEAD_SHARE).max(1);
        let ahead = self.config.demote_ahead.min(share) as usize;
        let target = ahead + self.frames.class(class).waiting.len();
        if self.frames.has_available(class, target) {
            return;
        }
        while let Some(key) = self.frames.class_mut(class).order.advance(&self.index, target) {
            if self.is_demotable(key.page()) && self.is_admitted(key.page()) {
                self.demote(key.page(), actions);
            }
        }
    }

    /// Takes out of DRAM what is on an SSD, or what none is to take.
    pub(crate) fn refuse_or_evict(&mut self, id: PageId) {
        let cause = if self.is_demotable(id) {
            if self.index.keeps(&self.index[id]) > 0 {
                // Somebody holds it, and it cannot be paid for: it stays.
                self.index[id].set(Mark::AppendRefused, true);
                return self.settle(id);
            }
            let over_budget = self.is_worth_writing(id);
            self.note_left(id, false);
            if over_budget { MissCause::OverBudget } else { MissCause::NotAdmitted }
        } else if self.index[id].is(Mark::AppendRefused) {
            MissCause::NotWritten
        } else {
            MissCause::Evicted
        };
        self.evict(id, cause);
    }

    /// Has a demotable page written to the SSD that is best for it.
    pub(crate) fn demote(&mut self, id: PageId, actions: &mut Vec<Action>) {
        self.note_left(id, true);
        self.promise_before(id);
        let spent = self.spent_devices(id);
        if self.index[id].has_record() {
            // It does not count, and a page has one record.
            self.stats.ssd_forgotten_copies += 1;
            self.leave_ssd(id);
        }
        let device = self.devices.to_append_to(spent);
        let device = device.expect("a page is admitted while a device takes appends of it");
        self.start_append(id, device, spent, actions);
    }

    pub(crate) fn start_append(
        &mut self,
        id: PageId,
        device: DeviceId,
        refused: DeviceSet,
        actions: &mut Vec<Action>,
    ) {
        let identity = self.identity(id);
        let class = self.class_of(id);
        let page = &mut self.index[id];
        assert_eq!(page.dram, Dram::Resident, "only resident pages are demoted");
        assert_eq!(page.on_ssd(), OnSsd::None, "a page is written once");
        page.set_writing(device);
        let page = &self.index[id];
        let payload_crc = self.index.crc_of(page);
        let frame = self.index.frame_of(page).expect("a resident page has a frame");
        self.frames.class_mut(class).busy += 1;
        self.load(device, self.frame_bytes(class));
        self.spend(id, device);
        let job = self.new_job(Job::Append { page: id, device, refused });
        let frame = self.frames.place(class, frame);
        let origin = self.origin(&self.index[id]);
        let (lane, domain) = (LaneAt::Writes(device), self.frames.class(class).domain);
        let action = Action::Append { job, device, frame, identity, origin, payload_crc };
        self.hand_in(lane, domain, (job, self.frame_bytes(class)), action, actions);
    }

    /// What a record of the page must prove.
    pub(crate) fn identity(&self, id: PageId) -> PageIdentity {
        let page = &self.index[id];
        let space = self.spaces.get(page.space);
        PageIdentity {
            domain: space.domain,
            space: space.digest,
            key: page.key,
            parent: page.parent.map(|parent| self.index[parent].key),
            depth: page.depth,
            page_bytes: space.page_bytes,
        }
    }

    /// Withdraws what a session's commits wait for: its slots are gone.
    pub(crate) fn drop_claims_of(&mut self, id: SessionId) {
        let classes: Vec<ClassId> = self.frames.classes().map(|(class, _)| class).collect();
        for class in classes {
            let waiting = std::mem::take(&mut self.frames.class_mut(class).waiting);
            let (gone, stay): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(
                |claim| matches!(claim, Claim::Commit(filling) if filling.session == id),
            );
            self.frames.class_mut(class).waiting = stay;
            let offered = |claim| match claim {
                Claim::Commit(filling) => Some(Grip::Offered(filling.page)),
                Claim::Read(_) => None,
            };
            self.let_go(Some(id), gone.into_iter().filter_map(offered));
            self.wake(class);
        }
    }
}
