use crate::{DomainLimits, Restored};
use undercroft_wire::{
    DeviceId, DomainId, Extent, JobId, MissCause, Mode, Origin, PageIdentity, PartId, PurgeId,
    PurgeScope, Request, RequestId, SegmentId, SegmentUse, SessionId, SpaceDigest,
};

/// A process as the kernel tells it apart from every other: its number and when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Process number.
    pub pid: u32,
    /// Start time in the kernel's ticks, or anything else that differs when the number is reused.
    pub start: u64,
}

/// How a copy out of a staging slot into a frame ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyOutcome {
    /// The frame holds the page; this is the CRC-64/NVME of the frame's `page_bytes`.
    Ok(u64),
    /// The frame's bytes mean nothing.
    Failed,
}

/// How an append or a relocation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendOutcome {
    /// The record is on SSD and readable.
    Written(Extent),
    /// No segment had room for it.
    NoSpace,
    /// The write (or a relocation's read or proof) failed.
    Failed,
}

/// How a read ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The record proved itself; this is the CRC-64/NVME of its payload.
    Ok(u64),
    /// The record did not prove itself.
    Corrupt,
    /// The device failed.
    Failed,
}

impl ReadOutcome {
    /// Why its page is a miss from then on, where it was not [`ReadOutcome::Ok`].
    pub(crate) fn miss_cause(self) -> MissCause {
        match self {
            Self::Corrupt => MissCause::Damaged,
            Self::Ok(_) | Self::Failed => MissCause::Unreadable,
        }
    }
}

/// One record found on SSD at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveredRecord {
    /// What it says it is.
    pub identity: PageIdentity,
    /// Where it says it comes from.
    pub origin: Origin,
    /// Where it lies.
    pub extent: Extent,
    /// CRC-64/NVME of its payload.
    pub payload_crc: u64,
    /// Whether its segment was sealed and flushed. If not, its bytes may never have reached the
    /// medium: it counts in no lookup until it was read once and proved itself.
    pub sealed: bool,
    /// It was purged: it is there, and nobody's page.
    pub purged: bool,
}

/// How a device does, as the daemon judges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// It does what it is asked.
    #[default]
    Well,
    /// Its answers are overdue. Its pages count in no lookup and nothing new is asked of it.
    Stalled,
    /// Reads only: nothing is written to it or freed on it.
    ReadOnly,
    /// Too many errors. As [`Health::Stalled`], until somebody finds it well again.
    Out,
}

