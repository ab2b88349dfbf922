use std::io;
use thiserror::Error;

/// What can go wrong with shared memory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// A system call failed.
    #[error("cannot {what} ({bytes} bytes): {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// How large the memory is or should be, bytes.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is less memory than is needed.
    #[error("it needs {needed} bytes more, and {of} has room for {room}")]
    NoRoom {
        /// What is needed, page tables and something for others included, bytes.
        needed: u64,
        /// What can be had now, bytes.
        room: u64,
        /// What could be had at best, if everybody else gave back what they have, bytes.
        most: u64,
        /// What sets that bound.
        of: String,
    },
    /// A span outside its region.
    #[error("span {offset}..+{len} is outside a region of {bytes} bytes")]
    OutOfRange {
        /// Where the span should start.
        offset: u64,
        /// How long it should be, bytes.
        len: u64,
        /// Size of the region, bytes.
        bytes: u64,
    },
    /// A slot that the staging area does not have.
    #[error("slot {slot} is outside a staging area of {slots} slots")]
    Slot {
        /// The slot asked for.
        slot: u32,
        /// How many there are.
        slots: u32,
    },
    /// A size that no region can have.
    #[error("{what} is {found}, allowed {allowed}")]
    Size {
        /// Which size.
        what: &'static str,
        /// What was asked for.
        found: u64,
        /// What is allowed, for people.
        allowed: &'static str,
    },
    /// A received descriptor is not as large as announced.
    #[error("the descriptor has {found} bytes, announced were {expected} bytes")]
    WrongSize {
        /// Its real size, bytes.
        found: u64,
        /// The announced size, bytes.
        expected: u64,
    },
    /// A directory that is not fit to hold the arena.
    #[error("the mount cannot hold the arena: {what}")]
    Mount {
        /// What is wrong with it.
        what: &'static str,
    },
    /// No mounts are to be had.
    #[error("cannot {what}: {source}")]
    Mounting {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Memory that others could write.
    #[error("the arena would not be protected: {what}")]
    Unprotected {
        /// Why.
        what: &'static str,
    },
    /// A descriptor that is not of a board this build reads.
    #[error("the descriptor is not of a board of version 1")]
    NotBoard,
    /// A received descriptor could still shrink under its mapping.
    #[error("the descriptor is not sealed against shrinking, growing and further seals")]
    NotSealed,
}

impl ArenaError {
    pub(crate) fn system(what: &'static str, bytes: u64) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System { what, bytes, source: errno.into() }
    }
}
