//! Devices over memory that is not theirs.

#![expect(unsafe_code, reason = "the memory is the test's")]

use super::{bytes_of, pages};
use crate::{
    BlockId, Buffers, Device, DeviceError, HostDevice, HostOptions, KvLayout, LoadJob, StoreJob,
};
use undercroft_wire::Geometry;

const BLOCKS: u32 = 4;

fn geometry() -> Geometry {
    Geometry::new(3, 2, 512).unwrap()
}

fn address(memory: &[u8]) -> u64 {
    memory.as_ptr().expose_provenance() as u64
}

#[test]
fn an_engines_own_tensors_are_read_and_written_and_nothing_between_them() {
    let (geometry, bytes) = (geometry(), 1024 * BLOCKS as usize);
    // One allocation per layer, wherever they come to lie, in any order.
    let mut layers: Vec<Vec<u8>> = (0..3).map(|layer| vec![layer as u8; bytes]).collect();
    let bases: Vec<u64> =
        layers.iter_mut().map(|layer| layer.as_mut_ptr().expose_provenance() as u64).collect();
    let layout = KvLayout::block_first(geometry, BLOCKS, &bases).unwrap();
    // SAFETY: the vectors outlive the device, and nobody else touches them meanwhile.
    let device = unsafe { HostDevice::attach(layout, HostOptions::default()) }.unwrap();
    assert!(device.memory().is_none());
    let page = pages(1, 3072).remove(0);
    let job = StoreJob { block: BlockId(1), page: page.clone() };
    device.store(vec![job]).unwrap().wait().unwrap();
    let stored = bytes_of(&page);
    assert!((0..3).all(|layer| stored[layer * 1024..][..1024].iter().all(|b| *b == layer as u8)));

    page.write(|bytes| bytes.fill(9));
    device.load(vec![LoadJob { page, block: BlockId(2) }]).unwrap().wait().unwrap();
    drop(device);
    for (layer, memory) in layers.iter().enumerate() {
        for (at, byte) in memory.iter().enumerate() {
            let expected = if at / 1024 == 2 { 9 } else { layer as u8 };
            assert_eq!(*byte, expected, "layer {layer} byte {at}");
        }
    }
}

#[test]
fn whole_pages_are_stored_and_loaded_wherever_they_lie() {
    let mut far: Vec<Vec<u8>> = (0..3).map(|i| vec![i + 1; 3072]).collect();
    let addresses: Vec<u64> =
        far.iter_mut().map(|buffer| buffer.as_mut_ptr().expose_provenance() as u64).collect();
    // SAFETY: the vectors outlive the device, and nobody else touches them meanwhile.
    let device = unsafe { Buffers::new(geometry(), &addresses, true) }.unwrap();
    let images = pages(3, 3072);
    let jobs = images.iter().zip([2, 0, 1]);
    let jobs = jobs.map(|(page, block)| StoreJob { block: BlockId(block), page: page.clone() });
    let transfer = device.store(jobs.collect()).unwrap();
    assert!(transfer.is_done());
    transfer.wait().unwrap();
    let firsts: Vec<u8> = images.iter().map(|page| bytes_of(page)[3071]).collect();
    assert_eq!(firsts, [3, 1, 2]);

    let jobs = images.iter().zip([0, 1, 2]);
    let jobs = jobs.map(|(page, block)| LoadJob { block: BlockId(block), page: page.clone() });
    device.load(jobs.collect()).unwrap().wait().unwrap();
    drop(device);
    for (buffer, expected) in far.iter().zip([3, 1, 2]) {
        assert!(buffer.iter().all(|byte| *byte == expected));
    }
}

#[test]
fn fragments_are_stored_and_loaded_wherever_each_of_them_lies() {
    let geometry = Geometry::of_parts(3, &[512, 1024]).unwrap();
    let sizes = [512, 1024].repeat(3);
    // Two blocks, and no two fragments beside each other.
    let mut far: Vec<Vec<u8>> = (0..12).map(|i| vec![i as u8; sizes[i % 6]]).collect();
    let addresses: Vec<u64> =
        far.iter_mut().map(|buffer| buffer.as_mut_ptr().expose_provenance() as u64).collect();
    // SAFETY: the vectors outlive the device, and nobody else touches them meanwhile.
    let device = unsafe { Buffers::of_fragments(geometry, &addresses, true) }.unwrap();
    assert_eq!(device.blocks(), 2);
    let page = pages(1, 4608).remove(0);
    let job = StoreJob { block: BlockId(1), page: page.clone() };
    device.store(vec![job]).unwrap().wait().unwrap();
    let expected: Vec<u8> = (6..12).flat_map(|i| vec![i as u8; sizes[i % 6]]).collect();
    assert_eq!(bytes_of(&page), expected);

    device.load(vec![LoadJob { page, block: BlockId(0) }]).unwrap().wait().unwrap();
    let beyond = LoadJob { page: pages(1, 4608).remove(0), block: BlockId(2) };
    assert!(matches!(device.load(vec![beyond]).err(), Some(DeviceError::Block { found: 2, .. })));
    drop(device);
    for (at, buffer) in far.iter().enumerate() {
        let expected = if at < 6 { at + 6 } else { at } as u8;
        assert!(buffer.iter().all(|byte| *byte == expected), "fragment {at}");
    }
}

#[test]
fn a_job_that_does_not_fit_moves_nothing() {
    let memory = vec![7; 2 * 3072];
    let (one, two) = (address(&memory), address(&memory) + 3072);
    // SAFETY: the vector outlives the device, which says it never writes to it.
    let device = unsafe { Buffers::new(geometry(), &[one, two], false) }.unwrap();
    let load = |page, block| device.load(vec![LoadJob { page, block: BlockId(block) }]).err();
    let page = || pages(1, 3072).remove(0);
    assert!(matches!(load(page(), 0), Some(DeviceError::ReadOnly { block: 0 })));
    assert!(matches!(load(page(), 2), Some(DeviceError::Block { found: 2, blocks: 2 })));
    let short = pages(1, 3071).remove(0);
    let store = device.store(vec![StoreJob { block: BlockId(0), page: short }]);
    assert!(matches!(store.err(), Some(DeviceError::PageBytes { found: 3071, .. })));
    assert!(memory.iter().all(|byte| *byte == 7));
}

#[test]
fn buffers_that_cannot_be_are_refused() {
    let memory = vec![0; 2 * 3072];
    let at = address(&memory);
    for addresses in [&[][..], &[at, at], &[at, at + 3071], &[0], &[u64::MAX - 5]] {
        // SAFETY: nothing is read or written: no device comes of it.
        let device = unsafe { Buffers::new(geometry(), addresses, true) };
        assert!(device.is_err(), "{addresses:?}");
    }
    // SAFETY: as above, and nothing is asked of the device.
    assert!(unsafe { Buffers::new(geometry(), &[at, at], false) }.is_ok(), "one page stored twice");
    let fragments = [0, 512, 1024, 1536, 2048, 2560].map(|offset| at + offset);
    for fragments in [&fragments[..5], &[at; 6], &fragments.map(|one| one.min(at + 2500))] {
        // SAFETY: nothing is read or written: no device comes of it.
        let device = unsafe { Buffers::of_fragments(geometry(), fragments, true) };
        assert!(device.is_err(), "{fragments:?}");
    }
}
