mod driver;
mod fleet;
mod fleet_report;
mod options;
mod output;
mod report;
mod space;
mod step;
mod tally;
mod watch;
mod worker;

pub use driver::replay;
pub use fleet::{FleetOptions, replay_by_fleet};
pub use fleet_report::{FleetMember, FleetReport};
pub use options::ReplayOptions;
pub(crate) use output::{Output, json_text};
pub use report::{HitPages, LookupTimes, ReplayReport};
pub(crate) use space::geometry;
