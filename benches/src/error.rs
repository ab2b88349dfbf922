use std::path::PathBuf;
use thiserror::Error;

/// Why a benchmark could not be run or finished.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A file of the benchmark could not be opened, read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was tried: `open`, `read`, `write`, `create`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line of a trace is not a request.
    #[error("{path}:{line}: {problem}", path = path.display())]
    TraceLine {
        /// The trace.
        path: PathBuf,
        /// One-based line of the decompressed text.
        line: u64,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A trace is unusable as a whole.
    #[error("{path}: {problem}", path = path.display())]
    Trace {
        /// The trace.
        path: PathBuf,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// An option's value cannot be used.
    #[error("{option}: {problem}")]
    Option {
        /// The flag, as it is typed.
        option: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

impl BenchError {
    /// Whether the caller asked for something impossible (exit code 2) rather than that the run
    /// failed (exit code 1).
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Option { .. } | Self::Trace { .. } | Self::TraceLine { .. } | Self::File { .. }
        )
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}
