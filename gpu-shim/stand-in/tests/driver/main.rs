//! The stand-in through the library it is: every call by its symbol, as a program makes it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod calls;
mod copies;
mod elsewhere;
mod failures;
mod kernels;
mod rules;
mod sanitizer;
