use crate::ArenaError;
use thiserror::Error;

/// Why there is no state file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// The memory could not be made, inspected or mapped.
    #[error("the state file: {0}")]
    Arena(#[from] ArenaError),
    /// The descriptor is not a state file.
    #[error("not a state file: {what}")]
    NotState {
        /// What it lacks.
        what: &'static str,
    },
    /// A layout that this build does not read.
    #[error("the state file has layout version {found}, this build reads {oldest} to {newest}")]
    Version {
        /// Its version.
        found: u64,
        /// The oldest version this build reads.
        oldest: u64,
        /// The version this build writes.
        newest: u64,
    },
    /// Another daemon writes it.
    #[error("the state file is in use by another daemon")]
    Claimed,
    /// The head of the file does not prove itself.
    #[error(
        "the head of the state file is damaged: checksum {found:016x}, expected {expected:016x}"
    )]
    Damaged {
        /// The checksum it carries.
        found: u64,
        /// The checksum of what is there.
        expected: u64,
    },
}

/// Why something is not remembered. The state file is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unkept {
    /// The table has no room for one more.
    #[error("the table of {table} in the state file is full ({limit})")]
    Full {
        /// Which table.
        table: &'static str,
        /// How many rows it has.
        limit: u64,
    },
    /// It refers to something the state file does not know.
    #[error("the state file knows no such {what}")]
    Unknown {
        /// What is not known.
        what: &'static str,
    },
    /// It cannot be beside what is remembered already.
    #[error("the state file cannot hold this {what}: {why}")]
    Conflict {
        /// What cannot be.
        what: &'static str,
        /// Why.
        why: &'static str,
    },
}
