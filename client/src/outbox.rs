use crate::connection::{Lost, locked};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

/// What messages that nobody waits for may pile up behind a daemon that does not read, bytes.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// What the queue keeps allocated between messages, bytes.
const KEPT_BYTES: usize = 256 << 10;

/// The sending side of a connection: whole frames in order, whoever's deadline passes while one
/// of them is half sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    /// Signalled when nothing waits any more.
    drained: Condvar,
    /// Whether something waits, to be asked without the lock.
    waiting: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    sent: usize,
    closed: bool,
}

/// How far a message got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The socket has all of it.
    Whole,
    /// Some of it waits for the socket to take more. It is never taken back.
    Partly,
}

/// Why a message was not accepted. Nothing of it was sent.
#[derive(Debug)]
pub(crate) enum NotSent {
    /// Another message waited for the socket until the deadline.
    Deadline,
    /// The connection is closed already.
    Closed,
    /// The connection must be closed.
    Lost(Lost),
}

impl Outbox {
    /// Sends a frame once nothing waits before it.
    pub(crate) fn send(
        &self,
        socket: BorrowedFd<'_>,
        until: Instant,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Sent, NotSent> {
        let mut queue = locked(&self.queue);
        while !queue.is_empty() {
            if queue.closed {
                return Err(NotSent::Closed);
            }
            self.write(&mut queue, socket)?;
            let left = until.saturating_duration_since(Instant::now());
            if queue.is_empty() {
                break;
            }
            if left.is_zero() {
                return Err(NotSent::Deadline);
            }
            // Whoever reads, or else the keeper, goes on writing and signals.
            queue = self
                .drained
                .wait_timeout(queue, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
        if queue.closed {
            return Err(NotSent::Closed);
        }
        encode(&mut queue.bytes);
        self.write(&mut queue, socket)
    }

    /// Sends a frame that nobody waits for and that must not get lost, behind what waits already.
    pub(crate) fn send_unasked(
        &self,
        socket: BorrowedFd<'_>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Sent, NotSent> {
        let mut queue = locked(&self.queue);
        if queue.closed {
            return Err(NotSent::Closed);
        }
        encode(&mut queue.bytes);
        self.write(&mut queue, socket)
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn flush(&self, socket: BorrowedFd<'_>) -> Result<Sent, NotSent> {
        let mut queue = locked(&self.queue);
        if queue.closed {
            return Err(NotSent::Closed);
        }
        self.write(&mut queue, socket)
    }

    /// Whether something waits for the socket.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        let mut queue = locked(&self.queue);
        queue.closed = true;
        queue.bytes = Vec::new();
        queue.sent = 0;
        self.waiting.store(false, Ordering::Release);
        self.drained.notify_all();
    }

    fn write(&self, queue: &mut Queue, socket: BorrowedFd<'_>) -> Result<Sent, NotSent> {
        while !queue.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(socket, &queue.bytes[queue.sent..], flags) {
                Ok(count) => queue.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.waiting.store(true, Ordering::Release);
                    if queue.bytes.len() - queue.sent > queue.limit() {
                        return Err(NotSent::Lost(Lost::NotReading));
                    }
                    return Ok(Sent::Partly);
                }
                Err(errno) => return Err(NotSent::Lost(Lost::System(errno))),
            }
        }
        queue.bytes.clear();
        queue.bytes.shrink_to(KEPT_BYTES);
        queue.sent = 0;
        if self.waiting.swap(false, Ordering::AcqRel) {
            self.drained.notify_all();
        }
        Ok(Sent::Whole)
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// One frame of any size may wait, and behind it a bounded pile of small ones.
    fn limit(&self) -> usize {
        undercroft_wire::MAX_BODY_BYTES as usize + MAX_WAITING_BYTES
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn a_frame_cut_by_a_deadline_is_finished_before_the_next() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let outbox = Outbox::default();
        let big = vec![1; 1 << 20];
        let sent = outbox.send(ours.as_fd(), soon(), |out| out.extend_from_slice(&big)).unwrap();
        assert_eq!(sent, Sent::Partly);
        let refused = outbox.send(ours.as_fd(), soon(), |out| out.push(2)).unwrap_err();
        assert!(matches!(refused, NotSent::Deadline), "{refused:?}");
        outbox.send_unasked(ours.as_fd(), |out| out.push(3)).unwrap();
        assert!(outbox.is_waiting());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        while outbox.flush(ours.as_fd()).unwrap() == Sent::Partly {
            std::thread::yield_now();
        }
        assert!(!outbox.is_waiting());
        drop(ours);
        let all = reader.join().unwrap();
        assert_eq!(all.len(), big.len() + 1);
        assert_eq!(all.last(), Some(&3));
    }

    #[test]
    fn a_pile_behind_a_daemon_that_does_not_read_is_bounded() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let outbox = Outbox::default();
        let refused = (0..1000)
            .map(|_| outbox.send_unasked(ours.as_fd(), |out| out.extend_from_slice(&[0; 64 << 10])))
            .find(Result::is_err)
            .unwrap();
        assert!(matches!(refused, Err(NotSent::Lost(Lost::NotReading))), "{refused:?}");
        outbox.close();
        assert!(matches!(outbox.flush(ours.as_fd()), Err(NotSent::Closed)));
    }
}
