use super::layouts::Kept;
use super::pages::content;
use super::{Findings, GpuChecks};
use crate::{DaemonOptions, Site, TestDaemon};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_client::wire::{Chain, Dtype, Family, Mode, PageKey, Rank, Space, Stamp};
use undercroft_client::{Client, FetchFrom, LookupOptions, SpaceHandle, StoreOptions, StoreRun};
use undercroft_gpu_shim::BlockId;
use undercroft_gpu_shim::cuda::{CudaDevice, CudaOptions};

const KEPT: Kept = Kept::PartsFirst;
/// Pages of the conversation that is loaded again and again, and of each that is stored.
const PAGES: u32 = 24;
const DRAM: u64 = 256 << 20;
const STAGING: u64 = 64 << 20;
const ROUNDS: u32 = 8;
const DEADLINE: Duration = Duration::from_secs(10);
/// After this long without an answer something hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the victim is called.
const NAME: &str = "victim";
/// What it says when its copies are under way.
const READY: &str = "ready";

/// A client is killed while its GPU reads out of the arena and writes into its staging. The daemon
/// must go on, what the client had be given back, and the next one load every page.
pub(super) fn run(on: &GpuChecks) -> Result<Findings> {
    let columns = [
        "killed after ms",
        "dead ms",
        "gone ms",
        "delivery",
        "pages found",
        "pages loaded",
        "wrong bytes",
    ];
    let mut findings = Findings::with_columns(&columns);
    let options = DaemonOptions { dram: DRAM, staging: STAGING, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    let pid = daemon.pid();
    let mut rng = fastrand::Rng::with_seed(on.seed);
    for _ in 0..if on.quick { 2 } else { ROUNDS } {
        let mut victim = Victim::start(&daemon, on.ordinal)?;
        let under_way = Duration::from_millis(rng.u64(20..200));
        std::thread::sleep(under_way);
        let delivery = victim.delivery(&daemon);
        let dead = victim.kill()?;
        let gone = wait_until_gone(&daemon)?;
        let next = Engine::new(&daemon.site(), on.ordinal, "next")?;
        let (found, loaded, wrong) = next.load_and_compare(0)?;
        findings.row([
            json!(under_way.as_secs_f64() * 1e3),
            json!(dead.as_secs_f64() * 1e3),
            json!(gone.as_secs_f64() * 1e3),
            json!(delivery),
            json!(found),
            json!(loaded),
            json!(wrong),
        ]);
        if wrong > 0 || loaded != PAGES {
            findings.wrong(format!(
                "the next client got {loaded} of {PAGES} pages, {wrong} wrong bytes"
            ));
        }
    }
    if daemon.status().pid != pid {
        findings.wrong("the daemon is not the one that was started");
    }
    findings.note("the daemon is the same process all the while");
    Ok(findings)
}

/// What the victim does until it is killed: stores a conversation, then loads it again and again
/// while another thread stores others.
///
/// # Errors
/// The daemon or the device does not do what it should.
pub fn be_killed(socket: &Path, ordinal: u32) -> Result<()> {
    let engine = Engine::new(&Site::new(socket.to_owned()), ordinal, NAME)?;
    engine.store(0)?;
    engine.load(0)?;
    println!("{READY}");
    std::io::stdout().flush()?;
    std::thread::scope(|scope| {
        let stores = scope.spawn(|| -> Result<()> {
            for conversation in 1.. {
                engine.store(conversation)?;
            }
            Ok(())
        });
        while !stores.is_finished() {
            engine.load(0)?;
        }
        stores.join().map_err(|_| anyhow::anyhow!("the thread that stores panicked"))?
    })
}

/// The process that is killed.
struct Victim(Child);

impl Victim {
    fn start(daemon: &TestDaemon, ordinal: u32) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("be-killed").arg(daemon.socket()).arg(ordinal.to_string());
        let mut child = command.stdout(Stdio::piped()).spawn().context("the client to kill")?;
        let output = child.stdout.take().context("it is piped")?;
        let victim = Self(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim() == READY, "the client to kill never had copies under way");
        Ok(victim)
    }

    /// How its pages come.
    fn delivery(&self, daemon: &TestDaemon) -> &'static str {
        let status = daemon.status();
        let session = status.sessions.iter().find(|session| session.name == NAME);
        match session.map(|session| session.mode) {
            Some(Mode::ZeroCopy) => "in place",
            Some(Mode::Copy) => "copied",
            None => "gone",
        }
    }

    /// How long it took to die: its driver may have to end what the device does for it first.
    fn kill(&mut self) -> Result<Duration> {
        ensure!(self.0.try_wait()?.is_none(), "it ended before it was killed");
        let since = Instant::now();
        self.0.kill()?;
        self.0.wait()?;
        Ok(since.elapsed())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have been killed and reaped already.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// From the moment it was reaped until the daemon knows nothing of it any more.
fn wait_until_gone(daemon: &TestDaemon) -> Result<Duration> {
    let since = Instant::now();
    while daemon.status().sessions.iter().any(|session| session.name == NAME) {
        ensure!(since.elapsed() < PATIENCE, "its session is there {PATIENCE:?} after its death");
    }
    Ok(since.elapsed())
}

/// An engine whose blocks are on the GPU.
struct Engine {
    space: SpaceHandle,
    family: Family,
    device: CudaDevice,
    /// After the space: it serves it.
    _client: Client,
}

impl Engine {
    fn new(site: &Site, ordinal: u32, name: &str) -> Result<Self> {
        let client = site.client(name).context("the daemon does not answer")?;
        let geometry = KEPT.geometry();
        let options = CudaOptions::default();
        // The first half of the blocks is for loads, the second for stores.
        let device = CudaDevice::allocate_layout(ordinal, &KEPT.layout(2 * PAGES)?, options)?;
        client.watch_parts(Arc::new(device.pins().clone()));
        let family = Family {
            model: [7; 32],
            adapter: [0; 32],
            dtype: Dtype::Bf16,
            quantization: "none".to_owned(),
            attention: "full".to_owned(),
            layout: KEPT.name().to_owned(),
            layers: geometry.layers(),
            kv_heads: 8,
            page_tokens: 16,
        };
        let rank = Rank::Of { index: 0, count: 1 };
        let space = Space { family: family.clone(), rank, group: 0, geometry };
        let space = client.open_space(&space, DEADLINE)?;
        Ok(Self { space, family, device, _client: client })
    }

    fn keys(&self, conversation: u32) -> Vec<PageKey> {
        let mut chain = Chain::new(&self.family.digest(), b"");
        (0..PAGES).map(|page| chain.push(&[conversation, page])).collect()
    }

    fn number(conversation: u32, page: u32) -> u64 {
        u64::from(conversation) << 32 | u64::from(page)
    }

    /// Stores a conversation, if it is wanted.
    fn store(&self, conversation: u32) -> Result<()> {
        let blocks: Vec<BlockId> = (PAGES..2 * PAGES).map(BlockId).collect();
        let mut image = vec![0; KEPT.geometry().page_bytes() as usize];
        for (page, block) in blocks.iter().enumerate() {
            content(Self::number(conversation, page as u32)).fill(0, &mut image);
            self.device.write_block(*block, &image)?;
        }
        let keys = self.keys(conversation);
        let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(0) };
        let options = StoreOptions { deadline: DEADLINE, wait_for_credits: true };
        let stored = self.space.store(run, &self.device, &blocks, options);
        ensure!(stored.failed == 0 && stored.fault.is_none(), "{stored:?}");
        Ok(())
    }

    /// Loads what is found of a conversation: how many pages were found and loaded.
    fn load(&self, conversation: u32) -> Result<(u32, u32)> {
        let keys = self.keys(conversation);
        let options = LookupOptions { deadline: DEADLINE, ..LookupOptions::default() };
        let found = self.space.lookup(&keys, options);
        let blocks: Vec<BlockId> = (0..found.pages).map(BlockId).collect();
        let from = FetchFrom::Keys(&keys[..found.pages as usize]);
        let loaded = self.space.fetch_into(&self.device, from, &blocks, found.stamp, DEADLINE);
        ensure!(loaded.fault.is_none(), "{loaded:?}");
        Ok((found.pages, loaded.pages))
    }

    fn load_and_compare(&self, conversation: u32) -> Result<(u32, u32, u64)> {
        let (found, loaded) = self.load(conversation)?;
        let mut wrong = 0;
        for page in 0..loaded {
            let number = Self::number(conversation, page);
            wrong += super::pages::wrong_in_block(&self.device, page, number)?;
        }
        Ok((found, loaded, wrong))
    }
}
