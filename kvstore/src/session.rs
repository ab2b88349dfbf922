//! One connected process: its socket, what waits to be sent to it, its staging areas.

use crate::config::DomainConfig;
use crate::control::{Control, Readiness};
use crate::outbox::{MAX_OUTBOX_BYTES, Outbox};
use crate::peer::Peer;
use crate::standing;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use undercroft_arena::Staging;
use undercroft_wire::{
    CopyReason, DecodeError, GpuReport, HEADER_BYTES, MAX_BODY_BYTES, Mode, Reply, RequestId,
    SessionId, SpaceId, split_frame,
};

/// A connection says hello within this time or is closed.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes read from a socket at once.
const READ_BYTES: usize = 256 << 10;
/// The inbox never grows beyond one whole frame and one read.
const MAX_INBOX_BYTES: usize = HEADER_BYTES + MAX_BODY_BYTES as usize + READ_BYTES;

/// A session as the control thread keeps it.
#[derive(Debug)]
pub(crate) struct Session {
    /// Who is at the other end. Its process is `None` when the system cannot tell of its end: it
    /// reads no frames, or nobody would know when they are free.
    pub(crate) peer: Peer,
    /// Whether it may look after the daemon.
    is_operator: bool,
    /// `None` for a peer that no domain is for.
    pub(crate) domain: Option<Arc<DomainConfig>>,
    pub(crate) name: String,
    /// `None` until the hello.
    pub(crate) mode: Option<Mode>,
    /// Why pages are copied for it, where they are.
    pub(crate) copy_reason: Option<CopyReason>,
    /// What it copies pages with, as it says.
    pub(crate) gpu: Option<GpuReport>,
    pub(crate) staging: HashMap<SpaceId, Arc<Staging>>,
    /// When it last said something.
    pub(crate) heard: Instant,
    /// Whether somebody was told that it holds frames and says nothing.
    pub(crate) alarmed: bool,
    /// Whether nobody tells of its process's end.
    pub(crate) is_looked_for: bool,
    /// `None` once the connection is over; leases may still be open.
    link: Option<Link>,
}

/// A session's connection.
#[derive(Debug)]
struct Link {
    outbox: Outbox,
    socket: Rc<OwnedWriteHalf>,
    blocked: Rc<Notify>,
    /// We have ended it, and its reader has yet to notice.
    closed: bool,
}

impl Session {
    /// A session of an earlier daemon, of which only leases are left.
    pub(crate) fn restored(peer: Peer, domain: Option<Arc<DomainConfig>>) -> Self {
        let (name, mode) = ("before the restart".to_owned(), Some(Mode::ZeroCopy));
        Self { name, mode, ..Self::new(peer, domain, None) }
    }

    fn new(peer: Peer, domain: Option<Arc<DomainConfig>>, link: Option<Link>) -> Self {
        Self {
            is_operator: is_operator(&peer, domain.as_deref()),
            peer,
            domain,
            name: String::new(),
            mode: None,
            copy_reason: None,
            gpu: None,
            staging: HashMap::new(),
            heard: Instant::now(),
            alarmed: false,
            is_looked_for: false,
            link,
        }
    }

    /// Whether the connection is over and only leases keep the session.
    pub(crate) fn is_lingering(&self) -> bool {
        self.link.is_none()
    }

