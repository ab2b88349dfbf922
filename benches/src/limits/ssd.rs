mod extents;
mod fill;
mod mixed;

use super::bare_ring::{BareRing, Way};
use super::driver::Setup;
use super::pairs::{Pairs, Unit};
use super::report::Row;
use super::rig::{DaemonCost, Rig};
use crate::BenchError;
use crate::daemon::{DaemonPlan, SsdPlan};
pub(crate) use extents::written_extents;
use extents::{Twin, log_file};
use fill::{fill, go_round, settle, store, written};
use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};
use undercroft_core::{Admission, LoadPolicy, Policy};
use undercroft_wire::PageKey;

const ARENA_BYTES: u64 = 512 << 20;
const SSD_BYTES: u64 = 2 << 30;
/// Bytes of one fetch or store.
const RUN_BYTES: u64 = 128 << 20;
/// Fetches at once where reads are measured: with one alone the device would run dry at the end of
/// each, as it does on the bare side only at the end of a window.
const FETCHES: usize = 2;
/// What a whole run takes on disk: one store at a time with its spare segments, and the twin.
pub(super) const DISK_BYTES: u64 = SSD_BYTES + extents::TWIN_BYTES + (256 << 20);
/// The daemon's work is looked at again after this long.
const SETTLE_PAUSE: Duration = Duration::from_millis(2);

/// A daemon's SSD tier, and the bare loop it is held against.
#[derive(Debug, Clone, Copy)]
struct Tier {
    page: u32,
    /// Operations in flight, on both sides.
    depth: u32,
    encrypted: bool,
}

/// The default: encrypted.
const LARGE: Tier = Tier { page: 2 << 20, depth: 16, encrypted: true };
const LARGE_PLAIN: Tier = Tier { encrypted: false, ..LARGE };
const SMALL: Tier = Tier { page: 256 << 10, depth: 32, encrypted: true };

impl Tier {
    /// Pages in so many bytes.
    fn pages(self, bytes: u64) -> usize {
        (bytes / u64::from(self.page)) as usize
    }

    fn start(self, row: &'static str, setup: &Setup<'_>) -> Result<Rig, BenchError> {
        let plan = DaemonPlan {
            binary: setup.options.binary.clone(),
            arena_bytes: ARENA_BYTES,
            part_bytes: ARENA_BYTES,
            staging_bytes: super::dram::STAGING_BYTES,
            policy: Policy::Lru,
            admission: Admission::Demote,
            load: LoadPolicy::default(),
            ssd: Some(SsdPlan {
                within: setup.folder.clone(),
                bytes: SSD_BYTES,
                segment_bytes: None,
                depth: Some(self.depth),
                encrypted: self.encrypted,
                write_budget: None,
            }),
        };
        let blocks = self.pages(RUN_BYTES) as u32;
        Rig::start(row, plan, self.page, blocks, setup.threads, setup.interrupt)
    }

    /// The bare loop it is held against, all over as much memory as the arena.
    fn bare(self, path: &Path, way: Way) -> Result<BareRing, BenchError> {
        BareRing::open(path, way, self.depth, self.page, ARENA_BYTES)
    }

    /// What a row says of the daemon must be what the daemon does.
    fn confirm(self, rig: &Rig) -> Result<(), BenchError> {
        let status = rig.status()?;
        let mut devices = status.ssd.iter().flat_map(|ssd| &ssd.devices);
        match devices.find(|device| device.encrypted != self.encrypted) {
            None => Ok(()),
            Some(device) => {
                let problem = format!("encryption of {} is {}", device.path, device.encrypted);
                Err(rig.problem(problem))
            }
        }
    }
}

/// Pages written to and read from SSD, against bare io_uring loops of the same size and depth.
/// One daemon after the other, so that only one store takes room at a time.
pub(super) fn measure(setup: &Setup<'_>, pairs: &Pairs<'_>) -> Result<Vec<Row>, BenchError> {
    let twin = Twin::create(&setup.folder, LARGE)?;
    let mut rows = large(["ssd_read_2m", "ssd_write_2m"], LARGE, &twin, setup, pairs)?;
    let plain = ["ssd_read_2m_plain", "ssd_write_2m_plain"];
    rows.extend(large(plain, LARGE_PLAIN, &twin, setup, pairs)?);
    if setup.wants("ssd_read_256k") {
        rows.push(small("ssd_read_256k", setup, pairs)?);
    }
    rows.extend(mixed::measure(LARGE, &twin, setup, pairs)?);
    Ok(rows)
}

