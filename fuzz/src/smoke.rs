//! The plain driver: seeded inputs through every target, on any stable compiler.

use anyhow::{Context, Result, bail};
use clap::Parser;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use undercroft_fuzz::{Mutator, TARGETS, Target};

/// Feeds seeded random and mutated inputs to the fuzz targets.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only this target.
    #[arg(long)]
    target: Option<String>,
    /// Inputs for a target of cost 1; slower targets get fewer.
    #[arg(long, default_value_t = 100_000)]
    iterations: u64,
    /// Start at this input.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Which inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run one input from a file, such as one that libFuzzer found.
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// Write the well-formed inputs to DIRECTORY/TARGET/ for libFuzzer to start from, run nothing.
    #[arg(long, value_name = "DIRECTORY")]
    write_seeds: Option<PathBuf>,
}

/// One decode may not take longer: a hang is a finding.
const SLOWEST: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted =
        |target: &&Target| arguments.target.as_deref().is_none_or(|name| name == target.name);
    let targets: Vec<&Target> = TARGETS.iter().filter(wanted).collect();
    if targets.is_empty() {
        let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        bail!("no such target; there are {}", known.join(", "));
    }
    for target in targets {
        if let Some(directory) = &arguments.write_seeds {
            write_seeds(target, directory)?;
        } else if let Some(input) = &arguments.input {
            let bytes =
                std::fs::read(input).with_context(|| format!("cannot read {}", input.display()))?;
            (target.run)(&bytes);
        } else {
            drive(target, &arguments)?;
        }
    }
    Ok(())
}

fn write_seeds(target: &Target, directory: &Path) -> Result<()> {
    let directory = directory.join(target.name);
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    for (index, seed) in (target.seeds)().iter().enumerate() {
        let path = directory.join(format!("seed-{index}"));
        std::fs::write(&path, seed).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn drive(target: &Target, arguments: &Arguments) -> Result<()> {
    let seeds = (target.seeds)();
    for (index, seed) in seeds.iter().enumerate() {
        run(target, seed, &format!("seed input {index}"))?;
    }
    let iterations = (arguments.iterations / target.cost).max(1);
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut mutator = Mutator::new(seeds);
    for number in arguments.from..arguments.from + iterations {
        mutator.reseed(arguments.seed, number);
        let input = mutator.input();
        let again = format!(
            "cargo run --no-default-features --features plain --bin smoke -- --target {} --seed {} --from {number} --iterations 1",
            target.name, arguments.seed
        );
        slowest = slowest.max(run(target, &input, &again)?);
    }
    let took = start.elapsed().as_secs_f64();
    println!(
        "{:<14} {iterations:>7} inputs, seed {}, {took:.1} s, slowest {slowest:.1?}: no finding",
        target.name, arguments.seed
    );
    Ok(())
}

/// One input; `again` is how to run it once more.
fn run(target: &Target, input: &[u8], again: &str) -> Result<Duration> {
    let start = Instant::now();
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        bail!("{} panicked (see above); in fuzz/, run it again: {again}", target.name);
    }
    let took = start.elapsed();
    if took > SLOWEST {
        bail!("{} took {took:?}; in fuzz/, run it again: {again}", target.name);
    }
    Ok(took)
}
