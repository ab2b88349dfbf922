use crate::commits::NOT_OPEN;
use crate::fetches::{Fetch, FetchId, Reader};
use crate::gathering::{Rest, Source};
use crate::page::Dram;
use crate::{Action, Core, Micros};
use std::collections::VecDeque;
use undercroft_wire::{
    Fetch as FetchRequest, FetchEnd, FetchOutcome, FetchSource, LeaseId, PageKey, Prefetch,
    PrefetchReply, RefusedReason, Release, Reply, RequestId, SessionId, SpaceId,
};

/// The requests that make and end leases.
impl Core {
    pub(crate) fn fetch(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &FetchRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        let limits = self.config.limits;
        let Some(state) = self.sessions.get(&session) else {
            return;
        };
        let leases = state.leases.len();
        let taken = state.leases.contains_key(&body.lease);
        if taken || !state.stagings.contains_key(&body.space) {
            return self.end_unbegun(session, request, body.lease, actions);
        }
        if leases >= limits.max_leases_per_session as usize {
            let detail = "the session holds as many leases as it may";
            return self.refuse(session, request, RefusedReason::Busy, detail, actions);
        }
        let mode = state.mode;
        let Some(source) = self.fetched_run(session, body) else {
            return self.end_unbegun(session, request, body.lease, actions);
        };
        let reader = Reader::Lease { session, lease: body.lease, request, mode };
        let deadline = self.now.after_ms(body.deadline_ms);
        let stamp = self.clamp_stamp(session, body.stamp);
        let mut fetch = self.new_fetch(reader, body.space, deadline);
        fetch.began = Some(self.now);
        fetch.race = self.new_race(&fetch, body.recompute_ns);
        let id = self.begin_fetch(fetch, Rest::new(source, (session, request), stamp));
        self.stats.fetches += 1;
        self.add_lease(session, body.lease, id);
        self.gather(id, u32::MAX, actions);
    }

    /// A fetch is the session's lease from here on.
    pub(crate) fn add_lease(&mut self, session: SessionId, lease: LeaseId, fetch: FetchId) {
        let state = self.sessions.get_mut(&session).expect("a session that leases is known");
        state.leases.insert(lease, fetch);
    }

    /// The pages that a fetch names.
    fn fetched_run(&self, session: SessionId, body: &FetchRequest<'_>) -> Option<Source> {
        match &body.source {
            FetchSource::Keys { keys } => Some(Source::Keys(keys.as_slice().to_vec())),
            FetchSource::Hold { hold: id, first, count } => {
                // Numbers can be guessed: another session's hold is handed over by a token.
                let hold = self.holds.get(id).filter(|hold| hold.session == session)?;
                let run = hold.run(body.space, *first, *count)?;
                Some(Source::Held(*id, run))
            }
        }
    }

    pub(crate) fn new_fetch(&self, reader: Reader, space: SpaceId, deadline: Micros) -> Fetch {
        Fetch {
            id: FetchId(0),
            reader,
            space,
            class: self.spaces.get(space).class,
            released: 0,
            delivered: 0,
            copied: 0,
            issued: 0,
            limit: 0,
            pages: Vec::new(),
            numbers: Vec::new(),
            rest: None,
            outcome: FetchOutcome::Complete,
            reads: VecDeque::new(),
            slots: VecDeque::new(),
            ssd: 0,
            began: None,
            race: None,
            deadline,
            late: false,
            active: true,
            handed_over: false,
            waits_for_frame: false,
            waits_for_lull: false,
            waits_for_slot: false,
        }
    }

    /// Answers a fetch that cannot begin.
    fn end_unbegun(
        &mut self,
        session: SessionId,
        request: RequestId,
        lease: LeaseId,
        actions: &mut Vec<Action>,
    ) {
        self.stats.incomplete_fetches += 1;
        let outcome = FetchOutcome::Invalid.to_byte();
        let reply = Reply::FetchEnd(FetchEnd { lease, ready: 0, ssd: 0, outcome });
        actions.push(Action::Reply { session, request, reply });
    }

    /// Releases a lease or its first pages. A lease that is gone is released already.
    pub(crate) fn release(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Release,
        actions: &mut Vec<Action>,
    ) {
        let Some((process, domain)) =
            self.sessions.get(&session).map(|state| (state.process, state.domain))
        else {
            return;
        };
        // Who is of another domain is not there, as far as anybody can tell.
        let owner = self.sessions.get(&body.session).filter(|owner| owner.domain == domain);
        let giver = owner.map_or(session, |_| body.session);
        if let Some(owner) = owner {
            if owner.process != process {
                let detail = "the lease belongs to another process";
                return self.refuse(session, request, RefusedReason::Unknown, detail, actions);
            }
            if let Some(&fetch) = owner.leases.get(&body.lease) {
                if body.upto == u32::MAX {
                    self.note_copied(fetch);
                    self.abandon_fetch(fetch, actions);
                    self.end_lease(fetch);
                } else {
                    self.release_pages(fetch, body.upto);
                }
            }
        }
        self.done_with(giver, (session, request), actions);
    }

    /// Lifts the visible head of a run to DRAM. It is touched like any use, but not pinned:
    /// what it displaces may come back and displace it.
    pub(crate) fn prefetch(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Prefetch<'_>,
        actions: &mut Vec<Action>,
    ) {
        if self.staging_mut(session, body.space).is_none() {
            return self.refuse(session, request, RefusedReason::Unknown, NOT_OPEN, actions);
        }
        let domain = self.domain_of_space(body.space);
        let stamp = self.next_stamp(session);
        self.note_length(session, stamp, body.keys.as_slice().len());
        if !self.domains.get(domain).may_prefetch() {
            let resident = self.resident_head(body.space, body.keys.as_slice());
            let reply = Reply::Prefetch(PrefetchReply { resident, started: 0 });
            actions.push(Action::Reply { session, request, reply });
            return;
        }
        self.domains.get_mut(domain).prefetches += 1;
        let ttl_ms = body.ttl_ms.min(self.config.limits.max_hold_ms);
        let fetch = self.new_fetch(Reader::Prefetch, body.space, self.now.after_ms(ttl_ms));
        let source = Source::Keys(body.keys.as_slice().to_vec());
        let id = self.begin_fetch(fetch, Rest::new(source, (session, request), stamp));
        self.gather(id, u32::MAX, actions);
    }

    /// How many pages of a visible run are in DRAM, as far as one step looks.
    fn resident_head(&self, space: SpaceId, keys: &[PageKey]) -> u32 {
        let visible = |key| {
            let page = self.index.find(space, key)?;
            self.is_visible(page).then(|| &self.index[page])
        };
        let head = keys.iter().take(self.config.step_pages as usize).map_while(visible);
        head.filter(|page| page.dram == Dram::Resident).count() as u32
    }
}
