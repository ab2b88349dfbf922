use crate::BenchError;
use std::path::Path;
use std::time::{Duration, Instant};
use undercroft_client::{Client, ConnectOptions, Wait};
use undercroft_wire::StatusReport;

const GREETING: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(1);

/// Asks the daemon how it is from time to time, so that what a killed one did still counts.
pub(super) struct Watch {
    client: Client,
    seen: Vec<Seen>,
    unreachable_pages: u64,
    answered: Instant,
}

/// One life of the daemon.
struct Seen {
    pid: u32,
    first: Counters,
    last: Counters,
}

/// What only grows while a daemon lives.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) cpu_s: f64,
    pub(super) ssd_written: u64,
    pub(super) ssd_reappended: u64,
    pub(super) ssd_read: u64,
    /// Pages prefetched, used and wasted, and bytes of these.
    pub(super) prefetched: [u64; 4],
}

impl Watch {
    pub(super) fn connect(socket: &Path) -> Result<Self, BenchError> {
        let mut options = ConnectOptions::new(socket);
        "undercroft bench: watch".clone_into(&mut options.name);
        // Nothing is fetched: copy mode spares mapping the arena.
        options.copy_mode = true;
        options.wait = Wait::Now(GREETING);
        let client = Client::connect(options)?;
        let mut watch =
            Self { client, seen: Vec::new(), unreachable_pages: 0, answered: Instant::now() };
        watch.ask();
        Ok(watch)
    }

    pub(super) fn ask(&mut self) {
        let Ok(report) = self.client.status(ANSWER) else {
            return;
        };
        self.answered = Instant::now();
        self.unreachable_pages = report.ssd.as_ref().map_or(0, |ssd| ssd.unreachable_pages);
        let now = Counters::of(&report);
        match self.seen.last_mut().filter(|seen| seen.pid == report.pid) {
            Some(seen) => seen.last = now,
            None => {
                // A daemon that was there before us did other things before; one that came during
                // the run did not.
                let first = if self.seen.is_empty() { now } else { Counters::default() };
                self.seen.push(Seen { pid: report.pid, first, last: now });
            }
        }
    }

    /// Time since the last answer.
    pub(super) fn silent(&self) -> Duration {
        self.answered.elapsed()
    }

    /// Pages on SSD that no lookup could reach when the daemon last answered.
    pub(super) fn unreachable_pages(&self) -> u64 {
        self.unreachable_pages
    }

    /// What all daemons seen did since the first answer.
    pub(super) fn total(&self) -> Counters {
        self.seen.iter().fold(Counters::default(), |sum, seen| Counters {
            cpu_s: sum.cpu_s + seen.last.cpu_s - seen.first.cpu_s,
            ssd_written: sum.ssd_written + seen.last.ssd_written - seen.first.ssd_written,
            ssd_reappended: sum.ssd_reappended + seen.last.ssd_reappended
                - seen.first.ssd_reappended,
            ssd_read: sum.ssd_read + seen.last.ssd_read - seen.first.ssd_read,
            prefetched: std::array::from_fn(|at| {
                sum.prefetched[at] + seen.last.prefetched[at] - seen.first.prefetched[at]
            }),
        })
    }
}

impl Counters {
    fn of(report: &StatusReport) -> Self {
        let ssd = report.ssd.as_ref();
        Self {
            cpu_s: report.cpu_s,
            ssd_written: ssd.map_or(0, |ssd| ssd.written_bytes),
            ssd_reappended: ssd.map_or(0, |ssd| ssd.reappended_bytes),
            ssd_read: ssd.map_or(0, |ssd| ssd.read_bytes),
            prefetched: ssd.map_or([0; 4], |ssd| {
                let of = &ssd.prefetch;
                [of.pages, of.used_pages, of.wasted_pages, of.wasted_bytes]
            }),
        }
    }
}
