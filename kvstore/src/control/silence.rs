//! Sessions that hold frames and say nothing: stopped, hung, or no longer there at all.

use super::Control;
use crate::process;
use crate::session::Session;
use std::time::{Duration, Instant};
use undercroft_core::SessionLeases;
use undercroft_wire::{ProcessState, SessionId};

impl Control {
    /// Has sessions looked at in time: one of them may hold frames from now on.
    pub(super) fn listen_for_silence(&mut self) {
        if self.listen_at.is_none() {
            self.listen_at = Some(Instant::now() + self.config.silence);
            self.look_again.notify_one();
        }
    }

    /// Tells, once each, of sessions that have held frames in silence for too long. Their frames
    /// stay theirs: a device may still be reading.
    pub(crate) fn listen(&mut self) {
        self.bury_whom_nobody_tells_of();
        let (now, limit) = (Instant::now(), self.config.silence);
        let mut next: Option<Instant> = None;
        let mut raised = 0;
        for (id, session) in &mut self.sessions {
            let held = self.core.session_leases(*id);
            let due = session.heard + limit;
            let is_silent = held.pages > 0 && due <= now;
            match (session.alarmed, is_silent) {
                (false, true) => {
                    raise(*id, session, held, now);
                    raised += 1;
                }
                (true, false) => {
                    let pid = session.peer.pid;
                    tracing::info!(session = %id, pid, "a silent session is heard again, or holds nothing");
                }
                _ => {}
            }
            session.alarmed = is_silent;
            if held.leases > 0 {
                let again = if due <= now { now + limit } else { due };
                next = Some(next.map_or(again, |next| next.min(again)));
            }
        }
        self.lease_alarms += raised;
        self.listen_at = next;
    }

    fn bury_whom_nobody_tells_of(&mut self) {
        let is_over =
            |session: &Session| session.is_looked_for && !process::is_there(session.peer.pid);
        let over = self.sessions.iter().filter(|(_, session)| is_over(session));
        for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.bury(id);
        }
    }

    /// How long a session has been silent, and whether that is an alarm, given what it holds.
    pub(crate) fn silence_of(
        &self,
        session: &Session,
        held: SessionLeases,
    ) -> (Duration, Option<ProcessState>) {
        let silent = session.heard.elapsed();
        let is_alarm = held.pages > 0 && silent >= self.config.silence;
        (silent, is_alarm.then(|| process::state(session.peer.pid)))
    }
}

fn raise(id: SessionId, session: &Session, held: SessionLeases, now: Instant) {
    tracing::warn!(
        session = %id,
        pid = session.peer.pid,
        name = %session.name,
        domain = %session.domain_name(),
        bytes = held.bytes,
        pages = held.pages,
        silent_s = now.duration_since(session.heard).as_secs(),
        process = ?process::state(session.peer.pid),
        "ALARM: a process holds frames and says nothing; they stay its own until it ends"
    );
}
