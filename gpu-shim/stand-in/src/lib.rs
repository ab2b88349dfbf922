//! A CUDA driver made of host memory, for tests of the code that uses one.
//!
//! Built as a library, this is a `libcuda.so` with the calls that `gpu-shim` makes: streams are
//! threads that work off their queues in order, device memory is the heap's, and the rules of the
//! driver are held more strictly than it holds them itself. What is freed too early, used too long
//! or never given back is counted with a text; calls and operations fail when they are told to.
//!
//! Linked into a test, it loads that library in the driver's place ([`StandIn`]), which has a state
//! of its own, and speaks with it. Nothing that ships names this crate.

mod calls;
mod capture;
mod codes;
mod context;
mod entries;
mod event;
mod failures;
mod handles;
mod heap;
mod kernel;
mod leaving;
mod loaded;
mod mappings;
mod memory;
mod module;
mod operation;
mod ranges;
mod report;
mod rows;
mod settings;
mod state;
mod stream;

pub use codes::Code;
pub use loaded::{Chaos, LoadError, StandIn};
pub use report::Report;
pub use settings::Setting;
