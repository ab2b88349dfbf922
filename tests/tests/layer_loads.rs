//! Loads by layer from a real daemon: of more pages than it may lease, and of one that dies.

use std::time::Duration;
use undercroft_benches::PageContent;
use undercroft_client::wire::{DomainId, PageKey, Rank, Stamp};
use undercroft_client::{Client, FetchFrom, MissReason};
use undercroft_gpu_shim::{BlockId, HostDevice, HostOptions};
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon};

const LONG: Duration = Duration::from_secs(20);
const LAYERS: u32 = 2;

fn engine(daemon: &TestDaemon) -> (Client, Engine) {
    let client = daemon.client("engine").expect("the daemon answers");
    let engine = Engine::new(&client, "model");
    (client, engine)
}

/// A device of the engine's pages that copies beside its caller.
fn device(engine: &Engine, blocks: u32, link_bytes_per_s: Option<u64>) -> HostDevice {
    let options = HostOptions { copy_threads: 1, link_bytes_per_s };
    let geometry = engine.space().space().geometry;
    HostDevice::new(geometry, blocks, options).expect("memory for a device")
}

/// Bytes of these layers of a block that are not the page's.
fn wrong_bytes(engine: &Engine, device: &HostDevice, key: &PageKey, at: u32, layers: u32) -> u64 {
    let rank = Rank::Of { index: 0, count: 1 };
    let content = PageContent::new(&DomainId::named("default"), &engine.digest(), rank, key);
    let end = PAGE_BYTES as usize / LAYERS as usize * layers as usize;
    let mut wrong = 0;
    let mut looked = 0;
    let look = |at: usize, bytes: &[u8]| {
        if at < end {
            looked += bytes.len();
            wrong += content.verify(at as u64, bytes).map_or_else(|wrong| wrong.count, |()| 0);
        }
    };
    device.read_block(BlockId(at), look).expect("a block of the device");
    assert_eq!(looked, end, "fragments do not cross layers");
    wrong
}

fn all_right(engine: &Engine, device: &HostDevice, keys: &[PageKey], layers: u32) -> bool {
    (0..).zip(keys).all(|(at, key)| wrong_bytes(engine, device, key, at, layers) == 0)
}

/// Its early pages land and are let go, or the rest could never be read.
#[test]
fn a_context_longer_than_may_be_leased_comes_whole() {
    let domain = "[[domain]]\nname = \"default\"\ndram = \"256KiB\"\nsession_leases = \"128KiB\"\n";
    for (dram, more) in [(16 * PAGE_BYTES, ""), (0, domain)] {
        let daemon = TestDaemon::start(DaemonOptions {
            dram,
            ssd: 256 * PAGE_BYTES,
            staging: 4 * PAGE_BYTES,
            more: more.to_owned(),
            ..DaemonOptions::default()
        });
        let (_client, mut engine) = engine(&daemon);
        let keys = engine.keys(1, 48);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, 48);
        let device = device(&engine, 48, None);
        let blocks: Vec<BlockId> = (0..48).map(BlockId).collect();
        let from = FetchFrom::Keys(&keys);
        let mut load = engine.space().fetch_by_layer(&device, from, &blocks, Stamp(0), LONG);
        for layer in 0..LAYERS {
            assert_eq!(load.wait_layer(layer, LONG), Ok(48), "{more:?}");
            assert!(all_right(&engine, &device, &keys, layer + 1));
        }
        let loaded = load.finish();
        assert_eq!((loaded.pages, loaded.why), (48, None), "{loaded:?}");
        assert!(loaded.ssd_pages >= 32, "{loaded:?}");
    }
}

#[test]
fn copies_out_of_a_daemon_that_is_killed_are_right() {
    let mut daemon =
        TestDaemon::start(DaemonOptions { dram: 64 * PAGE_BYTES, ..DaemonOptions::default() });
    let (_client, mut engine) = engine(&daemon);
    let keys = engine.keys(1, 32);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 32);
    // Half a second for all of them.
    let device = device(&engine, 32, Some(1 << 20));
    let blocks: Vec<BlockId> = (0..32).map(BlockId).collect();
    let from = FetchFrom::Keys(&keys);
    let mut load = engine.space().fetch_by_layer(&device, from, &blocks, Stamp(0), LONG);
    assert_eq!(load.wait_layer(0, LONG), Ok(32));
    assert!(all_right(&engine, &device, &keys, 1));
    daemon.kill();
    assert_eq!(load.wait_layer(1, Duration::ZERO), Err(MissReason::Deadline), "they go on");
    assert_eq!(load.wait_layer(1, LONG), Ok(32));
    let loaded = load.finish();
    assert_eq!((loaded.pages, loaded.why), (32, None), "all had been delivered");
    assert!(all_right(&engine, &device, &keys, LAYERS));
}

/// What a device still copies is leased, so that nobody else's pages come into those frames.
#[test]
fn a_load_that_is_dropped_leaves_right_bytes_and_no_lease() {
    let daemon =
        TestDaemon::start(DaemonOptions { dram: 64 * PAGE_BYTES, ..DaemonOptions::default() });
    let (client, mut engine) = engine(&daemon);
    let keys = engine.keys(1, 32);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 32);
    let device = device(&engine, 32, Some(1 << 20));
    let blocks: Vec<BlockId> = (0..32).map(BlockId).collect();
    let from = FetchFrom::Keys(&keys);
    let mut load = engine.space().fetch_by_layer(&device, from, &blocks, Stamp(0), LONG);
    assert_eq!(load.wait_layer(0, LONG), Ok(32));
    drop(load);
    assert!(all_right(&engine, &device, &keys, LAYERS), "the drop waits for the copies");
    // Frames that stayed leased could not be given to these.
    for conversation in 2..5 {
        let others = engine.keys(conversation, 60);
        let stamp = engine.lookup(&others).stamp;
        let stored = engine.store(&others, stamp);
        assert_eq!(stored.stored, 60, "{stored:?}");
    }
    client.ping(LONG).expect("the daemon answers");
}
