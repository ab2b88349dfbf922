use crate::StoreKey;
use std::path::PathBuf;
use std::time::Duration;
use undercroft_wire::{DeviceId, Extent, Fallback, Origin, PageIdentity, PurgeId};

/// How bytes are moved between file and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// io_uring, or threads where it is refused.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// A pool of threads with positional reads and writes.
    Threads,
}

/// What a page log is opened with.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The file. Created if it is not there; its directory must exist.
    pub path: PathBuf,
    /// What extents call this log.
    pub device: DeviceId,
    /// Room for records, bytes. Another value than last time adds segments at the end of the file
    /// or drops them there, with their pages.
    pub capacity_bytes: u64,
    /// Room for records in one segment, bytes; header and tables come on top. No page larger than
    /// this can be appended. `None`: a 64th of the capacity rounded up to a power of two, at
    /// least 4 MiB and at most 256 MiB. A file that exists keeps the size it has.
    pub segment_bytes: Option<u64>,
    /// How bytes are moved.
    pub engine: EngineChoice,
    /// Page transfers in flight at once.
    pub queue_depth: u32,
    /// How long a written record may stay out of the tables, milliseconds: a crash forgets at
    /// most the records of that time.
    pub table_flush_ms: u64,
    /// What everything in the log is encrypted with; `None` leaves pages in the clear. Segments
    /// that were written the other way are given up at start.
    pub key: Option<StoreKey>,
    /// Whether segments are zeroed ahead of their first use while the device is idle: their first use
    /// is faster, and twice as much is written.
    pub zero_ahead: bool,
    /// How long a transfer may take before the log says that its device stalls.
    pub stall: Duration,
}

impl LogConfig {
    /// A log of `capacity_bytes` in the file `path` with everything else at its default.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self {
            path: path.into(),
            device: DeviceId(0),
            capacity_bytes,
            segment_bytes: None,
            engine: EngineChoice::Auto,
            queue_depth: 16,
            table_flush_ms: 20,
            key: None,
            zero_ahead: true,
            stall: Duration::from_millis(500),
        }
    }
}

/// What the machine granted and what the file looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFacts {
    /// `io_uring` or `threads`.
    pub engine: &'static str,
    /// Whether the arena is registered with the ring.
    pub registered_buffers: bool,
    /// What was refused, one line each.
    pub refused: Vec<String>,
    /// Calls the kernel does not have or refuses, and what is done without them.
    pub fallbacks: Vec<Fallback>,
    /// Whether pages are encrypted.
    pub encrypted: bool,
    /// Where a file was moved that this build cannot read or that is damaged beyond use.
    pub set_aside: Option<PathBuf>,
    /// Bytes a segment takes in the file.
    pub segment_bytes: u64,
    /// Number of segments, spare ones included.
    pub segments: u32,
}

/// A record found at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveredRecord {
    /// Whose bytes it says it has. Proved when it is read.
    pub identity: PageIdentity,
    /// Where it says it comes from.
    pub origin: Origin,
    /// Where it lies.
    pub extent: Extent,
    /// CRC-64/NVME of the page.
    pub payload_crc: u64,
    /// Whether its segment was flushed to the medium and the seal speaks for it. After a power cut, records of
    /// other segments may prove to be lost.
    pub sealed: bool,
}

/// What was found at start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The records, in the order they were appended. A page that was relocated and not yet freed
    /// at its old place comes twice: the later one counts.
    pub records: Vec<RecoveredRecord>,
    /// Free segments, the one kept for relocations included.
    pub free_segments: u32,
    /// The newest purge that any of them had seen: the list of purges knows it, or is not the newest.
    pub newest_purge: PurgeId,
    /// Segment headers and table blocks that did not prove themselves. The records they named are
    /// lost.
    pub corrupt_tables: u64,
    /// Copies of the superblock that were damaged; they are rewritten.
    pub corrupt_superblocks: u32,
    /// Segments whose header or tables could not be read.
    pub io_errors: u64,
    /// Segments that are encrypted where the log is not, or the other way round: given up.
    pub other_protection: u64,
    /// Whether the file was created or was empty.
    pub created: bool,
}

/// What the log did since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogCounters {
    /// Records appended, relocated ones included.
    pub written_records: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Records relocated.
    pub relocated_records: u64,
    /// Bytes of them.
    pub relocated_bytes: u64,
    /// Records read that proved themselves, those read for relocation included.
    pub read_records: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Table blocks, headers and seals written.
    pub table_writes: u64,
    /// Records found at start.
    pub recovered_records: u64,
    /// Reads whose record did not prove itself.
    pub corrupt_records: u64,
    /// Headers and tables that did not prove themselves at start.
    pub corrupt_tables: u64,
    /// Failed reads, writes and flushes.
    pub io_errors: u64,
    /// Appends and relocations that found no room.
    pub no_space: u64,
    /// Times the device stalled.
    pub stalls: u64,
    /// Probes of a device that faltered.
    pub probes: u64,
    /// Page transfers that may be in flight at once, now.
    pub queue_depth: u32,
    /// Bytes of segments zeroed ahead of their first use.
    pub zeroed_bytes: u64,
    /// Records written again, as they were, so that a segment found open could be sealed.
    pub mended_records: u64,
    /// Bytes of them.
    pub mended_bytes: u64,
    /// Segments sealed.
    pub sealed_segments: u64,
    /// Segments freed.
    pub freed_segments: u64,
    /// Operations that could never be carried out: a span of the wrong size, an unknown segment,
    /// a page larger than a segment.
    pub invalid_ops: u64,
}
