use super::ahead::{Ahead, AheadReport, Times};
use super::options::{Checked, ReplayOptions};
use super::output::Outputs;
use super::report::{HitPages, LookupTimes, ReplayReport};
use super::space::Content;
use super::tally::Tally;
use super::watch::{Counters, Watch};
use super::worker::{Shared, Worker};
use crate::daemon::{Daemon, DaemonPlan, SsdPlan, part_bytes};
use crate::interrupt::Interrupt;
use crate::{BenchError, progress};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};
use undercroft_core::LoadPolicy;
use undercroft_wire::SsdStatus;

/// How often the run is looked after.
const TICK: Duration = Duration::from_millis(50);
/// How often the daemon is asked how it is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A replay without a daemon ends after this long.
const GONE_AFTER: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// Replays a trace through a daemon and verifies every byte that comes out of the device.
///
/// Without a socket it starts a daemon of its own. Whatever it made is gone when it returns, also
/// after an error or Ctrl-C. Wrong bytes are counted in the report, not an error.
///
/// # Errors
/// Options or a trace that cannot be used, a daemon that does not start or stays away, Ctrl-C.
pub fn replay(options: &ReplayOptions) -> Result<ReplayReport, BenchError> {
    let outputs = Outputs::open(options.csv.as_deref(), options.json.as_deref())?;
    let trace = options.traffic()?;
    let checked = options.check(&trace)?;
    let interrupt = Interrupt::watch()?;
    let content = Content::new(&trace, checked.page_bytes)?;
    let mut daemon = match &options.socket {
        Some(_) => None,
        None => Some(Daemon::start(plan(options, &checked), &interrupt)?),
    };
    let socket = match (&options.socket, &daemon) {
        (Some(socket), _) => socket.clone(),
        (None, Some(daemon)) => daemon.socket(),
        (None, None) => unreachable!("without a socket a daemon was started"),
    };
    let shared = Shared {
        trace: &trace,
        content: &content,
        checked,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        turn: Mutex::new(()),
        times: OnceLock::new(),
        bar: progress::bar(checked.requests as u64, "requests"),
    };
    let mut watch = Watch::connect(&socket)?;
    let workers = (0..options.clients)
        .map(|index| Worker::connect(&shared, &socket, index))
        .collect::<Result<Vec<_>, _>>()?;
    let since = Instant::now();
    shared.begin(options.seed);
    let tally = run(workers, &shared, &mut watch, daemon.as_mut(), &interrupt)?;
    let wall = since.elapsed();
    shared.bar.finish_and_clear();
    watch.ask();
    let mut report = report(options, &checked, &tally, watch.total(), wall);
    report.unreachable_pages = watch.unreachable_pages();
    report.distinct_pages = trace.stats().distinct;
    report.daemon_restarts = daemon.as_ref().map_or(0, Daemon::restarts);
    drop((watch, daemon));
    outputs.write(&report, &tally.lines)?;
    Ok(report)
}

pub(super) fn plan(options: &ReplayOptions, checked: &Checked) -> DaemonPlan {
    let frame = checked.frame;
    let bytes = checked.ssd_pages * frame;
    // The daemon's own choice of segment must hold a few of our pages.
    let chosen = (bytes / 64).clamp(4 * MIB, 256 * MIB);
    let segment_bytes = (chosen < 4 * frame).then(|| 4 * frame + MIB);
    let within = options.ssd_path.clone().unwrap_or_else(std::env::temp_dir);
    DaemonPlan {
        binary: options.binary.clone(),
        arena_bytes: checked.dram_pages * frame,
        part_bytes: part_bytes(frame),
        staging_bytes: (2 * frame).max(16 * MIB),
        policy: options.policy,
        admission: options.admission,
        load: LoadPolicy::default(),
        ssd: (checked.ssd_pages > 0).then_some(SsdPlan {
            within,
            bytes,
            segment_bytes,
            depth: None,
            encrypted: true,
            write_budget: options.write_budget,
        }),
    }
}

