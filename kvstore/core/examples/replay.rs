//! Replays a request trace through the core alone, without a daemon or any bytes, and prints
//! the prefix hits: what the policy would do with this traffic.
//!
//! ```sh
//! zstd -dc --long=27 trace.jsonl.zst | cargo run --release -p undercroft-core --example replay -- lru 5 15 5
//! ```
//!
//! The arguments are the policy, and the sizes of DRAM and of each SSD in percent of the trace's distinct blocks.
//! Each line of the trace names its blocks in `hash_ids`.

use std::collections::{HashSet, VecDeque};
use std::io::{BufRead, Error, ErrorKind};
use undercroft_core::{
    Action, AppendOutcome, Config, CopyOutcome, Core, DeviceConfig, Event, Limits, Micros, Policy,
    ProcessId, ReadOutcome,
};
use undercroft_wire::{
    Commit, DeviceId, DomainId, Extent, Fetch, FetchSource, LeaseId, Lookup, Mode, Offer,
    OfferReply, PageKey, PartId, Release, Reply, Request, RequestId, SegmentId, SegmentUse,
    SessionId, SpaceDigest, SpaceId, Stamp,
};

const FRAME: u64 = 4096;
const SLOTS: u32 = 64;
const SEGMENTS: u32 = 66;
const SESSION: SessionId = SessionId(1);

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let usage = || {
        Error::new(ErrorKind::InvalidInput, "usage: replay POLICY DRAM-PERCENT [SSD-PERCENT]...")
    };
    let policy = arguments.next().and_then(|name| name.parse().ok()).ok_or_else(usage)?;
    let mut sizes = arguments.map(|size| size.parse::<u64>());
    let dram = sizes.next().and_then(Result::ok).ok_or_else(usage)?;
    let ssds: Vec<u64> = sizes.collect::<Result<_, _>>().map_err(|_| usage())?;
    let requests = read_trace(std::io::stdin().lock())?;
    let distinct: HashSet<u64> = requests.iter().flatten().copied().collect();
    let of = |percent: u64| distinct.len() as u64 * percent / 100;
    let ssds: Vec<u64> = ssds.into_iter().map(of).filter(|ssd| *ssd > 0).collect();
    let mut replay = Replay::new(policy, of(dram), &ssds);
    let started = std::time::Instant::now();
    for ids in &requests {
        replay.request(ids);
    }
    replay.core.audit();
    replay.print(started.elapsed());
    Ok(())
}

fn read_trace(lines: impl BufRead) -> Result<Vec<Vec<u64>>, Error> {
    let mut requests = Vec::new();
    for line in lines.lines() {
        let line = line?;
        let bad = || Error::new(ErrorKind::InvalidData, "a line without \"hash_ids\": [numbers]");
        let (_, rest) = line.split_once("\"hash_ids\"").ok_or_else(bad)?;
        let (_, rest) = rest.split_once('[').ok_or_else(bad)?;
        let (ids, _) = rest.split_once(']').ok_or_else(bad)?;
        let ids = ids.split(',').map(str::trim).filter(|id| !id.is_empty());
        requests.push(ids.map(|id| id.parse().map_err(|_| bad())).collect::<Result<_, _>>()?);
    }
    Ok(requests)
}

/// A core whose jobs all succeed at once.
struct Replay {
    core: Core,
    space: SpaceId,
    logs: Vec<Log>,
    jobs: VecDeque<Action>,
    reply: Option<Reply>,
    pages: u64,
    hits: u64,
    dram: u64,
    number: u64,
}

/// Segments by number of records only.
struct Log {
    device: DeviceId,
    records: u32,
    free: VecDeque<(u32, u64)>,
    open: (u32, u64, u32),
}

impl Log {
    fn new(device: u8, pages: u64) -> Self {
        let records = pages.div_ceil(u64::from(SEGMENTS) - 2).max(1) as u32;
        Self {
            device: DeviceId(device),
            records,
            free: (0..SEGMENTS).map(|segment| (segment, 1)).collect(),
            open: (0, 0, records),
        }
    }

    fn append(&mut self) -> Option<Extent> {
        if self.open.2 == self.records {
            let (segment, segment_use) = self.free.pop_front()?;
            self.open = (segment, segment_use, 0);
        }
        let (segment, segment_use, record) = self.open;
        self.open.2 += 1;
        let (device, segment) = (self.device, SegmentId(segment));
        Some(Extent { device, segment, segment_use: SegmentUse(segment_use), record })
    }
}

impl Replay {
    fn new(policy: Policy, dram: u64, ssds: &[u64]) -> Self {
        let device = |pages: &u64| DeviceConfig {
            capacity_bytes: pages * FRAME,
            low_water_segments: 1,
            read_bytes_per_s: 1 << 30,
            read_latency_us: 100,
        };
        let config = Config {
            devices: ssds.iter().map(device).collect(),
            policy,
            limits: Limits { max_pages: 1 << 24, ..Limits::default() },
            ..Config::default()
        };
        let mut replay = Self {
            core: Core::new(config).expect("the sizes are in range"),
            space: SpaceId(0),
            logs: (0..).zip(ssds).map(|(device, pages)| Log::new(device, *pages)).collect(),
            jobs: VecDeque::new(),
            reply: None,
            pages: 0,
            hits: 0,
            dram: 0,
            number: 0,
        };
        for device in (0..ssds.len()).map(|device| DeviceId(device as u8)) {
            let free_segments = SEGMENTS;
            replay.step(Event::Recovered { device, records: &[], free_segments, last: true });
        }
        let (process, domain) = (ProcessId { pid: 1, start: 1 }, DomainId::default());
        let (session, mode) = (SESSION, Mode::ZeroCopy);
        replay.step(Event::PartAdded { part: PartId(0), domain, bytes: dram * FRAME });
        replay.step(Event::SessionOpened { session, domain, process, user: 0, mode });
        let (request, page_bytes, slots) = (RequestId(1), FRAME as u32, SLOTS);
        let digest = SpaceDigest([0; 32]);
        replay.step(Event::SpaceOpened { session, request, domain, digest, page_bytes, slots });
        if let Some(Reply::SpaceOpened(opened)) = replay.reply.take() {
            replay.space = opened.space;
        }
        replay
    }

