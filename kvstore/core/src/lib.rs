//! Every decision of the Undercroft daemon, as one pure state machine: [`Core`].
//!
//! This crate owns: the index of pages, frames and who may use them, the order in which pages
//! leave DRAM, leases and holds, offers and credits, fetches, which page lies on which SSD, what
//! reclaim does about it and what a sick SSD may cost. The daemon around it carries out
//! [`Action`]s and reports [`Event`]s.
//!
//! It never does I/O, reads a clock, starts a thread or knows a runtime; the same configuration
//! and events give the same actions. Every table is bounded by [`Limits`], and for each
//! tenant by [`DomainLimits`].

mod action;
mod admission;
mod ahead;
mod audit;
mod claims;
mod commits;
mod config;
mod cost;
mod density;
mod devices;
mod domains;
mod drains;
mod event;
mod expected;
mod fetches;
mod findings;
mod firsts;
mod frames;
mod gaps;
mod gathering;
mod health;
mod heat;
mod hints;
mod holds;
mod in_dram;
mod index;
mod jobs;
mod lanes;
mod learner;
mod leases;
mod letting;
mod listed;
mod lookups;
mod machine;
mod micros;
mod names;
mod notes;
mod obituaries;
mod offering;
mod offers;
mod order;
mod origins;
mod page;
mod parts;
mod pinning;
mod probes;
mod proofs;
mod purges;
mod quotas;
mod races;
mod reach;
mod reads;
mod reclaim;
mod recovery;
mod residency;
mod restore;
mod restored;
mod retention;
mod segments;
mod sessions;
mod slabs;
mod spaces;
mod stats;
mod timers;
mod tokens;
mod turnover;
mod waves;
mod wear;
mod weighing;
mod worth;

pub use action::{Action, FramePlace};
pub use config::{
    Admission, Config, ConfigError, DeviceConfig, DomainConfig, DomainLimits, Limits, Policy,
    UnknownAdmission, UnknownPolicy, WriteBudget,
};
pub use cost::{LoadPolicy, UnknownLoadPolicy};
pub use event::{
    AppendOutcome, CopyOutcome, Event, Health, ProcessId, ReadOutcome, RecoveredRecord,
};
pub use findings::Explanation;
pub use firsts::FirstPage;
pub use machine::Core;
pub use micros::Micros;
pub use notes::Note;
pub use races::CostStats;
pub use restored::{
    Restored, RestoredFrame, RestoredLease, RestoredPage, RestoredSession, RestoredSlab,
    RestoredSpace,
};
pub use stats::{
    DeviceReport, DeviceState, DeviceStats, DomainReport, Prefetched, SessionLeases, SpaceInfo,
    Stats, TierFill,
};
