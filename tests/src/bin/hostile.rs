//! `cargo xtask hostile`: clients die at every step of what a client does, by the thousand, and
//! nothing may be left of them.

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;
use undercroft_benches::Interrupt;
use undercroft_tests::Deaths;

/// Clients that die
///
/// Processes use the daemon as engines do and kill themselves in the middle of it, four at a time,
/// while a well-behaved engine loads its pages and compares every byte.
#[derive(Debug, Parser)]
#[command(name = "hostile", bin_name = "cargo xtask hostile", version)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 a bound is broken or the run failed, 2 wrong usage."
)]
struct Arguments {
    /// How many clients die
    #[arg(long, default_value_t = 10_000)]
    deaths: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let report = Deaths { deaths: arguments.deaths }.run(&|| Ok(interrupt.check()?))?;
    println!("{report}");
    report.check()
}
