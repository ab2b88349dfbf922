//! `cargo xtask crash`: kills the daemon with reads and writes in flight, starts it again, and
//! looks at every page it should still have.

use anyhow::Result;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use undercroft_benches::{ByteSize, Interrupt};
use undercroft_tests::{Round, WarmRestart};

/// Warm restart under `kill -9`
///
/// Fills a store once; then, round by round: new pages are stored and old ones loaded, the daemon
/// is killed in the middle of it and started again, and every page that was on SSD is loaded and
/// compared byte by byte.
#[derive(Debug, Parser)]
#[command(name = "crash", bin_name = "cargo xtask crash", version)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 a bound is broken or the run failed, 2 wrong usage."
)]
struct Arguments {
    /// How often the daemon is killed
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Pages stored before the first round
    #[arg(long, default_value_t = 20_000)]
    pages: u64,
    /// Bytes of a page
    #[arg(long, default_value_t = ByteSize(64 << 10))]
    page_bytes: ByteSize,
    /// Pages stored in each round, at most [default: a 16th of --pages]
    #[arg(long)]
    new_pages: Option<u64>,
    /// Seed of all choices: what is stored and read, and when the daemon is killed [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Where the store lies: its disk is what is measured [default: the system's place for
    /// temporary files]
    #[arg(long)]
    directory: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { rounds, pages, page_bytes, .. } = *arguments;
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let options = WarmRestart {
        rounds,
        pages,
        page_bytes: page_bytes.0,
        chain_pages: 16,
        new_pages: arguments.new_pages.unwrap_or(pages / 16).max(64),
        load_ms: 1600..2600,
        seed,
        directory: arguments.directory.clone(),
    };
    let again = format!(
        "cargo xtask crash --rounds {rounds} --pages {pages} --page-bytes {page_bytes} \
         --new-pages {} --seed {seed}",
        options.new_pages
    );
    println!("{again}\n\n{}", Round::heading());
    let interrupt = Interrupt::watch()?;
    let go_on = || Ok(interrupt.check()?);
    let report = options.run(&|index, round| println!("{}", round.line(index)), &go_on)?;
    println!("\n{report}");
    report.check()
}
