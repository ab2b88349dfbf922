//! Clients that do not play by the rules, and what shows that nobody else notices.

mod accomplice;
mod deaths;
mod footprint;
mod place;
mod raw;
mod script;
mod witness;

pub use accomplice::Accomplice;
pub use deaths::{Deaths, DeathsReport};
pub use footprint::Footprint;
pub use place::Place;
pub use raw::{RawClient, RawSpace};
pub use script::{LAST_STEP, die_at};
pub use witness::{Witness, WitnessReport};
