//! Test lanes that take longer than a test may: `cargo xtask absence`, `corrupt`, `crash`, `hostile`,
//! `power-cut`, `resting` and `sim`.

use crate::command::{cargo, check, shown, target_directory};
use anyhow::{Context, Result};
use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A program of `tests`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane {
    /// Its name.
    pub(crate) program: &'static str,
    /// Whether it starts the daemon.
    pub(crate) daemon: bool,
}

/// Builds a lane's program, and the daemon for those that start it, as they are shipped, and
/// becomes the program. It parses `arguments` itself, and gets the terminal's signals without
/// anybody in between.
///
/// # Errors
/// The build failed, or the program cannot be started.
pub(crate) fn run(root: &Path, lane: Lane, arguments: &[OsString]) -> Result<Infallible> {
    let Lane { program, daemon } = lane;
    let mut build = cargo(root);
    build.args(["build", "--locked", "--release", "--package", "undercroft-tests", "--bins"]);
    if daemon {
        build.args(["--package", "undercroft-cli"]);
    }
    check(&mut build)?;
    let mut command = Command::new(target_directory(root)?.join("release").join(program));
    command.args(arguments);
    let shown = shown(&command);
    println!("$ {shown}");
    Err(command.exec()).with_context(|| format!("cannot start `{shown}`"))
}
