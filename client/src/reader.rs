use crate::connection::Lost;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use undercroft_wire::{DecodeError, HEADER_BYTES, Header, split_frame};

/// Read at once where nothing longer is announced, bytes.
const READ_BYTES: usize = 64 << 10;
/// The most descriptors taken from one message, and the most that may wait for the frames they
/// belong to. A daemon sends one with each frame that carries one; more would fill up the engine's
/// table, so the kernel is given no room for them.
const MAX_FDS: usize = 16;

/// The receiving side of a connection. Whoever holds it reads for everybody.
pub(crate) struct Reader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    control: Vec<MaybeUninit<u8>>,
    /// Descriptors received and not yet claimed by a frame, in order.
    pub(crate) fds: VecDeque<OwnedFd>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was received names prompts' prefixes: how much of it is enough.
        let waiting = self.end - self.start;
        f.debug_struct("Reader").field("waiting", &waiting).field("fds", &self.fds).finish()
    }
}

impl Reader {
    pub(crate) fn new() -> Self {
        let control = rustix::cmsg_space!(ScmRights(MAX_FDS));
        Self {
            buffer: vec![0; READ_BYTES],
            start: 0,
            end: 0,
            control: vec![MaybeUninit::uninit(); control],
            fds: VecDeque::new(),
        }
    }

    /// Takes from the socket what is there. Says whether there may be more.
    pub(crate) fn fill(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Lost> {
        self.make_room()?;
        let mut control = RecvAncillaryBuffer::new(&mut self.control);
        let room = self.buffer.len() - self.end;
        let mut target = [IoSliceMut::new(&mut self.buffer[self.end..])];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(socket, &mut target, &mut control, flags) {
            Ok(got) => got,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(Lost::System(errno)),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Lost::DescriptorRefused);
        }
        if self.fds.len() > MAX_FDS {
            return Err(Lost::Protocol("more descriptors than frames for them".into()));
        }
        if got.bytes == 0 {
            return Err(Lost::Ended);
        }
        self.end += got.bytes;
        Ok(got.bytes == room)
    }

    /// The next whole frame, if there is one: its header and where its body lies.
    pub(crate) fn next_frame(&mut self) -> Result<Option<(Header, Range<usize>)>, DecodeError> {
        let split = split_frame(&self.buffer[self.start..self.end])?;
        let Some((header, _, taken)) = split else {
            return Ok(None);
        };
        let body = self.start + HEADER_BYTES..self.start + taken;
        self.start += taken;
        Ok(Some((header, body)))
    }

    /// Whether descriptors are left although every frame that began was taken.
    pub(crate) fn has_stray_fds(&self) -> bool {
        self.start == self.end && !self.fds.is_empty()
    }

    /// The bytes of a frame's body and the descriptors that wait, together.
    pub(crate) fn body(&mut self, range: Range<usize>) -> (&[u8], &mut VecDeque<OwnedFd>) {
        (&self.buffer[range], &mut self.fds)
    }

    /// Makes room for what is announced; every header is bounded before it is believed.
    fn make_room(&mut self) -> Result<(), Lost> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > 4 * READ_BYTES {
                self.buffer = vec![0; READ_BYTES];
            }
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let announced = match self.buffer[..self.end].first_chunk::<HEADER_BYTES>() {
            Some(head) => HEADER_BYTES + Header::parse(head)?.length as usize,
            None => HEADER_BYTES,
        };
        // Never no room at all: reading nothing would look like the end of the connection.
        let needed = announced.max(self.end + 1);
        if needed > self.buffer.len() {
            self.buffer.resize(needed, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use undercroft_wire::{Refused, RefusedReason, Reply, RequestId, decode_reply, encode_reply};

    fn refused(text_bytes: usize) -> Reply {
        let detail = "x".repeat(text_bytes);
        Reply::Refused(Refused { reason: RefusedReason::Busy, detail })
    }

    #[test]
    fn frames_cut_anywhere_are_put_together_again() {
        let mut bytes = Vec::new();
        for (at, text) in [0, 3, 100_000, 17].into_iter().enumerate() {
            encode_reply(&mut bytes, RequestId(at as u32), &refused(text));
        }
        for step in [1, 7, 4096, 65_536] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let mut reader = Reader::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                ours.write_all(piece).unwrap();
                while reader.fill(theirs.as_fd()).unwrap() {}
                while let Some((header, range)) = reader.next_frame().unwrap() {
                    let (body, _) = reader.body(range);
                    seen.push(decode_reply(&header, body).unwrap());
                }
            }
            assert_eq!(seen.len(), 4, "pieces of {step} bytes");
            assert_eq!(seen[2], (RequestId(2), refused(100_000)));
            drop(ours);
            assert!(matches!(reader.fill(theirs.as_fd()), Err(Lost::Ended)));
        }
    }

    #[test]
    fn garbage_is_a_loss_and_nothing_is_allocated_for_it() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
        let mut reader = Reader::new();
        reader.fill(theirs.as_fd()).unwrap();
        assert!(reader.next_frame().is_err());
        assert!(reader.fill(theirs.as_fd()).is_err());
        assert_eq!(reader.buffer.len(), READ_BYTES);
    }
}
