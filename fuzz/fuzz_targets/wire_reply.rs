//! `cargo fuzz run wire_reply`: see `undercroft_fuzz::wire_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| undercroft_fuzz::wire_reply(input));
