use std::path::PathBuf;
use thiserror::Error;
use undercroft_client::{ConnectError, OpenError};
use undercroft_gpu_shim::DeviceError;

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
    /// The benchmark's own daemon did not start.
    #[error("the daemon did not start: {problem}")]
    DaemonStart {
        /// Its last words, or what else happened.
        problem: String,
    },
    /// No daemon has answered for long.
    #[error("no daemon has answered for {seconds} s: {problem}")]
    DaemonGone {
        /// How long.
        seconds: u64,
        /// Its last words, if they are known.
        problem: String,
    },
    /// No connection to the daemon.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The daemon would not open the space.
    #[error(transparent)]
    Space(#[from] OpenError),
    /// The host-memory device failed.
    #[error("the host device: {0}")]
    Device(#[from] DeviceError),
    /// A measurement could not be made.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The daemon did not do what a measurement needs.
    #[error("cannot measure {row}: {problem}")]
    Measure {
        /// Which row.
        row: &'static str,
        /// What happened.
        problem: String,
    },
    /// The daemon does not record for us.
    #[error("{problem}")]
    Record {
        /// What it said.
        problem: String,
    },
    /// Ctrl-C, or a request to terminate. What was made is removed.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    /// Whether it could not start (exit code 2: arguments or environment), rather than that the
    /// run failed (exit code 1).
    #[must_use]
    pub fn is_start(&self) -> bool {
        !matches!(
            self,
            Self::DaemonGone { .. }
                | Self::Device(_)
                | Self::Measure { .. }
                | Self::Record { .. }
                | Self::System { .. }
                | Self::Interrupted
        )
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}
