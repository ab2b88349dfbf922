use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_arena::Span;
use undercroft_benches::{PageContent, WrongBytes};
use undercroft_client::wire::{
    Chain, DomainId, Dtype, Family, Geometry, PageKey, Rank, Space, SpaceDigest, Stamp,
};
use undercroft_client::{
    Client, FetchFrom, Found, Loaded, LookupOptions, OpenError, SpaceHandle, StoreOptions,
    StoreRun, Stored,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};

/// Bytes of a test page: 2 layers, K and V, 4 KiB each.
pub const PAGE_BYTES: u64 = 16 << 10;

const LAYERS: u32 = 2;
const PARTS: u32 = 2;

/// What an engine's pages are and how many of them its device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Bytes of a page: a multiple of 4, for K and V of two layers.
    pub page_bytes: u64,
    /// Blocks of the device: the longest chain one call can store or load.
    pub blocks: u32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { page_bytes: PAGE_BYTES, blocks: 64 }
    }
}

/// A load with every byte of it compared.
#[derive(Debug)]
#[must_use]
pub struct Inspected {
    /// What the client says of it.
    pub loaded: Loaded,
    /// Delivered bytes that are not the page's.
    pub wrong_bytes: u64,
    /// The first wrong bytes: of which page, and where.
    pub first_wrong: Option<(PageKey, WrongBytes)>,
}

/// A serving engine in little: a device made of host memory, one space, and pages whose every
/// byte follows from their identity.
#[derive(Debug)]
pub struct Engine {
    device: Arc<HostDevice>,
    space: SpaceHandle,
    family: Family,
    domain: DomainId,
    digest: SpaceDigest,
    /// No call may take longer.
    pub deadline: Duration,
    /// The longest any call took.
    pub longest: Duration,
}

impl Engine {
    /// An engine serving the model called `model`, with the default pages.
    ///
    /// # Panics
    /// If the daemon does not open its space.
    #[must_use]
    pub fn new(client: &Client, model: &str) -> Self {
        Self::open(client, model, EngineOptions::default()).expect("the space opens")
    }

    /// An engine serving the model called `model`.
    ///
    /// # Errors
    /// The daemon does not open its space.
    ///
    /// # Panics
    /// If there can be no such pages.
    pub fn open(client: &Client, model: &str, options: EngineOptions) -> Result<Self, OpenError> {
        let fragment_bytes = (options.page_bytes / u64::from(LAYERS * PARTS)) as u32;
        let geometry = Geometry::new(LAYERS, PARTS, fragment_bytes).expect("a possible page");
        let mut name = [0; 32];
        name[..model.len()].copy_from_slice(model.as_bytes());
        let family = Family {
            model: name,
            adapter: [0; 32],
            dtype: Dtype::Bf16,
            quantization: "none".to_owned(),
            attention: "full".to_owned(),
            layout: "layer, part, block".to_owned(),
            layers: LAYERS,
            kv_heads: 1,
            page_tokens: 16,
        };
        let rank = Rank::Of { index: 0, count: 1 };
        let space = Space { family: family.clone(), rank, group: 0, geometry };
        let deadline = Duration::from_secs(10);
        let digest = space.digest();
        let space = client.open_space(&space, deadline)?;
        let device = HostDevice::new(geometry, options.blocks, HostOptions::default());
        Ok(Self {
            device: Arc::new(device.expect("memory for a device")),
            space,
            family,
            domain: DomainId::named("default"),
            digest,
            deadline,
            longest: Duration::ZERO,
        })
    }

    /// The same engine as a tenant of another domain: its pages' bytes are that domain's.
    #[must_use]
    pub fn in_domain(self, name: &str) -> Self {
        Self { domain: DomainId::named(name), ..self }
    }

    /// The keys of the first `pages` pages of the conversation called `seed`.
    #[must_use]
    pub fn keys(&self, seed: u32, pages: u32) -> Vec<PageKey> {
        let mut chain = Chain::new(&self.family.digest(), b"");
        (0..pages).map(|page| chain.push(&[seed, page])).collect()
    }

    /// Its space, as stores and `purge` name it.
    #[must_use]
    pub fn digest(&self) -> SpaceDigest {
        self.digest
    }

    /// The engine's space.
    #[must_use]
    pub fn space(&self) -> &SpaceHandle {
        &self.space
    }

