//! `cargo xtask power-cut`: cuts the power of the disk under a running daemon, boots, and looks at
//! every page.

use anyhow::{Result, ensure};
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use undercroft_benches::Interrupt;
use undercroft_tests::{CutRound, PowerCut, missing, run_contained, skip, stop_with_input};

/// The daemon's store on a disk that loses what was not flushed
///
/// A file system lies on a disk with a volatile write cache (ext4 on a loop device on a FUSE
/// file). At seeded moments under load the power goes: of what was not flushed survives nothing,
/// everything, or what the dice say, down to torn sectors. Then the file system is checked and
/// mounted again, the daemon started, and every page that was ever stored is loaded and compared
/// byte by byte. Takes root, FUSE, loop devices and e2fsprogs, and says so where they are missing.
#[derive(Debug, Parser)]
#[command(name = "power-cut", bin_name = "cargo xtask power-cut", version)]
#[command(
    after_help = "Exit codes: 0 all is well or it could not run, 1 a bound is broken or the run \
                  failed, 2 wrong usage."
)]
struct Arguments {
    /// How often the power goes
    #[arg(long, default_value_t = 100)]
    cuts: u32,
    /// Seed of all choices: what is stored and read, when the power goes, and what survives
    /// [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// The longest steady load before a cut, milliseconds
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..))]
    load_ms: u64,
    /// This process has its own namespaces already
    #[arg(long, hide = true)]
    contained: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = if arguments.contained { run(&arguments) } else { contain() };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("power-cut: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program again, in namespaces of its own.
fn contain() -> Result<ExitCode> {
    if let Some(reason) = missing() {
        skip("power_cut", &reason);
        return Ok(ExitCode::SUCCESS);
    }
    let interrupt = Interrupt::watch()?;
    let mut own: Vec<OsString> = std::env::args_os().skip(1).collect();
    own.push("--contained".into());
    let status = run_contained(&std::env::current_exe()?, &own, &|| interrupt.is_set())?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { cuts, load_ms, .. } = *arguments;
    ensure!(std::process::id() == 1, "--contained is for this program's own use");
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let options = PowerCut { cuts, load_ms: load_ms / 10..load_ms, seed };
    println!("cargo xtask power-cut --cuts {cuts} --load-ms {load_ms} --seed {seed}\n");
    println!("{}", CutRound::heading());
    let interrupt = Interrupt::watch()?;
    let stopped = stop_with_input();
    let go_on = || {
        ensure!(!stopped.load(Ordering::Relaxed), "told to stop");
        Ok(interrupt.check()?)
    };
    let report = options.run(&|index, round| println!("{}", round.line(index)), &go_on)?;
    println!("\n{report}");
    report.check()?;
    Ok(ExitCode::SUCCESS)
}
