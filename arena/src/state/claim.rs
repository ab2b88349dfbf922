//! One daemon writes an arena. Two that did would each give away what the other has filled.

use super::error::StateError;
use crate::ArenaError;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// The right to write a state file, and the arena it speaks of: a lock on the file that no other
/// process shares, gone with this one however it ends.
#[derive(Debug)]
pub(super) struct Claim {
    own: OwnedFd,
}

impl Claim {
    /// Claims the file behind `fd`. The descriptor itself is of no use for that: whoever keeps or
    /// passes it on has the same open file, and with it the same lock.
    ///
    /// # Errors
    /// Another process has it, or the file cannot be opened once more.
    pub(super) fn on(fd: &OwnedFd) -> Result<Self, StateError> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let own = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(ArenaError::system("open the state file once more", 0))?;
        match flock(&own, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { own }),
            Err(Errno::AGAIN) => Err(StateError::Claimed),
            Err(errno) => Err(ArenaError::system("lock the state file", 0)(errno).into()),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing it would do, but for a process that was forked off without our knowing: that one
        // has the same open file. A lock that is left is one that the next daemon is refused.
        let _unlocked = flock(&self.own, FlockOperation::NonBlockingUnlock);
    }
}
