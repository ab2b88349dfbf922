use crate::commits::NOT_OPEN;
use crate::fetches::{Fetch, FetchId, Reader};
use crate::index::Guide;
use crate::page::{Dram, PageId};
use crate::{Action, Core, Micros};
use std::collections::VecDeque;
use undercroft_wire::{
    Fetch as FetchRequest, FetchEnd, FetchOutcome, FetchSource, LeaseId, Prefetch, PrefetchReply,
    RefusedReason, Release, Reply, RequestId, SessionId, SpaceId,
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
        let (leases, leased, domain) = (state.leases.len(), state.leased_pages, state.domain);
        let taken = state.leases.contains_key(&body.lease);
        if taken || !state.stagings.contains_key(&body.space) {
            return self.end_unbegun(session, request, body.lease, actions);
        }
        if leases >= limits.max_leases_per_session as usize {
            let detail = "the session holds as many leases as it may";
            return self.refuse(session, request, RefusedReason::Busy, detail, actions);
        }
        let mode = state.mode;
        let Some(pages) = self.fetched_run(session, body) else {
            return self.end_unbegun(session, request, body.lease, actions);
        };
        let (mut pages, wished) = pages;
        let visible = |page: &&PageId| self.is_visible(**page);
        let found = pages.iter().take_while(visible).count();
        pages.truncate(found);
        let tenant = self.domains.get(domain);
        let left = tenant.config.limits.max_leased_pages.saturating_sub(tenant.leased_pages);
        if pages.len() as u32 > left.min(limits.max_leased_pages_per_session - leased) {
            let detail = "the session or its domain leases as many pages as it may";
            return self.refuse(session, request, RefusedReason::Busy, detail, actions);
        }
        let complete = found == wished;
        let outcome = if complete { FetchOutcome::Complete } else { FetchOutcome::Missing };
        let reader = Reader::Lease { session, lease: body.lease, request, mode };
        let deadline = self.now.after_ms(body.deadline_ms);
        let stamp = self.clamp_stamp(session, body.stamp);
        let count = pages.len() as u32;
        let fetch = self.new_fetch(reader, body.space, pages, outcome, deadline);
        let id = self.begin_fetch(fetch, stamp);
        self.stats.fetches += 1;
        self.add_lease(session, body.lease, id, count);
    }

    /// A fetch of so many pages is the session's lease from here on.
    pub(crate) fn add_lease(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        fetch: FetchId,
        pages: u32,
    ) {
        let state = self.sessions.get_mut(&session).expect("a session that leases is known");
        state.leases.insert(lease, fetch);
        state.leased_pages += pages;
        self.domains.get_mut(state.domain).leased_pages += pages;
    }

    /// The pages a fetch names, as far as they are known, and how many it wished for.
    fn fetched_run(
        &self,
        session: SessionId,
        body: &FetchRequest<'_>,
    ) -> Option<(Vec<PageId>, usize)> {
        match &body.source {
            FetchSource::Keys { keys } => {
                let mut guide = Guide::default();
                let find = |key| self.index.find_next(&mut guide, body.space, key);
                let pages = keys.as_slice().iter().map_while(find).collect();
                Some((pages, keys.len()))
            }
            FetchSource::Hold { hold, first, count } => {
                // Numbers can be guessed: another session's hold is handed over by a token.
                let hold = self.holds.get(hold).filter(|hold| hold.session == session)?;
                let run = hold.run(body.space, *first, *count)?;
                let wished = run.len();
                Some((run, wished))
            }
        }
    }

    pub(crate) fn new_fetch(
        &self,
        reader: Reader,
        space: SpaceId,
        pages: Vec<PageId>,
        outcome: FetchOutcome,
        deadline: Micros,
    ) -> Fetch {
        Fetch {
            id: FetchId(0),
            reader,
            space,
            class: self.spaces.get(space).class,
            released: 0,
            delivered: 0,
            copied: 0,
            issued: 0,
            limit: pages.len() as u32,
            pages,
            numbers: Vec::new(),
            outcome,
            reads: VecDeque::new(),
            slots: VecDeque::new(),
            ssd: 0,
            deadline,
            active: true,
            waits_for_frame: false,
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
        let process = self.sessions.get(&session).map(|state| state.process);
        let owner = self.sessions.get(&body.session);
        let giver = owner.map_or(session, |_| body.session);
        if let Some(owner) = owner {
            if Some(owner.process) != process {
                let detail = "the lease belongs to another process";
                return self.refuse(session, request, RefusedReason::Unknown, detail, actions);
            }
            if let Some(&fetch) = owner.leases.get(&body.lease) {
                if body.upto == u32::MAX {
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
        let visible = |key| {
            let page = self.index.find(body.space, key)?;
            self.is_visible(page).then_some(page)
        };
        let pages: Vec<PageId> = body.keys.as_slice().iter().map_while(visible).collect();
        let in_dram = |page: &&PageId| self.index[**page].dram == Dram::Resident;
        let resident = pages.iter().filter(in_dram).count() as u32;
        let mut started = pages.len() as u32 - resident;
        let stamp = self.next_stamp(session);
        if started == 0 {
            for page in pages {
                self.touch(page, stamp);
            }
        } else if self.domains.get(domain).may_prefetch() {
            self.domains.get_mut(domain).prefetches += 1;
            self.stats.prefetches += 1;
            let ttl_ms = body.ttl_ms.min(self.config.limits.max_hold_ms);
            let deadline = self.now.after_ms(ttl_ms);
            let (space, outcome) = (body.space, FetchOutcome::Complete);
            let fetch = self.new_fetch(Reader::Prefetch, space, pages, outcome, deadline);
            self.begin_fetch(fetch, stamp);
        } else {
            started = 0;
        }
        let reply = Reply::Prefetch(PrefetchReply { resident, started });
        actions.push(Action::Reply { session, request, reply });
    }
}
