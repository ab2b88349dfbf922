//! A load on which an engine begins before it is over: the first layers of all pages come first.
//!
//! ```text
//! cargo run -p undercroft-client --example 03_layers [SOCKET]
//! ```

use std::error::Error;
use std::time::{Duration, Instant};
use undercroft_client::wire::{Chain, Dtype, Family, Geometry, PageKey, Rank, Space, Stamp};
use undercroft_client::{Client, ConnectOptions, FetchFrom, StoreOptions, StoreRun, find_socket};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};

const LAYERS: u32 = 8;
const PAGES: u32 = 24;
const PATIENCE: Duration = Duration::from_secs(5);

/// What the model computes: each layer of each page has bytes of its own.
fn computed(page: u32, at: usize) -> u8 {
    (page * 31 + at as u32 / 2048 * 7 + 1) as u8
}

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).map_or_else(find_socket, Into::into);
    let client = Client::connect(ConnectOptions::new(socket))?;
    let family = Family {
        model: [3; 32],
        adapter: [0; 32],
        dtype: Dtype::Bf16,
        quantization: "none".into(),
        attention: "rope".into(),
        layout: "nhd".into(),
        layers: LAYERS,
        kv_heads: 2,
        page_tokens: 16,
    };
    let geometry = Geometry::new(LAYERS, 2, 2048)?;
    let space = Space { family, rank: Rank::Shared, group: 0, geometry };
    let pages = client.open_space(&space, PATIENCE)?;

    // A device with threads and a link of its own, slow enough that one sees the layers come.
    let options = HostOptions { copy_threads: 1, link_bytes_per_s: Some(20 << 20) };
    let device = HostDevice::new(geometry, PAGES, options)?;
    let blocks: Vec<BlockId> = (0..PAGES).map(BlockId).collect();
    for (page, block) in (0..).zip(&blocks) {
        device.write_block(*block, |at, bytes| bytes.fill(computed(page, at)))?;
    }
    let mut chain = Chain::new(&space.family.digest(), b"");
    let keys: Vec<PageKey> = (0..PAGES).map(|page| chain.push(&[page; 16])).collect();
    let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(0) };
    let options = StoreOptions { deadline: PATIENCE, wait_for_credits: true };
    let stored = pages.store(run, &device, &blocks, options);
    println!("stored {}, held already {}", stored.stored, stored.held);

    // The engine's memory has other bytes by now.
    for block in &blocks {
        device.write_block(*block, |_, bytes| bytes.fill(0))?;
    }
    let began = Instant::now();
    let from = FetchFrom::Keys(&keys);
    let mut load = pages.fetch_by_layer(&device, from, &blocks, Stamp(0), PATIENCE);
    for layer in 0..LAYERS {
        // An engine computes its layer now, while the next one is copied. Of how many leading
        // pages it is there may be fewer than were asked for: the rest is a miss.
        let there = load.wait_layer(layer, PATIENCE)?;
        println!("layer {layer}: {there} pages after {:?}", began.elapsed());
    }
    let loaded = load.finish();
    println!("{} pages, {} bytes after {:?}", loaded.pages, loaded.bytes, began.elapsed());
    if loaded.pages < PAGES {
        return Err(format!("{:?}", loaded.why).into());
    }
    let mut same = true;
    for (page, block) in (0..).zip(&blocks) {
        let is_computed = |at, bytes: &[u8]| bytes.iter().all(|byte| *byte == computed(page, at));
        device.read_block(*block, |at, bytes| same &= is_computed(at, bytes))?;
    }
    println!("what was computed: {}", if same { "same" } else { "lost" });
    if same { Ok(()) } else { Err("other bytes came back".into()) }
}
