use crate::MissReason;
use crate::bell::{Bell, time_left};
use crate::inbox::{Chore, Expects, Inbox};
use crate::outbox::{NotSent, Outbox, Sent};
use crate::parts::Arena;
use crate::pulse::Pulse;
use crate::reader::Reader;
use crate::releases::ALL;
use crate::shared::Shared;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use undercroft_wire::{
    Commit, DecodeError, DropHold, Epoch, LeaseId, Missed, PageKey, PartId, Release, Reply,
    Request, RequestId, Welcome, encode_request,
};

mod ticket;

pub(crate) use ticket::Ticket;

/// Why a connection ended.
#[derive(Debug, Clone)]
pub(crate) enum Lost {
    /// The daemon closed it or died.
    Ended,
    /// The kernel refused to read or write.
    System(Errno),
    /// The kernel did not hand over a descriptor of the daemon's.
    DescriptorRefused,
    /// The daemon said what it may not say.
    Protocol(String),
    /// The daemon does not read, and too much waits for it.
    NotReading,
    /// The client was dropped.
    Dropped,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => write!(f, "the daemon closed it"),
            Self::System(errno) => write!(f, "{errno}"),
            Self::DescriptorRefused => write!(
                f,
                "a descriptor of the daemon's could not be taken: this process has as many open as \
                 it may (`ulimit -n`), or too many came at once"
            ),
            Self::Protocol(what) => write!(f, "protocol violation: {what}"),
            Self::NotReading => write!(f, "the daemon does not read"),
            Self::Dropped => write!(f, "the client was dropped"),
        }
    }
}

impl From<DecodeError> for Lost {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// A mutex's content, whatever happened to a thread that held it: a cache client takes nobody
/// down with it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One session with a daemon. Requests of all threads go out through the outbox; replies come in
/// through the one thread that has the reader at that moment, which also is waiting for a reply.
pub(crate) struct Connection {
    /// Counts the connections of a client: what was opened in another one is not open here.
    pub(crate) generation: u64,
    pid: Pid,
    socket: OwnedFd,
    outbox: Outbox,
    inbox: Mutex<Inbox>,
    /// Quick look at whether the inbox is closed.
    closed: AtomicBool,
    welcome: OnceLock<Welcome>,
    next_lease: AtomicU64,
    arena: Arc<Arena>,
    pulse: Arc<Pulse>,
    /// Lookups that the board answered and the daemon has not heard of.
    missed: AtomicU64,
    /// Wakes the keeper: something waits for the socket, or the connection ended.
    bell: Arc<Bell>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without locks: it may be shown while somebody holds them.
        f.debug_struct("Connection")
            .field("generation", &self.generation)
            .field("welcome", &self.welcome)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd, shared: &Shared) -> Self {
        let generation = shared.next_generation();
        let (arena, bell) = (Arc::clone(&shared.arena), Arc::clone(&shared.bell));
        let pulse = Arc::new(Pulse::default());
        let releases = Arc::clone(&shared.releases);
        let inbox = Inbox::new(Reader::new(), Arc::clone(&arena), Arc::clone(&pulse), releases);
        Self {
            generation,
            pid: getpid(),
            socket,
            outbox: Outbox::default(),
            inbox: Mutex::new(inbox),
            closed: AtomicBool::new(false),
            welcome: OnceLock::new(),
            next_lease: AtomicU64::new(1),
            arena,
            pulse,
            missed: AtomicU64::new(0),
            bell,
        }
    }

