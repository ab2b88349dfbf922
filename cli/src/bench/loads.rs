//! `undercroft bench loads`.

use super::{failure, this_program};
use crate::outcome::{Failure, Outcome};
use clap::Args;
use std::path::PathBuf;
use undercroft_benches::{ByteSize, LoadsOptions, loads};

/// Measure what loading costs against computing, with the cost model off, advisory and enforced.
///
/// A simulated engine asks for prefixes that lie on SSD: its lookups, fetches and copies are real,
/// and computing a page takes as long as --recompute-us says. One run of requests is served with the
/// disk as fast as it is, and one with reads slowed down, by a control group of the daemon, to where
/// computing wins. Every byte is verified. Takes about three minutes, and root.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft bench loads
  undercroft bench loads --recompute-us 1600 --page-bytes 2MiB --ssd-path /mnt/nvme0

Exit codes: 0 with the model enforced no request on the slow disk was slower than without a cache by more
than 5 %, and on the fast disk no more than 1 % of the gain was given up; 1 not so, or a byte was wrong;
2 it could not start.")]
pub(crate) struct Loads {
    /// Size of one page.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(1 << 20))]
    page_bytes: ByteSize,
    /// What computing a page costs the engine, microseconds.
    #[arg(long, value_name = "N", default_value_t = 4000,
          value_parser = clap::value_parser!(u64).range(1..=60_000_000))]
    recompute_us: u64,
    /// Requests in each of the six runs.
    #[arg(long, value_name = "N", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// How much is read from the slow disk each second [default: half of what is computed].
    #[arg(long, value_name = "SIZE")]
    slow: Option<ByteSize>,
    /// Where the SSD tier's file lies while the benchmark runs [default: the temporary directory].
    #[arg(long, value_name = "DIR")]
    ssd_path: Option<PathBuf>,
    /// Write the report as JSON (schema 1); - for standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Loads {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let options = LoadsOptions {
            binary: this_program()?,
            ssd_path: self.ssd_path,
            page_bytes: self.page_bytes,
            recompute_us: self.recompute_us,
            requests: self.requests,
            slow: self.slow,
            json: self.json,
        };
        let report = loads(&options).map_err(failure)?;
        eprint!("{}", report.table());
        Ok(if report.is_good() { Outcome::Good } else { Outcome::Bad })
    }
}
