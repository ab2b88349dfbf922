//! `cargo xtask resting`: what a daemon that knows many pages takes while nobody asks it anything.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use undercroft_benches::Interrupt;
use undercroft_client::wire::Tier;
use undercroft_tests::Resting;

/// A daemon that rests
///
/// Its processor time and its heap, without pages and with many. A million pages take 4 GiB of
/// memory and reserve 16 GiB of disk, of which a third is written.
#[derive(Debug, Parser)]
#[command(name = "resting", bin_name = "cargo xtask resting", version)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 a bound is broken or the run failed, 2 wrong usage."
)]
struct Arguments {
    /// How many pages
    #[arg(long, default_value_t = 1_000_000)]
    pages: u64,
    /// Only with the pages in this tier
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// How long it is left alone, seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Where its SSD tier lies [default: the system's place for temporary files]
    #[arg(long)]
    directory: Option<PathBuf>,
}

/// A tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    Dram,
    Ssd,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("resting: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let Arguments { pages, only, seconds, directory } = arguments;
    let tiers = [(Only::Dram, Tier::Dram, "in DRAM"), (Only::Ssd, Tier::Ssd, "on SSD")];
    for (_, tier, place) in tiers.into_iter().filter(|(name, ..)| only.is_none_or(|o| o == *name)) {
        let (rest, directory) = (Duration::from_secs(*seconds), directory.clone());
        let resting = Resting { pages: *pages, tier, rest, directory };
        let report = resting.run(&|| Ok(interrupt.check()?))?;
        println!("all pages {place}\n{report}");
        report.check()?;
    }
    Ok(())
}
