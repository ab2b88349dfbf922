use crate::{CopyReason, Fallback, MissCause, Mode, ProcessState};
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
    /// How this daemon came by its arena.
    pub start: StartStatus,
    /// How its configuration was read again.
    pub reload: ReloadStatus,
    /// Bytes of the daemon's own memory: resident, without the arena, staging and the state file.
    pub heap_bytes: u64,
    /// Pages known in any tier.
    pub known_pages: u64,
    /// All arenas together.
    pub arena: ArenaStatus,
    /// DRAM tier.
    pub dram: TierStatus,
    /// SSD tier, if there is one.
    pub ssd: Option<SsdStatus>,
    /// Hits and misses.
    pub hits: HitStatus,
    /// Stores.
    pub stores: StoreStatus,
    /// What loading costs, set against computing.
    pub loads: LoadStatus,
    /// Domains, in the order of the configuration.
    pub domains: Vec<DomainStatus>,
    /// Spaces known.
    pub spaces: Vec<SpaceStatus>,
    /// Sessions connected.
    pub sessions: Vec<SessionStatus>,
    /// What the machine refused (huge pages, locking, registration), one line each.
    pub refused: Vec<String>,
    /// Sessions closed because of a malformed or out-of-order message.
    pub protocol_errors: u64,
    /// Descriptors the daemon has open.
    pub descriptors: u32,
    /// Calls the kernel does not have or refuses, and what is done without them.
    pub fallbacks: Vec<Fallback>,
    /// How often a session was found to hold frames without a word for longer than
    /// `policy.silence_ms`.
    pub lease_alarms: u64,
    /// Spaces that were not opened for a client, as its hash makes another key of the probe prefix than
    /// that of those who opened them before.
    pub refused_probes: u64,
    /// The tenant it is told to: only what is his own is in it, and all else is left empty. `None` for
    /// an operator, who is told everything.
    pub told_to: Option<String>,
}

/// How a daemon came by its arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartKind {
    /// It made a new one.
    #[default]
    Cold,
    /// The service manager had kept it.
    Warm,
    /// The daemon before it handed it over.
    Takeover,
}

/// A daemon's start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartStatus {
    /// How it came by its arena.
    pub kind: StartKind,
    /// How often the arena has changed hands.
    pub restarts: u32,
    /// Time until clients could connect, milliseconds.
    pub ready_ms: u64,
    /// Pages in DRAM that were taken over.
    pub restored_pages: u64,
    /// Bytes of frames that may still be written to by what the last daemon had begun.
    pub quarantined_bytes: u64,
    /// Why a kept arena was not used.
    pub dropped: Option<String>,
    /// Whether the arena is still being made for the first time. Clients are greeted, wait for the
    /// first of its parts, and are served with what there is.
    pub opening: bool,
}

/// What came of reading the configuration again while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// How often it was read again.
    pub times: u32,
    /// Why what was read last is not used: the configuration from before runs on.
    pub refused: Option<String>,
    /// What differs from the running configuration and counts from the next start on.
    pub pending: Vec<String>,
}

/// A security boundary (tenant).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DomainStatus {
    /// Its name, as configured.
    pub name: String,
    /// Its arena.
    pub arena: ArenaStatus,
    /// How full its arena is.
    pub dram: TierStatus,
    /// Connected sessions.
    pub sessions: u32,
    /// Frames pinned by its leases.
    pub leased_pages: u64,
    /// Its pages on SSD; the capacity is its quota, and all of the tier where it has none.
    pub ssd: TierStatus,
    /// Bytes on SSD that reclaim leaves it.
    pub ssd_floor_bytes: u64,
    /// Pages being read for it from SSD, and how many may be.
    pub reads_in_flight: u32,
    /// See there.
    pub max_reads_in_flight: u32,
    /// Pages known of it in any tier, and how many may be.
    pub known_pages: u32,
    /// See there.
    pub max_pages: u32,
    /// Spaces known of it, and how many may be.
    pub spaces: u32,
    /// See there.
    pub max_spaces: u32,
    /// Its share of what SSDs do when there is more to do than they can.
    pub weight: u32,
}

/// The arena's memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ArenaStatus {
    /// Number of parts.
    pub parts: u32,
    /// Bytes in all parts.
    pub bytes: u64,
    /// Bytes it is to have, as configured.
    pub wanted_bytes: u64,
    /// Of its parts, those that retire: they are freed once nothing is in them and every client has
    /// let go of them.
    pub retiring_parts: u32,
    /// Bytes in these.
    pub retiring_bytes: u64,
    /// Why it could not be made as large as it is to be, the last time that was tried.
    pub short: Option<String>,
    /// `hugetlb`, `transparent` or `4k`.
    pub pages: String,
    /// Whether the memory is locked.
    pub locked: bool,
    /// The memory nodes that its parts were put on; none: wherever the system put them.
    pub numa_nodes: Vec<u32>,
    /// Where its bytes live: `memfd`, `mount` (files that nobody but the daemon can open for
    /// writing), or `mixed`.
    pub backing: String,
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

