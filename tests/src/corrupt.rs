//! Corruptions of stores, one after another: what was hit becomes a miss, what was not is served,
//! and no wrong byte ever is.

mod image;
mod kind;
mod metadata;
mod outcome;
mod record;
mod store;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use kind::Kind;
use outcome::{Outcome, Verdict};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use store::{Shape, Store};

/// The page sizes of the stores, bytes: pages that fill their blocks and that do not.
const PAGE_BYTES: [u32; 4] = [512, 4096, 5000, 12_288];
/// Of 100 corruptions, so many hit what describes records: each of them is a start.
const OF_STORES: u8 = 15;
/// Corruptions that a thread takes at once.
const SHARE: u64 = 256;
/// Failures that are told in words.
const TOLD: usize = 5;

/// How much to do.
#[derive(Debug, Clone)]
pub struct Corruptions {
    /// Which ones: each has a number, and follows from it and the seed alone.
    pub numbers: Range<u64>,
    /// Seed of all choices.
    pub seed: u64,
    /// Threads. The result does not depend on their number.
    pub threads: usize,
}

/// What corruptions of one kind came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CorruptionTally {
    /// How many.
    pub injected: u64,
    /// All that was hit was a miss, and counted.
    pub misses: u64,
    /// Only bytes were hit that nothing depends on, and every page was right.
    pub harmless: u64,
    /// Something was served that should not have been, or lost that should not have been.
    pub wrong: u64,
}

/// What all corruptions came to.
#[derive(Debug, Clone, Default)]
pub struct CorruptionReport {
    seed: u64,
    kinds: BTreeMap<Kind, CorruptionTally>,
    /// The first that went wrong: number, kind, and what was seen.
    failures: BTreeMap<u64, String>,
    took: Duration,
}

/// Two devices for each protection and page size.
type Pairs = Vec<[Store; 2]>;

fn build(seed: u64) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for encrypted in [false, true] {
        for page_bytes in PAGE_BYTES {
            let shape = Shape { page_bytes, encrypted };
            let device = |device| {
                let built = Store::build(shape, device, seed.wrapping_add(u64::from(device)));
                built.with_context(|| format!("cannot build a store: {shape:?}"))
            };
            pairs.push([device(0)?, device(1)?]);
        }
    }
    Ok(pairs)
}

/// Carries the corruption with that number out.
fn corrupt(pairs: &mut Pairs, seed: u64, number: u64) -> (Kind, Verdict) {
    let mut rng = Rng::with_seed(seed.rotate_left(32) ^ number);
    let pair = rng.usize(..pairs.len());
    let pair = &mut pairs[pair];
    let of_stores = rng.u8(..100) < OF_STORES;
    let kind = if of_stores {
        Kind::OF_STORES[rng.usize(..Kind::OF_STORES.len())]
    } else {
        Kind::OF_RECORDS[rng.usize(..Kind::OF_RECORDS.len())]
    };
    let shape = pair[0].shape;
    let verdict = if of_stores {
        metadata::damage(kind, &pair[rng.usize(..2)], &mut rng)
    } else {
        record::damage(kind, pair, &mut rng)
    };
    let verdict = verdict.unwrap_or_else(|error| Verdict::wrong(format!("{error:#}")));
    (kind, Verdict(verdict.0.map_err(|what| format!("{kind}, {shape:?}: {what}"))))
}

