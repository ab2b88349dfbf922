//! Power cuts: a file system on a disk that loses what was not flushed, the daemon's store in it.
//! The daemon always starts again, and nothing wrong is ever served.

mod containment;
mod fuse_file;
mod lossy_disk;
mod medium;
mod report;
mod stall;

pub use containment::{missing, run_contained, stop_with_input};
pub use lossy_disk::{Cut, DiskCounts, Survival};
pub use report::{CutRound, Moment, PowerCutReport};

pub(crate) use containment::hold_namespaces;
pub(crate) use lossy_disk::LossyDisk;
pub(crate) use medium::{Attached, Medium};

use crate::ledger::{Ledger, Settled};
use crate::survey::{Survey, SurveyOptions, survey};
use crate::traffic::{DEADLINE, Traffic, TrafficOptions, locked};
use crate::{DaemonOptions, TestDaemon};
use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use fuse_file::locked as disk_of;
use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Only pages stored so long before the cut count: a closed segment waits up to a second for its
/// flush, and one more second must have passed since.
const EARLIER: Duration = Duration::from_secs(2);
/// Small ones, for the store takes many.
const PAGE_BYTES: u64 = 4 << 10;
const CHAIN_PAGES: u32 = 8;
const DRAM_PAGES: u64 = 64;
const SEGMENT_PAGES: u64 = 64;
const STORE_PAGES: u64 = 16_384;
/// Behind a page that counts, so many were stored: DRAM twice over, as for a warm restart, and two
/// segments, for the page's own must be closed.
const BEHIND: u64 = 2 * DRAM_PAGES + 2 * SEGMENT_PAGES;
/// Behind a page that counts, not more new ones than that were stored. Reclaim appends up to seven
/// eighths of a segment again, and does where everything is read all the time: for each new page it
/// empties up to eight, and a page that nobody has read is dropped when the whole store was. A tenth
/// is for segments that are kept free or are being written.
const WITHIN: u64 = STORE_PAGES / 8 * 9 / 10;
/// The file system takes some room too.
const DISK_BYTES: usize = 96 << 20;
/// Above what is written between two flushes.
const CACHE_BYTES: usize = 160 << 20;
/// Pages stored per second before the burst: so few that a page counts for several seconds.
const PACE: u64 = 300;
/// Pages of the burst in which the power goes, at most.
const BURST_PAGES: u64 = 400;
/// More than the store has room for: from then on all that is written lies over something older.
const FILL_PAGES: u64 = STORE_PAGES * 5 / 4;
const WRITERS: u32 = 2;
const READERS: u32 = 1;
const SURVEYORS: u32 = 2;
/// One of so many cuts is of a first start: at least one.
const FORMATS: u32 = 10;
/// One of so many later cuts, in the mean, is of another start.
const STARTS: u32 = 6;
/// A start makes about so many writes and flushes, on an empty file system and on a store. The
/// power goes within them, or soon after.
const FORMAT_REQUESTS: u64 = 24;
const START_REQUESTS: u64 = 12;
/// A start that makes fewer is over by then.
const START_PATIENCE: Duration = Duration::from_millis(300);

/// How much to do.
#[derive(Debug, Clone)]
pub struct PowerCut {
    /// How often the power goes.
    pub cuts: u32,
    /// How long the steady load before a cut lasts, milliseconds: drawn from here.
    pub load_ms: std::ops::Range<u64>,
    /// Seed of all choices.
    pub seed: u64,
}

/// What all rounds need.
struct Lane<'a> {
    options: &'a PowerCut,
    medium: Medium,
    ledger: Arc<Mutex<Ledger>>,
    go_on: &'a dyn Fn() -> Result<()>,
}

/// The daemon's machine: dropped in this order, for the daemon uses the disk.
struct Machine {
    daemon: TestDaemon,
    attached: Option<Attached>,
}

