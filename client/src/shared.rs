use crate::MissReason;
use crate::bell::Bell;
use crate::connection::{Connection, Lost, locked};
use crate::gpu::Gpu;
use crate::options::ConnectOptions;
use crate::parts::Arena;
use crate::releases::Releases;
use crate::space::SpaceState;
use rustix::process::{Pid, getpid};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use undercroft_arena::StagingView;
use undercroft_wire::{Release, SpaceDigest};

/// How often who waits for a daemon looks whether it still hangs: nobody tells.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the handles of one client and its keeper thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: ConnectOptions,
    pid: Pid,
    pub(crate) bell: Arc<Bell>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) gpu: Gpu,
    pub(crate) counts: Counts,
    link: Mutex<Link>,
    /// Signalled when a connection is there.
    linked: Condvar,
    pub(crate) releases: Arc<Releases>,
    /// Every space that somebody has a handle of, to be opened again in each new session.
    spaces: Mutex<HashMap<SpaceDigest, Arc<SpaceState>>>,
    /// The connection that was begun last, whether it has come to anything or not.
    begun: Mutex<Weak<Connection>>,
    stopped: AtomicBool,
    /// Whether the keeper thread has ended, and who waits for that.
    ended: Mutex<bool>,
    over: Condvar,
    generations: AtomicU64,
}

/// What a client counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) changed_pages: AtomicU64,
    pub(crate) hung_calls: AtomicU64,
}

#[derive(Debug, Default)]
struct Link {
    connection: Option<Arc<Connection>>,
    /// Why there is none.
    failure: Option<String>,
}

impl Shared {
    pub(crate) fn new(options: ConnectOptions, bell: Arc<Bell>) -> Self {
        Self {
            options,
            pid: getpid(),
            arena: Arc::new(Arena::new(Arc::clone(&bell))),
            gpu: Gpu::default(),
            bell,
            counts: Counts::default(),
            link: Mutex::default(),
            linked: Condvar::new(),
            releases: Arc::default(),
            spaces: Mutex::default(),
            begun: Mutex::default(),
            stopped: AtomicBool::new(false),
            ended: Mutex::default(),
            over: Condvar::new(),
            generations: AtomicU64::new(1),
        }
    }

    /// Whether this process is not the one that connected.
    pub(crate) fn is_foreign(&self) -> bool {
        getpid() != self.pid
    }

    pub(crate) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    /// The connection of the moment, if the daemon behind it turns.
    pub(crate) fn connection(&self) -> Result<Arc<Connection>, MissReason> {
        let connection = self.linked()?;
        if connection.is_hung() {
            if connection.is_closed() {
                return Err(MissReason::Disconnected);
            }
            self.counts.hung_calls.fetch_add(1, Ordering::Relaxed);
            return Err(MissReason::Hung);
        }
        Ok(connection)
    }

    /// The connection of the moment.
    pub(crate) fn linked(&self) -> Result<Arc<Connection>, MissReason> {
        if self.is_foreign() {
            return Err(MissReason::Forked);
        }
        match &locked(&self.link).connection {
            Some(connection) if !connection.is_closed() => Ok(Arc::clone(connection)),
            _ => Err(MissReason::Disconnected),
        }
    }

