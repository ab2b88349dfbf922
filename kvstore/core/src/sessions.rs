use crate::domains::DomainAt;
use crate::fetches::FetchId;
use crate::letting::Grip;
use crate::notes::Note;
use crate::page::PageId;
use crate::pinning::Pinning;
use crate::{Action, Core, ProcessId};
use std::collections::{BTreeMap, VecDeque};
use undercroft_wire::{
    DomainId, LeaseId, Mode, OfferId, Refused, RefusedReason, Reply, RequestId, SessionId, SlotId,
    SpaceDigest, SpaceId, SpaceOpened,
};

/// One connected process, or what is left of it while its leases are held.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) domain: DomainAt,
    pub(crate) process: ProcessId,
    /// The user who writes what it stores.
    pub(crate) user: u32,
    /// That user's number, once it was given a slot.
    pub(crate) writer: Option<u16>,
    pub(crate) mode: Mode,
    /// False once the socket is closed.
    pub(crate) open: bool,
    /// Whether an earlier daemon had it.
    pub(crate) restored: bool,
    /// Frames kept for it whose pages are not known any more.
    pub(crate) withheld: u64,
    pub(crate) stagings: BTreeMap<SpaceId, Staging>,
    pub(crate) leases: BTreeMap<LeaseId, FetchId>,
    /// Offers of it that were given slots.
    pub(crate) last_offer: u64,
    /// Pages named by all its leases.
    pub(crate) leased_pages: u32,
    pub(crate) pinning: Pinning,
}

impl Session {
    fn new(domain: DomainAt, (process, user): (ProcessId, u32), mode: Mode) -> Self {
        Self {
            domain,
            process,
            user,
            writer: None,
            mode,
            open: true,
            restored: false,
            withheld: 0,
            stagings: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_offer: 0,
            leased_pages: 0,
            pinning: Pinning::default(),
        }
    }

    /// One of an earlier daemon, that only holds leases.
    pub(crate) fn restored(domain: DomainAt, process: ProcessId) -> Self {
        Self { open: false, restored: true, ..Self::new(domain, (process, 0), Mode::ZeroCopy) }
    }
}

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Free,
    /// Waits for the client to fill it.
    Assigned {
        offer: OfferId,
        page: PageId,
    },
    /// Was offered for so long that its page is no longer waited for. The client may still be
    /// writing to it.
    Overdue(OfferId),
    /// Filled; waits for a frame or is being copied into one.
    Committed,
    /// Holds a page delivered in copy mode, or is about to.
    Delivering,
}

/// A slot that was taken out of an offer's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// In time, for this page.
    Page(PageId),
    /// Nobody waits for its page any more.
    Late,
    /// It was not in them.
    Others,
}

/// A session's staging area for one space: its free slots are the session's credits.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) slots: Vec<Slot>,
    pub(crate) free: Vec<SlotId>,
    /// Fetches in copy mode that wait for a slot.
    pub(crate) waiting: VecDeque<FetchId>,
}

impl Staging {
    fn new(slots: u32) -> Self {
        Self {
            slots: vec![Slot::Free; slots as usize],
            free: (0..slots).rev().map(SlotId).collect(),
            waiting: VecDeque::new(),
        }
    }

    pub(crate) fn take(&mut self, used_as: Slot) -> Option<SlotId> {
        let slot = self.free.pop()?;
        self.slots[slot.0 as usize] = used_as;
        Some(slot)
    }

    /// Takes the slot out of an offer's hands.
    pub(crate) fn commit(&mut self, slot: SlotId, offer: OfferId) -> Taken {
        let Some(state) = self.slots.get_mut(slot.0 as usize) else {
            return Taken::Others;
        };
        match *state {
            Slot::Assigned { offer: assigned, page } if assigned == offer => {
                *state = Slot::Committed;
                Taken::Page(page)
            }
            Slot::Overdue(assigned) if assigned == offer => {
                *state = Slot::Committed;
                Taken::Late
            }
            _ => Taken::Others,
        }
    }

    /// The offer has had its time: returns the pages of its slots.
    pub(crate) fn overdue(&mut self, offer: OfferId) -> Vec<PageId> {
        let mut pages = Vec::new();
        for state in &mut self.slots {
            if let Slot::Assigned { offer: assigned, page } = *state
                && assigned == offer
            {
                *state = Slot::Overdue(offer);
                pages.push(page);
            }
        }
        pages
    }
}

impl Core {
    pub(crate) fn session_opened(
        &mut self,
        id: SessionId,
        domain: DomainId,
        (process, user): (ProcessId, u32),
        mode: Mode,
    ) {
        let has_room = self.has_session_room_in(domain) && !self.sessions.contains_key(&id);
        let Some(domain) = self.domains.find(domain).filter(|_| has_room) else {
            return;
        };
        self.domains.get_mut(domain).sessions += 1;
        self.sessions.insert(id, Session::new(domain, (process, user), mode));
    }

