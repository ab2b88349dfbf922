//! Two ranks of one model: a page counts when both have it, and the scheduler's hold goes to the
//! workers by a token.
//!
//! ```text
//! cargo run -p undercroft-client --example 04_ranks [SOCKET]
//! ```
//!
//! Scheduler and workers are processes of their own in an engine; here they are clients of their own.

use std::error::Error;
use std::path::Path;
use std::time::Duration;
use undercroft_client::wire::{Chain, Dtype, Family, Geometry, PageKey, Rank, Space, Stamp};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, LookupOptions, SpaceHandle, StoreOptions, StoreRun, Token,
    find_socket,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};

const RANKS: u16 = 2;
const PAGES: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(5);

/// A shard of the model: half of its heads.
fn shard(index: u16) -> Result<Space, Box<dyn Error>> {
    let family = Family {
        model: [4; 32],
        adapter: [0; 32],
        dtype: Dtype::Bf16,
        quantization: "none".into(),
        attention: "rope".into(),
        layout: "nhd".into(),
        layers: 4,
        kv_heads: 4, // of the whole model
        page_tokens: 16,
    };
    let geometry = Geometry::new(4, 2, 2048)?;
    Ok(Space { family, rank: Rank::Of { index, count: RANKS }, group: 0, geometry })
}

/// What a rank's half of the model computes for a page.
fn computed(rank: u16, page: u32) -> u8 {
    (u32::from(rank) * 100 + page + 1) as u8
}

/// A worker, with its blocks and its shard.
struct Worker {
    rank: u16,
    client: Client,
    pages: SpaceHandle,
    device: HostDevice,
    blocks: Vec<BlockId>,
}

impl Worker {
    fn new(socket: &Path, index: u16) -> Result<Self, Box<dyn Error>> {
        let (client, space) = (Client::connect(ConnectOptions::new(socket))?, shard(index)?);
        let pages = client.open_space(&space, PATIENCE)?;
        let device = HostDevice::new(space.geometry, PAGES, HostOptions::default())?;
        let blocks: Vec<BlockId> = (0..PAGES).map(BlockId).collect();
        for (page, block) in (0..).zip(&blocks) {
            device.write_block(*block, |_, bytes| bytes.fill(computed(index, page)))?;
        }
        Ok(Self { rank: index, client, pages, device, blocks })
    }

    fn store(&self, keys: &[PageKey]) -> u32 {
        let run = StoreRun { parent: None, first: 0, keys, stamp: Stamp(0) };
        let options = StoreOptions { deadline: PATIENCE, wait_for_credits: true };
        let stored = self.pages.store(run, &self.device, &self.blocks[..keys.len()], options);
        stored.stored + stored.held
    }

    /// Takes a hold over and loads its own shard of what it holds, into blocks that had something
    /// else. Says how many pages have the bytes that this rank computed.
    fn load(&self, token: Token, stamp: Stamp) -> Result<u32, Box<dyn Error>> {
        for block in &self.blocks {
            self.device.write_block(*block, |_, bytes| bytes.fill(0))?;
        }
        let hold = self.client.take_hold(token, PATIENCE)?;
        let from = FetchFrom::Hold(&hold, 0, hold.pages());
        let blocks = &self.blocks[..hold.pages() as usize];
        let loaded = self.pages.fetch_into(&self.device, from, blocks, stamp, PATIENCE);
        for (page, block) in (0..loaded.pages).zip(blocks) {
            let wanted = computed(self.rank, page);
            let mut same = true;
            self.device
                .read_block(*block, |_, bytes| same &= bytes.iter().all(|b| *b == wanted))?;
            if !same {
                return Err(format!("page {page} has other bytes than were computed").into());
            }
        }
        Ok(loaded.pages)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).map_or_else(find_socket, Into::into);
    let workers = [Worker::new(&socket, 0)?, Worker::new(&socket, 1)?];
    let scheduler = Client::connect(ConnectOptions::new(&socket))?;
    let spaces =
        [scheduler.open_space(&shard(0)?, PATIENCE)?, scheduler.open_space(&shard(1)?, PATIENCE)?];

    // Keys are of the family: both ranks speak of the same ones.
    let mut chain = Chain::new(&shard(0)?.family.digest(), b"");
    let keys: Vec<PageKey> = (0..PAGES).map(|page| chain.push(&[page; 16])).collect();
    let stored = [workers[0].store(&keys), workers[1].store(&keys[..4])];
    println!("rank 0 keeps {} pages, rank 1 keeps {}", stored[0], stored[1]);

    // One lookup over both. A hold belongs to one session, so each worker gets one of its own.
    let both = [&spaces[0], &spaces[1]];
    let options = LookupOptions { hold: Some(Duration::from_secs(2)), ..LookupOptions::default() };
    let mut loaded = [0, 0];
    for (worker, loaded) in workers.iter().zip(&mut loaded) {
        let found = scheduler.lookup_family(&both, &keys, options);
        let hold = found.hold.as_ref().ok_or("nothing was found")?;
        *loaded = worker.load(hold.give(PATIENCE)?, found.stamp)?;
        println!("found {} pages that both have; a worker loaded {loaded}", found.pages);
    }
    if loaded == [4, 4] { Ok(()) } else { Err(format!("{loaded:?} instead of [4, 4]").into()) }
}
