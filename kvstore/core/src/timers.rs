use crate::expected::ExpectedId;
use crate::fetches::FetchId;
use crate::tokens::TokenId;
use crate::{Action, Core};
use undercroft_wire::{HoldId, OfferId, SessionId};

/// What waits for time to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Fetch(FetchId),
    /// A fetch may have fallen behind.
    Race(FetchId),
    Hold(HoldId),
    Token(TokenId),
    Offer((SessionId, OfferId)),
    Expected(ExpectedId),
}

impl Core {
    /// Ends everything whose time is over.
    pub(crate) fn expire(&mut self, actions: &mut Vec<Action>) {
        while let Some(&(due, timer)) = self.timers.first()
            && due <= self.now
        {
            match timer {
                Timer::Fetch(fetch) => self.expire_fetch(fetch, actions),
                Timer::Race(fetch) => self.expire_race(fetch, actions),
                Timer::Token(token) => self.void(token),
                Timer::Offer(offer) => self.offer_overdue(offer),
                Timer::Hold(hold) => self.expire_hold(hold),
                Timer::Expected(turn) => self.expected_due(turn),
            }
        }
    }
}
