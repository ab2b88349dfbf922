//! Warm restart: what is on SSD is served again after `kill -9`, and nothing wrong ever is.

use crate::ledger::{Ledger, Settled};
use crate::share::Share;
use crate::survey::{Survey, SurveyOptions, survey};
use crate::traffic::{DEADLINE, Traffic, TrafficOptions, TrafficReport, Wrong, locked};
use crate::{DaemonOptions, TestDaemon};
use anyhow::{Result, bail, ensure};
use fastrand::Rng;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Only pages stored so long before the kill must be there again.
const EARLIER: Duration = Duration::from_secs(1);
/// Frames of DRAM: few, so that nearly every page lives on SSD.
const DRAM_PAGES: u64 = 64;
/// Behind a page that counts, so many were stored: DRAM's frames once over for the order in which
/// they are evicted, and once more for what is stored, held and written at the same time.
const BEHIND: u64 = 2 * DRAM_PAGES;
/// The share of those pages that must be served again, in thousandths.
const SHARE_PER_MILLE: u64 = 999;
const STAGING_PAGES: u64 = 64;
const WRITERS: u32 = 2;
const READERS: u32 = 2;
const SURVEYORS: u32 = 2;

/// How much to do.
#[derive(Debug, Clone)]
pub struct WarmRestart {
    /// How often the daemon is killed.
    pub rounds: u32,
    /// Pages stored before the first round.
    pub pages: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages of a chain.
    pub chain_pages: u32,
    /// Pages stored in a round, at most. All of them stay: the store has room for every round.
    pub new_pages: u64,
    /// How long a round's steady load lasts, milliseconds: drawn from here. Then comes a burst, in
    /// which the daemon is killed.
    pub load_ms: std::ops::Range<u64>,
    /// Seed of all choices.
    pub seed: u64,
    /// Where the store lies; `None` for the system's place for temporary files.
    pub directory: Option<PathBuf>,
}

/// What one round measured.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// The load until the kill.
    pub load: TrafficReport,
    /// From the start of the process until it answered.
    pub ready: Duration,
    /// Records recovered at the start.
    pub recovered: u64,
    /// Time the daemon took from the start of the search until it knew all of them, milliseconds.
    pub recovery_ms: u64,
    /// Of these, how many had to prove themselves by being read before a lookup found them.
    pub proved: u64,
    /// From the start of the process until lookups found all they ever would.
    pub seen: Duration,
    /// Pages stored more than a second before the kill and on SSD for certain, and how many of
    /// them were served again.
    pub settled: Share,
    /// Of these, those stored in this very round.
    pub fresh: Share,
    /// Pages that may have been in DRAM only, and how many of them were served again all the same.
    pub tail: Share,
    /// Records and table batches that did not prove themselves.
    pub corrupt: u64,
    /// Failed reads and writes.
    pub io_errors: u64,
    /// Times the SSD's answers were overdue after the start.
    pub stalls: u64,
    /// Pages dropped for want of room, as far as the daemon could say: none, or the round says
    /// nothing.
    pub reclaimed: u64,
    /// Wrong bytes: in the load before the kill and in the survey after it.
    pub wrong: Wrong,
}

/// What all rounds measured.
#[derive(Debug, Clone, Default)]
pub struct WarmRestartReport {
    /// Seed of the run.
    pub seed: u64,
    /// READY time of the first start, on an empty store: the floor of all others.
    pub first_ready: Duration,
    /// Filling the store.
    pub fill: Duration,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// The whole run.
    pub took: Duration,
}