impl PowerCut {
    /// Runs all cuts. `progress` is called after each; `go_on` is asked often.
    ///
    /// # Errors
    /// The daemon or the file system does not come up, or `go_on` says no. Broken bounds are no
    /// error: see [`PowerCutReport::check`].
    pub fn run(
        &self,
        progress: &dyn Fn(usize, &CutRound),
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<PowerCutReport> {
        let since = Instant::now();
        let _holder = hold_namespaces()?;
        let medium = Medium::new(LossyDisk::new(DISK_BYTES, CACHE_BYTES))?;
        let lane = Lane { options: self, medium, ledger: Arc::default(), go_on };
        let attached = Some(lane.medium.format()?);
        let daemon = TestDaemon::prepare(lane.daemon())?;
        let mut machine = Machine { daemon, attached };
        let mut report = PowerCutReport { seed: self.seed, ..PowerCutReport::default() };
        let formats = self.cuts.div_ceil(FORMATS);
        for index in 0..self.cuts {
            go_on()?;
            let mut random = Rng::with_seed(self.seed.wrapping_add(u64::from(index)));
            let round = if index < formats {
                lane.first_start(&mut machine, &mut random)
            } else {
                if index == formats {
                    lane.fill(&machine.daemon)?;
                }
                lane.round(&mut machine, &mut random)
            };
            let round = round.with_context(|| format!("cut {index}"))?;
            progress(index as usize, &round);
            report.rounds.push(round);
        }
        drop(machine);
        report.disk = disk_of(lane.medium.disk()).counts();
        report.took = since.elapsed();
        Ok(report)
    }
}

impl Machine {
    /// The power goes, and the daemon with it.
    fn cut(&mut self, lane: &Lane<'_>, survival: Survival, random: &mut Rng) -> Cut {
        let cut = disk_of(lane.medium.disk()).cut(survival, random);
        self.daemon.kill();
        cut
    }

    /// The power goes while the daemon starts, at a point of that in which so many writes and
    /// flushes were answered as the dice say.
    fn cut_in_start(
        &mut self,
        lane: &Lane<'_>,
        requests: u64,
        survival: Survival,
        random: &mut Rng,
    ) -> Result<Cut> {
        let disk = lane.medium.disk();
        disk_of(disk).cut_after(random.u64(..requests), survival, random);
        self.daemon.launch()?;
        let until = Instant::now() + START_PATIENCE;
        while disk_of(disk).is_powered() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.cut(lane, survival, random))
    }

    /// The power is back: the file system is checked and mounted, the daemon started. How long it
    /// took until it answered.
    fn boot(&mut self, lane: &Lane<'_>) -> Result<Duration> {
        self.detach()?;
        let attached = lane.medium.attach().context("the file system did not come back")?;
        self.attached = Some(attached);
        self.daemon.try_restart()
    }

    fn detach(&mut self) -> Result<()> {
        self.attached.take().map_or(Ok(()), Attached::detach).context("after the cut")
    }
}

