//! What an earlier daemon left: its arena, its clients' leases, and reads that may yet land.

use super::Control;
use crate::peer::Peer;
use crate::process;
use crate::quarantine::{Devices, Quarantine};
use crate::restoring::restore;
use crate::session::Session;
use crate::store;
use std::os::fd::OwnedFd;
use std::time::Instant;
use undercroft_arena::SessionRow;
use undercroft_core::Event;
use undercroft_wire::{DeviceId, SessionId};

impl Control {
    /// Tells the core of the arena, and of what lies in it already. `devices` says which of them
    /// the earlier daemon may still be reading from.
    pub(crate) fn take_over_arena(&mut self, devices: Devices) {
        let restored = restore(&mut self.core, &self.arena, &mut self.state);
        self.start.restored_pages = self.core.stats().restored_pages;
        for row in restored.sessions {
            self.restore_session(&row);
        }
        // After an end in order nothing is under way, whatever frames were being filled.
        let bytes = if self.state.was_clean() { 0 } else { restored.quarantined_bytes };
        self.start.quarantined_bytes = bytes;
        self.quarantine = Quarantine::new(bytes, devices, Instant::now());
        self.settle();
        self.go_on_retiring();
        self.go_on_purging();
        self.look_at_parts();
    }

    /// A session whose leases an earlier daemon has remembered. They last as long as its process,
    /// unless that one releases them in another session.
    fn restore_session(&mut self, row: &SessionRow) {
        let id = row.session;
        let left = self.core.session_leases(id);
        if left.leases == 0 && left.withheld == 0 {
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

    /// A device is ours.
    pub(super) fn locked(&mut self, device: DeviceId) {
        self.quarantine.locked(device);
        self.settle();
    }

    /// Has frames used again that were being filled, if nothing of an earlier daemon is under way
    /// any more.
    pub(crate) fn settle(&mut self) {
        if !self.has_settled && self.quarantine.is_over(Instant::now()) {
            self.has_settled = true;
            self.quarantine = Quarantine::default();
            self.start.quarantined_bytes = 0;
            // From here on only our own devices write to its frames.
            self.state.replace_devices(store::name(self.config.ssd.as_ref()));
            self.feed(Event::QuarantineOver);
        }
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
