use super::slow_reader::SlowReader;
use super::{Ending, Restart, Restarts};
use crate::ledger::Ledger;
use crate::share::Share;
use crate::traffic::{DEADLINE, Seat, Traffic, TrafficOptions, Wrong, engine, locked};
use crate::{EngineOptions, Site};
use anyhow::{Result, ensure};
use fastrand::Rng;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WRITERS: u32 = 2;
const READERS: u32 = 2;
const SLOW_READERS: u32 = 2;
/// How long clients may take to come back.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the load gives each call.
const CALL: Duration = Duration::from_secs(2);

/// What a daemon has to bear, whoever runs it: a load before, during and after each restart, and
/// the question for every page that was ever committed.
#[derive(Debug)]
pub(crate) struct Ordeal<'a> {
    options: &'a Restarts,
    ledger: Arc<Mutex<Ledger>>,
}

impl<'a> Ordeal<'a> {
    /// Fills a daemon that knows nothing of it yet.
    ///
    /// # Errors
    /// Pages are refused, or `go_on` says no.
    pub(crate) fn begin(
        options: &'a Restarts,
        site: &Site,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        let this = Self { options, ledger: Arc::new(Mutex::new(Ledger::default())) };
        let filling =
            TrafficOptions { deadline: DEADLINE, ..this.traffic(0, options.pages, options.seed) };
        let traffic = Traffic::start(site, &this.ledger, 0, filling)?;
        traffic.wait_for(options.pages - options.pages % u64::from(options.chain_pages), go_on)?;
        let filled = traffic.stop();
        ensure!(filled.refused_pages == 0, "pages were refused while DRAM was filled: {filled:?}");
        Ok(this)
    }

    /// A load, in the middle of which `end` ends the daemon and waits for the next one, and says how
    /// long that took; then a look at everything.
    ///
    /// # Errors
    /// Those of `end`, or nobody answers after it.
    pub(crate) fn round(
        &self,
        site: &Site,
        number: u32,
        ending: Ending,
        end: impl FnOnce() -> Result<Duration>,
    ) -> Result<Restart> {
        let Restarts { new_pages, load_ms, .. } = *self.options;
        let seed = self.options.seed.wrapping_add(u64::from(number) << 16);
        let old = locked(&self.ledger).chains().len();
        let options = TrafficOptions {
            pace: (new_pages * 1000 / (2 * load_ms).max(1)).max(1),
            ..self.traffic(READERS, new_pages, seed)
        };
        let traffic = Traffic::start(site, &self.ledger, old, options)?;
        let slow = self.slow_readers(site, seed)?;
        std::thread::sleep(Duration::from_millis(load_ms));
        let ready = end()?;
        let status = site.status();
        std::thread::sleep(Duration::from_millis(load_ms));
        let load = traffic.stop_connected(PATIENCE);
        let mut restart = Restart {
            ending,
            ready,
            start: status.start,
            arena: status.arena,
            committed: Share::default(),
            longest: load.longest,
            deadline: CALL,
            lost_clients: load.lost_clients,
            wrong: load.wrong,
            looks: 0,
        };
        for reader in slow {
            let seen = reader.stop(PATIENCE);
            restart.wrong.add(seen.wrong);
            restart.looks += seen.looks;
            restart.lost_clients += u32::from(seen.is_lost);
        }
        restart.committed = self.survey(site, &mut restart.wrong)?;
        // By now it is known in what pages it lies.
        restart.arena = site.status().arena;
        locked(&self.ledger).end_round();
        Ok(restart)
    }

    /// Looks for every page again after a start that kept none of them: what is served all the same
    /// must be right.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn nothing_wrong(&self, site: &Site) -> Result<()> {
        let mut wrong = Wrong::default();
        self.survey(site, &mut wrong)?;
        ensure!(wrong.bytes == 0, "{} wrong bytes, first {:?}", wrong.bytes, wrong.first);
        Ok(())
    }

    fn traffic(&self, readers: u32, limit: u64, seed: u64) -> TrafficOptions {
        TrafficOptions {
            page_bytes: self.options.page_bytes,
            chain_pages: self.options.chain_pages,
            writers: WRITERS,
            readers,
            pace: 0,
            limit,
            deadline: CALL,
            seed,
        }
    }

    /// Loads every page that was ever committed.
    fn survey(&self, site: &Site, wrong: &mut Wrong) -> Result<Share> {
        site.wait_recovered()?;
        let mut seat = self.seat(site, "survey")?;
        let chains = locked(&self.ledger).chains().to_vec();
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

    fn seat(&self, site: &Site, name: &str) -> Result<Seat> {
        let Restarts { page_bytes, chain_pages, .. } = *self.options;
        engine(site, name, EngineOptions { page_bytes, blocks: chain_pages })
    }

    fn slow_readers(&self, site: &Site, seed: u64) -> Result<Vec<SlowReader>> {
        let chains: Vec<_> =
            locked(&self.ledger).chains().iter().map(|c| (c.id, c.pages)).collect();
        let reader = |number: u32| {
            let seat = self.seat(site, &format!("slow-{number}"))?;
            let random = Rng::with_seed(seed ^ u64::from(number + 1));
            Ok(SlowReader::start(seat, chains.clone(), random))
        };
        (0..SLOW_READERS).map(reader).collect()
    }
}
