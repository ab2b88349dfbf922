use crate::engine::Inspected;
use crate::ledger::Ledger;
use crate::{Engine, EngineOptions, Site};
use anyhow::{Context, Result, bail};
use fastrand::Rng;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use undercroft_client::Client;
use undercroft_client::wire::Stamp;

/// The model all chains of a [`Ledger`] belong to.
pub(crate) const MODEL: &str = "ledger";
/// What most loads give each call; a daemon that died is noticed at once.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Without a page stored for this long, the load is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
const NAP: Duration = Duration::from_millis(1);
/// One of so many chains is read again as soon as it is stored.
const READ_BACK: u32 = 4;

/// How much of what a load does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficOptions {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages of a chain.
    pub chain_pages: u32,
    /// Threads that store new chains.
    pub writers: u32,
    /// Threads that load chains stored before.
    pub readers: u32,
    /// Pages stored per second at most, until [`Traffic::hurry`]; 0 for no such limit.
    pub pace: u64,
    /// No store is begun after so many pages.
    pub limit: u64,
    /// No call may take longer.
    pub deadline: Duration,
    /// Seed of all choices.
    pub seed: u64,
}

/// What a load saw, over all of its threads.
#[derive(Debug, Clone, Default)]
pub struct TrafficReport {
    /// Pages of whole chains that were stored.
    pub stored_pages: u64,
    /// Pages that were loaded.
    pub loaded_pages: u64,
    /// Pages of stores and loads that were on their way when the daemon died.
    pub cut_pages: u64,
    /// Pages the daemon did not take while it lived.
    pub refused_pages: u64,
    /// The longest call.
    pub longest: Duration,
    /// Clients that did not find back to a daemon: looked at by [`Traffic::stop_connected`] alone.
    pub lost_clients: u32,
    /// What was wrong with the bytes that were loaded.
    pub wrong: Wrong,
}

/// Bytes of a page that are not its own.
#[derive(Debug, Clone, Default)]
pub struct Wrong {
    /// How many.
    pub bytes: u64,
    /// Where the first of them are.
    pub first: Option<String>,
}

impl Wrong {
    pub(crate) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.first = self.first.take().or(other.first);
    }

    pub(crate) fn look(&mut self, chain: u32, inspected: &Inspected) {
        let first = inspected.first_wrong.as_ref();
        let first = first.map(|(key, wrong)| format!("chain {chain}, {key:?}: {wrong}"));
        self.add(Self { bytes: inspected.wrong_bytes, first });
    }
}

impl TrafficReport {
    fn add(&mut self, other: Self) {
        self.stored_pages += other.stored_pages;
        self.loaded_pages += other.loaded_pages;
        self.cut_pages += other.cut_pages;
        self.refused_pages += other.refused_pages;
        self.longest = self.longest.max(other.longest);
        self.lost_clients += other.lost_clients;
        self.wrong.add(other.wrong);
    }
}

/// Threads that store new chains into a daemon, entering them in a ledger, and load old ones,
/// comparing every byte. They go on until they are stopped: best after the daemon was killed.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<(TrafficReport, Seat)>>,
}

#[derive(Debug)]
struct Shared {
    options: TrafficOptions,
    ledger: Arc<Mutex<Ledger>>,
    /// The chains readers choose from: all that were there when the load began.
    old: Vec<(u32, u32)>,
    since: Instant,
    begun: AtomicU64,
    stored: AtomicU64,
    hurry: AtomicBool,
    stop: AtomicBool,
}

/// A client and the engine that uses it, as each thread has its own.
pub(crate) fn engine(site: &Site, name: &str, page: EngineOptions) -> Result<Seat> {
    let client = site.client(name).context("the daemon does not answer")?;
    let mut engine = Engine::open(&client, MODEL, page)?;
    engine.deadline = DEADLINE;
    Ok(Seat { engine, client })
}

/// See [`engine`].
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) engine: Engine,
    pub(crate) client: Client,
}

pub(crate) fn locked(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("no thread panics over the ledger")
}

impl Traffic {
    /// Starts the threads. `settled` of the ledger's oldest chains may be loaded: those that are
    /// on SSD, so that no load keeps a page in DRAM that is nowhere else.
    ///
    /// # Errors
    /// A client cannot connect.
    pub fn start(
        site: &Site,
        ledger: &Arc<Mutex<Ledger>>,
        settled: usize,
        options: TrafficOptions,
    ) -> Result<Self> {
        let old = locked(ledger).chains()[..settled].iter().map(|c| (c.id, c.pages)).collect();
        let shared = Arc::new(Shared {
            ledger: Arc::clone(ledger),
            old,
            since: Instant::now(),
            begun: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            hurry: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            options,
        });
        let mut traffic = Self { shared, threads: Vec::new() };
        let TrafficOptions { page_bytes, chain_pages, writers, readers, deadline, seed, .. } =
            traffic.shared.options;
        for thread in 0..writers + readers {
            let page = EngineOptions { page_bytes, blocks: chain_pages };
            let mut seat = engine(site, &format!("load-{thread}"), page)?;
            seat.engine.deadline = deadline;
            let shared = Arc::clone(&traffic.shared);
            let random = Rng::with_seed(seed ^ ((u64::from(thread) + 1) << 32));
            let run = if thread < writers { Shared::write } else { Shared::read };
            traffic.threads.push(std::thread::spawn(move || {
                let report = run(&shared, &mut seat, random);
                (report, seat)
            }));
        }
        Ok(traffic)
    }