fn run<'a>(
    workers: Vec<Worker<'a>>,
    shared: &Shared<'a>,
    watch: &mut Watch,
    mut daemon: Option<&mut Daemon>,
    interrupt: &Interrupt,
) -> Result<Tally, BenchError> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|worker| {
                scope.spawn(|| {
                    let done = worker.run();
                    if done.is_err() {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        let mut asked = Instant::now();
        let mut look_after = || {
            interrupt.check()?;
            if let Some(daemon) = daemon.as_deref_mut() {
                daemon.look_after()?;
            }
            if asked.elapsed() >= ASK_EVERY {
                watch.ask();
                asked = Instant::now();
            }
            if watch.silent() > GONE_AFTER {
                let words = daemon.as_deref().map(Daemon::last_words);
                let problem = words.unwrap_or_else(|| "it was not ours to look after".to_owned());
                return Err(BenchError::DaemonGone { seconds: GONE_AFTER.as_secs(), problem });
            }
            Ok(())
        };
        let mut outcome = Ok(());
        while outcome.is_ok() && !threads.iter().all(ScopedJoinHandle::is_finished) {
            std::thread::sleep(TICK);
            outcome = look_after();
        }
        if outcome.is_err() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        let mut tally = Tally::default();
        for thread in threads {
            match thread.join() {
                Ok(Ok(part)) => tally.add(part),
                Ok(Err(error)) => outcome = outcome.and(Err(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        tally.lines.sort_unstable_by_key(|line| line.request);
        outcome.map(|()| tally)
    })
}

fn report(
    options: &ReplayOptions,
    checked: &Checked,
    tally: &Tally,
    daemon: Counters,
    wall: Duration,
) -> ReplayReport {
    let sum = |count: fn(&super::tally::Line) -> u32| {
        tally.lines.iter().map(|line| u64::from(count(line))).sum::<u64>()
    };
    let pages = sum(|line| line.pages);
    let hits = HitPages { dram: sum(|line| line.dram_hit), ssd: sum(|line| line.ssd_hit) };
    let prefix_hits = hits.dram + hits.ssd;
    let own: fn(&Option<PathBuf>, u64) -> Option<u64> =
        |socket, pages| socket.is_none().then_some(pages);
    let side_by_side = if checked.serial { 1 } else { options.clients };
    let lookup_us = |quantile| tally.lookups.value_at_quantile(quantile) as f64 / 1e3;
    ReplayReport {
        schema: 1,
        requests: tally.lines.len() as u64,
        pages,
        prefix_hits,
        prefix_hit_ratio: if pages == 0 { 0.0 } else { prefix_hits as f64 / pages as f64 },
        hits,
        wrong_bytes: tally.wrong_bytes,
        stored_pages: tally.stored,
        declined: tally.declined,
        ssd_bytes_written: daemon.ssd_written,
        ssd_bytes_reappended: daemon.ssd_reappended,
        write_amplification: SsdStatus::amplification(daemon.ssd_written, daemon.ssd_reappended),
        unreachable_pages: 0,
        ssd_bytes_read: daemon.ssd_read,
        lookup_us: LookupTimes { p50: lookup_us(0.5), p99: lookup_us(0.99) },
        fetch_gbps: tally.fetch.gbps(side_by_side),
        store_gbps: tally.store.gbps(side_by_side),
        daemon_cpu_s: daemon.cpu_s,
        wall_s: wall.as_secs_f64(),
        distinct_pages: 0,
        dram_pages: own(&options.socket, checked.dram_pages),
        ssd_pages: own(&options.socket, checked.ssd_pages),
        page_bytes: checked.page_bytes,
        clients: options.clients,
        serial: checked.serial,
        verified_bytes: tally.verified_bytes,
        held_pages: tally.held,
        failed_pages: tally.failed,
        unsettled_pages: tally.unsettled,
        cut_fetches: tally.cut_fetches,
        unanswered_lookups: tally.missed_calls,
        overdue_calls: tally.overdue_calls,
        daemon_restarts: 0,
        faults: tally.faults.clone(),
        in_time: checked.speed.map(|speed| in_time(speed, checked, tally, &daemon)),
    }
}

fn in_time(speed: f64, checked: &Checked, tally: &Tally, daemon: &Counters) -> AheadReport {
    let waits = &tally.waits;
    let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
    let us = |times: &hdrhistogram::Histogram<u64>| LookupTimes {
        p50: times.value_at_quantile(0.5) as f64 / 1e3,
        p99: times.value_at_quantile(0.99) as f64 / 1e3,
    };
    let [prefetched_pages, used_pages, wasted_pages, wasted_bytes] = daemon.prefetched;
    AheadReport {
        speed,
        ahead: checked.ahead.to_string(),
        late_requests: waits.late,
        found_pages: waits.found,
        in_dram_ratio: share(waits.found_dram, waits.found),
        first_page_us: us(&waits.first_page),
        all_pages_us: us(&waits.all_pages),
        prefetched_pages,
        used_pages,
        wasted_pages,
        wasted_ratio: share(wasted_bytes, prefetched_pages * checked.frame),
    }
}

impl Shared<'_> {
    /// Requests that come in their time do so from now on.
    fn begin(&self, seed: u64) {
        let off = match self.checked.ahead {
            Ahead::Hints(off) => off,
            Ahead::Nothing | Ahead::Queue(_) => 0.0,
        };
        if let Some(speed) = self.checked.speed {
            let times = Times::new(self.trace, self.checked.requests, speed, (off, seed));
            self.times.set(times).expect("a replay begins once");
        }
    }
}