/// The SSD tier: all devices together, then one by one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SsdStatus {
    /// Capacity and fill.
    pub tier: TierStatus,
    /// Bytes of records written, re-appended ones included.
    pub written_bytes: u64,
    /// Bytes of records re-appended by reclaim.
    pub reappended_bytes: u64,
    /// Write amplification: all bytes written over those that were not re-appended. 1 while
    /// nothing was written.
    pub write_amplification: f64,
    /// Bytes of records read.
    pub read_bytes: u64,
    /// Records recovered at start.
    pub recovered_records: u64,
    /// Recovered records that have not proved themselves yet and count in no lookup.
    pub unproved_records: u64,
    /// Records that did not prove themselves.
    pub corrupt_records: u64,
    /// Table batches that did not prove themselves.
    pub corrupt_tables: u64,
    /// Failed reads, writes and flushes.
    pub io_errors: u64,
    /// Pages on SSD that no lookup can reach because an ancestor is gone.
    pub unreachable_pages: u64,
    /// Pages that left DRAM and were not written: not worth it, or not to be paid for.
    pub refused_pages: u64,
    /// Of these, pages that the write budget had nothing left for.
    pub over_budget_pages: u64,
    /// What was brought to DRAM before anybody asked for it.
    pub prefetch: PrefetchStatus,
    /// Each device, in the order of the configuration.
    pub devices: Vec<SsdDeviceStatus>,
}

impl StatusReport {
    /// Memory a daemon may take for itself without any pages, bytes.
    pub const HEAP_BYTES: u64 = 64 << 20;
    /// And for each page it knows, bytes.
    pub const HEAP_BYTES_PER_PAGE: u64 = 100;

    /// Memory a daemon that knows so many pages may take for itself, bytes.
    #[must_use]
    pub const fn allowed_heap_bytes_for(pages: u64) -> u64 {
        Self::HEAP_BYTES.saturating_add(pages.saturating_mul(Self::HEAP_BYTES_PER_PAGE))
    }

    /// Memory this daemon may take for itself, bytes.
    #[must_use]
    pub const fn allowed_heap_bytes(&self) -> u64 {
        Self::allowed_heap_bytes_for(self.known_pages)
    }
}

impl SsdStatus {
    /// Bytes of pages that were written because they left DRAM: what the writes were for.
    #[must_use]
    pub fn demoted_bytes(&self) -> u64 {
        self.written_bytes.saturating_sub(self.reappended_bytes)
    }

    /// The least that a write amplification can be is 1; so it is while nothing was written.
    #[must_use]
    pub fn amplification(written_bytes: u64, reappended_bytes: u64) -> f64 {
        let demoted_bytes = written_bytes.saturating_sub(reappended_bytes);
        if demoted_bytes == 0 { 1.0 } else { written_bytes as f64 / demoted_bytes as f64 }
    }
}

/// How an SSD does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceCondition {
    /// Its records are still being found. Those found are served; nothing is written.
    #[default]
    Recovering,
    /// It does what it is asked.
    Well,
    /// Its answers are overdue: its pages are misses until it answers again.
    Stalled,
    /// Writes or flushes failed too often: its pages are served, nothing is written.
    ReadOnly,
    /// Too much failed: its pages are misses until a probe finds it well again.
    Out,
    /// It could not be opened, or its log broke: its pages are misses until a restart.
    Lost,
}

/// One SSD.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SsdDeviceStatus {
    /// The directory of its page log.
    pub path: String,
    /// How it does.
    pub condition: DeviceCondition,
    /// Capacity and fill.
    pub tier: TierStatus,
    /// `io_uring` or `threads`; empty until its log is open.
    pub engine: String,
    /// Whether the arena is registered with the ring.
    pub registered_buffers: bool,
    /// Whether what is written is encrypted.
    pub encrypted: bool,
    /// Segments, spare ones included.
    pub segments: u32,
    /// Free segments.
    pub free_segments: u32,
    /// Page transfers that may be in flight at once, now.
    pub queue_depth: u32,
    /// Bytes of records written, re-appended ones included.
    pub written_bytes: u64,
    /// Bytes of records re-appended by reclaim.
    pub reappended_bytes: u64,
    /// Bytes of records read.
    pub read_bytes: u64,
    /// Bytes of segments zeroed ahead of their first use.
    pub zeroed_bytes: u64,
    /// Records found at start.
    pub recovered_records: u64,
    /// Time from the start of the search until all records were known, milliseconds; `None` until
    /// then.
    pub recovery_ms: Option<u64>,
    /// Recovered records that have not proved themselves yet and count in no lookup.
    pub unproved_records: u64,
    /// Recovered records that have proved themselves.
    pub proved_records: u64,
    /// Recovered records that were asked to prove themselves and did not.
    pub disproved_records: u64,
    /// Records that did not prove themselves when they were read.
    pub corrupt_records: u64,
    /// Table batches that did not prove themselves.
    pub corrupt_tables: u64,
    /// Failed reads, writes and flushes.
    pub io_errors: u64,
    /// Times its answers were overdue.
    pub stalls: u64,
    /// How fast it reads, as measured, bytes per second.
    pub read_bytes_per_s: u64,
    /// What a read takes before its first byte, as measured, microseconds.
    pub read_latency_us: u64,
    /// Where a page log was moved that this build could not read.
    pub set_aside: Option<String>,
    /// How fast it wears out.
    pub wear: WearStatus,
}

