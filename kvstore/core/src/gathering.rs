use crate::domains::DomainAt;
use crate::fetches::{Fetch, FetchId, Reader};
use crate::index::Guide;
use crate::page::{Dram, PageId};
use crate::timers::Timer;
use crate::{Action, Core};
use std::collections::VecDeque;
use undercroft_wire::{
    FetchOutcome, HoldId, PageKey, PrefetchReply, RefusedReason, Reply, RequestId, SessionId,
};

/// Pages that one turn of one fetch takes in.
const TURN_PAGES: u32 = 256;

/// The part of a fetch's run that it has not taken in yet. A step takes in as much as
/// [`crate::Config::step_pages`]; nothing is delivered before all is there.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) source: Source,
    /// Who is answered when all is taken in, unless it is by the pages.
    pub(crate) asker: (SessionId, RequestId),
    pub(crate) stamp: u64,
    guide: Guide,
    at: usize,
    /// Pages so far that were in DRAM.
    resident: u32,
    /// Whether all of these were.
    lead: bool,
}

/// What names the pages of a run.
#[derive(Debug)]
pub(crate) enum Source {
    Keys(Vec<PageKey>),
    /// Pages that a hold keeps known.
    Held(HoldId, Vec<PageId>),
}

/// Fetches that are taking in their pages, and those that have more to say than a step does.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    queue: VecDeque<FetchId>,
    /// Pages that the step under way may still take in.
    pub(crate) left: u32,
    /// Pages that it may still deliver.
    pub(crate) deliveries_left: u32,
    /// Fetches that go on delivering in the next step.
    pub(crate) delivering: Vec<FetchId>,
}

impl Rest {
    pub(crate) fn new(source: Source, asker: (SessionId, RequestId), stamp: u64) -> Self {
        let guide = Guide::default();
        Self { source, asker, stamp, guide, at: 0, resident: 0, lead: true }
    }

    /// The hold that it takes pages from.
    pub(crate) fn hold(&self) -> Option<HoldId> {
        match self.source {
            Source::Held(hold, _) => Some(hold),
            Source::Keys(_) => None,
        }
    }
}

/// How taking in a run went on.
enum Gathered {
    /// There is more of it.
    More,
    All,
    /// As far as pages are there.
    Found,
    /// There are more than may be leased.
    TooMany,
}

impl Core {
    /// Starts a fetch of what `rest` names, as far as it is visible. What lies in DRAM at the head
    /// of the run is pinned, the rest is kept from leaving its last tier, and all of it is touched.
    pub(crate) fn begin_fetch(&mut self, mut fetch: Fetch, rest: Rest) -> FetchId {
        fetch.rest = Some(Box::new(rest));
        self.insert_fetch(fetch)
    }

    pub(crate) fn insert_fetch(&mut self, mut fetch: Fetch) -> FetchId {
        self.last_fetch += 1;
        let id = FetchId(self.last_fetch);
        fetch.id = id;
        self.timers.insert((fetch.deadline, Timer::Fetch(id)));
        self.fetches.insert(id, fetch);
        id
    }

    /// Whether fetches have more to take in or to deliver than the last step did.
    pub(crate) fn is_gathering(&self) -> bool {
        !self.gathering.queue.is_empty() || !self.gathering.delivering.is_empty()
    }

    /// Whether a request of the session waits for its pages to be taken in, or for those that are there to
    /// be delivered.
    pub(crate) fn gathers_for(&self, session: SessionId) -> bool {
        let fetches = self.gathering.queue.iter().filter_map(|id| self.fetches.get(id));
        let gathers =
            fetches.filter_map(|fetch| fetch.rest.as_ref()).any(|rest| rest.asker.0 == session);
        let fetches = self.gathering.delivering.iter().filter_map(|id| self.fetches.get(id));
        gathers || fetches.into_iter().any(|fetch| fetch.reader.session() == Some(session))
    }

