//! The C ABI of the client: `undercroft.h`, `libundercroft.so.1` and `libundercroft.a`.
//!
//! This crate owns the edge and nothing behind it: opaque handles, structs that can grow, an `int`
//! for every outcome, and that no panic leaves it. Its documentation is for readers of the header,
//! which `cargo xtask header` writes from it. What every call does is the client's.

#![expect(
    clippy::missing_safety_doc,
    reason = "what callers owe every function is said once, on top of the header"
)]

pub mod blob;
pub mod client;
pub mod device;
pub mod keys;
pub mod lookup;
pub mod outcome;
pub mod space;
pub mod task;
pub mod transfer;

mod grows;
mod strings;
