//! Shared memory: parts of the arena, staging areas, and the spans into them.
//!
//! This crate owns every mapping of the workspace: it creates memfds, seals and checks them, maps
//! and pre-faults them, and moves bytes between them. It never decides what lies where.
//!
//! # The contract of a span
//!
//! A [`Span`] is a piece of memory that other threads, other processes and devices may reach too.
//! No lock guards it; the state machine does, and these are its promises:
//!
//! - While a frame is being filled, exactly one job has it. Afterwards it is immutable until it is
//!   filled again, which happens only when no lease, read or append of it is left.
//! - A slot of a staging area belongs to one side at a time. A client may break that promise. So
//!   the daemon never looks at staging in place ([`Span::read`] refuses to): it copies a page out
//!   with [`copy_checked`] and believes the copy.
//! - Whoever calls [`Span::read`] or [`Span::write`] holds that promise for the time of the call.

mod backing;
mod board;
mod error;
mod file_id;
mod kernel;
mod mapping;
mod memfd;
mod memory;
mod mount;
mod numa;
mod own_mounts;
mod part;
mod part_facts;
mod part_view;
mod prefault;
mod region;
mod room;
mod shared_file;
mod smaps;
mod span;
mod staging;
mod state;
mod stream;
mod sum;

pub use backing::Backing;
pub use board::{Board, BoardView, DaemonState};
pub use error::ArenaError;
pub use file_id::FileId;
pub use kernel::fallbacks;
pub use memory::Memory;
pub use mount::Mount;
pub use own_mounts::{MountPair, OwnMounts};
pub use part::Part;
pub use part_facts::{HugePages, PageKind, PartFacts, PartOptions};
pub use part_view::PartView;
pub use region::MappingId;
pub use span::Span;
pub use staging::{Staging, StagingView};
pub use state::{
    FrameRow, LeaseRow, PageRow, PartRow, SessionRow, SlabRow, SpaceRow, State, StateError,
    StateLimits, Unkept,
};
pub use sum::{checksum, checksum_bytes, combine, copy_checked};

#[cfg(test)]
mod tests;
