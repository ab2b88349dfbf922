mod driver;
mod options;
mod output;
mod report;
mod space;
mod tally;
mod watch;
mod worker;

pub use driver::replay;
pub use options::{Policy, PolicyError, ReplayOptions};
pub use report::{HitPages, LookupTimes, ReplayReport};
