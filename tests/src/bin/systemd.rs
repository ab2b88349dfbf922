//! `cargo xtask systemd`: the unit files and the daemon under a real systemd.

use anyhow::{Result, ensure};
use clap::Parser;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use undercroft_benches::Interrupt;
use undercroft_tests::{
    ControlGroup, be_engines, be_operator, boot, program, run_contained, skip, stop_with_input,
    unbootable,
};

/// The daemon under a real systemd
///
/// systemd boots as the first process of namespaces of its own, with our unit files as they are. While
/// engines store, load and hold leases, the daemon is restarted, killed, stopped until the watchdog
/// finds out, and upgraded; then it is stopped, and somebody connects. Takes root, and says so where
/// something is missing. Nothing of it is left afterwards, however it ends.
#[derive(Debug, Parser)]
#[command(name = "systemd", bin_name = "cargo xtask systemd", version)]
#[command(
    after_help = "Exit codes: 0 all is well or it could not run, 1 a bound is broken or the run \
                  failed, 2 wrong usage."
)]
struct Arguments {
    /// This process has its own namespaces already, and this control group is for systemd
    #[arg(long, hide = true, value_name = "GROUP")]
    contained: Option<PathBuf>,
    /// systemd has started this process, as root
    #[arg(long, hide = true)]
    operator: bool,
    /// The operator has started this process, as an ordinary user
    #[arg(long, hide = true)]
    engines: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.contained {
        _ if arguments.operator => be_operator(),
        _ if arguments.engines => be_engines(),
        Some(group) => host(group),
        None => contain(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where there is no terminal all words go one way, and stay in order.
            println!("systemd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program again, in namespaces of its own.
fn contain() -> Result<()> {
    if let Some(reason) = unbootable() {
        skip("systemd", &reason);
        return Ok(());
    }
    let interrupt = Interrupt::watch()?;
    // Removed when all that is in it has gone with the namespaces.
    let group = ControlGroup::make()?;
    let own: [OsString; 2] = ["--contained".into(), group.path().into()];
    let status = run_contained(&std::env::current_exe()?, &own, &|| interrupt.is_set())?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn host(group: &Path) -> Result<()> {
    ensure!(std::process::id() == 1, "--contained is for this program's own use");
    let stopped = stop_with_input();
    let go_on = || {
        ensure!(!stopped.load(Ordering::Relaxed), "told to stop");
        Ok(())
    };
    // However the one ends that made it, this one lives a moment longer.
    let group = ControlGroup::shared(group.to_owned());
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    match boot(group.path(), &units, &program("undercroft"), &go_on)? {
        Err(reason) => skip("systemd", &reason),
        Ok(status) => ensure!(status.success(), "it ended with {status}"),
    }
    Ok(())
}
