use crate::bell::{Bell, from_now};
use crate::connection::Connection;
use crate::handshake::shake_hands;
use crate::inbox::Expects;
use crate::keeper;
use crate::options::{ConnectOptions, Wait};
use crate::shared::Shared;
use crate::space::{SpaceHandle, SpaceState, open};
use crate::{
    ConnectError, ExplainError, MissReason, OpenError, PartWatcher, PurgeError, RecordError,
};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::cuda::{CudaDevice, CudaError};
use undercroft_wire::{
    Epoch, Explain, Explained, Mode, PageKey, Purge, Purged, Recorded, Refused, RefusedReason,
    Reply, Request, SessionId, Space, StatusReport, Welcome,
};

/// A connection to the daemon of this node, kept up behind the caller's back. Cheap to clone; all
/// clones are one session. It ends with the last clone and the last handle made from it.
///
/// A client belongs to the process that made it. In a forked child every call is a miss
/// ([`MissReason::Forked`]); connect anew there.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// Ends the keeper thread with the last handle.
#[derive(Debug)]
pub(crate) struct Inner(Arc<Shared>);

impl Deref for Inner {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The session of a forked child's parent is not the child's to end.
        if !self.0.is_foreign() {
            self.0.stop();
        }
    }
}

/// What went wrong in the life of a client and should not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ClientCounters {
    /// Loads that found a page changed under its lease, and took it for a miss.
    pub changed_pages: u64,
    /// Calls of a [`PartWatcher`] that panicked.
    pub watcher_panics: u64,
    /// Calls that missed at once because the daemon had not turned since another one's deadline.
    pub hung_calls: u64,
}

/// How a client stands with its daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientState {
    /// Connected; calls are answered.
    Connected {
        /// The session, as the daemon numbers it.
        session: SessionId,
        /// The arena's lifetime.
        epoch: Epoch,
        /// How pages are delivered.
        mode: Mode,
    },
    /// Connected, but a call missed its deadline and the daemon has shown no sign of life since:
    /// every call is a miss until it does.
    Hung,
    /// Not connected; every call is a miss, and a thread tries to connect.
    Connecting {
        /// What ended the last connection or attempt.
        failure: Option<String>,
    },
    /// This process was forked from the one that connected; every call is a miss.
    Forked,
}

impl Client {
    /// Connects, or with [`Wait::Background`] starts to.
    ///
    /// # Errors
    /// The path is too long for a socket, or threads cannot be made. With [`Wait::Now`] also: no
    /// daemon, no right to connect to it, no greeting in time, or a refusal.
    pub fn connect(options: ConnectOptions) -> Result<Self, ConnectError> {
        options.check()?;
        let path = options.socket.clone();
        let wait = options.wait;
        let bell = Bell::new().map_err(|errno| ConnectError::System {
            path: path.clone(),
            doing: "make an event descriptor",
            source: errno.into(),
        })?;
        let shared = Arc::new(Shared::new(options, Arc::new(bell)));
        let connection = match wait {
            Wait::Background => None,
            Wait::Now(patience) => {
                let connection = shake_hands(&shared, patience)?;
                keeper::publish(&shared, &connection)?;
                Some(connection)
            }
        };
        let inner = Arc::new(Inner(shared));
        keeper::start(&inner.0, connection).map_err(|source| ConnectError::System {
            path,
            doing: "start a thread",
            source,
        })?;
        Ok(Self { inner })
    }

    /// As [`Client::connect`], for an engine that copies with this GPU: in copy mode where it cannot
    /// reach the arena by itself, and attached ([`Client::attach_gpu`]).
    ///
    /// # Errors
    /// As [`Client::connect`], or the GPU's driver failed.
    pub fn connect_with_gpu(
        mut options: ConnectOptions,
        device: &CudaDevice,
    ) -> Result<Self, ConnectError> {
        // Through memory of the driver's, page by page and with the engine's thread, it would take
        // far longer than through staging, which the daemon's copy workers fill.
        options.copy_mode |= !device.can_pin_read_only()?;
        let client = Self::connect(options)?;
        client.attach_gpu(device)?;
        Ok(client)
    }

    /// Opens a space, now and again in every later session. Where nobody insisted on a daemon
    /// ([`Wait::Background`]), the handle is given out even if the daemon is not there or does not
    /// answer in time, which takes the deadline to find out ([`Duration::ZERO`] if nobody is to
    /// wait); what is asked of it misses until the space is open.
    ///
    /// # Errors
    /// The space is not acceptable or refused, or with [`Wait::Now`], not answered in time.
    pub fn open_space(&self, space: &Space, deadline: Duration) -> Result<SpaceHandle, OpenError> {
        self.open_probed_space(space, None, deadline)
    }

