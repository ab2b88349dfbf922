use crate::Mode;
use serde::{Deserialize, Serialize};

/// What `undercroft status` shows. Serialized as JSON by the command line under `schema` 1.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StatusReport {
    /// Version of this report's layout.
    pub schema: u32,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// Time since start, milliseconds.
    pub uptime_ms: u64,
    /// Arena epoch.
    pub epoch: u64,
    /// Processor time used by the daemon so far, seconds (user + system).
    pub cpu_s: f64,
    /// The socket served.
    pub socket: String,
    /// The arena.
    pub arena: ArenaStatus,
    /// DRAM tier.
    pub dram: TierStatus,
    /// SSD tier, if there is one.
    pub ssd: Option<SsdStatus>,
    /// Hits and misses.
    pub hits: HitStatus,
    /// Stores.
    pub stores: StoreStatus,
    /// Spaces known.
    pub spaces: Vec<SpaceStatus>,
    /// Sessions connected.
    pub sessions: Vec<SessionStatus>,
    /// What the machine refused (huge pages, locking, registration), one line each.
    pub refused: Vec<String>,
    /// Sessions closed because of a malformed or out-of-order message.
    pub protocol_errors: u64,
}

/// The arena's memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ArenaStatus {
    /// Number of parts.
    pub parts: u32,
    /// Bytes in all parts.
    pub bytes: u64,
    /// `hugetlb`, `transparent` or `4k`.
    pub pages: String,
    /// Whether the memory is locked.
    pub locked: bool,
}

/// A tier's capacity and fill.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TierStatus {
    /// Capacity, bytes.
    pub capacity_bytes: u64,
    /// Bytes of resident pages.
    pub used_bytes: u64,
    /// Resident pages.
    pub pages: u64,
    /// Pages that were evicted.
    pub evicted_pages: u64,
}

/// The SSD tier.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SsdStatus {
    /// Capacity and fill.
    pub tier: TierStatus,
    /// The file or device.
    pub path: String,
    /// `io_uring` or `threads`.
    pub engine: String,
    /// Whether the arena is registered with the ring.
    pub registered_buffers: bool,
    /// Bytes of records written, re-appended ones included.
    pub written_bytes: u64,
    /// Bytes of records re-appended by reclaim.
    pub reappended_bytes: u64,
    /// Bytes of records read.
    pub read_bytes: u64,
    /// Records recovered at start.
    pub recovered_records: u64,
    /// Records that did not prove themselves.
    pub corrupt_records: u64,
    /// Table batches that did not prove themselves.
    pub corrupt_tables: u64,
    /// Failed reads and writes.
    pub io_errors: u64,
    /// Pages on SSD that no lookup can reach because an ancestor is gone.
    pub unreachable_pages: u64,
}

/// Lookups and what they found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HitStatus {
    /// Lookups answered.
    pub lookups: u64,
    /// Keys asked for.
    pub keys: u64,
    /// Leading pages found.
    pub prefix_pages: u64,
    /// Pages delivered from DRAM.
    pub dram_pages: u64,
    /// Pages delivered after a read from SSD.
    pub ssd_pages: u64,
    /// Fetches that did not deliver everything.
    pub incomplete_fetches: u64,
}

/// Offers and what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Keys offered.
    pub offered: u64,
    /// Pages stored.
    pub stored: u64,
    /// Keys already held.
    pub held: u64,
    /// Keys declined for want of credits, room, parent or admission.
    pub declined: u64,
    /// Pages whose copy failed.
    pub failed: u64,
}

/// One space.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// First 16 hex digits of its digest.
    pub digest: String,
    /// Page size, bytes.
    pub page_bytes: u32,
    /// Pages known in any tier.
    pub pages: u64,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its number.
    pub session: u64,
    /// What the client calls itself.
    pub name: String,
    /// Process id, user and group of the peer.
    pub pid: u32,
    /// User id of the peer.
    pub uid: u32,
    /// Group id of the peer.
    pub gid: u32,
    /// How pages are delivered.
    pub mode: Mode,
    /// Open leases.
    pub leases: u32,
    /// Frames pinned by its leases.
    pub leased_pages: u64,
    /// Whether the socket is closed and the process still lives, so that its leases stay.
    pub lingering: bool,
}
