//! Recordings of a daemon's traffic, as traces: which pages were asked for when, and nothing of
//! what they hold.

mod assembler;
mod driver;
mod writer;

pub use driver::{RecordOptions, RecordReport, record};
