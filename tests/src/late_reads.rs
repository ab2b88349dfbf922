//! Reads of a killed daemon that land when another one has the arena: they must not land in a page.

use crate::power_cut::{LossyDisk, Medium, hold_namespaces};
use crate::traffic::Wrong;
use crate::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon};
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::time::{Duration, Instant};
use undercroft_client::FetchFrom;
use undercroft_client::wire::{DeviceCondition, Stamp, StartKind, StatusReport};

const DISK_BYTES: usize = 64 << 20;
const CACHE_BYTES: usize = 64 << 20;
const FRAMES: u64 = 64;
const CHAIN_PAGES: u32 = 16;
/// Chains on SSD, and what of them is fetched while it hangs: less than half of DRAM.
const CHAINS: u32 = 24;
const FETCHED: u32 = 2;
/// Far more than DRAM holds.
const NEW_CHAINS: u32 = 12;
const NEW: u32 = 1_000;
const PATIENCE: Duration = Duration::from_secs(30);
const NAP: Duration = Duration::from_millis(2);

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct LateReadsReport {
    /// Reads that hung when the daemon was killed.
    pub hanging_reads: usize,
    /// Time from the kill until the next daemon answered.
    pub ready: Duration,
    /// Bytes of frames it left alone.
    pub quarantined_bytes: u64,
    /// Pages stored into all other frames while the reads hung.
    pub refilled_pages: u64,
    /// Pages in DRAM when the frames were its own again.
    pub pages_in_the_end: u64,
    /// Bytes of frames that were left alone when reads hung once more and the disk was taken out of
    /// the configuration: by the next daemon, and by the one after that.
    pub left_alone: [u64; 2],
    /// Wrong bytes, of all looks before, while and after the reads landed.
    pub wrong: Wrong,
}

/// Kills a daemon whose reads hang in the disk, has the next one fill every frame it will fill, and
/// lets the reads land.
///
/// For the first process of a process namespace, with mounts of its own.
///
/// # Errors
/// It does not come to that, or a daemon does not do its part.
pub fn late_reads() -> Result<LateReadsReport> {
    let medium = Medium::new(LossyDisk::new(DISK_BYTES, CACHE_BYTES))?;
    let attached = medium.format()?;
    let _holder = hold_namespaces()?;
    let mut daemon = TestDaemon::start(DaemonOptions {
        dram: FRAMES * PAGE_BYTES,
        ssd: 24 << 20,
        // Encrypted pages are read elsewhere, and decrypted into their frames.
        more: format!("segment = {}\nencryption = \"off\"", 64 * PAGE_BYTES),
        store_in: Some(medium.directory()),
        managed: true,
        ..DaemonOptions::default()
    });
    let mut report = LateReadsReport::default();
    fill(&daemon)?;
    report.hanging_reads = hang(&medium, &daemon)?;
    daemon.kill();
    report.ready = daemon.try_restart()?;
    let start = daemon.status().start;
    ensure!(start.kind == StartKind::Warm, "the arena was not gone on with: {start:?}");
    report.quarantined_bytes = start.quarantined_bytes;
    let client = daemon.client("refill").context("it serves")?;
    let mut engine = Engine::new(&client, "late");
    for chain in NEW..NEW + NEW_CHAINS {
        let keys = engine.keys(chain, CHAIN_PAGES);
        report.refilled_pages += u64::from(engine.store(&keys, Stamp(0)).stored);
    }
    look(&mut engine, &mut report.wrong);
    ensure!(medium.stall().reads() >= report.hanging_reads, "the reads did not wait for this");
    medium.stall().end(medium.disk());
    let since = Instant::now();
    while !is_settled(&daemon.status()) {
        look(&mut engine, &mut report.wrong);
        ensure!(since.elapsed() < PATIENCE, "it does not get its disk back: {}", daemon.log());
    }
    look(&mut engine, &mut report.wrong);
    for chain in NEW..NEW + NEW_CHAINS {
        engine.try_store(&engine.keys(chain, CHAIN_PAGES));
    }
    look(&mut engine, &mut report.wrong);
    report.pages_in_the_end = daemon.status().dram.pages;
    report.left_alone = without_the_disk(&medium, &mut daemon)?;
    daemon.kill();
    drop(daemon);
    medium.stall().end(medium.disk());
    attached.detach()?;
    Ok(report)
}

