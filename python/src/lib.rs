//! The client for Python: `undercroft._native`.
//!
//! This crate owns the translation and nothing else: Python's objects into the client's, its
//! outcomes into Python's, memory of all kinds into devices, and the threads on which loads and
//! stores go on that an engine has only started. A miss is a value here too; exceptions are for
//! arguments that cannot be and for what cannot be made. Every call that can wait lets other Python
//! threads run meanwhile. In a forked child every call misses.

#![expect(unsafe_code, reason = "memory comes from Python by its address")]

mod arguments;
mod client;
mod device;
mod error;
mod identity;
mod keys;
mod layout;
mod lookup;
mod memory;
mod module;
mod outcome;
mod space;
mod task;
