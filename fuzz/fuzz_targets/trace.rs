//! `cargo fuzz run trace`: see `undercroft_fuzz::trace`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| undercroft_fuzz::trace(input));
