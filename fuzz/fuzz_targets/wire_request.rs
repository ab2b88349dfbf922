//! `cargo fuzz run wire_request`: see `undercroft_fuzz::wire_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| undercroft_fuzz::wire_request(input));
