//! `cargo xtask timing`: can a tenant tell by the time of an answer what another tenant has stored?

use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use undercroft_tests::{DaemonOptions, PAGE_BYTES, TestDaemon, program};

/// What the time of a lookup tells one tenant about another
///
/// Tenant A stores conversations. Tenant B looks up the same ones, and others that nobody has, in
/// an order nobody can guess, and times each: a guesser that looks at one time should do no better
/// than a coin. In between it looks up its own, which the same guesser should tell from what nobody
/// has: or the clock would be too coarse to say anything. Takes root, to be of two groups.
#[derive(Debug, Parser)]
#[command(name = "timing", bin_name = "cargo xtask timing", version)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 a bound is broken or the run failed, 2 wrong usage."
)]
struct Arguments {
    /// Lookups of what the other tenant or nobody has, half of each
    #[arg(long, default_value_t = 10_000)]
    trials: usize,
    /// Conversations of each kind
    #[arg(long, default_value_t = 8)]
    count: u32,
    /// Pages of a conversation
    #[arg(long, default_value_t = 4096)]
    pages: u32,
    /// Seed of the order [default: random]
    #[arg(long)]
    seed: Option<u64>,
}

const A: (u32, &str) = (2001, "a");
const B: (u32, &str) = (2002, "b");
/// The interval within which a guesser counts as no better than a coin.
const COIN: std::ops::RangeInclusive<f64> = 0.47..=0.53;
/// What a guesser must reach where there is something to tell.
const TOLD: f64 = 0.9;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("timing: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "processes of other groups take root");
    let dram = 2 * u64::from(arguments.count * arguments.pages) * PAGE_BYTES;
    let domain = |(gid, name): (u32, &str)| {
        format!("[[domain]]\nname = \"{name}\"\ngid = [{gid}]\ndram = {dram}\n")
    };
    let more = domain(A) + &domain(B);
    let options = DaemonOptions { dram: 0, more, staging: 8 << 20, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    let tenant = |(gid, name): (u32, &str), task: &[String]| -> Result<serde_json::Value> {
        let mut command = Command::new(program("tenant"));
        command.arg("--socket").arg(daemon.socket()).args(["--domain", name]);
        command.arg("--pages").arg(arguments.pages.to_string()).args(task).gid(gid);
        let output = command.output().context("cannot run a tenant")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "a tenant failed: {error}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let texts = |words: &[&dyn ToString]| -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    };
    let pages = u64::from(arguments.count * arguments.pages);
    for (who, from) in [(A, 0), (B, 2_000_000)] {
        let stored = tenant(who, &texts(&[&"store", &from, &(from + arguments.count)]))?;
        ensure!(stored["stored"] == pages, "not everything was stored: {stored}");
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let report = tenant(B, &texts(&[&"time", &arguments.count, &arguments.trials, &seed]))?;
    println!("seed {seed}");
    for (name, what) in [
        ("theirs_or_nobodys", "what A has against what nobody has"),
        ("nobodys_or_own", "control: what nobody has against B's own"),
    ] {
        let of = |end: &str| report[name][end].as_f64().unwrap_or(f64::NAN);
        println!("{what:<42} AUC {:.4} ({:.4} .. {:.4})", of("auc"), of("low"), of("high"));
    }
    println!("found: {}", report["found"]);
    ensure!(report["found"]["theirs"] == 0, "B has found pages of A");
    ensure!(report["found"]["own"].as_u64() > Some(0), "B has not found its own pages");
    let [low, high] = ["low", "high"].map(|end| report["theirs_or_nobodys"][end].as_f64());
    ensure!(
        low.zip(high).is_some_and(|(low, high)| COIN.contains(&low) && COIN.contains(&high)),
        "the time of an answer tells what another tenant has"
    );
    let control = report["nobodys_or_own"]["auc"].as_f64();
    ensure!(control >= Some(TOLD), "the control cannot be told either: the clock says nothing");
    Ok(())
}
