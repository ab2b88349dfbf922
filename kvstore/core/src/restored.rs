use crate::ProcessId;
use undercroft_wire::{DomainId, LeaseId, PageKey, PartId, SessionId, SpaceDigest, SpaceId};

/// A piece of what an earlier daemon left: what the notes of all its steps come to.
///
/// Pieces come after the parts were added and before anything else. A page comes in a later piece
/// than its slab and space, or in the same; a lease than its page and session. What is at odds
/// with the rest is left out and counted, and a note says that it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored<'a> {
    /// Spaces, under the numbers they had.
    pub spaces: &'a [RestoredSpace],
    /// How parts were cut.
    pub slabs: &'a [RestoredSlab],
    /// Frames that held a page.
    pub pages: &'a [RestoredPage],
    /// Frames that were being filled, or whose page is not known for certain: what was under way
    /// may still be written to them. They are left alone until [`crate::Event::QuarantineOver`].
    pub quarantined: &'a [RestoredFrame],
    /// Sessions that held leases.
    pub sessions: &'a [RestoredSession],
    /// Pages they held.
    pub leases: &'a [RestoredLease],
    /// Whether this is all.
    pub last: bool,
}

/// A space as it was remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredSpace {
    /// Its number.
    pub space: SpaceId,
    /// Whose it is.
    pub domain: DomainId,
    /// What it is.
    pub digest: SpaceDigest,
    /// Size of its pages, bytes.
    pub page_bytes: u32,
    /// What its clients' hash makes of the probe prefix, if any had told.
    pub probe: Option<PageKey>,
}

/// A slab as it was remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredSlab {
    /// The part.
    pub part: PartId,
    /// Where it begins, bytes.
    pub offset: u64,
    /// Its length, bytes.
    pub bytes: u64,
    /// Size of each frame, bytes.
    pub frame_bytes: u32,
}

/// A page in a frame as it was remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredPage {
    /// The part.
    pub part: PartId,
    /// Where the frame begins, bytes.
    pub offset: u64,
    /// The page's space.
    pub space: SpaceId,
    /// Its key.
    pub key: PageKey,
    /// The key of the page before it; `None` for the first of a chain.
    pub parent: Option<PageKey>,
    /// Pages before it in its chain.
    pub depth: u32,
    /// CRC-64/NVME of its payload.
    pub crc: u64,
    /// How dear it was, as [`crate::Note::Filled`] or [`crate::Note::Touched`] said: the newest
    /// request that used it, and what it was granted for being used again. No request counts as
    /// newer than [`crate::Config::first_stamp`].
    pub heat: u64,
    /// The user whose process stored it.
    pub writer: u32,
    /// When it was stored, seconds since 1970; 0: nobody knows.
    pub born: u32,
    /// It was purged, and there only because somebody uses its frame.
    pub purged: bool,
}

/// A frame that nobody may be given yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredFrame {
    /// The part.
    pub part: PartId,
    /// Where the frame begins, bytes.
    pub offset: u64,
}

/// A session of an earlier daemon. It is closed, and over once its last lease is: its process may
/// release them through another session, and [`crate::Event::ProcessGone`] ends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredSession {
    /// Its number.
    pub session: SessionId,
    /// Its process.
    pub process: ProcessId,
    /// Its domain.
    pub domain: DomainId,
}

/// A leased page of an earlier daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredLease {
    /// The session.
    pub session: SessionId,
    /// Its lease.
    pub lease: LeaseId,
    /// Which page of the lease.
    pub index: u32,
    /// The part.
    pub part: PartId,
    /// Where the frame begins, bytes.
    pub offset: u64,
}
