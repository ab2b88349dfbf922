use crate::ByteSize;
use std::path::PathBuf;

/// What `bench loads` does.
#[derive(Debug, Clone)]
pub struct LoadsOptions {
    /// The program that knows `serve --config FILE`.
    pub binary: PathBuf,
    /// Where the SSD tier's file lies; `None`: the temporary directory.
    pub ssd_path: Option<PathBuf>,
    /// Size of a page.
    pub page_bytes: ByteSize,
    /// What computing a page costs the engine, microseconds.
    pub recompute_us: u64,
    /// Requests in each of the runs.
    pub requests: u32,
    /// How fast the slow disk is read; `None`: so that loading takes twice as long as computing.
    pub slow: Option<ByteSize>,
    /// Where the report is written as JSON; `-` for standard output.
    pub json: Option<PathBuf>,
}
