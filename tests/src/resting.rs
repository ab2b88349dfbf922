use crate::{DaemonOptions, Engine, EngineOptions, TestDaemon};
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use undercroft_client::wire::{Stamp, StatusReport, Tier};

/// Bytes of a page: the least that wastes no frame, as many pages are wanted and not their bytes.
const PAGE_BYTES: u64 = 4 << 10;
/// Capacity the daemon wants for each page it is to know.
const CAPACITY_PER_PAGE: u64 = 16 << 10;
/// Pages of one conversation.
const CHAIN_PAGES: u32 = 4096;
/// DRAM where all but a few pages are to lie on SSD: room for one of so many.
const FEW: u64 = 15;
/// Processor time that counts as none, of a second.
const NO_CPU: f64 = 1e-3;

/// A daemon that knows many pages and is asked nothing.
#[derive(Debug, Clone)]
pub struct Resting {
    /// How many pages.
    pub pages: u64,
    /// Where they lie.
    pub tier: Tier,
    /// How long it is left alone, each time.
    pub rest: Duration,
    /// Where its SSD tier lies; `None` for the system's place for temporary files.
    pub directory: Option<PathBuf>,
}

/// What it took meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RestingReport {
    /// Share of one processor it used without pages, with a client connected.
    pub empty_cpu: f64,
    /// Heap without pages, bytes.
    pub empty_heap: u64,
    /// Pages it knew at the end.
    pub pages: u64,
    /// Share of one processor it used with them.
    pub full_cpu: f64,
    /// Heap with them, bytes.
    pub full_heap: u64,
}

impl Resting {
    /// Does it. `go_on` is asked from time to time.
    ///
    /// # Errors
    /// The daemon does not take the pages.
    ///
    /// # Panics
    /// If the daemon does not start.
    pub fn run(&self, go_on: &dyn Fn() -> Result<()>) -> Result<RestingReport> {
        let dram = match self.tier {
            Tier::Dram => self.pages * PAGE_BYTES + (1 << 20),
            Tier::Ssd => (self.pages / FEW * PAGE_BYTES).next_multiple_of(1 << 20),
        };
        let options = DaemonOptions {
            dram,
            // A daemon knows as many pages as its tiers hold of 16 KiB.
            ssd: (self.pages * CAPACITY_PER_PAGE).saturating_sub(dram) + (64 << 20),
            staging: 16 << 20,
            store_in: self.directory.clone(),
            ..DaemonOptions::default()
        };
        let daemon = TestDaemon::start(options);
        let client = daemon.client("engine").context("the daemon does not answer")?;
        let status = || -> Result<Box<StatusReport>> {
            client.status(Duration::from_secs(10)).map_err(|why| anyhow::anyhow!("status: {why}"))
        };
        let empty_heap = status()?.heap_bytes;
        self.settle(&status, go_on)?;
        let empty_cpu = self.cpu(&daemon)?;
        let shape = EngineOptions { page_bytes: PAGE_BYTES, blocks: CHAIN_PAGES };
        let mut engine = Engine::open(&client, "resting", shape)?;
        for conversation in 0..self.pages.div_ceil(CHAIN_PAGES.into()) {
            go_on()?;
            let left = self.pages - conversation * u64::from(CHAIN_PAGES);
            let keys = engine.keys(conversation as u32, left.min(CHAIN_PAGES.into()) as u32);
            let stored = engine.store(&keys, Stamp(0));
            ensure!(stored.stored as usize == keys.len(), "not all were taken: {stored:?}");
        }
        self.settle(&status, go_on)?;
        let full_cpu = self.cpu(&daemon)?;
        let report = status()?;
        let lie = match self.tier {
            Tier::Dram => report.dram.pages,
            Tier::Ssd => report.ssd.as_ref().map_or(0, |ssd| ssd.tier.pages),
        };
        let most = self.pages - self.pages / 10;
        ensure!(lie >= most, "only {lie} pages lie where they should");
        let (pages, full_heap) = (report.known_pages, report.heap_bytes);
        Ok(RestingReport { empty_cpu, empty_heap, pages, full_cpu, full_heap })
    }

    /// Waits until nothing is written any more: pages are written ahead of need, and segments
    /// zeroed ahead of their use.
    fn settle(
        &self,
        status: &dyn Fn() -> Result<Box<StatusReport>>,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let mut written = u64::MAX;
        loop {
            go_on()?;
            let ssd = status()?.ssd.context("it has an SSD")?;
            let now = ssd.written_bytes + ssd.devices.iter().map(|d| d.zeroed_bytes).sum::<u64>();
            if now == std::mem::replace(&mut written, now) {
                return Ok(());
            }
            std::thread::sleep(self.rest.min(Duration::from_secs(2)));
        }
    }

    /// The share of a processor that the daemon uses while nobody asks it anything.
    fn cpu(&self, daemon: &TestDaemon) -> Result<f64> {
        let (before, since) = (on_cpu(daemon)?, Instant::now());
        std::thread::sleep(self.rest);
        let used = on_cpu(daemon)?.saturating_sub(before);
        Ok(used.as_secs_f64() / since.elapsed().as_secs_f64())
    }
}

/// Processor time of all threads of the daemon so far.
fn on_cpu(daemon: &TestDaemon) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        // A thread may have ended meanwhile.
        let stat = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let ns = stat.split_whitespace().next().and_then(|ns| ns.parse().ok());
        all += Duration::from_nanos(ns.unwrap_or(0));
    }
    Ok(all)
}

impl RestingReport {
    /// Heap that so many pages may take, bytes.
    #[must_use]
    pub fn allowed_heap(&self) -> u64 {
        StatusReport::allowed_heap_bytes_for(self.pages)
    }

    /// Whether it takes no processor time and no more memory than it may.
    ///
    /// # Errors
    /// It does.
    pub fn check(&self) -> Result<()> {
        let Self { empty_cpu, full_cpu, full_heap, .. } = *self;
        ensure!(empty_cpu < NO_CPU && full_cpu < NO_CPU, "it does not rest");
        ensure!(full_heap <= self.allowed_heap(), "its heap is larger than allowed");
        Ok(())
    }
}

impl fmt::Display for RestingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Self { empty_cpu, empty_heap, pages, full_cpu, full_heap } = *self;
        let (no_cpu, cpu) = (100.0 * empty_cpu, 100.0 * full_cpu);
        writeln!(f, "without pages   heap {:>6.1} MiB, cpu {no_cpu:.4} %", mib(empty_heap))?;
        writeln!(f, "{pages} pages   heap {:>6.1} MiB, cpu {cpu:.4} %", mib(full_heap))?;
        let grown = full_heap.saturating_sub(empty_heap) as f64 / pages.max(1) as f64;
        let allowed = mib(self.allowed_heap());
        let all = full_heap as f64 / pages.max(1) as f64;
        writeln!(f, "for each page   {grown:.0} bytes more, {all:.0} with all else")?;
        write!(
            f,
            "allowed         {allowed:.1} MiB, of which {:.1} % are used",
            100.0 * mib(full_heap) / allowed
        )
    }
}
