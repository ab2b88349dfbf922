use crate::admission::Ghosts;
use crate::ahead::Ahead;
use crate::commits::{CommitId, PendingCommit};
use crate::devices::Devices;
use crate::domains::{DomainAt, Domains};
use crate::drains::Drains;
use crate::expected::Expected;
use crate::fetches::{Fetch, FetchId, Reader};
use crate::findings::Findings;
use crate::firsts::Firsts;
use crate::frames::Frames;
use crate::gathering::Gathering;
use crate::heat::LAST_STAMP;
use crate::holds::Hold;
use crate::index::PageIndex;
use crate::jobs::Job;
use crate::lanes::Lanes;
use crate::letting::Letting;
use crate::listed::SegmentNumbers;
use crate::lookups::{PROBES_PER_PAGE, Searching};
use crate::notes::Notes;
use crate::obituaries::Obituaries;
use crate::offering::Offering;
use crate::offers::OpenOffer;
use crate::origins::Users;
use crate::page::PageId;
use crate::purges::Purges;
use crate::reach::Reach;
use crate::restore::Withheld;
use crate::retention::Retention;
use crate::sessions::Session;
use crate::spaces::{ClassId, Space, Spaces};
use crate::stats::{SessionLeases, SpaceInfo, Stats};
use crate::timers::Timer;
use crate::tokens::Tokens;
use crate::waves::Waves;
use crate::wear::Promises;
use crate::{Action, Config, ConfigError, Event, Micros, WriteBudget};
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use undercroft_wire::{
    DomainId, FrameId, HoldId, JobId, MAX_PAGE_BYTES, MIN_PAGE_BYTES, OfferId, Refused,
    RefusedReason, Request, RequestId, SessionId, SpaceDigest, SpaceId, Stamp, frame_bytes,
};

/// Pages that one step looks at for work that would hold everybody up if it were done at once.
pub(crate) const BACKGROUND_PAGES: usize = 256;

/// All decisions of the daemon as a state machine: what happened goes in, what to do comes out.
/// It does no I/O, reads no clock, holds no threads, and the same events give the same actions.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: Config,
    pub(crate) now: Micros,
    /// The newest stamp of all domains.
    pub(crate) newest_stamp: u64,
    pub(crate) last_commit: u64,
    pub(crate) last_fetch: u64,
    pub(crate) last_job: u64,
    pub(crate) last_segment: u64,
    pub(crate) index: PageIndex,
    pub(crate) domains: Domains,
    pub(crate) frames: Frames,
    pub(crate) spaces: Spaces,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) fetches: HashMap<FetchId, Fetch>,
    pub(crate) holds: BTreeMap<HoldId, Hold>,
    pub(crate) offers: BTreeMap<(SessionId, OfferId), OpenOffer>,
    pub(crate) commits: HashMap<CommitId, PendingCommit>,
    pub(crate) jobs: HashMap<JobId, Job>,
    pub(crate) lanes: Lanes,
    pub(crate) timers: BTreeSet<(Micros, Timer)>,
    pub(crate) devices: Devices,
    pub(crate) segments: SegmentNumbers,
    pub(crate) reach: Reach,
    pub(crate) waves: Waves,
    pub(crate) searching: Searching,
    pub(crate) offering: Offering,
    pub(crate) gathering: Gathering,
    pub(crate) letting: Letting,
    pub(crate) users: Users,
    pub(crate) purges: Purges,
    pub(crate) retention: Retention,
    /// Fetches to take further before the step ends.
    pub(crate) ready: VecDeque<FetchId>,
    /// Classes to look at before the step ends.
    pub(crate) hungry: Vec<ClassId>,
    pub(crate) tokens: Tokens,
    pub(crate) drains: Drains,
    pub(crate) notes: Notes,
    pub(crate) firsts: Firsts,
    pub(crate) ahead: Ahead,
    pub(crate) expected: Expected,
    pub(crate) ghosts: Ghosts,
    pub(crate) obituaries: Obituaries,
    pub(crate) findings: Findings,
    pub(crate) promises: Promises,
    /// Frames of an earlier daemon that something may still be written to.
    pub(crate) quarantine: BTreeSet<(ClassId, FrameId)>,
    /// Frames whose pages could not be taken over; while restoring also those that nobody reads.
    pub(crate) withheld: BTreeMap<FrameId, Withheld>,
    /// Which page each frame that was restored so far holds: by frame, as soon as leases come.
    pub(crate) restored_frames: Vec<(FrameId, PageId)>,
    /// Whether all of an earlier daemon was told.
    pub(crate) has_restored: bool,
    pub(crate) stats: Stats,
}

