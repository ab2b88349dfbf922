//! What runs have come to: how much was tried, and how much of it went wrong on purpose.

use crate::lying::Tally;
use std::fmt;
use undercroft_core::Stats;
use undercroft_ssd_tier::LogCounters;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// Runs.
    Seeds,
    /// Runs on devices that neither fail nor lie.
    Truthful,
    /// Runs with more than one device.
    SeveralDevices,
    /// Virtual time, microseconds.
    Micros,
    /// Steps of cores, each followed by an audit.
    Steps,
    /// Pages delivered to clients, each compared byte by byte.
    Delivered,
    /// Of these, pages that were in DRAM.
    DeliveredDram,
    /// Of these, pages that were read from an SSD first.
    DeliveredSsd,
    /// Of these, pages that were copied into a slot.
    DeliveredCopied,
    /// Pages asked for and not delivered.
    Missed,
    /// Lookups that found something that is on SSD alone.
    FoundOnSsd,
    /// Pages stored.
    Stored,
    /// Pages that left DRAM.
    Evicted,
    /// Pages that left DRAM and were nowhere else.
    LostPages,
    /// Pages in tiers when a truthful run has come to rest.
    AtRest,
    /// Of these, pages that no lookup can reach, because one before them is in no tier.
    Unreachable,
    /// Records written.
    Written,
    /// Records written by reclaim.
    Relocated,
    /// Records dropped by reclaim.
    Dropped,
    /// Segments sealed.
    Sealed,
    /// Segments freed.
    Freed,
    /// Records read that proved themselves, each compared byte by byte.
    Verified,
    /// Records that did not prove themselves or could not be read.
    Refused,
    /// Records found at starts.
    Found,
    /// Records of unsealed segments that proved themselves later.
    Proved,
    /// Records of unsealed segments that did not.
    Disproved,
    /// Processes killed.
    Kills,
    /// Power cuts.
    Cuts,
    /// Stores closed in good order.
    Closes,
    /// Processes that ended while they opened a store.
    CutOff,
    /// Devices lost in the middle.
    LostDevices,
    /// Times a device was said to be stalled, read-only or out.
    Falters,
    /// Times a device was well again.
    Recoveries,
    /// Stores that could not be opened.
    Unopened,
    /// Stores of another size than before.
    Resized,
    /// Purges that were acknowledged.
    Purges,
}

/// All of them in the order of their numbers, and what reports call them.
const NAMES: [(Count, &str); COUNTS] = [
    (Count::Seeds, "seeds"),
    (Count::Truthful, "on truthful devices"),
    (Count::SeveralDevices, "with several devices"),
    (Count::Micros, "microseconds of virtual time"),
    (Count::Steps, "steps of the core, each audited"),
    (Count::Delivered, "pages delivered and right"),
    (Count::DeliveredDram, "from DRAM"),
    (Count::DeliveredSsd, "from SSD"),
    (Count::DeliveredCopied, "copied into slots"),
    (Count::Missed, "asked for and missed"),
    (Count::FoundOnSsd, "lookups that found pages on SSD"),
    (Count::Stored, "stored"),
    (Count::Evicted, "evicted"),
    (Count::LostPages, "evicted and nowhere else"),
    (Count::AtRest, "in tiers at rest"),
    (Count::Unreachable, "of them unreachable"),
    (Count::Written, "records written"),
    (Count::Relocated, "by reclaim"),
    (Count::Dropped, "dropped by reclaim"),
    (Count::Sealed, "segments sealed"),
    (Count::Freed, "segments freed"),
    (Count::Verified, "records read and right"),
    (Count::Refused, "records refused"),
    (Count::Found, "records found at start"),
    (Count::Proved, "unsealed records proved"),
    (Count::Disproved, "unsealed records disproved"),
    (Count::Kills, "kills"),
    (Count::Cuts, "power cuts"),
    (Count::Closes, "closed in order"),
    (Count::CutOff, "cut off while opening"),
    (Count::LostDevices, "devices lost"),
    (Count::Falters, "devices that faltered"),
    (Count::Recoveries, "devices well again"),
    (Count::Unopened, "stores not opened"),
    (Count::Resized, "stores resized"),
    (Count::Purges, "purges acknowledged"),
];
const COUNTS: usize = 36;

/// Lines of a report, each with the first count of it.
const LINES: [Count; 6] =
    [Count::Seeds, Count::Delivered, Count::Stored, Count::Written, Count::Verified, Count::Kills];

/// What runs have come to.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    counts: [u64; COUNTS],
    /// What devices did wrong.
    faults: Tally,
}

impl Default for Report {
    fn default() -> Self {
        Self { counts: [0; COUNTS], faults: Tally::default() }
    }
}

impl Report {
    /// One more of these.
    pub(super) fn count(&mut self, what: Count) {
        self.more(what, 1);
    }

    /// So many more of these.
    pub(super) fn more(&mut self, what: Count, count: u64) {
        self.counts[what as usize] += count;
    }

    pub(super) fn of(&self, what: Count) -> u64 {
        self.counts[what as usize]
    }

    /// What a device did wrong.
    pub(super) fn faults(&mut self, faults: &Tally) {
        self.faults.add(faults);
    }

    /// What a core did in one life.
    pub(super) fn core(&mut self, stats: &Stats) {
        self.more(Count::DeliveredDram, stats.delivered_dram_pages);
        self.more(Count::DeliveredSsd, stats.delivered_ssd_pages);
        self.more(Count::Stored, stats.stored);
        self.more(Count::Evicted, stats.evicted_pages);
        self.more(Count::LostPages, stats.lost_pages);
        self.more(Count::Relocated, stats.relocated_pages);
        self.more(Count::Dropped, stats.ssd_dropped_pages);
        self.more(Count::Proved, stats.proved_records);
        self.more(Count::Disproved, stats.disproved_records);
    }

    /// What a page log did in one life.
    pub(super) fn log(&mut self, counters: &LogCounters) {
        self.more(Count::Sealed, counters.sealed_segments);
    }

    /// Adds another report.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum += count);
        self.faults.add(&other.faults);
    }

    /// What these runs should have met and did not: a simulator that never gets there finds
    /// nothing there.
    #[must_use]
    pub fn gaps(&self) -> Vec<&'static str> {
        let missing = NAMES.iter().filter(|(what, _)| self.of(*what) == 0).map(|(_, name)| *name);
        missing.chain(self.faults.missing()).collect()
    }

    /// Of 100 pages delivered, so many came from SSD.
    #[must_use]
    pub fn percent_from_ssd(&self) -> u64 {
        let all = self.of(Count::DeliveredDram) + self.of(Count::DeliveredSsd);
        self.of(Count::DeliveredSsd) * 100 / all.max(1)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, name) in NAMES {
            let starts = LINES.contains(&what);
            let between = match (starts, what) {
                (_, Count::Seeds) => "",
                (true, _) => "\n",
                (false, _) => ", ",
            };
            write!(f, "{between}{} {name}", self.of(what))?;
        }
        writeln!(f, "\n{} % of what was delivered came from SSD", self.percent_from_ssd())?;
        write!(f, "{} faults: {}", self.faults.total(), self.faults)
    }
}
