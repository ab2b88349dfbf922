//! `cargo fuzz run page_log`: see `undercroft_fuzz::page_log`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| undercroft_fuzz::page_log(input));
