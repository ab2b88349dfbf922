use super::ahead::{Ahead, Times};
use super::options::Checked;
use super::space::Content;
use super::step::{Place, Step};
use super::tally::{Line, Tally};
use crate::{BenchError, Trace};
use indicatif::ProgressBar;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, Found, LookupOptions, MissReason, SpaceHandle, StoreOptions,
    StoreRun, Wait,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};
use undercroft_wire::{HintKind, PageKey};

const GREETING: Duration = Duration::from_secs(5);
const LOOKUP_DEADLINE: Duration = Duration::from_secs(2);
const MOVE_DEADLINE: Duration = Duration::from_secs(30);
/// How long what was found stays while other clients run.
const HOLD: Duration = Duration::from_secs(30);
/// What an engine would recompute a missed request in, at least: without a daemon, requests do not
/// rush by.
const RECOMPUTE: Duration = Duration::from_millis(100);
/// Device memory of a client, about: longer requests are moved in several pieces.
const DEVICE_BYTES: u64 = 64 << 20;

/// What all workers of a replay share.
pub(super) struct Shared<'a> {
    pub(super) trace: &'a Trace,
    pub(super) content: &'a Content,
    pub(super) checked: Checked,
    pub(super) next: AtomicUsize,
    pub(super) stop: AtomicBool,
    /// Serial replays: held during a request, so that clients take turns in file order.
    pub(super) turn: Mutex<()>,
    /// Where requests come in their time.
    pub(super) times: OnceLock<Times>,
    pub(super) bar: ProgressBar,
}

/// One engine: a session with the daemon and a device.
pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    client: Client,
    space: SpaceHandle,
    device: HostDevice,
    blocks: Vec<BlockId>,
    /// By block: the page whose content it was given last.
    contents: Vec<Option<u32>>,
    tally: Tally,
}

impl<'a> Worker<'a> {
    pub(super) fn connect(
        shared: &'a Shared<'a>,
        socket: &Path,
        index: u32,
    ) -> Result<Self, BenchError> {
        let mut options = ConnectOptions::new(socket);
        options.name = format!("undercroft bench replay {index}");
        options.wait = Wait::Now(GREETING);
        let client = Client::connect(options)?;
        let space = client.open_space(&shared.content.space, GREETING)?;
        let longest = shared.trace.stats().longest.max(1);
        let fit = (DEVICE_BYTES / u64::from(shared.checked.page_bytes)).max(1);
        let blocks = longest.min(fit) as u32;
        let geometry = shared.content.space.geometry;
        let device = HostDevice::new(geometry, blocks, HostOptions::default())?;
        Ok(Self {
            shared,
            client,
            space,
            device,
            blocks: (0..blocks).map(BlockId).collect(),
            contents: vec![None; blocks as usize],
            tally: Tally::default(),
        })
    }

