//! The socket side of a daemon: accepts, cuts frames, sends replies and descriptors.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use undercroft_wire::{
    Header, Reply, Request, RequestId, decode_request, encode_reply, split_frame,
};

/// One accepted connection.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    /// Which connection of this daemon it is, from 0 on.
    pub(crate) number: usize,
    received: Vec<u8>,
}

/// A frame as it came in.
pub(crate) struct Frame {
    header: Header,
    body: Vec<u8>,
}

impl Frame {
    pub(crate) fn decode(&self) -> (RequestId, Request<'_>) {
        decode_request(&self.header, &self.body).expect("the client speaks the protocol")
    }
}

impl Peer {
    pub(crate) fn over(stream: UnixStream, number: usize) -> Self {
        Self { stream, number, received: Vec::new() }
    }

    /// The next frame; `None` when the client is gone.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            let split = split_frame(&self.received).expect("the client frames its messages");
            if let Some((header, body, taken)) = split {
                let frame = Frame { header, body: body.to_vec() };
                self.received.drain(..taken);
                return Some(frame);
            }
            let mut piece = vec![0; 64 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.received.extend_from_slice(&piece[..count]),
            }
        }
    }

    pub(crate) fn reply(&mut self, request: RequestId, reply: &Reply) {
        self.raw(&encoded(request, reply));
    }

    pub(crate) fn reply_with(&mut self, request: RequestId, reply: &Reply, fd: BorrowedFd<'_>) {
        send_with(&self.stream, request, reply, fd);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let _gone = self.stream.write_all(bytes);
    }
}

pub(crate) fn encoded(request: RequestId, reply: &Reply) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_reply(&mut bytes, request, reply);
    bytes
}

/// Sends a reply with as many copies of a descriptor, which it may not carry.
pub(crate) fn reply_with_many(
    peer: &Peer,
    id: RequestId,
    reply: &Reply,
    fd: BorrowedFd<'_>,
    count: usize,
) {
    let bytes = encoded(id, reply);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = vec![fd; count];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let _gone =
        sendmsg(peer.stream.as_fd(), &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
}

fn send_with(stream: &UnixStream, request: RequestId, reply: &Reply, fd: BorrowedFd<'_>) {
    let bytes = encoded(request, reply);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let parts = [IoSlice::new(&bytes)];
    // A client that is gone is no matter of the daemon's.
    let _gone = sendmsg(stream.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL);
}

/// A listening daemon. Dropping it is its death: every connection is cut.
pub(crate) struct FakeDaemon {
    path: PathBuf,
    stopped: Arc<AtomicBool>,
    pub(crate) connections: Arc<AtomicUsize>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// Listens on `path` and runs `serve` in a thread for each connection.
    pub(crate) fn start(path: &Path, serve: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicUsize::new(0));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (stop, count, all) =
            (Arc::clone(&stopped), Arc::clone(&connections), Arc::clone(&streams));
        let acceptor = std::thread::spawn(move || {
            let serve = Arc::new(serve);
            while let Ok((stream, _)) = listener.accept() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let number = count.fetch_add(1, Ordering::SeqCst);
                all.lock().unwrap().push(stream.try_clone().unwrap());
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(Peer::over(stream, number)));
            }
        });
        let path = path.to_owned();
        Self { path, stopped, connections, streams, acceptor: Some(acceptor) }
    }

    /// Says something unasked on every connection.
    pub(crate) fn say(&self, reply: &Reply, fd: Option<BorrowedFd<'_>>) {
        for mut stream in self.streams.lock().unwrap().iter() {
            match fd {
                Some(fd) => send_with(stream, RequestId(0), reply, fd),
                None => {
                    let _gone = stream.write_all(&encoded(RequestId(0), reply));
                }
            }
        }
    }

    /// Cuts every connection, but goes on listening.
    pub(crate) fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _gone = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _wake = UnixStream::connect(&self.path);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
        self.cut();
        let _gone = std::fs::remove_file(&self.path);
    }
}
