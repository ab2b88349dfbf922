use super::bare_ring::{BareRing, Way};
use super::driver::Setup;
use super::pairs::{Pairs, Unit};
use super::report::Row;
use super::rig::{DaemonCost, Rig, Run};
use crate::BenchError;
use crate::daemon::{DaemonPlan, SsdPlan};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use undercroft_wire::{PageKey, SsdStatus, StatusReport};

const PAGE: u32 = 2 << 20;
/// Operations in flight, on both sides.
const DEPTH: u32 = 16;
const ARENA_BYTES: u64 = 512 << 20;
const SSD_BYTES: u64 = 2 << 30;
/// The bare loop's own file for writing.
const TWIN_BYTES: u64 = 1 << 30;
/// Pages put on SSD in one go where all of them must arrive there.
const PIECE_PAGES: usize = 8;
/// Runs that are read: most of what the SSD tier holds, and much more than DRAM.
const READ_RUNS: usize = 14;
/// Pages of one fetch or store.
const RUN_PAGES: usize = 64;
/// What a whole run takes on disk: the store with its spare segments, and the twin.
pub(super) const DISK_BYTES: u64 = SSD_BYTES + TWIN_BYTES + (256 << 20);
/// A hole shorter than this may be taken for written, which costs the bare loop nothing to read.
const HOLE_STEP: u64 = 256 << 10;
const SETTLE_PAUSE: Duration = Duration::from_millis(2);

/// Pages written to and read from SSD, against bare io_uring loops of the same size and depth.
pub(super) fn measure(setup: &Setup<'_>, pairs: &Pairs<'_>) -> Result<Vec<Row>, BenchError> {
    let plan = DaemonPlan {
        binary: setup.options.binary.clone(),
        arena_bytes: ARENA_BYTES,
        part_bytes: ARENA_BYTES,
        staging_bytes: super::dram::STAGING_BYTES,
        policy: "lru",
        ssd: Some(SsdPlan {
            within: setup.folder.clone(),
            bytes: SSD_BYTES,
            segment_bytes: None,
            depth: Some(DEPTH),
        }),
    };
    let row = "ssd_write_2m";
    let blocks = RUN_PAGES as u32;
    let mut rig = Rig::start(row, plan, PAGE, blocks, setup.threads, setup.interrupt)?;
    // Once round the log, so that every extent written from here on was written before.
    while written(&*rig.status()?) < SSD_BYTES + SSD_BYTES / 8 {
        setup.interrupt.check()?;
        store(&mut rig)?;
    }
    let write = write_row(row, setup, pairs, &mut rig)?;
    let read = read_row("ssd_read_2m", setup, pairs, &mut rig)?;
    Ok(vec![read, write])
}

fn store(rig: &mut Rig) -> Result<(), BenchError> {
    let run = rig.fresh(RUN_PAGES);
    rig.store(&run, 0..RUN_PAGES)
}

/// Puts runs on SSD in small pieces, no faster than the device takes them: a daemon gives pages
/// up that it cannot write in time, and these are to be there whole.
fn fill(setup: &Setup<'_>, rig: &mut Rig) -> Result<Vec<Run>, BenchError> {
    let pieces = || (0..RUN_PAGES).step_by(PIECE_PAGES).map(|at| at..at + PIECE_PAGES);
    let runs: Vec<Run> = (0..READ_RUNS).map(|_| rig.fresh(RUN_PAGES)).collect();
    for run in &runs {
        for piece in pieces() {
            setup.interrupt.check()?;
            rig.store_piece(run, piece.clone(), piece)?;
            settle(rig)?;
        }
    }
    // The last ones are still in DRAM only, and go to SSD to make room for the first.
    for run in &runs {
        let held = rig.held(run);
        for piece in pieces().take_while(|piece| piece.end <= held) {
            setup.interrupt.check()?;
            rig.fetch(&run[piece])?;
            settle(rig)?;
        }
    }
    Ok(runs)
}

/// Bytes of pages written, without what reclaim wrote again.
fn written(status: &StatusReport) -> u64 {
    status.ssd.as_ref().map_or(0, SsdStatus::demoted_bytes)
}

