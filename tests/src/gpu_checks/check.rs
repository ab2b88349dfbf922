use super::{
    Findings, GpuChecks, copies, disturbance, facts, killed, link, programs, random, registration,
};
use anyhow::Result;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Time for anything that takes seconds.
const PATIENCE: Duration = Duration::from_secs(180);

macro_rules! checks {
    ($($(#[$doc:meta])* $name:ident $text:literal => $run:path;)*) => {
        /// One of the checks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum GpuCheck { $($(#[$doc])* $name),* }

        impl GpuCheck {
            /// All there are, in the order they run.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it is called on the command line and in the report.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            pub(super) fn run(self, on: &GpuChecks) -> Result<Findings> {
                match self { $(Self::$name => $run(on)),* }
            }
        }
    };
}

checks! {
    /// What machine this is.
    Facts "facts" => facts::run;
    /// How fast large pinned copies are: what everything else is held against.
    Link "link" => link::run;
    /// How fast the arena and staging are registered, and whether read-only memory can be.
    Registration "registration" => registration::run;
    /// Every layout, by every mode, in every direction.
    Copies "copies" => copies::run;
    /// How much slower an engine computes beside a load.
    Disturbance "disturbance" => disturbance::run;
    /// Transfers at random, some of them dropped half-way.
    Random "random" => random::run;
    /// A client killed with copies under way.
    Killed "killed" => killed::run;
    /// `undercroft bench limits`, the link alone.
    Limits "limits" => programs::limits;
    /// What recomputing costs: a model of random weights under PyTorch.
    Prefill "prefill" => programs::prefill;
    /// `undercroft bench longctx` on this device.
    LongContext "longctx" => programs::long_context;
}

impl GpuCheck {
    /// After this long it counts as hung.
    pub(super) fn patience(self, on: &GpuChecks) -> Duration {
        match self {
            Self::Random => PATIENCE + Duration::from_secs_f64(on.minutes * 60.0),
            Self::LongContext | Self::Prefill => 4 * PATIENCE,
            _ => PATIENCE,
        }
    }
}

impl fmt::Display for GpuCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GpuCheck {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|check| check.name() == text);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|check| check.name()).collect();
            format!("no check is called {text:?}, allowed: {}", names.join(", "))
        })
    }
}
