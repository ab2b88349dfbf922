use super::{Footprint, LAST_STEP, Witness, WitnessReport};
use crate::{DaemonOptions, Engine, EngineOptions, PAGE_BYTES, TestDaemon, program};
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use undercroft_client::Client;
use undercroft_client::wire::{Stamp, StatusReport};

/// Pages that fit into DRAM.
const FRAMES: u32 = 256;
/// Clients that live at the same time.
const AT_ONCE: u32 = 4;
/// What a dead client left must be gone by then.
const MOST_BACK: Duration = Duration::from_millis(100);
/// What the heap may have grown in all: allocators keep what they were given once.
const MOST_HEAP_KIB: u64 = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients that die, at every step of what a client does, a few at a time.
#[derive(Debug, Clone, Copy)]
pub struct Deaths {
    /// How many.
    pub deaths: u32,
}

/// What was left of them.
#[derive(Debug, Clone, PartialEq)]
pub struct DeathsReport {
    /// How many died.
    pub deaths: u32,
    /// The daemon before them, after a few that were not counted.
    pub before: Footprint,
    /// The daemon after them.
    pub after: Footprint,
    /// From the moment the last of a few that died together was reaped until the daemon had
    /// nothing of them any more: half of the times, and all of them.
    pub back: (Duration, Duration),
    /// Sessions, staging bytes and leases that were left at the end.
    pub left: usize,
    /// Pages found of as many as there are frames, stored at the end.
    pub frames_found: u32,
    /// The well-behaved engine beside them.
    pub witness: WitnessReport,
    /// How long it took.
    pub took: Duration,
}

impl Deaths {
    /// Lets them live and die. `go_on` is asked from time to time.
    ///
    /// # Errors
    /// A client cannot be started or the daemon does not answer.
    ///
    /// # Panics
    /// If the daemon does not start.
    pub fn run(self, go_on: &dyn Fn() -> Result<()>) -> Result<DeathsReport> {
        let options = DaemonOptions {
            dram: u64::from(FRAMES) * PAGE_BYTES,
            staging: 16 * PAGE_BYTES,
            ..DaemonOptions::default()
        };
        let daemon = TestDaemon::start(options);
        let status = daemon.client("status").context("the daemon does not answer")?;
        let witness = Witness::start(&daemon);
        let mut number = 0;
        // What is allocated once, by the first of its kind, is no leak.
        self.die(&daemon, &status, 2 * (LAST_STEP + 1), &mut number, go_on)?;
        let (before, began) = (Footprint::of(&daemon), Instant::now());
        let mut back = self.die(&daemon, &status, self.deaths, &mut number, go_on)?;
        let (after, took) = (Footprint::of(&daemon), began.elapsed());
        let witness = witness.stop();
        let left = strangers(&*ask(&status)?);
        let frames_found = all_frames(&daemon)?;
        back.sort_unstable();
        let half = back.get(back.len() / 2).copied().unwrap_or_default();
        let back = (half, back.last().copied().unwrap_or_default());
        let deaths = self.deaths;
        Ok(DeathsReport { deaths, before, after, back, left, frames_found, witness, took })
    }

    fn die(
        self,
        daemon: &TestDaemon,
        status: &Client,
        deaths: u32,
        number: &mut u32,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<Duration>> {
        let mut back = Vec::new();
        let last = *number + deaths;
        while *number < last {
            go_on()?;
            let some = AT_ONCE.min(last - *number);
            let children = (*number..*number + some).map(|number| {
                let mut command = Command::new(program("hostile-client"));
                command.arg("die").arg(daemon.socket());
                command.args([(number % (LAST_STEP + 1)).to_string(), number.to_string()]);
                command.stdin(Stdio::null()).stdout(Stdio::null());
                command.spawn().context("cannot start a client")
            });
            let children = children.collect::<Result<Vec<_>>>()?;
            *number += some;
            for mut child in children {
                let ended = child.wait()?;
                ensure!(ended.code().is_none(), "a client did not come to its death: {ended}");
            }
            let reaped = Instant::now();
            while strangers(&*ask(status)?) > 0 {
                ensure!(reaped.elapsed() < PATIENCE, "what dead clients had is not given back");
                std::thread::sleep(Duration::from_micros(200));
            }
            back.push(reaped.elapsed());
        }
        Ok(back)
    }
}

fn ask(client: &Client) -> Result<Box<StatusReport>> {
    client.status(PATIENCE).map_err(|why| anyhow::anyhow!("no status: {why}"))
}

/// Sessions that are neither the witness nor whoever asks.
fn strangers(status: &StatusReport) -> usize {
    status.sessions.iter().filter(|session| session.name == "hostile").count()
}

/// How many pages are found of as many as there are frames, stored last: a frame that leaked
/// would be missing.
fn all_frames(daemon: &TestDaemon) -> Result<u32> {
    let client = daemon.client("last").context("the daemon does not answer")?;
    let options = EngineOptions { blocks: FRAMES, ..EngineOptions::default() };
    let mut engine = Engine::open(&client, "last", options)?;
    let keys = engine.keys(1, FRAMES);
    let stored = engine.store(&keys, Stamp(0));
    ensure!(stored.why.is_none(), "the last store: {stored:?}");
    Ok(engine.lookup(&keys).pages)
}

impl DeathsReport {
    /// Whether nothing is left of them and nobody noticed.
    ///
    /// # Errors
    /// What is left, or who noticed.
    pub fn check(&self) -> Result<()> {
        let Self { before, after, back, left, frames_found, witness, .. } = self;
        ensure!(*left == 0, "{left} sessions are left");
        ensure!(after.descriptors <= before.descriptors, "descriptors: {before} -> {after}");
        ensure!(after.threads <= before.threads, "threads: {before} -> {after}");
        ensure!(after.heap_kib <= before.heap_kib + MOST_HEAP_KIB, "heap: {before} -> {after}");
        ensure!(after.mapped_kib <= before.mapped_kib + MOST_HEAP_KIB, "{before} -> {after}");
        ensure!(*frames_found == FRAMES, "{frames_found} of {FRAMES} frames are left");
        ensure!(witness.is_untroubled(), "the witness: {witness:?}");
        // What a busy machine adds is not the daemon's: a lane of thousands holds the median.
        ensure!(back.0 <= MOST_BACK, "half of the time it took {:?} to give back", back.0);
        Ok(())
    }
}

impl fmt::Display for DeathsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deaths, before, after, back, left, frames_found, witness, took } = self;
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        writeln!(f, "{deaths} clients died in {:.1} s", took.as_secs_f64())?;
        writeln!(f, "before        {before}")?;
        writeln!(f, "after         {after}")?;
        writeln!(f, "given back    p50 {:.2} ms, longest {:.2} ms", ms(back.0), ms(back.1))?;
        writeln!(f, "left          {left} sessions, {frames_found} of {FRAMES} frames to be had")?;
        write!(
            f,
            "the witness   {} loads, {} short, {} wrong bytes, longest {:.2} ms",
            witness.loads,
            witness.short,
            witness.wrong_bytes,
            ms(witness.longest)
        )
    }
}
