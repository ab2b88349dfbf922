//! Clients of the daemon: what they have, and what they do next.

use super::content::Book;
use super::plan::Plan;
use super::report::Count;
use super::world::{Frame, World};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use undercroft_core::{Event, ProcessId};
use undercroft_wire::{
    Commit, DomainId, DropHold, Fetch, FetchEnd, FetchSource, Hint, HintKind, HoldId, LeaseId,
    Lookup, Mode, Offer, OfferId, PageIdentity, PageKey, PagePlace, Prefetch, Release, Reply,
    Request, RequestId, Rival, SessionId, SlotId, SpaceId, Stamp,
};

/// A connected session.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) process: u32,
    pub(super) mode: Mode,
    pub(super) domain: DomainId,
    /// The spaces of its domain: number, and place in the book.
    pub(super) spaces: Vec<(SpaceId, usize)>,
}

/// A lease as its holder sees it.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) space: SpaceId,
    pub(super) mode: Mode,
    pub(super) pages: Vec<PageIdentity>,
    /// Where pages were delivered, in order.
    pub(super) places: Vec<PagePlace>,
    pub(super) released: usize,
    pub(super) ended: Option<FetchEnd>,
    /// When it must have ended, microseconds.
    pub(super) deadline: u64,
    /// Whether its session is connected.
    pub(super) open: bool,
}

#[derive(Debug)]
struct OpenOffer {
    session: SessionId,
    space: SpaceId,
    offer: OfferId,
    slots: Vec<SlotId>,
}

#[derive(Debug)]
struct OpenHold {
    session: SessionId,
    space: (SpaceId, usize),
    hold: HoldId,
    keys: Vec<PageKey>,
}

/// All clients of one life of the daemon.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) sessions: BTreeMap<SessionId, Client>,
    /// Sessions whose socket is closed and whose process lives.
    pub(super) lingering: BTreeSet<SessionId>,
    pub(super) leases: BTreeMap<(SessionId, LeaseId), Lease>,
    /// Commits and whether they were answered.
    pub(super) commits: BTreeMap<(SessionId, RequestId), bool>,
    pub(super) spaces: HashMap<SpaceId, usize>,
    pub(super) replies: Vec<(SessionId, RequestId, Reply)>,
    offers: Vec<OpenOffer>,
    holds: Vec<OpenHold>,
    stamp: Stamp,
    next_session: u64,
    next_request: u32,
    next_lease: u64,
    /// Things still to be done.
    left: u32,
}

impl Clients {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            sessions: BTreeMap::new(),
            lingering: BTreeSet::new(),
            leases: BTreeMap::new(),
            commits: BTreeMap::new(),
            spaces: HashMap::new(),
            replies: Vec::new(),
            offers: Vec::new(),
            holds: Vec::new(),
            stamp: Stamp(0),
            next_session: 1,
            next_request: 1,
            next_lease: 1,
            left: plan.actions.end,
        }
    }

    /// Checks that nobody reads what a frame that is about to be filled `shares`.
    ///
    /// # Panics
    /// Somebody does.
    pub(super) fn check_unleased(&self, book: &Book, shares: impl Fn(Frame, u32) -> bool) {
        for ((session, lease), held) in &self.leases {
            let mut places = held.places[held.released..].iter();
            let bytes = book.spaces[self.spaces[&held.space]].page_bytes;
            let shared = |place: &PagePlace| shares((place.part.0, place.offset), bytes);
            let leased = held.mode == Mode::ZeroCopy && places.any(shared);
            assert!(!leased, "a frame under lease {lease} of session {session} is filled");
        }
    }

    /// Checks that nobody reads a slot that is about to be filled.
    ///
    /// # Panics
    /// Somebody does.
    pub(super) fn check_unused_slot(&self, session: SessionId, space: SpaceId, offset: u64) {
        for ((owner, lease), held) in &self.leases {
            let mine = *owner == session && held.space == space && held.mode == Mode::Copy;
            let mut places = held.places[held.released..].iter();
            let used = mine && held.open && places.any(|place| place.offset == offset);
            assert!(!used, "a slot under lease {lease} of session {session} is used again");
        }
    }
}

