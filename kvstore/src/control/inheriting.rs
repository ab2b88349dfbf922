//! What an earlier daemon left: its arena, its clients' leases, and reads that may yet land.

use super::Control;
use crate::peer::Peer;
use crate::process;
use crate::restoring::restore;
use crate::session::Session;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use undercroft_arena::SessionRow;
use undercroft_core::Event;
use undercroft_wire::{DeviceId, SessionId};

/// Where no device can say that it is over, nothing an earlier daemon had under way lasts so long.
const UNDER_WAY: Duration = Duration::from_secs(10);

impl Control {
    /// Tells the core of the arena, and of what lies in it already. `unlocked` are devices that the
    /// earlier daemon may still be reading from.
    pub(crate) fn take_over_arena(&mut self, unlocked: HashSet<DeviceId>) {
        let restored = restore(&mut self.core, &self.arena, &mut self.state);
        self.start.restored_pages = self.core.stats().restored_pages;
        self.start.quarantined_bytes = restored.quarantined_bytes;
        for row in restored.sessions {
            self.restore_session(&row);
        }
        self.unlocked = unlocked;
        if restored.quarantined_bytes == 0 || self.state.was_clean() {
            self.settle();
        } else if self.devices.is_empty() {
            self.settled_by = Some(Instant::now() + UNDER_WAY);
        } else {
            self.settle_if_locked();
        }
        self.go_on_retiring();
    }

    /// A session whose leases an earlier daemon has remembered. They last as long as its process,
    /// unless that one releases them in another session.
    fn restore_session(&mut self, row: &SessionRow) {
        let id = row.session;
        if self.core.session_leases(id).leases == 0 {
            self.state.session_gone(id);
            return;
        }
        let process = process::watch(row.pid);
        let is_same = |fd: &OwnedFd| process::identity(row.pid, Some(fd)) == row.started;
        let alive = process.as_ref().is_some_and(|fd| is_same(fd) && !process::is_gone(fd));
        let domain = self.domains.iter().find(|domain| domain.id == row.domain).cloned();
        let (uid, gid) = process::owner(row.pid);
        let peer = Peer { pid: row.pid, uid, gid, start: row.started, process: None };
        self.sessions.insert(id, Session::restored(peer, domain));
        match process {
            Some(process) if alive => self.watch(id, process),
            // Whether it is the one that leased is not to be told: it is taken to be.
            None if process::is_there(row.pid) => self.look_for(id),
            _ => self.bury(id),
        }
    }

    /// A device is ours: nothing else writes to its file, or from it to memory.
    pub(super) fn locked(&mut self, device: DeviceId) {
        if self.unlocked.remove(&device) && self.start.quarantined_bytes > 0 {
            self.settle_if_locked();
        }
    }

    fn settle_if_locked(&mut self) {
        if self.unlocked.is_empty() {
            self.settle();
        }
    }

    /// Nothing of an earlier daemon is under way any more.
    pub(crate) fn settle(&mut self) {
        self.settled_by = None;
        self.start.quarantined_bytes = 0;
        self.feed(Event::QuarantineOver);
    }

    /// Buries the session when its process is gone.
    pub(super) fn watch(&mut self, id: SessionId, process: OwnedFd) {
        if let Err(error) = self.mourner.watch(id, process) {
            // The leases stay too long rather than being given up under a reader.
            tracing::error!(session = %id, %error, "cannot watch a process: it is looked for");
            self.look_for(id);
        }
    }

    /// Looks now and then whether the session's process is there: nobody tells of its end.
    fn look_for(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.is_looked_for = true;
        }
        self.listen_for_silence();
    }
}
