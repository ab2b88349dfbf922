use crate::calls::{Driver, NO_TIMING, NON_BLOCKING, READ_ONLY};
use undercroft_stand_in::{Code, Setting};

const PTX: &str = include_str!("../../../kernels/pages.ptx");

#[test]
fn registrations_do_not_overlap_and_end_by_their_start() {
    let driver = Driver::with_context();
    let memory = vec![0; 4_000];
    driver.register(&memory[1_000..2_000], 0).unwrap();
    let already = Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
    assert_eq!(driver.register(&memory[1_999..2_001], 0), already);
    assert_eq!(driver.register(&memory[999..1_001], 0), already);
    assert_eq!(driver.register(&memory[1_200..1_300], 0), already);
    assert_eq!(driver.register(&memory, 0), already);
    driver.register(&memory[2_000..3_000], READ_ONLY).unwrap();
    let not = Err(Code::HOST_MEMORY_NOT_REGISTERED);
    assert_eq!(driver.unregister(&memory[1_001..]), not);
    assert_eq!(driver.unregister(&memory), not);
    let at = |bytes: &[u8]| bytes.as_ptr().addr() as u64;
    let inside = &memory[1_500..];
    assert_eq!(driver.device_pointer(inside.as_ptr().cast(), 0), Ok(at(inside)));
    let outside = &memory[500..];
    assert_eq!(driver.device_pointer(outside.as_ptr().cast(), 0), Err(Code::INVALID_VALUE));
    driver.unregister(&memory[1_000..]).unwrap();
    assert_eq!(driver.unregister(&memory[1_000..]), not);
    driver.unregister(&memory[2_000..]).unwrap();
    driver.end();
}

#[test]
fn what_cannot_be_registered_is_refused() {
    let driver = Driver::with_context();
    let memory = vec![0; 4_000];
    assert_eq!(driver.register(&[], 0), Err(Code::INVALID_VALUE));
    assert_eq!(driver.register(&memory, 16), Err(Code::INVALID_VALUE));
    driver.stand_in.set(Setting::RegisterCeilingBytes, 2_000);
    assert_eq!(driver.register(&memory[..2_001], 0), Err(Code::INVALID_VALUE));
    assert_eq!(driver.register(&memory[..2_000], 0), Ok(()));
    driver.stand_in.set(Setting::PinnedBytes, 3_000);
    assert_eq!(driver.register(&memory[2_000..3_001], 0), Err(Code::OUT_OF_MEMORY));
    assert_eq!(driver.alloc_host(1_001, 0), Err(Code::OUT_OF_MEMORY));
    driver.stand_in.set(Setting::ReadOnlyRegistration, 0);
    assert_eq!(driver.register(&memory[2_000..2_010], READ_ONLY), Err(Code::NOT_SUPPORTED));
    driver.unregister(&memory).unwrap();

    // A constant of the program is mapped read-only: without the flag the driver would write.
    driver.stand_in.set(Setting::ReadOnlyRegistration, 1);
    let constant = PTX.as_bytes();
    assert_eq!(driver.register(&constant[..1_000], 0), Err(Code::INVALID_VALUE));
    assert_eq!(driver.register(&constant[..1_000], READ_ONLY), Ok(()));
    driver.unregister(constant).unwrap();
    driver.end();
}

#[test]
fn memory_is_limited_and_freed_by_its_start() {
    let driver = Driver::with_context();
    driver.stand_in.set(Setting::DeviceBytes, 1_000);
    assert_eq!(driver.alloc(0), Err(Code::INVALID_VALUE));
    assert_eq!(driver.alloc(1_001), Err(Code::OUT_OF_MEMORY));
    let memory = driver.alloc(600).unwrap();
    assert_eq!(driver.alloc(401), Err(Code::OUT_OF_MEMORY));
    assert_eq!(driver.free(memory + 1), Err(Code::INVALID_VALUE));
    driver.free(memory).unwrap();
    assert_eq!(driver.free(memory), Err(Code::INVALID_VALUE));
    let host = driver.alloc_host(100, 1).unwrap();
    assert_eq!(driver.stand_in.report().host_allocated_bytes, 100);
    driver.free_host(host).unwrap();
    assert_eq!(driver.free_host(host), Err(Code::INVALID_VALUE));
    driver.end_with(&["cuMemFree_v2", "cuMemFree_v2", "cuMemFreeHost"]);
}

#[test]
fn contexts_are_counted_and_current_per_thread() {
    let driver = Driver::new();
    driver.stand_in.set(Setting::Devices, 2);
    assert_eq!(driver.current(), Ok(0));
    assert_eq!(driver.current_device(), Err(Code::INVALID_CONTEXT));
    assert_eq!(driver.alloc(16), Err(Code::INVALID_CONTEXT));
    assert_eq!(driver.release(0), Err(Code::INVALID_CONTEXT));
    let first = driver.retain(0).unwrap();
    assert_eq!(driver.retain(0), Ok(first));
    let second = driver.retain(1).unwrap();
    assert_ne!(first, second);
    driver.push(first).unwrap();
    driver.push(second).unwrap();
    assert_eq!(driver.current_device(), Ok(1));
    assert_eq!(driver.pop(), Ok(second));
    assert_eq!(driver.current(), Ok(first));
    driver.pop_into_nothing().unwrap();
    assert_eq!(driver.current(), Ok(0));
    driver.release(0).unwrap();
    driver.push(first).unwrap();
    driver.pop().unwrap();
    driver.release(0).unwrap();
    driver.release(1).unwrap();
    driver.stand_in.assert_clean();
    assert_eq!(driver.push(first), Err(Code::INVALID_CONTEXT));
    assert_eq!(driver.pop(), Err(Code::INVALID_CONTEXT));
    driver.violations(&["cuCtxPushCurrent_v2: context", "nothing was pushed"]);
}

