use std::io;
use std::path::PathBuf;
use thiserror::Error;
use undercroft_arena::ArenaError;

/// Why a page log could not be opened. Each text says what, where and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A configured value is out of range.
    #[error("ssd log: {field} is {found}, allowed {allowed}")]
    Config {
        /// Which value.
        field: &'static str,
        /// What it is.
        found: u64,
        /// The allowed range, for people.
        allowed: &'static str,
    },
    /// The file could not be opened or created.
    #[error("cannot open or create the ssd log {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path names something that is not a regular file.
    #[error("{path} is not a regular file: name a file for the ssd log, it will be created")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is somebody else's.
    #[error(
        "the ssd log {path} belongs to user {owner}, who could read or forge the pages in it; \
         nothing was changed: choose another path, or remove the file"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner: neither the process's user nor root.
        owner: u32,
    },
    /// Another process has the log open, or died so recently that its writes may still land.
    #[error(
        "the ssd log {path} is in use by another process: stop it or choose another path \
         (a process killed a moment ago may need a few seconds more)"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is not empty and not a page log.
    #[error(
        "{path} exists and is not an undercroft page log; nothing was changed: choose another \
         path, or delete the file if it is not needed"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Both superblocks are damaged.
    #[error(
        "both superblocks of the ssd log {path} are damaged, so its pages cannot be found; \
         nothing was changed: delete the file to start with an empty log"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Another version of the format.
    #[error(
        "the ssd log {path} has format version {found}, this build reads version {supported}; \
         nothing was changed: use the build that wrote it, or delete the file to start empty"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version on disk.
        found: u32,
        /// The version of this build.
        supported: u32,
    },
    /// The file system has no room for the whole file.
    #[error(
        "the ssd log {path} needs {needed} bytes but its file system has {available} available: \
         free some space or configure a smaller capacity"
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes the whole file takes beyond what it has already.
        needed: u64,
        /// Bytes available to this user.
        available: u64,
    },
    /// Reading or writing the log's head failed.
    #[error("cannot {what} of the ssd log {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// io_uring was asked for by name and refused.
    #[error(
        "io_uring is refused on this machine: {source}; configure the engine as auto or threads"
    )]
    Engine {
        /// Why.
        source: io::Error,
    },
    /// The log is encrypted with another key.
    #[error(
        "the ssd log {path} is encrypted with another store key; nothing was changed: give the key \
         it was made with, or delete the file to start with an empty log"
    )]
    OtherKey {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness, so nothing can be encrypted.
    #[error("the system gives no random bytes for the ssd log: {source}")]
    Entropy {
        /// Why.
        source: io::Error,
    },
    /// No memory for the log's own buffers.
    #[error("no memory for the buffers of the ssd log: {0}")]
    Memory(#[from] ArenaError),
    /// The log's thread could not be started.
    #[error("cannot start the thread of the ssd log: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
}