    /// Goes on with the fetches under way, as far as the step may.
    pub(crate) fn gather_on(&mut self, actions: &mut Vec<Action>) {
        while self.gathering.left > 0
            && let Some(id) = self.gathering.queue.pop_front()
        {
            self.gather(id, TURN_PAGES, actions);
        }
    }

    /// Takes in up to `most` pages of a fetch's run.
    pub(crate) fn gather(&mut self, id: FetchId, most: u32, actions: &mut Vec<Action>) {
        let Some(mut fetch) = self.fetches.remove(&id) else {
            return;
        };
        let Some(mut rest) = fetch.rest.take() else {
            self.fetches.insert(id, fetch);
            return;
        };
        let (before, pinned) = (fetch.pages.len() as u32, fetch.pinned().len());
        let room = self.room_for(&fetch);
        let pins = fetch.issued as usize + self.lease_room(&fetch).min(u32::MAX as usize);
        let turn = most.min(self.gathering.left);
        let mut gathered = Gathered::More;
        for _ in 0..turn {
            self.gathering.left -= 1;
            let most = (before.saturating_add(room), pins);
            gathered = self.gather_one(&mut fetch, &mut rest, most);
            if !matches!(gathered, Gathered::More) {
                break;
            }
        }
        if let Some(session) = fetch.reader.session() {
            self.count_leased(session, fetch.pages.len() as u32 - before);
        }
        self.count_pinned(&fetch, pinned);
        match gathered {
            Gathered::More => {
                fetch.rest = Some(rest);
                self.fetches.insert(id, fetch);
                self.gathering.queue.push_back(id);
            }
            Gathered::TooMany => {
                let (session, request) = rest.asker;
                self.withdraw(id, fetch);
                let detail = "the session or its domain leases as many pages as it may";
                self.refuse(session, request, RefusedReason::Busy, detail, actions);
            }
            Gathered::All | Gathered::Found => {
                if matches!(gathered, Gathered::Found) && fetch.reader != Reader::Prefetch {
                    fetch.outcome = FetchOutcome::Missing;
                }
                self.gathered(id, fetch, &rest, actions);
            }
        }
    }

    fn gathered(&mut self, id: FetchId, mut fetch: Fetch, rest: &Rest, actions: &mut Vec<Action>) {
        if fetch.reader != Reader::Prefetch {
            self.start_race(id, &mut fetch);
            self.fetches.insert(id, fetch);
            self.ready.push_back(id);
            return;
        }
        let (session, request) = rest.asker;
        let (resident, started) = (rest.resident, fetch.limit - rest.resident);
        if started == 0 && !self.is_for_turn(id) {
            self.withdraw(id, fetch);
        } else {
            self.stats.prefetches += 1;
            self.fetches.insert(id, fetch);
            self.ready.push_back(id);
        }
        let reply = Reply::Prefetch(PrefetchReply { resident, started });
        if self.sessions.get(&session).is_some_and(|session| session.open) {
            actions.push(Action::Reply { session, request, reply });
        }
    }

    /// Takes in the next page of a run, unless the fetch has `most` pages already; pins it if it is
    /// one of the first `pins`.
    fn gather_one(
        &mut self,
        fetch: &mut Fetch,
        rest: &mut Rest,
        (most, pins): (u32, usize),
    ) -> Gathered {
        let next = match &rest.source {
            Source::Keys(keys) => {
                let mut find = |key| self.index.find_next(&mut rest.guide, fetch.space, key);
                (rest.at < keys.len()).then(|| find(&keys[rest.at]))
            }
            Source::Held(_, pages) => pages.get(rest.at).map(|page| Some(*page)),
        };
        let Some(found) = next else {
            return Gathered::All;
        };
        let Some(page) = found.filter(|page| self.is_visible(*page)) else {
            return Gathered::Found;
        };
        if fetch.pages.len() as u32 >= most {
            return Gathered::TooMany;
        }
        let resident = self.index[page].dram == Dram::Resident;
        rest.resident += u32::from(resident);
        if let Some(race) = fetch.race.as_mut().filter(|_| !resident) {
            race.to_read += 1;
        }
        rest.lead &= resident && (fetch.issued as usize) < pins;
        rest.at += 1;
        if rest.lead {
            self.pin(page);
            fetch.issued += 1;
            fetch.reads.push_back(false);
        } else {
            self.keep(page);
        }
        fetch.pages.push(page);
        fetch.limit += 1;
        self.touch(page, rest.stamp);
        Gathered::More
    }

