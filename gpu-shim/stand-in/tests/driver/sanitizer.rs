//! What an address sanitizer has to catch. `cargo xtask asan` runs each alone and holds that it
//! was: a sanitizer that does not see into the library would see nothing anywhere.

use crate::calls::{Driver, NON_BLOCKING};

/// A stream's thread, inside the library, reads a page that the test has freed.
#[test]
#[ignore = "a fault that `cargo xtask asan` holds to be caught"]
fn a_page_is_freed_while_a_copy_needs_it() {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let device = driver.alloc(4_096).unwrap();
    let page = vec![1; 4_096];
    driver.register(&page, 0).unwrap();
    driver.stand_in.hold(true);
    driver.write_async(device, &page, stream).unwrap();
    drop(page);
    driver.stand_in.hold(false);
    driver.synchronize_stream(stream).unwrap();
}

/// Device memory is used after `cuMemFree`, inside the library too, by a test that has its address.
#[test]
#[ignore = "a fault that `cargo xtask asan` holds to be caught"]
fn device_memory_is_copied_from_after_it_was_freed() {
    let driver = Driver::with_context();
    let device = driver.alloc(4_096).unwrap();
    driver.free(device).unwrap();
    // Ordinary memory, as far as the driver knows: it is no allocation any more.
    let target = driver.alloc_host(4_096, 0).unwrap();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let batch = [(target as u64, device, 4_096)];
    driver.batch(&batch, &[(0, crate::calls::STREAM_ORDER)], stream).0.unwrap();
}

/// Nobody frees it, and nobody can.
#[test]
#[ignore = "a fault that `cargo xtask asan` holds to be caught"]
fn memory_is_lost() {
    let lost = std::hint::black_box(vec![1_u8; 1_000]);
    std::mem::forget(lost);
}
