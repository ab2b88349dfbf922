//! The Python package: `cargo xtask python`.

use crate::command::{cargo, check, is_installed, target_directory};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The oldest Python that the module is built for.
const OLDEST: &str = "3.11";
/// The version of what makes the wheel.
const MATURIN: &str = "maturin==1.16.0";
/// What Python finds the module by, beside the package's own files.
const MODULE: &str = "_native.abi3.so";

/// What is built, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds the module and the program, and puts the module into the package's folder: with that
/// folder's parent on `PYTHONPATH` it can be imported. Returns the parent and the program.
///
/// # Errors
/// The build failed, or the module could not be put there.
pub(crate) fn place(root: &Path, profile: Profile) -> Result<(PathBuf, PathBuf)> {
    let mut build = cargo(root);
    build.args(["build", "--locked", "-p", "undercroft-python", "-p", "undercroft-cli"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    check(&mut build)?;
    let built = target_directory(root)?.join(profile.directory());
    let parent = root.join("python");
    let module = parent.join("undercroft").join(MODULE);
    // Written aside and renamed: a process that has the old one mapped keeps it.
    let aside = module.with_extension("new");
    fs::copy(built.join("lib_native.so"), &aside)
        .and_then(|_| fs::rename(&aside, &module))
        .with_context(|| format!("cannot put the module at {}", module.display()))?;
    Ok((parent, built.join("undercroft")))
}

/// Whether there is a Python that is new enough, and if not, why.
///
/// # Errors
/// Never a real one: the outer result is for steps that are made of several.
pub(crate) fn interpreter() -> Result<(), String> {
    let new_enough =
        format!("import sys; sys.exit(sys.version_info < ({}))", OLDEST.replace('.', ", "));
    if is_installed(OsStr::new("python3"), &["-c", &new_enough]) {
        return Ok(());
    }
    Err(format!("there is no python3 of version {OLDEST} or later"))
}

/// Runs the package's tests and says how many there were.
///
/// # Errors
/// The build or a test failed.
pub(crate) fn test(root: &Path) -> Result<Result<String, String>> {
    if let Err(missing) = interpreter() {
        return Ok(Err(missing));
    }
    let (parent, program) = place(root, Profile::Debug)?;
    let mut command = Command::new("python3");
    command
        .args(["-W", "error::ResourceWarning", "-m", "unittest", "discover", "-s", "python/tests"])
        .args(["-t", "python/tests", "--verbose"])
        .current_dir(root)
        .env("PYTHONPATH", parent)
        .env("UNDERCROFT_BIN", program)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    println!("$ python3 -m unittest discover -s python/tests");
    let output = command.output().context("cannot start python3")?;
    let text = String::from_utf8_lossy(&output.stderr);
    print!("{text}");
    let note = summary(&text);
    if !output.status.success() {
        bail!("the tests of the Python package failed: {note}");
    }
    if !text.contains("Ran ") || text.contains("Ran 0 tests") {
        bail!("no test of the Python package was found");
    }
    Ok(Ok(note))
}

/// What unittest said last: how many tests ran, and which could not.
fn summary(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.iter().filter(|line| line.contains("... skipped")).count();
    let ran = lines.iter().rev().find(|line| line.starts_with("Ran ")).copied();
    let end = lines.iter().rev().find(|line| !line.trim().is_empty()).copied();
    let (ran, end) = (ran.unwrap_or("nothing ran"), end.unwrap_or_default());
    format!("{ran}: {end}; {skipped} could not run")
}

/// Builds the wheel: the module, the connectors and the `undercroft` program. Returns its path.
///
/// # Errors
/// A build failed, or pip could not fetch maturin.
pub(crate) fn wheel(root: &Path) -> Result<PathBuf> {
    interpreter().map_err(|missing| anyhow::anyhow!(missing))?;
    let target = target_directory(root)?;
    let (_, program) = place(root, Profile::Release)?;
    let scripts = root.join("python/data/scripts");
    fs::create_dir_all(&scripts).with_context(|| format!("cannot make {}", scripts.display()))?;
    let script = scripts.join("undercroft");
    check(Command::new("strip").arg("-o").arg(&script).arg(&program))?;
    let venv = target.join("maturin");
    let python = venv.join("bin/python");
    if !is_installed(python.as_os_str(), &["-m", "maturin", "--version"]) {
        check(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        check(Command::new(&python).args(["-m", "pip", "install", "--quiet", MATURIN]))?;
    }
    let wheels = target.join("wheels");
    let _none_before = fs::remove_dir_all(&wheels);
    let mut build = Command::new(&python);
    build.args(["-m", "maturin", "build", "--release", "--locked", "--strip"]);
    build.args(["--compatibility", "linux", "--manifest-path"]);
    build.arg(root.join("python/Cargo.toml")).arg("--out").arg(&wheels);
    build.current_dir(root).env("CARGO_TARGET_DIR", &target);
    check(&mut build)?;
    let found = fs::read_dir(&wheels)?.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = found.into_iter().find(|path| path.extension() == Some(OsStr::new("whl")));
    wheel.with_context(|| format!("maturin left no wheel in {}", wheels.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_how_many_tests_ran_and_how_many_could_not() {
        let text = "test_a (x) ... ok\ntest_b (x) ... skipped 'no torch'\n\n---\n\
                    Ran 2 tests in 0.1s\n\nOK (skipped=1)\n";
        assert_eq!(summary(text), "Ran 2 tests in 0.1s: OK (skipped=1); 1 could not run");
        assert_eq!(summary(""), "nothing ran: ; 0 could not run");
    }
}
