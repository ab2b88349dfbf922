use undercroft_arena::Span;
use undercroft_wire::{DeviceId, Extent, JobId, Origin, PageIdentity, SegmentId, SegmentUse};

/// Something to do. A span travels with its operation and comes back in the completion; until
/// then the kernel may touch its bytes.
#[derive(Debug)]
pub enum Op {
    /// Writes a page. `payload` has the page's frame size (`undercroft_wire::frame_bytes`) and
    /// starts at a multiple of 4096 bytes, as all frames do.
    Append {
        /// Comes back in the completion.
        job: JobId,
        /// What the record will prove.
        identity: PageIdentity,
        /// Where the page comes from.
        origin: Origin,
        /// The frame. Nobody changes it until the completion.
        payload: Span,
        /// CRC-64/NVME of the page, made when the frame was filled. It is not computed again, so
        /// that a frame gone bad in memory is found when the record is read.
        payload_crc: u64,
    },
    /// Reads a page and checks its proof.
    Read {
        /// Comes back in the completion.
        job: JobId,
        /// What the record must prove.
        identity: PageIdentity,
        /// Where it lies.
        extent: Extent,
        /// The frame: size and alignment as for an append. Nobody else looks at it until the
        /// completion.
        into: Span,
    },
    /// Reads a page, checks its proof and appends it anew. The old record stays readable until
    /// its segment is freed.
    Relocate {
        /// Comes back in the completion.
        job: JobId,
        /// What the record must prove.
        identity: PageIdentity,
        /// Where the page comes from, as the new record says it.
        origin: Origin,
        /// Where it lies.
        extent: Extent,
    },
    /// Reads a page into the log's own memory and checks its proof.
    Prove {
        /// Comes back in the completion.
        job: JobId,
        /// What the record must prove.
        identity: PageIdentity,
        /// Where it lies.
        extent: Extent,
    },
    /// Gives a segment back. Its records are gone at once; one that is still being filled is
    /// closed first.
    FreeSegment {
        /// Which segment.
        segment: SegmentId,
        /// Which use of it.
        segment_use: SegmentUse,
    },
}

/// What can be asked of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Everything.
    #[default]
    Well,
    /// Nothing for now: a transfer has taken longer than it may. Reads are failed at once.
    Stalled,
    /// Reads only: writes or flushes have failed too often.
    ReadOnly,
    /// Nothing: it has failed too often. It is probed from time to time and may come back.
    Out,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum AppendOutcome {
    /// It lies there and can be read.
    Written(Extent),
    /// No segment was free, and none became free in time.
    NoSpace,
    /// The write failed, or the operation was not a valid one.
    Failed,
}

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum ReadOutcome {
    /// The bytes are the page's.
    Verified {
        /// CRC-64/NVME of the page.
        payload_crc: u64,
    },
    /// The record did not prove itself, or is not there any more. The frame's bytes are garbage.
    Corrupt,
    /// The read failed. The frame's bytes are garbage.
    Failed,
}

/// What became of a relocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum RelocateOutcome {
    /// It lies there too.
    Written(Extent),
    /// No segment was free. Relocations never wait for one.
    NoSpace,
    /// The old record did not prove itself.
    Corrupt,
    /// A read or write failed.
    Failed,
}

/// An operation that is over.
#[derive(Debug)]
#[must_use]
pub enum Completion {
    /// An append is over.
    Appended {
        /// The operation's job.
        job: JobId,
        /// The frame, given back.
        payload: Span,
        /// What became of it.
        outcome: AppendOutcome,
        /// Free segments now, the one kept for relocations included.
        free_segments: u32,
    },
    /// A read is over.
    Read {
        /// The operation's job.
        job: JobId,
        /// The frame, given back.
        into: Span,
        /// What became of it.
        outcome: ReadOutcome,
    },
    /// A relocation is over.
    Relocated {
        /// The operation's job.
        job: JobId,
        /// What became of it.
        outcome: RelocateOutcome,
        /// Free segments now, the one kept for relocations included.
        free_segments: u32,
    },
    /// A record was asked to prove itself.
    Proved {
        /// The operation's job.
        job: JobId,
        /// Whether it did.
        outcome: ReadOutcome,
    },
    /// The device's health has changed.
    Health {
        /// This log.
        device: DeviceId,
        /// What can be asked of it from here on.
        health: Health,
    },
    /// A segment is free, or was not in that use any more.
    SegmentFreed {
        /// This log.
        device: DeviceId,
        /// Which segment.
        segment: SegmentId,
        /// Which use of it is over.
        segment_use: SegmentUse,
        /// Free segments now, the one kept for relocations included.
        free_segments: u32,
    },
    /// The log is gone: its ring broke or its thread died. Operations not yet answered never will
    /// be, and none is accepted any more.
    DeviceLost {
        /// This log.
        device: DeviceId,
    },
}
