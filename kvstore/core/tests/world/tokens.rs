//! What changes hands between clients.

use super::{HeldLease, World};
use undercroft_wire::{
    FetchOutcome, Gift, Give, HoldId, LeaseId, Mode, RefusedReason, Reply, Request, SessionId,
    SpaceId, Take, TakenHold, Token,
};

impl World {
    pub(crate) fn give(&mut self, session: u64, what: Gift) -> Result<Token, RefusedReason> {
        match self.ask(session, &Request::Give(Give { what })) {
            Some(Reply::Given(given)) => Ok(given.token),
            Some(Reply::Refused(refused)) => Err(refused.reason),
            other => panic!("a gift is answered at once, not with {other:?}"),
        }
    }

    pub(crate) fn give_hold(&mut self, session: u64, hold: HoldId) -> Result<Token, RefusedReason> {
        self.give(session, Gift::Hold(hold))
    }

    pub(crate) fn give_lease(&mut self, session: u64, lease: u64) -> Result<Token, RefusedReason> {
        self.give(session, Gift::Lease(LeaseId(lease)))
    }

    pub(crate) fn take_hold(
        &mut self,
        session: u64,
        token: Token,
    ) -> Result<TakenHold, RefusedReason> {
        let take = Take { token, lease: LeaseId(0), space: None };
        match self.ask(session, &Request::Take(take)) {
            Some(Reply::TakenHold(taken)) => Ok(taken),
            Some(Reply::Refused(refused)) => Err(refused.reason),
            other => panic!("taking a hold is answered at once, not with {other:?}"),
        }
    }

    /// Takes what `giver` leases, as `lease` of `session`.
    pub(crate) fn take_lease(
        &mut self,
        (session, lease): (u64, u64),
        token: Token,
        space: SpaceId,
        (giver, given): (u64, u64),
    ) -> Result<(), RefusedReason> {
        let mine = (SessionId(session), LeaseId(lease));
        let theirs = (SessionId(giver), LeaseId(given));
        let keys = self
            .leases
            .get(&theirs)
            .map_or_else(Vec::new, |held| held.keys[held.released..held.places.len()].to_vec());
        let held = HeldLease { space, keys, places: Vec::new(), released: 0, ended: None };
        let before = self.leases.insert(mine, held);
        let take = Take { token, lease: LeaseId(lease), space: Some(space) };
        if let Some(Reply::Refused(refused)) = self.ask(session, &Request::Take(take)) {
            self.leases.remove(&mine);
            self.leases.extend(before.map(|before| (mine, before)));
            return Err(refused.reason);
        }
        self.leases.remove(&theirs);
        if self.modes[&SessionId(session)] == Mode::ZeroCopy {
            let end = self.leases[&mine].ended.expect("all of it is there");
            assert_eq!(end.outcome, FetchOutcome::Complete.to_byte());
        }
        Ok(())
    }
}
