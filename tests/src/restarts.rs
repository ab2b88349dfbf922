//! Restarts under load: pages in DRAM, leases and clients outlive the daemon, whatever ends it.

mod ordeal;
mod report;
mod slow_reader;

pub(crate) use ordeal::Ordeal;
pub use report::{Ending, Restart, RestartsReport};

use crate::{DaemonOptions, TestDaemon};
use anyhow::Result;
use std::time::{Duration, Instant};

/// How much to do.
#[derive(Debug, Clone)]
pub struct Restarts {
    /// Rounds: by turns the daemon is told to stop, is killed, and is taken over from.
    pub rounds: u32,
    /// Pages stored before the first round.
    pub pages: u64,
    /// Pages stored in each round, at most.
    pub new_pages: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages of a chain.
    pub chain_pages: u32,
    /// How long the load lasts before a restart and after it, milliseconds.
    pub load_ms: u64,
    /// DRAM holds one page of so many; the rest is on SSD, and reads from there are under way
    /// whenever the daemon ends. 1: all of them, and there is no SSD.
    pub on_ssd: u64,
    /// Seed of all choices.
    pub seed: u64,
}

impl Restarts {
    /// Does it. `progress` is called after each restart; `go_on` is asked from time to time.
    ///
    /// # Errors
    /// A daemon does not start, or `go_on` says no.
    ///
    /// # Panics
    /// If a thread of the load did.
    pub fn run(
        &self,
        progress: &dyn Fn(&Restart),
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<RestartsReport> {
        let since = Instant::now();
        let mut daemon = TestDaemon::start(self.daemon());
        let site = daemon.site();
        let ordeal = Ordeal::begin(self, &site, go_on)?;
        let mut report = RestartsReport { ssd: self.on_ssd > 1, ..RestartsReport::default() };
        for round in 0..self.rounds {
            go_on()?;
            let ending = match round % 3 {
                0 => Ending::Stopped,
                1 => Ending::Killed,
                _ => Ending::TakenOver,
            };
            let restart = ordeal.round(&site, round, ending, || end(&mut daemon, ending))?;
            progress(&restart);
            report.restarts.push(restart);
        }
        report.took = since.elapsed();
        Ok(report)
    }

    /// Bytes of all pages there will ever be, with some room.
    pub(crate) fn all_bytes(&self) -> u64 {
        let pages = self.pages + u64::from(self.rounds + 1) * self.new_pages;
        pages * self.page_bytes * 5 / 4
    }

    fn daemon(&self) -> DaemonOptions {
        let all = self.all_bytes();
        let dram = (all / self.on_ssd).max(1 << 20);
        let ssd = if self.on_ssd > 1 { 2 * all } else { 0 };
        let staging = 64 * self.page_bytes;
        // At each restart the rest of an open segment is lost, and maybe of one begun ahead.
        let segment = (64 * self.page_bytes).max(64 << 10);
        let more = if ssd > 0 { format!("segment = {segment}") } else { String::new() };
        DaemonOptions { dram, ssd, staging, more, managed: true, ..DaemonOptions::default() }
    }
}

/// Ends the daemon and has the next one serve: how long that took.
fn end(daemon: &mut TestDaemon, ending: Ending) -> Result<Duration> {
    match ending {
        Ending::TakenOver => {
            let since = Instant::now();
            daemon.take_over();
            return Ok(since.elapsed());
        }
        Ending::Stopped => drop(daemon.stop()),
        _ => daemon.kill(),
    }
    daemon.try_restart()
}