    /// The connection, or the next one that is made before `until`. One whose daemon hangs is
    /// waited for, too: it may go on.
    pub(crate) fn connection_by(&self, until: Instant) -> Result<Arc<Connection>, MissReason> {
        loop {
            let found = self.connection();
            let left = until.saturating_duration_since(Instant::now());
            match &found {
                Err(MissReason::Disconnected) if !left.is_zero() && !self.is_stopped() => {}
                Err(MissReason::Hung) if !left.is_zero() => {
                    std::thread::sleep(left.min(LOOK_AGAIN));
                    continue;
                }
                _ => return found,
            }
            let link = locked(&self.link);
            let alive = link.connection.as_ref().is_some_and(|c| !c.is_closed());
            if !alive && !self.is_stopped() {
                let _woken =
                    self.linked.wait_timeout(link, left).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// What ended the last connection or attempt.
    pub(crate) fn failure(&self) -> Option<String> {
        let link = locked(&self.link);
        let ended = link.connection.as_ref().and_then(|c| c.end());
        ended.or_else(|| link.failure.clone())
    }

    pub(crate) fn failed(&self, failure: String) {
        locked(&self.link).failure = Some(failure);
    }

    /// Lets go of a connection that ended.
    pub(crate) fn lost(&self, connection: &Connection) {
        {
            let mut link = locked(&self.link);
            link.failure = connection.end();
            link.connection = None;
        }
        locked(&self.spaces).values().for_each(|space| space.close(connection.generation));
    }

    /// Hands a connection to the callers, unless some space is not open in it yet: that one must
    /// be seen to first.
    pub(crate) fn publish(&self, connection: &Arc<Connection>) -> Result<(), Vec<Arc<SpaceState>>> {
        // Both locks at once, so that no space can slip in between looking and publishing.
        let spaces = locked(&self.spaces);
        let unasked = unasked(&spaces, connection.generation);
        if !unasked.is_empty() {
            return Err(unasked);
        }
        {
            let mut link = locked(&self.link);
            link.connection = Some(Arc::clone(connection));
            link.failure = None;
        }
        drop(spaces);
        self.linked.notify_all();
        // From here on who releases tells this connection, so that none is missed.
        let epoch = connection.welcome().map(|welcome| welcome.epoch);
        for release in epoch.map(|epoch| self.releases.to_tell(epoch)).unwrap_or_default() {
            let _ended_again = connection.release(release);
        }
        Ok(())
    }

    /// The staging areas of all open spaces.
    pub(crate) fn staging(&self) -> Vec<StagingView> {
        locked(&self.spaces).values().filter_map(|space| space.staging()).collect()
    }

    /// Remembers a space for every session to come, and counts a handle of it; the same space is
    /// only opened once.
    pub(crate) fn remember(&self, space: SpaceState) -> Arc<SpaceState> {
        let mut spaces = locked(&self.spaces);
        let state = spaces.entry(space.digest()).or_insert_with(|| Arc::new(space));
        state.add_handle();
        Arc::clone(state)
    }

    /// A handle is gone; with the last one the space is forgotten.
    pub(crate) fn let_go(&self, space: &SpaceState) {
        // A thread of the other process may have had the lock when it forked.
        if self.is_foreign() {
            return;
        }
        let mut spaces = locked(&self.spaces);
        if space.drop_handle() {
            spaces.remove(&space.digest());
        }
    }

    /// Spaces that are not open in this session: refused for reasons that pass, not asked for
    /// while the daemon hung, or asked for and not answered yet.
    pub(crate) fn unopened_spaces(&self, generation: u64) -> Vec<Arc<SpaceState>> {
        let spaces = locked(&self.spaces);
        spaces.values().filter(|space| !space.is_open_in(generation)).cloned().collect()
    }

    /// Releases pages of a lease made in `session`, in the session of the moment if that one is
    /// gone but its arena lives on. The engine's process may be reading until now, so the daemon
    /// keeps a lease beyond its connection.
    pub(crate) fn release(&self, session: &Connection, release: Release) {
        if self.is_foreign() {
            return;
        }
        let Some(epoch) = session.welcome().map(|welcome| welcome.epoch) else {
            return;
        };
        self.releases.keep(epoch, release);
        if session.release(release).is_ok() {
            return;
        }
        let current = locked(&self.link).connection.clone();
        // Without one, the next one is told.
        let Some(current) = current.filter(|current| !current.is_closed()) else { return };
        if current.welcome().is_some_and(|welcome| welcome.epoch == epoch) {
            let _told_in_the_next_one = current.release(release);
        } else {
            self.releases.forget(release.session, release.lease);
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// A connection is being made. If the client ends meanwhile, so does the attempt.
    pub(crate) fn begin(&self, connection: &Arc<Connection>) {
        *locked(&self.begun) = Arc::downgrade(connection);
        if self.is_stopped() {
            connection.close(Lost::Dropped);
        }
    }

    /// The client ends, and with it the session and the keeper thread.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.bell.ring();
        let connection = locked(&self.link).connection.take();
        self.linked.notify_all();
        let begun = locked(&self.begun).upgrade();
        for connection in connection.into_iter().chain(begun) {
            connection.close(Lost::Dropped);
        }
    }

    /// The keeper thread has nothing left to do.
    pub(crate) fn end(&self) {
        *locked(&self.ended) = true;
        self.over.notify_all();
    }

    /// Waits until the keeper thread has ended. Says whether it has.
    pub(crate) fn wait_ended(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let ended = self.over.wait_timeout_while(locked(&self.ended), left, |ended| !*ended);
        *ended.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn unasked(
    spaces: &HashMap<SpaceDigest, Arc<SpaceState>>,
    generation: u64,
) -> Vec<Arc<SpaceState>> {
    spaces.values().filter(|space| !space.was_asked_in(generation)).cloned().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    /// As a child of `fork` finds it: everything copied, but made by another process.
    pub(crate) fn inherited() -> Shared {
        let options = ConnectOptions::new("/nowhere");
        let mut shared = Shared::new(options, Arc::new(Bell::new().unwrap()));
        shared.pid = Pid::INIT;
        shared
    }

    /// Has every lock of its own.
    pub(crate) fn hold(shared: &Shared) -> impl Sized {
        let releases = crate::releases::tests::hold(&shared.releases);
        (locked(&shared.link), locked(&shared.spaces), releases)
    }

    #[test]
    fn a_forked_child_misses_without_touching_a_lock() {
        let shared = inherited();
        let held = (locked(&shared.link), locked(&shared.spaces));
        assert_eq!(shared.connection().unwrap_err(), MissReason::Forked);
        assert_eq!(shared.connection_by(Instant::now()).unwrap_err(), MissReason::Forked);
        drop(held);
    }
}
