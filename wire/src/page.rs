use crate::{DeviceId, DomainId, PageKey, PartId, PurgeId, SegmentId, SegmentUse, SpaceDigest};
use serde::{Deserialize, Serialize};

/// Everything a record on disk must prove about itself besides its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageIdentity {
    /// The tenant the page belongs to.
    pub domain: DomainId,
    /// The space the key means something in.
    pub space: SpaceDigest,
    /// The page's name.
    pub key: PageKey,
    /// The page one block before it in the prefix; `None` for the first.
    pub parent: Option<PageKey>,
    /// Distance from the start of the prefix, pages.
    pub depth: u32,
    /// Payload length, bytes.
    pub page_bytes: u32,
}

/// Where a page comes from: what decides, beside its name, whether it may still be served. Kept by
/// whatever moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Origin {
    /// The user whose process stored it.
    pub writer: u32,
    /// When it was stored, seconds since 1970; 0: nobody knows.
    pub born: u32,
    /// The newest purge that was over when its record was written: none up to it means the page.
    pub purge: PurgeId,
}

/// Which pages a purge means: those that have all of what is named. What is `None` may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PurgeScope {
    /// The tenant whose pages they are.
    pub domain: Option<DomainId>,
    /// The space they are of.
    pub space: Option<SpaceDigest>,
    /// The user whose processes stored them.
    pub writer: Option<u32>,
}

impl PurgeScope {
    /// Whether it means a page of that domain and space, stored by `writer`.
    #[must_use]
    pub fn means(&self, domain: DomainId, space: SpaceDigest, writer: u32) -> bool {
        self.domain.is_none_or(|named| named == domain)
            && self.space.is_none_or(|named| named == space)
            && self.writer.is_none_or(|named| named == writer)
    }

    /// Whether it means every page that `other` means.
    #[must_use]
    pub fn includes(&self, other: &Self) -> bool {
        self.domain.is_none_or(|named| other.domain == Some(named))
            && self.space.is_none_or(|named| other.space == Some(named))
            && self.writer.is_none_or(|named| other.writer == Some(named))
    }
}

/// Where a page lies on an SSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// Which file or device.
    pub device: DeviceId,
    /// Which segment of it.
    pub segment: SegmentId,
    /// Which use of that segment: a record of an earlier use is not this record.
    pub segment_use: SegmentUse,
    /// The record's index inside the segment, in the order of appending.
    pub record: u32,
}

/// A storage tier, as far as a lookup reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// Host memory: ready at once.
    Dram,
    /// NVMe: must be read first.
    Ssd,
}

/// Where a ready page lies for the client: a byte offset into a part of the arena (zero-copy
/// mode), or, with `part` = [`PagePlace::STAGING`], into the space's staging area (copy mode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PagePlace {
    /// The arena part, or [`PagePlace::STAGING`].
    pub part: PartId,
    /// Offset in bytes.
    pub offset: u64,
}

impl PagePlace {
    /// Not a part of the arena but the space's own staging area.
    pub const STAGING: PartId = PartId(u32::MAX);
}

macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl $name {
            /// The byte that stands for it in a message.
            #[must_use]
            pub fn to_byte(self) -> u8 { self as u8 }

            /// What a byte in a message stands for; `None` if nothing.
            #[must_use]
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($value => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

byte_enum!(
    /// What became of one key of an offer.
    OfferOutcome {
        /// A slot was assigned: fill it and commit it.
        Wanted = 0,
        /// Already stored, or being read from SSD.
        Held = 1,
        /// No staging slot is free: the same key may be offered again once some are.
        NoCredit = 2,
        /// The page before it is in no tier, so it could never be found.
        NoParent = 3,
        /// No room, and nothing older to give up for it.
        Full = 4,
        /// Admission decided against it.
        NotAdmitted = 5,
        /// Somebody is storing it just now. Offered again it is held, or wanted if they gave up.
        Coming = 6,
    }
);

byte_enum!(
    /// What became of one committed slot.
    CommitOutcome {
        /// The page is visible to lookups.
        Stored = 0,
        /// Its key became resident in the meantime.
        Held = 1,
        /// No frame could be had for it.
        Full = 2,
        /// The slot was not assigned to this offer, or its page left with its parent.
        Invalid = 3,
        /// The daemon failed to copy it.
        Failed = 4,
    }
);

byte_enum!(
    /// How a fetch ended.
    FetchOutcome {
        /// Every page asked for was delivered.
        Complete = 0,
        /// A page was in no tier; those before it were delivered.
        Missing = 1,
        /// The deadline passed; what was ready by then was delivered.
        Deadline = 2,
        /// No frame or slot could be had.
        Full = 3,
        /// A record on SSD did not prove itself, or could not be read.
        Damaged = 4,
        /// The lease number was in use, the hold unknown or expired, the space not open.
        Invalid = 5,
        /// Released by its owner before it was complete.
        Released = 6,
        /// Computing the rest is faster than waiting for it.
        Slower = 7,
    }
);
