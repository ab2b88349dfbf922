use crate::page::PageId;
use crate::{Action, Core};
use std::collections::VecDeque;
use undercroft_wire::{Reply, RequestId, SessionId};

/// Pages that one turn of one session lets go of.
const TURN_PAGES: u32 = 256;

/// What somebody has of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grip {
    /// Its frame stays.
    Pin(PageId),
    /// It stays in some tier.
    Keep(PageId),
    /// A slot was assigned for it.
    Offered(PageId),
}

/// What leases, holds and sessions that are over still have of pages.
///
/// They may have as many as there are. So a step lets go of as much as
/// [`crate::Config::step_pages`], and of the rest a few pages a step, session by session in turn. To
/// everybody else the lease is over at once, and that is noted before its first frame is free: what
/// the rest has of pages ends with the daemon at the latest. [`Core::next_timer`] is due as long.
#[derive(Debug, Default)]
pub(crate) struct Letting {
    queue: VecDeque<Owner>,
    /// Pages that the step under way may still let go of.
    pub(crate) left: u32,
}

#[derive(Debug)]
struct Owner {
    /// `None` for prefetches.
    session: Option<SessionId>,
    works: VecDeque<Work>,
}

#[derive(Debug)]
enum Work {
    Loosen(VecDeque<Grip>),
    /// A request is answered when all before it is done.
    Answer(SessionId, RequestId, Reply),
}

impl Letting {
    fn push(&mut self, session: Option<SessionId>, work: Work) {
        match self.queue.iter_mut().find(|owner| owner.session == session) {
            Some(owner) => owner.works.push_back(work),
            None => self.queue.push_back(Owner { session, works: [work].into() }),
        }
    }

    fn has(&self, session: SessionId) -> bool {
        self.queue.iter().any(|owner| owner.session == Some(session))
    }

    fn owes(&self, session: SessionId) -> bool {
        let to_it = |work: &Work| matches!(work, Work::Answer(to, ..) if *to == session);
        self.queue.iter().any(|owner| owner.works.iter().any(to_it))
    }

    /// All that is still to be let go of.
    pub(crate) fn grips(&self) -> impl Iterator<Item = Grip> + '_ {
        let works = self.queue.iter().flat_map(|owner| &owner.works);
        let grips = works.filter_map(|work| match work {
            Work::Loosen(grips) => Some(grips),
            Work::Answer(..) => None,
        });
        grips.flatten().copied()
    }
}

impl Core {
    /// Whether a request of the session is not done with yet, though all it waits for is the
    /// next steps. Requests that come meanwhile are taken, but they may find less room than after.
    #[must_use]
    pub fn is_session_busy(&self, session: SessionId) -> bool {
        let ends = !self.letting.queue.is_empty()
            && (self.letting.has(session) || self.letting.owes(session));
        let looks = self.searching.has(session) || self.offering.has(session);
        ends || looks || self.gathers_for(session)
    }

    /// Whether pages are still to be let go of.
    pub(crate) fn is_letting_go(&self) -> bool {
        !self.letting.queue.is_empty()
    }

    /// Lets go of pages, now or in the next steps.
    pub(crate) fn let_go(
        &mut self,
        session: Option<SessionId>,
        mut grips: impl Iterator<Item = Grip>,
    ) {
        while self.letting.left > 0 {
            let Some(grip) = grips.next() else {
                return;
            };
            self.letting.left -= 1;
            self.loosen(grip);
        }
        let rest: VecDeque<Grip> = grips.collect();
        if !rest.is_empty() {
            self.letting.push(session, Work::Loosen(rest));
        }
    }

    fn loosen(&mut self, grip: Grip) {
        match grip {
            Grip::Pin(page) => self.unpin(page),
            Grip::Keep(page) => self.unkeep(page),
            Grip::Offered(page) => self.drop_offered(page),
        }
    }

    /// Answers a request that has nothing to say once all is let go of that `session` had.
    pub(crate) fn done_with(
        &mut self,
        session: SessionId,
        (asker, request): (SessionId, RequestId),
        actions: &mut Vec<Action>,
    ) {
        if self.letting.has(session) {
            self.answer_after(session, (asker, request), Reply::Done);
        } else {
            self.done(asker, request, actions);
        }
    }

    /// Answers a request once all is let go of that `session` had, in this step at the earliest.
    pub(crate) fn answer_after(
        &mut self,
        session: SessionId,
        (asker, request): (SessionId, RequestId),
        reply: Reply,
    ) {
        self.letting.push(Some(session), Work::Answer(asker, request, reply));
    }

    /// Goes on letting go, as far as the step may.
    pub(crate) fn let_go_on(&mut self, actions: &mut Vec<Action>) {
        while self.letting.left > 0
            && let Some(mut owner) = self.letting.queue.pop_front()
        {
            self.let_go_of(&mut owner, actions);
            if !owner.works.is_empty() {
                self.letting.queue.push_back(owner);
            }
        }
    }

    fn let_go_of(&mut self, owner: &mut Owner, actions: &mut Vec<Action>) {
        let mut turn = TURN_PAGES.min(self.letting.left);
        self.letting.left -= turn;
        while let Some(work) = owner.works.front_mut() {
            match work {
                Work::Loosen(grips) if turn > 0 => {
                    turn -= 1;
                    if let Some(grip) = grips.pop_front() {
                        self.loosen(grip);
                    }
                    if grips.is_empty() {
                        owner.works.pop_front();
                    }
                }
                Work::Loosen(_) => break,
                Work::Answer(..) => {
                    let answer = owner.works.pop_front();
                    if let Some(Work::Answer(session, request, reply)) = answer
                        && request != RequestId(0)
                        && self.sessions.get(&session).is_some_and(|session| session.open)
                    {
                        actions.push(Action::Reply { session, request, reply });
                    }
                }
            }
        }
        self.letting.left += turn;
    }
}