    /// Waits until so many pages have been stored since the start.
    ///
    /// # Errors
    /// It does not come to that, or `go_on` says no.
    pub fn wait_for(&self, pages: u64, go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        let mut seen = (self.stored(), Instant::now());
        while self.stored() < pages {
            go_on()?;
            if self.stored() > seen.0 {
                seen = (self.stored(), Instant::now());
            }
            if seen.1.elapsed() > PATIENCE {
                bail!("{} of {pages} pages stored, then none for {PATIENCE:?}", seen.0);
            }
            std::thread::sleep(NAP);
        }
        Ok(())
    }

    /// Pages stored since the start.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.shared.stored.load(Ordering::Relaxed)
    }

    /// From now on as fast as it goes.
    pub fn hurry(&self) {
        self.shared.hurry.store(true, Ordering::Relaxed);
    }

    /// Ends the load, which takes as long as the calls under way.
    ///
    /// # Panics
    /// If a thread did.
    #[must_use]
    pub fn stop(self) -> TrafficReport {
        self.end(|_| 0)
    }

    /// As [`Traffic::stop`], and counts clients that are not connected within `patience` then.
    ///
    /// # Panics
    /// If a thread did.
    #[must_use]
    pub fn stop_connected(self, patience: Duration) -> TrafficReport {
        self.end(|seat| u32::from(!seat.client.wait_connected(patience)))
    }

    fn end(mut self, lost: impl Fn(&Seat) -> u32) -> TrafficReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut report = TrafficReport::default();
        for thread in self.threads.drain(..) {
            let (own, seat) = thread.join().expect("a thread of the load panicked");
            report.add(TrafficReport { lost_clients: lost(&seat), ..own });
        }
        report
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn write(&self, seat: &mut Seat, mut random: Rng) -> TrafficReport {
        let mut report = TrafficReport::default();
        while self.may_store() {
            let pages = self.options.chain_pages;
            let id = locked(&self.ledger).begin();
            let keys = seat.engine.keys(id, pages);
            let stored = seat.engine.store(&keys, Stamp(0));
            if stored.stored + stored.held != pages {
                report.cut_pages += u64::from(stored.unsettled + stored.coming);
                report.refused_pages += u64::from(stored.declined.total() + stored.failed);
                continue;
            }
            if random.u32(..READ_BACK) == 0 {
                self.load(&mut seat.engine, id, pages, &mut report);
            }
            locked(&self.ledger).stored(id, pages);
            report.stored_pages += u64::from(pages);
            self.stored.fetch_add(u64::from(pages), Ordering::Relaxed);
        }
        report.longest = seat.engine.longest;
        report
    }

    /// Waits for its turn. No more turns: the load ends.
    fn may_store(&self) -> bool {
        let TrafficOptions { chain_pages, pace, limit, .. } = self.options;
        let pages = u64::from(chain_pages);
        while !self.stop.load(Ordering::Relaxed) {
            let begun = self.begun.load(Ordering::Relaxed);
            let due = if pace == 0 || self.hurry.load(Ordering::Relaxed) {
                u64::MAX
            } else {
                (self.since.elapsed().as_secs_f64() * pace as f64) as u64
            };
            if begun + pages <= limit.min(due) {
                // Threads that are here at once may go a chain each beyond what is due; not
                // beyond the limit.
                if self.begun.fetch_add(pages, Ordering::Relaxed) + pages <= limit {
                    return true;
                }
            }
            std::thread::sleep(NAP);
        }
        false
    }

    fn read(&self, seat: &mut Seat, mut random: Rng) -> TrafficReport {
        let mut report = TrafficReport::default();
        while !self.stop.load(Ordering::Relaxed) {
            let Some((id, pages)) = random.choice(&self.old) else {
                break;
            };
            self.load(&mut seat.engine, *id, *pages, &mut report);
        }
        report.longest = seat.engine.longest;
        report
    }

    fn load(&self, engine: &mut Engine, id: u32, pages: u32, report: &mut TrafficReport) {
        let keys = engine.keys(id, pages);
        let found = engine.lookup(&keys);
        let inspected = engine.inspect(&keys[..found.pages as usize], found.stamp);
        report.loaded_pages += u64::from(inspected.loaded.pages);
        report.cut_pages += u64::from(found.pages - inspected.loaded.pages);
        report.wrong.look(id, &inspected);
        if found.pages == 0 {
            // A dead daemon answers at once.
            std::thread::sleep(NAP);
        }
    }
}
