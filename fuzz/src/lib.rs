//! The bodies of the fuzz targets: one per decoder of bytes that somebody else wrote.
//!
//! Each takes any bytes and returns; a panic is a finding. They stand here and not in
//! `fuzz_targets/`, so that the same bodies run under libFuzzer and under the plain driver
//! (`src/smoke.rs`), which needs nothing but a stable compiler.

mod config;
mod mutate;
mod page_log;
mod state_file;
mod target;
mod trace;
mod wire;

pub use config::config;
pub use mutate::Mutator;
pub use page_log::page_log;
pub use state_file::state_file;
pub use target::{TARGETS, Target};
pub use trace::trace;
pub use wire::{wire_reply, wire_request};
