use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Wakes the keeper thread while it waits for the socket.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    pub(crate) fn ring(&self) {
        // The only refusal possible is a full counter, and then the bell rings already.
        let _full = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(crate) fn silence(&self) {
        let mut count = [0; 8];
        let _silent = rustix::io::read(&self.0, &mut count);
    }

    /// Waits until it rings or `until` has come. Says whether it rang.
    pub(crate) fn wait(&self, until: Instant) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&time_left(until))) {
                Ok(0) => return false,
                Ok(_) => {
                    self.silence();
                    return true;
                }
                Err(Errno::INTR) => {}
                // Out of kernel memory: not worth spinning over.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(1));
                    return false;
                }
            }
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The time left until `until`, as system calls want it.
pub(crate) fn time_left(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

/// The moment `span` from now; a span beyond a year counts as a year.
pub(crate) fn from_now(span: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + span.min(YEAR)
}

/// Whole milliseconds for a message, rounded up, at least 1.
pub(crate) fn whole_ms(span: Duration) -> u32 {
    let ms = span.as_nanos().div_ceil(1_000_000);
    u32::try_from(ms).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_bell_rings_once_however_often_it_was_pulled() {
        let bell = Bell::new().unwrap();
        bell.ring();
        bell.ring();
        assert!(bell.wait(from_now(Duration::from_secs(5))));
        assert!(!bell.wait(Instant::now()));
    }

    #[test]
    fn spans_saturate() {
        assert!(from_now(Duration::MAX) > Instant::now());
        assert_eq!(whole_ms(Duration::ZERO), 1);
        assert_eq!(whole_ms(Duration::from_micros(1001)), 2);
        assert_eq!(whole_ms(Duration::MAX), u32::MAX);
        assert_eq!(time_left(Instant::now()).tv_sec, 0);
    }
}
