use super::Place;
use crate::{TestDaemon, program};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::process::{Child, ExitStatus, Stdio};

/// A client in a process of its own, which does what its first argument says
/// (`tests/src/bin/hostile_client`). Ended when dropped.
#[derive(Debug)]
pub struct Accomplice(Child);

impl Accomplice {
    /// Starts it; the daemon's socket follows on its first argument.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn start(arguments: &[&str], daemon: &TestDaemon) -> Self {
        Self::start_in(Place::Beside, arguments, daemon)
    }

    /// As [`Accomplice::start`], in a place of its own.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn start_in(place: Place, arguments: &[&str], daemon: &TestDaemon) -> Self {
        let mut command = place.command(&program("hostile-client"));
        command.arg(arguments[0]).arg(daemon.socket()).args(&arguments[1..]);
        Self(command.stdout(Stdio::piped()).spawn().expect("the client runs"))
    }

    /// The next line it writes; empty at its end.
    ///
    /// # Panics
    /// If it writes no text.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let mut byte = BufReader::with_capacity(1, self.0.stdout.as_mut().expect("it is piped"));
        byte.read_line(&mut line).expect("it writes lines");
        line.trim_end().to_owned()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it is stopped, as the kernel says.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        stat.is_ok_and(|stat| stat.contains(") T "))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is not there.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("our child");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it is not ours.
    pub fn wait(&mut self) -> ExitStatus {
        self.0.wait().expect("our child")
    }

    /// `kill -9`, and waits until it is reaped.
    ///
    /// # Panics
    /// If it is not ours.
    pub fn kill(&mut self) {
        self.0.kill().expect("our child");
        let _killed = self.wait();
    }
}

impl Drop for Accomplice {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}
