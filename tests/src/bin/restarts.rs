//! `cargo xtask restarts`: restarts, kills and takeovers under load.

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;
use undercroft_benches::{ByteSize, Interrupt};
use undercroft_tests::Restarts;

/// Restarts under load
///
/// A stand-in for the service manager keeps the daemon's descriptors. While clients store, load and
/// hold leases, the daemon is told to stop, is killed, and is taken over from, by turns; after each
/// time every page that was ever committed is loaded and compared byte by byte.
#[derive(Debug, Parser)]
#[command(name = "restarts", bin_name = "cargo xtask restarts", version)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 a bound is broken or the run failed, 2 wrong usage."
)]
struct Arguments {
    /// Restarts: stop, kill and takeover by turns
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// Pages stored before the first round
    #[arg(long, default_value_t = 4_000)]
    pages: u64,
    /// Pages stored in each round, at most
    #[arg(long, default_value_t = 400)]
    new_pages: u64,
    /// Bytes of a page
    #[arg(long, default_value_t = ByteSize(64 << 10))]
    page_bytes: ByteSize,
    /// How long the load lasts before and after each restart, milliseconds
    #[arg(long, default_value_t = 300)]
    load_ms: u64,
    /// DRAM holds one page of so many, and an SSD the rest; 1: all of them, without SSD
    #[arg(long, default_value_t = 1)]
    on_ssd: u64,
    /// Seed of all choices [default: random]
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let interrupt = Interrupt::watch()?;
    let restarts = Restarts {
        rounds: arguments.rounds,
        pages: arguments.pages,
        new_pages: arguments.new_pages,
        page_bytes: arguments.page_bytes.0,
        chain_pages: 8,
        load_ms: arguments.load_ms,
        on_ssd: arguments.on_ssd.max(1),
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..)),
    };
    println!("seed {}", restarts.seed);
    let report = restarts.run(&|restart| println!("{restart}"), &|| Ok(interrupt.check()?))?;
    println!("{report}");
    report.check()?;
    Ok(ExitCode::SUCCESS)
}
