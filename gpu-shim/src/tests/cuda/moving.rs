//! Bytes go where they should, in every mode and every layout.

use super::super::layouts::engines;
use super::*;
use crate::cuda::{After, EngineStream, Pace};

#[test]
fn a_gpu_keeps_the_contract_in_every_mode() {
    let stand_in = stand_in();
    for mode in CopyMode::ALL {
        contract(&device(forced(mode)));
        stand_in.assert_clean();
    }
    contract(&device(CudaOptions::default()));
    stand_in.assert_clean();
    // Its pages are nobody's that registers them.
    assert!(stand_in.report().pageable_copies > 0);
}

#[test]
fn registered_pages_go_by_the_mode_that_was_wished_for_and_never_through_the_drivers_memory() {
    let stand_in = stand_in();
    for mode in CopyMode::ALL {
        let device = device(forced(mode));
        let before = stand_in.report();
        let bytes = device.geometry().page_bytes() as usize;
        let (memory, frames) = frames(8, bytes);
        let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
        for (seed, frame) in frames.iter().enumerate() {
            frame.copy_from_slice(&page_of(seed as u64 + 7, geometry()));
        }
        device.load(loads(&frames[..4], [3, 0, 7, 1])).unwrap().wait().unwrap();
        device.load_by_layer(loads(&frames[2..3], [5])).unwrap().wait().unwrap();
        device.store(stores(&frames[4..], [1, 7, 0, 5])).unwrap().wait().unwrap();
        for (frame, seed) in frames[4..].iter().zip([3, 2, 1, 2]) {
            assert_eq!(bytes_of(frame), page_of(seed + 7, geometry()), "{mode}");
        }
        let after = stand_in.report();
        assert_eq!(after.pageable_copies, before.pageable_copies, "{mode}");
        let by = [after.copies_2d, after.batches, after.kernels];
        let by = by.iter().zip([before.copies_2d, before.batches, before.kernels]);
        let by: Vec<bool> = by.map(|(after, before)| *after > before).collect();
        assert_eq!(by, CopyMode::ALL.map(|one| one == mode), "{mode}");
    }
    stand_in.assert_clean();
}

#[test]
fn a_page_holds_what_the_engine_wrote_whatever_its_layout() {
    let stand_in = stand_in();
    for engine in engines() {
        for mode in CopyMode::ALL {
            let device = CudaDevice::allocate_layout(0, &engine.layout, forced(mode)).unwrap();
            let bytes = engine.geometry.page_bytes() as usize;
            let blocks = engine.layout.blocks();
            let (memory, frames) = frames(2 * blocks as usize, bytes);
            let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
            let (stored, loaded) = frames.split_at(blocks as usize);
            for block in 0..blocks {
                let page = page_of(u64::from(block) + 1, engine.geometry);
                device.write_block(BlockId(block), &page).unwrap();
                loaded[block as usize]
                    .copy_from_slice(&page_of(u64::from(block) + 50, engine.geometry));
            }
            device.store(stores(stored, 0..blocks)).unwrap().wait().unwrap();
            for (block, page) in stored.iter().enumerate() {
                let expected = page_of(block as u64 + 1, engine.geometry);
                assert!(bytes_of(page) == expected, "{} by {mode}: block {block}", engine.name);
            }
            // Every other block is loaded, one way or the other; those between are left alone.
            device.load(loads(&loaded[..1], [0])).unwrap().wait().unwrap();
            device.load_by_layer(loads(&loaded[2..3], [2])).unwrap().wait().unwrap();
            for block in 0..blocks {
                let seed = if [0, 2].contains(&block) { 50 } else { 1 };
                let expected = page_of(u64::from(block) + seed, engine.geometry);
                let found = block_of(&device, block);
                assert!(found == expected, "{} by {mode}: block {block}", engine.name);
            }
        }
    }
    stand_in.assert_clean();
}

#[test]
fn the_first_layer_is_there_while_later_ones_are_on_their_way() {
    let stand_in = stand_in();
    for mode in CopyMode::ALL {
        let device = device(forced(mode));
        let (memory, frames) = frames(3, device.geometry().page_bytes() as usize);
        let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
        for (seed, frame) in frames.iter().enumerate() {
            frame.copy_from_slice(&page_of(seed as u64 + 1, geometry()));
        }
        stand_in.hold(true);
        let transfer = device.load_by_layer(loads(&frames, [0, 1, 2])).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        let late = transfer.wait_layer(0, Some(soon));
        assert!(matches!(late, Err(DeviceError::Expired { layer: 0 })), "{mode}: {late:?}");
        assert_eq!(transfer.layers_done(), 0);
        stand_in.set(Setting::DelayUs, 2_000);
        stand_in.hold(false);
        transfer.wait_layer(0, None).unwrap();
        let layer = geometry().layer_bytes() as usize;
        for block in 0..3 {
            let seen = block_of(&device, block);
            assert_eq!(seen[..layer], page_of(u64::from(block) + 1, geometry())[..layer], "{mode}");
        }
        let mut done = transfer.layers_done();
        assert!(done >= 1);
        for layer in 0..geometry().layers() {
            transfer.wait_layer(layer, None).unwrap();
            assert!(transfer.layers_done() > layer && transfer.layers_done() >= done);
            done = transfer.layers_done();
        }
        assert!(transfer.is_done());
        stand_in.set(Setting::DelayUs, 0);
    }
    stand_in.assert_clean();
}

