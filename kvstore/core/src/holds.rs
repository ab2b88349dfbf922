use crate::domains::DomainAt;
use crate::letting::Grip;
use crate::page::PageId;
use crate::timers::Timer;
use crate::{Action, Core, Micros};
use undercroft_wire::{DropHold, HoldId, Reply, RequestId, SessionId, SpaceId};

/// Bits of a hold's number that its domain counts with.
const HOLD_BITS: u32 = 48;

/// A lookup's promise that what it found stays for a while: in DRAM what was there, in some
/// tier what was not.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) session: SessionId,
    pub(crate) domain: DomainAt,
    pub(crate) spaces: Vec<SpaceId>,
    /// Pages in each space.
    pub(crate) count: u32,
    /// A page in each space for each of `count` keys, and whether the hold pins (or else keeps) it.
    pub(crate) pages: Vec<(PageId, bool)>,
    pub(crate) expires: Micros,
}

impl Hold {
    /// `count` of the pages held in `space`, from `first` on.
    pub(crate) fn run(&self, space: SpaceId, first: u32, count: u32) -> Option<Vec<PageId>> {
        let end = first.checked_add(count).filter(|end| *end <= self.count)?;
        let at = self.spaces.iter().position(|held| *held == space)?;
        let run = self.pages.chunks_exact(self.spaces.len());
        Some(run.take(end as usize).skip(first as usize).map(|pages| pages[at].0).collect())
    }
}

impl Core {
    pub(crate) fn insert_hold(&mut self, hold: Hold) -> HoldId {
        let domain = self.domains.get_mut(hold.domain);
        domain.last_hold += 1;
        // Each domain counts its own: what others look up is not to be told from them.
        let id = HoldId(u64::from(hold.domain.0) << HOLD_BITS | domain.last_hold);
        domain.holds += 1;
        domain.held_pages += hold.pages.len() as u32;
        self.timers.insert((hold.expires, Timer::Hold(id)));
        self.holds.insert(id, hold);
        id
    }

    pub(crate) fn end_hold(&mut self, id: HoldId) {
        let Some(hold) = self.holds.remove(&id) else {
            return;
        };
        self.timers.remove(&(hold.expires, Timer::Hold(id)));
        self.stop_gathering_from(id);
        let domain = self.domains.get_mut(hold.domain);
        domain.holds -= 1;
        domain.held_pages -= hold.pages.len() as u32;
        let grip = |(page, pinned)| if pinned { Grip::Pin(page) } else { Grip::Keep(page) };
        self.let_go(Some(hold.session), hold.pages.into_iter().map(grip));
    }

    /// The hold's time is over. A fetch that takes pages from it is not cut off.
    pub(crate) fn expire_hold(&mut self, id: HoldId) {
        if self.is_gathered_from(id) {
            let hold = self.holds.get_mut(&id).expect("a hold that expires is known");
            self.timers.remove(&(hold.expires, Timer::Hold(id)));
            hold.expires = self.now.after_ms(1);
            self.timers.insert((hold.expires, Timer::Hold(id)));
            return;
        }
        self.stats.holds_expired += 1;
        self.end_hold(id);
    }

    /// A hold is given back by the session that has it. An expired one is gone already, which is
    /// what was asked for; that there is another session's of the number is nobody's business.
    pub(crate) fn drop_hold(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &DropHold,
        actions: &mut Vec<Action>,
    ) {
        if self.holds.get(&body.hold).is_some_and(|hold| hold.session == session) {
            self.end_hold(body.hold);
        }
        self.done_with(session, (session, request), actions);
    }

    /// Answers a request that has nothing to say, unless it was sent to be forgotten.
    pub(crate) fn done(
        &mut self,
        session: SessionId,
        request: RequestId,
        actions: &mut Vec<Action>,
    ) {
        if request != RequestId(0) {
            actions.push(Action::Reply { session, request, reply: Reply::Done });
        }
    }
}
