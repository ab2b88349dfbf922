mod bare_copy;
mod bare_echo;
mod bare_ring;
mod dram;
mod driver;
mod lookup;
mod machine;
mod pairs;
mod report;
mod rig;
mod ssd;

pub use bare_echo::{EchoOptions, echo_peer};
pub use driver::{LimitsOptions, limits};
pub use machine::Machine;
pub(crate) use machine::available_memory;
pub use report::{LimitsReport, Row};
