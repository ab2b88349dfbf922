//! A child of a process with a GPU.

#![expect(unsafe_code, reason = "forks, and leaves the child without the parent's exit handlers")]

use super::*;
use std::ffi::c_int;

unsafe extern "C" {
    fn fork() -> c_int;
    fn alarm(seconds: u32) -> u32;
    fn waitpid(process: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(status: c_int) -> !;
}

/// Long enough for a child that drops some things; the end of one that waits for a thread it has
/// not got.
const CHILD_SECONDS: u32 = 60;

#[test]
fn a_forked_child_is_refused_everything_and_can_let_everything_go() {
    let stand_in = stand_in();
    let device = device(forced(CopyMode::Kernel));
    let (memory, frames) = frames(2, geometry().page_bytes() as usize);
    let registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
    let (_ours, view) = super::pinning::part(1);
    device.pins().part(&view);
    assert!(device.pins().settle(Duration::from_secs(60)));
    let calls = stand_in.calls("cuMemHostUnregister");
    // SAFETY: the child takes no lock that another thread of the test may have had, and ends
    // without running anything of the parent's.
    let child = unsafe { fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: no conditions.
        unsafe { alarm(CHILD_SECONDS) };
        let load = device.load(loads(&frames[..1], [0]));
        let store = device.store(stores(&frames[1..], [1]));
        let is_forked = |refused: Result<Transfer, DeviceError>| {
            matches!(refused, Err(DeviceError::Cuda(CudaError::Forked)))
        };
        let refused = is_forked(load) && is_forked(store);
        drop((registered, device));
        let untouched = stand_in.calls("cuMemHostUnregister") == calls;
        // SAFETY: no conditions.
        unsafe { _exit(if refused && untouched { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "how the child ended, as wait(2) has it");
    // The parent's device is as it was.
    frames[0].copy_from_slice(&page_of(3, geometry()));
    device.load(loads(&frames[..1], [2])).unwrap().wait().unwrap();
    assert_eq!(block_of(&device, 2), page_of(3, geometry()));
    device.pins().part_leaves(&view);
    drop((registered, device));
    stand_in.assert_clean();
}