impl Core {
    /// An empty core.
    ///
    /// # Errors
    /// A value of the configuration out of range.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            now: Micros(0),
            newest_stamp: config.first_stamp,
            last_commit: 0,
            last_fetch: 0,
            last_job: 0,
            last_segment: 0,
            index: PageIndex::new(config.limits.max_pages, config.seed, config.policy),
            domains: Domains::new(&config.domains, config.first_stamp),
            frames: Frames::new(config.domains.len(), config.slab_bytes, config.limits.max_parts),
            spaces: Spaces::default(),
            sessions: BTreeMap::new(),
            fetches: HashMap::new(),
            holds: BTreeMap::new(),
            offers: BTreeMap::new(),
            commits: HashMap::new(),
            jobs: HashMap::new(),
            lanes: Lanes::new(config.devices.len(), config.domains.len()),
            timers: BTreeSet::new(),
            devices: Devices::new(&config.devices, config.write_budget),
            segments: SegmentNumbers::default(),
            reach: Reach::default(),
            letting: Letting::default(),
            gathering: Gathering::default(),
            searching: Searching::default(),
            offering: Offering::default(),
            waves: Waves::new(config.domains.len()),
            users: Users::new(config.domains.len()),
            purges: Purges::new(config.purge),
            retention: Retention::new(config.domains.iter().map(|domain| domain.max_age_s)),
            ready: VecDeque::new(),
            hungry: Vec::new(),
            tokens: Tokens::new(config.seed),
            drains: Drains::default(),
            notes: Notes::new(config.notes),
            firsts: Firsts::new(config.firsts),
            ahead: Ahead::new(config.devices.len()),
            expected: Expected::default(),
            ghosts: Ghosts::new(config.admission, config.limits.max_pages),
            obituaries: Obituaries::new(config.explained > 0, config.limits.max_pages),
            findings: Findings::new(config.explained),
            promises: Promises::default(),
            quarantine: BTreeSet::new(),
            withheld: BTreeMap::new(),
            restored_frames: Vec::new(),
            has_restored: false,
            stats: Stats::default(),
            config,
        })
    }

    /// Takes in one event and appends to `actions` what is to be done about it. Time never goes
    /// backwards: a `now` before an earlier one counts as that earlier one.
    pub fn step(&mut self, now: Micros, event: Event<'_>, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.pass_wear();
        self.notes.trim();
        self.firsts.trim();
        self.waves.left = self.config.step_pages;
        self.letting.left = self.config.step_pages;
        self.searching.left = self.config.step_pages.saturating_mul(PROBES_PER_PAGE);
        self.offering.left = self.config.step_pages;
        self.gathering.left = self.config.step_pages;
        self.gathering.deliveries_left = self.config.step_pages;
        self.expire(actions);
        self.deliver_on();
        match event {
            Event::Tick => {}
            Event::PartAdded { part, domain, bytes } => self.part_added(part, domain, bytes),
            Event::RetirePart { part } => self.retire_part(part),
            Event::Purge { purge, scope } => self.purge(purge, scope, actions),
            Event::PurgeOver { purge } => self.purge_over(purge),
            Event::MaxAge { domain, max_age_s } => self.set_max_age(domain, max_age_s),
            Event::DomainLimits { domain, limits } => self.limit_domain(domain, limits),
            Event::Restored(piece) => self.restored(&piece),
            Event::QuarantineOver => self.quarantine_over(),
            Event::SessionOpened { session, domain, process, user, mode } => {
                self.session_opened(session, domain, (process, user), mode);
            }
            Event::SessionClosed { session } => self.session_closed(session, actions),
            Event::ProcessGone { session } => self.process_gone(session, actions),
            Event::SpaceOpened { session, request, domain, digest, page_bytes, slots } => {
                let identity = (domain, digest, page_bytes);
                self.space_opened(session, request, identity, slots, actions);
            }
            Event::Request { session, request, body } => {
                self.request(session, request, body, actions);
            }
            Event::CopiedIn { job, .. }
            | Event::CopiedOut { job, .. }
            | Event::ReadDone { job, .. }
            | Event::Appended { job, .. }
            | Event::Relocated { job, .. }
            | Event::Proved { job, .. } => self.job_ended(job, event, actions),
            Event::SegmentFreed { device, segment, segment_use, free_segments } => {
                self.segment_freed(device, (segment, segment_use), free_segments);
            }
            Event::Recovered { device, records, free_segments, last } => {
                self.recovered(device, records, free_segments, last);
            }
            Event::DeviceHealth { device, health } => self.device_health(device, health),
            Event::DeviceLost { device } => self.device_lost(device),
        }
        self.come_to_rest(actions);
    }

    fn request(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Request<'_>,
        actions: &mut Vec<Action>,
    ) {
        if !self.sessions.get(&session).is_some_and(|session| session.open) {
            return;
        }
        match body {
            Request::Lookup(body) => self.lookup(session, request, body, actions),
            Request::Fetch(body) => self.fetch(session, request, body, actions),
            Request::Release(body) => self.release(session, request, body, actions),
            Request::DropHold(body) => self.drop_hold(session, request, body, actions),
            Request::Offer(body) => self.offer(session, request, body, actions),
            Request::Commit(body) => self.commit(session, request, body, actions),
            Request::Prefetch(body) => self.prefetch(session, request, body, actions),
            Request::Hint(body) => self.hint(session, request, body, actions),
            Request::Give(body) => self.give(session, request, body, actions),
            Request::Take(body) => self.take(session, request, body, actions),
            Request::Missed(body) => self.missed(session, request, body, actions),
            Request::Hello(_)
            | Request::OpenSpace(_)
            | Request::Status
            | Request::Ping
            | Request::PartLetGo(_)
            | Request::Gpu(_)
            | Request::Purge(_)
            | Request::Record
            | Request::Explain(_)
            | Request::TakeOver => {
                let detail = "not a question for the core";
                self.refuse(session, request, RefusedReason::Invalid, detail, actions);
            }
        }
    }

    /// Follows up what the event has set in motion until nothing moves without the world.
    fn come_to_rest(&mut self, actions: &mut Vec<Action>) {
        let mut budget = BACKGROUND_PAGES.min(self.config.step_pages as usize);
        for round in 0_u32.. {
            debug_assert!(round < 1 << 20, "what an event sets in motion comes to rest");
            if let Some(fetch) = self.ready.pop_front() {
                self.progress(fetch, false, actions);
            } else if let Some(class) = self.hungry.pop() {
                self.serve(class, actions);
            } else {
                budget -= self.drain(budget, actions);
                self.let_go_on(actions);
                self.gather_on(actions);
                self.search_on(actions);
                self.offer_on(actions);
                self.bring_on(actions);
                self.let_parts_go(actions);
                self.reclaim(actions);
                self.prove(actions);
                budget -= self.forget_lost(budget);
                budget -= self.forget_over_quota(budget);
                budget -= self.pass_on_reach(budget);
                budget -= self.pass_on_waves(budget);
                budget -= self.sweep(budget, actions);
                budget -= self.age(budget);
                self.hand_on(actions);
                if self.ready.is_empty() && self.hungry.is_empty() {
                    return;
                }
            }
        }
    }

    /// When to send the next [`Event::Tick`]; `None` while nothing waits for time to pass. It is
    /// due already while there is work that no step does all of, as it may be long.
    #[must_use]
    pub fn next_timer(&self) -> Option<Micros> {
        let behind = self.devices.next_to_forget().is_some() || self.is_reach_behind();
        let letting = self.is_letting_go() || self.is_draining();
        let searching = !self.searching.is_empty() || !self.offering.is_empty();
        let looking = self.is_gathering() || self.is_climbing() || searching;
        let forgetting = self.is_purging() || self.is_any_over_quota();
        if behind || self.has_waves() || letting || looking || forgetting {
            return Some(self.now);
        }
        let first = self.timers.first().map(|(due, _)| *due);
        first.into_iter().chain(self.next_aging()).min()
    }

    /// The newest stamp given out so far.
    #[must_use]
    pub fn newest_stamp(&self) -> Stamp {
        Stamp(self.newest_stamp)
    }

    /// A stamp newer than all of the session's domain before. Each domain has its own, so that they tell
    /// nobody what others do.
    pub(crate) fn next_stamp(&mut self, session: SessionId) -> u64 {
        let Some(at) = self.domain_of(session) else {
            return 0;
        };
        self.tick(at);
        let arena_bytes = self.frames.bytes_of(at);
        let domain = self.domains.get_mut(at);
        domain.arena_bytes = arena_bytes;
        domain.last_stamp
    }

    /// The clock of a domain counts requests and the pages they use: what lies between two stamps
    /// says how much of DRAM could have been used meanwhile.
    pub(crate) fn tick(&mut self, at: DomainAt) {
        let domain = self.domains.get_mut(at);
        domain.last_stamp = (domain.last_stamp + 1).min(LAST_STAMP);
        self.newest_stamp = self.newest_stamp.max(domain.last_stamp);
    }

    /// What a client's stamp means: nothing is newer than the newest stamp given out to its domain.
    pub(crate) fn clamp_stamp(&mut self, session: SessionId, stamp: Stamp) -> u64 {
        let newest = self.domain_of(session).map_or(0, |at| self.domains.get(at).last_stamp);
        match stamp {
            Stamp(0) => self.next_stamp(session),
            Stamp(stamp) => stamp.min(newest),
        }
    }

    /// The number of the space `(domain, digest)`, given now if it has none yet. At the limit
    /// it takes the number of a space without pages that nobody has open: open it before
    /// another is interned.
    ///
    /// # Errors
    /// `Busy` when no more spaces can be known, `Invalid` when `page_bytes` is out of range or
    /// not what it was before, `Unknown` when the domain is not configured.
    pub fn intern_space(
        &mut self,
        domain: DomainId,
        digest: SpaceDigest,
        page_bytes: u32,
    ) -> Result<SpaceId, Refused> {
        let refused = |reason, detail: &str| Err(Refused { reason, detail: detail.to_owned() });
        if let Some(space) = self.spaces.find(domain, digest) {
            if self.spaces.get(space).page_bytes != page_bytes {
                let detail = "the space is known with another page size";
                return refused(RefusedReason::Invalid, detail);
            }
            return Ok(space);
        }
        if !(MIN_PAGE_BYTES..=MAX_PAGE_BYTES).contains(&page_bytes) {
            return refused(RefusedReason::Invalid, "the page size is out of range");
        }
        let Some(at) = self.domains.find(domain) else {
            return refused(RefusedReason::Unknown, "the domain is not configured");
        };
        let class = self.frames.class_of(at, frame_bytes(page_bytes));
        let space = Space::new((domain, digest), page_bytes, class);
        let own_limit = self.domains.get(at).config.limits.max_spaces;
        let limits = (own_limit, self.config.limits.max_spaces);
        match self.spaces.insert(space, limits, &mut self.notes) {
            Some((space, replaced)) => {
                if let Some(old) = replaced {
                    self.frames.class_mut(old).spaces -= 1;
                }
                self.frames.class_mut(class).spaces += 1;
                Ok(space)
            }
            None => refused(RefusedReason::Busy, "as many spaces are in use as may be"),
        }
    }

    /// Whether one more session finds room at all.
    #[must_use]
    pub fn has_session_room(&self) -> bool {
        self.sessions.len() < self.config.limits.max_sessions as usize
    }

    /// Whether one more session of the domain finds room. A session opened without is ignored.
    #[must_use]
    pub fn has_session_room_in(&self, domain: DomainId) -> bool {
        let has_room = |at| {
            let domain = self.domains.get(at);
            domain.sessions < domain.config.limits.max_sessions
        };
        self.has_session_room() && self.domains.find(domain).is_some_and(has_room)
    }

    /// Whether `session` has opened `space`.
    #[must_use]
    pub fn is_open(&self, session: SessionId, space: SpaceId) -> bool {
        let session = self.sessions.get(&session);
        session.is_some_and(|session| session.stagings.contains_key(&space))
    }

    /// How much may be written to each SSD.
    #[must_use]
    pub fn write_budget(&self) -> WriteBudget {
        self.config.write_budget
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Pages known in any tier, missing ancestors of known pages included.
    #[must_use]
    pub fn known_pages(&self) -> u64 {
        self.index.len() as u64
    }

    /// All spaces known.
    pub fn spaces(&self) -> impl Iterator<Item = SpaceInfo> + '_ {
        self.spaces.iter()
    }

    /// What `session` holds.
    #[must_use]
    pub fn session_leases(&self, session: SessionId) -> SessionLeases {
        let Some(session) = self.sessions.get(&session) else {
            return SessionLeases::default();
        };
        let held = |fetch: &FetchId| {
            let fetch = &self.fetches[fetch];
            assert!(matches!(fetch.reader, Reader::Lease { .. }), "prefetches are nobody's");
            let pages = u64::from(fetch.delivered - fetch.released);
            (pages, pages * u64::from(self.frames.class(fetch.class).frame_bytes))
        };
        let none = SessionLeases {
            leases: session.leases.len() as u32,
            withheld: session.withheld,
            lingering: !session.open,
            ..SessionLeases::default()
        };
        session.leases.values().map(held).fold(none, |all, (pages, bytes)| SessionLeases {
            pages: all.pages + pages,
            bytes: all.bytes + bytes,
            ..all
        })
    }
}
