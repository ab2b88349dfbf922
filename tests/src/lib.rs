//! What the black-box tests share: the real binary, a daemon run by it, an engine that checks
//! every byte, and a way to say that a test could not run. Beside them the lanes that take longer
//! than a test may, with what they have in common: a ledger of what was stored, a load, a survey
//! of what is left.

mod absence;
mod binary;
mod corrupt;
mod daemon;
mod engine;
mod gate;
mod golden;
mod gpu_checks;
mod hostile;
mod late_reads;
mod ledger;
mod lying;
mod manager;
mod oracle;
mod power_cut;
mod python;
mod restarts;
mod resting;
mod share;
mod sim;
mod site;
mod skip;
mod survey;
mod systemd;
mod traffic;
mod warm_restart;
mod web_page;

pub use absence::{Absence, AbsenceReport};
pub use binary::{program, run, run_as_ordinary_user};
pub use corrupt::{CorruptionReport, CorruptionTally, Corruptions};
pub use daemon::{DaemonOptions, PLAIN_POLICY, TestDaemon};
pub use engine::{Engine, EngineOptions, Inspected, PAGE_BYTES};
pub use gate::{Gate, Way};
pub use golden::golden_store;
pub use gpu_checks::{Checked, Findings, GpuCheck, GpuChecks, GpuReport, Outcome, be_killed};
pub use hostile::{
    Accomplice, Deaths, DeathsReport, Footprint, LAST_STEP, Place, RawClient, RawSpace, Witness,
    WitnessReport, die_at,
};
pub use late_reads::{LateReadsReport, late_reads};
pub use ledger::{Ledger, Settled, StoredChain};
pub use manager::Manager;
pub use oracle::{Distinction, coin, distinction};
pub use power_cut::{
    Cut, CutRound, DiskCounts, Moment, PowerCut, PowerCutReport, Survival, missing, run_contained,
    stop_with_input,
};
pub use python::{python, python_with_packages, read_store};
pub use restarts::{Ending, Restart, Restarts, RestartsReport};
pub use resting::{Resting, RestingReport};
pub use share::Share;
pub use sim::{Failure, Report, Seeds, Sweep, SweptFault, simulate};
pub use site::Site;
pub use skip::{skip, traces};
pub use systemd::{ControlGroup, be_engines, be_operator, boot, unbootable};
pub use traffic::{Traffic, TrafficOptions, TrafficReport, Wrong};
pub use undercroft_arena::Span;
pub use warm_restart::{Round, WarmRestart, WarmRestartReport};
pub use web_page::check_web_page;
