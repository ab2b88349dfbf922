use super::lossy_disk::{Cut, DiskCounts, Survival};
use crate::share::Share;
use crate::traffic::{TrafficReport, Wrong};
use anyhow::{Result, bail, ensure};
use std::fmt;
use std::time::Duration;

/// The share of pages of sealed segments that must be served again, in thousandths.
const SHARE_PER_MILLE: u64 = 990;

/// When the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// While the daemon started on an empty file system.
    FirstStart,
    /// While it started after it was killed under load.
    Start,
    /// Under load.
    Load,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FirstStart => "first start",
            Self::Start => "start",
            Self::Load => "load",
        })
    }
}

/// What one cut measured.
#[derive(Debug, Clone)]
pub struct CutRound {
    /// When the power went.
    pub moment: Moment,
    /// What was to survive of the cache.
    pub survival: Survival,
    /// What did.
    pub cut: Cut,
    /// The load until the cut.
    pub load: TrafficReport,
    /// From the start of the process until it answered.
    pub ready: Duration,
    /// Records recovered at the start.
    pub recovered: u64,
    /// Pages of segments sealed more than a second earlier, and how many were served again.
    pub settled: Share,
    /// All other pages that were stored, and how many of them were served.
    pub others: Share,
    /// Records and table batches that did not prove themselves.
    pub corrupt: u64,
    /// Wrong bytes: before the cut, at it and after it.
    pub wrong: Wrong,
}

/// What all cuts measured.
#[derive(Debug, Clone, Default)]
pub struct PowerCutReport {
    /// Seed of the run.
    pub seed: u64,
    /// The cuts.
    pub rounds: Vec<CutRound>,
    /// What the disk did in all of them.
    pub disk: DiskCounts,
    /// The whole run.
    pub took: Duration,
}

impl PowerCutReport {
    /// Holds the run against its bounds: every start came up (or there would be no report), no
    /// wrong byte, and 99 % of the pages of sealed segments served again.
    ///
    /// # Errors
    /// The first bound that is broken.
    pub fn check(&self) -> Result<()> {
        for (index, CutRound { wrong, .. }) in self.rounds.iter().enumerate() {
            if let Some(first) = &wrong.first {
                bail!("cut {index}: {} wrong bytes, the first in {first}", wrong.bytes);
            }
        }
        let settled = self.settled(|_| true);
        ensure!(
            settled.reaches(SHARE_PER_MILLE),
            "{} of {} pages of sealed segments were served again",
            settled.some,
            settled.of
        );
        Ok(())
    }

    /// The share of the pages of segments sealed more than a second earlier that were served
    /// again, over some of the cuts.
    #[must_use]
    pub fn settled(&self, counts: impl Fn(&CutRound) -> bool) -> Share {
        let mut sum = Share::default();
        for round in self.rounds.iter().filter(|round| counts(round)) {
            sum.add(round.settled);
        }
        sum
    }
}

impl CutRound {
    pub(super) fn new(moment: Moment, survival: Survival) -> Self {
        Self {
            moment,
            survival,
            cut: Cut::default(),
            load: TrafficReport::default(),
            ready: Duration::ZERO,
            recovered: 0,
            settled: Share::default(),
            others: Share::default(),
            corrupt: 0,
            wrong: Wrong::default(),
        }
    }

    /// The line above a table of cuts.
    #[must_use]
    pub fn heading() -> &'static str {
        "  cut  moment       survival   new  read  writes    kept dropped    torn  ready ms  records  \
         settled     served  others     served  corrupt  wrong"
    }

    /// This cut's line.
    #[must_use]
    pub fn line(&self, index: usize) -> String {
        let Self { moment, survival, cut, load, ready, recovered, settled, others, .. } = self;
        let Cut { writes, kept, dropped, torn } = cut;
        format!(
            "{index:>5}  {moment:<11}  {survival:<8} {:>5} {:>5} {writes:>7} {kept:>7} \
             {dropped:>7} {torn:>7} {:>9.0} {recovered:>8} {:>8} {settled:>10} {:>7} {others:>10} \
             {:>8} {:>6}",
            load.stored_pages,
            load.loaded_pages,
            ready.as_secs_f64() * 1e3,
            settled.of,
            others.of,
            self.corrupt,
            self.wrong.bytes,
        )
    }
}

impl fmt::Display for PowerCutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, seed, disk, took } = self;
        let total = |of: fn(&CutRound) -> u64| rounds.iter().map(of).sum::<u64>();
        let at = |moment| rounds.iter().filter(|round| round.moment == moment).count();
        let ready = rounds.iter().map(|round| round.ready).max().unwrap_or_default();
        writeln!(
            f,
            "cuts               {}: {} in a first start, {} in a start, {} under load; seed {seed}",
            rounds.len(),
            at(Moment::FirstStart),
            at(Moment::Start),
            at(Moment::Load),
        )?;
        writeln!(f, "took               {:.0} s", took.as_secs_f64())?;
        writeln!(
            f,
            "starts             {} of {}, READY in {:.0} ms at most",
            rounds.len(),
            rounds.len(),
            ready.as_secs_f64() * 1e3
        )?;
        let DiskCounts { flushes, overflows, written_bytes, .. } = disk;
        let written = written_bytes >> 20;
        writeln!(
            f,
            "disk               {written} MiB written, {flushes} flushes, cache full {overflows} times"
        )?;
        writeln!(
            f,
            "cached sectors     {} kept, {} dropped, {} torn",
            total(|round| round.cut.kept),
            total(|round| round.cut.dropped),
            total(|round| round.cut.torn)
        )?;
        let all = self.settled(|_| true);
        writeln!(
            f,
            "pages of segments sealed more than 1 s before the cut: {} of {} served again ({all})",
            all.some, all.of
        )?;
        for survival in Survival::ALL {
            let share = self.settled(|round| round.survival == survival);
            writeln!(f, "  survival {survival:<8} {} of {} ({share})", share.some, share.of)?;
        }
        let corrupt = total(|round| round.corrupt);
        writeln!(f, "records and tables that did not prove themselves: {corrupt}")?;
        write!(f, "wrong_bytes        {}", total(|round| round.wrong.bytes))
    }
}
