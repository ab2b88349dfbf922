//! `cargo fuzz run config`: see `undercroft_fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| undercroft_fuzz::config(input));