impl WarmRestart {
    /// Runs all rounds. `progress` is called after each; `go_on` is asked often.
    ///
    /// # Errors
    /// The daemon does not start or stops answering, or `go_on` says no. Broken bounds are no
    /// error: see [`WarmRestartReport::check`].
    pub fn run(
        &self,
        progress: &dyn Fn(usize, &Round),
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<WarmRestartReport> {
        let since = Instant::now();
        let mut daemon = TestDaemon::prepare(self.daemon())?;
        let mut report = WarmRestartReport { seed: self.seed, ..WarmRestartReport::default() };
        report.first_ready = daemon.try_restart()?;
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        report.fill = self.fill(&daemon, &ledger, go_on)?;
        for index in 0..self.rounds {
            let mut random = Rng::with_seed(self.seed.wrapping_add(u64::from(index)));
            let round = self.round(&mut daemon, &ledger, &mut random, go_on)?;
            progress(index as usize, &round);
            report.rounds.push(round);
        }
        report.took = since.elapsed();
        Ok(report)
    }

    fn daemon(&self) -> DaemonOptions {
        // At each restart the rest of an open segment is lost, and maybe of one begun ahead.
        let segment_pages = (self.pages / 64).max(16);
        let pages = self.pages + u64::from(self.rounds) * (self.new_pages + 2 * segment_pages);
        DaemonOptions {
            dram: DRAM_PAGES * self.page_bytes,
            ssd: ((pages + 4 * segment_pages) * self.page_bytes).max(1 << 20),
            staging: STAGING_PAGES * self.page_bytes,
            more: format!("segment = {}", segment_pages * self.page_bytes),
            home_in: self.directory.clone(),
            ..DaemonOptions::default()
        }
    }

    fn traffic(&self, random: &mut Rng) -> TrafficOptions {
        TrafficOptions {
            page_bytes: self.page_bytes,
            chain_pages: self.chain_pages,
            writers: WRITERS,
            readers: 0,
            pace: 0,
            limit: self.pages,
            deadline: DEADLINE,
            seed: random.u64(..),
        }
    }

    fn fill(
        &self,
        daemon: &TestDaemon,
        ledger: &Arc<Mutex<Ledger>>,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Duration> {
        let since = Instant::now();
        daemon.wait_recovered()?;
        let options = self.traffic(&mut Rng::with_seed(self.seed));
        let whole = self.pages / u64::from(self.chain_pages) * u64::from(self.chain_pages);
        let traffic = Traffic::start(&daemon.site(), ledger, 0, options)?;
        traffic.wait_for(whole, go_on)?;
        let load = traffic.stop();
        // The fill is a round of its own, for nobody dies at its end.
        let cut = locked(ledger).end_round();
        ensure!(
            cut.is_empty() && load.refused_pages == 0,
            "pages were refused while the store was filled: {load:?}"
        );
        Ok(since.elapsed())
    }

    fn round(
        &self,
        daemon: &mut TestDaemon,
        ledger: &Arc<Mutex<Ledger>>,
        random: &mut Rng,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Round> {
        let (load, died, reclaimed) = self.load_until_death(daemon, ledger, random, go_on)?;
        let since = Instant::now();
        let ready = daemon.try_restart()?;
        let (settled, cut, chains) = {
            let mut ledger = locked(ledger);
            let settled = ledger.settled(Settled { died, earlier: EARLIER, behind: BEHIND });
            let cut = ledger.end_round();
            (settled, cut, ledger.chains().to_vec())
        };
        let options = SurveyOptions {
            page_bytes: self.page_bytes,
            chain_pages: self.chain_pages,
            threads: SURVEYORS,
            chains: &chains,
            awaited: 0..settled,
            cut: &cut,
        };
        let Survey { served, seen, wrong, ssd, .. } = survey(daemon, options)?;
        go_on()?;
        let this = locked(ledger).round() - 1;
        let mut round = Round { load, ready, seen: seen - since, wrong, ..Round::default() };
        round.wrong.add(round.load.wrong.clone());
        for (index, (chain, served)) in chains.iter().zip(&served).enumerate() {
            if index >= settled {
                round.tail.count(chain.pages, *served);
                continue;
            }
            round.settled.count(chain.pages, *served);
            if chain.round == this {
                round.fresh.count(chain.pages, *served);
            }
        }
        locked(ledger).keep(&served);
        round.proved = ssd.devices.iter().map(|d| d.proved_records + d.disproved_records).sum();
        round.stalls = ssd.devices.iter().map(|device| device.stalls).sum();
        round.recovery_ms = ssd.devices.iter().filter_map(|d| d.recovery_ms).max().unwrap_or(0);
        round.reclaimed = reclaimed + ssd.tier.evicted_pages;
        round.recovered = ssd.recovered_records;
        round.corrupt = ssd.corrupt_records + ssd.corrupt_tables;
        round.io_errors = ssd.io_errors;
        Ok(round)
    }

    /// A steady load of reads and writes, then a burst, and `kill -9` in the middle of it: what
    /// the load saw, when the daemon died, and how many pages it had dropped shortly before.
    fn load_until_death(
        &self,
        daemon: &mut TestDaemon,
        ledger: &Arc<Mutex<Ledger>>,
        random: &mut Rng,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<(TrafficReport, Instant, u64)> {
        let load_ms = random.u64(self.load_ms.clone());
        // Half of the pages are for the burst, and it is over before they are used up.
        let steady = self.new_pages / 2;
        let burst = random.u64(1..(self.new_pages / 3).max(2));
        let settled = {
            let now = Settled { died: Instant::now(), earlier: Duration::ZERO, behind: BEHIND };
            locked(ledger).settled(now)
        };
        let options = TrafficOptions {
            readers: READERS,
            pace: (steady * 1000 / load_ms.max(1)).max(1),
            limit: self.new_pages,
            ..self.traffic(random)
        };
        let traffic = Traffic::start(&daemon.site(), ledger, settled, options)?;
        let until = Instant::now() + Duration::from_millis(load_ms);
        while Instant::now() < until {
            go_on()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let reclaimed = daemon.status().ssd.map_or(0, |ssd| ssd.tier.evicted_pages);
        let target = traffic.stored() + burst;
        traffic.hurry();
        traffic.wait_for(target.min(self.new_pages * 9 / 10), go_on)?;
        let died = Instant::now();
        daemon.kill();
        Ok((traffic.stop(), died, reclaimed))
    }
}

impl WarmRestartReport {
    /// Holds the run against its bounds: every start came up (or there would be no report), no
    /// wrong byte, and 99.9 % of the settled pages served again: in every round and, of those
    /// stored in the very round, over all rounds.
    ///
    /// # Errors
    /// The first bound that is broken.
    pub fn check(&self) -> Result<()> {
        let mut fresh = Share::default();
        for (index, round) in self.rounds.iter().enumerate() {
            let Round { settled, wrong, .. } = round;
            if let Some(first) = &wrong.first {
                bail!("round {index}: {} wrong bytes, the first in {first}", wrong.bytes);
            }
            ensure!(
                round.reclaimed == 0,
                "round {index}: {} pages were dropped for want of room, so nothing can be said of \
                 the rest",
                round.reclaimed
            );
            let Share { of, some } = *settled;
            ensure!(of > 0, "round {index}: no page was stored early enough to count");
            ensure!(
                settled.reaches(SHARE_PER_MILLE),
                "round {index}: {some} of {of} pages on SSD were served again"
            );
            fresh.add(round.fresh);
        }
        let Share { of, some } = fresh;
        ensure!(
            fresh.reaches(SHARE_PER_MILLE),
            "{some} of {of} pages stored in the round of the kill were served again"
        );
        Ok(())
    }
}

impl Round {
    /// Records recovered per second of the search for them.
    fn recovered_per_s(&self) -> f64 {
        self.recovered as f64 * 1e3 / self.recovery_ms.max(1) as f64
    }

    /// The line above a table of rounds.
    #[must_use]
    pub fn heading() -> &'static str {
        "round   new  read   cut  ready ms  records  found ms  records/s   proved  seen ms    \
         settled     served     fresh     served    tail     served  corrupt  wrong"
    }

    /// This round's line.
    #[must_use]
    pub fn line(&self, index: usize) -> String {
        let Self { load, ready, recovered, recovery_ms, proved, .. } = self;
        let Self { seen, settled, fresh, tail, .. } = self;
        format!(
            "{index:>5} {:>5} {:>5} {:>5} {:>9.0} {recovered:>8} {recovery_ms:>9} {:>10.0} {proved:>8} \
             {:>8.0} {:>10} {settled:>10} {:>9} {fresh:>10} {:>7} {tail:>10} {:>8} {:>6}",
            load.stored_pages,
            load.loaded_pages,
            load.cut_pages,
            ready.as_secs_f64() * 1e3,
            self.recovered_per_s(),
            seen.as_secs_f64() * 1e3,
            settled.of,
            fresh.of,
            tail.of,
            self.corrupt,
            self.wrong.bytes,
        )
    }
}

impl fmt::Display for WarmRestartReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |of: fn(&Round) -> Share| {
            self.rounds.iter().fold(Share::default(), |mut sum, round| {
                sum.add(of(round));
                sum
            })
        };
        let total = |of: fn(&Round) -> u64| self.rounds.iter().map(of).sum::<u64>();
        let mut ready: Vec<f64> =
            self.rounds.iter().map(|round| round.ready.as_secs_f64() * 1e3).collect();
        ready.sort_by(f64::total_cmp);
        let middle = ready.get(ready.len() / 2).copied().unwrap_or_default();
        let slowest = ready.last().copied().unwrap_or_default();
        let rate = 1e3 * total(|r| r.recovered) as f64 / total(|r| r.recovery_ms).max(1) as f64;
        let (settled, fresh) = (sum(|round| round.settled), sum(|round| round.fresh));
        writeln!(f, "rounds             {}, seed {}", self.rounds.len(), self.seed)?;
        writeln!(f, "took               {:.0} s", self.took.as_secs_f64())?;
        writeln!(f, "filled in          {:.1} s", self.fill.as_secs_f64())?;
        writeln!(
            f,
            "READY              {middle:.0} ms in the middle, {slowest:.0} ms at most, {:.0} ms on \
             an empty store",
            self.first_ready.as_secs_f64() * 1e3
        )?;
        writeln!(f, "records recovered  {rate:.0} per second of searching for them")?;
        writeln!(
            f,
            "pages on SSD more than 1 s before the kill: {} of {} served again ({settled})",
            settled.some, settled.of
        )?;
        writeln!(
            f,
            "of them stored in the round of the kill: {} of {} served again ({fresh})",
            fresh.some, fresh.of
        )?;
        writeln!(f, "pages on their way when the daemon died: {}", total(|r| r.load.cut_pages))?;
        writeln!(f, "records that did not prove themselves:   {}", total(|r| r.corrupt))?;
        writeln!(
            f,
            "failed reads and writes, overdue answers: {}, {}",
            total(|r| r.io_errors),
            total(|r| r.stalls)
        )?;
        write!(f, "wrong_bytes        {}", total(|round| round.wrong.bytes))
    }
}
