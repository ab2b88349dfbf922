//! The vocabulary and the byte formats that every Undercroft crate shares.
//!
//! This crate owns: page keys and how they are chained ([`PageKey`], [`Chain`]), the identity
//! under which keys mean something ([`Space`], [`Family`]), the shape of a page ([`Geometry`]),
//! newtype ids, the messages between client and daemon and their framing.
//!
//! It never does I/O, holds no unsafe code, knows no clock and no runtime. Every decoder here is
//! bounded before it allocates: it may be fed with hostile bytes.

mod error;
mod explain;
mod frame;
mod geometry;
mod ids;
mod key;
mod message;
mod page;
mod run;
mod space;
mod standing;
mod status;

pub use error::DecodeError;
pub use explain::{
    Explain, Explained, ExplainedLookup, Finding, Looked, MAX_EXPLAINED, Miss, MissCause,
    OtherProbe,
};
pub use frame::{
    Cut, Decoded, HEADER_BYTES, Header, MAGIC, MAX_BODY_BYTES, PROTOCOL_MAX, PROTOCOL_MIN,
    decode_reply, decode_request, encode_reply, encode_request, negotiate, split_frame,
};
pub use geometry::{
    FRAME_ALIGN, Geometry, GeometryError, MAX_PAGE_BYTES, MAX_PARTS, MIN_PAGE_BYTES, frame_bytes,
};
pub use ids::{
    DeviceId, DomainId, Epoch, FrameId, HoldId, JobId, LeaseId, OfferId, PartId, PurgeId,
    RequestId, SegmentId, SegmentUse, SessionId, SlotId, SpaceId, Stamp, Token,
};
pub use key::{Chain, PageKey, probe_tokens};
pub use message::{
    BoardAdded, Commit, CommitReply, DropHold, Fetch, FetchEnd, FetchReady, FetchSource, Gift,
    Give, Given, Heirloom, Hello, Hint, HintKind, Lookup, LookupReply, Missed, Mode, Offer,
    OfferReply, OpenSpace, PartAdded, PartLetGo, PartRetired, Prefetch, PrefetchReply, Purge,
    Purged, Recorded, RecordedRun, Refused, RefusedReason, Release, Reply, Request, Rival,
    SpaceOpened, Take, TakenHold, Welcome,
};
pub use page::{
    CommitOutcome, Extent, FetchOutcome, OfferOutcome, Origin, PageIdentity, PagePlace, PurgeScope,
    Tier,
};
pub use run::{KeyRun, MAX_KEYS};
pub use space::{
    Dtype, Family, FamilyDigest, MAX_SPACES_PER_LOOKUP, MAX_TEXT_BYTES, Rank, Space, SpaceDigest,
    SpaceError,
};
pub use standing::{CopyReason, Fallback, ProcessState};
pub use status::{
    ArenaStatus, DeviceCondition, DomainStatus, GpuReport, HitStatus, LoadStatus,
    MAX_GPU_TEXT_BYTES, MissStatus, PrefetchStatus, ReloadStatus, SessionStatus, SpaceStatus,
    SsdDeviceStatus, SsdStatus, StartKind, StartStatus, StatusReport, StoreStatus, TierStatus,
    WearStatus,
};
