//! A candle engine whose KV cache outlives it.
//!
//! ```text
//! undercroft serve &
//! cargo run --manifest-path client/examples/candle/Cargo.toml -- --check [SOCKET]
//! ```
//!
//! A Llama with seeded random weights reads a prompt of 20 pages and goes on greedily. `--check` runs three engines, each a
//! process of its own: without Undercroft, with what is kept (nothing, the first time), and again. It prints a table and
//! fails unless all three give the same tokens and the same bits of every logit, and the last one restored all pages.

mod kv;
mod model;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use candle_transformers::models::llama2_c::Cache;
use kv::KvPages;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use undercroft_client::wire::{Chain, PageKey};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, LookupOptions, SpaceHandle, StoreOptions, StoreRun, Wait,
    find_socket,
};
use undercroft_gpu_shim::BlockId;

const PAGE_TOKENS: usize = 16;
const PAGES: usize = 20;
/// Beyond the last full page: computed in any case.
const REST: usize = 7;
const GENERATED: usize = 24;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let mode = arguments.next_if(|first| first.to_string_lossy().starts_with("--"));
    let socket = arguments.next().map_or_else(find_socket, PathBuf::from);
    match mode.as_deref().and_then(|mode| mode.to_str()) {
        Some("--check") => check(&socket),
        Some("--alone") => serve(None),
        None => serve(Some(socket)),
        Some(other) => bail!("{other} is no mode, allowed: --check, --alone"),
    }
}

/// One engine's life. Prints how many pages it restored, how long it read, and what it said.
fn serve(socket: Option<PathBuf>) -> Result<()> {
    let mut engine = model::Engine::new(PAGE_TOKENS)?;
    let prompt: Vec<u32> =
        (0..PAGES * PAGE_TOKENS + REST).map(|i| (i * i + 3 * i) as u32 % 1000).collect();
    let pages = socket.map(|socket| open(&engine, socket)).transpose()?;
    let began = Instant::now();
    let restored = match &pages {
        Some(pages) => restore(&mut engine, pages, &prompt)?,
        None => 0,
    };
    // Each page by itself, so that an engine that begins in the middle computes what one from the start does.
    for page in restored..PAGES {
        let at = page * PAGE_TOKENS;
        engine.read(&prompt[at..at + PAGE_TOKENS], at)?;
    }
    let took = began.elapsed();
    if let Some(pages) = pages.filter(|_| restored < PAGES) {
        keep(&engine, &pages, &prompt, restored)?;
    }
    let (tokens, bits) = engine.generate(&prompt, PAGES * PAGE_TOKENS, GENERATED)?;
    println!("{restored} {} {bits:016x} {tokens:?}", took.as_micros());
    Ok(())
}

fn open(engine: &model::Engine, socket: PathBuf) -> Result<SpaceHandle> {
    let options = ConnectOptions { wait: Wait::Background, ..ConnectOptions::new(socket) };
    let client = Client::connect(options)?;
    // Without a daemon everything is a miss, and the engine goes on.
    let _is_there = client.wait_connected(Duration::from_secs(2));
    Ok(client.open_space(&engine.space()?, Duration::from_secs(5))?)
}

fn keys(pages: &SpaceHandle, prompt: &[u32]) -> Vec<PageKey> {
    let mut chain = Chain::new(&pages.space().family.digest(), b"");
    prompt.chunks_exact(PAGE_TOKENS).map(|page| chain.push(page)).collect()
}

fn blocks(range: std::ops::Range<usize>) -> Vec<BlockId> {
    range.map(|page| BlockId(page as u32)).collect()
}

/// Puts what is kept of a prompt into the engine's cache. Says how many pages.
fn restore(engine: &mut model::Engine, pages: &SpaceHandle, prompt: &[u32]) -> Result<usize> {
    let keys = keys(pages, prompt);
    let hold = Some(Duration::from_secs(2));
    let found = pages.lookup(&keys, LookupOptions { hold, ..LookupOptions::default() });
    let Some(hold) = &found.hold else {
        return Ok(0);
    };
    let device = KvPages::empty(pages.space().geometry, found.pages as usize);
    let from = FetchFrom::Hold(hold, 0, found.pages);
    let blocks = blocks(0..found.pages as usize);
    let loaded = pages.fetch_into(&device, from, &blocks, found.stamp, Duration::from_secs(5));
    let count = loaded.pages as usize;
    if count > 0 {
        engine.cache.kvs = device.tensors(count, engine.shape())?;
    }
    Ok(count)
}

/// Keeps the pages from `first` on.
fn keep(engine: &model::Engine, pages: &SpaceHandle, prompt: &[u32], first: usize) -> Result<()> {
    let keys = keys(pages, prompt);
    let device = KvPages::of(pages.space().geometry, PAGES, &kvs(&engine.cache)?)?;
    let parent = first.checked_sub(1).map(|before| keys[before]);
    let run =
        StoreRun { parent, first: first as u32, keys: &keys[first..], stamp: Default::default() };
    let options = StoreOptions { deadline: Duration::from_secs(5), wait_for_credits: true };
    let stored = pages.store(run, &device, &blocks(first..PAGES), options);
    if let Some(why) = stored.why {
        eprintln!("{} pages were not stored: {why}", stored.unsettled);
    }
    Ok(())
}

fn kvs(cache: &Cache) -> Result<Vec<&(Tensor, Tensor)>> {
    cache.kvs.iter().map(|layer| layer.as_ref().context("a layer without a cache")).collect()
}

fn check(socket: &std::path::Path) -> Result<()> {
    let program = std::env::current_exe()?;
    let mut rows: Vec<Vec<String>> = Vec::new();
    println!("{:10} {:>8} {:>9}", "engine", "restored", "read in");
    for (name, mode) in [("alone", Some("--alone")), ("first", None), ("restarted", None)] {
        let output = Command::new(&program).args(mode).arg(socket).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let row: Vec<String> = said.trim().splitn(4, ' ').map(str::to_owned).collect();
        ensure!(row.len() == 4, "{name} said {said:?}");
        println!("{name:10} {:>8} {:>6} µs  {}", row[0], row[1], row[3]);
        rows.push(row);
    }
    let same = rows.iter().all(|row| row[2..] == rows[0][2..]);
    ensure!(same, "tokens or logits differ");
    ensure!(rows[2][0] == PAGES.to_string(), "{} of {PAGES} pages were restored", rows[2][0]);
    println!("same tokens, and the same bits of every logit");
    Ok(())
}
