//! What CI runs: `cargo xtask ci`.

use crate::asan::Sanitized;
use crate::command::{cargo, check, is_installed, target_directory};
use crate::steps::{self, Ended, Outcome, Step};
use crate::{asan, engines, fuzz, header, ptx, python, suite, tidy};
use anyhow::{Context, Result, bail};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

const UNIT: &str = "undercroft.service";
/// A workspace of its own, so that nobody else pays for candle.
const CANDLE: &str = "client/examples/candle";
/// The most exposure `systemd-analyze security` may report, in tenths.
const EXPOSURE_TENTHS: u32 = 20;

/// Runs every step, prints the summary and, last, what the tests said.
///
/// # Errors
/// The first step that failed.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tests = RefCell::new(None);
    let summary = steps::run(vec![
        Step::new("fmt", || fmt(root)),
        Step::new("tidy", || passed(tidy::run(root))),
        Step::new("clippy", || clippy(root)),
        Step::new("candle", || candle(root)),
        Step::new("test", || {
            let tally = suite::run(root, &[])?;
            let text = tally.to_string();
            let note = text.lines().last().unwrap_or_default().to_owned();
            tests.replace(Some(text));
            Ok(Outcome::Passed(note))
        }),
        Step::new("python", || {
            Ok(match python::test(root)? {
                Ok(note) => Outcome::Passed(note),
                Err(missing) => Outcome::Skipped(missing),
            })
        }),
        Step::new("engines", || {
            Ok(match engines::run(root, &engines::Wish::smoke())? {
                Ok(note) => Outcome::Passed(note),
                Err(missing) => Outcome::Skipped(missing),
            })
        }),
        Step::new("doc", || doc(root)),
        Step::new("fuzz-smoke", || {
            let drivers = fuzz::run(root, &fuzz::Budget::CI)?;
            Ok(Outcome::Passed(drivers.to_string()))
        }),
        Step::new("asan", || {
            Ok(match asan::run(root)? {
                Sanitized::Passed(note) => Outcome::Passed(note),
                Sanitized::Missing(missing) => Outcome::Skipped(missing),
            })
        }),
        Step::new("ptx", || {
            Ok(match ptx::run(root, true)? {
                Ok(()) => Outcome::Passed(String::new()),
                Err(missing) => Outcome::Skipped(missing),
            })
        }),
        Step::new("header", || passed(header::run(root, true))),
        Step::new("deny", || deny(root)),
        Step::new("systemd", || systemd(root)),
    ]);
    println!("\n{summary}");
    summary.into_result()?;
    if let Some(tests) = tests.into_inner() {
        println!("{tests}");
    }
    Ok(())
}

fn passed(result: Result<()>) -> Ended {
    result.map(|()| Outcome::Passed(String::new()))
}

/// All three workspaces: `--all` knows its own only.
fn fmt(root: &Path) -> Ended {
    check(cargo(root).args(["fmt", "--all", "--check"]))?;
    check(cargo(&root.join(CANDLE)).args(["fmt", "--check"]))?;
    passed(check(cargo(&root.join("fuzz")).args(["fmt", "--check"])))
}

fn clippy(root: &Path) -> Ended {
    let arguments = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    passed(check(cargo(root).args(arguments)))
}

/// The example that has dependencies of its own: it implements `Device`, which may change under it.
fn candle(root: &Path) -> Ended {
    let example = root.join(CANDLE);
    let fetched = cargo(&example).args(["fetch", "--locked"]).output();
    let fetched = fetched.context("cannot start `cargo fetch`")?;
    let said = String::from_utf8_lossy(&fetched.stderr);
    if !fetched.status.success() && said.contains("--locked") {
        bail!("{CANDLE}/Cargo.lock is not what its dependencies want: {}", said.trim());
    }
    if !fetched.status.success() {
        return Ok(Outcome::Skipped("what it depends on cannot be had".to_owned()));
    }
    let mut command = cargo(&example);
    command.args(["check", "--locked", "--target-dir"]).arg(target_directory(root)?);
    passed(check(&mut command))
}

fn doc(root: &Path) -> Ended {
    let mut command = cargo(root);
    command.args(["doc", "--locked", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    passed(check(&mut command))
}

/// Licences, advisories and sources, where cargo-deny is installed. Advisories are left out: they
/// change without the change under test, and need the network.
fn deny(root: &Path) -> Ended {
    let installed = cargo(root)
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !installed {
        return Ok(Outcome::Skipped("cargo-deny is not installed".to_owned()));
    }
    let checks = ["deny", "--workspace", "check", "bans", "licenses", "sources"];
    passed(check(cargo(root).args(checks)))
}

/// The unit, where systemd-analyze is installed: does it hold together, and how exposed is it?
fn systemd(root: &Path) -> Ended {
    let analyze = OsStr::new("systemd-analyze");
    if !is_installed(analyze, &["--version"]) {
        return Ok(Outcome::Skipped("systemd-analyze is not installed".to_owned()));
    }
    // `verify` wants the program to exist, and on this machine it is installed nowhere.
    let unit = root.join("systemd").join(UNIT);
    let text = std::fs::read_to_string(&unit)
        .with_context(|| format!("cannot read {}", unit.display()))?;
    let directory = target_directory(root)?.join("systemd");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let copy = directory.join(UNIT);
    std::fs::write(&copy, text.replace("ExecStart=/usr/bin/undercroft", "ExecStart=/bin/true"))
        .with_context(|| format!("cannot write {}", copy.display()))?;
    check(Command::new(analyze).args(["verify", "--man=no"]).arg(&copy))?;
    let threshold = format!("--threshold={EXPOSURE_TENTHS}");
    check(Command::new(analyze).args(["security", "--offline=true", &threshold]).arg(&copy))?;
    passed(Ok(()))
}