#[test]
fn a_context_is_left_empty_and_by_every_thread() {
    let driver = Driver::with_context();
    let memory = driver.alloc(10).unwrap();
    driver.event(NO_TIMING).unwrap();
    driver.release(0).unwrap();
    assert_eq!(driver.free(memory), Err(Code::CONTEXT_IS_DESTROYED));
    driver.pop().unwrap();
    let left = "cuDevicePrimaryCtxRelease_v2: the context still had 1 allocations of 10 bytes, \
                1 events";
    driver.violations(&[left, "on the stack of a thread"]);
}

#[test]
fn a_thread_that_ends_with_a_context_leaks_it() {
    let driver = Driver::new();
    let context = driver.retain(0).unwrap();
    std::thread::scope(|scope| {
        let push = || driver.push(context).unwrap();
        scope.spawn(push).join().unwrap();
    });
    assert_eq!(driver.stand_in.report().leaks(), ["1 contexts", "1 contexts on stacks"]);
    driver.release(0).unwrap();
    driver.violations(&["on the stack of a thread"]);
}

#[test]
fn memory_that_a_copy_still_needs_is_not_given_back() {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let device = driver.alloc(64).unwrap();
    let page = vec![7; 64];
    driver.register(&page, 0).unwrap();
    driver.stand_in.hold(true);
    driver.write_async(device, &page, stream).unwrap();
    driver.unregister(&page).unwrap();
    driver.stand_in.hold(false);
    // What the device would have touched is not there: it dies of that.
    assert_eq!(driver.synchronize_stream(stream), Err(Code::ILLEGAL_ADDRESS));
    driver.free(device).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.end_with(&["cuMemHostUnregister: an operation still touches"]);
}

#[test]
fn memory_that_a_copy_is_at_is_waited_for() {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let bytes = 64 << 20;
    let device = driver.alloc(bytes).unwrap();
    let host = driver.alloc_host(bytes, 0).unwrap();
    let copies = vec![(device, host as u64, bytes); 8];
    let attributes = [(0, crate::calls::STREAM_ORDER)];
    driver.batch(&copies, &attributes, stream).0.unwrap();
    // Queued or under way, however the threads run: it is wrong, and nobody reads freed memory.
    driver.free(device).unwrap();
    driver.free_host(host).unwrap();
    let _ = driver.synchronize_stream(stream);
    driver.destroy_stream(stream).unwrap();
    driver.pop().unwrap();
    driver.release(0).unwrap();
    let violations = driver.stand_in.violations();
    assert!(
        violations[0].starts_with("cuMemFree_v2: an operation still touches"),
        "{violations:?}"
    );
}

#[test]
fn streams_and_events_end_with_their_destruction() {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let other = driver.stream(0).unwrap();
    let event = driver.event(NO_TIMING).unwrap();
    let device = driver.alloc(16).unwrap();
    let page = vec![1; 16];
    driver.register(&page, 0).unwrap();
    // What was queued before is done, and an event may go before it has come.
    driver.stand_in.hold(true);
    driver.write_async(device, &page, stream).unwrap();
    driver.record(event, stream).unwrap();
    driver.wait_event(other, event, 0).unwrap();
    driver.destroy_event(event).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.stand_in.hold(false);
    driver.synchronize_stream(other).unwrap();
    let mut back = vec![0; 16];
    driver.read(&mut back, device).unwrap();
    assert_eq!(back, page);

    let handle = Err(Code::INVALID_HANDLE);
    assert_eq!(driver.query(event), handle);
    assert_eq!(driver.destroy_event(event), handle);
    assert_eq!(driver.synchronize_stream(stream), handle);
    assert_eq!(driver.write_async(device, &page, stream), handle);
    assert_eq!(driver.destroy_stream(stream), handle);
    assert_eq!(driver.destroy_stream(0x1234_5678), handle, "never was one: no violation");
    driver.unregister(&page).unwrap();
    driver.free(device).unwrap();
    driver.destroy_stream(other).unwrap();
    driver.end_with(&[
        "cuEventQuery: event",
        "cuEventDestroy_v2: event",
        "cuStreamSynchronize: stream",
        "cuMemcpyHtoDAsync_v2: stream",
        "cuStreamDestroy_v2: stream",
    ]);
}

#[test]
fn a_module_outlives_its_kernels() {
    let driver = Driver::with_context();
    let module = driver.load_module(PTX).unwrap();
    let function = driver.function(module, "undercroft_gather").unwrap();
    driver.stand_in.hold(true);
    driver.launch(function, (1, 256), 0, (8, [0; 4]), &[0; 3_072]).unwrap();
    driver.unload(module).unwrap();
    driver.stand_in.hold(false);
    assert_eq!(driver.unload(module), Err(Code::INVALID_HANDLE));
    driver.end_with(&["has not run yet", "cuModuleUnload: module"]);
}

#[test]
fn what_is_left_over_is_in_the_report() {
    let driver = Driver::with_context();
    let page = vec![0; 32];
    driver.register(&page, 0).unwrap();
    driver.alloc(10).unwrap();
    driver.alloc_host(20, 0).unwrap();
    driver.stream(0).unwrap();
    driver.event(0).unwrap();
    driver.load_module(PTX).unwrap();
    let leaks = [
        "1 allocations of 10 bytes",
        "1 registrations of 32 bytes",
        "1 host allocations of 20 bytes",
        "1 streams",
        "1 events",
        "1 modules",
        "1 contexts",
        "1 contexts on stacks",
    ];
    assert_eq!(driver.stand_in.report().leaks(), leaks);
    driver.stand_in.reset();
    driver.stand_in.assert_clean();
    assert_eq!(driver.current(), Ok(0), "a reset takes it from every thread");
}
