//! A client with a GPU, which is the stand-in driver, and a real daemon: pages go from blocks to the
//! arena and back, the driver knows of all memory they pass, and of none when it is gone.

use std::time::{Duration, Instant};
use undercroft_client::wire::{Geometry, GpuReport, PageKey, Stamp};
use undercroft_client::{Client, ConnectOptions, FetchFrom, StoreOptions, StoreRun};
use undercroft_gpu_shim::BlockId;
use undercroft_gpu_shim::cuda::{CopyMode, CudaDevice, CudaOptions};
use undercroft_stand_in::{Setting, StandIn};
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon, run};

const LONG: Duration = Duration::from_secs(30);
const PAGES: u32 = 12;

/// What an engine has: a space of a daemon's, and blocks on a GPU.
struct Node {
    stand_in: StandIn,
    daemon: TestDaemon,
    client: Client,
    engine: Engine,
    device: CudaDevice,
}

fn page(key: &PageKey, bytes: usize) -> Vec<u8> {
    let seed = key.0;
    (0..bytes).map(|at| seed[at % 32] ^ (at >> 5) as u8).collect()
}

/// As the test engine's pages are.
fn geometry() -> Geometry {
    Geometry::new(2, 2, (PAGE_BYTES / 4) as u32).expect("a possible page")
}

impl Node {
    fn new(copy_mode: bool) -> Self {
        let stand_in = StandIn::load().expect("the stand-in is built");
        let daemon = TestDaemon::start(DaemonOptions::default());
        // The driver alone decides how pages are delivered.
        stand_in.set(Setting::ReadOnlyRegistration, u64::from(!copy_mode));
        let kernel = Some(CopyMode::Kernel);
        let options = CudaOptions { load: kernel, store: kernel, ..CudaOptions::default() };
        let device = CudaDevice::allocate(0, geometry(), PAGES, options).expect("a device");
        let options = ConnectOptions::new(daemon.socket());
        let client = Client::connect_with_gpu(options, &device).expect("the daemon is there");
        let engine = Engine::new(&client, "gpu");
        assert_eq!(engine.space().space().geometry, geometry());
        Self { stand_in, daemon, client, engine, device }
    }

    /// Waits until the driver knows of so many mappings.
    fn wait_registered(&self, count: u64) {
        let until = Instant::now() + LONG;
        while self.stand_in.report().registrations != count {
            let found = self.stand_in.report().registrations;
            assert!(Instant::now() < until, "{found} registrations, not {count}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stores a chain from blocks, spoils them and loads it back.
    fn there_and_back(&self, seed: u32) {
        let keys = self.engine.keys(seed, PAGES);
        let blocks: Vec<BlockId> = (0..PAGES).map(BlockId).collect();
        let bytes = self.engine.space().space().geometry.page_bytes() as usize;
        for (key, block) in keys.iter().zip(&blocks) {
            self.device.write_block(*block, &page(key, bytes)).expect("a block");
        }
        let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(0) };
        let options = StoreOptions { deadline: LONG, wait_for_credits: true };
        let stored = self.engine.space().store(run, &self.device, &blocks, options);
        assert_eq!(stored.stored, PAGES, "{stored:?}");
        for block in &blocks {
            self.device.write_block(*block, &vec![0xee; bytes]).expect("a block");
        }
        let from = FetchFrom::Keys(&keys);
        let loaded = self.engine.space().fetch_into(&self.device, from, &blocks, Stamp(0), LONG);
        assert_eq!((loaded.pages, loaded.why), (PAGES, None), "{:?}", loaded.fault);
        for (key, block) in keys.iter().zip(&blocks) {
            let mut found = vec![0; bytes];
            self.device.read_block(*block, &mut found).expect("a block");
            assert!(found == page(key, bytes), "a wrong byte in block {block}");
        }
    }

    fn told(&self) -> Option<GpuReport> {
        let status = self.daemon.status();
        status.sessions.into_iter().find_map(|session| session.gpu)
    }

    fn end(self) {
        let Self { stand_in, daemon, client, engine, device } = self;
        drop((engine, device));
        // The client has the last word on what it watched.
        assert!(client.close(LONG));
        drop((client, daemon));
        let until = Instant::now() + LONG;
        while !stand_in.report().leaks().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        stand_in.assert_clean();
    }
}

#[test]
fn pages_go_by_the_gpu_alone_in_either_mode_of_delivery_and_status_says_so() {
    for copy_mode in [false, true] {
        let node = Node::new(copy_mode);
        // The arena's one part and staging; in copy mode staging alone.
        node.wait_registered(if copy_mode { 1 } else { 2 });
        let before = node.stand_in.report();
        node.there_and_back(1);
        let after = node.stand_in.report();
        assert!(after.kernels > before.kernels);
        // Writing and reading blocks as the test does goes through the driver's memory.
        let fragments = u64::from(PAGES) * 4;
        let pageable = after.pageable_copies - before.pageable_copies;
        assert_eq!(pageable, 3 * fragments, "copy mode {copy_mode}");
        let until = Instant::now() + LONG;
        while node.told().is_none_or(|gpu| gpu.waiting_bytes > 0 || gpu.pinned_bytes == 0) {
            assert!(Instant::now() < until, "{:?}", node.told());
            std::thread::sleep(Duration::from_millis(5));
        }
        let socket = node.daemon.socket();
        let status = run(&["status", "--socket", &socket.to_string_lossy()]);
        let status = String::from_utf8(status.stdout).expect("text");
        assert!(status.contains("loads by kernel (layer by layer: kernel)"), "{status}");
        assert!(status.contains(" pinned\n"), "{status}");
        node.end();
    }
}

#[test]
fn a_new_arena_is_registered_and_the_old_one_forgotten() {
    let mut node = Node::new(false);
    node.wait_registered(2);
    node.there_and_back(1);
    node.daemon.kill();
    node.daemon.restart();
    assert!(node.client.wait_connected(LONG));
    let until = Instant::now() + LONG;
    while !node.engine.space().is_open() {
        assert!(Instant::now() < until, "the space does not open again");
        std::thread::sleep(Duration::from_millis(2));
    }
    node.wait_registered(2);
    node.there_and_back(2);
    // The new daemon hears what the old one knew.
    let until = Instant::now() + LONG;
    while node.told().is_none_or(|gpu| gpu.pinned_bytes == 0) {
        assert!(Instant::now() < until, "{:?}", node.told());
        std::thread::sleep(Duration::from_millis(5));
    }
    node.end();
}

#[test]
fn memory_that_the_driver_refuses_is_copied_all_the_same_and_status_says_so() {
    let mut node = Node::new(false);
    node.wait_registered(2);
    node.stand_in.set(Setting::PinnedBytes, 0);
    let kernel = Some(CopyMode::Kernel);
    let options = CudaOptions { load: kernel, store: kernel, ..CudaOptions::default() };
    node.device = CudaDevice::allocate(0, geometry(), PAGES, options).expect("a device");
    node.client.attach_gpu(&node.device).expect("it has a name");
    assert!(node.device.pins().settle(LONG));
    node.there_and_back(1);
    let until = Instant::now() + LONG;
    while node.told().is_none_or(|gpu| gpu.refused_bytes == 0) {
        assert!(Instant::now() < until, "{:?}", node.told());
        std::thread::sleep(Duration::from_millis(5));
    }
    node.end();
}
