use super::log::{LOW_WATER_SEGMENTS, Log, Place};
use std::collections::VecDeque;
use std::sync::Arc;
use undercroft_core::{
    Action, Admission, AppendOutcome, Config, ConfigError, CopyOutcome, Core, DeviceConfig, Event,
    Limits, Micros, Policy, ProcessId, ReadOutcome, Stats, WriteBudget,
};
use undercroft_wire::{
    Commit, DeviceId, DomainId, Fetch, FetchEnd, FetchSource, JobId, LeaseId, Lookup, LookupReply,
    Mode, Offer, OfferOutcome, OfferReply, PageKey, PartId, Release, Reply, Request, RequestId,
    Rival, SessionId, SpaceDigest, SpaceId, Stamp,
};

/// What the core is told that a page takes: it counts pages, and bytes only as so many times this.
const FRAME: u64 = 4096;
/// Staging, as `bench replay` gives it to a client with pages of 4 KiB.
const SLOTS: u32 = 4096;
/// Entries of the index beside those of the trace's pages.
const SPARE_PAGES: u64 = 64;
const SESSION: SessionId = SessionId(1);
const REQUEST: RequestId = RequestId(1);

/// What tiers a [`CoreReplay`] has, and what it does with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreTiers {
    /// In which order pages leave DRAM.
    pub policy: Policy,
    /// What of them is written to SSD.
    pub admission: Admission,
    /// How much of it may be, thousandths of a page a second: averaged over a minute.
    pub write_millipages_per_s: Option<u64>,
    /// Room in DRAM, pages.
    pub dram_pages: u64,
    /// Room on SSD, pages; 0 for no SSD.
    pub ssd_pages: u64,
    /// Into how many segments the SSD is cut; it has four more, as a daemon's has.
    pub ssd_segments: u32,
}

/// Where a request's leading pages were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CoreHits {
    /// In DRAM.
    pub dram: u32,
    /// On SSD.
    pub ssd: u32,
}

/// The daemon's decisions without the daemon: a core whose copies, reads and writes all succeed at
/// once, asked by one engine as `bench replay --serial` asks. Pages are numbered, as in a
/// [`crate::Trace`].
#[derive(Debug)]
pub struct CoreReplay {
    core: Core,
    now: Micros,
    space: SpaceId,
    log: Option<Log>,
    jobs: VecDeque<Action>,
    /// Empty between steps.
    actions: Vec<Action>,
    answers: Answers,
    lease: LeaseId,
    /// By page number.
    keys: Arc<[PageKey]>,
    /// Of the request under way.
    run: Vec<PageKey>,
}

/// What the core has answered and nobody has looked at yet.
#[derive(Debug, Default)]
struct Answers {
    opened: Option<SpaceId>,
    found: Option<LookupReply>,
    offered: Option<OfferReply>,
    /// Pages of the fetch that are ready to be released.
    ready: Option<u32>,
    ended: Option<FetchEnd>,
}

impl CoreReplay {
    /// An empty cache for a trace whose pages have these keys, by number
    /// ([`replay_keys`](crate::replay_keys)).
    ///
    /// # Errors
    /// More pages than a core can know.
    pub fn new(tiers: &CoreTiers, keys: Arc<[PageKey]>) -> Result<Self, ConfigError> {
        let has_ssd = tiers.ssd_pages > 0;
        let device = DeviceConfig {
            capacity_bytes: tiers.ssd_pages * FRAME,
            low_water_segments: LOW_WATER_SEGMENTS,
            read_bytes_per_s: 1 << 30,
            read_latency_us: 100,
        };
        let bytes = |millipages: u64| (millipages * FRAME / 1000).max(1);
        let bytes_per_s = tiers.write_millipages_per_s.map(bytes);
        let max_pages = u32::try_from(keys.len() as u64 + SPARE_PAGES).unwrap_or(u32::MAX);
        let config = Config {
            devices: has_ssd.then_some(device).into_iter().collect(),
            policy: tiers.policy,
            admission: tiers.admission,
            write_budget: WriteBudget { bytes_per_s, ..WriteBudget::NONE },
            limits: Limits { max_pages, ..Limits::default() },
            ..Config::default()
        };
        let mut replay = Self {
            core: Core::new(config)?,
            now: Micros(0),
            space: SpaceId(0),
            log: has_ssd.then(|| Log::new(DeviceId(0), tiers.ssd_pages, tiers.ssd_segments.into())),
            jobs: VecDeque::new(),
            actions: Vec::new(),
            answers: Answers::default(),
            lease: LeaseId(0),
            keys,
            run: Vec::new(),
        };
        replay.open(tiers.dram_pages);
        Ok(replay)
    }