    /// Whether this process is not the one that connected. It must not touch socket or locks: a
    /// thread of the other process may have held them when it forked.
    pub(crate) fn is_foreign(&self) -> bool {
        getpid() != self.pid
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether the daemon has shown no sign of life since a call missed its deadline.
    pub(crate) fn is_hung(&self) -> bool {
        if !self.pulse.is_hung() {
            return false;
        }
        // The sign may lie in the socket, where nobody reads while every call misses.
        let _nothing = self.drain();
        self.pulse.is_hung()
    }

    /// Whether a chain that begins with this page may be found, as far as the board tells.
    pub(crate) fn may_start(&self, first: &PageKey) -> bool {
        self.pulse.board().is_none_or(|board| board.may_start(first))
    }

    /// As [`may_start`](Self::may_start), as a lookup: where the board answers it, the daemon hears
    /// of it.
    pub(crate) fn may_hold(&self, first: &PageKey) -> bool {
        let may = self.may_start(first);
        if !may {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    /// Whether the board answers lookups.
    pub(crate) fn has_firsts(&self) -> bool {
        self.pulse.board().is_some_and(|board| board.has_firsts())
    }

    /// Tells of the lookups that the board answered, if there were any that the daemon has not heard
    /// of. Says whether there were.
    pub(crate) fn tell_missed(&self) -> bool {
        if self.missed.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let sent = self.outbox.send_unasked(self.socket.as_fd(), |out| self.put_missed(out));
        let _lost_with_the_connection = self.after_send(sent);
        true
    }

    /// A frame, and before it what else there is to say.
    fn put(&self, out: &mut Vec<u8>, request: RequestId, message: &Request<'_>) {
        self.put_missed(out);
        encode_request(out, request, message);
    }

    fn put_missed(&self, out: &mut Vec<u8>) {
        if self.missed.load(Ordering::Relaxed) > 0 {
            let missed = self.missed.swap(0, Ordering::Relaxed);
            let lookups = u32::try_from(missed).unwrap_or(u32::MAX);
            encode_request(out, RequestId(0), &Request::Missed(Missed { lookups }));
        }
    }

    /// What the daemon greeted with; `None` before that.
    pub(crate) fn welcome(&self) -> Option<&Welcome> {
        self.welcome.get()
    }

    /// Keeps the greeting, once.
    pub(crate) fn greeted(&self, welcome: Welcome) -> &Welcome {
        self.welcome.get_or_init(|| welcome)
    }

    /// A lease number never used in this session.
    pub(crate) fn new_lease(&self) -> LeaseId {
        LeaseId(self.next_lease.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a request and keeps a place for its answer.
    pub(crate) fn post(
        self: &Arc<Self>,
        message: &Request<'_>,
        expects: Expects,
        until: Instant,
    ) -> Result<Ticket, MissReason> {
        let felt = self.pulse.feel();
        let request = locked(&self.inbox).expect(expects)?;
        let ticket = Ticket::new(self, request, felt);
        let sent = self.outbox.send(self.socket.as_fd(), until, |out| {
            self.put(out, request, message);
        });
        match self.after_send(sent) {
            Ok(()) => Ok(ticket),
            Err(reason) => {
                if reason == MissReason::Deadline {
                    ticket.missed();
                }
                // Nothing was sent: no answer will come that would need looking after.
                locked(&self.inbox).forget(request);
                Err(reason)
            }
        }
    }

    /// Sends a request and waits for its one reply.
    pub(crate) fn call(
        self: &Arc<Self>,
        message: &Request<'_>,
        expects: Expects,
        until: Instant,
    ) -> Result<Reply, MissReason> {
        self.post(message, expects, until)?.reply(until)
    }

    /// Sends what needs no answer and must not get lost while the connection lives.
    pub(crate) fn tell(&self, message: &Request<'_>) -> Result<(), MissReason> {
        let sent = self.outbox.send_unasked(self.socket.as_fd(), |out| {
            self.put(out, RequestId(0), message);
        });
        self.after_send(sent)
    }

    /// Tells how far a lease is let go. Of its end the daemon's confirmation is looked out for.
    pub(crate) fn release(&self, release: Release) -> Result<(), MissReason> {
        let ends = release.upto == ALL;
        let expects = Expects::Released(release.session, release.lease);
        // Where too many answers are waited for it is told all the same, and told again later.
        let request = ends.then(|| locked(&self.inbox).expect(expects).ok()).flatten();
        let sent = self.outbox.send_unasked(self.socket.as_fd(), |out| {
            self.put(out, request.unwrap_or(RequestId(0)), &Request::Release(release));
        });
        let told = self.after_send(sent);
        if let Some(request) = request.filter(|_| told.is_err()) {
            locked(&self.inbox).forget(request);
        }
        told
    }

    fn after_send(&self, sent: Result<Sent, NotSent>) -> Result<(), MissReason> {
        match sent {
            Ok(Sent::Whole) => Ok(()),
            Ok(Sent::Partly) => {
                self.bell.ring();
                Ok(())
            }
            Err(NotSent::Deadline) => Err(MissReason::Deadline),
            Err(NotSent::Closed) => Err(MissReason::Disconnected),
            Err(NotSent::Lost(Lost::System(Errno::PIPE | Errno::CONNRESET))) => {
                // The daemon may have answered before it left; whoever reads next meets the end.
                let _ended = self.drain();
                self.close(Lost::Ended);
                Err(MissReason::Disconnected)
            }
            Err(NotSent::Lost(lost)) => {
                self.close(lost);
                Err(MissReason::Disconnected)
            }
        }
    }

    /// Waits until `ready` finds what it looks for in the inbox. One of the waiting threads reads
    /// for all; the others sleep until their message is there or the reader is free.
    pub(crate) fn wait_until<T>(
        &self,
        request: RequestId,
        until: Instant,
        mut ready: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> Result<T, MissReason> {
        let mut has_read = false;
        let mut signal = None;
        let mut inbox = locked(&self.inbox);
        let result = loop {
            if let Some(found) = ready(&mut inbox) {
                break Ok(found);
            }
            if inbox.closed.is_some() {
                break Err(MissReason::Disconnected);
            }
            let left = until.saturating_duration_since(Instant::now());
            // What came in time is taken even if nobody has read it yet.
            if left.is_zero() && (has_read || inbox.reader.is_none()) {
                break Err(MissReason::Deadline);
            }
            if let Some(reader) = inbox.reader.take() {
                drop(inbox);
                inbox = self.read_for_all(reader, until);
                has_read = true;
            } else {
                let signal = signal.get_or_insert_with(|| Arc::new(Condvar::new()));
                inbox.park(request, signal);
                inbox = signal.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
                inbox.unpark(request);
            }
        };
        inbox.hand_reader_on();
        result
    }

    /// Waits for the socket once and sorts what it gave. Comes back with the inbox locked and the
    /// reader in its place.
    fn read_for_all(&self, mut reader: Reader, until: Instant) -> MutexGuard<'_, Inbox> {
        let mut chores = Vec::new();
        let received = self.receive(&mut reader, until);
        let mut inbox = locked(&self.inbox);
        let sorted = inbox.sort(self.generation, &mut reader, &mut chores);
        inbox.reader = Some(reader);
        if let Err(lost) = sorted.and(received) {
            drop(inbox);
            self.close(lost);
            inbox = locked(&self.inbox);
        } else if !chores.is_empty() {
            drop(inbox);
            chores.iter().for_each(|chore| self.do_chore(chore));
            inbox = locked(&self.inbox);
        }
        inbox
    }

    fn receive(&self, reader: &mut Reader, until: Instant) -> Result<(), Lost> {
        let mut events = PollFlags::IN;
        if self.outbox.is_waiting() {
            events |= PollFlags::OUT;
        }
        let mut fds = [PollFd::new(&self.socket, events)];
        match poll(&mut fds, Some(&time_left(until))) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(Lost::System(errno)),
        }
        let seen = fds[0].revents();
        if seen.contains(PollFlags::OUT) {
            self.flush();
        }
        if seen.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            reader.fill(self.socket.as_fd())?;
        }
        Ok(())
    }

    /// Sends on what waits for the socket, as far as it goes.
    fn flush(&self) {
        // A broken pipe here is met by the reader too, after what the daemon still had to say.
        if let Err(NotSent::Lost(lost)) = self.outbox.flush(self.socket.as_fd())
            && !matches!(lost, Lost::System(Errno::PIPE | Errno::CONNRESET))
        {
            self.close(lost);
        }
    }

    /// Reads what is there without waiting, unless somebody else is reading.
    pub(crate) fn drain(&self) -> Result<(), MissReason> {
        self.wait_until(RequestId(0), Instant::now(), |_| None::<()>)
    }

    /// Whether callers have been at it since `seen`: they hear what the daemon says unasked.
    pub(crate) fn is_in_use(&self, seen: &mut u32) -> bool {
        let inbox = locked(&self.inbox);
        let before = std::mem::replace(seen, inbox.last_request);
        before != inbox.last_request || inbox.reader.is_none()
    }

    /// Waits, as the keeper, until something must be done: the bell rang, the connection ended,
    /// or `until` has come. Sends on what waits meanwhile. Idle, it costs nothing. If nobody else
    /// does, it can `listen`.
    pub(crate) fn watch(&self, until: Instant, listen: bool) {
        // Hang-up is reported in any case, and replies are their callers' own.
        let mut events = if listen { PollFlags::IN } else { PollFlags::empty() };
        if self.outbox.is_waiting() {
            events |= PollFlags::OUT;
        }
        let bell = self.bell.as_fd();
        let mut fds =
            [PollFd::new(&self.socket, events), PollFd::from_borrowed_fd(bell, PollFlags::IN)];
        match poll(&mut fds, Some(&time_left(until))) {
            Ok(_) => {}
            Err(Errno::INTR) => return,
            // Out of kernel memory: not worth spinning over.
            Err(_) => return std::thread::sleep(std::time::Duration::from_millis(1)),
        }
        let (socket, rang) = (fds[0].revents(), !fds[1].revents().is_empty());
        if rang {
            self.bell.silence();
        }
        if socket.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            self.read_to_the_end();
            return;
        }
        if socket.contains(PollFlags::OUT) {
            self.flush();
        }
        if socket.contains(PollFlags::IN) {
            let _nothing = self.drain();
        }
    }

    /// The daemon is gone: sorts what it had said until then, and closes.
    fn read_to_the_end(&self) {
        let one_at_a_time = std::time::Duration::from_millis(1);
        while !self.is_closed() {
            if locked(&self.inbox).reader.is_none() {
                // A caller is reading and will meet the end itself.
                self.bell.wait(Instant::now() + one_at_a_time);
            } else {
                let _nothing = self.drain();
            }
        }
    }

    pub(crate) fn do_chore(&self, chore: &Chore) {
        let told = match chore {
            Chore::DropHold(hold) => self.tell(&Request::DropHold(DropHold { hold: *hold })),
            Chore::ReturnSlots { space, offer, slots } => self.tell(&Request::Commit(Commit {
                space: *space,
                offer: *offer,
                filled: Vec::new(),
                returned: slots.clone(),
            })),
        };
        // A lost connection takes holds and slots with it: nothing is left to give back.
        let _lost = told;
    }

    /// The daemon broke the rules: ends the connection.
    pub(crate) fn violated(&self, what: &str) -> MissReason {
        self.close(Lost::Protocol(what.to_owned()));
        MissReason::Disconnected
    }

    /// Ends the connection; every waiting thread hears of it.
    pub(crate) fn close(&self, lost: Lost) {
        self.closed.store(true, Ordering::Release);
        locked(&self.inbox).close(lost);
        self.outbox.close();
        // Wakes a thread that polls the socket.
        let _gone = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        self.bell.ring();
    }

    /// Goes on in the arena of this epoch: its parts are mapped as they come.
    pub(crate) fn enter(&self, epoch: Epoch) -> Result<(), MissReason> {
        self.arena.enter(epoch);
        let entered = locked(&self.inbox).enter();
        entered.map_err(|lost| {
            self.close(lost);
            MissReason::Disconnected
        })
    }

    /// Retired parts of which no page will be delivered again, and whether more are to come.
    pub(crate) fn vacated_parts(&self) -> (Vec<PartId>, bool) {
        locked(&self.inbox).vacated()
    }

    /// What ended the connection, for people.
    pub(crate) fn end(&self) -> Option<String> {
        locked(&self.inbox).closed.as_ref().map(ToString::to_string)
    }
}