fn write_row(
    name: &'static str,
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
    rig: &mut Rig,
) -> Result<Row, BenchError> {
    let twin = Twin::create(&setup.folder)?;
    let mut bare = BareRing::open(&twin.path, Way::Write, DEPTH, PAGE)?;
    let mut cost = DaemonCost::default();
    let mut ours = |window: Duration| {
        let before = rig.status()?;
        let since = Instant::now();
        while since.elapsed() < window {
            store(rig)?;
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
        bare.run(Way::Write, &twin.offsets, &mut next, window).map_err(failed)
    };
    let row = pairs.measure(name, Unit::BytesPerSecond, &mut ours, &mut limit)?;
    Ok(Row { bare: bare.name(), daemon_cpu_s_per_gib: cost.per_gib(), ..row })
}

/// Waits until the daemon writes no more.
fn settle(rig: &Rig) -> Result<Box<StatusReport>, BenchError> {
    let mut last = rig.status()?;
    loop {
        std::thread::sleep(SETTLE_PAUSE);
        let now = rig.status()?;
        if written(&now) == written(&last) {
            return Ok(now);
        }
        last = now;
    }
}

fn read_row(
    name: &'static str,
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
    rig: &mut Rig,
) -> Result<Row, BenchError> {
    let kept = fill(setup, rig)?;
    let runs: Vec<&[PageKey]> =
        kept.iter().map(|run| &run[..rig.held(run)]).filter(|run| !run.is_empty()).collect();
    let pages: usize = runs.iter().map(|run| run.len()).sum();
    // Less than this, and much of it would still be in DRAM when its turn comes again.
    if pages as u64 * u64::from(PAGE) < ARENA_BYTES * 3 / 2 {
        let of = kept.len() * RUN_PAGES;
        let problem = format!("only {pages} of the last {of} pages are there after the writes");
        return Err(rig.problem(problem));
    }
    let log = log_file(rig)?;
    let offsets = written_extents(&log).map_err(BenchError::file("read", &log))?;
    let mut bare = BareRing::open(&log, Way::Read, DEPTH, PAGE)?;
    let mut cost = DaemonCost::default();
    let mut next = 0;
    let mut ours = |window: Duration| {
        let before = rig.status()?;
        let since = Instant::now();
        let mut bytes = 0;
        while since.elapsed() < window {
            bytes += u64::from(rig.fetch(runs[next % runs.len()])?) * u64::from(PAGE);
            next += 1;
        }
        let speed = bytes as f64 / since.elapsed().as_secs_f64();
        cost.add(&before, &*rig.status()?, bytes);
        Ok(speed)
    };
    let mut at = 0;
    let mut limit = |window| {
        let failed = BenchError::system("read the daemon's file with the bare loop");
        bare.run(Way::Read, &offsets, &mut at, window).map_err(failed)
    };
    let row = pairs.measure(name, Unit::BytesPerSecond, &mut ours, &mut limit)?;
    Ok(Row { bare: bare.name(), daemon_cpu_s_per_gib: cost.per_gib(), ..row })
}

/// The daemon's one file.
fn log_file(rig: &Rig) -> Result<PathBuf, BenchError> {
    let store = rig.daemon.store().expect("this daemon has an SSD tier");
    let files = store.read_dir().map_err(BenchError::file("read", store))?;
    let largest = files
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.path())))
        .max();
    largest.map(|(_, path)| path).ok_or_else(|| rig.problem("its store has no file".to_owned()))
}

/// Where whole pages of the file hold something: a hole would be read without the device.
fn written_extents(path: &Path) -> io::Result<Vec<u64>> {
    let file = File::open(path)?;
    let page = u64::from(PAGE);
    let mut offsets = Vec::new();
    let mut sample = [0; 64];
    'pages: for offset in (0..file.metadata()?.len() / page).map(|index| index * page) {
        for at in (offset..offset + page).step_by(HOLE_STEP as usize) {
            file.read_exact_at(&mut sample, at)?;
            if sample == [0; 64] {
                continue 'pages;
            }
        }
        offsets.push(offset);
    }
    if offsets.is_empty() {
        Err(io::Error::other("no page of it was written"))
    } else {
        Ok(offsets)
    }
}

/// A file like the daemon's, all of it written once, for the bare loop to write to.
struct Twin {
    path: PathBuf,
    offsets: Vec<u64>,
    _folder: tempfile::TempDir,
}

impl Twin {
    fn create(within: &Path) -> Result<Self, BenchError> {
        let folder = crate::daemon::folder("undercroft-bench-twin-", within)?;
        let path = folder.path().join("twin");
        let file = File::create(&path).map_err(BenchError::file("create", &path))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, TWIN_BYTES)
            .map_err(io::Error::from)
            .map_err(BenchError::file("reserve room for", &path))?;
        let page = u64::from(PAGE);
        let offsets: Vec<u64> = (0..TWIN_BYTES / page).map(|index| index * page).collect();
        let mut ring = BareRing::open(&path, Way::Write, DEPTH, PAGE)?;
        let mut next = 0;
        while next < offsets.len() {
            let window = Duration::from_millis(100);
            let written = ring.run(Way::Write, &offsets, &mut next, window);
            written.map_err(BenchError::file("write", &path))?;
        }
        Ok(Self { path, offsets, _folder: folder })
    }
}