    /// How many more pages the reader of a fetch may lease.
    fn room_for(&self, fetch: &Fetch) -> u32 {
        let Some(session) = fetch.reader.session() else {
            return u32::MAX;
        };
        let Some(state) = self.sessions.get(&session) else {
            return 0;
        };
        let tenant = self.domains.get(state.domain);
        let left = tenant.config.limits.max_leased_pages.saturating_sub(tenant.leased_pages);
        let most = self.config.limits.max_leased_pages_per_session;
        left.min(most.saturating_sub(state.leased_pages))
    }

    pub(crate) fn count_leased(&mut self, session: SessionId, pages: u32) {
        if let Some(state) = self.sessions.get_mut(&session) {
            state.leased_pages += pages;
            let domain: DomainAt = state.domain;
            self.domains.get_mut(domain).leased_pages += pages;
        }
    }

    /// Undoes a fetch of which nothing was delivered, and that nobody is to hear of.
    fn withdraw(&mut self, id: FetchId, mut fetch: Fetch) {
        self.truncate(&mut fetch, 0, FetchOutcome::Full);
        self.timers.remove(&(fetch.deadline, Timer::Fetch(id)));
        self.forget_lease(id, &fetch);
    }

    /// Nothing more is taken in. Whoever waits for a prefetch to be started hears of it.
    pub(crate) fn break_off(&mut self, fetch: &Fetch, rest: &Rest) {
        if fetch.reader == Reader::Prefetch {
            let reply = PrefetchReply { resident: rest.resident, started: 0 };
            self.answer_after(rest.asker.0, rest.asker, Reply::Prefetch(reply));
        }
    }

    /// A fetch's time is over. What lies in DRAM is delivered before, however many steps that takes.
    pub(crate) fn expire_fetch(&mut self, id: FetchId, actions: &mut Vec<Action>) {
        let more = self.fetches.get(&id).is_some_and(|fetch| fetch.rest.is_some());
        if !more && !self.gathering.delivering.contains(&id) {
            return self.stop_fetch(id, FetchOutcome::Deadline, actions);
        }
        let fetch = self.fetches.get_mut(&id).expect("who goes on is known");
        self.timers.remove(&(fetch.deadline, Timer::Fetch(id)));
        fetch.late = true;
    }

    /// The hold ends: who takes pages from it gets no more of them.
    pub(crate) fn stop_gathering_from(&mut self, hold: HoldId) {
        for id in &self.gathering.queue {
            if let Some(fetch) = self.fetches.get_mut(id)
                && fetch.rest.as_ref().is_some_and(|rest| rest.hold() == Some(hold))
            {
                fetch.rest = None;
                fetch.outcome = FetchOutcome::Missing;
                self.ready.push_back(*id);
            }
        }
    }

    /// Whether a fetch takes pages from the hold.
    pub(crate) fn is_gathered_from(&self, hold: HoldId) -> bool {
        let fetches = self.gathering.queue.iter().filter_map(|id| self.fetches.get(id));
        fetches.filter_map(|fetch| fetch.rest.as_ref()).any(|rest| rest.hold() == Some(hold))
    }

    /// Has fetches go on that had more to deliver than the step before.
    pub(crate) fn deliver_on(&mut self) {
        self.ready.extend(self.gathering.delivering.drain(..));
    }
}
