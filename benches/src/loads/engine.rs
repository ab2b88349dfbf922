use super::options::LoadsOptions;
use crate::daemon::Daemon;
use crate::replay::geometry;
use crate::{BenchError, PageContent};
use std::time::{Duration, Instant};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, LookupOptions, SpaceHandle, StoreOptions, StoreRun, Wait,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};
use undercroft_wire::{
    DomainId, Dtype, Family, FamilyDigest, PageKey, Rank, Space, Stamp, StatusReport,
};

const DEADLINE: Duration = Duration::from_secs(60);
/// Pages of the shortest and of the longest prefix.
const SHORTEST: u64 = 40;
const LONGEST: u64 = 160;
/// Prefixes there are.
pub(super) const PREFIXES: u64 = 24;

/// An engine: its copies are real, and its computing takes as long as it says.
pub(super) struct Engine {
    client: Client,
    space: SpaceHandle,
    device: HostDevice,
    family: FamilyDigest,
    recompute: Duration,
}

/// What became of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served {
    /// Pages of its prefix.
    pub(super) pages: u64,
    /// Pages that were loaded, and those of them that were read from SSD.
    pub(super) loaded: u64,
    pub(super) from_ssd: u64,
    /// What it took without a cache, and with it: what was not loaded was computed.
    pub(super) computed: Duration,
    pub(super) took: Duration,
}

/// Pages of a prefix; all between the shortest and the longest are about as frequent.
fn pages_of(prefix: u64) -> u64 {
    SHORTEST + prefix * 7_919 % (LONGEST - SHORTEST + 1)
}

/// Pages of all prefixes.
pub(super) fn all_pages() -> u64 {
    (0..PREFIXES).map(pages_of).sum()
}

impl Engine {
    pub(super) fn connect(daemon: &Daemon, options: &LoadsOptions) -> Result<Self, BenchError> {
        let problem = |problem: String| BenchError::Option { option: "--page-bytes", problem };
        let page_bytes = u32::try_from(options.page_bytes.0)
            .map_err(|_| problem("allowed are 512 bytes to 64 MiB".to_owned()))?;
        let geometry = geometry(page_bytes).map_err(|error| problem(error.to_string()))?;
        let family = Family {
            model: [9; 32],
            adapter: [0; 32],
            dtype: Dtype::Bf16,
            quantization: "none".to_owned(),
            attention: "bench loads".to_owned(),
            layout: "bench loads".to_owned(),
            layers: geometry.layers(),
            kv_heads: 8,
            page_tokens: 16,
        };
        let digest = family.digest();
        let space = Space { family, rank: Rank::Shared, group: 0, geometry };
        let mut connect = ConnectOptions::new(daemon.socket());
        connect.name = "undercroft bench loads".to_owned();
        connect.wait = Wait::Now(DEADLINE);
        let client = Client::connect(connect)?;
        let device = HostDevice::new(geometry, LONGEST as u32, HostOptions::default())?;
        let space = client.open_space(&space, DEADLINE)?;
        let recompute = Duration::from_micros(options.recompute_us);
        Ok(Self { client, space, device, family: digest, recompute })
    }

    /// From here on loads are weighed against computing.
    pub(super) fn weigh(&self) {
        self.space.set_recompute(self.recompute);
    }

    fn keys(&self, prefix: u64) -> Vec<PageKey> {
        let name = |page: u64| PageKey::from_engine_hash(&self.family, &name_of(prefix, page));
        (0..pages_of(prefix)).map(name).collect()
    }

    fn content(&self, key: &PageKey) -> PageContent {
        let space = self.space.space();
        PageContent::new(&DomainId::named("default"), &space.digest(), space.rank, key)
    }

    /// Computes a prefix and stores it.
    pub(super) fn store(&self, prefix: u64) -> Result<(), BenchError> {
        let keys = self.keys(prefix);
        let blocks: Vec<BlockId> = (0..keys.len() as u32).map(BlockId).collect();
        for (block, key) in blocks.iter().zip(&keys) {
            let content = self.content(key);
            self.device.write_block(*block, |at, bytes| content.fill(at as u64, bytes))?;
        }
        let options = StoreOptions { deadline: DEADLINE, wait_for_credits: true };
        let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(0) };
        let stored = self.space.store(run, &self.device, &blocks, options);
        if stored.stored as usize == keys.len() {
            return Ok(());
        }
        Err(problem(format!("of {} pages the daemon stored {stored:?}", keys.len())))
    }

    /// Serves a request: loads what the daemon says, and computes the rest.
    pub(super) fn serve(&self, prefix: u64) -> Result<Served, BenchError> {
        let keys = self.keys(prefix);
        let blocks: Vec<BlockId> = (0..keys.len() as u32).map(BlockId).collect();
        let began = Instant::now();
        let hold = Some(DEADLINE);
        let options = LookupOptions { hold, deadline: DEADLINE, ..LookupOptions::default() };
        let found = self.space.lookup(&keys, options);
        let pages = found.pages as usize;
        let (mut loaded, mut from_ssd) = (0, 0);
        if pages > 0 {
            let (from, into) = (FetchFrom::Keys(&keys[..pages]), &blocks[..pages]);
            let load = self.space.fetch_into(&self.device, from, into, found.stamp, DEADLINE);
            (loaded, from_ssd) = (u64::from(load.pages), u64::from(load.ssd_pages));
        }
        let loading = began.elapsed();
        drop(found);
        self.verify(&keys[..loaded as usize])?;
        let each = |pages: u64| self.recompute * pages as u32;
        let pages = keys.len() as u64;
        // What the daemon has learnt of its disk ages meanwhile.
        std::thread::sleep(each(pages - loaded));
        Ok(Served {
            pages,
            loaded,
            from_ssd,
            computed: each(pages),
            took: loading + each(pages - loaded),
        })
    }

    /// What was loaded is what was stored.
    fn verify(&self, keys: &[PageKey]) -> Result<(), BenchError> {
        for (block, key) in keys.iter().enumerate() {
            let content = self.content(key);
            let mut wrong = None;
            self.device.read_block(BlockId(block as u32), |at, bytes| {
                if wrong.is_none() {
                    wrong = content.verify(at as u64, bytes).err();
                }
            })?;
            if let Some(wrong) = wrong {
                return Err(problem(format!("page {block} holds wrong bytes: {wrong}")));
            }
        }
        Ok(())
    }

    pub(super) fn status(&self) -> Result<Box<StatusReport>, BenchError> {
        self.client.status(DEADLINE).map_err(|why| problem(why.to_string()))
    }
}

fn name_of(prefix: u64, page: u64) -> [u8; 16] {
    let mut name = [0; 16];
    name[..8].copy_from_slice(&prefix.to_le_bytes());
    name[8..].copy_from_slice(&page.to_le_bytes());
    name
}

pub(super) fn problem(problem: String) -> BenchError {
    BenchError::Measure { row: "loads", problem }
}