/// How much is written to a device: bytes of records and their table entries, frames counted whole.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WearStatus {
    /// Bytes written in the last day, or since start.
    pub day_bytes: u64,
    /// How often its capacity would be written in a day at this rate; `None` in the first minute.
    pub drive_writes_per_day: Option<f64>,
    /// Years until its endurance is used up at this rate; `None` in the first minute, and where
    /// nothing is written.
    pub life_years: Option<f64>,
    /// What may be written in a second, averaged over a minute, bytes.
    pub budget_bytes_per_s: Option<u64>,
    /// What may be written in a day, bytes.
    pub budget_bytes_per_day: Option<u64>,
}

impl WearStatus {
    /// Bytes that a device of `capacity_bytes` may be written in its life if its data sheet was not
    /// asked: all of it once a day for five years.
    #[must_use]
    pub const fn usual_endurance(capacity_bytes: u64) -> u64 {
        capacity_bytes.saturating_mul(5 * 365)
    }
}

/// Pages read from SSD that nobody had fetched yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrefetchStatus {
    /// Pages read.
    pub pages: u64,
    /// Of these, pages that somebody fetched before they left DRAM.
    pub used_pages: u64,
    /// And pages that nobody did.
    pub wasted_pages: u64,
    /// Bytes of these.
    pub wasted_bytes: u64,
}

/// Lookups and what they found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HitStatus {
    /// Lookups answered, those included that the board answered.
    pub lookups: u64,
    /// Lookups that clients did not send, as the board told them that nothing begins so. Each counts
    /// one key.
    pub board_lookups: u64,
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
    /// Lookups that did not find all their keys, by why the first of those was not there: every cause
    /// there is, in one order. What the board answered is in none of them.
    pub misses: Vec<MissStatus>,
}

/// Lookups that missed for one cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissStatus {
    /// Why the first page that was missed was not there.
    pub cause: MissCause,
    /// How many.
    pub lookups: u64,
}

/// What the cost model said of loads, and how right it was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadStatus {
    /// `off`, `advisory` or `enforced`.
    pub policy: String,
    /// Lookups of which not all that was there was worth loading.
    pub trimmed_lookups: u64,
    /// Pages of these that were not. Where the model is enforced they were not loaded.
    pub trimmed_pages: u64,
    /// Fetches that fell behind computing their pages. Where the model is enforced they were cut.
    pub behind_fetches: u64,
    /// Pages of these that were not delivered by then.
    pub behind_pages: u64,
    /// Fetches that were weighed against computing their pages, and have ended.
    pub weighed_fetches: u64,
    /// Of these, fetches that read from SSD and brought all.
    pub expected_fetches: u64,
    /// Time that these were expected to take, microseconds.
    pub expected_us: u64,
    /// Time that they took, microseconds.
    pub taken_us: u64,
    /// By how much the two differed, fetch by fetch, microseconds.
    pub error_us: u64,
    /// Time that weighed fetches saved, over those that saved any, microseconds.
    pub saved_us: u64,
    /// Time that they lost, over those that lost any, microseconds.
    pub lost_us: u64,
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
    /// The domain it belongs to.
    pub domain: String,
    /// Its digest, 64 hexadecimal digits.
    pub digest: String,
    /// Page size, bytes.
    pub page_bytes: u32,
    /// Pages known in any tier.
    pub pages: u64,
    /// The first digits of the key that its clients' hash makes of the probe prefix; `None` where
    /// nobody has told.
    pub probe: Option<String>,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its number.
    pub session: u64,
    /// The domain it belongs to.
    pub domain: String,
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
    /// Why pages are copied, where they are.
    pub copy_reason: Option<CopyReason>,
    /// Bytes of the frames pinned by its leases.
    pub leased_bytes: u64,
    /// Time since it last said something, milliseconds.
    pub silent_ms: u64,
    /// What its process does.
    pub process: ProcessState,
    /// Whether it holds frames and has been silent for longer than `policy.silence_ms`.
    pub alarm: bool,
    /// What it copies pages with, where it has told: a GPU.
    pub gpu: Option<GpuReport>,
}

/// A GPU as the session that copies with it tells of it. Nobody checks it, and nothing depends on
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GpuReport {
    /// Its name, as the driver says it. As the three below, at most [`MAX_GPU_TEXT_BYTES`] bytes.
    pub name: String,
    /// By what pages are loaded.
    pub load: String,
    /// By what pages are loaded whose first layers come first.
    pub load_by_layer: String,
    /// By what pages are stored.
    pub store: String,
    /// Bytes of the arena and of staging that it reaches by itself.
    pub pinned_bytes: u64,
    /// Bytes that are still to be registered.
    pub waiting_bytes: u64,
    /// Bytes that its driver refused to register.
    pub refused_bytes: u64,
}

/// The longest text in a [`GpuReport`], bytes.
pub const MAX_GPU_TEXT_BYTES: usize = 128;
