//! `cargo xtask corrupt`: corruptions of stores, and what they came to.

use anyhow::{Result, ensure};
use clap::Parser;
use std::process::ExitCode;
use undercroft_benches::Interrupt;
use undercroft_tests::Corruptions;

/// So many corruptions meet every kind of miss there is.
const SURVEY: u64 = 20_000;

/// Damages stores and reads what is left
///
/// Each corruption damages one of sixteen stores, plain and encrypted, with pages of several
/// sizes: a bit, a sector, a torn write, records that are swapped, stale, or another's, tables,
/// headers and superblocks, a file that is cut short. Everything that was hit must be a miss, and
/// counted; everything else must be served, byte by byte. "Harmless" are those that hit only bytes
/// nothing depends on (padding, a second copy, a seal): every page is right.
#[derive(Debug, Parser)]
#[command(name = "corrupt", bin_name = "cargo xtask corrupt", version)]
#[command(after_help = "Exit codes: 0 all is well, 1 a corruption went wrong, 2 wrong usage.")]
struct Arguments {
    /// How many corruptions
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// The number of the first one
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corrupt: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { count, from, seed, .. } = *arguments;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(processors);
    println!("cargo xtask corrupt --from {from} --count {count} --seed {seed}\n");
    let corruptions = Corruptions { numbers: from..from.saturating_add(count), seed, threads };
    let interrupt = Interrupt::watch()?;
    let report = corruptions.run(&|_| {}, &|| Ok(interrupt.check()?))?;
    println!("{report} on {threads} threads");
    report.check()?;
    // A handful of them is no survey.
    let gaps = report.gaps();
    ensure!(count < SURVEY || gaps.is_empty(), "no miss came of: {}", gaps.join("; "));
    Ok(())
}
