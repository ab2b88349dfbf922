//! Restarts under load: pages in DRAM, leases and clients outlive the daemon, whatever ends it.

use crate::ledger::Ledger;
use crate::share::Share;
use crate::traffic::{Seat, Traffic, TrafficOptions, Wrong, engine, locked};
use crate::{DaemonOptions, EngineOptions, TestDaemon};
use anyhow::{Result, bail, ensure};
use fastrand::Rng;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use undercroft_client::FetchFrom;
use undercroft_client::wire::Stamp;

/// The share of committed pages that must be served after each restart, in thousandths.
const SHARE_PER_MILLE: u64 = 999;
const WRITERS: u32 = 2;
const READERS: u32 = 2;
const SLOW_READERS: u32 = 2;
/// How long clients may take to come back.
const PATIENCE: Duration = Duration::from_secs(10);
/// A slow reader holds its pages for up to so long, as a device with many copies in flight does.
const SLOW_MS: u64 = 400;

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

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM.
    Stopped,
    /// SIGKILL.
    Killed,
    /// Another daemon took over.
    TakenOver,
}

/// What one restart measured.
#[derive(Debug, Clone)]
pub struct Restart {
    /// What ended the daemon.
    pub ending: Ending,
    /// From the end of the old daemon until the new one answered; for a takeover, from its start.
    pub ready: Duration,
    /// The start as the daemon measures it, milliseconds.
    pub start_ms: u64,
    /// Pages in DRAM that were taken over.
    pub restored: u64,
    /// Pages committed until then, and how many of them were served.
    pub committed: Share,
    /// The longest call of the load.
    pub longest: Duration,
    /// Wrong bytes: of the load, of slow readers, and of the survey.
    pub wrong: Wrong,
}

/// What all restarts measured.
#[derive(Debug, Clone, Default)]
pub struct RestartsReport {
    /// Whether there was an SSD.
    pub ssd: bool,
    /// The restarts.
    pub restarts: Vec<Restart>,
    /// Times that slow readers looked at a page they had leased before a restart.
    pub looks: u64,
    /// The whole run.
    pub took: Duration,
}

