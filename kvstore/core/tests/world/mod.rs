//! A daemon around the core without any bytes: memory, staging areas and an SSD that remember
//! which page they hold, so that every promise the core makes can be held against them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod devices;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod restart;
pub(crate) mod state;
pub(crate) mod tokens;

use log::Log;
use memory::{Memory, Part, overlaps, place};
use state::State;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use undercroft_core::{
    Action, Config, Core, Event, FirstPage, FramePlace, Micros, Note, ProcessId,
};
use undercroft_wire::{
    Commit, DeviceId, DomainId, Extent, Fetch, FetchEnd, FetchOutcome, FetchSource, JobId, LeaseId,
    Lookup, LookupReply, Mode, Offer, OfferId, OfferReply, PageIdentity, PageKey, PagePlace,
    PartId, PurgeId, PurgeScope, Release, Reply, Request, RequestId, Rival, SessionId, SlotId,
    SpaceDigest, SpaceId, Stamp,
};

/// A tenant beside the default one.
pub(crate) const OTHER: DomainId = DomainId([2; 16]);

/// Lookups that are remembered with what they came to.
pub(crate) const EXPLAINED: u32 = 8;

/// Steps that nothing takes.
pub(crate) const MANY: u32 = 5_000;

/// What a frame, a slot or a record holds: the checksum that stands for one page.
pub(crate) type Content = u64;

/// A key that names its chain and its depth; key `(0, 1)` and `(1, 1)` may share `(0, 0)` as
/// the caller likes.
pub(crate) fn key(chain: u64, depth: u64) -> PageKey {
    let mut bytes = [0; 32];
    let spread = (chain << 32 | depth).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&spread.to_le_bytes());
    bytes[8..16].copy_from_slice(&chain.to_le_bytes());
    bytes[16..24].copy_from_slice(&depth.to_le_bytes());
    PageKey(bytes)
}

/// A chain of its own.
pub(crate) fn chain(number: u64, length: u64) -> Vec<PageKey> {
    (0..length).map(|depth| key(number, depth)).collect()
}

/// The world with a client, session 1, that has opened a space of pages of 4096 bytes.
pub(crate) fn opened(mut world: World, slots: u32) -> (World, SpaceId) {
    world.open(1, 1, Mode::ZeroCopy);
    let space = world.open_space(1, 1, 4096, slots);
    (world, space)
}

/// What a page of a space must contain.
pub(crate) fn content(domain: DomainId, space: SpaceDigest, key: &PageKey) -> Content {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for byte in domain.0.iter().chain(&space.0).chain(&key.0) {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    sum
}

/// What the page must contain.
pub(crate) fn content_of(page: &PageIdentity) -> Content {
    content(page.domain, page.space, &page.key)
}

/// A space as whoever opened it knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) domain: DomainId,
    pub(crate) digest: SpaceDigest,
    pub(crate) page_bytes: u32,
}

impl Spec {
    pub(crate) fn is_of(&self, page: &PageIdentity) -> bool {
        self.domain == page.domain && self.digest == page.space
    }
}

/// Some processes have one user.
pub(crate) fn user_of(pid: u32) -> u32 {
    1000 + pid % 3
}

pub(crate) fn digest(space: u8) -> SpaceDigest {
    SpaceDigest([space; 32])
}

/// A lease as its holder sees it.
pub(crate) struct HeldLease {
    pub(crate) space: SpaceId,
    pub(crate) keys: Vec<PageKey>,
    /// Pages delivered so far, and which of them are given back.
    pub(crate) places: Vec<PagePlace>,
    pub(crate) released: usize,
    pub(crate) ended: Option<FetchEnd>,
}

pub(crate) struct OpenCommit {
    pub(crate) session: SessionId,
    pub(crate) answered: Option<Vec<u8>>,
}

/// The frame that a job uses.
pub(crate) fn frame_of(job: &Action) -> Option<&FramePlace> {
    match job {
        Action::CopyIn { frame, .. }
        | Action::CopyOut { frame, .. }
        | Action::Append { frame, .. }
        | Action::Read { frame, .. } => Some(frame),
        _ => None,
    }
}