/// Everything that can happen to the core.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Time has passed: [`crate::Core::next_timer`] is due.
    Tick,
    /// The arena has grown. A part whose number is known, of a domain that is not configured, or
    /// beyond [`crate::Limits::max_parts`] or 16 TiB for all parts together is ignored:
    /// [`crate::Core::has_part`] tells.
    PartAdded {
        /// Its number; numbers are never used again.
        part: PartId,
        /// Whose frames it is for.
        domain: DomainId,
        /// Usable bytes.
        bytes: u64,
    },
    /// The arena shrinks: nothing new is placed in the part, its pages leave as soon as nobody
    /// leases them, and [`crate::Action::PartEmpty`] says when it is empty.
    RetirePart {
        /// Which.
        part: PartId,
    },
    /// Pages are to be forgotten: no lookup finds them after this step, and
    /// [`crate::Action::Purged`] says when all are. Frames of leased ones are kept until they are
    /// released, and their keys cannot be stored before.
    Purge {
        /// Its number, larger than any before.
        purge: PurgeId,
        /// Which pages.
        scope: PurgeScope,
    },
    /// All purges up to this one have come to an end, and every page log knows of them, or is known
    /// not to: records that are written from here on have seen them.
    PurgeOver {
        /// The newest of them.
        purge: PurgeId,
    },
    /// From here on pages of the domain are kept this long, seconds; 0: as long as there is room.
    MaxAge {
        /// Which.
        domain: DomainId,
        /// As [`crate::DomainConfig::max_age_s`].
        max_age_s: u32,
    },
    /// A domain may have more or less from now on. Limits out of range, and those of a domain that
    /// is not configured, are ignored. What it has beyond lower ones stays until it ends by itself;
    /// records beyond a lower quota are forgotten.
    DomainLimits {
        /// Which.
        domain: DomainId,
        /// What it may have.
        limits: DomainLimits,
    },
    /// A piece of what an earlier daemon left in memory.
    Restored(Restored<'a>),
    /// Everything that an earlier daemon had under way is over: frames that were being filled
    /// then are free.
    QuarantineOver,
    /// A client said hello and was welcomed.
    SessionOpened {
        /// Its number.
        session: SessionId,
        /// Its domain. A session of a domain that is not configured is ignored.
        domain: DomainId,
        /// The process behind it.
        process: ProcessId,
        /// The user whose process it is: the writer of what it stores.
        user: u32,
        /// How it receives pages.
        mode: Mode,
    },
    /// The session's socket is closed. What it offered and did not commit is dropped, its holds
    /// end, its leases stay: the process may still be reading.
    SessionClosed {
        /// Which.
        session: SessionId,
    },
    /// The session's process is dead and reaped: its leases end.
    ProcessGone {
        /// Which.
        session: SessionId,
    },
    /// The daemon made a staging area for a space it interned with
    /// [`crate::Core::intern_space`]. Answered with `SpaceOpened`.
    SpaceOpened {
        /// The session that asked.
        session: SessionId,
        /// Its request.
        request: RequestId,
        /// The session's domain; the space of any other is refused.
        domain: DomainId,
        /// The space.
        digest: SpaceDigest,
        /// Size of its pages, bytes.
        page_bytes: u32,
        /// Slots in the staging area.
        slots: u32,
    },
    /// A client's request. Those that are the daemon's own to answer are refused as invalid.
    Request {
        /// The session that asked.
        session: SessionId,
        /// Its request.
        request: RequestId,
        /// What it asks.
        body: &'a Request<'a>,
    },
    /// An [`crate::Action::CopyIn`] ended.
    CopiedIn {
        /// Which.
        job: JobId,
        /// How.
        outcome: CopyOutcome,
    },
    /// An [`crate::Action::CopyOut`] ended.
    CopiedOut {
        /// Which.
        job: JobId,
        /// Whether the slot holds the page.
        ok: bool,
    },
    /// An [`crate::Action::Append`] ended.
    Appended {
        /// Which.
        job: JobId,
        /// How.
        outcome: AppendOutcome,
        /// Segments free now.
        free_segments: u32,
    },
    /// An [`crate::Action::Read`] ended.
    ReadDone {
        /// Which.
        job: JobId,
        /// How.
        outcome: ReadOutcome,
    },
    /// An [`crate::Action::Relocate`] ended.
    Relocated {
        /// Which.
        job: JobId,
        /// How.
        outcome: AppendOutcome,
        /// Segments free now.
        free_segments: u32,
    },
    /// An [`crate::Action::FreeSegment`] ended.
    SegmentFreed {
        /// Which device.
        device: DeviceId,
        /// Which segment.
        segment: SegmentId,
        /// Which use of it.
        segment_use: SegmentUse,
        /// Segments free now.
        free_segments: u32,
    },
    /// An [`crate::Action::Prove`] ended.
    Proved {
        /// Which.
        job: JobId,
        /// How.
        outcome: ReadOutcome,
    },
    /// Records found on a device at start, in the order they were appended. May come in any
    /// number of pieces, with anything else in between. A piece after the last is ignored.
    Recovered {
        /// Which device.
        device: DeviceId,
        /// The records.
        records: &'a [RecoveredRecord],
        /// Segments free now.
        free_segments: u32,
        /// Whether this is all: from here on the device takes appends.
        last: bool,
    },
    /// A device does better or worse than before.
    DeviceHealth {
        /// Which device.
        device: DeviceId,
        /// How it does.
        health: Health,
    },
    /// A device is out for good: its pages are lost and nothing is asked of it any more. Jobs
    /// under way still report their end.
    DeviceLost {
        /// Which device.
        device: DeviceId,
    },
}
