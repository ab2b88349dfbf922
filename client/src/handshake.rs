use crate::bell::from_now;
use crate::connection::{Connection, Lost};
use crate::inbox::{Expects, Inbox};
use crate::server;
use crate::shared::Shared;
use crate::{ConnectError, MissReason};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_wire::{Hello, PROTOCOL_MAX, PROTOCOL_MIN, Reply, Request, RequestId, Welcome};

/// Asked for as the socket's send buffer, bytes: lookups of thousands of keys in one piece. The
/// kernel gives what it allows.
const SEND_BUFFER_BYTES: usize = 4 << 20;
/// Names are cut here, bytes.
const MAX_NAME_BYTES: usize = 64;

/// Connects, greets, and maps the arena.
pub(crate) fn shake_hands(
    shared: &Shared,
    patience: Duration,
) -> Result<Arc<Connection>, ConnectError> {
    let until = from_now(patience);
    let path = &shared.options.socket;
    let socket = connect(shared, until, patience)?;
    server::check(&socket, path, shared.options.daemon_uid)?;
    let connection = Arc::new(Connection::new(socket, shared));
    shared.begin(&connection);
    match greet(&connection, shared, until) {
        Ok(()) => Ok(connection),
        Err(Unwelcome::Refused(error)) => {
            connection.close(Lost::Dropped);
            Err(error)
        }
        Err(Unwelcome::Missed(MissReason::Deadline)) => {
            connection.close(Lost::Dropped);
            Err(ConnectError::Silent { path: path.clone(), waited: patience })
        }
        Err(Unwelcome::Missed(reason)) => {
            let reason = connection.end().unwrap_or_else(|| reason.to_string());
            Err(ConnectError::Closed { path: path.clone(), reason })
        }
    }
}

enum Unwelcome {
    Refused(ConnectError),
    Missed(MissReason),
}

impl From<MissReason> for Unwelcome {
    fn from(reason: MissReason) -> Self {
        Self::Missed(reason)
    }
}

fn greet(connection: &Arc<Connection>, shared: &Shared, until: Instant) -> Result<(), Unwelcome> {
    let mut name = shared.options.name.clone();
    name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
    let hello = Request::Hello(Hello {
        min: PROTOCOL_MIN,
        max: PROTOCOL_MAX,
        name,
        copy_mode: shared.options.copy_mode,
    });
    let welcome: Welcome = match connection.call(&hello, Expects::Reply, until)? {
        Reply::Welcome(welcome) => welcome,
        Reply::Refused(refused) => {
            let path = shared.options.socket.clone();
            let (reason, detail) = (refused.reason, refused.detail);
            return Err(Unwelcome::Refused(ConnectError::Refused { path, reason, detail }));
        }
        _ => {
            return Err(connection.violated("the hello was not answered by a welcome").into());
        }
    };
    if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&welcome.version) {
        return Err(connection.violated("a version was chosen that nobody offered").into());
    }
    let &Welcome { epoch, parts, .. } = connection.greeted(welcome);
    connection.enter(epoch)?;
    let all = |inbox: &mut Inbox| {
        let named = &inbox.parts;
        (named.len() >= parts as usize).then(|| named.keys().copied().collect::<HashSet<_>>())
    };
    let named = connection.wait_until(RequestId(0), until, all)?;
    // A daemon that names none may be about to: nothing follows from that.
    if !named.is_empty() {
        shared.arena.keep_only(|part| named.contains(&part));
    }
    Ok(())
}

fn connect(shared: &Shared, until: Instant, waited: Duration) -> Result<OwnedFd, ConnectError> {
    let path = &shared.options.socket;
    let system = |doing| {
        move |errno: Errno| ConnectError::System {
            path: path.to_owned(),
            doing,
            source: errno.into(),
        }
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(system("make a socket"))?;
    let address = SocketAddrUnix::new(path).map_err(system("use the path"))?;
    // A smaller buffer costs system calls, nothing else.
    let _smaller = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
    loop {
        let source = match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => continue,
            // The daemon's queue of connections is full.
            Err(Errno::AGAIN) if Instant::now() < until && !shared.is_stopped() => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(errno) => errno,
        };
        let path = path.to_owned();
        return Err(match source {
            Errno::AGAIN => ConnectError::Silent { path, waited },
            Errno::NOENT | Errno::CONNREFUSED | Errno::NOTDIR | Errno::NOTSOCK => {
                ConnectError::Absent { path, source: source.into() }
            }
            Errno::ACCESS | Errno::PERM => ConnectError::Denied { path, source: source.into() },
            errno => system("connect")(errno),
        });
    }
}