impl Lane<'_> {
    fn daemon(&self) -> DaemonOptions {
        DaemonOptions {
            dram: DRAM_PAGES * PAGE_BYTES,
            ssd: STORE_PAGES * PAGE_BYTES,
            staging: DRAM_PAGES * PAGE_BYTES,
            more: format!("segment = {}", SEGMENT_PAGES * PAGE_BYTES),
            store_in: Some(self.medium.directory()),
            ..DaemonOptions::default()
        }
    }

    fn traffic(&self, random: &mut Rng) -> TrafficOptions {
        TrafficOptions {
            page_bytes: PAGE_BYTES,
            chain_pages: CHAIN_PAGES,
            writers: WRITERS,
            readers: READERS,
            pace: PACE,
            limit: u64::MAX,
            deadline: DEADLINE,
            seed: random.u64(..),
        }
    }

    fn fill(&self, daemon: &TestDaemon) -> Result<()> {
        let options = TrafficOptions {
            pace: 0,
            limit: FILL_PAGES,
            ..self.traffic(&mut Rng::with_seed(self.options.seed))
        };
        daemon.wait_recovered()?;
        let traffic = Traffic::start(&daemon.site(), &self.ledger, 0, options)?;
        traffic.wait_for(FILL_PAGES, self.go_on)?;
        let load = traffic.stop();
        ensure!(load.refused_pages == 0, "pages were refused while the store was filled: {load:?}");
        // Else the file system forgets in a cut that it ever gave these blocks to the store, and
        // hides what the cut did to them behind zeros.
        let directory = self.medium.directory();
        let opened = File::open(&directory).context("cannot open the mounted folder")?;
        rustix::fs::syncfs(opened).context("cannot sync the file system")
    }

    /// A power cut while the daemon starts on an empty file system.
    fn first_start(&self, machine: &mut Machine, random: &mut Rng) -> Result<CutRound> {
        let survival = Survival::any(random);
        machine.cut(self, survival, random);
        machine.detach()?;
        machine.attached = Some(self.medium.format()?);
        let cut = machine.cut_in_start(self, FORMAT_REQUESTS, survival, random)?;
        let ready = machine.boot(self)?;
        Ok(CutRound { cut, ready, ..CutRound::new(Moment::FirstStart, survival) })
    }

    /// Load, cut, boot, start, and a look at everything.
    fn round(&self, machine: &mut Machine, random: &mut Rng) -> Result<CutRound> {
        let moment = if random.u32(..STARTS) == 0 { Moment::Start } else { Moment::Load };
        let survival = Survival::any(random);
        let traffic = self.load(&machine.daemon, random)?;
        let died = Instant::now();
        let (load, cut) = if moment == Moment::Start {
            machine.daemon.kill();
            let load = traffic.stop();
            (load, machine.cut_in_start(self, START_REQUESTS, survival, random)?)
        } else {
            let cut = machine.cut(self, survival, random);
            (traffic.stop(), cut)
        };
        let ready = machine.boot(self)?;
        let round = CutRound { load, cut, ready, ..CutRound::new(moment, survival) };
        self.look(&machine.daemon, died, round)
    }

    /// A steady load, then a burst, which is under way.
    fn load(&self, daemon: &TestDaemon, random: &mut Rng) -> Result<Traffic> {
        let settled = {
            let now = Settled { died: Instant::now(), earlier: Duration::ZERO, behind: BEHIND };
            locked(&self.ledger).settled(now)
        };
        let traffic = Traffic::start(&daemon.site(), &self.ledger, settled, self.traffic(random))?;
        let load_ms = random.u64(self.options.load_ms.clone());
        let until = Instant::now() + Duration::from_millis(load_ms);
        while Instant::now() < until {
            (self.go_on)()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let burst = traffic.stored() + random.u64(1..BURST_PAGES);
        traffic.hurry();
        traffic.wait_for(burst, self.go_on)?;
        Ok(traffic)
    }

    /// Loads everything that was ever stored and may be there.
    fn look(&self, daemon: &TestDaemon, died: Instant, mut round: CutRound) -> Result<CutRound> {
        let (counts, open, chains) = {
            let mut ledger = locked(&self.ledger);
            let settled = ledger.settled(Settled { died, earlier: EARLIER, behind: BEHIND });
            let buried = ledger.buried(WITHIN).min(settled);
            let open = ledger.end_round();
            (buried..settled, open, ledger.chains().to_vec())
        };
        let options = SurveyOptions {
            page_bytes: PAGE_BYTES,
            chain_pages: CHAIN_PAGES,
            threads: SURVEYORS,
            chains: &chains,
            awaited: counts.clone(),
            cut: &open,
        };
        let Survey { served, wrong, ssd, .. } = survey(daemon, options)?;
        round.recovered = ssd.recovered_records;
        round.corrupt = ssd.corrupt_records + ssd.corrupt_tables;
        round.wrong = round.load.wrong.clone();
        round.wrong.add(wrong);
        for (index, (chain, served)) in chains.iter().zip(&served).enumerate() {
            let counts = counts.contains(&index);
            let share = if counts { &mut round.settled } else { &mut round.others };
            share.count(chain.pages, *served);
        }
        locked(&self.ledger).keep(&served);
        Ok(round)
    }
}
