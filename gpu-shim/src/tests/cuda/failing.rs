//! Whatever fails is an error that names the call, and nothing is left behind.

use super::*;
use crate::cuda::{Pace, link_ceiling};

#[test]
fn a_machine_without_a_device_and_a_driver_too_old_say_so() {
    let stand_in = stand_in();
    let refused = || CudaDevice::allocate(0, geometry(), 4, CudaOptions::default()).unwrap_err();
    stand_in.set(Setting::DriverVersion, 11_080);
    assert!(refused().to_string().contains("CUDA 11.8, allowed 12.0"), "{}", refused());
    stand_in.set(Setting::DriverVersion, 12_000);
    stand_in.set(Setting::Devices, 0);
    assert!(refused().to_string().contains("NO_DEVICE"), "{}", refused());
    stand_in.set(Setting::Devices, 2);
    let beyond = CudaDevice::allocate(2, geometry(), 4, CudaOptions::default()).unwrap_err();
    assert_eq!(beyond.to_string(), "there is no cuda:2, the driver sees 2 devices");
    stand_in.assert_clean();
}

/// The n-th call of each kind fails, for every n, until a device is made and used without one.
#[test]
fn every_call_may_fail_once_at_every_place() {
    let stand_in = stand_in();
    const CALLS: &[&str] = &[
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        "cuMemAlloc_v2",
        "cuMemHostRegister_v2",
        "cuMemHostGetDevicePointer_v2",
        "cuStreamCreate",
        "cuStreamSynchronize",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventQuery",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuThreadExchangeStreamCaptureMode",
        "cuMemcpy2DAsync_v2",
        "cuMemcpyBatchAsync",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuLaunchKernel",
        "cuDeviceGetAttribute",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDriverGetVersion",
        "cuInit",
    ];
    for call in CALLS {
        let mut nth = 0;
        loop {
            // Of what is called without end, as a question is, not every place is another one.
            nth += 1 + nth / 40 * 10;
            stand_in.reset();
            stand_in.fail(call, nth, Code::INVALID_VALUE, 1);
            let used = make_and_use();
            // What fails is told by the call's name, or does without it.
            if let Err(error) = &used {
                let plain = call.trim_end_matches("_v2");
                let told = error.to_string();
                let registering = matches!(error, DeviceError::Cuda(CudaError::NoMode { .. }));
                assert!(told.contains(plain) || registering, "{call} {nth}: {told}");
            }
            stand_in.assert_clean();
            if stand_in.report().failed_calls == 0 {
                assert!(used.is_ok());
                assert!(nth > 1, "{call} is never called");
                break;
            }
        }
    }
}

/// A device in `auto`, and a load, a store and a look in every mode.
fn make_and_use() -> Result<(), DeviceError> {
    drop(CudaDevice::allocate(0, geometry(), 4, CudaOptions::default())?);
    for mode in CopyMode::ALL {
        let device = CudaDevice::allocate(0, geometry(), 4, forced(mode))?;
        let (memory, frames) = frames(2, geometry().page_bytes() as usize);
        let _registered = device.register(&memory.span(0, memory.len())?)?;
        frames[0].copy_from_slice(&page_of(4, geometry()));
        device.load(loads(&frames[..1], [2]))?.wait()?;
        device.store(stores(&frames[1..], [2]))?.wait()?;
        assert!(bytes_of(&frames[1]) == page_of(4, geometry()), "a wrong page was told as good");
        let mut page = vec![0; geometry().page_bytes() as usize];
        device.read_block(BlockId(2), &mut page)?;
        device.write_block(BlockId(1), &page)?;
    }
    Ok(())
}

#[test]
fn a_copy_that_fails_fails_all_that_were_on_the_stream_and_none_after_them() {
    let stand_in = stand_in();
    for mode in CopyMode::ALL {
        let device = device(forced(mode));
        let (memory, frames) = frames(3, geometry().page_bytes() as usize);
        let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
        stand_in.hold(true);
        stand_in.fail_operation(1, Code::OPERATING_SYSTEM, false);
        let first = device.load(loads(&frames[..1], [0])).unwrap();
        let second = device.load(loads(&frames[1..2], [1])).unwrap();
        stand_in.hold(false);
        // The driver tells whoever asks first; here that is not the one that failed.
        for transfer in [&second, &first] {
            let error = transfer.wait().unwrap_err();
            assert_eq!(code(&error), Some(Code::OPERATING_SYSTEM), "{mode}: {error}");
        }
        frames[2].copy_from_slice(&page_of(5, geometry()));
        device.load(loads(&frames[2..], [2])).unwrap().wait().unwrap();
        assert_eq!(block_of(&device, 2), page_of(5, geometry()));
    }
    stand_in.assert_clean();
}