    /// Whether requests of this session are still to be taken.
    pub(crate) fn is_open(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.closed)
    }

    /// Whether it belongs to this domain.
    pub(crate) fn is_of(&self, domain: &DomainConfig) -> bool {
        self.domain.as_ref().is_some_and(|own| own.id == domain.id)
    }

    /// Whether it may look after the daemon.
    pub(crate) fn is_operator(&self) -> bool {
        self.is_operator
    }

    /// What people call its domain.
    pub(crate) fn domain_name(&self) -> &str {
        self.domain.as_ref().map_or("none", |domain| &domain.name)
    }

    /// Queues a reply; [`Session::flush`] sends it.
    pub(crate) fn reply(&mut self, request: RequestId, reply: &Reply) {
        if let Some(link) = self.link.as_mut().filter(|link| !link.closed) {
            link.outbox.push(request, reply);
        }
    }

    /// Queues a reply with a descriptor.
    pub(crate) fn reply_with(&mut self, request: RequestId, reply: &Reply, fd: Arc<OwnedFd>) {
        if let Some(link) = self.link.as_mut().filter(|link| !link.closed) {
            link.outbox.push_with(request, reply, fd);
        }
    }

    /// The descriptor of a staging area, to be sent to the session.
    pub(crate) fn staging_fd(&self, space: SpaceId) -> Option<Arc<OwnedFd>> {
        let staging = self.staging.get(&space)?;
        staging.fd().try_clone_to_owned().ok().map(Arc::new)
    }

    /// Bytes of its staging areas.
    pub(crate) fn staging_bytes(&self) -> u64 {
        let bytes = |s: &Arc<Staging>| u64::from(s.slots()) * u64::from(s.slot_bytes());
        self.staging.values().map(bytes).sum()
    }

    /// Bytes that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.outbox.waiting())
    }

    /// Sends what the socket takes now; the session's writer goes on with the rest.
    pub(crate) fn flush(&mut self) {
        let Some(link) = self.link.as_mut().filter(|l| !l.closed && !l.outbox.is_empty()) else {
            return;
        };
        let Link { outbox, socket, blocked, .. } = link;
        let stream: &UnixStream = (**socket).as_ref();
        match stream.try_io(Interest::WRITABLE, || outbox.send(stream.as_fd())) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let waiting = outbox.waiting();
                if waiting > MAX_OUTBOX_BYTES {
                    self.close(&format!("it does not read: {waiting} bytes wait to be sent"));
                } else {
                    blocked.notify_one();
                }
            }
            Err(error) => self.close(&error.to_string()),
        }
    }

    /// Ends the connection; the session's reader cleans up when it sees the end.
    pub(crate) fn close(&mut self, why: &str) {
        tracing::info!(pid = self.peer.pid, name = %self.name, why, "closing a session");
        let Some(link) = &mut self.link else { return };
        link.closed = true;
        link.outbox = Outbox::default();
        let stream: &UnixStream = (*link.socket).as_ref();
        if let Err(error) = shutdown(stream, Shutdown::Both) {
            tracing::debug!(%error, "socket was already closed");
        }
    }

    /// Whether the other end has closed its socket, whatever it has said before.
    pub(crate) fn is_left(&self) -> bool {
        let Some(link) = &self.link else { return true };
        let stream: &UnixStream = (*link.socket).as_ref();
        let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Its socket, to be written to outside of the runtime.
    pub(crate) fn into_socket(self) -> Option<Rc<OwnedWriteHalf>> {
        self.link.map(|link| link.socket)
    }

    /// Lets go of all that only a connected session needs. The other end sees the connection
    /// end, whatever leases are left. Its staging areas are the caller's to let go of.
    #[must_use]
    pub(crate) fn hang_up(&mut self) -> Vec<Arc<Staging>> {
        self.link = None;
        self.staging.drain().map(|(_, staging)| staging).collect()
    }
}

/// Whether a peer may look after the daemon: root and the daemon's own user, of the machine. Of a
/// container, or of what a control group makes a tenant, the number of a user says nothing.
fn is_operator(peer: &Peer, domain: Option<&DomainConfig>) -> bool {
    let is_tenant = domain.is_some_and(|domain| domain.rule.cgroups.is_some());
    peer.is_operator() && !is_tenant && standing::is_contained(peer) != Some(true)
}

/// Admits an accepted connection; the future serves it until it ends. Its leases may outlive it.
pub(crate) fn admit(
    stream: UnixStream,
    (peer, domain): (Peer, Option<Arc<DomainConfig>>),
    id: SessionId,
    control: Rc<RefCell<Control>>,
) -> impl Future<Output = ()> {
    let pid = peer.pid;
    let process = peer.process.as_ref().and_then(|process| process.try_clone().ok());
    let (reader, writer) = stream.into_split();
    let socket = Rc::new(writer);
    let blocked = Rc::new(Notify::new());
    let link = Link {
        outbox: Outbox::default(),
        socket: Rc::clone(&socket),
        blocked: Rc::clone(&blocked),
        closed: false,
    };
    control.borrow_mut().admit(id, Session::new(peer, domain, Some(link)));
    async move {
        let ended = tokio::select! {
            // In this order: what a process said before its end still counts.
            biased;
            ended = read_all(reader, id, &control) => ended,
            error = write_rest(id, socket, blocked, &control) => Ended::Io(error),
            () = end_of(process) => Ended::Died,
        };
        report_end(id, pid, &ended, &control);
        control.borrow_mut().disconnect(id);
    }
}

