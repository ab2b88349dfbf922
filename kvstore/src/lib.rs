//! The Undercroft daemon.
//!
//! This crate owns: the configuration, the unix socket and its sessions, the control thread that
//! feeds the pure [`Core`](undercroft_core::Core) and performs its actions, the copy workers, the
//! glue to the SSD tier, status and metrics.
//!
//! It never decides what to keep or evict (that is `core`), never touches device memory, and links
//! neither the client nor any GPU library.

mod arena;
mod bell;
mod bounds;
mod config;
mod control;
mod copy_pool;
mod daemon;
mod device;
mod domains;
mod error;
mod estate;
mod inherited;
pub mod inspect;
mod kernel;
mod listener;
mod metrics;
mod mounts;
mod mourner;
mod outbox;
mod part_maker;
mod paths;
mod peer;
mod precedence;
mod process;
mod purge_book;
mod quarantine;
mod recovery;
mod report;
mod restoring;
mod session;
mod staging_maker;
mod standing;
mod store;
mod succession;
mod takeover;
mod turns;
mod waiting;
mod watchdog;
mod web;

pub use config::{Config, ConfigError, KEYS, Key, reference};
pub use daemon::Daemon;
pub use error::StartError;
pub use mounts::prepare_mounts;
pub use paths::{MAX_SOCKET_PATH_BYTES, default_socket, default_state};
