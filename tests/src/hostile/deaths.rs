use super::{Footprint, LAST_STEP, Place, Witness, WitnessReport};
use crate::{DaemonOptions, Engine, EngineOptions, PAGE_BYTES, TestDaemon, program};
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
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
    /// Where they live.
    pub place: Place,
}

/// What was left of them.
#[derive(Debug, Clone, PartialEq)]
pub struct DeathsReport {
    /// How many died.
    pub deaths: u32,
    /// Where.
    pub place: Place,
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
        daemon.open_to_all();
        let mut breeder = Breeder::start(self.place, &daemon)?;
        let status = daemon.client("status").context("the daemon does not answer")?;
        let witness = Witness::start(&daemon);
        let mut number = 0;
        // What is allocated once, by the first of its kind, is no leak.
        breeder.die(&status, 2 * (LAST_STEP + 1), &mut number, go_on)?;
        let (before, began) = (Footprint::of(&daemon, &status), Instant::now());
        let mut back = breeder.die(&status, self.deaths, &mut number, go_on)?;
        let took = began.elapsed();
        let after = Footprint::since(&before, &daemon, &status);
        let witness = witness.stop();
        let left = strangers(&*ask(&status)?);
        let frames_found = all_frames(&daemon)?;
        back.sort_unstable();
        let half = back.get(back.len() / 2).copied().unwrap_or_default();
        let back = (half, back.last().copied().unwrap_or_default());
        let Self { deaths, place } = self;
        Ok(DeathsReport { deaths, place, before, after, back, left, frames_found, witness, took })
    }
}

/// A process that has clients live and die where it runs.
#[derive(Debug)]
struct Breeder {
    process: Child,
    orders: ChildStdin,
    word: BufReader<ChildStdout>,
}

impl Breeder {
    fn start(place: Place, daemon: &TestDaemon) -> Result<Self> {
        let mut command = place.command(&program("hostile-client"));
        command.arg("breed").arg(daemon.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("cannot start clients")?;
        let orders = process.stdin.take().context("it is piped")?;
        let word = BufReader::new(process.stdout.take().context("it is piped")?);
        Ok(Self { process, orders, word })
    }

    /// Has `deaths` clients die; how long it took each time until nothing was left of those that
    /// died together.
    fn die(
        &mut self,
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
            writeln!(self.orders, "{number} {some}").context("clients cannot be started")?;
            *number += some;
            let mut word = String::new();
            self.word.read_line(&mut word)?;
            let reaped = Instant::now();
            ensure!(word == "reaped\n", "a client did not come to its death: {word:?}");
            while strangers(&*ask(status)?) > 0 {
                ensure!(reaped.elapsed() < PATIENCE, "what dead clients had is not given back");
                std::thread::sleep(Duration::from_micros(200));
            }
            back.push(reaped.elapsed());
        }
        Ok(back)
    }
}

impl Drop for Breeder {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
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
        let Self { deaths, place, before, after, back, left, frames_found, witness, took } = self;
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        writeln!(f, "{deaths} clients died as {place} in {:.1} s", took.as_secs_f64())?;
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
