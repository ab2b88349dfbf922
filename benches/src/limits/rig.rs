use crate::daemon::{Daemon, DaemonPlan};
use crate::interrupt::Interrupt;
use crate::replay::geometry;
use crate::{BenchError, PageContent};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use undercroft_client::{
    Client, ConnectOptions, Fetch, FetchFrom, FetchReport, LookupOptions, SpaceHandle,
    StoreOptions, StoreRun, Wait,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};
use undercroft_wire::{
    DomainId, Dtype, Family, FamilyDigest, HintKind, PageKey, Rank, Space, StatusReport,
};

pub(super) const GREETING: Duration = Duration::from_secs(5);
/// No call of a measurement takes nearly so long.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// A daemon of our own, a session with it, and a device whose blocks all hold something.
pub(super) struct Rig {
    row: &'static str,
    pub(super) client: Client,
    pub(super) space: SpaceHandle,
    pub(super) device: HostDevice,
    pub(super) blocks: Vec<BlockId>,
    family: FamilyDigest,
    made: AtomicU64,
    /// After the session with it.
    pub(super) daemon: Daemon,
}

/// A run of pages under keys of its own, from the start of a chain.
pub(super) type Run = Vec<PageKey>;

impl Rig {
    pub(super) fn start(
        row: &'static str,
        plan: DaemonPlan,
        page_bytes: u32,
        blocks: u32,
        copy_threads: usize,
        interrupt: &Interrupt,
    ) -> Result<Self, BenchError> {
        let problem = |problem| BenchError::Measure { row, problem };
        let space = space(row, page_bytes).map_err(problem)?;
        let (geometry, family) = (space.geometry, space.family.digest());
        // With one thread the caller copies: a hand-over would only add to it.
        let copy_threads = if copy_threads > 1 { copy_threads } else { 0 };
        let options = HostOptions { copy_threads, ..HostOptions::default() };
        let device = HostDevice::new(geometry, blocks, options)?;
        let blocks: Vec<BlockId> = (0..blocks).map(BlockId).collect();
        for block in &blocks {
            let key = PageKey([block.0 as u8; 32]);
            let content =
                PageContent::new(&DomainId::named("default"), &space.digest(), space.rank, &key);
            device.write_block(*block, |at, bytes| content.fill(at as u64, bytes))?;
        }
        let daemon = Daemon::start(plan, interrupt)?;
        let mut options = ConnectOptions::new(daemon.socket());
        options.name = format!("undercroft bench limits: {row}");
        options.wait = Wait::Now(GREETING);
        let client = Client::connect(options)?;
        let space = client.open_space(&space, GREETING)?;
        Ok(Self { row, client, space, device, blocks, family, made: AtomicU64::new(0), daemon })
    }

    /// Keys nobody has seen before.
    pub(super) fn fresh(&self, pages: usize) -> Run {
        let first = self.made.fetch_add(pages as u64, Ordering::Relaxed);
        (first..first + pages as u64).map(|number| key(&self.family, number)).collect()
    }

    /// Stores a run out of these blocks; all of it must be taken.
    pub(super) fn store(&self, run: &[PageKey], blocks: Range<usize>) -> Result<(), BenchError> {
        self.store_piece(run, 0..run.len(), blocks)
    }

    /// Stores a piece of a run out of these blocks; all of it must be taken.
    pub(super) fn store_piece(
        &self,
        run: &[PageKey],
        piece: Range<usize>,
        blocks: Range<usize>,
    ) -> Result<(), BenchError> {
        let options = StoreOptions { deadline: DEADLINE, wait_for_credits: true };
        let store = StoreRun {
            parent: piece.start.checked_sub(1).map(|parent| run[parent]),
            first: piece.start as u32,
            keys: &run[piece],
            stamp: self.space.lookup(&run[..1], lookup()).stamp,
        };
        let wanted = store.keys.len();
        let blocks = &self.blocks[blocks];
        let stored = self.space.store(store, &self.device, blocks, options);
        if stored.stored as usize == wanted {
            return Ok(());
        }
        Err(self.problem(format!("of {wanted} pages the daemon stored {stored:?}")))
    }