impl World {
    /// Connects the sessions there are at first.
    pub(super) fn connect_all(&mut self) {
        self.clients.left = self.rng.u32(self.plan.actions.clone());
        for (process, mode, domain) in self.plan.sessions.clone() {
            self.connect(process, mode, domain);
        }
    }

    fn connect(&mut self, process: u32, mode: Mode, domain: DomainId) {
        let session = SessionId(self.clients.next_session);
        self.clients.next_session += 1;
        let id = ProcessId { pid: process, start: 1 };
        self.step(Event::SessionOpened { session, domain, process: id, user: process % 3, mode });
        let mut client = Client { process, mode, domain, spaces: Vec::new() };
        let slots = self.plan.slots;
        for (at, spec) in self.book.spaces.clone().into_iter().enumerate() {
            if spec.domain != domain {
                continue;
            }
            let (digest, page_bytes) = (spec.digest, spec.page_bytes);
            let space = self.core.intern_space(domain, digest, page_bytes);
            let space = space.expect("there are few spaces");
            client.spaces.push((space, at));
            self.clients.spaces.insert(space, at);
            let request = self.request_id();
            self.step(Event::SpaceOpened { session, request, domain, digest, page_bytes, slots });
        }
        self.clients.sessions.insert(session, client);
    }

    fn request_id(&mut self) -> RequestId {
        self.clients.next_request += 1;
        RequestId(self.clients.next_request)
    }

    /// Sends a request; what was said to it as soon as all it asks for was looked at, if anything.
    fn ask(&mut self, session: SessionId, body: &Request<'_>) -> Option<Reply> {
        let request = self.request_id();
        self.ask_as(session, request, body)
    }

    fn ask_as(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Request<'_>,
    ) -> Option<Reply> {
        self.step(Event::Request { session, request, body });
        // As long as that takes, the daemon reads no more of the session; others have their turns.
        while self.core.is_session_busy(session) {
            if self.rng.u8(..8) == 0 {
                self.release_some();
            }
            self.step(Event::Tick);
        }
        let mut replies = self.clients.replies.iter();
        let mine = replies.position(|(to, about, _)| (*to, *about) == (session, request));
        mine.map(|at| self.clients.replies.swap_remove(at).2)
    }

    /// Clients do something, and say when they will do the next.
    pub(super) fn act(&mut self) {
        self.clients.replies.clear();
        self.clients.left = self.clients.left.saturating_sub(1);
        let pause = match self.rng.u8(..40) {
            0 => self.rng.u64(..3_000_000),
            1..8 => self.rng.u64(..30_000),
            _ => self.rng.u64(..500),
        };
        self.act_at = (self.clients.left > 0).then_some(self.now + pause);
        if self.rng.u32(..1000) < self.plan.partings {
            return self.part();
        }
        // Engines give back what they have copied: frames that are leased for long are no test of
        // those who want them.
        for _ in self.plan.leases..self.clients.leases.len() {
            self.release_some();
        }
        let Some((session, client)) = self.any_session() else {
            return;
        };
        let (space, at) = client.spaces[self.rng.usize(..client.spaces.len())];
        let keys = self.book.chain(self.rng.u64(..self.book.chains));
        let upto = self.rng.usize(1..=keys.len());
        let keys = &keys[..upto];
        match self.rng.u8(..64) {
            0..6 => self.look_up(session, &client, keys),
            6..14 => self.fetch(session, (space, at), keys),
            14..16 => self.fetch_held(),
            16..24 => self.release_some(),
            24..30 => self.offer(session, (space, at), keys),
            30..36 => self.commit_some(),
            36..38 => {
                let ttl_ms = self.rng.u32(..200);
                self.ask(
                    session,
                    &Request::Prefetch(Prefetch { space, keys: keys.into(), ttl_ms }),
                );
            }
            38 => {
                let ms = self.rng.u32(..200);
                let kinds = [
                    HintKind::Active,
                    HintKind::Ended,
                    HintKind::Demote,
                    HintKind::Paused,
                    HintKind::ExpectedInMs(ms),
                    HintKind::PinMs(ms),
                ];
                let kind = kinds[self.rng.usize(..kinds.len())];
                self.ask(session, &Request::Hint(Hint { space, keys: keys.into(), kind }));
            }
            39 => self.drop_hold(),
            40 => self.trespass(session, &client, keys),
            41 => self.purge(),
            _ => self.turn_over(session, (space, at), keys),
        }
    }

