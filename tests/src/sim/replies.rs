//! What the daemon says to clients, held against what it may say.

use super::report::Count;
use super::world::World;
use undercroft_wire::{
    FetchEnd, FetchOutcome, FetchReady, Mode, PagePlace, Reply, RequestId, SessionId, SlotId,
    frame_bytes,
};

impl World {
    /// A reply reaches its session.
    pub(super) fn replied(&mut self, session: SessionId, request: RequestId, reply: &Reply) {
        assert!(!self.clients.lingering.contains(&session), "a closed session is told nothing");
        match reply {
            Reply::FetchReady(ready) => self.ready(session, ready),
            Reply::FetchEnd(end) => self.fetch_ended(session, end),
            Reply::Commit(_) => {
                let answered = self.clients.commits.get_mut(&(session, request));
                let answered = answered.expect("a commit that was made");
                assert!(!std::mem::replace(answered, true), "a commit is answered once");
            }
            _ => {}
        }
        self.clients.replies.push((session, request, reply.clone()));
    }

    fn ready(&mut self, session: SessionId, ready: &FetchReady) {
        let key = (session, ready.lease);
        let lease = self.clients.leases.get(&key).expect("a lease that was asked for");
        assert!(lease.ended.is_none(), "nothing is delivered after the end");
        assert_eq!(ready.first as usize, lease.places.len(), "pages are delivered in order");
        for (index, place) in ready.places.iter().enumerate() {
            let lease = &self.clients.leases[&key];
            let page = lease.pages[ready.first as usize + index];
            self.check_there(&page);
            match lease.mode {
                Mode::ZeroCopy => self.check_page(&page, place),
                Mode::Copy => {
                    assert_eq!(place.part, PagePlace::STAGING, "it is copied into a slot");
                    let slot = place.offset / u64::from(frame_bytes(page.page_bytes));
                    let bytes = &self.delivered[&(session, lease.space, SlotId(slot as u32))];
                    let expected = super::content::content(&page);
                    assert!(*bytes == expected, "wrong bytes for {page:?} in slot {slot}");
                    self.clients.check_unused_slot(session, lease.space, place.offset);
                    self.report.count(Count::DeliveredCopied);
                }
            }
            self.report.count(Count::Delivered);
            let lease = self.clients.leases.get_mut(&key).expect("found above");
            lease.places.push(*place);
        }
    }

    fn fetch_ended(&mut self, session: SessionId, end: &FetchEnd) {
        let key = (session, end.lease);
        let Some(lease) = self.clients.leases.get_mut(&key) else {
            // Its deadline was over in the moment in which its process ended.
            let gone = !self.clients.sessions.contains_key(&session);
            return assert!(gone, "a fetch ends that nobody asked for");
        };
        assert!(lease.ended.is_none(), "a fetch ends once");
        let outcome = FetchOutcome::from_byte(end.outcome).expect("an outcome that there is");
        if outcome != FetchOutcome::Invalid {
            assert_eq!(end.ready as usize, lease.places.len(), "the end says what was delivered");
        }
        let complete = lease.places.len() == lease.pages.len();
        assert_eq!(outcome == FetchOutcome::Complete, complete, "complete is complete");
        assert!(
            outcome != FetchOutcome::Deadline || self.now >= lease.deadline,
            "a deadline is not over before its time"
        );
        let missed = (lease.pages.len() - lease.places.len()) as u64;
        self.report.more(Count::Missed, missed);
        lease.ended = Some(*end);
        if lease.released == lease.places.len() {
            self.clients.leases.remove(&key);
        }
    }
}
