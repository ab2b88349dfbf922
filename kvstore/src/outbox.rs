//! What waits to be sent to one session: bytes, and descriptors bound to positions among them.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use undercroft_wire::{Reply, RequestId, encode_reply};

/// A session that lets more than this pile up is not reading and is closed.
pub(crate) const MAX_OUTBOX_BYTES: usize = 16 << 20;

/// Bytes sent that are worth moving the rest for.
const COMPACT_BYTES: usize = 64 << 10;

/// The queue of one session.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Descriptors and the position of the frame each one travels with.
    descriptors: VecDeque<(usize, Arc<OwnedFd>)>,
}

impl Outbox {
    /// Queues a message.
    pub(crate) fn push(&mut self, request: RequestId, reply: &Reply) {
        encode_reply(&mut self.bytes, request, reply);
    }

    /// Queues a message that carries a descriptor.
    pub(crate) fn push_with(&mut self, request: RequestId, reply: &Reply, fd: Arc<OwnedFd>) {
        self.descriptors.push_back((self.bytes.len(), fd));
        self.push(request, reply);
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Bytes waiting.
    pub(crate) fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends what the socket takes. `WouldBlock` means the rest must wait.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        let outcome = self.send_all(socket);
        self.compact();
        outcome
    }

    fn send_all(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        while self.sent < self.bytes.len() {
            let sent = self.send_once(socket)?;
            self.sent += sent;
        }
        Ok(())
    }

    /// Forgets what was sent, or a reader who is never quite done would have it all kept.
    fn compact(&mut self) {
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            // A burst must not keep its memory for ever.
            self.bytes.shrink_to(256 << 10);
        } else if self.sent >= COMPACT_BYTES && self.sent >= self.waiting() {
            // Not more often than that: what is moved is paid for by what was sent.
            self.bytes.drain(..self.sent);
            for (at, _) in &mut self.descriptors {
                *at -= self.sent;
            }
        } else {
            return;
        }
        self.sent = 0;
    }

    fn send_once(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<usize> {
        let carries = matches!(self.descriptors.front(), Some((at, _)) if *at == self.sent);
        let fence = self.descriptors.iter().map(|(at, _)| *at).find(|at| *at > self.sent);
        let end = fence.unwrap_or(self.bytes.len());
        let bytes = [IoSlice::new(&self.bytes[self.sent..end])];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if !carries {
            let mut none = SendAncillaryBuffer::default();
            return Ok(sendmsg(socket, &bytes, &mut none, flags)?);
        }
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let (_, fd) = self.descriptors.front().expect("checked above");
        let fds = [fd.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "room for one descriptor");
        let sent = sendmsg(socket, &bytes, &mut control, flags)?;
        self.descriptors.pop_front();
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
    use std::io::IoSliceMut;
    use std::mem::MaybeUninit;
    use std::os::unix::net::UnixStream;
    use undercroft_wire::{PartAdded, PartId, split_frame};

    fn receive(socket: &UnixStream) -> (Vec<u8>, usize) {
        let mut bytes = vec![0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(socket, &mut parts, &mut control, RecvFlags::empty()).unwrap();
        assert!(!got.flags.contains(ReturnFlags::CTRUNC));
        let fds = control
            .drain()
            .map(|m| match m {
                RecvAncillaryMessage::ScmRights(fds) => fds.count(),
                _ => 0,
            })
            .sum();
        bytes.truncate(got.bytes);
        (bytes, fds)
    }

    #[test]
    fn each_descriptor_travels_with_its_own_frame() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::default();
        outbox.push(RequestId(1), &Reply::Done);
        for part in 0..2 {
            let fd = Arc::new(OwnedFd::from(ours.try_clone().unwrap()));
            let reply =
                Reply::PartAdded(PartAdded { part: PartId(part), bytes: 4096, board_offset: 0 });
            outbox.push_with(RequestId(2), &reply, fd);
        }
        outbox.push(RequestId(3), &Reply::Done);
        outbox.send(ours.as_fd()).unwrap();
        assert!(outbox.is_empty());
        let mut frames = Vec::new();
        while frames.len() < 4 {
            let (bytes, fds) = receive(&theirs);
            let mut at = 0;
            let mut here = Vec::new();
            while let Some((header, _, taken)) = split_frame(&bytes[at..]).unwrap() {
                here.push(header.request.0);
                at += taken;
            }
            assert_eq!(fds, usize::from(here.contains(&2)), "{here:?}");
            frames.extend(here);
        }
        assert_eq!(frames, [1, 2, 2, 3]);
    }

    #[test]
    fn a_reader_that_does_not_read_leaves_bytes_waiting() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::default();
        while outbox.waiting() < 4 << 20 {
            outbox.push(RequestId(1), &Reply::Done);
        }
        let error = outbox.send(ours.as_fd()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        assert!(!outbox.is_empty() && outbox.waiting() < 4 << 20);
    }

    #[test]
    fn a_reader_that_is_never_done_does_not_make_the_queue_grow() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut outbox = Outbox::default();
        let (mut sent, mut received, mut fds) = (0, 0, 0);
        for round in 0..2000 {
            while outbox.waiting() < 1 << 20 {
                outbox.push(RequestId(1), &Reply::Done);
            }
            if round % 100 == 0 {
                let fd = Arc::new(OwnedFd::from(ours.try_clone().unwrap()));
                let reply =
                    Reply::PartAdded(PartAdded { part: PartId(0), bytes: 4096, board_offset: 0 });
                outbox.push_with(RequestId(2), &reply, fd);
                sent += 1;
            }
            outbox.send(ours.as_fd()).unwrap_err();
            assert!(outbox.bytes.len() < 4 << 20, "{} bytes kept", outbox.bytes.len());
            for _ in 0..16 {
                let (bytes, with) = receive(&theirs);
                received += bytes.len();
                fds += with;
            }
        }
        assert!(received > 16 << 20 && fds > 0 && fds <= sent, "{received} {fds} {sent}");
    }
}
