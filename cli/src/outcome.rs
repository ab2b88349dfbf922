//! Exit codes and the one line that explains them.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// A command that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit code 0.
    Good,
    /// Exit code 1: what it measured or asked is not as it should be.
    Bad,
}

impl Outcome {
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Good => ExitCode::SUCCESS,
            Self::Bad => ExitCode::from(1),
        }
    }
}

/// A command that did not run to its end.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    line: String,
}

impl Failure {
    /// It could not start: arguments, configuration or environment.
    pub(crate) fn start(error: impl Display) -> Self {
        Self { code: 2, line: error.to_string() }
    }

    /// It started and failed.
    pub(crate) fn run(error: impl Display) -> Self {
        Self { code: 1, line: error.to_string() }
    }

    pub(crate) fn report(self) -> ExitCode {
        eprintln!("undercroft: {}", self.line);
        ExitCode::from(self.code)
    }
}

/// Writes `text` to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<Outcome, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::run(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(Outcome::Good),
    }
}
