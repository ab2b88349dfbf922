use crate::domains::DomainAt;
use crate::fetches::{FetchId, Reader};
use crate::timers::Timer;
use crate::{Action, Core, Micros};
use hashbrown::HashMap;
use undercroft_wire::{
    Gift, Give, Given, HoldId, LeaseId, RefusedReason, Reply, RequestId, SessionId, SpaceId, Take,
    TakenHold, Token,
};

/// Numbers tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TokenId(pub(crate) u64);

/// Holds and leases that may change hands.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// What tokens are drawn with: whoever does not know it cannot guess any.
    key: [u8; 32],
    last: u64,
    by_token: HashMap<Token, TokenId>,
    offered: HashMap<TokenId, Offered>,
}

/// What a token stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered {
    token: Token,
    /// Who gives. A token is void once it is no longer its to give.
    giver: SessionId,
    pub(crate) domain: DomainAt,
    what: Handed,
    pub(crate) expires: Micros,
}

#[derive(Debug, Clone, Copy)]
enum Handed {
    Hold(HoldId),
    Lease(FetchId),
}

impl Tokens {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            key: blake3::derive_key("undercroft tokens v1", &seed.to_le_bytes()),
            last: 0,
            by_token: HashMap::new(),
            offered: HashMap::new(),
        }
    }

    fn draw(&mut self) -> (TokenId, Token) {
        self.last += 1;
        let drawn = blake3::keyed_hash(&self.key, &self.last.to_le_bytes());
        let mut token = [0; 16];
        token.copy_from_slice(&drawn.as_bytes()[..16]);
        (TokenId(self.last), Token(token))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TokenId, &Offered)> {
        assert_eq!(self.by_token.len(), self.offered.len(), "a token stands for one thing");
        self.offered.iter().map(|(id, offered)| (*id, offered))
    }
}

impl Core {
    /// Draws a token for a hold or lease of the session.
    pub(crate) fn give(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Give,
        actions: &mut Vec<Action>,
    ) {
        let Some(domain) = self.domain_of(session) else {
            return;
        };
        let what = match self.gift(session, body.what) {
            Ok(what) => what,
            Err((reason, detail)) => {
                return self.refuse(session, request, reason, detail, actions);
            }
        };
        if self.domains.get(domain).tokens >= self.domains.get(domain).config.limits.max_tokens {
            let detail = "as many tokens wait to be taken as may be";
            return self.refuse(session, request, RefusedReason::Busy, detail, actions);
        }
        let (id, token) = self.tokens.draw();
        let expires = self.now.after_ms(self.config.limits.max_hold_ms);
        let offered = Offered { token, giver: session, domain, what, expires };
        self.tokens.by_token.insert(token, id);
        self.tokens.offered.insert(id, offered);
        self.timers.insert((expires, Timer::Token(id)));
        self.domains.get_mut(domain).tokens += 1;
        let reply = Reply::Given(Given { token });
        actions.push(Action::Reply { session, request, reply });
    }

    fn gift(
        &self,
        session: SessionId,
        what: Gift,
    ) -> Result<Handed, (RefusedReason, &'static str)> {
        match what {
            Gift::Hold(hold) => {
                let own = self.holds.get(&hold).is_some_and(|held| held.session == session);
                let unknown = (RefusedReason::Unknown, "the session has no such hold");
                own.then_some(Handed::Hold(hold)).ok_or(unknown)
            }
            Gift::Lease(lease) => {
                let state = self.sessions.get(&session);
                let fetch = state.and_then(|state| state.leases.get(&lease));
                let fetch = fetch.ok_or((RefusedReason::Unknown, "the session has no such lease"));
                let fetch = &self.fetches[fetch?];
                if fetch.active || fetch.is_copy() {
                    let detail =
                        "only a lease whose fetch has ended is given, and none in copy mode";
                    return Err((RefusedReason::Invalid, detail));
                }
                Ok(Handed::Lease(fetch.id))
            }
        }
    }