#[test]
fn nothing_more_of_a_transfer_is_put_on_its_stream_when_it_has_failed() {
    let stand_in = stand_in();
    // Two of twenty layers in a step that nobody ends.
    let bytes_per_step = u64::from(geometry().layer_bytes()) * 2;
    let pace = Pace { bytes_per_step, step: Duration::from_secs(3600) };
    let device = device(CudaOptions { pace: Some(pace), ..forced(CopyMode::Kernel) });
    let (memory, frames) = frames(1, geometry().page_bytes() as usize);
    let registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
    stand_in.fail_operation(1, Code::OPERATING_SYSTEM, false);
    let transfer = device.load_by_layer(loads(&frames, [0])).unwrap();
    let error = transfer.wait_layer(0, None).unwrap_err();
    assert_eq!(code(&error), Some(Code::OPERATING_SYSTEM), "{error}");
    let before = stand_in.report().kernels;
    assert!((1..=2).contains(&before), "{before}");
    // The blocks are somebody else's now, whatever the budget allows.
    for _ in 0..20 {
        device.begin_step();
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(stand_in.report().kernels, before);
    assert!(transfer.wait().is_err());
    drop((transfer, registered, device));
    stand_in.assert_clean();
}

#[test]
fn a_lost_device_fails_everything_from_then_on_and_gives_everything_back() {
    let stand_in = stand_in();
    for sticky in [Code::ILLEGAL_ADDRESS, Code::ECC_UNCORRECTABLE, Code::LAUNCH_FAILED] {
        let device = device(forced(CopyMode::Kernel));
        let (memory, frames) = frames(2, geometry().page_bytes() as usize);
        let registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
        stand_in.hold(true);
        stand_in.fail_operation(2, sticky, true);
        let transfers: Vec<Transfer> = (0..4)
            .map(|block| device.load_by_layer(loads(&frames[..1], [block])).unwrap())
            .collect();
        stand_in.hold(false);
        let error = transfers[3].wait().unwrap_err();
        assert_eq!(code(&error), Some(sticky), "{error}");
        for transfer in &transfers {
            assert!(transfer.wait().is_err());
        }
        for refused in
            [device.load(loads(&frames[..1], [0])), device.store(stores(&frames[1..], [0]))]
        {
            let error = refused.unwrap_err();
            assert!(matches!(&error, DeviceError::Cuda(CudaError::Lost { .. })), "{error}");
            assert_eq!(code(&error), Some(sticky));
        }
        drop((transfers, registered, device));
        // Nobody else is harmed: a device made anew would do, had the driver a context for it.
        stand_in.reset();
    }
}

#[test]
fn a_way_that_copies_wrongly_is_not_used() {
    let stand_in = stand_in();
    // While a device is made an operation leaves garbage, and nobody says so.
    let mut wrongly = 0;
    // The first one writes the table that kernels work by.
    for nth in 2..60 {
        stand_in.reset();
        stand_in.fail_operation(nth, Code(0), false);
        let device = match CudaDevice::allocate(0, geometry(), 4, CudaOptions::default()) {
            Ok(device) => device,
            Err(error) => panic!("{nth}: {error}"),
        };
        let found = device.measured().iter().filter_map(|one| one.outcome.as_ref().err());
        wrongly += found.filter(|reason| reason.contains("copied wrongly")).count();
        for block in 0..4 {
            device.write_block(BlockId(block), &page_of(9, geometry())).unwrap();
        }
        let (memory, frames) = frames(4, geometry().page_bytes() as usize);
        let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
        device.store(stores(&frames, 0..4)).unwrap().wait().unwrap();
        assert!(frames.iter().all(|frame| bytes_of(frame) == page_of(9, geometry())));
    }
    // What hits a copy that is made again right after is mended by that one.
    assert!(wrongly > 5, "{wrongly}");
}

#[test]
fn modes_that_are_not_there_are_refused_by_name_and_done_without() {
    let stand_in = stand_in();
    stand_in.set(Setting::Batch, 0);
    let device = device(CudaOptions::default());
    assert!(device.modes().load != CopyMode::Batched && device.modes().store != CopyMode::Batched);
    let batched = device.measured().iter().find(|one| one.mode == CopyMode::Batched).unwrap();
    assert!(batched.outcome.clone().unwrap_err().contains("cuMemcpyBatchAsync"));
    drop(device);
    stand_in.fail("cuModuleLoadData", 1, Code::INVALID_IMAGE, 2);
    let refused = CudaDevice::allocate(0, geometry(), 4, forced(CopyMode::Kernel)).unwrap_err();
    assert!(refused.to_string().starts_with("copies by kernel are not possible"), "{refused}");
    let device = CudaDevice::allocate(0, geometry(), 4, CudaOptions::default()).unwrap();
    assert_eq!(device.modes().load, CopyMode::Pitched);
    drop(device);
    stand_in.assert_clean();
}

#[test]
fn the_links_ceiling_leaves_nothing_behind_whatever_fails() {
    let stand_in = stand_in();
    let ceiling = link_ceiling(0).unwrap();
    assert!(ceiling.load_bytes_per_s > 0.0 && ceiling.store_bytes_per_s > 0.0);
    stand_in.assert_clean();
    for call in ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"] {
        stand_in.fail(call, 2, Code::INVALID_VALUE, 1);
        assert!(link_ceiling(0).is_err(), "{call}");
        stand_in.assert_clean();
    }
}
