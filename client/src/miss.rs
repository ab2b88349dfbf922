use thiserror::Error;
use undercroft_wire::{FetchOutcome, RefusedReason};

/// Why a page was not found, not delivered or not stored. A value, not an error: an engine goes
/// on without the page. It can be shown, and passed on where a caller wants an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum MissReason {
    /// No tier holds the page.
    #[error("no tier holds the page")]
    Absent,
    /// No daemon is connected, or the connection was lost during the call.
    #[error("no daemon is connected")]
    Disconnected,
    /// The call's deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// A call's deadline passed and the daemon has shown no sign of life since. It was not asked.
    #[error("the daemon hangs")]
    Hung,
    /// The page's frame was filled anew while the page was copied out of it.
    #[error("the page changed while it was copied")]
    Changed,
    /// The daemon refused the request.
    #[error("the daemon refused the request: {0:?}")]
    Refused(RefusedReason),
    /// The daemon has not opened the space in this session.
    #[error("the space is not open")]
    NotOpen,
    /// This process was forked from the one that connected. It must connect anew.
    #[error("this process was forked from the connected one; connect anew")]
    Forked,
    /// The daemon has no frame or slot to deliver it in.
    #[error("no frame or slot can be had")]
    Full,
    /// Its record on SSD did not prove itself, or could not be read.
    #[error("the record on SSD is damaged")]
    Damaged,
    /// The hold is gone, or the call's arguments contradict each other.
    #[error("the hold is gone or the arguments contradict each other")]
    Invalid,
    /// The lease was released before the page was delivered.
    #[error("the lease was released early")]
    Released,
    /// Too many calls of this client wait for an answer.
    #[error("too many calls wait for an answer")]
    Busy,
    /// The run is longer than one request may be; what lies beyond was not asked for.
    #[error("the run is longer than one request may be")]
    TooLong,
    /// The device could not copy it.
    #[error("the device could not copy the page")]
    Device,
    /// Computing it is faster than loading it, as far as the daemon can tell.
    #[error("computing the page is faster than loading it")]
    Slower,
    /// Other bytes are kept under the blob's key, all of them, and stay.
    #[error("other bytes are kept under this key")]
    Taken,
}

impl MissReason {
    /// What a fetch's outcome means for the pages it did not deliver; `None` if it was complete.
    pub(crate) fn of_fetch(outcome: FetchOutcome) -> Option<Self> {
        match outcome {
            FetchOutcome::Complete => None,
            FetchOutcome::Missing => Some(Self::Absent),
            FetchOutcome::Deadline => Some(Self::Deadline),
            FetchOutcome::Full => Some(Self::Full),
            FetchOutcome::Damaged => Some(Self::Damaged),
            FetchOutcome::Invalid => Some(Self::Invalid),
            FetchOutcome::Released => Some(Self::Released),
            FetchOutcome::Slower => Some(Self::Slower),
        }
    }
}