    /// Replays requests until there are no more.
    pub(super) fn run(mut self) -> Result<Tally, BenchError> {
        loop {
            let shared = self.shared;
            let turn = shared
                .checked
                .serial
                .then(|| shared.turn.lock().unwrap_or_else(PoisonError::into_inner));
            let request = shared.next.fetch_add(1, Ordering::Relaxed);
            if request >= shared.checked.requests || self.is_stopped() {
                return Ok(self.tally);
            }
            self.request(request)?;
            drop(turn);
            shared.bar.inc(1);
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn request(&mut self, request: usize) -> Result<(), BenchError> {
        let pages = self.shared.trace.request(request).pages;
        let mut line = Line { request, pages: pages.len() as u32, dram_hit: 0, ssd_hit: 0 };
        if !pages.is_empty() {
            self.wait_at(Place::Load)?;
            let keys: Vec<PageKey> =
                pages.iter().map(|page| self.shared.content.key(*page)).collect();
            self.wait_for_time(request, &keys);
            let since = Instant::now();
            let mut found = self.look_up(request, &keys);
            let (hits, ssd_hit) = self.fetch(request, pages, &keys, (&mut found, since))?;
            line.ssd_hit = ssd_hit;
            line.dram_hit = hits - ssd_hit;
            drop(found.hold.take());
            self.wait_at(Place::Store)?;
            self.store(request, pages, &keys, hits as usize, &found)?;
            self.say_when_it_goes_on(request, &keys);
            self.wait_for_daemon();
        }
        self.tally.lines.push(line);
        Ok(())
    }

    fn wait_at(&self, place: Place) -> Result<(), BenchError> {
        if self.shared.checked.in_step { Step.wait_at(place) } else { Ok(()) }
    }

    /// Where requests come in their time, waits for this one's.
    fn wait_for_time(&mut self, request: usize, keys: &[PageKey]) {
        let Some(times) = self.shared.times.get() else {
            return;
        };
        let is_stopped = || self.is_stopped();
        if let Ahead::Queue(before) = self.shared.checked.ahead {
            times.wait(request, before, is_stopped);
            // What it comes to is seen in what the lookup finds.
            let _told = self.space.prefetch(keys, MOVE_DEADLINE, LOOKUP_DEADLINE);
        }
        let late = times.wait(request, Duration::ZERO, is_stopped);
        self.tally.waits.late += u64::from(late);
    }

    fn say_when_it_goes_on(&mut self, request: usize, keys: &[PageKey]) {
        if let (Some(times), Ahead::Hints(_)) = (self.shared.times.get(), self.shared.checked.ahead)
            && let Some(told) = times.told(request)
        {
            let told = u32::try_from(told.as_millis()).unwrap_or(u32::MAX);
            let hint = HintKind::ExpectedInMs(told);
            if let Err(why) = self.space.hint(keys, hint, LOOKUP_DEADLINE) {
                self.tally.fault(|| format!("request {request}: no answer to its hint: {why}"));
            }
        }
    }

    fn look_up(&mut self, request: usize, keys: &[PageKey]) -> Found {
        // Alone, nothing can be evicted between a lookup and its fetch.
        let hold = (!self.shared.checked.alone).then_some(HOLD);
        let since = Instant::now();
        let found = self.space.lookup(
            keys,
            LookupOptions { hold, deadline: LOOKUP_DEADLINE, ..LookupOptions::default() },
        );
        let took = since.elapsed();
        self.tally.called(took, LOOKUP_DEADLINE);
        match found.why {
            None | Some(MissReason::Absent) => {
                self.tally.lookups.saturating_record(took.as_nanos() as u64);
            }
            Some(why) => {
                self.tally.missed_calls += 1;
                self.tally.fault(|| format!("request {request}: no answer to its lookup: {why}"));
            }
        }
        found
    }

    /// Fetches what was found into the device, piece by piece, and checks every byte there.
    /// Returns the pages delivered and how many of them came from SSD.
    fn fetch(
        &mut self,
        request: usize,
        pages: &[u32],
        keys: &[PageKey],
        (found, began): (&mut Found, Instant),
    ) -> Result<(u32, u32), BenchError> {
        let (mut hits, mut ssd_hits) = (0, 0);
        let in_time = self.shared.times.get().is_some() && found.pages > 0;
        let mut checking = Duration::ZERO;
        if in_time {
            self.tally.waits.found += u64::from(found.pages);
            self.tally.waits.found_dram += u64::from(found.dram);
        }
        while hits < found.pages && !self.is_stopped() {
            // What an engine can begin with comes by itself where that is timed.
            let most = if in_time && hits == 0 { 1 } else { self.blocks.len() as u32 };
            let count = (found.pages - hits).min(most);
            let piece = hits as usize..(hits + count) as usize;
            self.forget(&pages[piece.clone()])?;
            let from = match &found.hold {
                Some(hold) => FetchFrom::Hold(hold, hits, count),
                None => FetchFrom::Keys(&keys[piece.clone()]),
            };
            let blocks = &self.blocks[..count as usize];
            let since = Instant::now();
            let loaded =
                self.space.fetch_into(&self.device, from, blocks, found.stamp, MOVE_DEADLINE);
            let took = since.elapsed();
            self.tally.called(took, MOVE_DEADLINE);
            if let Some(fault) = loaded.fault {
                return Err(fault.into());
            }
            self.tally.fetch.time += took;
            self.tally.fetch.bytes += loaded.bytes;
            let delivered = &pages[piece][..loaded.pages as usize];
            let arrived = (began.elapsed().saturating_sub(checking)).as_nanos() as u64;
            self.verify(request, hits as usize, delivered)?;
            checking += since.elapsed().saturating_sub(took);
            if in_time && hits == 0 {
                self.tally.waits.first_page.saturating_record(arrived);
            }
            if in_time && hits + loaded.pages == found.pages {
                self.tally.waits.all_pages.saturating_record(arrived);
            }
            hits += loaded.pages;
            ssd_hits += loaded.ssd_pages.min(loaded.pages);
            if loaded.pages < count {
                // What the hold pins can be all the room there is: go on without it.
                if loaded.why == Some(MissReason::Full) && found.hold.take().is_some() {
                    continue;
                }
                self.tally.cut_fetches += 1;
                self.tally.fault(|| {
                    let why = loaded.why.map_or_else(String::new, |why| why.to_string());
                    format!("request {request}: {hits} of {} pages delivered: {why}", found.pages)
                });
                break;
            }
        }
        Ok((hits, ssd_hits))
    }

    /// Makes sure that what a page's block holds from before is not taken for a delivery.
    fn forget(&mut self, pages: &[u32]) -> Result<(), BenchError> {
        for (block, page) in pages.iter().enumerate() {
            if self.contents[block].replace(*page) == Some(*page) {
                self.device.write_block(self.blocks[block], |_, bytes| bytes.fill(0))?;
            }
        }
        Ok(())
    }

    fn verify(&mut self, request: usize, first: usize, pages: &[u32]) -> Result<(), BenchError> {
        for (block, page) in pages.iter().enumerate() {
            let content = self.shared.content.of(*page);
            let mut wrong = Vec::new();
            let mut checked = 0;
            self.device.read_block(self.blocks[block], |at, bytes| {
                checked += bytes.len() as u64;
                wrong.extend(content.verify(at as u64, bytes).err());
            })?;
            self.tally.verified_bytes += checked;
            for wrong in wrong {
                self.tally.wrong(request, first + block, wrong);
            }
        }
        Ok(())
    }

    /// Makes the pages that were not delivered, as prefill would, and stores them.
    fn store(
        &mut self,
        request: usize,
        pages: &[u32],
        keys: &[PageKey],
        mut first: usize,
        found: &Found,
    ) -> Result<(), BenchError> {
        while first < pages.len() && !self.is_stopped() {
            let count = (pages.len() - first).min(self.blocks.len());
            for (block, page) in pages[first..first + count].iter().enumerate() {
                let content = self.shared.content.of(*page);
                self.contents[block] = Some(*page);
                self.device.write_block(self.blocks[block], |at, bytes| {
                    content.fill(at as u64, bytes);
                })?;
            }
            let run = StoreRun {
                parent: first.checked_sub(1).map(|parent| keys[parent]),
                first: first as u32,
                keys: &keys[first..first + count],
                stamp: found.stamp,
            };
            let options = StoreOptions {
                deadline: MOVE_DEADLINE,
                wait_for_credits: self.shared.checked.serial,
            };
            let since = Instant::now();
            let stored = self.space.store(run, &self.device, &self.blocks[..count], options);
            let took = since.elapsed();
            self.tally.called(took, MOVE_DEADLINE);
            if let Some(fault) = stored.fault {
                return Err(fault.into());
            }
            self.tally.store.time += took;
            self.tally.store.bytes +=
                u64::from(stored.stored) * u64::from(self.shared.checked.page_bytes);
            self.tally.stored += u64::from(stored.stored);
            self.tally.held += u64::from(stored.held + stored.coming);
            self.tally.declined += u64::from(stored.declined.total());
            self.tally.failed += u64::from(stored.failed);
            self.tally.unsettled += u64::from(stored.unsettled);
            first += count;
            // Pages after one that is not there could never be found.
            let rest = (pages.len() - first) as u64;
            if let Some(why) = stored.why {
                self.tally.fault(|| format!("request {request}: its store was cut short: {why}"));
                self.tally.unsettled += rest;
                break;
            }
            if stored.declined.total() + stored.failed > 0 {
                self.tally.declined += rest;
                break;
            }
        }
        Ok(())
    }

    fn wait_for_daemon(&self) {
        if self.space.is_open() {
            return;
        }
        let since = Instant::now();
        while !self.space.is_open() && since.elapsed() < RECOMPUTE && !self.is_stopped() {
            let left = RECOMPUTE.saturating_sub(since.elapsed());
            // Connected says nothing about the space; it is opened right after.
            if self.client.wait_connected(left) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
