//! Everything that needs a GPU, in one run: `cargo xtask gpu`. Each check runs in a process of its
//! own, so that a device one of them lost is whole again for the next.

mod check;
mod copies;
mod decode;
mod disturbance;
mod driver;
mod facts;
mod findings;
mod killed;
mod layouts;
mod link;
mod pages;
mod programs;
mod random;
mod rate;
mod registration;
mod report;

pub use check::GpuCheck;
pub use findings::{Findings, Outcome};
pub use killed::be_killed;
pub use report::{Checked, GpuReport};

use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// What the checks run on, and how long.
#[derive(Debug, Clone)]
pub struct GpuChecks {
    /// Which device, as in `cuda:0`.
    pub ordinal: u32,
    /// How long random transfers go on, minutes.
    pub minutes: f64,
    /// Little of everything: whether it works, not how fast. Speeds are not judged.
    pub quick: bool,
    /// What the random transfers follow from.
    pub seed: u64,
    /// Where the report goes, and what programs say that are run.
    pub results: PathBuf,
}

impl GpuChecks {
    /// Whether there is a device to check, and its name.
    ///
    /// # Errors
    /// No driver, or no such device: one line that says which.
    pub fn device(&self) -> Result<String, String> {
        facts::device_name(self.ordinal).map_err(|error| error.to_string())
    }

    /// Whether that is a GPU: the stand-in driver's figures mean nothing.
    pub(crate) fn is_stand_in(device: &str) -> bool {
        device.to_lowercase().contains("stand-in")
    }

    /// Runs one check here and now.
    pub fn run_here(&self, check: GpuCheck) -> Findings {
        check.run(self).unwrap_or_else(|error| {
            let mut findings = Findings::default();
            findings.wrong(format!("{error:#}"));
            findings
        })
    }

    /// Runs the checks one after another, each in a process that `command` makes, which is to call
    /// [`GpuChecks::run_here`] and write what was found to a file.
    ///
    /// # Errors
    /// The results cannot be written.
    pub fn run(
        &self,
        checks: &[GpuCheck],
        command: impl Fn(GpuCheck, &PathBuf) -> Command,
    ) -> Result<GpuReport> {
        let device = self.device().map_err(anyhow::Error::msg)?;
        fs::create_dir_all(&self.results)
            .with_context(|| format!("cannot make {}", self.results.display()))?;
        let mut report = GpuReport { device, ran: Vec::new() };
        for check in checks {
            eprintln!("{check} ...");
            let since = Instant::now();
            let file = self.results.join(format!("{check}.findings"));
            let findings = self.run_apart(*check, command(*check, &file), &file);
            let checked = Checked { check: *check, took: since.elapsed(), findings };
            println!("{checked}");
            report.ran.push(checked);
        }
        Ok(report)
    }

    fn run_apart(&self, check: GpuCheck, mut command: Command, file: &PathBuf) -> Findings {
        let failed = |why: String| {
            let mut findings = Findings::default();
            findings.wrong(why);
            findings
        };
        // An old one must not be taken for this one's.
        let _there_may_be_none = fs::remove_file(file);
        let status = match command.spawn().map(|child| wait(child, check.patience(self))) {
            Ok(Some(status)) => status,
            Ok(None) => return failed(format!("not over after {:?}", check.patience(self))),
            Err(error) => return failed(format!("cannot be started: {error}")),
        };
        let found = fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let _only_between_us = fs::remove_file(file);
        found.unwrap_or_else(|| failed(format!("it ended with {status} and found nothing")))
    }
}

/// How it ended; `None` if it had to be killed after `patience`.
fn wait(mut child: Child, patience: Duration) -> Option<ExitStatus> {
    let since = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if since.elapsed() > patience {
            // It is ours; what it answers to this changes nothing.
            let _killed = child.kill();
            let _reaped = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
