use crate::calls::{Attributes, Copy2D, Driver, NO_TIMING, NON_BLOCKING, READ_ONLY, STREAM_ORDER};
use undercroft_stand_in::{Code, Setting};

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn a_machine_is_as_it_is_set() {
    let driver = Driver::new();
    assert_eq!(driver.version(), Ok(12_080));
    assert_eq!(driver.device_count(), Ok(1));
    assert_eq!(driver.device(0), Ok(0));
    assert_eq!(driver.device(1), Err(Code::INVALID_DEVICE));
    assert_eq!(driver.total_memory(0), Ok(16 << 30));
    let attributes: Vec<_> =
        [16, 11, 75, 76, 113, 41, 99].map(|it| driver.attribute(it, 0).unwrap()).into();
    assert_eq!(attributes, [132, 0x7fff_ffff, 9, 0, 1, 1, 1]);
    assert_eq!(driver.device_name(64), "Stand-in device 0");
    assert_eq!(driver.device_name(9), "Stand-in");
    driver.stand_in.set(Setting::DriverVersion, 12_000);
    driver.stand_in.set(Setting::ComputeCapability, 75);
    driver.stand_in.set(Setting::ReadOnlyRegistration, 0);
    assert_eq!(driver.version(), Ok(12_000));
    assert_eq!(driver.attribute(76, 0), Ok(5));
    assert_eq!(driver.attribute(113, 0), Ok(0));
    driver.stand_in.set(Setting::Devices, 0);
    assert_eq!(driver.init(0), Err(Code::NO_DEVICE));
    assert_eq!(driver.name_of(Code::NOT_READY).unwrap(), "CUDA_ERROR_NOT_READY");
    assert_eq!(driver.name_of(Code(12_345)), Err(Code::INVALID_VALUE));
    driver.stand_in.assert_clean();
}

#[test]
fn bytes_come_back_by_each_kind_of_call() {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let device = driver.alloc(4_096).unwrap();
    let (page, mut back) = (pattern(4_096, 1), vec![0; 4_096]);
    driver.register(&page, 0).unwrap();
    driver.register(&back, 0).unwrap();

    driver.write(device, &page).unwrap();
    driver.read(&mut back, device).unwrap();
    assert_eq!(back, page);

    back.fill(0);
    driver.write_async(device, &page[..1_000], stream).unwrap();
    driver.read_async(&mut back[..1_000], device, stream).unwrap();
    driver.synchronize_stream(stream).unwrap();
    assert_eq!(back[..1_000], page[..1_000]);
    assert_eq!(back[1_000], 0);

    // Rows of 16 bytes from every 32 to every 64.
    driver.copy_2d(&Copy2D::to_device(&page, 32, device, 64, 16, 64), stream).unwrap();
    driver.synchronize_stream(stream).unwrap();
    driver.read(&mut back, device).unwrap();
    for row in 0..64 {
        assert_eq!(back[row * 64..][..16], page[row * 32..][..16]);
    }

    let (host, target) = (page.as_ptr().addr() as u64, back.as_ptr().addr() as u64);
    let batch = [(device, host + 100, 200), (device + 512, host, 100)];
    assert_eq!(driver.batch(&batch, &[(0, STREAM_ORDER)], stream).0, Ok(()));
    assert_eq!(driver.batch(&[(target, device, 1_000)], &[(0, STREAM_ORDER)], stream).0, Ok(()));
    driver.synchronize().unwrap();
    assert_eq!(back[..200], page[100..300]);
    assert_eq!(back[512..612], page[..100]);

    let report = driver.stand_in.report();
    assert_eq!((report.copies_1d, report.copies_2d), (5, 1));
    assert_eq!((report.batches, report.batched_copies), (2, 3));
    assert_eq!((report.allocations, report.allocated_bytes), (1, 4_096));
    assert_eq!((report.registrations, report.registered_bytes), (2, 8_192));
    assert_eq!((report.streams, report.pageable_copies, report.pending), (1, 0, 0));
    assert_eq!(driver.stand_in.calls("cuMemcpyBatchAsync"), 2);

    driver.unregister(&page).unwrap();
    driver.unregister(&back).unwrap();
    driver.free(device).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.end();
}

