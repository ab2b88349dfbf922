use super::engine::{Engine, PREFIXES, Served, all_pages, problem};
use super::options::LoadsOptions;
use super::report::{Disk, LoadsReport, LoadsRow, Run};
use super::throttle::Throttle;
use crate::BenchError;
use crate::daemon::{Daemon, DaemonPlan, SsdPlan, part_bytes};
use crate::interrupt::Interrupt;
use crate::progress::bar;
use crate::replay::{Output, json_text};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use undercroft_core::{Admission, LoadPolicy, Policy};
use undercroft_wire::{LoadStatus, StatusReport};

const MIB: u64 = 1 << 20;
/// Pages that DRAM has room for: one prefix and no more than the beginning of the next.
const DRAM_PAGES: u64 = 192;
/// Every so many requests one comes a second time at once: then it lies in DRAM, if it was loaded.
const AGAIN_EVERY: u32 = 4;
/// Prefixes that are loaded before anything is weighed or measured.
const WARM_UP: u64 = 6;
/// The longest wait for pages to lie on SSD.
const SETTLE: Duration = Duration::from_secs(60);

/// Measures what loading costs against computing, with each policy, on a disk as fast as it is and
/// on one slowed down to where computing wins.
///
/// # Errors
/// The daemon does not start, reads cannot be slowed down here, or a byte was wrong.
pub fn loads(options: &LoadsOptions) -> Result<LoadsReport, BenchError> {
    let interrupt = Interrupt::watch()?;
    let json = options.json.as_deref().map(Output::open).transpose()?;
    let page_bytes = options.page_bytes.0;
    let within = options.ssd_path.clone().unwrap_or_else(std::env::temp_dir);
    let computed_bytes_per_s = page_bytes * 1_000_000 / options.recompute_us.max(1);
    let slow = options.slow.map_or(computed_bytes_per_s / 2, |slow| slow.0);
    let throttle = Throttle::make(&within)?;
    let progress = bar(2 * u64::from(options.requests), "requests");
    let mut parties = Vec::new();
    for policy in LoadPolicy::ALL {
        progress.set_message(format!("filling: {policy}"));
        parties.push(Party::start(options, policy, (&within, &throttle), &interrupt)?);
    }
    let mut rows = Vec::new();
    for (disk, rate) in [(Disk::Fast, None), (Disk::Slow, Some(slow))] {
        throttle.limit(rate)?;
        progress.set_message(format!("{} disk", disk.name()));
        rows.extend(run(&parties, options, disk, &progress, &interrupt)?);
    }
    throttle.limit(None)?;
    drop(parties);
    progress.finish_and_clear();
    let report = LoadsReport {
        schema: 1,
        page_bytes,
        recompute_us: options.recompute_us,
        slow_bytes_per_s: slow,
        rows,
    };
    if let Some(json) = json {
        json.write(&json_text(&report))?;
    }
    Ok(report)
}

/// A policy, a daemon that has it, and an engine of that.
struct Party {
    policy: LoadPolicy,
    engine: Engine,
    _daemon: Daemon,
}

impl Party {
    /// Starts it, stores all prefixes and loads some of them, as a daemon has that did not start just
    /// now.
    fn start(
        options: &LoadsOptions,
        policy: LoadPolicy,
        (within, throttle): (&Path, &Throttle),
        interrupt: &Interrupt,
    ) -> Result<Self, BenchError> {
        let daemon = Daemon::start(plan(options, policy, within.to_owned()), interrupt)?;
        let process = daemon.process().ok_or_else(|| problem("the daemon is gone".to_owned()))?;
        throttle.add(process)?;
        let engine = Engine::connect(&daemon, options)?;
        fill(&engine, interrupt)?;
        (0..WARM_UP).try_for_each(|prefix| engine.serve(PREFIXES - 1 - prefix).map(drop))?;
        engine.weigh();
        Ok(Self { policy, engine, _daemon: daemon })
    }
}

fn plan(options: &LoadsOptions, load: LoadPolicy, within: PathBuf) -> DaemonPlan {
    let frame = options.page_bytes.0.next_multiple_of(4096);
    DaemonPlan {
        binary: options.binary.clone(),
        arena_bytes: DRAM_PAGES * frame,
        part_bytes: part_bytes(frame),
        staging_bytes: (32 * frame).max(16 * MIB),
        policy: Policy::Lru,
        admission: Admission::Demote,
        load,
        ssd: Some(SsdPlan {
            within,
            bytes: (2 * all_pages() * frame).max(256 * MIB),
            segment_bytes: None,
            depth: None,
            encrypted: true,
            write_budget: None,
        }),
    }
}

/// Stores all prefixes, and waits until the last of them are on SSD: all but what DRAM has room for.
fn fill(engine: &Engine, interrupt: &Interrupt) -> Result<(), BenchError> {
    for prefix in 0..PREFIXES {
        interrupt.check()?;
        engine.store(prefix)?;
    }
    let enough = |status: &StatusReport| {
        let on_ssd = status.ssd.as_ref().map_or(0, |ssd| ssd.tier.pages);
        on_ssd + DRAM_PAGES >= all_pages()
    };
    let until = Instant::now() + SETTLE;
    while !enough(&*engine.status()?) {
        interrupt.check()?;
        if Instant::now() > until {
            return Err(problem("the pages do not come to lie on SSD".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Each request is served under one policy after the other: what else the machine does falls upon all
/// of them.
fn run(
    parties: &[Party],
    options: &LoadsOptions,
    disk: Disk,
    progress: &ProgressBar,
    interrupt: &Interrupt,
) -> Result<Vec<LoadsRow>, BenchError> {
    let status = |party: &Party| party.engine.status().map(|status| status.loads);
    let before: Vec<LoadStatus> = parties.iter().map(status).collect::<Result<_, _>>()?;
    let mut served: Vec<Vec<Served>> = vec![Vec::new(); parties.len()];
    let mut next = 0;
    for number in 0..options.requests {
        if number % AGAIN_EVERY != AGAIN_EVERY - 1 {
            next += 1;
        }
        for (party, served) in parties.iter().zip(&mut served) {
            interrupt.check()?;
            served.push(party.engine.serve(next % PREFIXES)?);
        }
        progress.inc(1);
    }
    let mut rows = Vec::new();
    for ((party, served), before) in parties.iter().zip(&served).zip(&before) {
        let status = party.engine.status()?;
        let devices = status.ssd.iter().flat_map(|ssd| &ssd.devices);
        let believed = devices.map(|device| device.read_bytes_per_s).sum();
        let run = Run { policy: party.policy, disk, believed };
        rows.push(LoadsRow::new(run, served, &since(before, &status.loads)));
    }
    Ok(rows)
}

/// What was counted meanwhile.
fn since(before: &LoadStatus, after: &LoadStatus) -> LoadStatus {
    LoadStatus {
        policy: after.policy.clone(),
        trimmed_lookups: after.trimmed_lookups - before.trimmed_lookups,
        trimmed_pages: after.trimmed_pages - before.trimmed_pages,
        behind_fetches: after.behind_fetches - before.behind_fetches,
        behind_pages: after.behind_pages - before.behind_pages,
        weighed_fetches: after.weighed_fetches - before.weighed_fetches,
        expected_fetches: after.expected_fetches - before.expected_fetches,
        expected_us: after.expected_us - before.expected_us,
        taken_us: after.taken_us - before.taken_us,
        error_us: after.error_us - before.error_us,
        saved_us: after.saved_us - before.saved_us,
        lost_us: after.lost_us - before.lost_us,
    }
}
