//! Reads and writes at once: what both reach together, and what the writes cost the reads.

use super::extents::Twin;
use super::fill::{go_round, settle, written};
use super::{ARENA_BYTES, SETTLE_PAUSE, Tier};
use crate::BenchError;
use crate::limits::bare_ring::Way;
use crate::limits::driver::Setup;
use crate::limits::pairs::{Pairs, Unit};
use crate::limits::report::Row;
use crate::limits::rig::{DaemonCost, Rig, Run};
use hdrhistogram::Histogram;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::slice;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Of ten bytes, how many are read; the others are written.
const READ_OF_TEN: u64 = 7;
/// Pages of one store. They are a chain of their own: the pages of longer ones would keep each
/// other from being dropped when their segments are emptied.
const CHAIN_PAGES: usize = 4;
/// What was stored last is not read: much of it is in DRAM still.
const YOUNG_BYTES: u64 = ARENA_BYTES;
/// What is read, in turn: so much that nothing of it is in DRAM when its turn comes again. What
/// is older is left to reclaim.
const READ_BYTES: u64 = ARENA_BYTES * 3 / 2;
/// After so many bytes all of DRAM is of the load that runs. Slow devices get less.
const LEAD_IN_BYTES: u64 = ARENA_BYTES;
const MAX_LEAD_IN: Duration = Duration::from_secs(1);
/// Times of reads are gathered this much longer than the window of a pair: a 99th percentile of
/// few is none.
const LATENCY_WINDOWS: u32 = 2;
/// The writer looks again after this long whether the readers are ahead.
const PACE_PAUSE: Duration = Duration::from_micros(200);

/// Reads of single pages by so many threads that they take their share of the queue, and a writer
/// that keeps pace with them.
pub(super) fn measure(
    tier: Tier,
    twin: &Twin,
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
) -> Result<Vec<Row>, BenchError> {
    let (name, read_p99) = ("ssd_mixed_70_30", "ssd_mixed_read_p99");
    let mut rows = Vec::new();
    if !setup.wants(name) && !setup.wants(read_p99) {
        return Ok(rows);
    }
    let rig = tier.start(name, setup)?;
    go_round(tier, setup, &rig)?;
    let mut load = Load::start(tier, setup, &rig)?;
    if setup.wants(name) {
        rows.push(speed_row(name, tier, twin, pairs, &mut load)?);
    }
    if setup.wants(read_p99) {
        rows.push(latency_row(read_p99, pairs, &mut load)?);
    }
    tier.confirm(&rig)?;
    Ok(rows)
}

fn speed_row(
    name: &'static str,
    tier: Tier,
    twin: &Twin,
    pairs: &Pairs<'_>,
    load: &mut Load<'_>,
) -> Result<Row, BenchError> {
    let mut bare = tier.bare(twin.path(), Way::Mix)?;
    let mut cost = DaemonCost::default();
    let mut moved = load.lead_in(Writes::Paced)?;
    let mut ours = |window: Duration| {
        let before = moved;
        let part = load.run(Writes::Paced, u64::MAX, window, &mut cost)?;
        moved.add(part.moved);
        Ok((moved.in_the_mix() - before.in_the_mix()) / part.seconds)
    };
    let mut next = 0;
    let mut limit = |window| {
        let failed = BenchError::system("read and write the bare loop's file");
        bare.run(twin.offsets(), &mut next, window).map_err(failed)
    };
    let row = pairs.measure(name, Unit::BytesPerSecond, &mut ours, &mut limit)?;
    Ok(Row { bare: bare.name(), daemon_cpu_s_per_gib: cost.per_gib(), ..row })
}

fn latency_row(
    name: &'static str,
    pairs: &Pairs<'_>,
    load: &mut Load<'_>,
) -> Result<Row, BenchError> {
    let mut cost = DaemonCost::default();
    // Both sides need the load, one at a time.
    let load = RefCell::new(load);
    let p99 = |writes: Writes, window: Duration, cost: &mut DaemonCost| {
        let load = &mut *load.borrow_mut();
        load.lead_in(writes)?;
        let part = load.run(writes, u64::MAX, LATENCY_WINDOWS * window, cost)?;
        Ok(part.reads.value_at_quantile(0.99) as f64 / 1e3)
    };
    let mut ours = |window| p99(Writes::Paced, window, &mut cost);
    let mut limit = |window| p99(Writes::None, window, &mut DaemonCost::default());
    let row = pairs.measure(name, Unit::Microseconds, &mut ours, &mut limit)?;
    let bare = "the daemon: the same reads without the writes".to_owned();
    Ok(Row { bare, daemon_cpu_s_per_gib: cost.per_gib(), ..row })
}