fn large(
    [read, write]: [&'static str; 2],
    tier: Tier,
    twin: &Twin,
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    if !setup.wants(read) && !setup.wants(write) {
        return Ok(rows);
    }
    let rig = tier.start(write, setup)?;
    go_round(tier, setup, &rig)?;
    // Writing goes first, and is the second of the two in the report.
    if setup.wants(write) {
        rows.push(write_row(write, tier, twin, pairs, &rig)?);
    }
    if setup.wants(read) {
        rows.insert(0, read_row(read, tier, setup, pairs, &rig)?);
    }
    Ok(rows)
}

fn small(name: &'static str, setup: &Setup<'_>, pairs: &Pairs<'_>) -> Result<Row, BenchError> {
    let rig = SMALL.start(name, setup)?;
    read_row(name, SMALL, setup, pairs, &rig)
}

fn write_row(
    name: &'static str,
    tier: Tier,
    twin: &Twin,
    pairs: &Pairs<'_>,
    rig: &Rig,
) -> Result<Row, BenchError> {
    let mut bare = tier.bare(twin.path(), Way::Write)?;
    let mut cost = DaemonCost::default();
    let mut ours = |window: Duration| {
        let before = rig.status()?;
        let since = Instant::now();
        while since.elapsed() < window {
            store(tier, rig)?;
        }
        // Until the device is quiet, or the rest would be written during the other side's time.
        let after = settle(rig)?;
        let bytes = written(&after) - written(&before);
        cost.add(&before, &after, bytes);
        Ok(bytes as f64 / (since.elapsed() - SETTLE_PAUSE).as_secs_f64())
    };
    let mut next = 0;
    let mut limit = |window| {
        let failed = BenchError::system("write to the bare loop's file");
        bare.run(twin.offsets(), &mut next, window).map_err(failed)
    };
    let row = pairs.measure(name, Unit::BytesPerSecond, &mut ours, &mut limit)?;
    tier.confirm(rig)?;
    Ok(Row { bare: bare.name(), daemon_cpu_s_per_gib: cost.per_gib(), ..row })
}

fn read_row(
    name: &'static str,
    tier: Tier,
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
    rig: &Rig,
) -> Result<Row, BenchError> {
    let kept = fill(tier, setup, rig)?;
    let runs: Vec<&[PageKey]> =
        kept.iter().map(|run| &run[..rig.held(run)]).filter(|run| !run.is_empty()).collect();
    let pages: usize = runs.iter().map(|run| run.len()).sum();
    // Less than this, and much of it would still be in DRAM when its turn comes again.
    if pages < tier.pages(ARENA_BYTES * 3 / 2) {
        let of: usize = kept.iter().map(Vec::len).sum();
        let problem = format!("only {pages} of the last {of} pages are there after the writes");
        return Err(rig.problem(problem));
    }
    let log = log_file(rig)?;
    let offsets = written_extents(&log, tier.page).map_err(BenchError::file("read", &log))?;
    let mut bare = tier.bare(&log, Way::Read)?;
    let mut cost = DaemonCost::default();
    let mut next = 0;
    let mut ours = |window: Duration| {
        let before = rig.status()?;
        let since = Instant::now();
        let mut bytes = 0;
        let mut under_way = VecDeque::new();
        loop {
            while since.elapsed() < window && under_way.len() < FETCHES {
                let run = runs[next % runs.len()];
                under_way.push_back((run, rig.begin_fetch(run)));
                next += 1;
            }
            let Some((run, fetch)) = under_way.pop_front() else { break };
            bytes += u64::from(rig.end_fetch(run, fetch)?) * u64::from(tier.page);
        }
        let speed = bytes as f64 / since.elapsed().as_secs_f64();
        cost.add(&before, &*rig.status()?, bytes);
        Ok(speed)
    };
    let mut at = 0;
    let mut limit = |window| {
        let failed = BenchError::system("read the daemon's file with the bare loop");
        bare.run(&offsets, &mut at, window).map_err(failed)
    };
    let row = pairs.measure(name, Unit::BytesPerSecond, &mut ours, &mut limit)?;
    tier.confirm(rig)?;
    Ok(Row { bare: bare.name(), daemon_cpu_s_per_gib: cost.per_gib(), ..row })
}
