//! A serving engine in little: prompts that share a prefix, and only what is new is computed.
//!
//! ```text
//! cargo run -p undercroft-client --example 02_engine [SOCKET]
//! ```
//!
//! The model is a checksum of the tokens; what is around it is what an engine has. Run it twice.

use std::error::Error;
use std::time::Duration;
use undercroft_client::wire::{Chain, Dtype, Family, Geometry, PageKey, Rank, Space};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, LookupOptions, SpaceHandle, StoreOptions, StoreRun, Wait,
    find_socket,
};
use undercroft_gpu_shim::{BlockId, DeviceError, HostDevice, HostOptions};

const PAGE_TOKENS: usize = 16;
const BLOCKS: u32 = 64;

struct Engine {
    pages: SpaceHandle,
    device: HostDevice,
}

impl Engine {
    fn new(client: &Client) -> Result<Self, Box<dyn Error>> {
        let family = Family {
            model: [2; 32],
            adapter: [0; 32],
            dtype: Dtype::Bf16,
            quantization: "none".into(),
            attention: "rope".into(),
            layout: "nhd".into(),
            layers: 4,
            kv_heads: 2,
            page_tokens: PAGE_TOKENS as u32,
        };
        let geometry = Geometry::new(4, 2, 2048)?;
        let space = Space { family, rank: Rank::Shared, group: 0, geometry };
        let pages = client.open_space(&space, Duration::from_secs(5))?;
        let device = HostDevice::new(geometry, BLOCKS, HostOptions::default())?;
        Ok(Self { pages, device })
    }

    /// Reads a prompt. Says how many of its pages were loaded, and how many computed.
    fn prefill(&self, tokens: &[u32]) -> Result<(usize, usize), DeviceError> {
        // Full pages only: the rest of a prompt is computed in any case.
        let mut chain = Chain::new(&self.pages.space().family.digest(), b"");
        let keys: Vec<PageKey> =
            tokens.chunks_exact(PAGE_TOKENS).map(|page| chain.push(page)).collect();
        let blocks: Vec<BlockId> = (0..keys.len() as u32).map(BlockId).collect();

        // The hold keeps what was found until it is loaded. A deadline bounds what a scheduler waits.
        let hold = Some(Duration::from_secs(1));
        let deadline = Duration::from_millis(50);
        let found =
            self.pages.lookup(&keys, LookupOptions { hold, deadline, ..LookupOptions::default() });

        let loaded = match &found.hold {
            Some(hold) => {
                let from = FetchFrom::Hold(hold, 0, found.pages);
                let blocks = &blocks[..found.pages as usize];
                let deadline = Duration::from_secs(2);
                // It may be fewer than were found: whatever went wrong, the rest is computed.
                self.pages.fetch_into(&self.device, from, blocks, found.stamp, deadline).pages
            }
            None => 0,
        };

        let first = loaded as usize;
        for (page, block) in blocks.iter().enumerate().skip(first) {
            self.compute(&tokens[..(page + 1) * PAGE_TOKENS], *block)?;
        }
        if first < keys.len() {
            let parent = first.checked_sub(1).map(|before| keys[before]);
            let run = StoreRun { parent, first: loaded, keys: &keys[first..], stamp: found.stamp };
            // An engine in a hurry does not wait for room in staging: those pages are declined.
            let options = StoreOptions { deadline: Duration::from_secs(2), wait_for_credits: true };
            let stored = self.pages.store(run, &self.device, &blocks[first..], options);
            if let Some(why) = stored.why {
                println!("  {} pages were not stored: {why}", stored.unsettled);
            }
        }
        Ok((first, keys.len() - first))
    }

    /// Fills a block with what depends on all tokens up to the end of its page.
    fn compute(&self, tokens: &[u32], block: BlockId) -> Result<(), DeviceError> {
        let sum = sum(tokens);
        self.device.write_block(block, |at, bytes| {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = (sum.rotate_left((at + i) as u32 % 64) >> 7) as u8;
            }
        })
    }

    /// Whether every block is what would have been computed.
    fn is_right(&self, tokens: &[u32]) -> Result<bool, DeviceError> {
        let mut right = true;
        for page in 0..tokens.len() / PAGE_TOKENS {
            let sum = sum(&tokens[..(page + 1) * PAGE_TOKENS]);
            self.device.read_block(BlockId(page as u32), |at, bytes| {
                right &= bytes
                    .iter()
                    .enumerate()
                    .all(|(i, byte)| *byte == (sum.rotate_left((at + i) as u32 % 64) >> 7) as u8);
            })?;
        }
        Ok(right)
    }
}

fn sum(tokens: &[u32]) -> u64 {
    tokens.iter().fold(14_695_981_039_346_656_037, |sum, token| {
        (sum ^ u64::from(*token)).wrapping_mul(1_099_511_628_211)
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).map_or_else(find_socket, Into::into);
    // An engine goes on without a daemon: everything is a miss until there is one.
    let options = ConnectOptions { wait: Wait::Background, ..ConnectOptions::new(socket) };
    let client = Client::connect(options)?;
    let is_there = client.wait_connected(Duration::from_secs(2));
    println!("{}", if is_there { "with a daemon" } else { "without a daemon" });
    let engine = Engine::new(&client)?;

    let system: Vec<u32> = (0..320).collect();
    let turns = ["what is a page?", "and who may share one?", "thank you"];
    let mut conversation = system;
    for turn in turns {
        conversation.extend(turn.bytes().map(u32::from));
        let (loaded, computed) = engine.prefill(&conversation)?;
        println!("{} tokens: {loaded} pages loaded, {computed} computed", conversation.len());
        if !engine.is_right(&conversation)? {
            return Err("a block is not what would have been computed".into());
        }
    }
    Ok(())
}
