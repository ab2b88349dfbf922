//! `cargo fuzz run state_file`: see `undercroft_fuzz::state_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| undercroft_fuzz::state_file(input));