#[test]
fn what_is_loaded_as_a_whole_is_done_as_a_whole() {
    let stand_in = stand_in();
    let device = device(forced(CopyMode::Kernel));
    let (memory, frames) = frames(2, device.geometry().page_bytes() as usize);
    let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
    stand_in.hold(true);
    let transfer = device.load(loads(&frames, [0, 1])).unwrap();
    assert_eq!((transfer.layers_done(), transfer.is_done()), (0, false));
    stand_in.hold(false);
    transfer.wait().unwrap();
    assert_eq!(transfer.layers_done(), geometry().layers());
}

#[test]
fn a_transfer_keeps_what_it_touches_and_waits_when_it_is_dropped() {
    let stand_in = stand_in();
    for mode in CopyMode::ALL {
        let device = device(forced(mode));
        let (memory, frames) = frames(2, device.geometry().page_bytes() as usize);
        let registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
        stand_in.hold(true);
        let load = device.load(loads(&frames[..1], [0])).unwrap();
        let store = device.store(stores(&frames[1..], [1])).unwrap();
        drop((frames, memory));
        std::thread::scope(|scope| {
            // Everything that could go early goes while nothing has been copied.
            let ending = scope.spawn(move || {
                drop(registered);
                drop(device);
                drop(load);
                drop(store);
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!ending.is_finished(), "{mode}: it did not wait");
            assert!(stand_in.report().pending > 0);
            stand_in.hold(false);
        });
        stand_in.assert_clean();
    }
}

#[test]
#[expect(unsafe_code, reason = "plays an engine that uses the driver itself")]
fn an_engines_own_context_stream_and_memory_are_used_and_waited_for() {
    let stand_in = stand_in();
    // The engine's memory is another device's of ours: all it must be is device memory.
    let lender = device(forced(CopyMode::Pitched));
    // SAFETY: a thread without a context attaches nothing.
    let homeless = unsafe { CudaDevice::attach(lender.layout().clone(), CudaOptions::default()) };
    assert!(matches!(homeless, Err(DeviceError::Cuda(CudaError::NoContext))));
    let engine = Engine::new(&stand_in);
    // SAFETY: the lender's memory and the stream outlive the device.
    let device = unsafe {
        let options = forced(CopyMode::Kernel);
        CudaDevice::attach(lender.layout().clone(), options).unwrap()
    };
    let (memory, frames) = frames(2, geometry().page_bytes() as usize);
    let registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
    frames[0].copy_from_slice(&page_of(77, geometry()));
    lender.write_block(BlockId(2), &page_of(1, geometry())).unwrap();
    // The engine computes block 2 on its stream, fragment by fragment, slowly.
    stand_in.set(Setting::DelayUs, 1_000);
    stand_in.hold(true);
    for run in lender.layout().runs(BlockId(2), 0..geometry().layers()) {
        engine.copy(run.at, &frames[0].sub(run.in_page, run.bytes).unwrap());
    }
    // SAFETY: the stream is of the context the device is in, and outlives it.
    let after = After::Stream(unsafe { EngineStream::new(engine.stream) });
    let store = device.after(after).unwrap().store(stores(&frames[1..], [2])).unwrap();
    stand_in.hold(false);
    store.wait().unwrap();
    assert_eq!(bytes_of(&frames[1]), page_of(77, geometry()));
    drop((store, registered, device, lender, engine));
    stand_in.assert_clean();
}

#[test]
fn no_more_is_copied_in_a_step_than_its_budget_and_nobody_who_starts_a_transfer_waits_for_that() {
    let stand_in = stand_in();
    let page_bytes = u64::from(geometry().page_bytes());
    for mode in CopyMode::ALL {
        let pace = Pace { bytes_per_step: page_bytes, step: Duration::from_secs(3600) };
        let device = device(CudaOptions { pace: Some(pace), ..forced(mode) });
        let (memory, frames) = frames(3, page_bytes as usize);
        let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
        for (seed, frame) in frames.iter().enumerate() {
            frame.copy_from_slice(&page_of(seed as u64 + 30, geometry()));
        }
        let done = || {
            (0..3)
                .filter(|b| block_of(&device, *b) == page_of(u64::from(*b) + 30, geometry()))
                .count()
        };
        let transfer = device.load(loads(&frames, [0, 1, 2])).unwrap();
        soon("the first step's page", || done() == 1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((done(), transfer.layers_done()), (1, 0), "{mode}");
        device.begin_step();
        soon("the second step's page", || done() == 2);
        assert!(!transfer.is_done());
        device.begin_step();
        transfer.wait().unwrap();
        assert_eq!(done(), 3);
    }
    stand_in.assert_clean();
}

#[test]
fn a_kernel_uses_no_more_multiprocessors_than_it_may() {
    let stand_in = stand_in();
    let options = CudaOptions { kernel_blocks: Some(3), ..forced(CopyMode::Kernel) };
    let device = device(options);
    let (memory, frames) = frames(8, geometry().page_bytes() as usize);
    let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
    device.load(loads(&frames, 0..8)).unwrap().wait().unwrap();
    assert_eq!(stand_in.report().most_thread_blocks, 3);
}

#[test]
#[expect(unsafe_code, reason = "plays an engine that uses the driver itself")]
fn an_engine_that_captures_a_graph_is_not_disturbed_and_no_copy_becomes_part_of_it() {
    let stand_in = stand_in();
    let engine = Engine::new(&stand_in);
    let lender = device(forced(CopyMode::Pitched));
    // Whatever may break a capture is counted as a violation unless the thread says it is apart.
    stand_in.set(Setting::Capturing, engine.stream as u64);
    // SAFETY: the stream outlives the device.
    let stream = unsafe { EngineStream::new(engine.stream) };
    {
        // SAFETY: the lender's memory outlives the device.
        let attached =
            unsafe { CudaDevice::attach(lender.layout().clone(), CudaOptions::default()) };
        let device = attached.unwrap();
        let (memory, frames) = frames(2, geometry().page_bytes() as usize);
        let _registered = device.register(&memory.span(0, memory.len()).unwrap()).unwrap();
        let (_, view) = super::pinning::part(1);
        device.pins().part(&view);
        assert!(device.pins().settle(Duration::from_secs(60)));
        assert_eq!(device.pins().facts().refusal, None);
        device.write_block(BlockId(2), &page_of(6, geometry())).unwrap();
        device.store(stores(&frames[..1], [2])).unwrap().wait().unwrap();
        device.load_by_layer(loads(&frames[..1], [3])).unwrap().wait().unwrap();
        assert_eq!(block_of(&device, 3), page_of(6, geometry()));
        let refused = device.after(After::Stream(stream)).unwrap_err();
        assert!(matches!(refused, CudaError::Capturing), "{refused}");
        device.pins().part_leaves(&view);
    }
    let options = CudaOptions { load_stream: Some(stream), ..forced(CopyMode::Pitched) };
    // SAFETY: as above.
    let device = unsafe { CudaDevice::attach(lender.layout().clone(), options).unwrap() };
    let (_memory, frames) = frames(1, geometry().page_bytes() as usize);
    let refused = device.load(loads(&frames, [0])).unwrap_err();
    assert!(matches!(refused, DeviceError::Cuda(CudaError::Capturing)), "{refused}");
    stand_in.set(Setting::Capturing, 0);
    device.load(loads(&frames, [0])).unwrap().wait().unwrap();
    drop((device, lender, engine));
    stand_in.assert_clean();
}

#[test]
#[expect(unsafe_code, reason = "plays an engine that uses the driver itself")]
fn tensors_that_are_not_memory_of_the_device_are_refused() {
    let stand_in = stand_in();
    let lender = device(forced(CopyMode::Pitched));
    let engine = Engine::new(&stand_in);
    for beyond in [1 << 40, 8] {
        let elsewhere = lender.layout().moved(beyond).unwrap();
        // SAFETY: nothing is touched of what is refused.
        let refused = unsafe { CudaDevice::attach(elsewhere, CudaOptions::default()) }.unwrap_err();
        assert!(refused.to_string().contains("is not memory of the device"), "{refused}");
    }
    drop((lender, engine));
    stand_in.assert_clean();
}

#[test]
#[expect(unsafe_code, reason = "plays an engine that uses the driver itself")]
fn the_fastest_way_is_found_and_the_engines_blocks_are_as_before() {
    let stand_in = stand_in();
    let lender = device(forced(CopyMode::Pitched));
    let engine = Engine::new(&stand_in);
    for block in 0..8 {
        lender.write_block(BlockId(block), &page_of(u64::from(block) + 5, geometry())).unwrap();
    }
    // An operation for each page is eight times as many as one for all of them.
    stand_in.set(Setting::DelayUs, 500);
    // SAFETY: the lender's memory outlives the device.
    let device = unsafe { CudaDevice::attach(lender.layout().clone(), CudaOptions::default()) };
    let device = device.unwrap();
    stand_in.set(Setting::DelayUs, 0);
    assert_eq!(device.measured().len(), 9);
    assert!(device.measured().iter().all(|one| one.outcome.is_ok()), "{:?}", device.measured());
    let modes = device.modes();
    assert!(modes.load != CopyMode::Pitched && modes.store != CopyMode::Pitched, "{modes:?}");
    for block in 0..8 {
        assert_eq!(block_of(&lender, block), page_of(u64::from(block) + 5, geometry()));
    }
    drop((device, lender, engine));
    stand_in.assert_clean();
}
