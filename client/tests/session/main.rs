//! The client against a daemon that does what the test says: over a real socket, with real
//! descriptors, in a thread of the test.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod arena;
mod blobs;
mod board;
mod fake_daemon;
mod faults;
mod happy;
mod layers;
mod many_threads;
mod opening;
mod reconnect;
mod shelf;
mod slots;
mod tokens;
mod world;
mod worth;