/// Whether anything is written beside the reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    None,
    /// As much as makes three bytes of ten.
    Paced,
}

/// Bytes that went through the device.
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    read: u64,
    written: u64,
}

impl Moved {
    fn add(&mut self, more: Self) {
        self.read += more.read;
        self.written += more.written;
    }

    /// Bytes of the mix that is complete: what is too much of one side does not count, so that
    /// reads cannot win by leaving writes undone.
    fn in_the_mix(self) -> f64 {
        let share = READ_OF_TEN as f64 / 10.0;
        (self.read as f64 / share).min(self.written as f64 / (1.0 - share))
    }
}

/// What happened while the load ran.
struct Part {
    moved: Moved,
    seconds: f64,
    /// Times of reads, nanoseconds.
    reads: Histogram<u64>,
}

/// Readers and a writer on one daemon.
struct Load<'a> {
    tier: Tier,
    setup: &'a Setup<'a>,
    rig: &'a Rig,
    readers: usize,
    /// What was stored and not given up to reclaim yet, the oldest first.
    chains: VecDeque<Run>,
    next_read: AtomicUsize,
}

impl<'a> Load<'a> {
    /// Puts on SSD what is to be read.
    fn start(tier: Tier, setup: &'a Setup<'a>, rig: &'a Rig) -> Result<Self, BenchError> {
        let readers = (u64::from(tier.depth) * READ_OF_TEN / 10) as usize;
        let (chains, next_read) = (VecDeque::new(), AtomicUsize::new(0));
        let mut load = Self { tier, setup, rig, readers, chains, next_read };
        for _ in 0..tier.pages(READ_BYTES + YOUNG_BYTES) / CHAIN_PAGES {
            setup.interrupt.check()?;
            load.chains.push_back(load.store()?);
            settle(rig)?;
        }
        Ok(load)
    }

    fn store(&self) -> Result<Run, BenchError> {
        let chain = self.rig.fresh(CHAIN_PAGES);
        self.rig.store(&chain, 0..CHAIN_PAGES)?;
        Ok(chain)
    }

    /// Runs until DRAM holds what it would after running for long.
    fn lead_in(&mut self, writes: Writes) -> Result<Moved, BenchError> {
        let cost = &mut DaemonCost::default();
        Ok(self.run(writes, LEAD_IN_BYTES, MAX_LEAD_IN, cost)?.moved)
    }

    /// Runs until so much was read and stored, but no longer than `window`.
    fn run(
        &mut self,
        writes: Writes,
        bytes: u64,
        window: Duration,
        cost: &mut DaemonCost,
    ) -> Result<Part, BenchError> {
        self.setup.interrupt.check()?;
        self.give_up_old()?;
        let before = self.rig.status()?;
        let gauge = Gauge::new(window, bytes);
        let (stored, reads) = self.drive(writes, &gauge);
        // Until the device is quiet, or the rest would be written during the other side's time.
        let after = settle(self.rig)?;
        let seconds = (gauge.since.elapsed() - SETTLE_PAUSE).as_secs_f64();
        self.chains.extend(stored?);
        if reads.is_empty() {
            return Err(self.rig.problem("not one page came from SSD".to_owned()));
        }
        let read = gauge.read.into_inner();
        let moved = Moved { read, written: written(&after) - written(&before) };
        cost.add(&before, &after, moved.read + moved.written);
        Ok(Part { moved, seconds, reads })
    }

    /// Reclaim keeps what was read, and writes it again: it is told what is not needed any more.
    fn give_up_old(&mut self) -> Result<(), BenchError> {
        let most = self.tier.pages(READ_BYTES + YOUNG_BYTES) / CHAIN_PAGES;
        while self.chains.len() > most
            && let Some(chain) = self.chains.pop_front()
        {
            self.rig.end(&chain)?;
        }
        Ok(())
    }

