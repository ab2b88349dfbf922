#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod contract;
mod damage;
mod encryption;
mod faults;
mod golden;
mod hostile;
mod mending;
mod opening;
mod rig;
mod room;
mod sim;
mod simulated;
mod stores;
mod tending;
