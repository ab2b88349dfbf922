//! One daemon hands what outlives it to the next, over its own socket.

use crate::error::StartError;
use crate::estate::{Estate, Heirloom};
use crate::outbox::Outbox;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, IoSliceMut, Result, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_wire::{
    Hello, PROTOCOL_MAX, PROTOCOL_MIN, Reply, Request, RequestId, decode_reply, encode_request,
    split_frame,
};

/// How long the daemon that goes may take to greet: one that is hung is not asked for anything.
const GREETING: Duration = Duration::from_secs(5);
/// How long the daemon that goes may take to close its stores and hand everything over.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the daemon that comes may take to read what it is given.
const GIVING: Duration = Duration::from_secs(10);
/// Descriptors that come with one read at most.
const DESCRIPTORS: usize = 64;
const READ_BYTES: usize = 64 << 10;

/// What one daemon gives to another.
pub(crate) type Bequest = Vec<(Heirloom, Arc<OwnedFd>)>;

/// Asks the daemon at `socket` for everything it has, and waits until it has let go of it.
pub(crate) fn ask(socket: &Path) -> std::result::Result<Estate, StartError> {
    let failed = |source| StartError::TakeOver { path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    let (min, max) = (PROTOCOL_MIN, PROTOCOL_MAX);
    let name = "undercroft serve --takeover".to_owned();
    let mut bytes = Vec::new();
    let hello = Request::Hello(Hello { min, max, name, copy_mode: true });
    encode_request(&mut bytes, RequestId(1), &hello);
    stream.write_all(&bytes).map_err(failed)?;
    wait_for(stream.as_fd(), PollFlags::IN, Instant::now() + GREETING).map_err(|source| {
        let hung = "it does not answer, and was not asked for anything";
        failed(match source.kind() {
            ErrorKind::TimedOut => Error::new(ErrorKind::TimedOut, hung),
            _ => source,
        })
    })?;
    bytes.clear();
    encode_request(&mut bytes, RequestId(2), &Request::TakeOver);
    // One that has hung up may have said why.
    let _hung_up = stream.write_all(&bytes);
    receive(&stream).map_err(|source| match source.kind() {
        ErrorKind::PermissionDenied => {
            StartError::TakeOverRefused { path: socket.to_owned(), why: source.to_string() }
        }
        _ => failed(source),
    })
}

fn receive(stream: &UnixStream) -> Result<Estate> {
    let until = Instant::now() + PATIENCE;
    let mut estate = Estate::default();
    let (mut bytes, mut descriptors) = (Vec::new(), VecDeque::new());
    loop {
        while let Some((header, body, length)) = split_frame(&bytes).map_err(Error::other)? {
            let (_, reply) = decode_reply(&header, body).map_err(Error::other)?;
            bytes.drain(..length);
            match reply {
                Reply::Heirloom(heirloom) => {
                    let fd = descriptors.pop_front();
                    let fd = fd.ok_or_else(|| Error::other("a descriptor is missing"))?;
                    estate.add(&heirloom.name, fd);
                }
                Reply::Done => return Ok(estate),
                Reply::Refused(refused) => {
                    return Err(Error::new(ErrorKind::PermissionDenied, refused.detail));
                }
                _ => {}
            }
        }
        receive_some(stream, until, &mut bytes, &mut descriptors)?;
    }
}

fn receive_some(
    stream: &UnixStream,
    until: Instant,
    bytes: &mut Vec<u8>,
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<()> {
    wait_for(stream.as_fd(), PollFlags::IN, until)?;
    let mut chunk = vec![0; READ_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut chunk)];
    let got = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Error::other("descriptors were lost: the limit of open files is too low"));
    }
    match got.bytes {
        0 => Err(Error::new(ErrorKind::UnexpectedEof, "it hung up before it was done")),
        read => {
            bytes.extend_from_slice(&chunk[..read]);
            Ok(())
        }
    }
}

/// Hands everything to the daemon at the other end of `socket`, and says that this was all.
pub(crate) fn give(socket: BorrowedFd<'_>, bequest: Bequest) -> Result<()> {
    let mut outbox = Outbox::default();
    for (heirloom, fd) in bequest {
        let reply = Reply::Heirloom(undercroft_wire::Heirloom { name: heirloom.to_string() });
        outbox.push_with(RequestId(2), &reply, fd);
    }
    outbox.push(RequestId(2), &Reply::Done);
    let until = Instant::now() + GIVING;
    loop {
        match outbox.send(socket) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait_for(socket, PollFlags::OUT, until)?;
            }
            Err(error) => return Err(error),
        }
    }
}

fn wait_for(fd: BorrowedFd<'_>, what: PollFlags, until: Instant) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, what)];
    match poll(&mut fds, Some(&left)) {
        Ok(0) => Err(Error::new(ErrorKind::TimedOut, "it took too long")),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use undercroft_wire::PartId;

    #[test]
    fn everything_arrives_under_its_name() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let given: Vec<_> = (0..300)
            .map(|number| {
                let fd = OwnedFd::from(theirs.try_clone().unwrap());
                (Heirloom::Part(PartId(number)), Arc::new(fd))
            })
            .collect();
        let giver = std::thread::spawn(move || give(ours.as_fd(), given).unwrap());
        let estate = receive(&theirs).unwrap();
        giver.join().unwrap();
        assert_eq!(estate.names().count(), 300);
    }

    #[test]
    fn one_that_hangs_up_half_way_has_given_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = Arc::new(OwnedFd::from(theirs.try_clone().unwrap()));
        let mut outbox = Outbox::default();
        let name = Heirloom::State.to_string();
        outbox.push_with(RequestId(2), &Reply::Heirloom(undercroft_wire::Heirloom { name }), fd);
        outbox.send(ours.as_fd()).unwrap();
        drop(ours);
        assert_eq!(receive(&theirs).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
