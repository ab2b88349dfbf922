//! What a serving engine links: a session with the daemon of its node.
//!
//! This crate owns: the connection and its reconnection, lookups, fetches under a lease, stores
//! through staging, prefetches and hints, and threads for those that wait for loads and stores
//! elsewhere ([`TaskPool`]). It never loads a runtime, never copies a page by itself
//! (a [`Device`](undercroft_gpu_shim::Device) does), and never makes its caller wait for the daemon
//! longer than the deadline of the call: whatever is wrong with the daemon becomes a miss, or a page
//! that was not stored, and [`MissReason`] says why. What the caller's own device has begun to copy
//! is waited for beyond it: blocks are in use until the call returns, and never after.
//!
//! Calls may come from any number of threads. The calling thread writes its request and reads its
//! reply itself; where several wait at once, one of them reads for all.

mod bell;
mod blob;
mod client;
mod connection;
mod error;
mod fetch;
mod find;
mod flights;
mod gpu;
mod handshake;
mod inbox;
mod keeper;
mod layer_load;
mod load;
mod lookup;
mod miss;
mod options;
mod outbox;
mod parts;
mod proof;
mod pulse;
mod reader;
mod releases;
mod server;
mod shared;
mod space;
mod store;
mod tasks;
mod token;
mod watch;

pub use blob::Blob;
pub use client::{Client, ClientCounters, ClientState};
pub use error::{ConnectError, ExplainError, OpenError, PurgeError, RecordError};
pub use fetch::{Fetch, FetchFrom, FetchReport, ReadyRun};
pub use find::find_socket;
pub use layer_load::LayerLoad;
pub use load::Loaded;
pub use lookup::{Found, Hold, LookupOptions, PendingLookup};
pub use miss::MissReason;
pub use options::{ConnectOptions, MAX_SOCKET_PATH_BYTES, Wait};
pub use space::{Prefetched, SpaceHandle};
pub use store::{Declined, StoreOptions, StoreRun, Stored};
pub use tasks::{Arrived, Ended, Lane, Task, TaskPool};
pub use watch::PartWatcher;

/// What a hold or a lease is handed over by: see [`Hold::give`] and [`Fetch::give`].
pub use undercroft_wire::Token;

/// What a [`PartWatcher`] is shown.
pub use undercroft_arena::{PartView, StagingView};

/// The vocabulary of requests and replies, so that an engine links this crate alone.
pub use undercroft_wire as wire;
