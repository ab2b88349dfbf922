use super::ahead::Waits;
use crate::WrongBytes;
use hdrhistogram::Histogram;
use std::time::Duration;

/// Faults described in the report; the rest are only counted.
const FAULTS_KEPT: usize = 8;
/// A call may come back this much after its deadline before it counts as overdue: threads of a
/// busy machine are not run at once.
const OVERDUE_SLACK: Duration = Duration::from_millis(250);

/// One request's line in the CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) request: usize,
    pub(crate) pages: u32,
    pub(crate) dram_hit: u32,
    pub(crate) ssd_hit: u32,
}

/// What one worker counted.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) lines: Vec<Line>,
    pub(super) lookups: Histogram<u64>,
    pub(super) fetch: Moved,
    pub(super) store: Moved,
    pub(super) wrong_bytes: u64,
    pub(super) verified_bytes: u64,
    pub(super) stored: u64,
    pub(super) held: u64,
    pub(super) declined: u64,
    pub(super) failed: u64,
    pub(super) unsettled: u64,
    pub(super) cut_fetches: u64,
    pub(super) missed_calls: u64,
    pub(super) overdue_calls: u64,
    pub(super) faults: Vec<String>,
    pub(super) waits: Waits,
}

/// Bytes moved in so much time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            // Nanoseconds, 1 µs to a minute, to three digits.
            lookups: Histogram::new_with_bounds(1_000, 60_000_000_000, 3)
                .expect("the bounds are constants"),
            fetch: Moved::default(),
            store: Moved::default(),
            wrong_bytes: 0,
            verified_bytes: 0,
            stored: 0,
            held: 0,
            declined: 0,
            failed: 0,
            unsettled: 0,
            cut_fetches: 0,
            missed_calls: 0,
            overdue_calls: 0,
            faults: Vec::new(),
            waits: Waits::default(),
        }
    }
}

impl Tally {
    pub(super) fn wrong(&mut self, request: usize, page: usize, wrong: WrongBytes) {
        self.wrong_bytes += wrong.count;
        self.fault(|| format!("request {request}, page {page}: {wrong}"));
    }

    pub(super) fn fault(&mut self, describe: impl FnOnce() -> String) {
        if self.faults.len() < FAULTS_KEPT {
            self.faults.push(describe());
        }
    }

    /// Notes how long a call took that had to be back in time.
    pub(super) fn called(&mut self, took: Duration, deadline: Duration) {
        self.overdue_calls += u64::from(took > deadline + OVERDUE_SLACK);
    }

    pub(super) fn add(&mut self, other: Self) {
        self.lines.extend(other.lines);
        self.lookups.add(other.lookups).expect("all tallies have the same bounds");
        self.fetch.add(other.fetch);
        self.store.add(other.store);
        self.wrong_bytes += other.wrong_bytes;
        self.verified_bytes += other.verified_bytes;
        self.stored += other.stored;
        self.held += other.held;
        self.declined += other.declined;
        self.failed += other.failed;
        self.unsettled += other.unsettled;
        self.cut_fetches += other.cut_fetches;
        self.missed_calls += other.missed_calls;
        self.overdue_calls += other.overdue_calls;
        self.waits.add(other.waits);
        for fault in other.faults {
            self.fault(|| fault);
        }
    }
}

impl Moved {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.time += other.time;
    }

    /// Gigabytes a second with `clients` moving side by side.
    pub(super) fn gbps(self, clients: u32) -> f64 {
        if self.time.is_zero() {
            return 0.0;
        }
        self.bytes as f64 / 1e9 / (self.time.as_secs_f64() / f64::from(clients))
    }
}
