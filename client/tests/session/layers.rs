//! Loads on which an engine begins layer by layer, on a device that copies when the test says so.

use crate::shelf::{PAGE_BYTES, Shared, Shelf};
use crate::world::*;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use undercroft_client::{FetchFrom, MissReason};
use undercroft_gpu_shim::{
    BlockId, Completion, Device, DeviceError, HostDevice, LoadJob, StoreJob, Transfer,
};
use undercroft_wire::{
    FetchReady, Geometry, LeaseId, Mode, PagePlace, PartId, Reply, Request, RequestId, Stamp,
};

const LAYERS: u32 = 3;
const LAYER_BYTES: usize = PAGE_BYTES as usize / LAYERS as usize;
const NO_TIME: Duration = Duration::ZERO;
const LATE: Result<u32, MissReason> = Err(MissReason::Deadline);

/// How far the copies of a [`Stepped`] device may go.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// Leading layers that may be copied.
    open: u32,
    /// The device is lost.
    lost: bool,
    /// Pages of every copy begun.
    begun: Vec<usize>,
    /// Copies that are not over.
    flying: usize,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap()
    }

    fn open(&self, layers: u32) {
        self.lock().open = layers;
        self.changed.notify_all();
    }
}

/// A device that copies layers when its gate opens, and only by layer.
struct Stepped {
    device: Arc<HostDevice>,
    gate: Arc<Gate>,
}

impl Stepped {
    fn new(blocks: u32) -> Self {
        Self { device: Arc::new(device(blocks)), gate: Arc::default() }
    }

    /// Whether a layer of block `at` holds `byte` everywhere.
    fn layer_is(&self, at: u32, layer: u32, byte: u8) -> bool {
        let mut all = true;
        let look = |at: usize, bytes: &[u8]| {
            if layer_range(layer).contains(&at) {
                all &= bytes.iter().all(|found| *found == byte);
            }
        };
        self.device.read_block(BlockId(at), look).unwrap();
        all
    }
}

fn layer_range(layer: u32) -> Range<usize> {
    let first = layer as usize * LAYER_BYTES;
    first..first + LAYER_BYTES
}

impl Device for Stepped {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn blocks(&self) -> u32 {
        self.device.blocks()
    }

    fn load(&self, _: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        panic!("a load by layer asked for one of any order")
    }

    fn load_by_layer(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        let (device, gate) = (Arc::clone(&self.device), Arc::clone(&self.gate));
        {
            let mut state = gate.lock();
            state.begun.push(jobs.len());
            state.flying += 1;
        }
        let done = Arc::new((Mutex::new(0), Condvar::new()));
        let told = Arc::clone(&done);
        std::thread::spawn(move || {
            for layer in 0..LAYERS {
                let open = |state: &mut GateState| state.open <= layer && !state.lost;
                let mut state = gate.changed.wait_while(gate.lock(), open).unwrap();
                jobs.iter().for_each(|job| copy(&device, job, layer));
                if layer + 1 == LAYERS {
                    state.flying -= 1;
                }
                drop(state);
                *told.0.lock().unwrap() = layer + 1;
                told.1.notify_all();
            }
        });
        Ok(Transfer::new(LAYERS, Box::new(Steps { done, gate: Arc::clone(&self.gate) })))
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        self.device.store(jobs)
    }
}

fn copy(device: &HostDevice, job: &LoadJob, layer: u32) {
    let write = |at: usize, bytes: &mut [u8]| {
        if layer_range(layer).contains(&at) {
            let from = job.page.sub(at, bytes.len()).unwrap();
            from.read(|from| bytes.copy_from_slice(from));
        }
    };
    device.write_block(job.block, write).unwrap();
}

struct Steps {
    done: Arc<(Mutex<u32>, Condvar)>,
    gate: Arc<Gate>,
}

impl Completion for Steps {
    fn wait_layers(&self, layers: u32, deadline: Option<Instant>) -> Result<bool, DeviceError> {
        let left = deadline.map_or(LONG, |by| by.saturating_duration_since(Instant::now()));
        let fewer = |done: &mut u32| *done < layers;
        let (done, _) =
            self.done.1.wait_timeout_while(self.done.0.lock().unwrap(), left, fewer).unwrap();
        match self.gate.lock().lost {
            true => Err(DeviceError::Lost { reason: "as the test wants".into() }),
            false => Ok(*done >= layers),
        }
    }