/// A core and the world around it.
pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) now: Micros,
    /// The SSDs, by device number.
    pub(crate) logs: Vec<Log>,
    pub(crate) jobs: BTreeMap<JobId, Action>,
    pub(crate) memory: Memory,
    pub(crate) slots: HashMap<(SessionId, SpaceId, SlotId), Content>,
    pub(crate) spaces: HashMap<SpaceId, Spec>,
    pub(crate) domains: HashMap<SessionId, DomainId>,
    pub(crate) leases: BTreeMap<(SessionId, LeaseId), HeldLease>,
    pub(crate) fetches: HashMap<(SessionId, RequestId), LeaseId>,
    pub(crate) commits: BTreeMap<(SessionId, RequestId), OpenCommit>,
    pub(crate) closed: BTreeSet<SessionId>,
    pub(crate) replies: Vec<(SessionId, RequestId, Reply)>,
    pub(crate) modes: HashMap<SessionId, Mode>,
    pub(crate) processes: HashMap<SessionId, u32>,
    /// When what device was asked to write a page.
    pub(crate) writes: Vec<(Micros, DeviceId)>,
    pub(crate) audits: bool,
    /// What clients say that computing a page costs.
    pub(crate) recompute_ns: u64,
    /// The most notes that one step made.
    pub(crate) most_notes: usize,
    pub(crate) config: Config,
    /// What is remembered of this daemon.
    pub(crate) state: State,
    /// First pages that came and did not go, and in how many spaces.
    pub(crate) firsts: BTreeMap<(DomainId, PageKey), u32>,
    /// Frames that an earlier daemon's reads may still be written to.
    pub(crate) haunted: Vec<FramePlace>,
    /// The daemon dies in its next step, after so many notes of it.
    pub(crate) dies_after: Option<usize>,
    pub(crate) dead: bool,
    pub(crate) next_part: u32,
    /// Purges that were begun and are not over, and what each came to that has ended.
    pub(crate) purging: VecDeque<(PurgeId, PurgeScope)>,
    pub(crate) purged: BTreeMap<PurgeId, u64>,
    next_purge: u32,
    next_lease: u64,
    next_request: u32,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let config = Config { notes: true, firsts: true, explained: EXPLAINED, ..config };
        Self {
            core: Core::new(config.clone()).unwrap(),
            config,
            state: State::default(),
            firsts: BTreeMap::new(),
            haunted: Vec::new(),
            dies_after: None,
            dead: false,
            purging: VecDeque::new(),
            purged: BTreeMap::new(),
            next_purge: 0,
            now: Micros(0),
            logs: Vec::new(),
            jobs: BTreeMap::new(),
            memory: Memory::default(),
            slots: HashMap::new(),
            spaces: HashMap::new(),
            domains: HashMap::new(),
            leases: BTreeMap::new(),
            fetches: HashMap::new(),
            commits: BTreeMap::new(),
            closed: BTreeSet::new(),
            replies: Vec::new(),
            modes: HashMap::new(),
            processes: HashMap::new(),
            writes: Vec::new(),
            audits: true,
            recompute_ns: 0,
            most_notes: 0,
            next_part: 0,
            next_lease: 0,
            next_request: 0,
        }
    }

    /// A world with one part of `frames` frames of 4096 bytes and no SSD.
    pub(crate) fn dram(frames: u64) -> Self {
        Self::with_frames(frames, Config { slab_bytes: 2 * 4096, ..Config::default() })
    }

    /// A world with one part of `frames` frames of 4096 bytes.
    pub(crate) fn with_frames(frames: u64, config: Config) -> Self {
        let mut world = Self::new(config);
        world.add_part(DomainId::default(), frames);
        world
    }

    /// Adds a part of `frames` frames of 4096 bytes to a domain's arena.
    pub(crate) fn add_part(&mut self, domain: DomainId, frames: u64) {
        let (part, bytes) = (PartId(self.next_part), frames * 4096);
        self.next_part += 1;
        self.memory.parts.insert(part, Part { domain, bytes, retired: false });
        self.step(Event::PartAdded { part, domain, bytes });
        assert!(self.core.has_part(part));
    }

    pub(crate) fn step(&mut self, event: Event<'_>) {
        if self.dead {
            return;
        }
        let mut actions = Vec::new();
        self.core.step(self.now, event, &mut actions);
        if let Some(notes) = self.dies_after.take() {
            self.core.drain_notes().take(notes).for_each(|note| self.state.note(note));
            self.dead = true;
            return;
        }
        let mut notes = 0;
        for note in self.core.drain_notes() {
            notes += 1;
            if let Note::Filling { part, .. } = note {
                self.memory.check_placed(part);
            }
            self.state.note(note);
        }
        self.most_notes = self.most_notes.max(notes);
        self.count_firsts();
        if self.audits {
            self.core.audit();
            self.state.check(&self.core);
        }
        for action in actions {
            self.take(action);
        }
    }

    /// Takes in which first pages came and went: it comes to all that are known.
    fn count_firsts(&mut self) {
        for FirstPage { domain, key, came } in self.core.drain_firsts() {
            let count = self.firsts.entry((domain, key)).or_default();
            *count = if came { *count + 1 } else { count.checked_sub(1).expect("it came before") };
            if *count == 0 {
                self.firsts.remove(&(domain, key));
            }
        }
        if self.audits {
            let mut known = BTreeMap::new();
            for FirstPage { domain, key, .. } in self.core.first_pages() {
                *known.entry((domain, key)).or_default() += 1;
            }
            assert_eq!(self.firsts, known, "first pages are told of as they come and go");
        }
    }

    fn take(&mut self, action: Action) {
        self.check_asked(&action);
        if let Action::Append { device, .. } = &action {
            self.writes.push((self.now, *device));
        } else if let Action::Relocate { extent, .. } = &action {
            self.writes.push((self.now, extent.device));
        }
        match &action {
            Action::Reply { session, request, reply } => {
                assert!(!self.closed.contains(session), "a closed session is told nothing");
                self.note_reply(*session, *request, reply);
                self.replies.push((*session, *request, reply.clone()));
            }
            Action::CopyIn { job, space, frame, .. } => {
                self.claim(frame, self.spaces[space].domain);
                self.jobs.insert(*job, action);
            }
            Action::Read { job, identity, frame, .. } => {
                self.claim(frame, identity.domain);
                self.jobs.insert(*job, action);
            }
            Action::CopyOut { job, frame, .. } => {
                let held = self.memory.held(place(frame));
                assert!(held.is_some(), "only whole pages are delivered");
                self.jobs.insert(*job, action);
            }
            Action::Append { job, frame, identity, payload_crc, .. } => {
                let held = self.memory.held(place(frame)).expect("only whole pages are demoted");
                assert_eq!(held, content_of(identity), "the named page");
                assert_eq!(held, *payload_crc, "the checksum born with the page");
                self.jobs.insert(*job, action);
            }
            Action::Relocate { job, extent, identity, .. }
            | Action::Prove { job, extent, identity } => {
                let record = self.log(extent.device).record(*extent).unwrap_or(*identity);
                assert_eq!(record, *identity, "a record is moved as what it is");
                self.jobs.insert(*job, action);
            }
            Action::PartEmpty { part } => self.check_empty(*part),
            Action::Purged { purge, pages, .. } => {
                assert!(self.purged.insert(*purge, *pages).is_none(), "a purge ends once");
            }
            Action::FreeSegment { device, segment, segment_use } => {
                self.give_up(*device, *segment, *segment_use);
            }
        }
    }

    /// Has pages forgotten; says how many there were.
    pub(crate) fn purge(&mut self, scope: PurgeScope) -> u64 {
        let purge = self.begin_purge(scope);
        while !self.purging.is_empty() {
            self.step(Event::Tick);
            self.end_purges();
        }
        self.purged[&purge]
    }

    /// From here on none of them is found.
    pub(crate) fn begin_purge(&mut self, scope: PurgeScope) -> PurgeId {
        self.next_purge += 1;
        let purge = PurgeId(self.next_purge);
        self.purging.push_back((purge, scope));
        self.step(Event::Purge { purge, scope });
        purge
    }

    /// The newest purge that is over.
    pub(crate) fn over(&self) -> PurgeId {
        let waiting = self.purging.front().map_or(self.next_purge + 1, |(purge, _)| purge.0);
        PurgeId(waiting - 1)
    }

    /// Writes down, for good, what has come to an end.
    pub(crate) fn end_purges(&mut self) {
        while let Some((purge, scope)) = self.purging.front().copied()
            && self.purged.contains_key(&purge)
        {
            self.purging.pop_front();
            for log in &mut self.logs {
                log.purges.push((scope, purge));
            }
            self.step(Event::PurgeOver { purge });
        }
    }

    /// Has a part retire.
    pub(crate) fn retire(&mut self, part: PartId) {
        self.memory.parts.get_mut(&part).unwrap().retired = true;
        self.step(Event::RetirePart { part });
    }

    /// Nobody uses any frame of a part.
    fn check_empty(&mut self, part: PartId) {
        assert!(!self.state.has_part(part), "nothing is remembered of an empty part");
        let mut places = self.leases.values().flat_map(|lease| &lease.places[lease.released..]);
        assert!(!places.any(|place| place.part == part), "nobody leases a frame of it");
        let used = |job: &Action| frame_of(job).is_some_and(|frame| frame.part == part);
        assert!(!self.jobs.values().any(used), "no job uses a frame of it");
        let haunted = self.haunted.iter().any(|frame| frame.part == part);
        assert!(!haunted, "nothing may land in it any more");
        self.memory.remove(part);
    }

    /// A frame is about to be overwritten: nobody may be using it.
    fn claim(&mut self, frame: &FramePlace, domain: DomainId) {
        for lease in self.leases.values() {
            let bytes = u64::from(self.spaces[&lease.space].page_bytes);
            for place in &lease.places[lease.released..] {
                let at = (place.part, place.offset);
                let leased = place.part != PagePlace::STAGING && overlaps(frame, at, bytes);
                assert!(!leased, "a leased frame keeps its bytes");
            }
        }
        for job in self.jobs.values() {
            if let Some(used) = frame_of(job) {
                let shared = overlaps(frame, place(used), used.bytes.into());
                assert!(!shared, "a frame in use by a job is not overwritten");
            }
        }
        let haunted = |old: &FramePlace| overlaps(frame, place(old), old.bytes.into());
        assert!(!self.haunted.iter().any(haunted), "a frame in quarantine is left alone");
        self.memory.clear(frame, domain);
    }

    fn note_reply(&mut self, session: SessionId, request: RequestId, reply: &Reply) {
        match reply {
            Reply::FetchReady(ready) => {
                let copy = self.modes[&session] == Mode::Copy;
                let lease = self.leases.get_mut(&(session, ready.lease)).unwrap();
                assert!(lease.ended.is_none(), "nothing is delivered after the end");
                assert_eq!(ready.first as usize, lease.places.len(), "delivered in order");
                for place in &ready.places {
                    let wanted = &lease.keys[lease.places.len()];
                    let spec = self.spaces[&lease.space];
                    let held = if copy {
                        assert_eq!(place.part, PagePlace::STAGING);
                        let slot = place.offset / u64::from(spec.page_bytes.next_multiple_of(4096));
                        self.slots[&(session, lease.space, SlotId(slot as u32))]
                    } else {
                        let held = self.memory.held((place.part, place.offset));
                        held.expect("only whole pages are delivered")
                    };
                    let named = content(spec.domain, spec.digest, wanted);
                    assert_eq!(held, named, "the page that was asked for");
                    lease.places.push(*place);
                }
            }
            Reply::FetchEnd(end) if end.outcome != FetchOutcome::Invalid.to_byte() => {
                let lease = self.leases.get_mut(&(session, end.lease)).unwrap();
                assert!(lease.ended.is_none(), "a fetch ends once");
                assert_eq!(end.ready as usize, lease.places.len());
                let complete = end.outcome == FetchOutcome::Complete.to_byte();
                assert_eq!(complete, lease.places.len() == lease.keys.len());
                lease.ended = Some(*end);
            }
            Reply::Commit(reply) => {
                let commit = self.commits.get_mut(&(session, request)).unwrap();
                assert!(commit.answered.is_none(), "a commit is answered once");
                commit.answered = Some(reply.outcomes.clone());
            }
            _ => {}
        }
    }

    pub(crate) fn open(&mut self, session: u64, pid: u32, mode: Mode) {
        self.open_in(DomainId::default(), session, pid, mode);
    }

    /// Opens a session of a domain.
    pub(crate) fn open_in(&mut self, domain: DomainId, session: u64, pid: u32, mode: Mode) {
        let session = SessionId(session);
        self.domains.insert(session, domain);
        self.modes.insert(session, mode);
        self.processes.insert(session, pid);
        let process = ProcessId { pid, start: 1 };
        self.state.sessions.insert(session, (process, domain));
        self.step(Event::SessionOpened { session, domain, process, user: user_of(pid), mode });
    }

    /// Opens space number `space` of pages of `page_bytes` for a session.
    pub(crate) fn open_space(
        &mut self,
        session: u64,
        space: u8,
        page_bytes: u32,
        slots: u32,
    ) -> SpaceId {
        let (session, digest) = (SessionId(session), digest(space));
        let domain = self.domains[&session];
        let id = self.core.intern_space(domain, digest, page_bytes).unwrap();
        let request = self.request_id();
        self.step(Event::SpaceOpened { session, request, domain, digest, page_bytes, slots });
        self.spaces.insert(id, Spec { domain, digest, page_bytes });
        id
    }

    pub(crate) fn next_lease(&mut self) -> u64 {
        self.next_lease += 1;
        self.next_lease
    }

    pub(crate) fn request_id(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Sends a request and returns what was said to it at once, if anything.
    pub(crate) fn ask(&mut self, session: u64, body: &Request<'_>) -> Option<Reply> {
        let request = self.request_id();
        self.ask_as(session, request, body)
    }

    pub(crate) fn ask_as(
        &mut self,
        session: u64,
        request: RequestId,
        body: &Request<'_>,
    ) -> Option<Reply> {
        let session = SessionId(session);
        let before = self.replies.len();
        self.step(Event::Request { session, request, body });
        // As long as that takes, the daemon reads no more of the session.
        let mut ticks = 0;
        while self.core.is_session_busy(session) && !self.dead {
            self.step(Event::Tick);
            ticks += 1;
            assert!(ticks < MANY, "a request is answered some time");
        }
        let new = self.replies[before..].iter();
        let mut mine = new.filter(|(to, about, _)| *to == session && *about == request);
        mine.next().map(|(_, _, reply)| reply.clone())
    }

    pub(crate) fn lookup(&mut self, session: u64, space: SpaceId, keys: &[PageKey]) -> LookupReply {
        self.lookup_hold(session, &[space], keys, 0)
    }

    pub(crate) fn lookup_hold(
        &mut self,
        session: u64,
        spaces: &[SpaceId],
        keys: &[PageKey],
        hold_ms: u32,
    ) -> LookupReply {
        let readable = self.readable(spaces, keys);
        let spaces = spaces.to_vec();
        let rival = Rival { recompute_ns: self.recompute_ns, ..Rival::default() };
        let request = Request::Lookup(Lookup { spaces, keys: keys.into(), hold_ms, rival });
        match self.ask(session, &request) {
            Some(Reply::Lookup(reply)) => {
                assert!(reply.present <= readable, "a page is reported that nobody can read");
                assert!(reply.pages.max(reply.worth) <= reply.present, "{reply:?}");
                reply
            }
            other => panic!("a lookup is answered at once, not with {other:?}"),
        }
    }

    pub(crate) fn offer(
        &mut self,
        session: u64,
        space: SpaceId,
        above: Option<PageKey>,
        first: u32,
        keys: &[PageKey],
        stamp: Stamp,
    ) -> Option<OfferReply> {
        let parent = above;
        let request = Request::Offer(Offer { space, parent, first, keys: keys.into(), stamp });
        match self.ask(session, &request) {
            Some(Reply::Offer(reply)) => {
                let wanted = keys.iter().zip(&reply.outcomes).filter(|(_, outcome)| **outcome == 0);
                for ((key, _), slot) in wanted.zip(&reply.slots) {
                    let spec = self.spaces[&space];
                    let filled = content(spec.domain, spec.digest, key);
                    self.slots.insert((SessionId(session), space, *slot), filled);
                }
                Some(reply)
            }
            _ => None,
        }
    }

    pub(crate) fn commit(
        &mut self,
        session: u64,
        space: SpaceId,
        offer: OfferId,
        filled: &[SlotId],
        returned: &[SlotId],
    ) -> RequestId {
        let request = self.request_id();
        let commit = OpenCommit { session: SessionId(session), answered: None };
        self.commits.insert((SessionId(session), request), commit);
        let (filled, returned) = (filled.to_vec(), returned.to_vec());
        let body = Request::Commit(Commit { space, offer, filled, returned });
        self.ask_as(session, request, &body);
        request
    }

    pub(crate) fn fetch(
        &mut self,
        session: u64,
        lease: u64,
        space: SpaceId,
        keys: &[PageKey],
        stamp: Stamp,
        deadline_ms: u32,
    ) {
        let source = FetchSource::Keys { keys: keys.into() };
        self.fetch_from(session, lease, space, (keys, source), stamp, deadline_ms);
    }

    pub(crate) fn fetch_from(
        &mut self,
        session: u64,
        lease: u64,
        space: SpaceId,
        (keys, source): (&[PageKey], FetchSource<'_>),
        stamp: Stamp,
        deadline_ms: u32,
    ) {
        let lease = LeaseId(lease);
        let held =
            HeldLease { space, keys: keys.to_vec(), places: Vec::new(), released: 0, ended: None };
        self.leases.insert((SessionId(session), lease), held);
        let recompute_ns = self.recompute_ns;
        let body = Fetch { space, lease, source, stamp, deadline_ms, recompute_ns };
        let body = Request::Fetch(body);
        self.ask(session, &body);
    }

    pub(crate) fn lease(&self, session: u64, lease: u64) -> &HeldLease {
        &self.leases[&(SessionId(session), LeaseId(lease))]
    }

    /// How a fetch ended.
    pub(crate) fn outcome(&self, session: u64, lease: u64) -> FetchOutcome {
        let end = self.lease(session, lease).ended.expect("the fetch has ended");
        FetchOutcome::from_byte(end.outcome).unwrap()
    }

    pub(crate) fn release(&mut self, session: u64, lease: u64, upto: u32) {
        self.release_from(session, session, lease, upto);
    }

    /// Releases a lease of `owner` from `session`, which must be of the same process.
    pub(crate) fn release_from(&mut self, session: u64, owner: u64, lease: u64, upto: u32) {
        let (owner, lease) = (SessionId(owner), LeaseId(lease));
        if let Some(held) = self.leases.get_mut(&(owner, lease)) {
            let upto = (upto as usize).min(held.places.len());
            held.released = held.released.max(upto);
        }
        let body = Request::Release(Release { session: owner, lease, upto });
        self.ask(session, &body);
        if upto == u32::MAX {
            self.leases.remove(&(owner, lease));
        }
    }

    /// Lets time pass up to `now` and sends the ticks that fall due.
    pub(crate) fn advance(&mut self, now: Micros) {
        self.now = now;
        let mut ticks = 0;
        while self.core.next_timer().is_some_and(|due| due <= now) {
            self.step(Event::Tick);
            ticks += 1;
            assert!(ticks < MANY, "what there is to do comes to an end");
        }
    }

    pub(crate) fn close(&mut self, session: u64) {
        // What is due now is still said.
        self.step(Event::Tick);
        let session = SessionId(session);
        self.closed.insert(session);
        self.step(Event::SessionClosed { session });
        let unanswered = |commit: &OpenCommit| commit.session == session;
        self.commits.retain(|_, commit| !unanswered(commit));
        if self.modes[&session] == Mode::Copy {
            self.leases.retain(|(owner, _), _| *owner != session);
        }
    }

    /// The end of a session that the core may not know.
    pub(crate) fn kill_quietly(&mut self, session: SessionId) {
        self.step(Event::ProcessGone { session });
    }

    pub(crate) fn kill(&mut self, session: u64) {
        // What is due now is still said.
        self.step(Event::Tick);
        let session = SessionId(session);
        self.closed.insert(session);
        // From here on its frames may be used again.
        self.leases.retain(|(owner, _), _| *owner != session);
        self.commits.retain(|(owner, _), _| *owner != session);
        self.step(Event::ProcessGone { session });
    }

    /// Stores `keys` of a chain from `first` on, over as many offers as its slots demand.
    /// Returns how many were stored.
    pub(crate) fn store(
        &mut self,
        session: u64,
        space: SpaceId,
        chain: &[PageKey],
        first: usize,
        stamp: Stamp,
    ) -> usize {
        let (mut at, mut stored) = (first, 0);
        while at < chain.len() {
            let above = at.checked_sub(1).map(|above| chain[above]);
            let Some(reply) = self.offer(session, space, above, at as u32, &chain[at..], stamp)
            else {
                return stored;
            };
            let settled = reply.outcomes.iter().take_while(|outcome| **outcome <= 1).count();
            if !reply.slots.is_empty() {
                let request = self.commit(session, space, reply.offer, &reply.slots, &[]);
                self.finish_jobs();
                let commit = self.commits.remove(&(SessionId(session), request)).unwrap();
                let outcomes = commit.answered.expect("a commit is answered at rest");
                stored += outcomes.iter().filter(|outcome| **outcome == 0).count();
                if outcomes.iter().any(|outcome| *outcome != 0) {
                    return stored;
                }
            }
            at += settled;
            let retry = reply.outcomes.get(settled) == Some(&2);
            if !retry {
                break;
            }
        }
        stored
    }

    pub(crate) fn extent_of_job(&self, at: usize) -> Option<Extent> {
        match self.jobs.values().nth(at) {
            Some(Action::Read { extent, .. }) => Some(*extent),
            _ => None,
        }
    }
}
