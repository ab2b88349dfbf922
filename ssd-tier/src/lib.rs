//! The page log: pages on NVMe, in one preallocated file of segments.
//!
//! This crate owns the file and its format (`docs/disk-format.md`), the ring or the threads that
//! move bytes between it and the arena, the proof of every record, and finding the records again
//! after a restart or a crash. [`PageLog`] is the handle; operations go in through
//! [`PageLog::submit`] and come out as [`Completion`]s.
//!
//! It never decides what is kept: which page is appended, relocated or given up, and when, is
//! said by its owner. It knows neither keys nor prefixes beyond carrying them.

mod cipher;
mod config;
mod depth;
mod draft;
mod engine;
mod entropy;
mod error;
mod format;
mod inspect;
mod key;
mod lacks;
mod layout;
mod log;
mod look;
mod machine;
mod op;
mod pool;
mod proof;
mod purges;
mod records;
mod recovery;
mod ring;
mod scratch;
mod seal;
mod segment;
mod storage;
mod store;
mod watch;
mod writer;

pub use config::{EngineChoice, LogConfig, LogCounters, LogFacts, RecoveredRecord, Recovery};
pub use engine::{Done, Engine, Io, Kind};
pub use entropy::Entropy;
pub use error::OpenError;
pub use inspect::{
    Damage, DamagedRecord, InspectError, Inspector, RecordFacts, SegmentContents, SegmentFacts,
    SegmentState, StoreFacts, SuperblockCopy, Verification,
};
pub use key::{KeyError, StoreKey};
pub use log::{PageLog, PreparedLog, Sink};
pub use machine::Machine;
pub use op::{AppendOutcome, Completion, Health, Op, ReadOutcome, RelocateOutcome};
pub use purges::{KeptPurges, PurgeList};
pub use storage::Storage;

#[cfg(test)]
mod tests;