    fn any_session(&mut self) -> Option<(SessionId, Client)> {
        let count = self.clients.sessions.len();
        let at = self.rng.usize(..count.max(1));
        self.clients.sessions.iter().nth(at).map(|(id, client)| (*id, client.clone()))
    }

    fn look_up(&mut self, session: SessionId, client: &Client, keys: &[PageKey]) {
        let both = self.rng.u8(..4) == 0;
        let spaces = if both { &client.spaces[..] } else { &client.spaces[..1] };
        let hold_ms = if self.rng.bool() { self.rng.u32(..100) } else { 0 };
        let ids = spaces.iter().map(|(space, _)| *space).collect();
        let request = Request::Lookup(Lookup {
            spaces: ids,
            keys: keys.into(),
            hold_ms,
            rival: Rival::default(),
        });
        // A page may leave in the very step in which it was counted.
        let identity = |world: &Self, at: usize, key: &PageKey| {
            world.book.identity(&world.book.spaces[at], *key)
        };
        let countable =
            |key: &&PageKey| spaces.iter().all(|(_, at)| self.may_count(&identity(self, *at, key)));
        let countable = keys.iter().take_while(countable).count();
        let Some(Reply::Lookup(reply)) = self.ask(session, &request) else {
            panic!("a lookup is answered when all was looked at")
        };
        assert!(reply.pages == reply.dram + reply.ssd && reply.pages as usize <= keys.len());
        let counted = reply.pages as usize;
        assert!(counted <= countable, "a lookup counts a page that has no proof: {reply:?}");
        for (_, at) in spaces {
            for key in &keys[..counted] {
                let page = self.book.identity(&self.book.spaces[*at], *key);
                self.check_there(&page);
            }
        }
        self.clients.stamp = reply.stamp;
        self.report.more(Count::FoundOnSsd, u64::from(reply.ssd > 0));
        if let Some(hold) = reply.hold {
            let keys = keys[..reply.pages as usize].to_vec();
            let space = spaces[self.rng.usize(..spaces.len())];
            self.clients.holds.push(OpenHold { session, space, hold, keys });
        }
    }

    fn stamp(&mut self) -> Stamp {
        if self.rng.u8(..3) == 0 { Stamp(0) } else { self.clients.stamp }
    }

    fn fetch(&mut self, session: SessionId, space: (SpaceId, usize), keys: &[PageKey]) {
        let source = FetchSource::Keys { keys: keys.into() };
        self.fetch_from(session, space, keys, source);
    }

    fn fetch_from(
        &mut self,
        session: SessionId,
        (space, at): (SpaceId, usize),
        keys: &[PageKey],
        source: FetchSource<'_>,
    ) {
        let lease = LeaseId(self.clients.next_lease);
        self.clients.next_lease += 1;
        let deadline_ms = if self.rng.bool() { self.rng.u32(..50) } else { self.rng.u32(..3000) };
        let spec = self.book.spaces[at];
        let pages = keys.iter().map(|key| self.book.identity(&spec, *key)).collect();
        let held = Lease {
            space,
            mode: self.clients.sessions[&session].mode,
            pages,
            places: Vec::new(),
            released: 0,
            ended: None,
            deadline: self.now + u64::from(deadline_ms) * 1000,
            open: true,
        };
        self.clients.leases.insert((session, lease), held);
        let stamp = self.stamp();
        let body =
            Request::Fetch(Fetch { space, lease, source, stamp, deadline_ms, recompute_ns: 0 });
        self.ask(session, &body);
    }

