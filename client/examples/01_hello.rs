//! One page, there and back. Start a daemon with `undercroft serve`, then
//!
//! ```text
//! cargo run -p undercroft-client --example 01_hello [SOCKET]
//! ```

use std::error::Error;
use std::time::Duration;
use undercroft_client::wire::{Chain, Dtype, Family, Geometry, Rank, Space, Stamp};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, LookupOptions, StoreOptions, StoreRun, find_socket,
};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};

const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).map_or_else(find_socket, Into::into);
    let client = Client::connect(ConnectOptions::new(socket))?;

    // Who shares pages with whom: everything that changes the bytes or the meaning of a KV cache.
    let family = Family {
        model: [1; 32], // a digest of configuration and weights, never of a name
        adapter: [0; 32],
        dtype: Dtype::Bf16,
        quantization: "none".into(),
        attention: "rope".into(),
        layout: "nhd".into(),
        layers: 4,
        kv_heads: 2,
        page_tokens: 16,
    };
    // A page: 4 layers of K and V, each 16 tokens of 2 heads of 32 elements of 2 bytes.
    let geometry = Geometry::new(4, 2, 16 * 2 * 32 * 2)?;
    let space = Space { family, rank: Rank::Shared, group: 0, geometry };
    let pages = client.open_space(&space, PATIENCE)?;

    // Where an engine has its blocks: here 2 of them, in ordinary memory.
    let device = HostDevice::new(geometry, 2, HostOptions::default())?;
    device.write_block(BlockId(0), |at, bytes| {
        bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (at + i) as u8);
    })?;

    // A key says which tokens a page is of, and all that are before them.
    let tokens: Vec<u32> = (1000..1016).collect();
    let key = Chain::new(&space.family.digest(), b"").push(&tokens);

    // Out of block 0, into the daemon's memory.
    let run = StoreRun { parent: None, first: 0, keys: &[key], stamp: Stamp(0) };
    let options = StoreOptions { deadline: PATIENCE, wait_for_credits: true };
    let stored = pages.store(run, &device, &[BlockId(0)], options);
    println!("stored {}, held already {}", stored.stored, stored.held);

    // Is it there? What is not found is a value, not an error.
    let found = pages.lookup(&[key], LookupOptions::default());
    println!("found {} page, {} of it in DRAM ({:?})", found.pages, found.dram, found.why);

    // Into block 1, bit by bit as it was.
    let from = FetchFrom::Keys(&[key]);
    let loaded = pages.fetch_into(&device, from, &[BlockId(1)], found.stamp, PATIENCE);
    let mut same = loaded.pages == 1;
    device.read_block(BlockId(1), |at, bytes| {
        same &= bytes.iter().enumerate().all(|(i, byte)| *byte == (at + i) as u8);
    })?;
    println!(
        "loaded {} page, {} bytes: {}",
        loaded.pages,
        loaded.bytes,
        if same { "same" } else { "lost" }
    );
    if same { Ok(()) } else { Err("the page did not come back".into()) }
}
