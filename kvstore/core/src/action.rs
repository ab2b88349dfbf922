use undercroft_wire::{
    DeviceId, Extent, FrameId, JobId, Origin, PageIdentity, PartId, PurgeId, Reply, RequestId,
    SegmentId, SegmentUse, SessionId, SlotId, SpaceId,
};

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FramePlace {
    /// Which frame.
    pub frame: FrameId,
    /// The part it lies in.
    pub part: PartId,
    /// Offset in the part, bytes.
    pub offset: u64,
    /// Room in the frame, bytes: the page's size rounded up to
    /// [`undercroft_wire::FRAME_ALIGN`].
    pub bytes: u32,
}

/// What the daemon must do. Every action with a job is answered with exactly one event that
/// names the job, whatever happens; until then nobody else touches the frame or the slot.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a reply.
    Reply {
        /// To whom.
        session: SessionId,
        /// The request it answers.
        request: RequestId,
        /// What to say.
        reply: Reply,
    },
    /// Copy a page out of a staging slot into a frame and compute the checksum over the frame.
    /// Ends with [`crate::Event::CopiedIn`].
    CopyIn {
        /// The job.
        job: JobId,
        /// Whose staging area.
        session: SessionId,
        /// For which space.
        space: SpaceId,
        /// From.
        slot: SlotId,
        /// To.
        frame: FramePlace,
        /// How much.
        page_bytes: u32,
    },
    /// Copy a page out of a frame into a staging slot. Ends with [`crate::Event::CopiedOut`].
    CopyOut {
        /// The job.
        job: JobId,
        /// Whose staging area.
        session: SessionId,
        /// For which space.
        space: SpaceId,
        /// To.
        slot: SlotId,
        /// From.
        frame: FramePlace,
        /// How much.
        page_bytes: u32,
    },
    /// Write a page to SSD. Ends with [`crate::Event::Appended`].
    Append {
        /// The job.
        job: JobId,
        /// Which device it goes to.
        device: DeviceId,
        /// The frame that holds it.
        frame: FramePlace,
        /// What the record must prove.
        identity: PageIdentity,
        /// Where the page comes from.
        origin: Origin,
        /// CRC-64/NVME of the payload, born when the page entered DRAM.
        payload_crc: u64,
    },
    /// Read a record into a frame and have it prove itself. Ends with
    /// [`crate::Event::ReadDone`].
    Read {
        /// The job.
        job: JobId,
        /// Where it lies.
        extent: Extent,
        /// What it must prove.
        identity: PageIdentity,
        /// To.
        frame: FramePlace,
    },
    /// Append a record anew, so that its segment can be freed. Ends with
    /// [`crate::Event::Relocated`].
    Relocate {
        /// The job.
        job: JobId,
        /// Where it lies now.
        extent: Extent,
        /// What it must prove.
        identity: PageIdentity,
        /// Where the page comes from.
        origin: Origin,
    },
    /// Read a record of a segment that was not sealed, and have it prove itself. Nobody wants its
    /// bytes. Ends with [`crate::Event::Proved`].
    Prove {
        /// The job.
        job: JobId,
        /// Where it lies.
        extent: Extent,
        /// What it must prove.
        identity: PageIdentity,
    },
    /// A part that was to retire is empty: no frame of it will be named again.
    PartEmpty {
        /// Which.
        part: PartId,
    },
    /// Nothing in this segment is wanted any more. Ends with [`crate::Event::SegmentFreed`].
    FreeSegment {
        /// Which device.
        device: DeviceId,
        /// Which segment.
        segment: SegmentId,
        /// Which use of it.
        segment_use: SegmentUse,
    },
    /// A purge has come to an end: what it meant is in no tier any more, but for frames that somebody
    /// uses yet and nobody finds.
    Purged {
        /// Which.
        purge: PurgeId,
        /// Pages that were there.
        pages: u64,
        /// What they took in DRAM, bytes.
        dram_bytes: u64,
        /// What their records took, bytes.
        ssd_bytes: u64,
    },
}
