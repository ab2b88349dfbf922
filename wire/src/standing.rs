use serde::{Deserialize, Serialize};
use std::fmt;

/// Why pages are delivered into a session's staging area although the arena could be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyReason {
    /// The client asked for it: its device cannot register memory that it may only read.
    Asked,
    /// `copy.mode` or `domain.mode` says so.
    Configured,
    /// Nobody would tell of its process's end, and so when the frames it reads are free.
    Unwatched,
    /// Its process has rights with which it could open the arena for writing.
    Privileged,
    /// It is of the daemon's own user, to whom the arena's file belongs, and in a container.
    OwnUserContained,
    /// It is in a container whose root could open the arena for writing.
    Container,
    /// The system does not tell what its process could do.
    Unknown,
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "it asked for it",
            Self::Configured => "by configuration",
            Self::Unwatched => "nobody would tell of its end",
            Self::Privileged => "it has rights with which it could write the arena",
            Self::OwnUserContained => {
                "a container of the daemon's own user, which could write the arena"
            }
            Self::Container => "a container whose root could write the arena",
            Self::Unknown => "the system does not tell whether it could write the arena",
        })
    }
}

/// What the process of a session does, as far as the system tells. It is only asked of one that is
/// silent and holds frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessState {
    /// The system does not tell, or was not asked.
    #[default]
    Unknown,
    /// It runs or waits for something.
    Alive,
    /// It was stopped by a signal, a debugger or the freezer of its control group.
    Stopped,
    /// It has ended.
    Dead,
}

/// A call that this machine's kernel does not have or refuses, and what is done without it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fallback {
    /// The call, by the name its manual page has.
    pub call: String,
    /// The kernel that has it.
    pub since: String,
    /// What is done instead.
    pub instead: String,
    /// What that costs.
    pub cost: String,
}

impl Fallback {
    /// One of these words.
    #[must_use]
    pub fn new(call: &str, since: &str, instead: &str, cost: &str) -> Self {
        let [call, since, instead, cost] = [call, since, instead, cost].map(str::to_owned);
        Self { call, since, instead, cost }
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, since, instead, cost } = self;
        write!(f, "no {call} ({since}): {instead}; {cost}")
    }
}