    fn fetch_held(&mut self) {
        let holds = &self.clients.holds;
        if holds.is_empty() {
            return;
        }
        let held = &holds[self.rng.usize(..holds.len())];
        let (session, space, hold) = (held.session, held.space, held.hold);
        let first = self.rng.usize(..held.keys.len());
        let keys = held.keys[first..self.rng.usize(first..held.keys.len()) + 1].to_vec();
        if !self.clients.sessions.contains_key(&session) {
            return;
        }
        let (first, count) = (first as u32, keys.len() as u32);
        self.fetch_from(session, space, &keys, FetchSource::Hold { hold, first, count });
    }

    fn drop_hold(&mut self) {
        let count = self.clients.holds.len();
        if count > 0 {
            let OpenHold { session, hold, .. } =
                self.clients.holds.swap_remove(self.rng.usize(..count));
            if self.clients.sessions.contains_key(&session) {
                self.ask(session, &Request::DropHold(DropHold { hold }));
            }
        }
    }

    fn release_some(&mut self) {
        let count = self.clients.leases.len();
        if count == 0 {
            return;
        }
        let at = self.rng.usize(..count);
        let (owner, lease) = *self.clients.leases.keys().nth(at).expect("it is below the count");
        let all = self.rng.bool();
        let upto = if all { u32::MAX } else { self.rng.u32(..8) };
        // Another session of the same process may do it.
        let sessions = &self.clients.sessions;
        let Some(session) = sessions.contains_key(&owner).then_some(owner) else {
            return;
        };
        self.release(session, owner, lease, upto);
    }

    /// Releases the first pages of a lease, which were right until now.
    fn release(&mut self, session: SessionId, owner: SessionId, lease: LeaseId, upto: u32) {
        let held = &self.clients.leases[&(owner, lease)];
        let end = (upto as usize).min(held.places.len()).max(held.released);
        let given = held.pages.iter().zip(&held.places);
        let given: Vec<_> = given.take(end).skip(held.released).map(|(p, at)| (*p, *at)).collect();
        if held.mode == Mode::ZeroCopy {
            given.iter().for_each(|(page, at)| self.check_page(page, at));
        }
        let held = self.clients.leases.get_mut(&(owner, lease)).expect("found above");
        held.released = end;
        if upto == u32::MAX {
            held.released = held.places.len();
        }
        self.ask(session, &Request::Release(Release { session: owner, lease, upto }));
        let Some(held) = self.clients.leases.get(&(owner, lease)) else {
            return;
        };
        assert!(upto != u32::MAX || held.ended.is_some(), "a lease that is released has ended");
        if held.ended.is_some() && held.released == held.places.len() {
            self.clients.leases.remove(&(owner, lease));
        }
    }

    fn offer(&mut self, session: SessionId, (space, at): (SpaceId, usize), keys: &[PageKey]) {
        let from = if self.rng.u8(..3) == 0 { self.rng.usize(..keys.len()) } else { 0 };
        let parent = from.checked_sub(1).map(|above| keys[above]);
        let keys = &keys[from..];
        let (first, stamp) = (from as u32, self.stamp());
        let body = Request::Offer(Offer { space, parent, first, keys: keys.into(), stamp });
        let Some(Reply::Offer(reply)) = self.ask(session, &body) else {
            return;
        };
        let spec = self.book.spaces[at];
        let wanted = keys.iter().zip(&reply.outcomes).filter(|(_, outcome)| **outcome == 0);
        for ((key, _), slot) in wanted.zip(&reply.slots) {
            let slot_bytes = undercroft_wire::frame_bytes(spec.page_bytes);
            let offset = u64::from(slot.0) * u64::from(slot_bytes);
            self.clients.check_unused_slot(session, space, offset);
            let page = self.book.identity(&spec, *key);
            self.filled.insert((session, space, *slot), page);
        }
        if !reply.slots.is_empty() {
            let (offer, slots) = (reply.offer, reply.slots);
            self.clients.offers.push(OpenOffer { session, space, offer, slots });
        }
    }

