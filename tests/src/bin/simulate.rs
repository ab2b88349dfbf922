//! `cargo xtask sim`: seeds of the simulator, and what they came to.

use anyhow::{Result, bail, ensure};
use clap::Parser;
use std::process::ExitCode;
use std::time::Instant;
use undercroft_tests::{Seeds, simulate};

/// So many seeds meet everything there is to meet.
const SURVEY: u64 = 1000;

/// Runs seeds of the simulator
///
/// Each seed is a run of the core and one to three page logs on devices that fail and lie, with
/// clients that store and load, in virtual time. Every byte that is handed out is compared.
#[derive(Debug, Parser)]
#[command(name = "sim", bin_name = "cargo xtask sim", version)]
#[command(after_help = "Exit codes: 0 all is well, 1 a seed failed, 2 wrong usage.")]
struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Failures after which no more seeds are begun
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Runs the first seed alone and prints what happens in it
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.trace {
        let report = simulate(arguments.from, true);
        return match report {
            Ok(report) => {
                println!("{report}");
                Ok(())
            }
            Err(failure) => bail!("{failure}"),
        };
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let seeds = Seeds {
        seeds: arguments.from..arguments.from.saturating_add(arguments.seeds),
        threads: arguments.threads.unwrap_or(processors),
        most_failures: arguments.failures,
    };
    let start = Instant::now();
    let (report, failures) = seeds.run(&|_| {});
    let seconds = start.elapsed().as_secs_f64();
    println!("{report}");
    println!("{seconds:.1} s on {} threads", seeds.threads);
    // A handful of seeds is no survey.
    if failures.is_empty() && arguments.seeds >= SURVEY {
        let gaps = report.gaps();
        ensure!(gaps.is_empty(), "nothing of this happened: {}", gaps.join(", "));
        println!("no gaps: everything the simulator can do has happened");
    }
    for failure in &failures {
        println!("\n{failure}\n  again: cargo xtask sim --trace --from {}", failure.seed);
    }
    if failures.is_empty() { Ok(()) } else { bail!("{} seeds failed", failures.len()) }
}
