//! Descriptors that the service manager has put into this process before it started.
#![expect(unsafe_code, reason = "descriptors that come as numbers are taken over")]

use crate::estate::Estate;
use rustix::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether they have been taken over: each can have one owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over what the service manager has kept or opened for this process: nothing the second
/// time.
pub(crate) fn take() -> Estate {
    let mut estate = Estate::default();
    if TAKEN.swap(true, Ordering::SeqCst) {
        return estate;
    }
    // The environment stays as it is, as other threads may be reading it: LISTEN_PID names this
    // process, and no child of it is meant.
    let named = match sd_notify::listen_fds_with_names(false) {
        Ok(named) => named,
        Err(error) => {
            tracing::warn!(%error, "what the service manager passes on cannot be used");
            return estate;
        }
    };
    for (number, name) in named {
        // SAFETY: by its protocol the service manager opened these numbers for this process and
        // for nothing else; the flag above sees to it that they are taken once.
        estate.add(&name, unsafe { OwnedFd::from_raw_fd(number) });
    }
    estate
}