#[test]
fn copies_wait_for_what_is_before_them_and_for_events() {
    let driver = Driver::with_context();
    let [first, second] = [(); 2].map(|()| driver.stream(NON_BLOCKING).unwrap());
    let event = driver.event(NO_TIMING).unwrap();
    let device = driver.alloc(64).unwrap();
    let (page, mut back) = (pattern(64, 3), vec![0; 64]);
    driver.register(&page, 0).unwrap();
    driver.register(&back, 0).unwrap();

    assert_eq!(driver.query(event), Ok(()), "an event that was never recorded is over");
    driver.wait_event(second, event, 0).unwrap();
    driver.stand_in.hold(true);
    // The last of many that take their time: who does not wait comes long before it.
    let zeros = vec![0; 64];
    driver.register(&zeros, 0).unwrap();
    (0..9).for_each(|_| driver.write_async(device, &zeros, first).unwrap());
    driver.write_async(device, &page, first).unwrap();
    driver.record(event, first).unwrap();
    driver.wait_event(second, event, 0).unwrap();
    driver.read_async(&mut back, device, second).unwrap();
    assert_eq!(driver.query(event), Err(Code::NOT_READY));
    assert_eq!(driver.stand_in.report().pending, 13);
    assert_eq!(back, [0; 64]);
    driver.stand_in.set(Setting::DelayUs, 1_000);
    driver.stand_in.hold(false);
    driver.synchronize_stream(second).unwrap();
    assert_eq!(back, page);
    assert_eq!(driver.query(event), Ok(()));
    driver.synchronize_event(event).unwrap();

    driver.unregister(&zeros).unwrap();
    driver.unregister(&page).unwrap();
    driver.unregister(&back).unwrap();
    driver.free(device).unwrap();
    driver.destroy_event(event).unwrap();
    driver.destroy_stream(first).unwrap();
    driver.destroy_stream(second).unwrap();
    driver.end();
}

/// The default stream waits for those that block and they for it; a non-blocking one does not.
#[test]
fn the_default_stream_is_in_order_with_those_that_block() {
    let driver = Driver::with_context();
    let blocking = driver.stream(0).unwrap();
    let free = driver.stream(NON_BLOCKING).unwrap();
    let events = [(); 4].map(|()| driver.event(NO_TIMING).unwrap());
    let [first, on_default, on_blocking, on_free] = events;
    let device = driver.alloc(64).unwrap();
    let (pages, mut back) = ([pattern(64, 1), pattern(64, 2), pattern(64, 3)], vec![0; 64]);
    driver.register(&back, 0).unwrap();
    pages.iter().for_each(|page| driver.register(page, 0).unwrap());

    driver.stand_in.hold(true);
    (0..30).for_each(|_| driver.write_async(device, &pages[0], blocking).unwrap());
    driver.record(first, blocking).unwrap();
    driver.write_async(device, &pages[1], 0).unwrap();
    (0..9).for_each(|_| driver.write_async(device, &pages[2], 0).unwrap());
    driver.record(on_default, 0).unwrap();
    driver.read_async(&mut back, device, blocking).unwrap();
    driver.record(on_blocking, blocking).unwrap();
    driver.record(on_free, free).unwrap();
    driver.stand_in.set(Setting::DelayUs, 1_000);
    driver.stand_in.hold(false);
    driver.synchronize_event(on_free).unwrap();
    driver.synchronize_event(on_default).unwrap();
    assert_eq!(driver.query(first), Ok(()));
    driver.synchronize_event(on_blocking).unwrap();
    assert_eq!(back, pages[2]);

    driver.unregister(&back).unwrap();
    pages.iter().for_each(|page| driver.unregister(page).unwrap());
    driver.free(device).unwrap();
    events.iter().for_each(|it| driver.destroy_event(*it).unwrap());
    [blocking, free].iter().for_each(|it| driver.destroy_stream(*it).unwrap());
    driver.end();
}

#[test]
fn ordinary_memory_is_copied_during_the_call_and_counted() {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let device = driver.alloc(64).unwrap();
    let mut page = pattern(64, 9);
    driver.stand_in.set(Setting::DelayUs, 500);
    driver.write(device, &page).unwrap();
    assert_eq!(driver.stand_in.report().pageable_copies, 0);
    driver.write_async(device, &page, stream).unwrap();
    page.fill(0);
    driver.read_async(&mut page, device, stream).unwrap();
    assert_eq!(page, pattern(64, 9));
    assert_eq!(driver.stand_in.report().pageable_copies, 2);
    driver.free(device).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.end();
}