    /// As [`Client::open_space`], and tells what this process's hash makes of the probe prefix, whose
    /// tokens are [`probe_tokens`](undercroft_wire::probe_tokens): the key of its first page. The
    /// daemon refuses the space where others have told another one, as a hash that differs (a seed, a
    /// function, a version) would find nothing and say nothing. Keys of [`undercroft_wire::Chain`]
    /// need no probe: they are equal wherever the family is.
    ///
    /// # Errors
    /// As [`Client::open_space`], or this client has the space open with another probe.
    pub fn open_probed_space(
        &self,
        space: &Space,
        probe: Option<PageKey>,
        deadline: Duration,
    ) -> Result<SpaceHandle, OpenError> {
        space.validate()?;
        if self.inner.is_foreign() {
            return Err(OpenError::Unanswered(MissReason::Forked));
        }
        let until = from_now(deadline);
        let state = self.inner.remember(SpaceState::new(space.clone(), probe));
        let handle = SpaceHandle::new(Arc::clone(&self.inner), Arc::clone(&state));
        if !state.agrees(probe) {
            let detail = "this client has the space open with another probe".to_owned();
            return Err(OpenError::Refused { reason: RefusedReason::Invalid, detail });
        }
        let opened = match self.inner.connection_by(until) {
            Ok(connection) => open(&connection, &state, until),
            Err(reason) => Err(OpenError::Unanswered(reason)),
        };
        match opened {
            Ok(()) => Ok(handle),
            Err(OpenError::Unanswered(_)) if self.inner.options.wait == Wait::Background => {
                // It asks for the space again until it is open.
                self.inner.bell.ring();
                Ok(handle)
            }
            // Other handles of the space are kept, and with them the space.
            Err(error) => Err(error),
        }
    }

    /// The daemon's report about itself.
    ///
    /// # Errors
    /// Why there is none.
    pub fn status(&self, deadline: Duration) -> Result<Box<StatusReport>, MissReason> {
        let until = from_now(deadline);
        let connection = self.inner.connection()?;
        match connection.call(&Request::Status, Expects::Reply, until)? {
            Reply::Status(report) => Ok(report),
            other => Err(not_expected(&connection, &other, "a status")),
        }
    }

    /// Has pages forgotten for good, in every tier.
    ///
    /// # Errors
    /// The daemon refused, or did not answer in time: then nobody knows how far it came.
    pub fn purge(&self, what: &Purge, deadline: Duration) -> Result<Purged, PurgeError> {
        let until = from_now(deadline);
        let connection = self.inner.connection().map_err(PurgeError::Unanswered)?;
        let request = Request::Purge(what.clone());
        match connection.call(&request, Expects::Reply, until).map_err(PurgeError::Unanswered)? {
            Reply::Purged(purged) => Ok(purged),
            Reply::Refused(Refused { reason, detail }) => {
                Err(PurgeError::Refused { reason, detail })
            }
            other => Err(PurgeError::Unanswered(not_expected(&connection, &other, "a purge"))),
        }
    }

    /// What all others looked up and offered since the call before. The first call begins a
    /// recording, which ends with the connection.
    ///
    /// # Errors
    /// The daemon refused, as there is another recording or nothing this process may record; or it
    /// did not answer in time.
    pub fn record(&self, deadline: Duration) -> Result<Recorded, RecordError> {
        let until = from_now(deadline);
        let connection = self.inner.connection().map_err(RecordError::Unanswered)?;
        let reply = connection.call(&Request::Record, Expects::Reply, until);
        match reply.map_err(RecordError::Unanswered)? {
            Reply::Recorded(recorded) => Ok(recorded),
            Reply::Refused(Refused { reason, detail }) => {
                Err(RecordError::Refused { reason, detail })
            }
            other => Err(RecordError::Unanswered(not_expected(&connection, &other, "a recording"))),
        }
    }

    /// What the newest lookups came to, and why it was no more: of all sessions of this process's
    /// domain, or of everybody's where it looks after the daemon.
    ///
    /// # Errors
    /// The daemon refused, or did not answer in time.
    pub fn explain(&self, what: Explain, deadline: Duration) -> Result<Explained, ExplainError> {
        let until = from_now(deadline);
        let connection = self.inner.connection().map_err(ExplainError::Unanswered)?;
        let reply = connection.call(&Request::Explain(what), Expects::Reply, until);
        match reply.map_err(ExplainError::Unanswered)? {
            Reply::Explained(explained) => Ok(explained),
            Reply::Refused(Refused { reason, detail }) => {
                Err(ExplainError::Refused { reason, detail })
            }
            other => {
                let reason = not_expected(&connection, &other, "an explanation");
                Err(ExplainError::Unanswered(reason))
            }
        }
    }

    /// Asks for a sign of life and says how long it took.
    ///
    /// # Errors
    /// Why there is none.
    pub fn ping(&self, deadline: Duration) -> Result<Duration, MissReason> {
        let began = Instant::now();
        let until = from_now(deadline);
        let connection = self.inner.connection()?;
        match connection.call(&Request::Ping, Expects::Reply, until)? {
            Reply::Done => Ok(began.elapsed()),
            other => Err(not_expected(&connection, &other, "a sign of life")),
        }
    }