    fn layers_done(&self) -> u32 {
        *self.done.0.lock().unwrap()
    }
}

fn put(shelf: &Shared, pages: u32) {
    (0..pages).for_each(|at| shelf.lock().unwrap().put(key(at), at as u8 + 100));
}

fn leases(shelf: &Shared) -> usize {
    shelf.lock().unwrap().promises().1
}

/// Some pages of a fetch, as they lie on the shelf if they were put there in order.
fn ready(lease: LeaseId, pages: Range<u32>) -> Reply {
    let place = |at: u32| PagePlace { part: PartId(3), offset: u64::from(at) * 8192 };
    let places = pages.clone().map(place).collect();
    Reply::FetchReady(FetchReady { lease, first: pages.start, places })
}

#[test]
fn layers_come_in_order_and_bit_by_bit() {
    for mode in [Mode::ZeroCopy, Mode::Copy] {
        let world = World::new();
        let shelf = Shelf::new(1, mode, 16);
        put(&shelf, 12);
        let _daemon = world.daemon(&shelf);
        let (_client, space) = world.open();
        let (device, keys, blocks) = (Stepped::new(14), keys(12), &blocks(14)[2..]);
        let mut load =
            space.fetch_by_layer(&device, FetchFrom::Keys(&keys), blocks, Stamp(1), LONG);
        assert_eq!(load.wait_layer(LAYERS, LONG), Err(MissReason::Invalid));
        assert_eq!(load.wait_layer(0, SHORT), LATE);
        assert!(device.gate.lock().begun.len() <= 2, "pages are handed over few at a time");
        for layer in 0..LAYERS {
            device.gate.open(layer + 1);
            assert_eq!(load.wait_layer(layer, LONG), Ok(12), "{mode:?}");
            assert!((0..12).all(|at| device.layer_is(at + 2, layer, at as u8 + 100)), "{mode:?}");
            if layer + 1 < LAYERS {
                assert_eq!(load.wait_layer(layer + 1, NO_TIME), LATE);
                assert_eq!(load.wait_layer(0, NO_TIME), Ok(12), "what is there stays");
            }
        }
        assert!((0..2).all(|at| is_copy(&device.device, at, at)), "blocks of nobody");
        let loaded = load.finish();
        assert_eq!((loaded.pages, loaded.why), (12, None), "{loaded:?}");
        assert_eq!(loaded.bytes, 12 * u64::from(PAGE_BYTES));
        assert_eq!(device.gate.lock().begun.iter().sum::<usize>(), 12);
        soon("the lease ends", || leases(&shelf) == 0);
    }
}

#[test]
fn finishing_needs_no_waiting_for_layers() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    put(&shelf, 3);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let device = Stepped::new(5);
    device.gate.open(LAYERS);
    let from = FetchFrom::Keys(&keys(5));
    let blocks = blocks(5);
    let loaded = space.fetch_by_layer(&device, from, &blocks, Stamp(1), LONG).finish();
    assert_eq!((loaded.pages, loaded.why), (3, Some(MissReason::Absent)));
    assert!((0..3).all(|at| (0..LAYERS).all(|l| device.layer_is(at, l, at as u8 + 100))));
}

#[test]
fn blocks_that_do_not_fit_are_refused_before_anything_is_loaded() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    put(&shelf, 3);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let (device, keys) = (Stepped::new(3), keys(3));
    for blocks in [&[BlockId(0), BlockId(1), BlockId(0)][..], &[BlockId(0)]] {
        let mut load =
            space.fetch_by_layer(&device, FetchFrom::Keys(&keys), blocks, Stamp(1), LONG);
        assert_eq!(load.wait_layer(0, LONG), Ok(0));
        assert_eq!(load.finish().why, Some(MissReason::Invalid));
    }
    assert!(device.gate.lock().begun.is_empty());
}

