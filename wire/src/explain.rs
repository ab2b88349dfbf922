use crate::{SessionId, SpaceDigest};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most lookups that one answer explains.
pub const MAX_EXPLAINED: u32 = 1024;

/// Why a page that was asked for was not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissCause {
    /// Nobody stored it, or it is gone for so long that it is not remembered: a daemon remembers as
    /// many as a small table holds, and nothing of its predecessors.
    NeverStored,
    /// It was offered and not taken: DRAM was full of what is worth more, no slot was free, or
    /// whoever offered it did not bring it.
    NotTaken,
    /// It is being stored.
    Coming,
    /// It left DRAM where there is no SSD, or none that takes pages just then.
    Evicted,
    /// It left DRAM and was not thought worth writing.
    NotAdmitted,
    /// It left DRAM, and no SSD took it: writing it failed or found no room, or its domain has as
    /// much there as it may.
    NotWritten,
    /// It was dropped from SSD to make room.
    Reclaimed,
    /// It was dropped from SSD because its domain had more there than it may.
    OverQuota,
    /// Its record on SSD failed its check.
    Damaged,
    /// Its record on SSD could not be read, or not be moved.
    Unreadable,
    /// Its record was found at the start and has not proved itself yet.
    Unproved,
    /// It is on an SSD that does not answer just now.
    Silent,
    /// It was on an SSD that is lost.
    DeviceLost,
    /// Nothing is known of it, and what lies on an SSD is still being found out after the start.
    Recovering,
    /// Somebody had it forgotten.
    Purged,
    /// It was older than its domain keeps pages.
    Expired,
    /// It is not known in this space and is held in another one of the same domain: another model,
    /// adapter, layout, rank or group.
    OtherSpace,
    /// It left DRAM, and writing it would have gone beyond the write budget.
    OverBudget,
    /// It is there, and computing it is faster than loading it.
    Slower,
}

impl MissCause {
    /// All there are, in their order.
    pub const ALL: [Self; 19] = [
        Self::NeverStored,
        Self::NotTaken,
        Self::Coming,
        Self::Evicted,
        Self::NotAdmitted,
        Self::NotWritten,
        Self::Reclaimed,
        Self::OverQuota,
        Self::Damaged,
        Self::Unreadable,
        Self::Unproved,
        Self::Silent,
        Self::DeviceLost,
        Self::Recovering,
        Self::Purged,
        Self::Expired,
        Self::OtherSpace,
        Self::OverBudget,
        Self::Slower,
    ];

    /// Its name in JSON and in the metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverStored => "never-stored",
            Self::NotTaken => "not-taken",
            Self::Coming => "coming",
            Self::Evicted => "evicted",
            Self::NotAdmitted => "not-admitted",
            Self::NotWritten => "not-written",
            Self::Reclaimed => "reclaimed",
            Self::OverQuota => "over-quota",
            Self::Damaged => "damaged",
            Self::Unreadable => "unreadable",
            Self::Unproved => "unproved",
            Self::Silent => "silent",
            Self::DeviceLost => "device-lost",
            Self::Recovering => "recovering",
            Self::Purged => "purged",
            Self::Expired => "expired",
            Self::OtherSpace => "other-space",
            Self::OverBudget => "over-budget",
            Self::Slower => "slower",
        }
    }
}

impl fmt::Display for MissCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverStored => "never stored, or gone for so long that nothing remembers it",
            Self::NotTaken => {
                "offered and not taken: DRAM was full of what is worth more, no slot was free, or \
                 it was not brought"
            }
            Self::Coming => "being stored just then",
            Self::Evicted => "evicted from DRAM, and there was no SSD to take it",
            Self::NotAdmitted => "evicted from DRAM, and not thought worth writing to SSD",
            Self::NotWritten => {
                "evicted from DRAM, and no SSD took it: a write failed, there was no room, or its \
                 domain's quota was used up"
            }
            Self::Reclaimed => "dropped from SSD to make room",
            Self::OverQuota => "dropped from SSD, as its domain had more there than its quota",
            Self::Damaged => "its record on SSD failed its check",
            Self::Unreadable => "its record on SSD could not be read or moved",
            Self::Unproved => "on SSD, and not proved yet since the start",
            Self::Silent => "on an SSD that did not answer just then",
            Self::DeviceLost => "on an SSD that is lost",
            Self::Recovering => "not known, while an SSD was still being read after the start",
            Self::Purged => "purged",
            Self::Expired => "older than its domain keeps pages (max_age)",
            Self::OtherSpace => "not known in this space, but held in another one",
            Self::OverBudget => "evicted from DRAM, and the write budget of SSDs was used up",
            Self::Slower => "there, but computed faster than loaded",
        })
    }
}

/// Why did lookups find no more than they did?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explain {
    /// So many, the newest ones; 1 to [`MAX_EXPLAINED`].
    pub last: u32,
    /// Of this session only.
    pub session: Option<SessionId>,
}

/// What lookups came to, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Explained {
    /// When this was answered, by the daemon's clock: milliseconds since 1970.
    pub now_unix_ms: u64,
    /// As many as are remembered and were asked for.
    pub lookups: Vec<ExplainedLookup>,
}

/// One lookup, or several that the board answered one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedLookup {
    /// When it was answered, by the daemon's clock: milliseconds since 1970.
    pub unix_ms: u64,
    /// Whose.
    pub session: SessionId,
    /// Its process.
    pub pid: u32,
    /// What the client calls itself; empty once it is gone.
    pub name: String,
    /// Its domain.
    pub domain: String,
    /// What it came to.
    pub finding: Finding,
}

/// What a lookup came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// The daemon looked.
    Looked(Looked),
    /// So many lookups were not sent: the board said that nothing begins with their first pages.
    Board {
        /// How many.
        lookups: u32,
    },
    /// No lookup: the space was not opened for the session, as it names pages otherwise than others.
    OtherProbe(OtherProbe),
}

/// A space was refused to a client whose hash makes another key of the probe prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherProbe {
    /// The space.
    pub space: SpaceDigest,
    /// The first eight bytes of the key that others have told of.
    pub known: [u8; 8],
    /// The first eight bytes of the client's.
    pub told: [u8; 8],
}

/// What the daemon found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// The space asked about; of several the one that lacks the first page not found, or the first.
    pub space: SpaceDigest,
    /// How many were asked about.
    pub spaces: u32,
    /// How many keys.
    pub keys: u32,
    /// Leading pages in DRAM in every space.
    pub dram: u32,
    /// Leading pages of which at least one space's must be read from SSD.
    pub ssd: u32,
    /// The first page that was not found; `None` if all were.
    pub miss: Option<Miss>,
}

/// The first page that a lookup did not find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// The first eight bytes of its key: enough to follow it, and too few to ask for it.
    pub key: [u8; 8],
    /// Why it was not there.
    pub cause: MissCause,
    /// When it left, where that is known: seconds since 1970.
    pub left_unix_s: Option<u32>,
    /// The space that has it, where that is the cause.
    pub held_in: Option<SpaceDigest>,
}