    fn open(&mut self, dram_pages: u64) {
        if let Some(log) = &self.log {
            let (device, free_segments) = (DeviceId(0), log.free_segments());
            self.step(Event::Recovered { device, records: &[], free_segments, last: true });
        }
        let (process, domain) = (ProcessId { pid: 1, start: 1 }, DomainId::default());
        self.step(Event::PartAdded { part: PartId(0), domain, bytes: dram_pages * FRAME });
        let (session, mode) = (SESSION, Mode::ZeroCopy);
        self.step(Event::SessionOpened { session, domain, process, user: 0, mode });
        let (request, page_bytes, slots) = (REQUEST, FRAME as u32, SLOTS);
        let digest = SpaceDigest([0; 32]);
        self.step(Event::SpaceOpened { session, request, domain, digest, page_bytes, slots });
        self.space = self.answers.opened.take().expect("the first space finds room");
    }

    /// Plays one request that comes at `now`: looks its pages up, fetches what is found and stores
    /// the rest. Returns where they were found.
    ///
    /// # Panics
    /// If it has a page that the trace was not said to have.
    pub fn request(&mut self, now: Micros, pages: &[u32]) -> CoreHits {
        self.let_time_pass(now);
        let mut run = std::mem::take(&mut self.run);
        run.clear();
        run.extend(pages.iter().map(|page| self.keys[*page as usize]));
        let hits = if run.is_empty() { CoreHits::default() } else { self.play(&run) };
        self.run = run;
        hits
    }

    fn play(&mut self, keys: &[PageKey]) -> CoreHits {
        let (spaces, hold_ms) = (vec![self.space], 0);
        self.ask(&Request::Lookup(Lookup {
            spaces,
            keys: keys.into(),
            hold_ms,
            rival: Rival::default(),
        }));
        let found = self.answers.found.take().expect("a lookup is answered");
        let hits = self.fetch(&keys[..found.pages as usize], found.stamp);
        self.store(keys, (hits.dram + hits.ssd) as usize, found.stamp);
        hits
    }

    fn fetch(&mut self, keys: &[PageKey], stamp: Stamp) -> CoreHits {
        if keys.is_empty() {
            return CoreHits::default();
        }
        self.lease.0 += 1;
        let (space, lease, source) =
            (self.space, self.lease, FetchSource::Keys { keys: keys.into() });
        let deadline_ms = u32::MAX;
        self.ask(&Request::Fetch(Fetch {
            space,
            lease,
            source,
            stamp,
            deadline_ms,
            recompute_ns: 0,
        }));
        // Pages are let go as they come: all of them may be more than DRAM has room for.
        while self.answers.ended.is_none()
            && let Some(upto) = self.answers.ready.take()
        {
            self.release(upto);
        }
        self.release(u32::MAX);
        self.answers.ready = None;
        self.answers.ended.take().map_or_else(CoreHits::default, |end| CoreHits {
            dram: end.ready - end.ssd.min(end.ready),
            ssd: end.ssd.min(end.ready),
        })
    }

    fn release(&mut self, upto: u32) {
        let (session, lease) = (SESSION, self.lease);
        self.ask(&Request::Release(Release { session, lease, upto }));
    }

    fn store(&mut self, keys: &[PageKey], first: usize, stamp: Stamp) {
        let (space, mut at) = (self.space, first);
        while at < keys.len() {
            let parent = at.checked_sub(1).map(|above| keys[above]);
            let (first, keys) = (at as u32, keys[at..].into());
            self.ask(&Request::Offer(Offer { space, parent, first, keys, stamp }));
            // None: its parent has left.
            let Some(OfferReply { offer, outcomes, slots }) = self.answers.offered.take() else {
                return;
            };
            let is_settled = |outcome: &&u8| {
                [OfferOutcome::Wanted, OfferOutcome::Held]
                    .map(OfferOutcome::to_byte)
                    .contains(outcome)
            };
            // After these a slot may be missing, or room.
            let settled = outcomes.iter().take_while(is_settled).count();
            if !slots.is_empty() {
                let (filled, returned) = (slots, Vec::new());
                self.ask(&Request::Commit(Commit { space, offer, filled, returned }));
            }
            if settled == 0 {
                return;
            }
            at += settled;
        }
    }

