//! What the black-box tests share: the real binary, a daemon run by it, an engine that checks
//! every byte, and a way to say that a test could not run.

mod binary;
mod daemon;
mod engine;
mod skip;

pub use binary::{program, run, run_as_ordinary_user};
pub use daemon::{DaemonOptions, TestDaemon};
pub use engine::{Engine, PAGE_BYTES};
pub use skip::{skip, traces};
