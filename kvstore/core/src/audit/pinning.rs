use crate::Core;
use crate::fetches::Fetch;

impl Core {
    /// What leases pin is counted, and nobody stops who has room.
    pub(super) fn audit_pinning(&self) {
        for session in self.sessions.values() {
            let leases = || session.leases.values().map(|id| &self.fetches[id]);
            let counted = leases().filter(|fetch| fetch.reader.pinning_session().is_some());
            let of = |fetch: &Fetch, pages: usize| pages as u64 * self.frame_bytes(fetch.class);
            let (bytes, awaited) = counted.fold((0, 0), |(bytes, awaited), fetch| {
                let waits = usize::from(fetch.waits_for_frame);
                (bytes + of(fetch, fetch.pinned().len()), awaited + of(fetch, waits))
            });
            let pinning = &session.pinning;
            assert_eq!(bytes, pinning.bytes, "what leases pin is counted");
            assert_eq!(awaited, pinning.awaited, "frames that fetches wait for are counted");
            let list = &pinning.stopped;
            let mut idle = leases().filter(|fetch| self.is_idle(fetch));
            let busy = &self.gathering.delivering;
            assert!(list.iter().all(|id| self.is_idle(&self.fetches[id])), "who goes on is told");
            let known = idle.all(|fetch| list.contains(&fetch.id) || busy.contains(&fetch.id));
            assert!(known, "who has stopped is known");
            let most = self.domains.get(session.domain).config.limits.max_session_bytes;
            if let Some(first) = list.first() {
                let taken = bytes + awaited;
                let bytes = self.frame_bytes(self.fetches[first].class);
                assert!(taken > 0 && taken.saturating_add(bytes) > most, "nobody stops with room");
            }
        }
    }

    /// Whether a fetch could give its next page a frame, and does not.
    fn is_idle(&self, fetch: &Fetch) -> bool {
        let begun = fetch.active && fetch.rest.is_none() && fetch.issued < fetch.limit;
        begun && self.may_issue(fetch)
    }
}
