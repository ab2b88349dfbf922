//! Every fuzz target, built and run for a moment: `cargo xtask fuzz-smoke`.

use crate::command::{cargo, check, host, is_installed, target_directory};
use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How much to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Inputs per target for the plain driver.
    pub(crate) iterations: u64,
    /// Seconds per target for libFuzzer.
    pub(crate) seconds: u64,
    /// Seed of both.
    pub(crate) seed: u64,
}

impl Budget {
    /// What CI spends.
    pub(crate) const CI: Self = Self { iterations: 100_000, seconds: 4, seed: 1 };
}

/// Which drivers ran.
#[derive(Debug)]
pub(crate) struct Drivers {
    /// Names of the targets.
    targets: Vec<String>,
    /// Why libFuzzer did not run, if it did not.
    without_libfuzzer: Option<String>,
}

impl fmt::Display for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} targets ({}): plain driver", self.targets.len(), self.targets.join(", "))?;
        match &self.without_libfuzzer {
            None => write!(f, " and libFuzzer without sanitizers"),
            Some(why) => write!(f, "; SKIPPED libFuzzer: {why}"),
        }
    }
}

/// Coverage instrumentation as `cargo fuzz` asks for it, with flags that a stable compiler takes.
/// What is missing beside it is the address sanitizer, which is nightly's.
const INSTRUMENTATION: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// The longest input, bytes: the plain driver's limit too.
const MAX_INPUT: u32 = 16 << 10;

/// Runs the plain driver, then libFuzzer where it can be built.
///
/// # Errors
/// A target does not build or has a finding.
pub(crate) fn run(root: &Path, budget: &Budget) -> Result<Drivers> {
    let fuzz = root.join("fuzz");
    let targets = targets(&fuzz)?;
    let shared = target_directory(root)?;
    let smoke = |arguments: &[&str]| {
        let mut command = cargo(&fuzz);
        // The workspace's own directory: most dependencies are already built there.
        command.env("CARGO_TARGET_DIR", &shared);
        command.args(["run", "--quiet", "--locked", "--no-default-features"]);
        command.args(["--features", "plain", "--bin", "smoke", "--"]).args(arguments);
        check(&mut command)
    };
    let (iterations, seed) = (budget.iterations.to_string(), budget.seed.to_string());
    smoke(&["--iterations", &iterations, "--seed", &seed])?;

    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    if !is_installed(&compiler, &["--version"]) {
        let why = format!("no C++ compiler ({})", compiler.to_string_lossy());
        return Ok(Drivers { targets, without_libfuzzer: Some(why) });
    }
    let built = shared.join("libfuzzer");
    let corpus = built.join("seeds");
    smoke(&["--write-seeds", &corpus.to_string_lossy()])?;
    let host = host()?;
    build(&fuzz, &built, &host)?;
    for target in &targets {
        let program = built.join(&host).join("smoke").join(target);
        libfuzzer(&program, &corpus.join(target), budget)?;
    }
    Ok(Drivers { targets, without_libfuzzer: None })
}

/// The targets, by the files they are.
fn targets(fuzz: &Path) -> Result<Vec<String>> {
    let directory = fuzz.join("fuzz_targets");
    let entries = std::fs::read_dir(&directory)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        if path.extension() == Some(OsStr::new("rs")) {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    if names.is_empty() {
        bail!("no fuzz targets in {}", directory.display());
    }
    Ok(names)
}

fn build(fuzz: &Path, target_directory: &Path, host: &str) -> Result<()> {
    let mut command = cargo(fuzz);
    command.env("CARGO_TARGET_DIR", target_directory);
    command.env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    command.args(["build", "--locked", "--profile", "smoke", "--bins", "--target", host]);
    check(&mut command)
}

fn libfuzzer(program: &Path, corpus: &PathBuf, budget: &Budget) -> Result<()> {
    let option = |name: &str, value: u64| OsString::from(format!("-{name}={value}"));
    let mut artifacts = OsString::from("-artifact_prefix=");
    artifacts.push(program.with_extension("finding-"));
    check(
        Command::new(program)
            .arg(option("max_total_time", budget.seconds))
            .arg(option("seed", budget.seed))
            .arg(option("max_len", MAX_INPUT.into()))
            .arg(option("timeout", 10))
            .arg(option("rss_limit_mb", 2_048))
            .arg(option("verbosity", 0))
            .arg(option("print_final_stats", 1))
            .arg(artifacts)
            .arg(corpus),
    )
}