    pub(crate) fn space_opened(
        &mut self,
        session: SessionId,
        request: RequestId,
        (domain, digest, page_bytes): (DomainId, SpaceDigest, u32),
        slots: u32,
        actions: &mut Vec<Action>,
    ) {
        let own = self.domain_of(session).map(|at| self.domains.get(at).config.id);
        if own != Some(domain) {
            let detail = "the space is another domain's, or the session is not open";
            return self.refuse(session, request, RefusedReason::Invalid, detail, actions);
        }
        let space = match self.intern_space(domain, digest, page_bytes) {
            Ok(space) => space,
            Err(refused) => {
                let reply = Reply::Refused(refused);
                actions.push(Action::Reply { session, request, reply });
                return;
            }
        };
        let known = self.sessions.get_mut(&session).filter(|session| session.open);
        let Some(state) = known.filter(|state| !state.stagings.contains_key(&space)) else {
            let detail = "the space is open already, or the session is not";
            return self.refuse(session, request, RefusedReason::Invalid, detail, actions);
        };
        state.stagings.insert(space, Staging::new(slots));
        let entry = self.spaces.get_mut(space);
        entry.opened += 1;
        let slot_bytes = self.frames.class(entry.class).frame_bytes;
        let reply = Reply::SpaceOpened(SpaceOpened { space, slots, slot_bytes });
        actions.push(Action::Reply { session, request, reply });
    }

    /// The socket is gone: no more replies, no more slots.
    pub(crate) fn session_closed(&mut self, id: SessionId, actions: &mut Vec<Action>) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.open) else {
            return;
        };
        session.open = false;
        let stagings = std::mem::take(&mut session.stagings);
        let leases: Vec<FetchId> = session.leases.values().copied().collect();
        let copy_mode = session.mode == Mode::Copy;
        self.drop_claims_of(id);
        self.drop_searches_of(id);
        self.offering.forget(id);
        for (space, staging) in stagings {
            self.spaces.get_mut(space).opened -= 1;
            let assigned = staging.slots.iter().filter_map(|slot| match slot {
                Slot::Assigned { page, .. } => Some(Grip::Offered(*page)),
                _ => None,
            });
            let assigned: Vec<Grip> = assigned.collect();
            self.stats.returned += assigned.len() as u64;
            self.let_go(Some(id), assigned.into_iter());
        }
        self.end_offers_of(id);
        self.commits.retain(|_, commit| commit.session != id);
        let holds = self.holds.iter().filter(|(_, hold)| hold.session == id);
        for hold in holds.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_hold(hold);
        }
        for fetch in leases {
            self.abandon_fetch(fetch, actions);
            if copy_mode {
                // What it was given lies in its own staging area: no frame is read any more.
                self.end_lease(fetch);
            }
        }
        self.forget_session_if_done(id);
    }

    pub(crate) fn process_gone(&mut self, id: SessionId, actions: &mut Vec<Action>) {
        self.session_closed(id, actions);
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        for fetch in session.leases.values().copied().collect::<Vec<_>>() {
            self.end_lease(fetch);
        }
        self.end_withholding(id);
        self.forget_session_if_done(id);
    }

    pub(crate) fn forget_session_if_done(&mut self, id: SessionId) {
        let done =
            |session: &Session| !session.open && session.leases.is_empty() && session.withheld == 0;
        if let Some(domain) =
            self.sessions.get(&id).filter(|session| done(session)).map(|s| s.domain)
        {
            self.sessions.remove(&id);
            self.domains.get_mut(domain).sessions -= 1;
            self.notes.add(|| Note::SessionGone { session: id });
        }
    }

    pub(crate) fn staging_mut(
        &mut self,
        session: SessionId,
        space: SpaceId,
    ) -> Option<&mut Staging> {
        self.sessions.get_mut(&session)?.stagings.get_mut(&space)
    }

    /// Gives a slot back; a slot of a session that is gone needs no giving back.
    pub(crate) fn free_slot(&mut self, session: SessionId, space: SpaceId, slot: SlotId) {
        let Some(staging) = self.staging_mut(session, space) else {
            return;
        };
        let state = &mut staging.slots[slot.0 as usize];
        assert_ne!(*state, Slot::Free, "a slot is freed once");
        *state = Slot::Free;
        staging.free.push(slot);
        self.wake_for_slot(session, space);
    }

    /// Has a fetch that waits for a slot look again, if one is free.
    pub(crate) fn wake_for_slot(&mut self, session: SessionId, space: SpaceId) {
        let staging = self.staging_mut(session, space);
        let Some(staging) = staging.filter(|staging| !staging.free.is_empty()) else {
            return;
        };
        if let Some(id) = staging.waiting.pop_front() {
            let fetch = self.fetches.get_mut(&id);
            let fetch = fetch.expect("a fetch that waits is under way");
            fetch.waits_for_slot = false;
            self.ready.push_back(id);
        }
    }

    pub(crate) fn refuse(
        &mut self,
        session: SessionId,
        request: RequestId,
        reason: RefusedReason,
        detail: &str,
        actions: &mut Vec<Action>,
    ) {
        if reason == RefusedReason::Busy {
            self.stats.refused_busy += 1;
        }
        let reply = Reply::Refused(Refused { reason, detail: detail.to_owned() });
        actions.push(Action::Reply { session, request, reply });
    }
}