/// What an engine has been told of a layer is right, whatever becomes of the frame later.
#[test]
fn a_page_that_changes_is_believed_up_to_the_layer_before() {
    let world = World::new();
    let shelf = Shelf::with_board(1, Mode::ZeroCopy, 4);
    put(&shelf, 7);
    let _daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let (device, keys, blocks) = (Stepped::new(7), keys(7), blocks(7));
    let mut load = space.fetch_by_layer(&device, FetchFrom::Keys(&keys), &blocks, Stamp(1), LONG);
    device.gate.open(1);
    assert_eq!(load.wait_layer(0, LONG), Ok(7));
    shelf.lock().unwrap().raise(key(4));
    device.gate.open(2);
    assert_eq!(load.wait_layer(1, LONG), Ok(4));
    shelf.lock().unwrap().raise(key(1));
    device.gate.open(LAYERS);
    assert_eq!(load.wait_layer(2, LONG), Ok(1));
    let loaded = load.finish();
    assert_eq!((loaded.pages, loaded.why), (1, Some(MissReason::Changed)));
    assert_eq!(client.counters().changed_pages, 1);
    soon("the lease ends", || leases(&shelf) == 0);
}

#[test]
fn of_a_daemon_that_dies_in_the_middle_the_delivered_pages_are_loaded() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    put(&shelf, 5);
    let daemon = world.daemon_with(&shelf, |peer, id, request| match request {
        Request::Fetch(fetch) => {
            peer.reply(id, &ready(fetch.lease, 0..2));
            true
        }
        _ => false,
    });
    let (_client, space) = world.open();
    let (device, keys, blocks) = (Stepped::new(5), keys(5), blocks(5));
    let mut load = space.fetch_by_layer(&device, FetchFrom::Keys(&keys), &blocks, Stamp(1), LONG);
    device.gate.open(1);
    assert_eq!(load.wait_layer(0, SHORT), LATE, "more may come");
    assert_eq!(device.gate.lock().begun, [2]);
    drop(daemon);
    assert_eq!(load.wait_layer(0, LONG), Ok(2));
    assert_eq!(load.wait_layer(1, NO_TIME), LATE, "its copies go on");
    device.gate.open(LAYERS);
    assert_eq!(load.wait_layer(2, LONG), Ok(2));
    assert!((0..2).all(|at| (0..LAYERS).all(|l| device.layer_is(at, l, at as u8 + 100))));
    assert!(is_copy(&device.device, 2, 2));
    let loaded = load.finish();
    assert_eq!((loaded.pages, loaded.why), (2, Some(MissReason::Disconnected)));
}

#[test]
fn dropping_a_load_waits_for_its_copies_and_then_ends_the_lease() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    put(&shelf, 6);
    let _daemon = world.daemon(&shelf);
    let (client, space) = world.open();
    let (device, keys, blocks) = (Stepped::new(6), keys(6), blocks(6));
    let mut load = space.fetch_by_layer(&device, FetchFrom::Keys(&keys), &blocks, Stamp(1), LONG);
    device.gate.open(1);
    assert_eq!(load.wait_layer(1, SHORT), LATE);
    assert!(device.gate.lock().flying > 0);
    std::thread::scope(|scope| {
        let gate = &device.gate;
        let opener = scope.spawn(|| {
            std::thread::sleep(SHORT);
            client.ping(LONG).unwrap();
            let (leased, released) = (leases(&shelf), shelf.lock().unwrap().releases.len());
            gate.open(LAYERS);
            (leased, released)
        });
        drop(load);
        assert_eq!(device.gate.lock().flying, 0, "a copy outlived its load");
        assert_eq!(opener.join().unwrap(), (1, 0), "the lease ended before the copies");
    });
    soon("the lease ends", || leases(&shelf) == 0);
}

