use crate::commits::NOT_OPEN;
use crate::page::PageId;
use crate::stats::Source;
use crate::waves::Chill;
use crate::{Action, Core};
use undercroft_wire::{Hint, HintKind, PageKey, RefusedReason, RequestId, SessionId, SpaceId};

impl Core {
    /// Takes a hint about the conversation that ends with the last page known of those named.
    /// `Active` counts as a use. `Ended` makes the pages that only this conversation has the first
    /// to go in every tier, `Demote` in DRAM. `ExpectedInMs` has them there shortly before that
    /// time, and until then out of the way of others, `PinMs` has them there from now on; neither
    /// keeps a request waiting. `Paused` says no more than nothing.
    pub(crate) fn hint(
        &mut self,
        session: SessionId,
        request: RequestId,
        body: &Hint<'_>,
        actions: &mut Vec<Action>,
    ) {
        if self.staging_mut(session, body.space).is_none() {
            return self.refuse(session, request, RefusedReason::Unknown, NOT_OPEN, actions);
        }
        self.stats.hints += 1;
        if let Some(page) = self.last_known(body.space, body.keys.as_slice()) {
            match body.kind {
                HintKind::Active => {
                    let stamp = self.next_stamp(session);
                    self.touch(page, stamp);
                }
                HintKind::Ended => {
                    self.expect_no_more(page);
                    self.chill(page, Chill::Cooled);
                }
                HintKind::Demote => self.lay_aside(page),
                HintKind::ExpectedInMs(ms) => self.expect_turn(page, ms, Source::Hinted),
                HintKind::PinMs(ms) => self.keep_in_dram(page, ms),
                HintKind::Paused => {}
            }
        }
        self.done(session, request, actions);
    }

    /// The last page of a run that is known, as far as one step looks.
    fn last_known(&self, space: SpaceId, keys: &[PageKey]) -> Option<PageId> {
        let last = keys.iter().rev().take(self.config.step_pages as usize);
        last.filter_map(|key| self.index.find(space, key)).next()
    }
}