    fn step(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.core.step(self.now(), event, &mut actions);
        for action in actions {
            match action {
                Action::Reply { reply, .. } => self.reply = Some(reply),
                job => self.jobs.push_back(job),
            }
        }
    }

    fn ask(&mut self, body: &Request<'_>) {
        self.step(Event::Request { session: SESSION, request: RequestId(1), body });
        loop {
            if let Some(job) = self.jobs.pop_front() {
                self.end(job);
            } else if self.core.next_timer().is_some_and(|due| due <= self.now()) {
                self.step(Event::Tick);
            } else {
                return;
            }
        }
    }

    fn now(&self) -> Micros {
        Micros(self.number * 1000)
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
            Action::Append { job, device, .. } => {
                let (outcome, free_segments) = self.append(device);
                self.step(Event::Appended { job, outcome, free_segments });
            }
            Action::Relocate { job, extent, .. } => {
                let (outcome, free_segments) = self.append(extent.device);
                self.step(Event::Relocated { job, outcome, free_segments });
            }
            Action::FreeSegment { device, segment, segment_use } => {
                let log = &mut self.logs[usize::from(device.0)];
                log.free.push_back((segment.0, segment_use.0 + 1));
                let free_segments = log.free.len() as u32;
                self.step(Event::SegmentFreed { device, segment, segment_use, free_segments });
            }
            Action::Reply { .. }
            | Action::Prove { .. }
            | Action::PartEmpty { .. }
            | Action::Purged { .. } => {}
        }
    }

    fn append(&mut self, device: DeviceId) -> (AppendOutcome, u32) {
        let log = &mut self.logs[usize::from(device.0)];
        let written = log.append().map(AppendOutcome::Written);
        (written.unwrap_or(AppendOutcome::NoSpace), log.free.len() as u32)
    }

    fn request(&mut self, ids: &[u64]) {
        self.number += 1;
        let keys: Vec<PageKey> = ids.iter().map(|id| key(*id)).collect();
        let (space, spaces, hold_ms) = (self.space, vec![self.space], 0);
        self.ask(&Request::Lookup(Lookup { spaces, keys: keys.as_slice().into(), hold_ms }));
        let Some(Reply::Lookup(found)) = self.reply.take() else {
            return;
        };
        let hits = found.pages as usize;
        self.pages += keys.len() as u64;
        self.hits += u64::from(found.pages);
        self.dram += u64::from(found.dram);
        let (lease, stamp) = (LeaseId(self.number), found.stamp);
        let source = FetchSource::Keys { keys: keys[..hits].into() };
        let deadline_ms = u32::MAX;
        self.ask(&Request::Fetch(Fetch { space, lease, source, stamp, deadline_ms }));
        let (session, upto) = (SESSION, u32::MAX);
        self.ask(&Request::Release(Release { session, lease, upto }));
        self.store(&keys, hits, stamp);
    }

    fn store(&mut self, keys: &[PageKey], first: usize, stamp: Stamp) {
        let (space, mut at) = (self.space, first);
        while at < keys.len() {
            let parent = at.checked_sub(1).map(|above| keys[above]);
            let (first, keys) = (at as u32, keys[at..].into());
            self.ask(&Request::Offer(Offer { space, parent, first, keys, stamp }));
            let Some(Reply::Offer(OfferReply { offer, outcomes, slots })) = self.reply.take()
            else {
                return;
            };
            // Wanted or held already; after those a slot may be missing, or room.
            let settled = outcomes.iter().take_while(|outcome| **outcome < 2).count();
            if settled == 0 {
                return;
            }
            let (filled, returned) = (slots, Vec::new());
            self.ask(&Request::Commit(Commit { space, offer, filled, returned }));
            at += settled;
        }
    }

    fn print(&self, wall: std::time::Duration) {
        let percent = |pages: u64| 100.0 * pages as f64 / self.pages.max(1) as f64;
        let stats = self.core.stats();
        println!("requests            {}", self.number);
        println!("pages               {}", self.pages);
        println!("prefix hits         {} ({:.2} %)", self.hits, percent(self.hits));
        println!("  from DRAM         {} ({:.2} %)", self.dram, percent(self.dram));
        let ssd = self.hits - self.dram;
        println!("  from SSD          {ssd} ({:.2} %)", percent(ssd));
        println!("pages stored        {}", stats.stored);
        println!("pages appended      {}", stats.appended_pages);
        println!("pages re-appended   {}", stats.relocated_pages);
        println!("pages unreachable   {}", self.core.unreachable_pages());
        println!("time                {:.2} s", wall.as_secs_f64());
    }
}

fn key(id: u64) -> PageKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&id.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    PageKey(bytes)
}
