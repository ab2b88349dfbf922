use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Command;
use std::time::{Duration, Instant};

const SERVICE: &str = "undercroft.service";
/// The watchdog takes ten seconds alone.
const PATIENCE: Duration = Duration::from_secs(60);
const NAP: Duration = Duration::from_millis(2);

/// The installed unit, as `systemctl` sees it.
#[derive(Debug)]
pub(super) struct Unit;

impl Unit {
    /// The daemon's process.
    pub(super) fn main_pid(&self) -> Result<Pid> {
        let pid = self.property("MainPID")?.parse().ok().and_then(Pid::from_raw);
        pid.context("the daemon does not run")
    }

    /// The program it runs, by the name it was started by: its file is in a mount of another namespace.
    pub(super) fn program(&self) -> Result<String> {
        let pid = self.main_pid()?.as_raw_nonzero();
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        Ok(words.split('\0').next().unwrap_or_default().to_owned())
    }

    pub(super) fn property(&self, name: &str) -> Result<String> {
        let output = Command::new("systemctl")
            .args(["show", "--property", name, "--value", SERVICE])
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Sends the daemon a signal and waits until systemd has started the next one by itself.
    pub(super) fn replace_by(&self, signal: Signal) -> Result<()> {
        let (before, restarts) = (self.main_pid()?, self.property("NRestarts")?);
        kill_process(before, signal)?;
        let since = Instant::now();
        let is_next = || self.main_pid().is_ok_and(|pid| pid != before);
        while self.property("ActiveState")? != "active" || !is_next() {
            ensure!(since.elapsed() < PATIENCE, "no new daemon within {PATIENCE:?}");
            std::thread::sleep(NAP);
        }
        ensure!(self.property("NRestarts")? != restarts, "it was not systemd that restarted it");
        Ok(())
    }
}

/// `systemctl` with these arguments; it waits until the job is done.
pub(super) fn systemctl(arguments: &[&str]) -> Result<()> {
    super::root::run(Command::new("systemctl").args(arguments))
}
