//! Telling what lookups came to.

use super::Control;
use undercroft_core::Explanation;
use undercroft_wire::{
    DomainId, Explain, Explained, ExplainedLookup, RefusedReason, Reply, RequestId, SessionId,
};

impl Control {
    /// Somebody wants to know what lookups came to: an operator of all, a tenant of its own.
    pub(super) fn explain(&mut self, id: SessionId, request: RequestId, body: &Explain) {
        let Some(session) = self.sessions.get(&id) else { return };
        let own = session.domain.as_ref().map(|domain| domain.id);
        if own.is_none() && !session.is_operator() {
            let detail = "no domain is for this user: there is nothing to explain";
            return self.refuse(id, request, RefusedReason::Denied, detail);
        }
        let only = own.filter(|_| !session.is_operator());
        let explained = self.explained(body, only);
        self.reply(id, request, &Reply::Explained(explained));
    }

    fn explained(&self, body: &Explain, only: Option<DomainId>) -> Explained {
        let is_asked = |told: &&Explanation| {
            only.is_none_or(|domain| domain == told.domain)
                && body.session.is_none_or(|session| session == told.session)
        };
        let newest = self.core.explanations().rev().filter(is_asked).take(body.last as usize);
        let mut lookups: Vec<_> = newest.map(|told| self.explained_lookup(told)).collect();
        lookups.reverse();
        Explained { now_unix_ms: self.core.unix_ms(), lookups }
    }

    fn explained_lookup(&self, told: &Explanation) -> ExplainedLookup {
        let Explanation { unix_ms, session, pid, domain, finding } = *told;
        let name = self.sessions.get(&session).map(|session| session.name.clone());
        ExplainedLookup {
            unix_ms,
            session,
            pid,
            name: name.unwrap_or_default(),
            domain: self.domains.name(domain).unwrap_or("unknown").to_owned(),
            finding,
        }
    }
}