#[test]
fn no_copy_is_begun_after_the_deadline() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    put(&shelf, 4);
    let _daemon = world.daemon_with(&shelf, |peer, id: RequestId, request| match request {
        Request::Fetch(fetch) => {
            peer.reply(id, &ready(fetch.lease, 0..2));
            std::thread::sleep(3 * SHORT);
            peer.reply(id, &ready(fetch.lease, 2..4));
            true
        }
        _ => false,
    });
    let (_client, space) = world.open();
    let (device, keys, blocks) = (Stepped::new(4), keys(4), blocks(4));
    device.gate.open(LAYERS);
    let mut load = space.fetch_by_layer(&device, FetchFrom::Keys(&keys), &blocks, Stamp(1), SHORT);
    assert_eq!(in_time(SHORT, || load.wait_layer(2, LONG)), Ok(2));
    std::thread::sleep(3 * SHORT);
    let loaded = in_time(SHORT, || load.finish());
    assert_eq!((loaded.pages, loaded.why), (2, Some(MissReason::Deadline)));
    assert_eq!(device.gate.lock().begun, [2]);
    // What was delivered in time and is taken in too late.
    let load = space.fetch_by_layer(&device, FetchFrom::Keys(&keys), &blocks, Stamp(1), SHORT);
    std::thread::sleep(2 * SHORT);
    let loaded = load.finish();
    assert_eq!((loaded.pages, loaded.why), (0, Some(MissReason::Deadline)));
    assert_eq!(device.gate.lock().begun, [2]);
}

/// A run longer than the daemon can deliver at once: it goes on when early pages are let go.
#[test]
fn what_has_landed_is_released_while_more_is_to_come() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    put(&shelf, 6);
    let asked = Arc::new(Mutex::new(None));
    let _daemon = world.daemon_with(&shelf, move |peer, id, request| match request {
        Request::Fetch(fetch) => {
            *asked.lock().unwrap() = Some((id, fetch.lease));
            peer.reply(id, &ready(fetch.lease, 0..3));
            true
        }
        Request::Release(release) if release.upto == 3 => {
            let (fetched, lease) = asked.lock().unwrap().unwrap();
            peer.reply(id, &Reply::Done);
            peer.reply(fetched, &ready(lease, 3..6));
            let end = undercroft_wire::FetchEnd { lease, ready: 6, ssd: 4, outcome: 0 };
            peer.reply(fetched, &Reply::FetchEnd(end));
            true
        }
        _ => false,
    });
    let (_client, space) = world.open();
    let (device, keys, blocks) = (Stepped::new(6), keys(6), blocks(6));
    let mut load = space.fetch_by_layer(&device, FetchFrom::Keys(&keys), &blocks, Stamp(1), LONG);
    device.gate.open(2);
    assert_eq!(load.wait_layer(0, SHORT), LATE, "the rest has not come");
    device.gate.open(LAYERS);
    assert_eq!(load.wait_layer(0, LONG), Ok(6));
    assert_eq!(device.gate.lock().begun, [3, 3]);
    let loaded = load.finish();
    assert_eq!((loaded.pages, loaded.ssd_pages, loaded.why), (6, 4, None));
    assert!((0..6).all(|at| (0..LAYERS).all(|l| device.layer_is(at, l, at as u8 + 100))));
}

#[test]
fn a_device_that_fails_is_a_miss_and_says_why() {
    let world = World::new();
    let shelf = Shelf::new(1, Mode::ZeroCopy, 4);
    put(&shelf, 2);
    let _daemon = world.daemon(&shelf);
    let (_client, space) = world.open();
    let (device, keys, blocks) = (Stepped::new(2), keys(2), blocks(2));
    let mut load = space.fetch_by_layer(&device, FetchFrom::Keys(&keys), &blocks, Stamp(1), LONG);
    device.gate.open(1);
    assert_eq!(load.wait_layer(0, LONG), Ok(2));
    device.gate.lock().lost = true;
    device.gate.changed.notify_all();
    assert_eq!(load.wait_layer(1, LONG), Err(MissReason::Device));
    assert_eq!(load.wait_layer(0, LONG), Err(MissReason::Device));
    let loaded = load.finish();
    assert_eq!((loaded.pages, loaded.why), (0, Some(MissReason::Device)));
    assert!(matches!(loaded.fault, Some(DeviceError::Lost { .. })), "{loaded:?}");
    soon("the lease ends", || leases(&shelf) == 0);
}
