//! `cargo xtask absence`: how soon a client knows that its daemon is dead or stopped.

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;
use undercroft_benches::Interrupt;
use undercroft_tests::Absence;

/// Daemons that are killed and stopped under a client
///
/// The daemon is killed while the client calls, waits for an answer, or rests, and stopped by
/// SIGSTOP; how long the client takes to know is measured from the moment the death can be seen.
#[derive(Debug, Parser)]
#[command(name = "absence", bin_name = "cargo xtask absence", version)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 a bound is broken or the run failed, 2 wrong usage."
)]
struct Arguments {
    /// How often each of it happens
    #[arg(long, default_value_t = 50)]
    rounds: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("absence: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let report = Absence { rounds: arguments.rounds }.run(&|| Ok(interrupt.check()?))?;
    println!("{report}");
    report.check()?;
    report.check_speed()
}
