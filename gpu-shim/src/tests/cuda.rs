//! The CUDA device over the stand-in driver: host memory, whose every rule is checked.

mod engine;
mod failing;
mod forking;
mod moving;
mod ordeal;
mod pinning;

use self::engine::Engine;
use super::{BlockId, bytes_of, contract, page_of};
use crate::cuda::{CopyMode, CudaDevice, CudaError, CudaOptions};
use crate::{Device, DeviceError, LoadJob, StoreJob, Transfer};
use std::time::{Duration, Instant};
use undercroft_arena::{Memory, Span};
use undercroft_stand_in::{Code, Setting, StandIn};
use undercroft_wire::Geometry;

/// Of 16 bytes a unit, so that a kernel moves as much at once as it can; more layers than a copy
/// engine takes at once.
fn geometry() -> Geometry {
    Geometry::new(20, 2, 512).unwrap()
}

fn stand_in() -> StandIn {
    StandIn::load().unwrap()
}

fn forced(mode: CopyMode) -> CudaOptions {
    CudaOptions { load: Some(mode), store: Some(mode), ..CudaOptions::default() }
}

fn device(options: CudaOptions) -> CudaDevice {
    CudaDevice::allocate(0, geometry(), 8, options).unwrap()
}

/// Pages of host memory as frames have them: they begin at multiples of 4 KiB.
fn frames(count: usize, page_bytes: usize) -> (Memory, Vec<Span>) {
    let step = page_bytes.next_multiple_of(4096);
    let memory = Memory::new((count * step) as u64, 1).unwrap();
    let frames = (0..count).map(|i| memory.span((i * step) as u64, page_bytes).unwrap());
    let frames = frames.collect();
    (memory, frames)
}

fn loads(pages: &[Span], blocks: impl IntoIterator<Item = u32>) -> Vec<LoadJob> {
    let jobs = pages.iter().zip(blocks);
    jobs.map(|(page, block)| LoadJob { page: page.clone(), block: BlockId(block) }).collect()
}

fn stores(pages: &[Span], blocks: impl IntoIterator<Item = u32>) -> Vec<StoreJob> {
    let jobs = pages.iter().zip(blocks);
    jobs.map(|(page, block)| StoreJob { page: page.clone(), block: BlockId(block) }).collect()
}

fn block_of(device: &CudaDevice, block: u32) -> Vec<u8> {
    let mut page = vec![0; device.geometry().page_bytes() as usize];
    device.read_block(BlockId(block), &mut page).unwrap();
    page
}

fn soon(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn code(error: &DeviceError) -> Option<Code> {
    match error {
        DeviceError::Cuda(error) => error.code().map(Code),
        _ => None,
    }
}