    /// Does what the core waits for time to do, when it is due.
    fn let_time_pass(&mut self, until: Micros) {
        while let Some(due) = self.core.next_timer()
            && due <= until
        {
            self.now = self.now.max(due);
            self.step(Event::Tick);
            self.do_jobs();
        }
        self.now = self.now.max(until);
    }

    fn ask(&mut self, body: &Request<'_>) {
        self.step(Event::Request { session: SESSION, request: REQUEST, body });
        self.do_jobs();
    }

    fn do_jobs(&mut self) {
        loop {
            if let Some(job) = self.jobs.pop_front() {
                self.end(job);
            } else if self.core.next_timer().is_some_and(|due| due <= self.now) {
                self.step(Event::Tick);
            } else if let Some(job) = self.log.as_mut().and_then(Log::give_up) {
                // Nothing is under way that could free a segment.
                self.appended(job, AppendOutcome::NoSpace);
            } else {
                return;
            }
        }
    }

    fn step(&mut self, event: Event<'_>) {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.step(self.now, event, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Reply { reply, .. } => self.answers.take(reply),
                job => self.jobs.push_back(job),
            }
        }
        self.actions = actions;
    }

    fn end(&mut self, job: Action) {
        match job {
            Action::CopyIn { job, .. } => {
                self.step(Event::CopiedIn { job, outcome: CopyOutcome::Ok(0) });
            }
            Action::CopyOut { job, .. } => self.step(Event::CopiedOut { job, ok: true }),
            Action::Read { job, .. } => {
                self.step(Event::ReadDone { job, outcome: ReadOutcome::Ok(0) });
            }
            Action::Append { job, .. } => match self.log().append(job) {
                Place::At(extent) => self.appended(job, AppendOutcome::Written(extent)),
                Place::Waits => {}
                Place::NoSpace => self.appended(job, AppendOutcome::NoSpace),
            },
            Action::Relocate { job, .. } => {
                let placed = self.log().relocate().map(AppendOutcome::Written);
                let outcome = placed.unwrap_or(AppendOutcome::NoSpace);
                let free_segments = self.log().free_segments();
                self.step(Event::Relocated { job, outcome, free_segments });
            }
            Action::FreeSegment { device, segment, segment_use } => {
                self.log().free(segment);
                let free_segments = self.log().free_segments();
                self.step(Event::SegmentFreed { device, segment, segment_use, free_segments });
                while let Some((job, extent)) = self.log().resume() {
                    self.appended(job, AppendOutcome::Written(extent));
                }
            }
            Action::Reply { .. }
            | Action::Prove { .. }
            | Action::PartEmpty { .. }
            | Action::Purged { .. } => {}
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("segments are of an SSD")
    }

    fn appended(&mut self, job: JobId, outcome: AppendOutcome) {
        let free_segments = self.log().free_segments();
        self.step(Event::Appended { job, outcome, free_segments });
    }

    /// What the core counted so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        self.core.stats()
    }

    /// Pages on SSD that no lookup can reach because an ancestor is gone.
    #[must_use]
    pub fn unreachable_pages(&self) -> u64 {
        self.core.unreachable_pages()
    }

    /// Checks the core's whole state, which takes long.
    ///
    /// # Panics
    /// If it is at odds with itself.
    pub fn audit(&self) {
        self.core.audit();
    }
}

impl Answers {
    fn take(&mut self, reply: Reply) {
        match reply {
            Reply::SpaceOpened(opened) => self.opened = Some(opened.space),
            Reply::Lookup(found) => self.found = Some(found),
            Reply::Offer(offered) => self.offered = Some(offered),
            Reply::FetchReady(ready) => self.ready = Some(ready.first + ready.places.len() as u32),
            Reply::FetchEnd(ended) => self.ended = Some(ended),
            _ => {}
        }
    }
}
