use crate::{Engine, TestDaemon};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use undercroft_client::wire::Stamp;

/// Pages of the witness's conversation.
const PAGES: u32 = 8;
/// Between two loads.
const PAUSE: Duration = Duration::from_millis(1);

/// A well-behaved engine beside a hostile one: it loads the same few pages again and again, and
/// compares every byte.
#[derive(Debug)]
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<WitnessReport>,
}

/// What a witness saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WitnessReport {
    /// Loads of all its pages.
    pub loads: u64,
    /// Of these, how many did not bring all.
    pub short: u64,
    /// Bytes that were not the page's.
    pub wrong_bytes: u64,
    /// The longest lookup or fetch.
    pub longest: Duration,
}

impl Witness {
    /// Stores its pages and begins.
    ///
    /// # Panics
    /// If the daemon does not take them.
    #[must_use]
    pub fn start(daemon: &TestDaemon) -> Self {
        let client = daemon.client("witness").expect("the daemon answers");
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let mut engine = Engine::new(&client, "witness");
        let keys = engine.keys(1, PAGES);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
        engine.longest = Duration::ZERO;
        let thread = std::thread::spawn(move || {
            let _client = client;
            let mut report = WitnessReport::default();
            while !over.load(Ordering::Relaxed) {
                let found = engine.lookup(&keys);
                let began = Instant::now();
                let inspected = engine.inspect(&keys, found.stamp);
                report.loads += 1;
                report.short += u64::from(inspected.loaded.pages < PAGES);
                report.wrong_bytes += inspected.wrong_bytes;
                report.longest = report.longest.max(began.elapsed()).max(engine.longest);
                std::thread::sleep(PAUSE);
            }
            report
        });
        Self { stop, thread }
    }

    /// Ends it.
    ///
    /// # Panics
    /// If it did.
    #[must_use]
    pub fn stop(self) -> WitnessReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the witness does not panic")
    }
}

impl WitnessReport {
    /// Whether it noticed nothing: every load brought all pages, right, within a second.
    #[must_use]
    pub fn is_untroubled(&self) -> bool {
        let Self { loads, short, wrong_bytes, longest } = *self;
        loads > 0 && short == 0 && wrong_bytes == 0 && longest < Duration::from_secs(1)
    }
}
