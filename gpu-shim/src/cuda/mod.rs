#![expect(unsafe_code, reason = "the CUDA driver is a C library, and moves bytes by address")]

//! GPUs, through the CUDA driver's API.
//!
//! The driver is loaded when the first device is made: one binary serves machines with and without
//! it. Every call is looked up before it is used, every failure is a [`CudaError`] that names the
//! call, and nothing here panics into an engine. The oldest driver supported is CUDA 12.0's (525).
//!
//! What is where: [`CudaDevice`] is the seam's [`Device`](crate::Device); [`Pins`] registers host
//! memory in the background; [`CopyMode`] are the ways a page is moved, of which the fastest that
//! copies right is found when a device is made.
//!
//! # What keeps copies safe
//!
//! A copy is under way until an event behind it on its stream has happened. Its transfer keeps the
//! pages' spans, and with them their mappings, and the device's memory until then, and waits when it
//! is dropped. A failure in the middle waits for what was begun. Where the context itself is lost
//! nothing can be waited for: the driver has ended all of its work then, and what remains in blocks
//! and pages is told as failed. Loads only read the arena, and stores only write the session's own
//! staging, of which nothing is committed after a failure: so no byte of anybody else's is at stake.

mod budget;
mod context;
mod copies;
mod device;
mod driver;
mod error;
mod feeder;
mod flight;
mod kernel;
mod measure;
mod memory;
mod mode;
mod pins;
mod plan;
mod pointer;
mod start;
mod stream;

pub use budget::Pace;
pub use device::{CudaDevice, CudaDeviceAfter, CudaOptions, Registered};
pub use error::CudaError;
pub use measure::{LinkCeiling, Measured, Modes, link_ceiling};
pub use mode::CopyMode;
pub use pins::{PinFacts, Pins};
pub use start::After;
pub use stream::{EngineEvent, EngineStream};

use start::CudaStart;

/// Whether there is a CUDA driver on this machine that has what we need. It is loaded and not
/// initialised: a process that asks may still fork.
#[must_use]
pub fn is_present() -> bool {
    driver::loaded().is_ok()
}