/// How a connection ended.
#[derive(Debug)]
enum Ended {
    Closed,
    Io(std::io::Error),
    Silent,
    /// The process that connected is gone, though another keeps its socket open.
    Died,
    /// By us; the reason is in the log.
    Dismissed,
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
    /// The session was closed meanwhile.
    Dismissed,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Bytes of the frames that were handled.
    pub(crate) taken: usize,
    /// Why it ended.
    pub(crate) end: TurnEnd,
}

/// Why a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnEnd {
    /// All whole frames were handled.
    Done,
    /// It is somebody else's turn.
    Over,
    /// The next frame waits for the arena's first parts.
    Held,
}

impl From<DecodeError> for FrameError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

/// Waits for the end of the process that connected. A child of it may keep the socket for long.
#[expect(deprecated, reason = "an owned descriptor cannot be closed while it is registered")]
async fn end_of(process: Option<OwnedFd>) {
    // Not registered, the end is noticed when the socket closes.
    match process.and_then(|process| AsyncFd::with_interest(process, Interest::READABLE).ok()) {
        Some(process) => drop(process.readable().await),
        None => std::future::pending().await,
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
        if let Err(error) = take_turns(&mut inbox, id, control).await {
            return match error {
                FrameError::Decode(error) => Ended::Protocol(error),
                FrameError::OutOfOrder(what) => Ended::OutOfOrder(what),
                FrameError::Dismissed => Ended::Dismissed,
            };
        }
        // A burst of large requests must not keep its memory for ever.
        if inbox.is_empty() && inbox.capacity() > 2 * READ_BYTES {
            inbox.shrink_to(READ_BYTES);
        }
    }
}

/// Handles every whole frame of `inbox`, turn by turn: others get theirs in between.
async fn take_turns(
    inbox: &mut Vec<u8>,
    id: SessionId,
    control: &Rc<RefCell<Control>>,
) -> Result<(), FrameError> {
    let mut at = 0;
    loop {
        let turn = control.borrow_mut().frames(id, &inbox[at..])?;
        at += turn.taken;
        match turn.end {
            TurnEnd::Done => {
                inbox.drain(..at);
                return Ok(());
            }
            TurnEnd::Over => tokio::task::yield_now().await,
            TurnEnd::Held => {
                let mut open = control.borrow().fitting.readiness();
                // Its other end is the control thread's own.
                let _open = open.wait_for(|open| *open >= Readiness::Served).await;
            }
        }
    }
}

/// Cuts whole frames off `inbox` and hands each to `take` until it answers that the turn ends. One
/// that is held is not taken.
pub(crate) fn each_frame(
    inbox: &[u8],
    mut take: impl FnMut(&undercroft_wire::Header, &[u8]) -> Result<ControlFlow<TurnEnd>, FrameError>,
) -> Result<Turn, FrameError> {
    let mut taken = 0;
    while let Some((header, body, length)) = split_frame(&inbox[taken..])? {
        let flow = take(&header, body)?;
        if flow != ControlFlow::Break(TurnEnd::Held) {
            taken += length;
        }
        if let ControlFlow::Break(end) = flow {
            return Ok(Turn { taken, end });
        }
    }
    Ok(Turn { taken, end: TurnEnd::Done })
}

async fn write_rest(
    id: SessionId,
    socket: Rc<OwnedWriteHalf>,
    blocked: Rc<Notify>,
    control: &Rc<RefCell<Control>>,
) -> std::io::Error {
    loop {
        blocked.notified().await;
        if let Err(error) = socket.writable().await {
            return error;
        }
        control.borrow_mut().flush(id);
    }
}

fn report_end(id: SessionId, pid: u32, ended: &Ended, control: &Rc<RefCell<Control>>) {
    match ended {
        Ended::Closed => tracing::debug!(session = %id, pid, "session closed by its client"),
        Ended::Io(error) => tracing::info!(session = %id, pid, %error, "session lost"),
        Ended::Died => tracing::info!(session = %id, pid, "session ended with its process"),
        Ended::Dismissed => tracing::debug!(session = %id, pid, "session closed by us"),
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