/// Kills the daemon while reads hang once more, and starts it twice without that disk: the second one
/// finds a daemon before it that had the same other disk, and knows as little of those reads.
fn without_the_disk(medium: &Medium, daemon: &mut TestDaemon) -> Result<[u64; 2]> {
    hang(medium, daemon)?;
    daemon.kill();
    daemon.reconfigure(|options| options.store_in = None);
    let mut left_alone = [0; 2];
    for bytes in &mut left_alone {
        daemon.try_restart()?;
        daemon.wait_recovered()?;
        let start = daemon.status().start;
        ensure!(start.kind == StartKind::Warm, "the arena was not gone on with: {start:?}");
        *bytes = start.quarantined_bytes;
        daemon.kill();
    }
    Ok(left_alone)
}

/// Most of what is stored leaves DRAM for the disk.
fn fill(daemon: &TestDaemon) -> Result<()> {
    let client = daemon.client("fill").context("it serves")?;
    let mut engine = Engine::new(&client, "late");
    for chain in 0..CHAINS {
        let keys = engine.keys(chain, CHAIN_PAGES);
        let stored = engine.store(&keys, Stamp(0));
        ensure!(stored.stored == CHAIN_PAGES, "{stored:?}");
    }
    let since = Instant::now();
    let wanted = u64::from(CHAINS * CHAIN_PAGES) - FRAMES;
    while daemon.status().ssd.is_none_or(|ssd| ssd.tier.pages < wanted) {
        ensure!(since.elapsed() < PATIENCE, "pages do not reach the disk: {:?}", daemon.status());
        std::thread::sleep(NAP);
    }
    Ok(())
}

/// Has pages fetched that are on the disk alone, which does not answer; how many reads then hang.
fn hang(medium: &Medium, daemon: &TestDaemon) -> Result<usize> {
    medium.stall().begin();
    let client = daemon.client("reader").context("it serves")?;
    let engine = Engine::new(&client, "late");
    let chains: Vec<_> = (0..FETCHED).map(|chain| engine.keys(chain, CHAIN_PAGES)).collect();
    let fetches: Vec<_> = chains
        .iter()
        .map(|keys| engine.space().fetch(FetchFrom::Keys(keys), Stamp(0), PATIENCE))
        .collect();
    let since = Instant::now();
    let mut last = (0, Instant::now());
    // Until no more come: the ring takes them one after another.
    while last.0 == 0 || last.1.elapsed() < Duration::from_millis(100) {
        let reads = medium.stall().reads();
        if reads > last.0 {
            last = (reads, Instant::now());
        }
        ensure!(since.elapsed() < PATIENCE, "nothing is read from the disk: {}", daemon.log());
        std::thread::sleep(NAP);
    }
    drop(fetches);
    Ok(last.0)
}

/// Compares every byte of all new pages that are served.
fn look(engine: &mut Engine, wrong: &mut Wrong) {
    for chain in NEW..NEW + NEW_CHAINS {
        let keys = engine.keys(chain, CHAIN_PAGES);
        let found = engine.lookup(&keys);
        let inspected = engine.inspect(&keys[..found.pages as usize], found.stamp);
        wrong.look(chain, &inspected);
    }
}

fn is_settled(status: &StatusReport) -> bool {
    let devices = status.ssd.iter().flat_map(|ssd| &ssd.devices);
    let all_well = devices.into_iter().all(|device| device.condition == DeviceCondition::Well);
    all_well && status.start.quarantined_bytes == 0
}

impl LateReadsReport {
    /// Holds it against what it must be.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        let Self { wrong, .. } = self;
        ensure!(wrong.bytes == 0, "{} wrong bytes, the first in {:?}", wrong.bytes, wrong.first);
        ensure!(self.hanging_reads > 0 && self.quarantined_bytes > 0, "nothing was under way");
        let [once, twice] = self.left_alone;
        ensure!(once > 0 && twice >= once, "left alone without the disk: {:?}", self.left_alone);
        ensure!(self.refilled_pages > FRAMES / 2, "the frames were not refilled");
        ensure!(
            self.pages_in_the_end == FRAMES,
            "{} of {FRAMES} frames came back",
            self.pages_in_the_end
        );
        Ok(())
    }
}

impl fmt::Display for LateReadsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "reads that hung when the daemon was killed: {}", self.hanging_reads)?;
        writeln!(f, "the next one answered after {:.0} ms", self.ready.as_secs_f64() * 1e3)?;
        writeln!(f, "left alone: {} frames", self.quarantined_bytes / PAGE_BYTES)?;
        writeln!(f, "pages stored while the reads hung: {}", self.refilled_pages)?;
        writeln!(f, "pages in DRAM in the end: {} of {FRAMES}", self.pages_in_the_end)?;
        write!(f, "wrong_bytes        {}", self.wrong.bytes)
    }
}
