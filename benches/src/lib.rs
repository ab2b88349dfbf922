//! Workloads and measurements: real and generated request traces, what their pages contain, an
//! exact reference for the eviction policy, trace replay through a running daemon, the limits of the
//! machine beside what the daemon reaches, what long contexts gain by being kept, and how much DRAM
//! and SSD some traffic is worth.
//!
//! This crate is a client of the daemon like any engine: it speaks to it over its socket only and
//! never links it; what it plans with is the daemon's core alone. The one exception to "no unsafe code" is the bare twin of the ring in
//! `limits`, which measures what the daemon's own ring is held against.

mod content;
mod daemon;
mod error;
mod exact_lru;
mod generate;
mod html;
mod interrupt;
mod limits;
mod loads;
mod longctx;
mod median;
mod plan;
mod progress;
mod record;
mod replay;
pub mod replay_defaults;
mod size;
mod trace;

pub use content::{PageContent, WrongBytes};
pub use error::BenchError;
pub use exact_lru::ExactLru;
pub use generate::{GeneratorOptions, generate};
pub use interrupt::Interrupt;
pub use limits::{
    CallerOptions, EchoOptions, LimitsOptions, LimitsReport, Machine, Row, caller, echo_peer,
    limits,
};
pub use loads::{LoadsOptions, LoadsReport, LoadsRow, loads};
pub use longctx::{
    BreakEven, Cache, ContextError, ContextTokens, DeviceChoice, DeviceChoiceError, Gpu, GpuError,
    LoadTime, LongctxOptions, LongctxReport, LongctxRow, Model, ModelError, Recompute, Scale,
    TierBreakEven, UTILISATION, longctx,
};
pub use plan::{
    CoreHits, CoreReplay, CoreTiers, Cost, PlanHits, PlanOptions, PlanReport, PlanRow, Prices,
    Speed, Traffic, Wear, Writes, plan,
};
pub use record::{RecordOptions, RecordReport, record};
pub use replay::{
    Ahead, AheadReport, FleetMember, FleetOptions, FleetReport, HitPages, LookupTimes,
    ReplayOptions, ReplayReport, replay, replay_by_fleet, replay_keys,
};
pub use size::{ByteRate, ByteSize, SizeError, TierSize};
pub use trace::{MAX_REQUEST_PAGES, RawRequest, Trace, TraceReader, TraceRequest, TraceStats};
pub use undercroft_core::{Admission, LoadPolicy, Micros, Policy};