    /// Makes the session the owner of what a token stands for. Whatever it is refused for, the
    /// token stays good.
    pub(crate) fn take(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Take,
        actions: &mut Vec<Action>,
    ) {
        let domain = self.domain_of(session);
        let id = self.tokens.by_token.get(&body.token).copied();
        let found = id.map(|id| (id, self.tokens.offered[&id]));
        let found = found.filter(|(_, offered)| Some(offered.domain) == domain);
        let Some((id, offered)) = found else {
            let detail = "no such token, or it was taken or is too old";
            return self.refuse(session, request, RefusedReason::Unknown, detail, actions);
        };
        let taken = match (offered.what, body.space) {
            (Handed::Hold(hold), None) => self.take_hold(session, &offered, hold),
            (Handed::Lease(fetch), Some(space)) => {
                let lease = (body.lease, space);
                self.take_lease((session, request), &offered, fetch, lease, actions)
            }
            _ => Err((RefusedReason::Invalid, "the token stands for something else")),
        };
        match taken {
            Ok(reply) => {
                self.void(id);
                actions.extend(reply.map(|reply| Action::Reply { session, request, reply }));
            }
            Err((reason, detail)) => self.refuse(session, request, reason, detail, actions),
        }
    }

    fn take_hold(
        &mut self,
        session: SessionId,
        offered: &Offered,
        id: HoldId,
    ) -> Result<Option<Reply>, (RefusedReason, &'static str)> {
        let hold = self.holds.get_mut(&id).filter(|hold| hold.session == offered.giver);
        let hold = hold.ok_or((RefusedReason::Unknown, "the hold is over"))?;
        hold.session = session;
        Ok(Some(Reply::TakenHold(TakenHold { hold: id, pages: hold.count })))
    }

    /// Makes the giver's fetch one of the taker's, which has nothing of it yet. That the giver's lease
    /// has ended is noted after what is delivered at once.
    fn take_lease(
        &mut self,
        (session, request): (SessionId, RequestId),
        offered: &Offered,
        given: FetchId,
        (lease, space): (LeaseId, SpaceId),
        actions: &mut Vec<Action>,
    ) -> Result<Option<Reply>, (RefusedReason, &'static str)> {
        let of_giver = |reader: Reader| matches!(reader, Reader::Lease { session, .. } if session == offered.giver);
        let fetch = self.fetches.get(&given).filter(|fetch| of_giver(fetch.reader));
        let fetch = fetch.ok_or((RefusedReason::Unknown, "the lease has ended"))?;
        let limits = self.config.limits;
        let state = self.sessions.get(&session).expect("only open sessions are heard");
        if fetch.space != space || !state.stagings.contains_key(&space) {
            return Err((RefusedReason::Unknown, "the pages are of another space"));
        }
        if state.leases.contains_key(&lease) {
            return Err((RefusedReason::Invalid, "the number is another lease's"));
        }
        let count = fetch.delivered - fetch.released;
        let left = limits.max_leased_pages_per_session.saturating_sub(state.leased_pages);
        if state.leases.len() >= limits.max_leases_per_session as usize || count > left {
            return Err((RefusedReason::Busy, "the session leases as much as it may"));
        }
        let reader = Reader::Lease { session, lease, request, mode: state.mode };
        let deadline = self.now.after_ms(limits.max_hold_ms);
        let mut fetch = self.new_fetch(reader, space, deadline);
        if count as usize > self.lease_room(&fetch) {
            return Err((
                RefusedReason::Busy,
                "the session's leases pin as many bytes as they may",
            ));
        }
        let mut old = self.fetches.remove(&given).expect("found above");
        fetch.pages = old.pages[old.released as usize..old.delivered as usize].to_vec();
        (fetch.issued, fetch.limit) = (count, count);
        fetch.handed_over = true;
        fetch.reads.extend(std::iter::repeat_n(false, count as usize));
        self.count_pinned(&fetch, 0);
        let id = self.insert_fetch(fetch);
        self.add_lease(session, lease, id);
        self.count_leased(session, count);
        self.progress(id, false, actions);
        self.note_released(&old, old.delivered);
        let before = old.pinned().len();
        old.released = old.delivered;
        self.count_pinned(&old, before);
        self.forget_lease(given, &old);
        Ok(None)
    }

    /// The token is good for nothing any more.
    pub(crate) fn void(&mut self, id: TokenId) {
        if let Some(offered) = self.tokens.offered.remove(&id) {
            self.tokens.by_token.remove(&offered.token);
            self.timers.remove(&(offered.expires, Timer::Token(id)));
            self.domains.get_mut(offered.domain).tokens -= 1;
        }
    }
}
