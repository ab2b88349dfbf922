//! A client that holds pages as a device does that is reading them.

use super::{LONGEST_LIFE, say};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;
use undercroft_client::wire::Stamp;
use undercroft_client::{Client, ConnectOptions, Fetch, FetchFrom, ReadyRun, Wait};
use undercroft_tests::Engine;

pub(crate) const PAGES: u32 = 6;
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// A client, an engine on it, and a lease with its pages.
pub(crate) struct Holder {
    pub(crate) client: Client,
    pub(crate) engine: Engine,
    pub(crate) fetch: Fetch,
    pub(crate) pages: ReadyRun,
}

pub(crate) fn connect(socket: &Path) -> Result<Client> {
    let mut options = ConnectOptions::new(socket);
    options.name = "hostile".to_owned();
    options.wait = Wait::Now(DEADLINE);
    Ok(Client::connect(options)?)
}

impl Holder {
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let client = connect(socket)?;
        let mut engine = Engine::new(&client, "holder");
        let keys = engine.keys(1, PAGES);
        ensure!(engine.store(&keys, Stamp(0)).why.is_none(), "its pages are not stored");
        let mut fetch = engine.space().fetch(FetchFrom::Keys(&keys), Stamp(0), DEADLINE);
        let pages = fetch.next_ready().context("its pages do not come")?;
        ensure!(pages.pages.len() == PAGES as usize, "some of its pages do not come");
        Ok(Self { client, engine, fetch, pages })
    }

    /// Every byte of the pages that lie under the lease is right.
    pub(crate) fn still_reads(&self) -> Result<()> {
        let keys = self.engine.keys(1, PAGES);
        for (key, page) in keys.iter().zip(&self.pages.pages) {
            let right = self.engine.look_at(key, page);
            ensure!(right.is_ok(), "a leased page changed: {right:?}");
        }
        ensure!(self.pages.intact() == PAGES as usize, "a leased page was given away");
        Ok(())
    }
}

/// Reads its pages again and again until it is ended.
pub(crate) fn read_slowly(socket: &Path) -> Result<()> {
    let holder = Holder::new(socket)?;
    let began = std::time::Instant::now();
    while began.elapsed() < LONGEST_LIFE {
        holder.still_reads()?;
        say("right")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
