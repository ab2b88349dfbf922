use crate::BenchError;
use std::io::{BufRead, Write};

/// Where a process of a fleet is, as it tells the one that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// About to look up and fetch.
    Load,
    /// About to store.
    Store,
}

impl Place {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Store => "store",
        }
    }
}

/// Keeps the processes of a fleet in step: tells on standard output where this one is and waits
/// for a line on standard input before it goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step;

impl Step {
    pub(super) fn wait_at(self, place: Place) -> Result<(), BenchError> {
        let failed = || BenchError::system("keep in step");
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", place.word()).and_then(|()| stdout.flush()).map_err(failed())?;
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line).map_err(failed())? {
            0 => Err(BenchError::Interrupted),
            _ => Ok(()),
        }
    }
}