    fn drive(
        &self,
        writes: Writes,
        gauge: &Gauge,
    ) -> (Result<Vec<Run>, BenchError>, Histogram<u64>) {
        std::thread::scope(|scope| {
            let readers: Vec<_> =
                (0..self.readers).map(|_| scope.spawn(|| self.read(gauge))).collect();
            let stored = match writes {
                Writes::None => Ok(Vec::new()),
                Writes::Paced => self.write(gauge),
            };
            let mut reads = times();
            for reader in readers {
                let times = reader.join().expect("a reader does not panic");
                reads.add(times).expect("all have the same bounds");
            }
            (stored, reads)
        })
    }

    /// Fetches pages one by one. Returns how long those took that came from SSD; a page that
    /// reclaim dropped meanwhile is a miss, and nothing here.
    fn read(&self, gauge: &Gauge) -> Histogram<u64> {
        let mut times = times();
        let pages = self.tier.pages(READ_BYTES).min(self.chains.len() * CHAIN_PAGES);
        while gauge.runs() {
            let next = self.next_read.fetch_add(1, Ordering::Relaxed) % pages;
            let key = &self.chains[next / CHAIN_PAGES][next % CHAIN_PAGES];
            let began = Instant::now();
            let report = self.rig.fetch_some(slice::from_ref(key));
            if report.ssd_pages > 0 {
                times.saturating_record(began.elapsed().as_nanos() as u64);
                gauge.read.fetch_add(self.tier.page.into(), Ordering::Relaxed);
            }
        }
        times
    }

    /// Stores chains as long as the readers are ahead.
    fn write(&self, gauge: &Gauge) -> Result<Vec<Run>, BenchError> {
        let mut stored = Vec::new();
        while gauge.runs() {
            if !gauge.writer_is_behind() {
                std::thread::sleep(PACE_PAUSE);
                continue;
            }
            stored.push(self.store()?);
            let bytes = CHAIN_PAGES as u64 * u64::from(self.tier.page);
            gauge.stored.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(stored)
    }
}

/// What readers and writer know of each other.
#[derive(Debug)]
struct Gauge {
    since: Instant,
    window: Duration,
    bytes: u64,
    read: AtomicU64,
    stored: AtomicU64,
}

impl Gauge {
    fn new(window: Duration, bytes: u64) -> Self {
        let since = Instant::now();
        Self { since, window, bytes, read: AtomicU64::new(0), stored: AtomicU64::new(0) }
    }

    fn runs(&self) -> bool {
        let moved = self.read.load(Ordering::Relaxed) + self.stored.load(Ordering::Relaxed);
        moved < self.bytes && self.since.elapsed() < self.window
    }

    fn writer_is_behind(&self) -> bool {
        let (read, stored) =
            (self.read.load(Ordering::Relaxed), self.stored.load(Ordering::Relaxed));
        stored * READ_OF_TEN < read * (10 - READ_OF_TEN)
    }
}

/// Nanoseconds, 1 µs to a minute, to three digits.
fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("the bounds are constants")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge(read: u64, stored: u64) -> Gauge {
        let mut gauge = Gauge::new(Duration::from_secs(3600), 100);
        (gauge.read, gauge.stored) = (read.into(), stored.into());
        gauge
    }

    #[test]
    fn only_complete_mixes_count() {
        let mix = |read, written| Moved { read, written }.in_the_mix().round();
        assert_eq!(mix(70, 30), 100.0);
        assert_eq!((mix(700, 30), mix(70, 300)), (100.0, 100.0));
        assert_eq!((mix(70, 0), mix(0, 30)), (0.0, 0.0));
    }

    #[test]
    fn the_writer_keeps_three_to_seven() {
        assert!(!gauge(0, 0).writer_is_behind());
        assert!(gauge(70, 29).writer_is_behind());
        assert!(!gauge(70, 30).writer_is_behind());
    }

    #[test]
    fn the_load_ends_when_enough_has_moved() {
        assert!(gauge(70, 29).runs());
        assert!(!gauge(70, 30).runs());
    }
}
