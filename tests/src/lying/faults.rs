//! What can go wrong with a device, how often, and where.

use fastrand::Rng;
use std::fmt;

/// Everything a lying device can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A transfer moves a part, in whole blocks, and says so.
    Short,
    /// A transfer is interrupted before it moves anything, and says so.
    Interrupted,
    /// A transfer takes its time.
    Slow,
    /// A read fails.
    ReadError,
    /// A write fails; a part of it may be there.
    WriteError,
    /// A flush fails, and some of what it should have brought to the medium never gets there.
    FlushError,
    /// There is no room for the file.
    NoSpace,
    /// A write says that it was done, and only some of its sectors were.
    Torn,
    /// A write says that it was done, and was not.
    Lost,
    /// A write lands somewhere else.
    Misdirected,
    /// A read returns what some of its sectors held before.
    Stale,
    /// A read returns a flipped bit that is not on the medium.
    FlippedOnRead,
    /// A bit flips on the medium.
    Rotten,
    /// A flush says that it was done, and was not.
    FlushIgnored,
    /// A power cut took a write that was not flushed.
    CutDropped,
    /// A power cut left some sectors of a write that was not flushed.
    CutTorn,
    /// A read lands after the process that started it was killed.
    LateRead,
    /// A write lands after the process that started it was killed.
    LateWrite,
}

/// All of them, in the order of their numbers, and what reports call them.
const NAMES: [(Fault, &str); FAULTS] = [
    (Fault::Short, "short"),
    (Fault::Interrupted, "interrupted"),
    (Fault::Slow, "slow"),
    (Fault::ReadError, "read error"),
    (Fault::WriteError, "write error"),
    (Fault::FlushError, "flush error"),
    (Fault::NoSpace, "no space"),
    (Fault::Torn, "torn"),
    (Fault::Lost, "lost"),
    (Fault::Misdirected, "misdirected"),
    (Fault::Stale, "stale"),
    (Fault::FlippedOnRead, "flipped on read"),
    (Fault::Rotten, "rotten"),
    (Fault::FlushIgnored, "flush ignored"),
    (Fault::CutDropped, "cut: dropped"),
    (Fault::CutTorn, "cut: torn"),
    (Fault::LateRead, "late read"),
    (Fault::LateWrite, "late write"),
];
const FAULTS: usize = 18;

/// How often faults strike, of so many transfers that they could strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rates([u16; FAULTS]);

/// What a rate counts.
const OF: u32 = 10_000;

impl Rates {
    /// The same, with this fault striking this many times of 10,000.
    #[must_use]
    pub(crate) fn with(mut self, fault: Fault, of_10_000: u16) -> Self {
        self.0[fault as usize] = of_10_000;
        self
    }

    /// How often a fault strikes.
    pub(crate) fn of(&self, fault: Fault) -> u16 {
        self.0[fault as usize]
    }
}

/// Where on the device faults may strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Place {
    /// Everywhere.
    #[default]
    Anywhere,
    /// In segments, not in the superblocks.
    Segments,
    /// In every second segment.
    OddSegments,
}

/// A region of the device: the superblocks, or a segment by its number.
pub(crate) type Region = Option<u32>;

/// Which faults strike how often and where: what keeps a run survivable, so that it can be asked
/// for more than not to fail.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Atlas {
    /// How often.
    pub(crate) rates: Rates,
    /// Where.
    pub(crate) place: Place,
}

impl Atlas {
    /// Whether faults may strike in a region.
    pub(crate) fn covers(&self, region: Region) -> bool {
        match (self.place, region) {
            (Place::Anywhere, _) => true,
            (Place::Segments, region) => region.is_some(),
            (Place::OddSegments, region) => region.is_some_and(|segment| segment % 2 == 1),
        }
    }

    /// Whether a fault strikes now, in this region.
    pub(crate) fn strikes(&self, rng: &mut Rng, fault: Fault, region: Region) -> bool {
        let rate = u32::from(self.rates.of(fault));
        rate > 0 && self.covers(region) && rng.u32(..OF) < rate
    }
}

/// How often each fault has struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally([u64; FAULTS]);

impl Tally {
    /// A fault has struck.
    pub(crate) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// Adds another tally.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What there is no case of yet.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &'static str> {
        let counts = self.0;
        NAMES.iter().filter(move |(fault, _)| counts[*fault as usize] == 0).map(|(_, name)| *name)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (fault, name)) in NAMES.iter().enumerate() {
            let end = if index + 1 == FAULTS { "" } else { ", " };
            write!(f, "{name} {}{end}", self.0[*fault as usize])?;
        }
        Ok(())
    }
}