#[test]
fn ranges_lie_wholly_where_they_should() {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let device = driver.alloc(1_000).unwrap();
    let mut memory = pattern(4_000, 0);
    driver.register(&memory[1_000..2_000], 0).unwrap();
    driver.register(&memory[2_000..3_000], READ_ONLY).unwrap();
    let invalid = Err(Code::INVALID_VALUE);

    assert_eq!(driver.write_async(device + 1, &memory[1_000..2_000], stream), invalid);
    assert_eq!(driver.write_async(device - 1, &memory[1_000..1_010], stream), invalid);
    assert_eq!(driver.write_async(0, &memory[1_000..1_010], stream), invalid);
    assert_eq!(driver.write_async(u64::MAX - 4, &memory[1_000..1_010], stream), invalid);
    assert_eq!(driver.write_async(device, &memory[999..1_010], stream), invalid);
    assert_eq!(driver.write_async(device, &memory[1_990..2_010], stream), invalid);
    assert_eq!(driver.write_async(device, &memory[2_990..3_010], stream), invalid);
    assert_eq!(driver.write_async(device, &memory[2_990..3_000], stream), Ok(()));
    assert_eq!(driver.read_async(&mut memory[2_500..2_600], device, stream), invalid);
    assert_eq!(driver.read_async(&mut memory[1_500..1_600], device, stream), Ok(()));
    driver.synchronize_stream(stream).unwrap();

    let rows = Copy2D::to_device(&memory[1_000..], 100, device, 100, 100, 10);
    assert_eq!(driver.copy_2d(&rows, stream), Ok(()));
    assert_eq!(driver.copy_2d(&Copy2D { height: 11, ..rows }, stream), invalid);
    assert_eq!(driver.copy_2d(&Copy2D { from_pitch: 99, ..rows }, stream), invalid);
    assert_eq!(driver.copy_2d(&Copy2D { from_x: 1, ..rows }, stream), invalid);
    assert_eq!(driver.copy_2d(&Copy2D { to_y: 1, ..rows }, stream), invalid);
    assert_eq!(driver.copy_2d(&Copy2D { to_pitch: 1 << 31, ..rows }, stream), invalid);
    assert_eq!(driver.copy_2d(&Copy2D { to_kind: 3, ..rows }, stream), invalid);
    assert_eq!(driver.copy_2d(&Copy2D { height: 0, ..rows }, stream), Ok(()));
    driver.synchronize_stream(stream).unwrap();

    driver.unregister(&memory[1_000..]).unwrap();
    driver.unregister(&memory[2_000..]).unwrap();
    driver.free(device).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.end();
}

#[test]
fn a_batch_says_which_copy_is_refused() {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let device = driver.alloc(100).unwrap();
    let page = pattern(100, 0);
    driver.register(&page, 0).unwrap();
    let host = page.as_ptr().addr() as u64;
    let good = (device, host, 100);
    let (one, invalid) = (&[(0, STREAM_ORDER)][..], Err(Code::INVALID_VALUE));

    assert_eq!(driver.batch(&[good, (device + 1, host, 100), good], one, stream), (invalid, 1));
    let none = usize::MAX;
    assert_eq!(driver.batch(&[good], &[], stream), (invalid, none));
    assert_eq!(driver.batch(&[], one, stream), (invalid, none));
    assert_eq!(driver.batch(&[good], &[(1, STREAM_ORDER)], stream), (invalid, none));
    let two = |second| [(0, STREAM_ORDER), (second, STREAM_ORDER)];
    assert_eq!(driver.batch(&[good, good], &two(0), stream), (invalid, none));
    assert_eq!(driver.batch(&[good, good], &two(2), stream), (invalid, none));
    assert_eq!(driver.batch(&[good, good], &two(1), stream), (Ok(()), none));
    let unknown = Attributes { order: 0, ..STREAM_ORDER };
    assert_eq!(driver.batch(&[good], &[(0, unknown)], stream), (invalid, none));
    assert_eq!(driver.batch(&[good], one, 0), (Err(Code::INVALID_HANDLE), none));
    driver.stand_in.set(Setting::Batch, 0);
    assert_eq!(driver.batch(&[good], one, stream), (Err(Code::NOT_SUPPORTED), none));

    driver.synchronize().unwrap();
    driver.unregister(&page).unwrap();
    driver.free(device).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.end();
}
