use crate::commits::NOT_OPEN;
use crate::{Action, Core};
use undercroft_wire::{Hint, HintKind, RefusedReason, RequestId, SessionId};

impl Core {
    /// Takes a hint. `Active` counts as a use; `Ended` and `Demote` make the pages that only
    /// this conversation has the first to go. The others change nothing yet.
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
        let keys = body.keys.as_slice();
        let last = keys.last().and_then(|key| self.index.find(body.space, key));
        match (body.kind, last) {
            (HintKind::Active, Some(page)) => {
                let stamp = self.next_stamp(session);
                self.touch(page, stamp);
            }
            (HintKind::Ended | HintKind::Demote, Some(page)) => self.cool(page),
            _ => {}
        }
        self.done(session, request, actions);
    }
}