    /// Loads a run that must be in DRAM into these blocks.
    pub(super) fn load(&self, run: &[PageKey], blocks: Range<usize>) -> Result<(), BenchError> {
        let blocks = &self.blocks[blocks];
        let found = self.space.lookup(run, lookup());
        let from = FetchFrom::Keys(run);
        let loaded = self.space.fetch_into(&self.device, from, blocks, found.stamp, DEADLINE);
        if loaded.pages as usize == run.len() && loaded.ssd_pages == 0 {
            return Ok(());
        }
        Err(self.problem(format!("of {} pages in DRAM came {loaded:?}", run.len())))
    }

    /// Fetches a run without copying it anywhere. Returns how many pages were read from SSD.
    pub(super) fn fetch(&self, run: &[PageKey]) -> Result<u32, BenchError> {
        if run.is_empty() {
            return Ok(0);
        }
        self.end_fetch(run, self.begin_fetch(run))
    }

    /// Asks for a run.
    pub(super) fn begin_fetch(&self, run: &[PageKey]) -> Fetch {
        let found = self.space.lookup(run, lookup());
        self.space.fetch(FetchFrom::Keys(run), found.stamp, DEADLINE)
    }

    /// Takes all of a run that was asked for. Returns how many pages were read from SSD.
    pub(super) fn end_fetch(&self, run: &[PageKey], fetch: Fetch) -> Result<u32, BenchError> {
        let report = drain(fetch);
        if report.pages as usize == run.len() {
            return Ok(report.ssd_pages);
        }
        Err(self.problem(format!("of {} pages came {report:?}", run.len())))
    }

    /// Fetches as much of a run as the daemon has, without copying it anywhere.
    pub(super) fn fetch_some(&self, run: &[PageKey]) -> FetchReport {
        drain(self.begin_fetch(run))
    }

    /// Tells the daemon that nobody will come back for the end of this run.
    pub(super) fn end(&self, run: &[PageKey]) -> Result<(), BenchError> {
        let told = self.space.hint(run, HintKind::Ended, DEADLINE);
        told.map_err(|why| self.problem(why.to_string()))
    }

    /// How many leading pages of a run the daemon has.
    pub(super) fn held(&self, run: &[PageKey]) -> usize {
        self.space.lookup(run, lookup()).pages as usize
    }

    pub(super) fn status(&self) -> Result<Box<StatusReport>, BenchError> {
        self.client.status(DEADLINE).map_err(|why| self.problem(why.to_string()))
    }

    pub(super) fn problem(&self, problem: String) -> BenchError {
        BenchError::Measure { row: self.row, problem }
    }
}

/// The space of a row's pages.
pub(super) fn space(row: &str, page_bytes: u32) -> Result<Space, String> {
    let geometry = geometry(page_bytes).map_err(|e| e.to_string())?;
    let family = Family {
        model: *blake3::hash(row.as_bytes()).as_bytes(),
        adapter: [0; 32],
        dtype: Dtype::Bf16,
        quantization: "none".to_owned(),
        attention: "bench limits".to_owned(),
        layout: "bench limits".to_owned(),
        layers: geometry.layers(),
        kv_heads: 8,
        page_tokens: 16,
    };
    Ok(Space { family, rank: Rank::Shared, group: 0, geometry })
}

/// The key that a rig gives out as its number `number`.
pub(super) fn key(family: &FamilyDigest, number: u64) -> PageKey {
    PageKey::from_engine_hash(family, &number.to_le_bytes())
}

fn drain(mut fetch: Fetch) -> FetchReport {
    while let Some(ready) = fetch.next_ready() {
        fetch.release_upto(ready.first + ready.pages.len() as u32);
    }
    fetch.report()
}

pub(super) fn lookup() -> LookupOptions {
    LookupOptions { hold: None, deadline: DEADLINE, ..LookupOptions::default() }
}

/// Processor time the daemon took while its side of the pairs ran, for each GiB.
#[derive(Debug, Default)]
pub(super) struct DaemonCost {
    seconds: f64,
    bytes: u64,
}

impl DaemonCost {
    pub(super) fn add(&mut self, before: &StatusReport, after: &StatusReport, bytes: u64) {
        self.seconds += after.cpu_s - before.cpu_s;
        self.bytes += bytes;
    }

    pub(super) fn per_gib(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.seconds / (self.bytes as f64 / f64::from(1 << 30)))
    }
}