impl Corruptions {
    /// Carries them out. `progress` is told how many are done; `go_on` is asked often.
    ///
    /// # Errors
    /// The stores cannot be built, or `go_on` says no. Wrong bytes are no error: see
    /// [`CorruptionReport::check`].
    pub fn run(
        &self,
        progress: &(dyn Fn(u64) + Sync),
        go_on: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<CorruptionReport> {
        let since = Instant::now();
        let next = AtomicU64::new(self.numbers.start);
        let stop = AtomicBool::new(false);
        let sum = Mutex::new(CorruptionReport { seed: self.seed, ..CorruptionReport::default() });
        let work = || {
            let mut pairs = build(self.seed)?;
            while !stop.load(Ordering::Relaxed) {
                go_on()?;
                let first = next.fetch_add(SHARE, Ordering::Relaxed);
                let share = first..first.saturating_add(SHARE).min(self.numbers.end);
                if share.is_empty() {
                    break;
                }
                let mut part = CorruptionReport::default();
                for number in share.clone() {
                    let (kind, verdict) = corrupt(&mut pairs, self.seed, number);
                    part.count(number, kind, verdict);
                }
                sum.lock().expect("no thread panics while it counts").add(part);
                progress(share.end - share.start);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads.max(1)).map(|_| scope.spawn(work)).collect();
            let ended = threads.into_iter().map(|thread| {
                let ended = thread.join().expect("a corruption panics nowhere");
                stop.fetch_or(ended.is_err(), Ordering::Relaxed);
                ended
            });
            ended.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
        })?;
        let mut report = sum.into_inner().expect("no thread panicked");
        report.took = since.elapsed();
        Ok(report)
    }
}

impl CorruptionReport {
    fn count(&mut self, number: u64, kind: Kind, verdict: Verdict) {
        let tally = self.kinds.entry(kind).or_default();
        tally.injected += 1;
        match verdict.0 {
            Ok(Outcome::Miss) => tally.misses += 1,
            Ok(Outcome::Harmless) => tally.harmless += 1,
            Err(what) => {
                tally.wrong += 1;
                self.fail(number, what);
            }
        }
    }

    fn fail(&mut self, number: u64, what: String) {
        self.failures.insert(number, what);
        if self.failures.len() > TOLD {
            self.failures.pop_last();
        }
    }

    fn add(&mut self, other: Self) {
        for (kind, tally) in other.kinds {
            self.kinds.entry(kind).or_default().add(&tally);
        }
        other.failures.into_iter().for_each(|(number, what)| self.fail(number, what));
    }

    /// All kinds together.
    #[must_use]
    pub fn sum(&self) -> CorruptionTally {
        let mut sum = CorruptionTally::default();
        self.kinds.values().for_each(|tally| sum.add(tally));
        sum
    }

    /// Kinds of corruption that made no miss at all, in words: a large run has none.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let missed = |kind: &Kind| self.kinds.get(kind).is_some_and(|tally| tally.misses > 0);
        // One superblock is as good as two: few hits of them are misses.
        Kind::all().filter(|kind| !missed(kind)).map(|kind| kind.to_string()).collect()
    }

    /// Holds that nothing went wrong.
    ///
    /// # Errors
    /// What went wrong first, and the commands that do it again.
    pub fn check(&self) -> Result<()> {
        let mut told = String::new();
        for (number, what) in &self.failures {
            let again = format!("cargo xtask corrupt --from {number} --count 1");
            told.push_str(&format!("\n  {what}\n    again: {again} --seed {}", self.seed));
        }
        let CorruptionTally { injected, wrong, .. } = self.sum();
        ensure!(wrong == 0, "{wrong} of {injected} corruptions went wrong:{told}");
        Ok(())
    }
}

impl CorruptionTally {
    fn add(&mut self, other: &Self) {
        self.injected += other.injected;
        self.misses += other.misses;
        self.harmless += other.harmless;
        self.wrong += other.wrong;
    }
}

impl fmt::Display for CorruptionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, tally: &CorruptionTally| {
            let CorruptionTally { injected, misses, harmless, wrong } = tally;
            writeln!(f, "{name:<52}{injected:>10}{misses:>10}{harmless:>10}{wrong:>8}")
        };
        let heading = ("injected", "misses", "harmless", "wrong");
        let (injected, misses, harmless, wrong) = heading;
        writeln!(f, "{:<52}{injected:>10}{misses:>10}{harmless:>10}{wrong:>8}", "")?;
        for (kind, tally) in &self.kinds {
            row(f, &kind.to_string(), tally)?;
        }
        row(f, "sum", &self.sum())?;
        write!(f, "{:.1} s", self.took.as_secs_f64())
    }
}
