use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// One connected process, as the daemon numbers it. Never used twice by one daemon.
    SessionId(u64)
);
id!(
    /// Correlates a reply with its request. Chosen by the client, unique among those in flight.
    RequestId(u32)
);
id!(
    /// A lease, numbered by the client; unique inside its session.
    LeaseId(u64)
);
id!(
    /// A hold, numbered by the daemon.
    HoldId(u64)
);
id!(
    /// An accepted offer, numbered by the daemon.
    OfferId(u64)
);
id!(
    /// A space as the daemon numbers it for the time it runs: (domain, space digest).
    SpaceId(u32)
);
id!(
    /// A slot of a session's staging area for one space. Its offset is `slot × frame_bytes`.
    SlotId(u32)
);
id!(
    /// Room for one page in DRAM.
    FrameId(u32)
);
id!(
    /// One fixed-size piece of the arena: one memfd.
    PartId(u32)
);
id!(
    /// A piece of work handed to a copy worker or to the page log; unique while the daemon runs.
    JobId(u64)
);
id!(
    /// One SSD file or device of the daemon.
    DeviceId(u8)
);
id!(
    /// A purge. A later one has the larger number, on this node and for good: the seconds since
    /// 1970 when it began, or more. 0: none.
    PurgeId(u32)
);
id!(
    /// A segment's position on its device.
    SegmentId(u32)
);
id!(
    /// Which use of a segment. Of all uses of a device's segments, a later one has the larger
    /// number.
    SegmentUse(u64)
);
id!(
    /// A daemon's lifetime with one arena. A client that sees it change lets its mappings go.
    Epoch(u64)
);
id!(
    /// When a request came, by the clock of its domain: all stores and touches of one request carry
    /// the same stamp. Zero means "now".
    Stamp(u64)
);
/// What makes a hold or a lease another session's: drawn at random, good for one use inside one
/// domain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever knows it may use it: not for logs.
        f.write_str("Token(..)")
    }
}

/// A security boundary (tenant): the first 16 bytes of a keyed BLAKE3 of its name. Derived from
/// the authenticated connection, never from a request's field.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct DomainId(pub [u8; 16]);

impl DomainId {
    /// The domain called `name`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("undercroft domain v1");
        hasher.update(name.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(id)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
