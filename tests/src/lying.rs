//! A device that lies, in the style of TigerBeetle's storage model: it knows what a truthful disk
//! would hold, and keeps what it holds instead as overlays. It stands behind the page log's own
//! seam, decides everything from a seed, and checks what only a disk can see: whose memory it was
//! lent, and that no key stream is ever used twice.

mod disk;
mod engine;
mod faults;
mod flight;
mod lender;
mod medium;
mod witness;

pub(crate) use disk::{LyingDisk, Sabotage};
pub(crate) use engine::LyingEngine;
pub(crate) use faults::{Atlas, Fault, Place, Rates, Tally};