    fn commit_some(&mut self) {
        let count = self.clients.offers.len();
        if count == 0 {
            return;
        }
        let OpenOffer { session, space, offer, slots } =
            self.clients.offers.swap_remove(self.rng.usize(..count));
        if !self.clients.sessions.contains_key(&session) {
            return;
        }
        let mut filled = slots;
        let back = usize::from(self.rng.u8(..4) == 0);
        let returned = filled.split_off(filled.len() - back);
        if self.rng.u8(..8) == 0 {
            // Slots nobody assigned, or assigned twice.
            filled.extend([SlotId(self.rng.u32(..8)), SlotId(1000)]);
        }
        let request = self.request_id();
        self.clients.commits.insert((session, request), false);
        let body = Request::Commit(Commit { space, offer, filled, returned });
        self.ask_as(session, request, &body);
    }

    /// Loads what there is of a chain and stores the rest, as an engine does.
    fn turn_over(&mut self, session: SessionId, space: (SpaceId, usize), keys: &[PageKey]) {
        let spaces = vec![space.0];
        let request = Request::Lookup(Lookup {
            spaces,
            keys: keys.into(),
            hold_ms: 0,
            rival: Rival::default(),
        });
        let Some(Reply::Lookup(found)) = self.ask(session, &request) else {
            panic!("a lookup is answered when all was looked at")
        };
        let found = found.pages as usize;
        if found > 0 {
            self.fetch(session, space, &keys[..found]);
        }
        self.offer(session, space, keys);
        self.commit_some();
    }

    /// Asks for a space that the session has not opened.
    fn trespass(&mut self, session: SessionId, client: &Client, keys: &[PageKey]) {
        let foreign = |space: &&SpaceId| client.spaces.iter().all(|(own, _)| own != *space);
        let mut all: Vec<SpaceId> = self.clients.spaces.keys().copied().collect();
        all.sort_unstable();
        let Some(space) = all.iter().find(foreign).copied() else {
            return;
        };
        let request = Request::Lookup(Lookup {
            spaces: vec![space],
            keys: keys.into(),
            hold_ms: 0,
            rival: Rival::default(),
        });
        let reply = self.ask(session, &request);
        assert!(matches!(reply, Some(Reply::Refused(_))), "another domain's pages: {reply:?}");
    }

    /// A session or its process ends, and another one takes its place.
    fn part(&mut self) {
        if self.rng.u8(..4) == 0 && !self.clients.lingering.is_empty() {
            let session = self.clients.lingering.pop_first().expect("it is not empty");
            return self.bury(session);
        }
        let Some((session, client)) = self.any_session() else {
            return;
        };
        self.clients.sessions.remove(&session);
        if self.rng.bool() {
            self.step(Event::SessionClosed { session });
            self.clients.lingering.insert(session);
            self.close_leases(session);
        } else {
            self.bury(session);
        }
        self.connect(client.process, client.mode, client.domain);
    }

    /// The process of a session is gone: nobody reads its frames any more.
    pub(super) fn bury(&mut self, session: SessionId) {
        self.clients.leases.retain(|(owner, _), _| *owner != session);
        self.clients.commits.retain(|(owner, _), _| *owner != session);
        self.step(Event::ProcessGone { session });
    }

    /// The socket is closed: what was delivered is read still, no more comes.
    fn close_leases(&mut self, session: SessionId) {
        self.clients.commits.retain(|(owner, _), _| *owner != session);
        for ((owner, _), lease) in &mut self.clients.leases {
            lease.open &= *owner != session;
        }
        // In copy mode the slots went with the socket.
        let gone = |owner: SessionId, lease: &Lease| owner == session && lease.mode == Mode::Copy;
        self.clients.leases.retain(|(owner, _), lease| !gone(*owner, lease));
    }
}
