//! Reads of a killed daemon that land when another one has the arena, in namespaces of its own. A test
//! runs it.

use anyhow::{Result, ensure};
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use undercroft_tests::{late_reads, missing, run_contained, skip, stop_with_input};

const CONTAINED: &str = "--contained";

fn main() -> ExitCode {
    let contained = std::env::args_os().nth(1).is_some_and(|argument| argument == CONTAINED);
    let ended = if contained { run() } else { contain() };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("late-reads: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn contain() -> Result<()> {
    if let Some(reason) = missing() {
        skip("late_reads", &reason);
        return Ok(());
    }
    let own: [OsString; 1] = [CONTAINED.into()];
    let status = run_contained(&std::env::current_exe()?, &own, &|| false)?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn run() -> Result<()> {
    ensure!(std::process::id() == 1, "{CONTAINED} is for this program's own use");
    let stopped = stop_with_input();
    std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // Whoever wanted to know is gone; the namespaces go with this process.
        std::process::exit(1);
    });
    let report = late_reads()?;
    println!("{report}");
    report.check()
}
