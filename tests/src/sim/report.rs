//! What runs came to.

use crate::lying::Tally;
use std::fmt;

/// Counts over one or many runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Runs.
    pub(super) seeds: u64,
    /// Runs on devices that neither fail nor lie.
    pub(super) truthful: u64,
    /// Steps of cores, each followed by an audit.
    pub(super) steps: u64,
    /// Pages delivered to clients, each compared byte by byte.
    pub(super) delivered: u64,
    /// Records read that proved themselves, each compared byte by byte.
    pub(super) verified: u64,
    /// Pages asked for and not delivered.
    pub(super) missed: u64,
    /// Records that did not prove themselves or could not be read.
    pub(super) refused: u64,
    /// Records written.
    pub(super) written: u64,
    /// Records found at starts.
    pub(super) found: u64,
    /// Segments freed.
    pub(super) freed: u64,
    /// Processes killed.
    pub(super) kills: u64,
    /// Power cuts.
    pub(super) cuts: u64,
    /// Stores closed in good order.
    pub(super) closes: u64,
    /// Devices lost in the middle.
    pub(super) lost_devices: u64,
    /// Times a device was said to be stalled, read-only or out.
    pub(super) falters: u64,
    /// Stores that could not be opened.
    pub(super) unopened: u64,
    /// Virtual time, microseconds.
    pub(super) micros: u64,
    /// What devices did wrong.
    pub(super) faults: Tally,
}

impl Report {
    /// Adds another report.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.seeds, other.seeds),
            (&mut self.truthful, other.truthful),
            (&mut self.steps, other.steps),
            (&mut self.delivered, other.delivered),
            (&mut self.verified, other.verified),
            (&mut self.missed, other.missed),
            (&mut self.refused, other.refused),
            (&mut self.written, other.written),
            (&mut self.found, other.found),
            (&mut self.freed, other.freed),
            (&mut self.kills, other.kills),
            (&mut self.cuts, other.cuts),
            (&mut self.closes, other.closes),
            (&mut self.lost_devices, other.lost_devices),
            (&mut self.falters, other.falters),
            (&mut self.unopened, other.unopened),
            (&mut self.micros, other.micros),
        ];
        for (sum, count) in pairs {
            *sum += count;
        }
        self.faults.add(&other.faults);
    }

    /// What these runs should have met and did not: a simulator that never gets there finds
    /// nothing there.
    #[must_use]
    pub fn gaps(&self) -> Vec<&'static str> {
        let counts = [
            (self.truthful, "a truthful device"),
            (self.delivered, "a page delivered"),
            (self.verified, "a record read"),
            (self.missed, "a miss"),
            (self.refused, "a record refused"),
            (self.found, "a record found at start"),
            (self.freed, "a segment freed"),
            (self.kills, "a kill"),
            (self.cuts, "a power cut"),
            (self.closes, "a store closed"),
            (self.lost_devices, "a device lost"),
            (self.falters, "a device that falters"),
            (self.unopened, "a store that cannot be opened"),
        ];
        let missing = counts.into_iter().filter(|(count, _)| *count == 0).map(|(_, what)| what);
        missing.chain(self.faults.missing()).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, truthful, steps, kills, cuts, closes, lost_devices, .. } = self;
        let seconds = self.micros / 1_000_000;
        writeln!(
            f,
            "{seeds} seeds, {truthful} of them on truthful devices; {seconds} s of virtual time"
        )?;
        writeln!(f, "{steps} steps of the core, each audited")?;
        writeln!(f, "pages: {} delivered and right, {} missed", self.delivered, self.missed)?;
        writeln!(
            f,
            "records: {} written, {} read and right, {} refused, {} found at start; {} segments freed",
            self.written, self.verified, self.refused, self.found, self.freed
        )?;
        writeln!(
            f,
            "ends: {kills} kills, {cuts} power cuts, {closes} closed in order; {lost_devices} devices \
             lost, {} falters, {} stores not opened",
            self.falters, self.unopened
        )?;
        write!(f, "faults: {} in all: {}", self.faults.total(), self.faults)
    }
}
