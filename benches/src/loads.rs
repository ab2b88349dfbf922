//! Loading against computing: an engine that is simulated asks for prefixes that lie on SSD, with a
//! disk as fast as it is and with one that is slower than computing, and with the daemon's cost
//! model off, advisory and enforced.

mod driver;
mod engine;
mod options;
mod report;
mod throttle;

pub use driver::loads;
pub use options::LoadsOptions;
pub use report::{LoadsReport, LoadsRow};