    /// How the client stands with its daemon, without asking it.
    #[must_use]
    pub fn state(&self) -> ClientState {
        match self.inner.linked() {
            Ok(connection) if connection.is_hung() => ClientState::Hung,
            Err(MissReason::Forked) => ClientState::Forked,
            Err(_) => ClientState::Connecting { failure: self.inner.failure() },
            Ok(connection) => match connection.welcome() {
                Some(&Welcome { session, epoch, mode, .. }) => {
                    ClientState::Connected { session, epoch, mode }
                }
                None => ClientState::Connecting { failure: None },
            },
        }
    }

    /// Whether it is connected and its daemon not known to hang, without asking it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.linked().is_ok_and(|connection| !connection.is_hung())
    }

    /// What went wrong so far.
    #[must_use]
    pub fn counters(&self) -> ClientCounters {
        let counts = &self.inner.counts;
        ClientCounters {
            changed_pages: counts.changed_pages.load(Ordering::Relaxed),
            watcher_panics: self.inner.arena.watcher_panics.load(Ordering::Relaxed),
            hung_calls: counts.hung_calls.load(Ordering::Relaxed),
        }
    }

    /// Has `watcher` hear of the arena's parts and of staging areas, those that are mapped already
    /// and those to come. It is kept until the client ends, and hears then that all parts leave. For
    /// a GPU it is [`CudaDevice::pins`](undercroft_gpu_shim::cuda::CudaDevice::pins).
    pub fn watch_parts(&self, watcher: Arc<dyn PartWatcher>) {
        if !self.inner.is_foreign() {
            self.inner.arena.watch(watcher, || self.inner.staging());
        }
    }

    /// Copies with this GPU from now on: the arena's parts and staging areas are registered with it
    /// in the background, and `status` says by what it copies. Calls work before all of it is
    /// registered, only slower. A client that connected without its GPU is better off in
    /// [copy mode](ConnectOptions::copy_mode) where [`CudaDevice::can_pin_read_only`] says no.
    ///
    /// # Errors
    /// The driver does not say the device's name.
    pub fn attach_gpu(&self, device: &CudaDevice) -> Result<(), CudaError> {
        if !self.inner.is_foreign() {
            self.inner.gpu.attach(device)?;
            self.watch_parts(Arc::new(device.pins().clone()));
        }
        Ok(())
    }

    /// Ends the session now, for all clones and handles: calls under way and later ones miss. Waits
    /// until the client's threads have let go of the arena (of parts whose pages are still in use
    /// that is up to who uses them) and its watchers have heard so, and says whether they have.
    /// Nobody needs to call it: without it the same happens some time after the last handle is gone.
    pub fn close(&self, deadline: Duration) -> bool {
        if self.inner.is_foreign() {
            return false;
        }
        self.inner.stop();
        self.inner.wait_ended(from_now(deadline))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Waits until a daemon is connected. Says whether one is.
    #[must_use]
    pub fn wait_connected(&self, deadline: Duration) -> bool {
        self.inner.connection_by(from_now(deadline)).is_ok()
    }
}

/// What a reply of the wrong kind means: a refusal, or the end of the connection.
pub(crate) fn not_expected(connection: &Connection, reply: &Reply, wanted: &str) -> MissReason {
    match reply {
        Reply::Refused(refused) => MissReason::Refused(refused.reason),
        _ => connection.violated(&format!("another answer where {wanted} was due")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PartView, parts, shared};
    use undercroft_wire::Token;

    struct Nobody;

    impl PartWatcher for Nobody {
        fn mapped(&self, _: &PartView) {}

        fn leaving(&self, _: &PartView) {}
    }

    /// Threads of the parent may have held any lock when it forked; a child that waits for one of
    /// them waits for ever.
    #[test]
    fn a_forked_childs_calls_miss_whatever_is_locked() {
        let shared = Arc::new(shared::tests::inherited());
        let (arena, other) = (Arc::clone(&shared.arena), Arc::clone(&shared));
        let held = (parts::tests::hold(&arena), shared::tests::hold(&other));
        let client = Client { inner: Arc::new(Inner(shared)) };
        let soon = Duration::from_millis(1);
        assert_eq!(client.state(), ClientState::Forked);
        assert_eq!(client.ping(soon), Err(MissReason::Forked));
        assert_eq!(client.status(soon).err(), Some(MissReason::Forked));
        assert_eq!(client.take_hold(Token([1; 16]), soon).err(), Some(MissReason::Forked));
        assert_eq!(client.counters(), ClientCounters::default());
        assert!(!client.wait_connected(soon));
        assert!(!client.is_connected() && client.may_hold(&PageKey([1; 32])).is_none());
        assert!(!client.close(soon));
        client.watch_parts(Arc::new(Nobody));
        drop(client);
        drop(held);
    }
}
