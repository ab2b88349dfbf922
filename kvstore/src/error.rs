use crate::config::ConfigError;
use std::path::PathBuf;
use thiserror::Error;
use undercroft_arena::{ArenaError, StateError};
use undercroft_ssd_tier::{KeyError, OpenError};

/// Why the daemon could not start. Each is one line: what, where, what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another daemon serves the socket.
    #[error(
        "socket {}: another daemon is serving it; stop that one or set server.socket to another path",
        path.display()
    )]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon that asked to take over did not take everything.
    #[error("the daemon that asked to take over is gone: {source}; start one again")]
    HandOver {
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket cannot be made.
    #[error("socket {}: cannot {doing}: {source}; set server.socket to a path you may write to", path.display())]
    Socket {
        /// The socket or its directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket's directory belongs to somebody else.
    #[error(
        "socket directory {}: it belongs to user {owner}, not to user {own}; set server.socket to a path of your own",
        path.display()
    )]
    SocketDirectory {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The daemon's user.
        own: u32,
    },
    /// Everybody may write to the socket's directory.
    #[error(
        "socket directory {}: every user may replace files in it; take that right away (chmod o-w) or set server.socket to a path of your own",
        path.display()
    )]
    SocketDirectoryOpen {
        /// The directory.
        path: PathBuf,
    },
    /// The store's directory, or the page log in it, is in somebody else's hands.
    #[error(
        "store {}: {who} could read or forge the pages kept there; set ssd.path to a directory of your own",
        path.display()
    )]
    StoreForeign {
        /// The directory or file.
        path: PathBuf,
        /// Who.
        who: String,
    },
    /// The store's directory cannot be made or written.
    #[error("store directory {}: cannot {doing}: {source}; set ssd.path to a directory you may write to", path.display())]
    StateDirectory {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store cannot be opened.
    #[error("{0} (config {keys})", keys = keys_of(.0))]
    Store(#[from] OpenError),
    /// The store key cannot be had.
    #[error("{0} (config key ssd.key_file)")]
    Key(#[from] KeyError),
    /// The key file that was named is not there.
    #[error(
        "there is no store key {}: a key file that is named is never made; make it (head -c 32 /dev/urandom, mode 600) or leave ssd.key_file out (config key ssd.key_file)",
        path.display()
    )]
    KeyMissing {
        /// The file.
        path: PathBuf,
    },
    /// The arena must lie on private mounts, and there are none.
    #[error(
        "the arena is to lie on private mounts: {source}; have the service manager hand them over (undercroft mounts) or set arena.backing to \"auto\" or \"memfd\""
    )]
    Mounts {
        /// What failed.
        source: ArenaError,
    },
    /// Nobody would keep what was made.
    #[error(
        "there is no service manager to keep the mounts: this is for a unit's ExecStartPre= (see systemd/undercroft.service)"
    )]
    NoManager,
    /// The state file cannot be made.
    #[error("the state file beside the arena: {source}")]
    State {
        /// What failed.
        source: StateError,
    },
    /// The arena cannot be had.
    #[error(
        "arena of {bytes} bytes for domain {domain}: {source}; set arena.size or the domain's dram lower"
    )]
    Arena {
        /// Whose.
        domain: String,
        /// Bytes asked for.
        bytes: u64,
        /// What failed.
        source: ArenaError,
    },
    /// The daemon that is to be taken over from does not hand anything over.
    #[error(
        "socket {}: cannot take over from the daemon there: {source}; without --takeover a new one is started",
        path.display()
    )]
    TakeOver {
        /// Its socket.
        path: PathBuf,
        /// What failed.
        source: std::io::Error,
    },
    /// The daemon that is to be taken over from refuses.
    #[error("socket {}: the daemon there does not hand over: {why}", path.display())]
    TakeOverRefused {
        /// Its socket.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A daemon that a socket unit starts has its socket already, and nobody to take it from.
    #[error(
        "--takeover is for a daemon without a socket unit, and this one was handed the socket of one: leave --takeover out of its unit, and upgrade it by systemctl restart"
    )]
    TakeOverManaged,
    /// The metrics address cannot be bound.
    #[error(
        "metrics address {address}: cannot listen: {source}; set server.metrics to another port or \"off\""
    )]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread or the runtime cannot be started.
    #[error("cannot start {what}: {source}")]
    Thread {
        /// Which one.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What to look at in the configuration.
fn keys_of(error: &OpenError) -> &'static str {
    match error {
        OpenError::OtherKey { .. } => "key ssd.key_file",
        OpenError::Engine { .. } => "key ssd.engine",
        _ => "keys ssd.path and ssd.size",
    }
}