    /// Looks the longest stored prefix up.
    pub fn lookup(&mut self, keys: &[PageKey]) -> Found {
        let options = LookupOptions { deadline: self.deadline, ..LookupOptions::default() };
        let since = Instant::now();
        let found = self.space.lookup(keys, options);
        self.longest = self.longest.max(since.elapsed());
        found
    }

    /// Looks up, fetches what was found into the device and compares every byte; how many pages
    /// were delivered.
    ///
    /// # Panics
    /// On a wrong byte.
    pub fn load(&mut self, keys: &[PageKey]) -> Loaded {
        let found = self.lookup(keys);
        self.fetch(&keys[..found.pages as usize], found.stamp)
    }

    /// Fetches pages into the device and compares every byte.
    ///
    /// # Panics
    /// On a wrong byte.
    pub fn fetch(&mut self, keys: &[PageKey], stamp: Stamp) -> Loaded {
        let Inspected { loaded, first_wrong, .. } = self.inspect(keys, stamp);
        if let Some((key, wrong)) = first_wrong {
            panic!("wrong bytes in {key:?}: {wrong}");
        }
        loaded
    }

    /// Fetches pages into the device and counts the bytes that are not theirs.
    ///
    /// # Panics
    /// If there are more keys than blocks.
    pub fn inspect(&mut self, keys: &[PageKey], stamp: Stamp) -> Inspected {
        let blocks: Vec<BlockId> = (0..keys.len() as u32).map(BlockId).collect();
        for block in &blocks {
            self.scribble(*block);
        }
        let since = Instant::now();
        let from = FetchFrom::Keys(keys);
        let loaded = self.space.fetch_into(&*self.device, from, &blocks, stamp, self.deadline);
        self.longest = self.longest.max(since.elapsed());
        let delivered = loaded.pages as usize;
        let mut inspected = Inspected { loaded, wrong_bytes: 0, first_wrong: None };
        for (key, block) in keys.iter().zip(&blocks).take(delivered) {
            self.compare(key, *block, &mut inspected);
        }
        inspected
    }

    /// Stores the pages of a whole chain from its start, waiting for credits.
    ///
    /// # Panics
    /// If the device cannot be written.
    pub fn store(&mut self, keys: &[PageKey], stamp: Stamp) -> Stored {
        let blocks: Vec<BlockId> = (0..keys.len() as u32).map(BlockId).collect();
        for (key, block) in keys.iter().zip(&blocks) {
            self.fill(key, *block);
        }
        let run = StoreRun { parent: None, first: 0, keys, stamp };
        let options = StoreOptions { deadline: self.deadline, wait_for_credits: true };
        let since = Instant::now();
        let stored = self.space.store(run, &*self.device, &blocks, options);
        self.longest = self.longest.max(since.elapsed());
        stored
    }

    /// Stores a chain where it does not matter how much of it is taken.
    ///
    /// # Panics
    /// As [`Engine::store`].
    pub fn try_store(&mut self, keys: &[PageKey]) {
        let _taken = self.store(keys, Stamp(0));
    }

    /// Loads a chain where it does not matter how much of it comes, as long as it is right.
    ///
    /// # Panics
    /// On a wrong byte.
    pub fn try_load(&mut self, keys: &[PageKey]) {
        let _came = self.load(keys);
    }

    fn content(&self, key: &PageKey) -> PageContent {
        PageContent::new(&self.domain, &self.digest, Rank::Of { index: 0, count: 1 }, key)
    }

    /// Compares a page where it lies, as a device reads it that copies it in one piece.
    ///
    /// # Errors
    /// Bytes that are not the page's.
    pub fn look_at(&self, key: &PageKey, page: &Span) -> Result<(), WrongBytes> {
        page.read(|bytes| self.content(key).verify(0, bytes))
    }

    fn fill(&self, key: &PageKey, block: BlockId) {
        let content = self.content(key);
        self.device
            .write_block(block, |at, bytes| content.fill(at as u64, bytes))
            .expect("a block of the device");
    }

    fn scribble(&self, block: BlockId) {
        self.device.write_block(block, |_, bytes| bytes.fill(0xee)).expect("a block of the device");
    }

    fn compare(&self, key: &PageKey, block: BlockId, inspected: &mut Inspected) {
        let content = self.content(key);
        self.device
            .read_block(block, |at, bytes| {
                if let Err(wrong) = content.verify(at as u64, bytes) {
                    inspected.wrong_bytes += wrong.count;
                    inspected.first_wrong.get_or_insert((*key, wrong));
                }
            })
            .expect("a block of the device");
    }
}
