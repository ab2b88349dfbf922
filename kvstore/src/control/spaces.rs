//! Opening spaces: each gets a number and, for every session, a staging area.

use super::Control;
use crate::config::human;
use crate::session::Session;
use crate::staging_maker::{Made, Wanted};
use std::sync::Arc;
use undercroft_core::Event;
use undercroft_wire::{
    DomainId, OpenSpace, PageKey, Refused, RefusedReason, RequestId, SessionId, SpaceId,
    frame_bytes,
};

/// The most slots a staging area is cut into.
const MAX_SLOTS: u64 = 4096;

impl Control {
    pub(super) fn domain_of(&self, id: SessionId) -> Option<DomainId> {
        self.sessions.get(&id)?.domain.as_ref().map(|domain| domain.id)
    }

    pub(super) fn open_space(&mut self, id: SessionId, request: RequestId, open: &OpenSpace) {
        if let Err(error) = open.space.validate() {
            return self.refuse(id, request, RefusedReason::Invalid, &error.to_string());
        }
        let (digest, page_bytes) = (open.space.digest(), open.space.geometry.page_bytes());
        let Some(domain) = self.domain_of(id) else { return };
        let space = match self.core.intern_space(domain, digest, page_bytes) {
            Ok(space) => space,
            Err(refused) => return self.refuse(id, request, refused.reason, &refused.detail),
        };
        self.recording.page_tokens.insert(space, open.space.family.page_tokens);
        let probe = open.probe;
        if let Err(refused) = self.probe(id, space, probe) {
            return self.refuse(id, request, refused.reason, &refused.detail);
        }
        let Some(session) = self.sessions.get(&id) else { return };
        if let Some(staging) = session.staging.get(&space) {
            let slots = staging.slots();
            let opened = Wanted { session: id, request, digest, page_bytes, slots, probe };
            return self.space_opened(&opened);
        }
        let slot_bytes = u64::from(frame_bytes(page_bytes));
        let slots = (self.config.staging_bytes / slot_bytes).clamp(1, MAX_SLOTS) as u32;
        let wanted = Wanted { session: id, request, digest, page_bytes, slots, probe };
        if let Err(detail) = self.want_staging(wanted) {
            self.refuse(id, request, RefusedReason::Busy, &detail);
        }
    }

    /// Holds a session's hash against that of others.
    fn probe(
        &mut self,
        id: SessionId,
        space: SpaceId,
        probe: Option<PageKey>,
    ) -> Result<(), Refused> {
        let Some(probe) = probe else { return Ok(()) };
        let probed = self.core.probe_space(id, space, probe);
        if let (Err(refused), Some(session)) = (&probed, self.sessions.get(&id)) {
            let (name, pid, why) = (&session.name, session.peer.pid, &refused.detail);
            tracing::warn!(session = %id.0, name, pid, why, "a space is refused");
        }
        probed
    }

    /// Has a staging area made; [`Control::staging_made`] goes on with it.
    fn want_staging(&mut self, wanted: Wanted) -> Result<(), String> {
        if self.staging_wanted.contains_key(&(wanted.session, wanted.digest)) {
            return Err("the space is being opened already".to_owned());
        }
        self.has_staging_room(&wanted)?;
        if !self.staging_maker.submit(wanted) {
            return Err("too many spaces are being opened".to_owned());
        }
        self.staging_wanted.insert((wanted.session, wanted.digest), wanted.bytes());
        Ok(())
    }

    /// Whether there is room for one more staging area, of its domain's and of all; else why not.
    fn has_staging_room(&self, wanted: &Wanted) -> Result<(), String> {
        let of = |id: SessionId| self.sessions.get(&id)?.domain.as_ref();
        let Some(domain) = of(wanted.session) else { return Err("no domain is for it".to_owned()) };
        let is_own = |session: &&Session| session.is_of(domain);
        let own: u64 = self.sessions.values().filter(is_own).map(Session::staging_bytes).sum();
        let all: u64 = self.sessions.values().map(Session::staging_bytes).sum();
        let making = |own: bool| {
            let wanted = self.staging_wanted.iter();
            let wanted =
                wanted.filter(|((id, _), _)| !own || of(*id).is_some_and(|d| d.id == domain.id));
            wanted.map(|(_, bytes)| bytes).sum::<u64>()
        };
        let refused = |in_use: u64, limit: u64, key: &str| {
            let (open, needs) = (human(in_use), human(wanted.bytes()));
            let most = human(limit);
            Err(format!("staging areas take {open} of {most} ({key}), and this one needs {needs}"))
        };
        let (own, all) = (own + making(true), all + making(false));
        // Not as it was when the session began.
        let now = self.config.domains.iter().find(|now| now.id == domain.id).unwrap_or(domain);
        let (share, total) = (now.shares.staging_bytes, self.config.staging_total_bytes);
        if own.saturating_add(wanted.bytes()) > share {
            let key = match share == total {
                true => "arena.staging_total".to_owned(),
                false => format!("staging_total of domain {}", domain.name),
            };
            return refused(own, share, &key);
        }
        match all.saturating_add(wanted.bytes()) > total {
            // How much others have is nobody else's business.
            true => {
                Err("staging areas take all that there may be (arena.staging_total)".to_owned())
            }
            false => Ok(()),
        }
    }

    /// A staging area was made, or could not be.
    pub(crate) fn staging_made(&mut self, made: Made) {
        let Made { wanted, staging } = made;
        let Wanted { session: id, request, digest, page_bytes, .. } = wanted;
        self.staging_wanted.remove(&(id, digest));
        if !self.sessions.get(&id).is_some_and(Session::is_open) {
            return self.staging_maker.let_go(staging);
        }
        let staging = match staging {
            Ok(staging) => Arc::new(staging),
            Err(detail) => return self.refuse(id, request, RefusedReason::Busy, &detail),
        };
        let Some(domain) = self.domain_of(id) else { return };
        // Named again: a space that nobody has open may have lost its number meanwhile.
        let interned = self.core.intern_space(domain, digest, page_bytes);
        // And another client may have told another probe.
        let space = interned.and_then(|space| self.probe(id, space, wanted.probe).map(|()| space));
        match space {
            Ok(space) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.staging.insert(space, staging);
                }
                self.space_opened(&wanted);
            }
            Err(refused) => {
                self.staging_maker.let_go(staging);
                self.refuse(id, request, refused.reason, &refused.detail);
            }
        }
    }

    fn space_opened(&mut self, opened: &Wanted) {
        let Some(domain) = self.domain_of(opened.session) else { return };
        self.feed(Event::SpaceOpened {
            session: opened.session,
            request: opened.request,
            domain,
            digest: opened.digest,
            page_bytes: opened.page_bytes,
            slots: opened.slots,
        });
    }
}