impl Restarts {
    /// Does it. `progress` is called after each restart; `go_on` is asked from time to time.
    ///
    /// # Errors
    /// A daemon does not start, a client does not come back, or `go_on` says no.
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
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let filling = self.traffic(0, self.pages, self.seed);
        let traffic = Traffic::start(&daemon, &ledger, 0, filling)?;
        traffic.wait_for(self.pages - self.pages % u64::from(self.chain_pages), go_on)?;
        let filled = traffic.stop();
        ensure!(filled.refused_pages == 0, "pages were refused while DRAM was filled: {filled:?}");
        let mut report = RestartsReport { ssd: self.on_ssd > 1, ..RestartsReport::default() };
        for round in 0..self.rounds {
            go_on()?;
            let ending = match round % 3 {
                0 => Ending::Stopped,
                1 => Ending::Killed,
                _ => Ending::TakenOver,
            };
            let (restart, looks) = self.round(&mut daemon, &ledger, ending, round)?;
            progress(&restart);
            report.looks += looks;
            report.restarts.push(restart);
        }
        report.took = since.elapsed();
        Ok(report)
    }

    fn daemon(&self) -> DaemonOptions {
        let pages = self.pages + u64::from(self.rounds + 1) * self.new_pages;
        let all = pages * self.page_bytes * 5 / 4;
        let dram = (all / self.on_ssd).max(1 << 20);
        let ssd = if self.on_ssd > 1 { 2 * all } else { 0 };
        let staging = 64 * self.page_bytes;
        // At each restart the rest of an open segment is lost, and maybe of one begun ahead.
        let segment = (64 * self.page_bytes).max(64 << 10);
        let more = if ssd > 0 { format!("segment = {segment}") } else { String::new() };
        DaemonOptions { dram, ssd, staging, more, managed: true, ..DaemonOptions::default() }
    }

    fn traffic(&self, readers: u32, limit: u64, seed: u64) -> TrafficOptions {
        TrafficOptions {
            page_bytes: self.page_bytes,
            chain_pages: self.chain_pages,
            writers: WRITERS,
            readers,
            pace: 0,
            limit,
            seed,
        }
    }

    fn round(
        &self,
        daemon: &mut TestDaemon,
        ledger: &Arc<Mutex<Ledger>>,
        ending: Ending,
        round: u32,
    ) -> Result<(Restart, u64)> {
        let seed = self.seed.wrapping_add(u64::from(round) << 16);
        let old = locked(ledger).chains().len();
        let options = TrafficOptions {
            pace: (self.new_pages * 1000 / (2 * self.load_ms).max(1)).max(1),
            ..self.traffic(READERS, self.new_pages, seed)
        };
        let traffic = Traffic::start(daemon, ledger, old, options)?;
        let slow = self.slow_readers(daemon, ledger, seed)?;
        std::thread::sleep(Duration::from_millis(self.load_ms));
        let ready = end(daemon, ending)?;
        let start = daemon.status().start;
        std::thread::sleep(Duration::from_millis(self.load_ms));
        let load = traffic.stop();
        let mut wrong = load.wrong;
        let mut looks = 0;
        for reader in slow {
            let seen = reader.stop();
            wrong.add(seen.wrong);
            looks += seen.looks;
        }
        let committed = self.survey(daemon, ledger, &mut wrong)?;
        locked(ledger).end_round();
        let restart = Restart {
            ending,
            ready,
            start_ms: start.ready_ms,
            restored: start.restored_pages,
            committed,
            longest: load.longest,
            wrong,
        };
        Ok((restart, looks))
    }

    /// Loads every page that was ever committed.
    fn survey(
        &self,
        daemon: &TestDaemon,
        ledger: &Arc<Mutex<Ledger>>,
        wrong: &mut Wrong,
    ) -> Result<Share> {
        daemon.wait_recovered()?;
        let mut seat = self.seat(daemon, "survey")?;
        let chains = locked(ledger).chains().to_vec();
        let mut share = Share::default();
        for chain in &chains {
            let keys = seat.engine.keys(chain.id, chain.pages);
            let found = seat.engine.lookup(&keys);
            let inspected = seat.engine.inspect(&keys[..found.pages as usize], found.stamp);
            wrong.look(chain.id, &inspected);
            share.count(chain.pages, inspected.loaded.pages);
        }
        Ok(share)
    }

    fn seat(&self, daemon: &TestDaemon, name: &str) -> Result<Seat> {
        let page = EngineOptions { page_bytes: self.page_bytes, blocks: self.chain_pages };
        engine(daemon, name, page)
    }

    fn slow_readers(
        &self,
        daemon: &TestDaemon,
        ledger: &Arc<Mutex<Ledger>>,
        seed: u64,
    ) -> Result<Vec<SlowReader>> {
        let chains: Vec<_> = locked(ledger).chains().iter().map(|c| (c.id, c.pages)).collect();
        let reader = |number: u32| {
            let seat = self.seat(daemon, &format!("slow-{number}"))?;
            let random = Rng::with_seed(seed ^ u64::from(number + 1));
            Ok(SlowReader::start(seat, chains.clone(), random))
        };
        (0..SLOW_READERS).map(reader).collect()
    }
}

/// Ends the daemon and has the next one serve: how long that took.
fn end(daemon: &mut TestDaemon, ending: Ending) -> Result<Duration> {
    match ending {
        Ending::Stopped => {
            daemon.stop();
            daemon.try_restart()
        }
        Ending::Killed => {
            daemon.kill();
            daemon.try_restart()
        }
        Ending::TakenOver => {
            let since = Instant::now();
            daemon.take_over();
            Ok(since.elapsed())
        }
    }
}

