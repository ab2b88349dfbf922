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
pub(crate) use output::{Output, json_text};
pub use report::{HitPages, LookupTimes, ReplayReport};
pub(crate) use space::geometry;
