use crate::share::Share;
use crate::traffic::Wrong;
use anyhow::{Result, bail, ensure};
use std::fmt;
use std::time::Duration;
use undercroft_client::wire::{ArenaStatus, StartKind, StartStatus};

/// The share of committed pages that must be served after each restart, in thousandths.
const SHARE_PER_MILLE: u64 = 999;
/// What a busy machine may add to the deadline of a call.
const BUSY: Duration = Duration::from_secs(1);

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM.
    Stopped,
    /// SIGKILL.
    Killed,
    /// Another daemon took over.
    TakenOver,
    /// The service manager's watchdog, after the daemon hung.
    Aborted,
    /// Stopped for another build of it.
    Upgraded,
}

/// What one restart measured.
#[derive(Debug, Clone)]
pub struct Restart {
    /// What ended the daemon.
    pub ending: Ending,
    /// From the end of the old daemon until the new one answered; for a takeover, from its start.
    pub ready: Duration,
    /// The start as the new daemon tells it.
    pub start: StartStatus,
    /// Its arena.
    pub arena: ArenaStatus,
    /// Pages committed until then, and how many of them were served.
    pub committed: Share,
    /// The longest call of the load.
    pub longest: Duration,
    /// What each call of the load was given.
    pub deadline: Duration,
    /// Clients that did not find back.
    pub lost_clients: u32,
    /// Wrong bytes: of the load, of slow readers, and of the survey.
    pub wrong: Wrong,
    /// Times that slow readers looked at a page they had leased.
    pub looks: u64,
}

/// What all restarts measured.
#[derive(Debug, Clone, Default)]
pub struct RestartsReport {
    /// Whether DRAM was too small, and pages went to an SSD.
    pub ssd: bool,
    /// The restarts.
    pub restarts: Vec<Restart>,
    /// The whole run.
    pub took: Duration,
}

impl Restart {
    fn check(&self, ssd: bool) -> Result<()> {
        let Self { start, committed, longest, deadline, wrong, .. } = self;
        if let Some(first) = &wrong.first {
            bail!("{} wrong bytes, the first in {first}", wrong.bytes);
        }
        ensure!(start.kind != StartKind::Cold, "the arena was not gone on with: {start:?}");
        // What had left DRAM just before a kill, and was not named in a table on SSD yet, is
        // lost as with any crash: there the share counts over all restarts.
        ensure!(
            committed.of > 0 && (ssd || committed.reaches(SHARE_PER_MILLE)),
            "{} of {} committed pages were served",
            committed.some,
            committed.of
        );
        ensure!(self.lost_clients == 0, "{} clients did not find back", self.lost_clients);
        ensure!(*longest <= *deadline + BUSY, "a call took {longest:?}, with {deadline:?} given");
        Ok(())
    }
}

impl RestartsReport {
    fn committed(&self) -> Share {
        self.restarts.iter().fold(Share::default(), |mut sum, restart| {
            sum.add(restart.committed);
            sum
        })
    }

    fn looks(&self) -> u64 {
        self.restarts.iter().map(|restart| restart.looks).sum()
    }

    /// Holds the run against its bounds.
    ///
    /// # Errors
    /// The first one that is broken.
    pub fn check(&self) -> Result<()> {
        for (index, restart) in self.restarts.iter().enumerate() {
            if let Err(error) = restart.check(self.ssd) {
                bail!("restart {index}, {:?}: {error}", restart.ending);
            }
        }
        let all = self.committed();
        ensure!(
            all.reaches(SHARE_PER_MILLE),
            "{} of {} committed pages were served over all restarts",
            all.some,
            all.of
        );
        ensure!(self.looks() > 0, "no slow reader had leased anything");
        Ok(())
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} answers after {:>5.0} ms, READY {:>4} ms; {:>6} pages restored, {:>6} of {:>6} \
             committed ones served; longest call {:>5.0} ms of {:.0}; wrong bytes {}",
            format!("{:?}", self.ending),
            self.ready.as_secs_f64() * 1e3,
            self.start.ready_ms,
            self.start.restored_pages,
            self.committed.some,
            self.committed.of,
            self.longest.as_secs_f64() * 1e3,
            self.deadline.as_secs_f64() * 1e3,
            self.wrong.bytes
        )
    }
}

impl fmt::Display for RestartsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let committed = self.committed();
        let mut starts: Vec<u64> = self.restarts.iter().map(|r| r.start.ready_ms).collect();
        starts.sort_unstable();
        let longest = self.restarts.iter().map(|restart| restart.longest).max().unwrap_or_default();
        let wrong: u64 = self.restarts.iter().map(|restart| restart.wrong.bytes).sum();
        let lost: u32 = self.restarts.iter().map(|restart| restart.lost_clients).sum();
        writeln!(f, "restarts           {} in {:.0} s", starts.len(), self.took.as_secs_f64())?;
        if let Some(Restart { arena, .. }) = self.restarts.last() {
            let ArenaStatus { bytes, pages, locked, .. } = arena;
            let locked = if *locked { "locked" } else { "not locked" };
            writeln!(f, "arena              {} MiB of {pages} pages, {locked}", bytes >> 20)?;
        }
        writeln!(
            f,
            "committed pages    {} of {} served again ({committed})",
            committed.some, committed.of
        )?;
        writeln!(
            f,
            "READY              {} ms in the middle, {} ms at most",
            starts.get(starts.len() / 2).copied().unwrap_or_default(),
            starts.last().copied().unwrap_or_default()
        )?;
        writeln!(f, "longest call       {:.0} ms", longest.as_secs_f64() * 1e3)?;
        writeln!(f, "clients lost       {lost}")?;
        writeln!(f, "looks at pages under lease {}", self.looks())?;
        write!(f, "wrong_bytes        {wrong}")
    }
}
