//! The simulator: core, page logs on lying devices, and clients, in one thread and virtual time.
//! One seed decides everything; every byte that is handed out is compared with what it must be.

mod clients;
mod content;
mod device;
mod ledger;
mod plan;
mod purges;
mod replies;
mod report;
mod run;
mod seeds;
mod store;
mod sweep;
mod world;

pub use report::Report;
pub use seeds::{Failure, Seeds, simulate};
pub use sweep::{Sweep, SweptFault};
