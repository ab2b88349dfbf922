use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_benches::PageContent;
use undercroft_client::wire::{
    Chain, DomainId, Dtype, Family, Geometry, PageKey, Rank, Space, SpaceDigest, Stamp,
};
use undercroft_client::{
    Client, FetchFrom, Found, Loaded, LookupOptions, SpaceHandle, StoreOptions, StoreRun, Stored,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};

/// Bytes of a test page: 2 layers, K and V, 4 KiB each.
pub const PAGE_BYTES: u64 = 16 << 10;

const LAYERS: u32 = 2;
const PARTS: u32 = 2;
const FRAGMENT_BYTES: u32 = 4 << 10;
const BLOCKS: u32 = 64;

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
    /// An engine serving the model called `model`.
    ///
    /// # Panics
    /// If the daemon does not open its space.
    #[must_use]
    pub fn new(client: &Client, model: &str) -> Self {
        let geometry = Geometry::new(LAYERS, PARTS, FRAGMENT_BYTES).expect("a small page");
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
        let space = client.open_space(&space, deadline).expect("the space opens");
        let device = HostDevice::new(geometry, BLOCKS, HostOptions::default()).expect("a device");
        let domain = DomainId::named("default");
        let device = Arc::new(device);
        Self { device, space, family, domain, digest, deadline, longest: Duration::ZERO }
    }

    /// The keys of the first `pages` pages of the conversation called `seed`.
    #[must_use]
    pub fn keys(&self, seed: u32, pages: u32) -> Vec<PageKey> {
        let mut chain = Chain::new(&self.family.digest(), b"");
        (0..pages).map(|page| chain.push(&[seed, page])).collect()
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
        let blocks: Vec<BlockId> = (0..keys.len() as u32).map(BlockId).collect();
        for block in &blocks {
            self.scribble(*block);
        }
        let since = Instant::now();
        let from = FetchFrom::Keys(keys);
        let loaded = self.space.fetch_into(&*self.device, from, &blocks, stamp, self.deadline);
        self.longest = self.longest.max(since.elapsed());
        for (key, block) in keys.iter().zip(&blocks).take(loaded.pages as usize) {
            self.verify(key, *block);
        }
        loaded
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

    fn each_fragment(&self, mut each: impl FnMut(u32, u32, u64)) {
        for layer in 0..LAYERS {
            for part in 0..PARTS {
                let index = u64::from(layer * PARTS + part);
                each(layer, part, index * u64::from(FRAGMENT_BYTES));
            }
        }
    }

    fn fill(&self, key: &PageKey, block: BlockId) {
        let content = self.content(key);
        self.each_fragment(|layer, part, offset| {
            self.device
                .write_fragment(block, layer, part, |bytes| content.fill(offset, bytes))
                .expect("a block of the device");
        });
    }

    fn scribble(&self, block: BlockId) {
        self.each_fragment(|layer, part, _| {
            self.device
                .write_fragment(block, layer, part, |bytes| bytes.fill(0xee))
                .expect("a block of the device");
        });
    }

    fn verify(&self, key: &PageKey, block: BlockId) {
        let content = self.content(key);
        self.each_fragment(|layer, part, offset| {
            self.device
                .read_fragment(block, layer, part, |bytes| {
                    if let Err(wrong) = content.verify(offset, bytes) {
                        panic!("wrong bytes in {key:?}, layer {layer}, part {part}: {wrong:?}");
                    }
                })
                .expect("a block of the device");
        });
    }
}
