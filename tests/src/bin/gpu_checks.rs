//! What `run.sh` of the bundle runs: every check that needs a GPU. See `docs/gpu.md`.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use undercroft_tests::{GpuCheck, GpuChecks, be_killed};

/// No driver or no device: nothing could be checked.
const NO_DEVICE: u8 = 3;

/// Everything that needs a GPU, in one run
#[derive(Debug, Parser)]
#[command(name = "gpu-checks", version)]
#[command(after_help = "Exit codes: 0 nothing failed, 1 a check failed, 2 wrong usage, \
    3 there is no CUDA driver or no such device.")]
struct Arguments {
    #[command(flatten)]
    wish: Wish,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, clap::Args)]
struct Wish {
    /// Which device, as in cuda:0
    #[arg(long, default_value_t = 0, global = true)]
    device: u32,
    /// How long random transfers go on, minutes
    #[arg(long, default_value_t = 1.0, global = true)]
    minutes: f64,
    /// Little of everything: whether it works, not how fast
    #[arg(long, global = true)]
    quick: bool,
    /// Seed of the random transfers
    #[arg(long, default_value_t = 1, global = true)]
    seed: u64,
    /// Where the results go
    #[arg(long, default_value = "gpu-results", global = true)]
    results: PathBuf,
    /// These checks only
    #[arg(long, value_delimiter = ',')]
    only: Vec<GpuCheck>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// One check in this process; what it found goes to a file
    #[command(hide = true)]
    One { check: GpuCheck, findings: PathBuf },
    /// A client that loads and stores until it is killed
    #[command(hide = true)]
    BeKilled { socket: PathBuf, ordinal: u32 },
}

fn main() -> ExitCode {
    let Arguments { wish, task } = Arguments::parse();
    let checks = GpuChecks {
        ordinal: wish.device,
        minutes: wish.minutes,
        quick: wish.quick,
        seed: wish.seed,
        results: wish.results.clone(),
    };
    let done = match task {
        Some(Task::One { check, findings }) => {
            let found = serde_json::to_vec(&checks.run_here(check)).context("findings are text");
            found.and_then(|bytes| Ok(fs::write(findings, bytes)?)).map(|()| ExitCode::SUCCESS)
        }
        Some(Task::BeKilled { socket, ordinal }) => {
            be_killed(&socket, ordinal).map(|()| ExitCode::SUCCESS)
        }
        None => all(&checks, &wish),
    };
    done.unwrap_or_else(|error| {
        eprintln!("gpu-checks: {error:#}");
        ExitCode::FAILURE
    })
}

fn all(checks: &GpuChecks, wish: &Wish) -> Result<ExitCode> {
    if let Err(why) = checks.device() {
        eprintln!("gpu-checks: {why}");
        return Ok(ExitCode::from(NO_DEVICE));
    }
    let own = std::env::current_exe().context("a program knows its own file")?;
    let wanted = if wish.only.is_empty() { GpuCheck::ALL } else { &wish.only };
    let report = checks.run(wanted, |check, findings| {
        let mut command = Command::new(&own);
        command.arg("--results").arg(&wish.results);
        command.args(["--device", &wish.device.to_string()]);
        command.args(["--minutes", &wish.minutes.to_string()]);
        command.args(["--seed", &wish.seed.to_string()]);
        if wish.quick {
            command.arg("--quick");
        }
        command.arg("one").arg(check.name()).arg(findings);
        command
    })?;
    report.write(&wish.results)?;
    println!("{}\n\n{report}\nresults: {}", report.title(), wish.results.display());
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
