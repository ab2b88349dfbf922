use crate::claims::{Claim, Filling};
use crate::page::{Dram, Mark};
use crate::sessions::Taken;
use crate::{Action, Admission, CopyOutcome, Core};
use undercroft_wire::{
    Commit, CommitOutcome, CommitReply, MissCause, OfferId, RefusedReason, Reply, RequestId,
    SessionId, SlotId, SpaceId,
};

/// Numbers commits under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CommitId(pub(crate) u64);

/// A commit that is answered once each of its slots is settled.
#[derive(Debug)]
pub(crate) struct PendingCommit {
    pub(crate) session: SessionId,
    request: RequestId,
    offer: OfferId,
    outcomes: Vec<u8>,
    unsettled: u32,
}

impl Core {
    pub(crate) fn commit(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Commit,
        actions: &mut Vec<Action>,
    ) {
        let (space, offer) = (body.space, body.offer);
        if self.staging_mut(session, space).is_none() {
            return self.refuse(session, request, RefusedReason::Unknown, NOT_OPEN, actions);
        }
        // What is given back goes first: a page filled below one of these has lost its parent.
        for &slot in &body.returned {
            match self.take_slot(session, space, slot, offer) {
                Taken::Page(page) => {
                    self.stats.returned += 1;
                    self.drop_offered(page);
                    self.free_slot(session, space, slot);
                }
                Taken::Late => self.free_slot(session, space, slot),
                Taken::Others => {}
            }
        }
        self.last_commit += 1;
        let commit = CommitId(self.last_commit);
        let class = self.spaces.get(space).class;
        let writer = self.sessions.get(&session).and_then(|session| session.writer);
        let mut pending = PendingCommit {
            session,
            request,
            offer,
            outcomes: vec![CommitOutcome::Invalid.to_byte(); body.filled.len()],
            unsettled: 0,
        };
        for (at, &slot) in body.filled.iter().enumerate() {
            let page = match self.take_slot(session, space, slot, offer) {
                Taken::Page(page) => page,
                taken => {
                    self.stats.invalid_commits += 1;
                    if taken == Taken::Late {
                        self.free_slot(session, space, slot);
                    }
                    continue;
                }
            };
            pending.unsettled += 1;
            let writer = writer.expect("whoever was given a slot has a number");
            let filling = Filling { commit, at: at as u32, page, session, writer, space, slot };
            self.line_up(class, Claim::Commit(filling));
        }
        self.wake(class);
        if pending.unsettled == 0 {
            actions.push(pending.reply());
        } else {
            self.commits.insert(commit, pending);
        }
    }

    fn take_slot(
        &mut self,
        session: SessionId,
        space: SpaceId,
        slot: SlotId,
        offer: OfferId,
    ) -> Taken {
        let staging = self.staging_mut(session, space);
        let taken = staging.map_or(Taken::Others, |staging| staging.commit(slot, offer));
        if let Taken::Page(_) = taken {
            self.slot_answered((session, offer));
        }
        taken
    }

    /// A committed slot is done with: it is free again, and its commit is answered with the
    /// last of its slots.
    pub(crate) fn settle_slot(
        &mut self,
        filling: Filling,
        outcome: CommitOutcome,
        actions: &mut Vec<Action>,
    ) {
        match outcome {
            CommitOutcome::Stored => self.stats.stored += 1,
            CommitOutcome::Held => self.stats.held += 1,
            CommitOutcome::Full => self.stats.declined_full += 1,
            CommitOutcome::Invalid => self.stats.invalid_commits += 1,
            CommitOutcome::Failed => self.stats.copy_failures += 1,
        }
        self.free_slot(filling.session, filling.space, filling.slot);
        let Some(pending) = self.commits.get_mut(&filling.commit) else {
            return;
        };
        pending.outcomes[filling.at as usize] = outcome.to_byte();
        pending.unsettled -= 1;
        if pending.unsettled == 0 {
            let pending = self.commits.remove(&filling.commit).expect("found above");
            actions.push(pending.reply());
        }
    }

    pub(crate) fn copied_in(
        &mut self,
        filling: Filling,
        outcome: CopyOutcome,
        actions: &mut Vec<Action>,
    ) {
        let page = filling.page;
        assert_eq!(self.index[page].dram, Dram::Filling, "a copy fills its page's frame");
        let outcome = match outcome {
            CopyOutcome::Ok(crc)
                if self.is_parent_alive(page) && !self.index[page].is(Mark::Purged) =>
            {
                self.become_resident(page, crc);
                let through = self.config.admission == Admission::Through;
                if through && self.is_demotable(page) && self.is_admitted(page) {
                    self.demote(page, actions);
                }
                CommitOutcome::Stored
            }
            CopyOutcome::Ok(_) => CommitOutcome::Invalid,
            CopyOutcome::Failed => CommitOutcome::Failed,
        };
        self.unbusy(self.class_of(page));
        if outcome != CommitOutcome::Stored {
            let purged = self.index[page].is(Mark::Purged);
            self.drop_frame(page);
            self.bury(page, if purged { MissCause::Purged } else { MissCause::NotTaken });
            self.prune(page);
        }
        self.settle_slot(filling, outcome, actions);
    }
}

impl PendingCommit {
    fn reply(self) -> Action {
        let Self { session, request, offer, outcomes, .. } = self;
        let reply = Reply::Commit(CommitReply { offer, outcomes });
        Action::Reply { session, request, reply }
    }
}

pub(crate) const NOT_OPEN: &str = "the session has not opened this space";
