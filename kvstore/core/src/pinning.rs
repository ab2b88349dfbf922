use crate::Core;
use crate::domains::DomainAt;
use crate::fetches::{Fetch, FetchId, Reader};
use crate::spaces::ClassId;
use std::collections::BTreeSet;
use undercroft_wire::{Mode, SessionId};

/// What a session's leases pin of its domain's arena, and which of its fetches have stopped because
/// they pin as much as they may.
///
/// A process may have thousands of fetches stopped. So what is pinned is counted, and as it shrinks
/// only those go on that there is room for, the oldest first: a run that is whole can be released,
/// and many halves cannot.
#[derive(Debug, Default)]
pub(crate) struct Pinning {
    /// Bytes of the frames that its leases pin, each as often as it is leased.
    pub(crate) bytes: u64,
    /// Bytes of one frame for each of its fetches that waits for one. They are nobody's yet, but
    /// whoever goes on would only stand in line behind them.
    pub(crate) awaited: u64,
    /// Fetches that stopped.
    pub(crate) stopped: BTreeSet<FetchId>,
}

impl Reader {
    /// The session whose leases pin what is read. In copy mode none does for long.
    pub(crate) fn pinning_session(self) -> Option<SessionId> {
        match self {
            Self::Lease { session, mode: Mode::ZeroCopy, .. } => Some(session),
            Self::Lease { mode: Mode::Copy, .. } | Self::Prefetch => None,
        }
    }
}

/// What a process that is stopped keeps is bounded; a fetch goes on as pages are released.
impl Core {
    /// How many more pages the reader's session may pin.
    pub(crate) fn lease_room(&self, fetch: &Fetch) -> usize {
        let session = fetch.reader.pinning_session();
        let Some(session) = session.and_then(|id| self.sessions.get(&id)) else {
            return usize::MAX;
        };
        let most = self.domains.get(session.domain).config.limits.max_session_bytes;
        if most == u64::MAX {
            return usize::MAX;
        }
        let held = session.pinning.bytes;
        let room = (most.saturating_sub(held) / self.frame_bytes(fetch.class)) as usize;
        // Who holds nothing gets one page, however large.
        if held == 0 { room.max(1) } else { room }
    }

    /// A fetch pinned `before` pages and pins what it says now. If these are less, others of its
    /// session may go on.
    pub(crate) fn count_pinned(&mut self, fetch: &Fetch, before: usize) {
        let after = fetch.pinned().len();
        let bytes = self.frame_bytes(fetch.class);
        let Some(session) = fetch.reader.pinning_session().filter(|_| before != after) else {
            return;
        };
        if let Some(state) = self.sessions.get_mut(&session) {
            let held = state.pinning.bytes + after as u64 * bytes;
            let held = held.checked_sub(before as u64 * bytes);
            state.pinning.bytes = held.expect("what was pinned is counted");
        }
        if after < before {
            self.wake_stopped(session);
        }
    }

    /// A fetch waits for a frame from here on, or does no more.
    pub(crate) fn count_awaited(&mut self, (reader, class): (Reader, ClassId), waits: bool) {
        let bytes = self.frame_bytes(class);
        let session = reader.pinning_session().and_then(|id| self.sessions.get_mut(&id));
        if let Some(Pinning { awaited, .. }) = session.map(|state| &mut state.pinning) {
            let left = if waits { Some(*awaited + bytes) } else { awaited.checked_sub(bytes) };
            *awaited = left.expect("who waits is counted");
        }
    }

    /// Notes whether the fetch goes no further until its session pins less.
    pub(crate) fn note_stopped(&mut self, fetch: &Fetch, stopped: bool) {
        let session = fetch.reader.pinning_session().and_then(|id| self.sessions.get_mut(&id));
        let Some(state) = session else {
            return;
        };
        let list = &mut state.pinning.stopped;
        if stopped {
            self.stats.stopped_fetches += u64::from(list.insert(fetch.id));
        } else if !list.is_empty() {
            list.remove(&fetch.id);
        }
    }

    /// Has the next fetch of a session go on that stopped, if there is room for it now. It has the
    /// one after it go on in turn.
    pub(crate) fn wake_stopped(&mut self, session: SessionId) {
        let Some(state) = self.sessions.get(&session).filter(|state| state.open) else {
            return;
        };
        let Some(&next) = state.pinning.stopped.first() else {
            return;
        };
        let most = self.domains.get(state.domain).config.limits.max_session_bytes;
        let taken = state.pinning.bytes + state.pinning.awaited;
        // It may have ended in this very step, and be gone.
        let bytes = self.fetches.get(&next).map_or(0, |fetch| self.frame_bytes(fetch.class));
        if taken == 0 || taken.saturating_add(bytes) <= most {
            let state = self.sessions.get_mut(&session).expect("found above");
            state.pinning.stopped.remove(&next);
            self.ready.push_back(next);
        }
    }

    /// Sessions of the domain may hold more from now on.
    pub(crate) fn wake_leases_of(&mut self, domain: DomainAt) {
        let sessions = self.sessions.iter().filter(|(_, session)| session.domain == domain);
        let sessions: Vec<SessionId> = sessions.map(|(id, _)| *id).collect();
        sessions.into_iter().for_each(|session| self.wake_stopped(session));
    }
}
