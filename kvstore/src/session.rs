//! One connected process: its socket, what waits to be sent to it, its staging areas.

use crate::control::Control;
use crate::outbox::{MAX_OUTBOX_BYTES, Outbox};
use rustix::net::{Shutdown, shutdown};
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use undercroft_arena::Staging;
use undercroft_wire::{
    DecodeError, HEADER_BYTES, MAX_BODY_BYTES, Mode, Reply, RequestId, SessionId, SpaceId,
    split_frame,
};

/// A connection says hello within this time or is closed.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes read from a socket at once.
const READ_BYTES: usize = 256 << 10;
/// The inbox never grows beyond one whole frame and one read.
const MAX_INBOX_BYTES: usize = HEADER_BYTES + MAX_BODY_BYTES as usize + READ_BYTES;

/// Who is at the other end, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// With the pid it names the process for ever.
    pub(crate) start_time: u64,
}

/// A session as the control thread keeps it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) peer: Peer,
    pub(crate) name: String,
    /// `None` until the hello.
    pub(crate) mode: Option<Mode>,
    /// The socket is closed; leases may still be open.
    pub(crate) lingering: bool,
    pub(crate) staging: HashMap<SpaceId, Arc<Staging>>,
    pub(crate) process: Option<OwnedFd>,
    outbox: Outbox,
    socket: Rc<OwnedWriteHalf>,
    blocked: Rc<Notify>,
}

impl Session {
    /// Queues a reply; [`Session::flush`] sends it.
    pub(crate) fn reply(&mut self, request: RequestId, reply: &Reply) {
        if !self.lingering {
            self.outbox.push(request, reply);
        }
    }

    /// Queues a reply with a descriptor.
    pub(crate) fn reply_with(&mut self, request: RequestId, reply: &Reply, fd: Arc<OwnedFd>) {
        if !self.lingering {
            self.outbox.push_with(request, reply, fd);
        }
    }

    /// The descriptor of a staging area, to be sent to the session.
    pub(crate) fn staging_fd(&self, space: SpaceId) -> Option<Arc<OwnedFd>> {
        let staging = self.staging.get(&space)?;
        staging.fd().try_clone_to_owned().ok().map(Arc::new)
    }

    /// Sends what the socket takes now; the session's writer goes on with the rest.
    pub(crate) fn flush(&mut self) {
        if self.lingering || self.outbox.is_empty() {
            return;
        }
        let Self { outbox, socket, .. } = self;
        let stream: &UnixStream = (**socket).as_ref();
        match stream.try_io(Interest::WRITABLE, || outbox.send(stream.as_fd())) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if self.outbox.waiting() > MAX_OUTBOX_BYTES {
                    let waiting = self.outbox.waiting();
                    self.close(&format!("it does not read: {waiting} bytes wait to be sent"));
                } else {
                    self.blocked.notify_one();
                }
            }
            Err(error) => self.close(&error.to_string()),
        }
    }

    /// Ends the connection; the session's reader cleans up when it sees the end.
    pub(crate) fn close(&self, why: &str) {
        tracing::info!(pid = self.peer.pid, name = %self.name, why, "closing a session");
        let stream: &UnixStream = (*self.socket).as_ref();
        if let Err(error) = shutdown(stream, Shutdown::Both) {
            tracing::debug!(%error, "socket was already closed");
        }
    }
}

/// Serves one accepted connection until it ends. Its leases may outlive it.
pub(crate) async fn serve(stream: UnixStream, id: SessionId, control: Rc<RefCell<Control>>) {
    let peer = match peer_of(&stream) {
        Ok(peer) => peer,
        Err(error) => return tracing::warn!(%error, "a peer without credentials was turned away"),
    };
    let (reader, writer) = stream.into_split();
    let socket = Rc::new(writer);
    let blocked = Rc::new(Notify::new());
    let session = Session {
        peer,
        name: String::new(),
        mode: None,
        lingering: false,
        staging: HashMap::new(),
        process: crate::process::watch(peer.pid),
        outbox: Outbox::default(),
        socket: Rc::clone(&socket),
        blocked: Rc::clone(&blocked),
    };
    control.borrow_mut().admit(id, session);
    let writer = tokio::task::spawn_local(write_rest(id, socket, blocked, Rc::clone(&control)));
    let ended = read_all(reader, id, &control).await;
    writer.abort();
    report_end(id, &peer, &ended, &control);
    control.borrow_mut().disconnect(id);
}

