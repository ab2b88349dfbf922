//! One tenant of a daemon that has several: a process of its own, as the daemon tells tenants apart
//! by theirs. Prints what it found as one line of JSON.

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde_json::json;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::wire::{PageKey, Stamp};
use undercroft_client::{Client, ConnectOptions, FetchFrom, LookupOptions, Wait};
use undercroft_tests::{Engine, EngineOptions, coin, distinction};

#[derive(Debug, Parser)]
struct Arguments {
    /// The daemon's socket
    #[arg(long)]
    socket: PathBuf,
    /// The domain it is to belong to
    #[arg(long)]
    domain: String,
    /// Pages of a conversation
    #[arg(long, default_value_t = 8)]
    pages: u32,
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Stores conversations `from..to`
    Store { from: u32, to: u32 },
    /// Looks conversations `from..to` up, and loads what is found
    Load { from: u32, to: u32 },
    /// Stores conversations `from..to`, says so, and stores and loads them over and over until
    /// standard input ends
    Flood { from: u32, to: u32 },
    /// Leases all of one conversation, says so, and keeps it until standard input ends
    Keep { chain: u32 },
    /// Looks up conversations of three kinds, each `count` long: what another tenant has stored,
    /// from 0 on; what nobody has, from 1,000,000 on; what this one has stored, from 2,000,000 on
    Time { count: u32, trials: usize, seed: u64 },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut options = ConnectOptions::new(&arguments.socket);
    options.name = arguments.domain.clone();
    options.wait = Wait::Now(Duration::from_secs(5));
    let client = Client::connect(options)?;
    let blocks = arguments.pages;
    let engine = EngineOptions { blocks, ..EngineOptions::default() };
    let mut engine = Engine::open(&client, "shared model", engine)?.in_domain(&arguments.domain);
    let report = match arguments.command {
        Task::Store { from, to } => {
            let mut stored = 0;
            for chain in from..to {
                let keys = engine.keys(chain, arguments.pages);
                stored += engine.store(&keys, Stamp(0)).stored;
            }
            json!({ "stored": stored })
        }
        Task::Load { from, to } => {
            let (mut maybe, mut found, mut loaded) = (0, 0, 0);
            for chain in from..to {
                let keys = engine.keys(chain, arguments.pages);
                maybe += u32::from(client.may_hold(&keys[0]) == Some(true));
                found += engine.lookup(&keys).pages;
                loaded += engine.load(&keys).pages;
            }
            json!({ "maybe": maybe, "found": found, "loaded": loaded })
        }
        Task::Flood { from, to } => flood(&mut engine, arguments.pages, from..to)?,
        Task::Keep { chain } => return keep(&engine, &engine.keys(chain, arguments.pages)),
        Task::Time { count, trials, seed } => time(&engine, arguments.pages, count, trials, seed)?,
    };
    println!("{report}");
    Ok(())
}

fn flood(engine: &mut Engine, pages: u32, chains: Range<u32>) -> Result<serde_json::Value> {
    for chain in chains.clone() {
        engine.try_store(&engine.keys(chain, pages));
    }
    println!("{}", json!({ "stored": chains.len() }));
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    std::thread::spawn(move || {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        end.store(true, Ordering::Relaxed);
    });
    let mut loaded = 0_u64;
    for chain in chains.cycle() {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let keys = engine.keys(chain, pages);
        loaded += u64::from(engine.load(&keys).pages);
        engine.try_store(&keys);
    }
    Ok(json!({ "loaded": loaded }))
}

fn keep(engine: &Engine, keys: &[PageKey]) -> Result<()> {
    let patience = Duration::from_secs(10);
    let mut fetch = engine.space().fetch(FetchFrom::Keys(keys), Stamp(0), patience);
    let mut pages = Vec::new();
    while let Some(run) = fetch.next_ready() {
        pages.extend(run.pages);
    }
    println!("{}", json!({ "kept": pages.len() }));
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop((pages, fetch));
    Ok(())
}

fn time(
    engine: &Engine,
    pages: u32,
    count: u32,
    trials: usize,
    seed: u64,
) -> Result<serde_json::Value> {
    let keys = |base: u32| -> Vec<_> { (0..count).map(|n| engine.keys(base + n, pages)).collect() };
    let (theirs, nobodys, own) = (keys(0), keys(1_000_000), keys(2_000_000));
    let options =
        LookupOptions { hold: None, deadline: Duration::from_secs(5), ..LookupOptions::default() };
    let look = |keys: &[_]| -> Result<(u64, u32)> {
        let since = Instant::now();
        let found = engine.space().lookup(keys, options);
        let took = since.elapsed().as_nanos() as u64;
        ensure!(found.pages > 0 || found.why.is_some(), "no answer");
        Ok((took, found.pages))
    };
    let mut sets = [Vec::new(), Vec::new(), Vec::new()];
    let mut found = [0_u64; 3];
    // Each trial of the question comes with one of the control, in an order nobody can guess.
    for (at, side) in coin(trials / 2, seed).into_iter().enumerate() {
        let chain = (at / 2) % count as usize;
        let question = if side { (0, &theirs[chain]) } else { (1, &nobodys[chain]) };
        for (set, keys) in [question, (2, &own[chain])] {
            let (took, pages) = look(keys).context("a trial")?;
            sets[set].push(took);
            found[set] += u64::from(pages);
        }
    }
    let question = distinction(&sets[0], &sets[1]);
    let control = distinction(&sets[1], &sets[2]);
    Ok(json!({
        "trials": sets[0].len() + sets[1].len(),
        "found": { "theirs": found[0], "nobodys": found[1], "own": found[2] },
        "theirs_or_nobodys": { "auc": question.auc, "low": question.low, "high": question.high },
        "nobodys_or_own": { "auc": control.auc, "low": control.low, "high": control.high },
    }))
}
