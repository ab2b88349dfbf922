//! Many seeds, on all processors.

use super::report::Report;
use super::run::run;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

/// A run that broke a promise.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Which promise, and where it was seen.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.message)
    }
}

/// Which seeds to run, and how.
#[derive(Debug, Clone)]
pub struct Seeds {
    /// The seeds.
    pub seeds: Range<u64>,
    /// Threads that run them.
    pub threads: usize,
    /// Failures after which no more seeds are begun.
    pub most_failures: usize,
}

thread_local! {
    /// Where the last panic of this thread was, and what it said.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// Whether this thread runs a seed.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Has panics of runs noted instead of printed. Others are left alone.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if RUNNING.get() {
                LAST_PANIC.with(|last| *last.borrow_mut() = info.to_string());
            } else {
                before(info);
            }
        }));
    });
}

/// Runs one seed; `trace` prints what happens.
///
/// # Errors
/// It broke a promise.
pub fn simulate(seed: u64, trace: bool) -> Result<Report, Failure> {
    caught(|| run(seed, trace)).map_err(|message| Failure { seed, message })
}

/// Does something that panics when a promise is broken.
///
/// # Errors
/// What the panic said.
pub(super) fn caught<R>(act: impl FnOnce() -> R) -> Result<R, String> {
    note_panics();
    RUNNING.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(act));
    RUNNING.set(false);
    outcome.map_err(|_| LAST_PANIC.with(|last| last.borrow().clone()))
}

impl Seeds {
    /// Runs them; what they came to, and the failures, lowest seed first.
    ///
    /// # Panics
    /// A thread cannot be started.
    #[must_use]
    pub fn run(&self, progress: &(dyn Fn(u64) + Sync)) -> (Report, Vec<Failure>) {
        let next = AtomicU64::new(self.seeds.start);
        let sum = Mutex::new((Report::default(), Vec::new()));
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= self.seeds.end {
                    return;
                }
                let outcome = simulate(seed, false);
                let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                match outcome {
                    Ok(report) => sum.0.add(&report),
                    Err(failure) => sum.1.push(failure),
                }
                if sum.1.len() >= self.most_failures {
                    next.store(self.seeds.end, Ordering::Relaxed);
                }
                progress(seed);
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                let builder = thread::Builder::new();
                builder.spawn_scoped(scope, work).expect("a thread can be started");
            }
        });
        let (report, mut failures) = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.sort_by_key(|failure| failure.seed);
        (report, failures)
    }
}
