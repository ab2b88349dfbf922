#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod cuda;
mod layouts;
mod lent;

use super::*;
use crate::batch::{Batch, Direction, Job};
use crate::pace::Schedule;
use crate::workers::Workers;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_arena::{HugePages, Memory, Part, PartOptions, PartView, Span};
use undercroft_wire::{Geometry, PartId, frame_bytes};

/// Every way to run the host device.
const WAYS: [HostOptions; 4] = [
    HostOptions { copy_threads: 0, link_bytes_per_s: None },
    HostOptions { copy_threads: 1, link_bytes_per_s: None },
    HostOptions { copy_threads: 3, link_bytes_per_s: None },
    HostOptions { copy_threads: 2, link_bytes_per_s: Some(2 << 30) },
];

fn geometry() -> Geometry {
    Geometry::new(3, 2, 1000).unwrap()
}

fn host(options: HostOptions) -> HostDevice {
    HostDevice::new(geometry(), 4, options).unwrap()
}

fn byte(seed: u64, at: usize) -> u8 {
    let mixed = (at as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

fn page_of(seed: u64, geometry: Geometry) -> Vec<u8> {
    (0..geometry.page_bytes() as usize).map(|at| byte(seed, at)).collect()
}

fn pages(count: usize, bytes: usize) -> Vec<Span> {
    let memory = Memory::new((count * bytes) as u64, 0).unwrap();
    (0..count).map(|i| memory.span((i * bytes) as u64, bytes).unwrap()).collect()
}

fn bytes_of(span: &Span) -> Vec<u8> {
    let mut bytes = vec![0; span.len()];
    span.copy_to_slice(&mut bytes);
    bytes
}

/// What every device must do, whatever it is made of: the same for the host and for a GPU.
fn contract(device: &dyn Device) {
    let geometry = device.geometry();
    let page_bytes = geometry.page_bytes() as usize;
    let blocks = device.blocks();
    assert!(blocks >= 4, "the contract needs four blocks");

    round_trip(device, &[blocks - 1, 0, 2]);
    overwrites_only_its_block(device);

    let page = || pages(1, page_bytes).remove(0);
    let beyond = BlockId(blocks);
    let load = |page, block| device.load(vec![LoadJob { page, block }]);
    let store = |block, page| device.store(vec![StoreJob { block, page }]);
    assert!(matches!(load(page(), beyond), Err(DeviceError::Block { .. })));
    assert!(matches!(store(beyond, page()), Err(DeviceError::Block { .. })));
    for wrong in [page_bytes - 1, frame_bytes(geometry.page_bytes()) as usize + 1] {
        let wrong = || pages(1, wrong).remove(0);
        assert!(matches!(load(wrong(), BlockId(0)), Err(DeviceError::PageBytes { .. })));
        assert!(matches!(store(BlockId(0), wrong()), Err(DeviceError::PageBytes { .. })));
    }
    let twice = [BlockId(1), BlockId(2), BlockId(1)];
    let twice = twice.map(|block| LoadJob { page: page(), block }).to_vec();
    assert!(matches!(device.load(twice), Err(DeviceError::BlockTwice { block: 1 })));

    let nothing = device.load(Vec::new()).unwrap();
    assert!(nothing.is_done());
    nothing.wait().unwrap();
    let layers = geometry.layers();
    let refused = nothing.wait_layer(layers, None);
    assert!(matches!(refused, Err(DeviceError::Fragment { what: "layer", .. })));
    a_refused_call_moves_nothing(device);
    read_only_pages_load_and_never_store(device);
}

fn round_trip(device: &dyn Device, blocks: &[u32]) {
    let geometry = device.geometry();
    // Frames are longer than pages; the rest of a frame is nobody's.
    let frame = frame_bytes(geometry.page_bytes()) as usize;
    let sources = pages(blocks.len(), frame);
    let targets = pages(blocks.len(), frame);
    for (seed, source) in sources.iter().enumerate() {
        let page = page_of(seed as u64 + 1, geometry);
        source.sub(0, page.len()).unwrap().copy_from_slice(&page);
    }
    let loads = sources.iter().zip(blocks);
    let loads = loads.map(|(page, b)| LoadJob { page: page.clone(), block: BlockId(*b) });
    let transfer = device.load(loads.collect()).unwrap();
    for layer in 0..geometry.layers() {
        transfer.wait_layer(layer, Some(Instant::now() + Duration::from_secs(60))).unwrap();
        assert!(transfer.layers_done() > layer);
    }
    assert!(transfer.is_done());
    transfer.wait().unwrap();
    drop(transfer);
    let stores = targets.iter().zip(blocks);
    let stores = stores.map(|(page, b)| StoreJob { block: BlockId(*b), page: page.clone() });
    // Dropped unwaited: it waits by itself.
    drop(device.store(stores.collect()).unwrap());
    for (source, target) in sources.iter().zip(&targets) {
        assert_eq!(bytes_of(source), bytes_of(target));
    }
}

fn overwrites_only_its_block(device: &dyn Device) {
    let geometry = device.geometry();
    let bytes = geometry.page_bytes() as usize;
    let all = pages(4, bytes);
    for (block, page) in all.iter().enumerate() {
        page.copy_from_slice(&page_of(block as u64 + 10, geometry));
    }
    let loads =
        all.iter().zip(0..4).map(|(page, b)| LoadJob { page: page.clone(), block: BlockId(b) });
    device.load(loads.collect()).unwrap().wait().unwrap();
    let new = pages(1, bytes).remove(0);
    new.copy_from_slice(&page_of(99, geometry));
    device.load(vec![LoadJob { page: new.clone(), block: BlockId(2) }]).unwrap().wait().unwrap();
    for block in 0..4 {
        let seen = pages(1, bytes).remove(0);
        let job = StoreJob { block: BlockId(block), page: seen.clone() };
        device.store(vec![job]).unwrap().wait().unwrap();
        let expected = if block == 2 { 99 } else { u64::from(block) + 10 };
        assert_eq!(bytes_of(&seen), page_of(expected, geometry), "block {block}");
    }
}

fn a_refused_call_moves_nothing(device: &dyn Device) {
    let bytes = device.geometry().page_bytes() as usize;
    let target = pages(1, bytes).remove(0);
    target.write(|bytes| bytes.fill(0xee));
    let good = StoreJob { block: BlockId(0), page: target.clone() };
    let bad = StoreJob { block: BlockId(device.blocks()), page: target.clone() };
    assert!(device.store(vec![good, bad]).is_err());
    assert!(target.read(|bytes| bytes.iter().all(|b| *b == 0xee)));
}

fn read_only_pages_load_and_never_store(device: &dyn Device) {
    let bytes = u64::from(device.geometry().page_bytes());
    let options = PartOptions { huge: HugePages::Off, lock: false, ..PartOptions::default() };
    let part = Part::create(PartId(0), bytes, &options).unwrap().0;
    let view = PartView::map(part.read_only_fd().unwrap(), PartId(0), bytes).unwrap();
    let page = view.span(0, bytes as usize).unwrap();
    let load = LoadJob { page: page.clone(), block: BlockId(0) };
    device.load(vec![load]).unwrap().wait().unwrap();
    let store = device.store(vec![StoreJob { block: BlockId(0), page }]);
    assert!(matches!(store, Err(DeviceError::ReadOnly { block: 0 })));
}

#[test]
fn the_host_device_keeps_the_contract() {
    for options in WAYS {
        contract(&host(options));
    }
}

#[test]
fn fragments_lie_where_the_geometry_says() {
    let device = host(WAYS[0]);
    let page = pages(1, 6000).remove(0);
    page.copy_from_slice(&page_of(5, geometry()));
    device.load(vec![LoadJob { page: page.clone(), block: BlockId(3) }]).unwrap().wait().unwrap();
    // Six arrays of four blocks of 1000 bytes each; block 3 is the last of each.
    for (array, at) in [(0, 0), (1, 1000), (2, 2000), (5, 5000)] {
        let expected = &page_of(5, geometry())[at..at + 1000];
        let seen = device.memory().unwrap().sub(array * 4000 + 3000, 1000).unwrap();
        assert_eq!(bytes_of(&seen), expected, "array {array}");
    }
    device.memory().unwrap().sub(3 * 4000 + 3000, 1000).unwrap().write(|bytes| bytes.fill(1));
    device.store(vec![StoreJob { block: BlockId(3), page: page.clone() }]).unwrap().wait().unwrap();
    page.read(|bytes| assert!(bytes[3000..4000].iter().all(|b| *b == 1)));

    let mut seen = Vec::new();
    device.write_block(BlockId(1), |at, bytes| bytes.fill(byte(8, at))).unwrap();
    device
        .read_block(BlockId(1), |at, bytes| {
            assert!(bytes.iter().all(|b| *b == byte(8, at)));
            seen.push(at);
        })
        .unwrap();
    assert_eq!(seen, [0, 1000, 2000, 3000, 4000, 5000]);
}

#[test]
fn access_outside_the_device_is_refused() {
    let device = host(WAYS[0]);
    let read = device.read_block(BlockId(4), |_, _| ());
    assert!(matches!(read, Err(DeviceError::Block { found: 4, blocks: 4 })));
    assert!(matches!(device.write_block(BlockId(9), |_, _| ()), Err(DeviceError::Block { .. })));
}

#[test]
fn devices_that_cannot_be_are_refused() {
    let new = |blocks, copy_threads, link_bytes_per_s| {
        HostDevice::new(geometry(), blocks, HostOptions { copy_threads, link_bytes_per_s })
    };
    assert!(matches!(new(0, 0, None), Err(DeviceError::Layout(LayoutError::NoBlocks))));
    let far = KvLayout::cross_layer(geometry(), 1, 1 << 60).unwrap();
    let far = HostDevice::with_layout(far, HostOptions::default());
    assert!(matches!(far, Err(DeviceError::Memory(_))));
    assert!(matches!(new(u32::MAX, 0, Some(0)), Err(DeviceError::Option { .. })));
    assert!(matches!(new(1, 257, None), Err(DeviceError::Option { what: "copy_threads", .. })));
}

#[test]
fn layers_are_done_in_order_and_a_deadline_ends_the_wait() {
    // Six layers at 50 ms each.
    let geometry = Geometry::new(6, 1, 1 << 20).unwrap();
    let slow = HostOptions { copy_threads: 2, link_bytes_per_s: Some(20 << 20) };
    let device = HostDevice::new(geometry, 1, slow).unwrap();
    let page = pages(1, 6 << 20).remove(0);
    let transfer = device.load(vec![LoadJob { page, block: BlockId(0) }]).unwrap();
    let expired = transfer.wait_layer(5, Some(Instant::now()));
    assert!(matches!(expired, Err(DeviceError::Expired { layer: 5 })));
    assert!(matches!(
        transfer.wait_deadline(Instant::now()),
        Err(DeviceError::Expired { layer: 5 })
    ));
    assert!(!transfer.is_done(), "expired, and the copy goes on");
    let mut before = 0;
    for layer in 0..6 {
        transfer.wait_layer(layer, None).unwrap();
        let done = transfer.layers_done();
        assert!(done > layer && done >= before, "layer {layer}: {done} done, {before} before");
        before = done;
    }
    assert!(transfer.is_done());
}

#[test]
fn transfers_from_many_threads_do_not_mix() {
    let device = HostDevice::new(geometry(), 8, WAYS[2]).unwrap();
    std::thread::scope(|scope| {
        for block in 0..8 {
            let device = &device;
            scope.spawn(move || {
                let (source, target) = (pages(1, 6000).remove(0), pages(1, 6000).remove(0));
                for round in 0..50 {
                    let bytes = page_of(u64::from(block) * 1000 + round, geometry());
                    source.copy_from_slice(&bytes);
                    let block = BlockId(block);
                    let load = LoadJob { page: source.clone(), block };
                    device.load(vec![load]).unwrap().wait().unwrap();
                    let store = StoreJob { block, page: target.clone() };
                    device.store(vec![store]).unwrap().wait().unwrap();
                    assert_eq!(bytes_of(&target), bytes);
                }
            });
        }
    });
}

#[test]
fn a_device_that_goes_away_finishes_what_it_was_given() {
    let slow = HostOptions { copy_threads: 1, link_bytes_per_s: Some(1 << 20) };
    let device = host(slow);
    let page = pages(1, 6000).remove(0);
    device.write_block(BlockId(0), |_, bytes| bytes.fill(4)).unwrap();
    let transfers: Vec<Transfer> = (0..3)
        .map(|_| device.store(vec![StoreJob { block: BlockId(0), page: page.clone() }]).unwrap())
        .collect();
    drop(device);
    assert!(transfers.iter().all(Transfer::is_done));
    assert!(page.read(|bytes| bytes.iter().all(|b| *b == 4)));
}

fn tensors(layout: &KvLayout, memory: &Span) -> Arc<[Span]> {
    let piece = |tensor: &Tensor| memory.sub(tensor.base as usize, tensor.bytes as usize).unwrap();
    layout.tensors().iter().map(piece).collect()
}

#[test]
fn a_copy_that_panics_fails_its_transfer_and_stalls_nobody() {
    let layout = Arc::new(KvLayout::packed(geometry(), 1).unwrap());
    let memory = pages(1, 6000).remove(0);
    // No call lets such a page through: it ends inside layer 2.
    let page = pages(1, 5000).remove(0);
    let jobs = vec![Job { page, block: BlockId(0) }];
    let batch =
        Batch::new(Arc::clone(&layout), tensors(&layout, &memory), None, Direction::Load, jobs);
    let batch = Arc::new(batch);
    let workers = Workers::start(2).unwrap();
    workers.submit(Arc::clone(&batch)).unwrap();
    let transfer = Transfer::new(3, Box::new(batch));
    assert!(matches!(transfer.wait(), Err(DeviceError::Lost { .. })));
    // Its threads are still there for the next one.
    let (memory, page) = (pages(1, 6000).remove(0), pages(1, 6000).remove(0));
    page.write(|bytes| bytes.fill(3));
    let jobs = vec![Job { page, block: BlockId(0) }];
    let batch =
        Batch::new(Arc::clone(&layout), tensors(&layout, &memory), None, Direction::Load, jobs);
    let batch = Arc::new(batch);
    workers.submit(Arc::clone(&batch)).unwrap();
    Transfer::new(3, Box::new(batch)).wait().unwrap();
    assert!(memory.read(|bytes| bytes.iter().all(|b| *b == 3)));
}

#[test]
fn a_link_is_booked_byte_after_byte() {
    let mut link = Schedule::new(1_000_000_000);
    assert_eq!(link.book(500, 1000), 1500);
    assert_eq!(link.book(600, 1000), 2500, "behind the first");
    assert_eq!(link.book(9000, 10), 9010, "the link was idle; unused time is not saved up");
    assert_eq!(Schedule::new(25_000_000_000).book(0, 2 << 20), 83_886);
    assert_eq!(Schedule::new(1).book(0, u64::MAX), u64::MAX, "saturates");
    assert_eq!(Schedule::new(u64::MAX).book(7, 1), 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_geometry_survives_the_round_trip(
        layers in 1..20u32, parts in 1..3u32, fragment in 1..9000u32, blocks in 1..6u32,
        way in 0..3usize, seed: u64,
    ) {
        prop_assume!(layers * parts * fragment >= 512);
        let geometry = Geometry::new(layers, parts, fragment).unwrap();
        let device = HostDevice::new(geometry, blocks, WAYS[way]).unwrap();
        let bytes = geometry.page_bytes() as usize;
        let (sources, targets) = (pages(blocks as usize, bytes), pages(blocks as usize, bytes));
        let model: Vec<Vec<u8>> =
            (0..u64::from(blocks)).map(|b| page_of(seed.wrapping_add(b), geometry)).collect();
        for (source, page) in sources.iter().zip(&model) {
            source.copy_from_slice(page);
        }
        let loads = sources.iter().zip(0..blocks);
        let loads = loads.map(|(page, b)| LoadJob { page: page.clone(), block: BlockId(b) });
        device.load(loads.collect()).unwrap().wait().unwrap();
        for (block, page) in (0..blocks).zip(&model) {
            let mut seen = vec![0; bytes];
            device.read_block(BlockId(block), |at, fragment| {
                seen[at..at + fragment.len()].copy_from_slice(fragment);
            }).unwrap();
            prop_assert_eq!(&seen, page);
        }
        let stores = targets.iter().zip(0..blocks);
        let stores = stores.map(|(page, b)| StoreJob { block: BlockId(b), page: page.clone() });
        device.store(stores.collect()).unwrap().wait().unwrap();
        for (target, page) in targets.iter().zip(&model) {
            prop_assert_eq!(&bytes_of(target), page);
        }
    }

    #[test]
    fn a_link_never_carries_more_than_its_speed(
        speed in 1_000_000..100_000_000_000u64,
        copies in proptest::collection::vec((0..1_000_000u64, 1..10_000_000u64), 1..50),
    ) {
        let mut link = Schedule::new(speed);
        let (mut now, mut last, mut busy) = (0, 0, 0u128);
        for (later, bytes) in copies {
            now += later;
            let arrival = link.book(now, bytes);
            prop_assert!(arrival >= last && arrival >= now, "in order and never in the past");
            let took = u128::from(bytes) * 1_000_000_000 / u128::from(speed);
            prop_assert_eq!(u128::from(arrival), u128::from(last.max(now)) + took);
            busy += took;
            prop_assert!(u128::from(arrival) >= busy);
            last = arrival;
        }
    }
}
