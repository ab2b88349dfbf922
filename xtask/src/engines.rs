//! Real engines in front of a real daemon: `cargo xtask engines`.

use crate::capi;
use crate::command::{cargo, check, is_installed, target_directory};
use crate::python::{self, Profile};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const INTERPRETER: &str = "python3.11";
const ENVIRONMENT: &str = "python/engines/environment.py";
const RUN: &str = "python/engines/run.py";
/// What the environment's script ends with if something cannot be had on this machine.
const CANNOT_BE_HAD: i32 = 75;

/// What may be missing: Python, a package registry, room on the disk.
pub(crate) type Missing = String;

/// The questions; a file of `python/engines/suites` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Two engines and thirty prompts at most: what CI runs
    Smoke,
    /// The same bits as with the engine's own prefix cache, over 200 prompts
    Equality,
    /// Many at once in a cache that is too small: digests of every loaded block
    Pressure,
    /// Daemon killed, stopped, restarted; SSD damaged; loads that fail
    Faults,
    /// A conversation through the OpenAI server with restarts in the middle
    Chat,
    /// Times to the first token: cold, warm from DRAM and SSD, beside others
    Ttft,
    /// Two engines at once, and two ranks
    Shared,
    /// LMCache with Undercroft as its L2, after LMCache's restart
    Lmcache,
    /// llama.cpp through the C ABI and a candle model: the same after they were restored
    Programs,
    /// What a miss costs inside the connector
    Overhead,
    /// The wheel in an environment of its own, and the recipe
    Wheel,
}

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Wish {
    /// A suite; may be given more than once [default: smoke]
    #[arg(long, value_enum)]
    suite: Vec<Suite>,
    /// Every suite
    #[arg(long, conflicts_with = "suite")]
    all: bool,
    /// A folder for one JSON file a suite
    #[arg(long)]
    out: Option<PathBuf>,
    /// Passed on to `python/engines/run.py`, such as `--seed 7 --only longer-3+1`
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Wish {
    /// What CI runs.
    pub(crate) fn smoke() -> Self {
        Self { suite: vec![Suite::Smoke], all: false, out: None, arguments: Vec::new() }
    }

    fn has(&self, suite: Suite) -> bool {
        self.all || self.suite.contains(&suite)
    }

    fn is_smoke(&self) -> bool {
        !self.all && self.suite.iter().all(|suite| *suite == Suite::Smoke)
    }

    /// Timed suites measure the daemon as it is shipped; a smoke takes what CI has already built.
    fn profile(&self) -> Profile {
        if self.is_smoke() { Profile::Debug } else { Profile::Release }
    }

    /// The most the environment may take to be made, and the suites after it: in CI twelve
    /// minutes in all.
    fn bounds(&self) -> (Duration, Duration) {
        if self.is_smoke() {
            (Duration::from_secs(5 * 60), Duration::from_secs(7 * 60))
        } else {
            (Duration::from_secs(30 * 60), Duration::from_secs(3 * 60 * 60))
        }
    }

    fn names(&self) -> Vec<String> {
        let name =
            |suite: &Suite| suite.to_possible_value().map(|value| value.get_name().to_owned());
        self.suite.iter().filter_map(name).collect()
    }
}

/// Runs the suites for a person.
///
/// # Errors
/// As of [`run`].
pub(crate) fn command(root: &Path, wish: &Wish) -> Result<()> {
    match run(root, wish)? {
        Ok(note) => println!("engines: {note}"),
        Err(missing) => println!("SKIPPED engines: {missing}"),
    }
    Ok(())
}

/// Runs the suites in an environment that is made first where it is not there.
///
/// # Errors
/// A build, the environment or a suite failed.
pub(crate) fn run(root: &Path, wish: &Wish) -> Result<Result<String, Missing>> {
    let environment = match environment(root, wish)? {
        Ok(environment) => environment,
        Err(missing) => return Ok(Err(missing)),
    };
    let (parent, program) = python::place(root, wish.profile())?;
    let mut command = Command::new(environment.join("venv/bin/python"));
    command.arg(root.join(RUN)).arg("--models").arg(environment.join("models"));
    command.arg("--bound").arg(wish.bounds().1.as_secs().to_string());
    if wish.all {
        command.arg("--all");
    }
    for name in wish.names() {
        command.args(["--suite", &name]);
    }
    if let Some(out) = &wish.out {
        command.arg("--out").arg(out);
    }
    if wish.has(Suite::Wheel) {
        command.arg("--wheel").arg(python::wheel(root)?);
    }
    if wish.has(Suite::Programs) {
        let library = capi::run(root, true, None)?.join("lib/libundercroft.so.1");
        command.env("UNDERCROFT_LIBRARY", library).env("UNDERCROFT_CANDLE", candle(root)?);
        command.env("UNDERCROFT_LLAMA_PYTHON", environment.join("llama/bin/python"));
    }
    command.args(&wish.arguments);
    command.env("UNDERCROFT_LMCACHE_PYTHON", environment.join("lmcache/bin/python"));
    command.env("PYTHONPATH", parent).env("UNDERCROFT_BIN", program);
    command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null()).current_dir(root);
    check(&mut command)?;
    let names = if wish.all { vec!["all".to_owned()] } else { wish.names() };
    Ok(Ok(if names.is_empty() { "smoke".to_owned() } else { names.join(", ") }))
}

/// Builds the candle model's program.
fn candle(root: &Path) -> Result<PathBuf> {
    let package = root.join("client/examples/candle");
    check(cargo(&package).args(["build", "--locked"]))?;
    Ok(target_directory(&package)?.join("debug/undercroft-candle"))
}

/// The folder of the environment.
fn environment(root: &Path, wish: &Wish) -> Result<Result<PathBuf, Missing>> {
    let interpreter = OsStr::new(INTERPRETER);
    if !is_installed(interpreter, &["-c", "import venv, ensurepip"]) {
        return Ok(Err(format!("there is no {INTERPRETER} with venv and pip")));
    }
    let mut command = Command::new(interpreter);
    command.arg("-B").arg(root.join(ENVIRONMENT));
    command.arg("--bound").arg(wish.bounds().0.as_secs().to_string());
    if wish.has(Suite::Ttft) || wish.has(Suite::Lmcache) {
        command.arg("--lmcache");
    }
    if wish.has(Suite::Programs) {
        command.arg("--llama");
    }
    println!("$ {INTERPRETER} {ENVIRONMENT}");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {INTERPRETER}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or("it said nothing").to_owned();
    match output.status.code() {
        Some(0) => Ok(Ok(PathBuf::from(last))),
        Some(CANNOT_BE_HAD) => Ok(Err(last)),
        _ => bail!("the engines' environment could not be made: {last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        wish: Wish,
    }

    fn wish(line: &[&str]) -> Wish {
        Line::parse_from(["engines"].iter().chain(line)).wish
    }

    #[test]
    fn what_ci_runs_is_what_runs_by_itself_and_within_twelve_minutes() {
        for wish in [Wish::smoke(), wish(&[])] {
            assert!(wish.is_smoke());
            assert_eq!(wish.profile(), Profile::Debug);
            let (environment, suites) = wish.bounds();
            assert!(environment + suites <= Duration::from_secs(12 * 60));
        }
    }

    #[test]
    fn suites_are_passed_on_by_the_names_that_python_knows() {
        let some = wish(&["--suite", "equality", "--suite", "chat"]);
        assert_eq!(some.names(), ["equality", "chat"]);
        assert_eq!(some.profile(), Profile::Release);
        assert!(!wish(&["--all"]).is_smoke());
    }
}
