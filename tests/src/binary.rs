use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A user without any rights of its own.
const NOBODY: u32 = 65_534;

/// A program of this workspace, beside the test or program that runs.
///
/// # Panics
/// If it was not built: `cargo xtask test` builds it first.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a program knows its own file");
    let beside = own.parent().expect("a file lies in a folder");
    // target/debug/deps/test-0123 → target/debug, where programs lie
    let directory = if beside.ends_with("deps") { beside.parent() } else { Some(beside) };
    let program = directory.expect("tests lie two folders deep").join(name);
    assert!(
        program.exists(),
        "{} was not built: run the tests by `cargo xtask test`",
        program.display()
    );
    program
}

/// Runs `undercroft` to its end.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn run(arguments: &[&str]) -> Output {
    Command::new(program("undercroft")).args(arguments).output().expect("the binary runs")
}

/// A command that runs as an ordinary user, with nothing in its environment: as `nobody` where
/// the tests run as root, else as whoever runs them.
#[must_use]
pub fn run_as_ordinary_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}
