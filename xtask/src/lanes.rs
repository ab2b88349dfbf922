//! Test lanes that take longer than a test may: `cargo xtask crash`, `cargo xtask power-cut`.

use crate::command::{cargo, check, shown, target_directory};
use anyhow::{Context, Result};
use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Builds the daemon and the programs of `tests` as they are shipped, and becomes `program`. It
/// parses `arguments` itself, and gets the terminal's signals without anybody in between.
///
/// # Errors
/// The build failed, or the program cannot be started.
pub(crate) fn run(root: &Path, program: &str, arguments: &[OsString]) -> Result<Infallible> {
    let packages = ["--package", "undercroft-cli", "--package", "undercroft-tests"];
    check(cargo(root).args(["build", "--locked", "--release", "--bins"]).args(packages))?;
    let mut command = Command::new(target_directory(root)?.join("release").join(program));
    command.args(arguments);
    let shown = shown(&command);
    println!("$ {shown}");
    Err(command.exec()).with_context(|| format!("cannot start `{shown}`"))
}
