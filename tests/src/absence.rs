use crate::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::LookupOptions;
use undercroft_client::wire::{PageKey, Stamp};

/// What each measured call may take.
const DEADLINE: Duration = Duration::from_millis(200);
/// What a machine may add that has fewer processors than threads that want one.
const SLACK: Duration = Duration::from_secs(1);
/// Half of the misses are there so soon after the death can be seen.
const MOST_LATE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// Daemons that are killed and stopped under a client that calls, waits or rests.
#[derive(Debug, Clone, Copy)]
pub struct Absence {
    /// How often each of it happens.
    pub rounds: u32,
}

/// How long it took until a client knew. The death of a process can be seen once it is reaped: its
/// socket is closed by then. What comes before that counts as at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AbsenceReport {
    /// `kill -9` under one lookup after another: from the death to the first miss.
    pub calling: Vec<Duration>,
    /// `kill -9` while a lookup waits for its answer: from the death to the miss.
    pub waiting: Vec<Duration>,
    /// `kill -9` while nothing is asked: what the next lookup takes.
    pub resting: Vec<Duration>,
    /// SIGSTOP: what a lookup takes beyond its deadline.
    pub stopped: Vec<Duration>,
}

impl Absence {
    /// Does it. `go_on` is asked from time to time.
    ///
    /// # Errors
    /// The daemon does not start, or a lookup hits that cannot.
    ///
    /// # Panics
    /// If the daemon does not take a page.
    pub fn run(self, go_on: &dyn Fn() -> Result<()>) -> Result<AbsenceReport> {
        let options = DaemonOptions { dram: 64 * PAGE_BYTES, ..DaemonOptions::default() };
        let mut daemon = TestDaemon::start(options);
        let client = daemon.client("engine").context("the daemon does not answer")?;
        let mut engine = Engine::new(&client, "absence");
        let keys = engine.keys(1, 4);
        let mut report = AbsenceReport::default();
        for round in 0..4 * self.rounds {
            go_on()?;
            ensure!(
                client.wait_connected(PATIENCE),
                "the client does not come back: {:?}\n{}",
                client.state(),
                daemon.log()
            );
            let known = engine.store(&keys, Stamp(0));
            ensure!(known.stored + known.held == 4, "the daemon takes no pages: {known:?}");
            let lookup = Lookup { engine: &engine, keys: &keys };
            match round % 4 {
                0 => report.calling.push(calling(&mut daemon, &lookup)?),
                1 => report.waiting.push(waiting(&mut daemon, &lookup)?),
                2 => {
                    daemon.kill();
                    let (hit, took) = lookup.call();
                    ensure!(!hit, "a dead daemon answers");
                    report.resting.push(took);
                }
                _ => {
                    daemon.signal(Signal::STOP);
                    let (hit, took) = lookup.call();
                    daemon.signal(Signal::CONT);
                    ensure!(!hit, "a stopped daemon answers");
                    report.stopped.push(took.saturating_sub(DEADLINE));
                    continue;
                }
            }
            daemon.restart();
        }
        Ok(report)
    }
}

struct Lookup<'a> {
    engine: &'a Engine,
    keys: &'a [PageKey],
}

impl Lookup<'_> {
    /// Whether it hit, and how long it took.
    fn call(&self) -> (bool, Duration) {
        let options = LookupOptions { deadline: DEADLINE, ..LookupOptions::default() };
        let since = Instant::now();
        let found = self.engine.space().lookup(self.keys, options);
        (found.pages > 0, since.elapsed())
    }
}

fn calling(daemon: &mut TestDaemon, lookup: &Lookup<'_>) -> Result<Duration> {
    let running = AtomicBool::new(false);
    let missed = std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            while lookup.call().0 {
                running.store(true, Ordering::Relaxed);
            }
            Instant::now()
        });
        while !running.load(Ordering::Relaxed) && !caller.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        daemon.kill();
        let dead = Instant::now();
        caller.join().map(|missed| missed.saturating_duration_since(dead))
    });
    missed.map_err(|_| anyhow::anyhow!("the caller panicked"))
}

fn waiting(daemon: &mut TestDaemon, lookup: &Lookup<'_>) -> Result<Duration> {
    daemon.signal(Signal::STOP);
    let missed = std::thread::scope(|scope| {
        let caller = scope.spawn(|| (lookup.call(), Instant::now()));
        std::thread::sleep(DEADLINE / 4);
        daemon.kill();
        let dead = Instant::now();
        caller.join().map(|((hit, _), missed)| (hit, missed.saturating_duration_since(dead)))
    });
    let (hit, late) = missed.map_err(|_| anyhow::anyhow!("the caller panicked"))?;
    ensure!(!hit, "a dead daemon answers");
    Ok(late)
}

/// The middle one, and the longest.
fn shown(spans: &[Duration]) -> (Duration, Duration) {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    (middle, sorted.last().copied().unwrap_or_default())
}

impl AbsenceReport {
    /// Whether no call outlived its deadline, but for what a busy machine adds.
    ///
    /// # Errors
    /// One did.
    pub fn check(&self) -> Result<()> {
        let late = [&self.calling, &self.waiting, &self.resting, &self.stopped];
        let longest = late.into_iter().flatten().max().copied().unwrap_or_default();
        ensure!(longest < SLACK, "a call came {longest:?} late");
        Ok(())
    }

    /// Whether half of all misses were there within a millisecond.
    ///
    /// # Errors
    /// They were not.
    pub fn check_speed(&self) -> Result<()> {
        for (what, spans) in
            [("calling", &self.calling), ("waiting", &self.waiting), ("resting", &self.resting)]
        {
            let (middle, _) = shown(spans);
            ensure!(middle <= MOST_LATE, "{what}: half of the misses took {middle:?}");
        }
        Ok(())
    }
}

impl fmt::Display for AbsenceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("killed, client calling", &self.calling, "to the first miss"),
            ("killed, client waiting", &self.waiting, "to the miss"),
            ("killed, client resting", &self.resting, "for the next miss"),
            ("stopped", &self.stopped, "beyond the deadline"),
        ];
        let us = |span: Duration| span.as_secs_f64() * 1e6;
        for (index, (what, spans, until)) in rows.into_iter().enumerate() {
            let (middle, longest) = shown(spans);
            let end = if index == 3 { "" } else { "\n" };
            write!(
                f,
                "{what:<24} p50 {:>8.1} us, longest {:>8.1} us {until} ({} times){end}",
                us(middle),
                us(longest),
                spans.len()
            )?;
        }
        Ok(())
    }
}
