//! Bytes of any length under one key: the state of a sequence that an engine hands out in one piece.
//!
//! ```text
//! cargo run -p undercroft-client --example 05_blob [SOCKET]
//! ```

use std::error::Error;
use std::time::Duration;
use undercroft_client::wire::{Chain, Dtype, Family, Geometry, Rank, Space};
use undercroft_client::{Client, ConnectOptions, MissReason, StoreOptions, find_socket};

const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).map_or_else(find_socket, Into::into);
    let client = Client::connect(ConnectOptions::new(socket))?;
    let family = Family {
        model: [5; 32],
        adapter: [0; 32],
        dtype: Dtype::F16,
        quantization: "none".into(),
        attention: String::new(),
        layout: "what my engine 1.2 writes".into(), // another version may read it differently
        layers: 30,
        kv_heads: 3,
        page_tokens: 1,
    };
    // A page of such a space is bytes without a shape: one layer of one part.
    let geometry = Geometry::new(1, 1, 64 << 10)?;
    let space = Space { family, rank: Rank::Shared, group: 0, geometry };
    let blobs = client.open_space(&space, PATIENCE)?;

    // The key says what the bytes are: here the tokens that were read, all of them.
    let tokens: Vec<u32> = (0..777).collect();
    let key = Chain::new(&space.family.digest(), b"").push(&tokens);
    let state: Vec<u8> = (0..300_001_u32).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect();

    match blobs.find_blob(key, PATIENCE) {
        Ok(blob) => println!("{} bytes are kept already", blob.len()),
        Err(MissReason::Absent) => println!("nothing is kept yet"),
        Err(why) => println!("nothing can be said: {why}"),
    }
    let options = StoreOptions { deadline: PATIENCE, wait_for_credits: true };
    let stored = blobs.store_blob(key, &state, options);
    println!("stored {} pages, {} were there already", stored.stored, stored.held);

    // All of it, as it was, or a miss.
    let blob = blobs.find_blob(key, PATIENCE)?;
    let mut restored = vec![0; usize::try_from(blob.len())?];
    blob.load(&mut restored, PATIENCE)?;
    println!(
        "restored {} bytes: {}",
        restored.len(),
        if restored == state { "same" } else { "lost" }
    );
    if restored == state { Ok(()) } else { Err("other bytes came back".into()) }
}
