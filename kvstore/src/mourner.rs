//! Waits for the death of processes whose sockets are closed but whose leases are still open.

use crate::bell::Bell;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use undercroft_wire::SessionId;

/// Sessions are numbered from 1: this one stands for "stop".
const STOP: u64 = 0;

/// A thread that rings when a watched process is gone. It sleeps until then.
#[derive(Debug)]
pub(crate) struct Mourner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    watched: Mutex<HashMap<u64, OwnedFd>>,
}

impl Mourner {
    /// Starts the thread; `gone` is rung with the session of every watched process that ended.
    pub(crate) fn start(gone: Bell<SessionId>) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared { epoll, stop, watched: Mutex::default() });
        let seen = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("mourner".to_owned())
            .spawn(move || while seen.wait(&gone) {})?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches a process, named by its pidfd, on behalf of a session.
    pub(crate) fn watch(&self, session: SessionId, process: OwnedFd) -> std::io::Result<()> {
        let data = epoll::EventData::new_u64(session.0);
        // Under the lock, so that the thread finds the entry however fast the event is.
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        epoll::add(&self.shared.epoll, &process, data, epoll::EventFlags::IN)?;
        watched.insert(session.0, process);
        Ok(())
    }

    /// Watches no longer. It may ring all the same if the process has just ended.
    pub(crate) fn forget(&self, session: SessionId) {
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // Closing the descriptor takes it out of the epoll set.
        drop(watched.remove(&session.0));
    }
}

impl Shared {
    /// One round; `false` when it is time to stop.
    fn wait(&self, gone: &Bell<SessionId>) -> bool {
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "dead clients are not noticed any more");
                return false;
            }
        }
        for event in events {
            let session = event.data.u64();
            if session == STOP {
                return false;
            }
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            // Closing the descriptor takes it out of the epoll set.
            drop(watched.remove(&session));
            drop(watched);
            gone.ring(SessionId(session));
        }
        true
    }
}

impl Drop for Mourner {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            return tracing::error!(%error, "cannot stop the mourner");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the mourner had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use crate::bell::bell;
    use crate::process::watch;
    use std::process::{Command, Stdio};

    #[test]
    fn a_death_is_rung_once_and_only_for_the_dead() {
        let (gone, door) = bell(4);
        let mourner = Mourner::start(gone).unwrap();
        let spawn = || Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (mut short, mut long) = (spawn(), spawn());
        mourner.watch(SessionId(1), watch(short.id()).unwrap()).unwrap();
        mourner.watch(SessionId(2), watch(long.id()).unwrap()).unwrap();
        short.kill().unwrap();
        short.wait().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(door.rung());
        assert_eq!(door.take(), Some(SessionId(1)));
        assert_eq!(door.take(), None);
        mourner.forget(SessionId(2));
        assert!(mourner.shared.watched.lock().unwrap().is_empty());
        drop(mourner);
        long.kill().unwrap();
        long.wait().unwrap();
    }
}