fn peer_of(stream: &UnixStream) -> std::io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().unwrap_or(0) as u32;
    let start_time = crate::process::start_time(pid);
    Ok(Peer { pid, uid: credentials.uid(), gid: credentials.gid(), start_time })
}

/// How a connection ended.
#[derive(Debug)]
enum Ended {
    Closed,
    Io(std::io::Error),
    Silent,
    Protocol(DecodeError),
    OutOfOrder(&'static str),
}

/// Why a frame was not accepted.
#[derive(Debug)]
pub(crate) enum FrameError {
    /// It could not be decoded.
    Decode(DecodeError),
    /// It came at the wrong time.
    OutOfOrder(&'static str),
}

impl From<DecodeError> for FrameError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

async fn read_all(
    mut reader: OwnedReadHalf,
    id: SessionId,
    control: &Rc<RefCell<Control>>,
) -> Ended {
    let mut inbox = Vec::with_capacity(READ_BYTES);
    let opened = tokio::time::Instant::now();
    loop {
        if inbox.capacity() - inbox.len() < READ_BYTES / 2 {
            debug_assert!(inbox.len() <= MAX_INBOX_BYTES, "split_frame bounds what may be missing");
            inbox.reserve(READ_BYTES);
        }
        let greeted = control.borrow().greeted(id);
        let read = if greeted {
            reader.read_buf(&mut inbox).await
        } else {
            match tokio::time::timeout_at(opened + HELLO_PATIENCE, reader.read_buf(&mut inbox))
                .await
            {
                Ok(read) => read,
                Err(_) => return Ended::Silent,
            }
        };
        match read {
            Ok(0) => return Ended::Closed,
            Err(error) => return Ended::Io(error),
            Ok(_) => {}
        }
        let taken = match control.borrow_mut().frames(id, &inbox) {
            Ok(taken) => taken,
            Err(FrameError::Decode(error)) => return Ended::Protocol(error),
            Err(FrameError::OutOfOrder(what)) => return Ended::OutOfOrder(what),
        };
        if taken == inbox.len() {
            inbox.clear();
        } else {
            inbox.drain(..taken);
        }
        // A burst of large requests must not keep its memory for ever.
        if inbox.is_empty() && inbox.capacity() > 2 * READ_BYTES {
            inbox.shrink_to(READ_BYTES);
        }
    }
}

/// Cuts whole frames off `inbox` and hands each to `take`; how many bytes they took.
pub(crate) fn each_frame(
    inbox: &[u8],
    mut take: impl FnMut(&undercroft_wire::Header, &[u8]) -> Result<(), FrameError>,
) -> Result<usize, FrameError> {
    let mut at = 0;
    while let Some((header, body, taken)) = split_frame(&inbox[at..])? {
        take(&header, body)?;
        at += taken;
    }
    Ok(at)
}

async fn write_rest(
    id: SessionId,
    socket: Rc<OwnedWriteHalf>,
    blocked: Rc<Notify>,
    control: Rc<RefCell<Control>>,
) {
    loop {
        blocked.notified().await;
        if socket.writable().await.is_err() {
            return;
        }
        control.borrow_mut().flush(id);
    }
}

fn report_end(id: SessionId, peer: &Peer, ended: &Ended, control: &Rc<RefCell<Control>>) {
    let pid = peer.pid;
    match ended {
        Ended::Closed => tracing::debug!(session = %id, pid, "session closed by its client"),
        Ended::Io(error) => tracing::info!(session = %id, pid, %error, "session lost"),
        Ended::Silent => {
            tracing::warn!(session = %id, pid, "closing a session: no hello within 5 s");
        }
        Ended::Protocol(error) => {
            control.borrow_mut().count_protocol_error();
            tracing::warn!(session = %id, pid, %error, "closing a session: malformed message");
        }
        Ended::OutOfOrder(what) => {
            control.borrow_mut().count_protocol_error();
            tracing::warn!(session = %id, pid, what, "closing a session: message out of order");
        }
    }
}