/// What a slow reader saw.
#[derive(Debug, Default)]
struct Seen {
    wrong: Wrong,
    looks: u64,
}

/// Leases pages, and looks at them again and again for a while before it lets go: what a device
/// does whose copies wait behind others.
#[derive(Debug)]
struct SlowReader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl SlowReader {
    fn start(seat: Seat, chains: Vec<(u32, u32)>, random: Rng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || read_slowly(&seat, &chains, random, &stopped));
        Self { stop, thread }
    }

    fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a slow reader panicked")
    }
}

fn read_slowly(seat: &Seat, chains: &[(u32, u32)], mut random: Rng, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let Some((id, pages)) = random.choice(chains) else { break };
        let keys = seat.engine.keys(*id, *pages);
        let mut fetch = seat.engine.space().fetch(FetchFrom::Keys(&keys), Stamp(0), PATIENCE);
        let mut leased = Vec::new();
        while let Some(run) = fetch.next_ready() {
            leased.extend(run.pages);
        }
        let until = Instant::now() + Duration::from_millis(random.u64(..SLOW_MS));
        while Instant::now() < until {
            for (key, page) in keys.iter().zip(&leased) {
                seen.looks += 1;
                let wrong = seat.engine.look_at(key, page);
                if let Err(wrong) = wrong {
                    let first = Some(format!("chain {id}, {key:?}, leased: {wrong}"));
                    seen.wrong.add(Wrong { bytes: wrong.count, first });
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if leased.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    seen
}

impl RestartsReport {
    fn committed(&self) -> Share {
        self.restarts.iter().fold(Share::default(), |mut sum, restart| {
            sum.add(restart.committed);
            sum
        })
    }

    /// Holds the run against its bounds.
    ///
    /// # Errors
    /// The first one that is broken.
    pub fn check(&self) -> Result<()> {
        for (index, restart) in self.restarts.iter().enumerate() {
            let Restart { ending, committed, wrong, .. } = restart;
            if let Some(first) = &wrong.first {
                bail!("restart {index}, {ending:?}: {} wrong bytes, first {first}", wrong.bytes);
            }
            // What had left DRAM just before a kill, and was not named in a table on SSD yet, is
            // lost as with any crash: there the share counts over all restarts.
            ensure!(
                committed.of > 0 && (self.ssd || committed.reaches(SHARE_PER_MILLE)),
                "restart {index}, {ending:?}: {} of {} committed pages were served",
                committed.some,
                committed.of
            );
        }
        let all = self.committed();
        ensure!(
            all.reaches(SHARE_PER_MILLE),
            "{} of {} committed pages were served over all restarts",
            all.some,
            all.of
        );
        ensure!(self.looks > 0, "no slow reader had leased anything");
        Ok(())
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} answers after {:>5.0} ms, its start {:>4} ms; {:>6} pages restored, {:>6} of {:>6} \
             committed ones served; longest call {:>5.0} ms; wrong bytes {}",
            format!("{:?}", self.ending),
            self.ready.as_secs_f64() * 1e3,
            self.start_ms,
            self.restored,
            self.committed.some,
            self.committed.of,
            self.longest.as_secs_f64() * 1e3,
            self.wrong.bytes
        )
    }
}

impl fmt::Display for RestartsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let committed = self.committed();
        let mut starts: Vec<u64> = self.restarts.iter().map(|restart| restart.start_ms).collect();
        starts.sort_unstable();
        let longest = self.restarts.iter().map(|restart| restart.longest).max().unwrap_or_default();
        let wrong: u64 = self.restarts.iter().map(|restart| restart.wrong.bytes).sum();
        writeln!(f, "restarts           {} in {:.0} s", starts.len(), self.took.as_secs_f64())?;
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
        writeln!(f, "looks at pages under lease {}", self.looks)?;
        write!(f, "wrong_bytes        {wrong}")
    }
}
