use crate::MissReason;
use crate::options::MAX_SOCKET_PATH_BYTES;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;
use undercroft_gpu_shim::cuda::CudaError;
use undercroft_wire::{RefusedReason, SpaceError};

/// Why there is no connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The socket's path has no length a socket can have.
    #[error(
        "the socket path {path:?} has {bytes} bytes, allowed 1..={MAX_SOCKET_PATH_BYTES}; \
         use a shorter directory"
    )]
    Path {
        /// The path.
        path: PathBuf,
        /// Its length, bytes.
        bytes: usize,
    },
    /// There is no socket, or nobody listens on it.
    #[error(
        "no daemon listens on {path:?} ({source}); start one with `undercroft serve`, or give \
         the path of its socket"
    )]
    Absent {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket is there but not for this user.
    #[error(
        "not allowed to connect to {path:?} ({source}); the user must be in the group that owns \
         the socket"
    )]
    Denied {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else than a daemon's user serves the socket.
    #[error(
        "the socket {path:?} is served by user {found}, allowed: {allowed}; set the daemon's user \
         if that one is right"
    )]
    Stranger {
        /// The path.
        path: PathBuf,
        /// The user who serves it.
        found: u32,
        /// Who may, for people.
        allowed: String,
    },
    /// A system call failed.
    #[error("cannot {doing} for {path:?}: {source}")]
    System {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Connected, but the daemon did not greet in time.
    #[error(
        "the daemon on {path:?} did not greet within {waited:?}; it is overloaded, stopped or \
         not a daemon of ours: see `undercroft status`"
    )]
    Silent {
        /// The path.
        path: PathBuf,
        /// How long it had.
        waited: Duration,
    },
    /// The driver of the engine's GPU failed.
    #[error("the GPU: {0}")]
    Gpu(#[from] CudaError),
    /// The daemon turned the session away.
    #[error("the daemon on {path:?} refused the session ({reason:?}): {detail}")]
    Refused {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: RefusedReason,
        /// The daemon's words.
        detail: String,
    },
    /// The daemon said something it may not say, or closed the connection, or its arena could not
    /// be mapped.
    #[error("the connection to {path:?} ended during the greeting: {reason}")]
    Closed {
        /// The path.
        path: PathBuf,
        /// What ended it.
        reason: String,
    },
}

/// Why a space cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The identity is not acceptable.
    #[error("the space is not acceptable: {0}")]
    Space(#[from] SpaceError),
    /// The daemon refused it.
    #[error("the daemon refused to open the space ({reason:?}): {detail}")]
    Refused {
        /// Why.
        reason: RefusedReason,
        /// The daemon's words.
        detail: String,
    },
    /// The daemon could not be asked, or did not answer in time.
    #[error("the space was not opened: {0}")]
    Unanswered(MissReason),
}

/// Why pages were not purged, or nobody knows whether they were.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PurgeError {
    /// The daemon refused it.
    #[error("the daemon refused to purge ({reason:?}): {detail}")]
    Refused {
        /// Why.
        reason: RefusedReason,
        /// The daemon's words.
        detail: String,
    },
    /// The daemon could not be asked, or did not answer in time.
    #[error("the purge was not answered: {0}")]
    Unanswered(MissReason),
}

/// Why lookups were not explained.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The daemon refused it.
    #[error("the daemon refused to explain ({reason:?}): {detail}")]
    Refused {
        /// Why.
        reason: RefusedReason,
        /// The daemon's words.
        detail: String,
    },
    /// The daemon could not be asked, or did not answer in time.
    #[error("the daemon did not explain: {0}")]
    Unanswered(MissReason),
}

/// Why nothing was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The daemon refused it.
    #[error("the daemon refused to record ({reason:?}): {detail}")]
    Refused {
        /// Why.
        reason: RefusedReason,
        /// The daemon's words.
        detail: String,
    },
    /// The daemon could not be asked, or did not answer in time.
    #[error("the recording was not answered: {0}")]
    Unanswered(MissReason),
}
