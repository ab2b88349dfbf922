//! The n-th-operation sweep: a scripted run in which transfer number n fails, for each n, once and
//! from then on.

use super::plan::Plan;
use super::report::Report;
use super::seeds::caught;
use super::world::World;
use crate::lying::{Fault, Sabotage};
use fastrand::Rng;

/// What a sweep fails transfers by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweptFault {
    /// The transfer fails with an I/O error.
    Error,
    /// It moves nothing, or something that is not whole blocks, and says so.
    Short,
    /// It is interrupted. It is tried again, so there is no "from then on".
    Interrupted,
    /// It says that it was done, and was not; reads and flushes fail.
    Lost,
}

/// A sweep.
#[derive(Debug, Clone, Copy)]
pub struct Sweep {
    /// How transfers fail.
    pub fault: SweptFault,
    /// Whether all after the n-th fail too.
    pub for_good: bool,
    /// Whether the store is encrypted.
    pub encrypted: bool,
}

/// A run is not this long.
const MOST_TRANSFERS: u64 = 10_000;
/// One script is as good as another, as long as it kills, cuts, stores and loads.
const SCRIPT: u64 = 3;

impl Sweep {
    /// Runs it until nothing is left to fail; how many runs there were, and what they came to.
    ///
    /// # Errors
    /// A run broke a promise: which transfer had failed, and what broke.
    pub fn run(&self) -> Result<(u64, Report), String> {
        let mut sum = Report::default();
        for first in 0..MOST_TRANSFERS {
            let outcome = caught(|| self.run_once(first));
            let (clean, report) = outcome.map_err(|message| {
                format!("{self:?}, beginning with transfer {first}: {message}")
            })?;
            sum.add(&report);
            if clean {
                return Ok((first, sum));
            }
        }
        Err(format!("{self:?}: more than {MOST_TRANSFERS} transfers"))
    }

    /// One run; whether it had fewer transfers than it takes to fail.
    fn run_once(&self, first: u64) -> (bool, Report) {
        let mut rng = Rng::with_seed(SCRIPT);
        let plan = Plan::script(&mut rng, self.encrypted);
        let world = World::with_plan(plan, rng, false);
        let fault = match self.fault {
            SweptFault::Error => Fault::ReadError,
            SweptFault::Short => Fault::Short,
            SweptFault::Interrupted => Fault::Interrupted,
            SweptFault::Lost => Fault::Lost,
        };
        let for_good = self.for_good && self.fault != SweptFault::Interrupted;
        let disk = world.devices[0].disk.clone();
        disk.sabotage(Sabotage { first, for_good, fault });
        let report = world.run();
        (disk.transfers() <= first, report)
    }
}
