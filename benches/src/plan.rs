mod chart;
mod core_replay;
mod driver;
mod knee;
mod log;
mod money;
mod options;
mod outcome;
mod page;
mod report;
mod table;
#[cfg(test)]
mod tests;
mod text;

pub use core_replay::{CoreHits, CoreReplay, CoreTiers};
pub use driver::plan;
pub use money::{Cost, Prices, Wear};
pub use options::PlanOptions;
pub use report::{PlanHits, PlanReport, PlanRow, Speed, Traffic, Writes};
