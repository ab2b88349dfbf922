//! Purges: what was asked for is invisible at once, and answered when it is in no tier any more and
//! every SSD's list says so.

use super::Control;
use crate::purge_book::{PurgeBook, Saved, Savers};
use crate::session::Session;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_arena::State;
use undercroft_core::Event;
use undercroft_wire::{
    DeviceId, DomainId, MAX_TEXT_BYTES, Purge, PurgeId, PurgeScope, Purged, RefusedReason, Reply,
    RequestId, SessionId,
};

/// How long an SSD may take to write a purge down before it is answered without.
const SAVE_PATIENCE: Duration = Duration::from_secs(10);
/// Purges under way at once.
const MAX_PURGES: usize = 64;
/// Those of all tenants, and of one: operators and others have room besides.
const MAX_OF_TENANTS: usize = 48;
const MAX_OF_ONE: usize = 8;

/// Purges that are not over, oldest first.
pub(crate) struct Purging {
    book: Arc<PurgeBook>,
    savers: Savers,
    queue: VecDeque<UnderWay>,
}

struct UnderWay {
    purge: PurgeId,
    /// `None` for one that a late SSD has told of.
    asker: Option<(SessionId, RequestId)>,
    /// The tenant who asked; `None` for an operator, or nobody.
    tenant: Option<DomainId>,
    /// What it came to, once its pages are gone.
    swept: Option<Purged>,
    /// SSDs whose lists do not say so yet.
    waiting: BTreeSet<DeviceId>,
    missed: Vec<DeviceId>,
    due: Instant,
}

impl Purging {
    pub(crate) fn new(book: Arc<PurgeBook>, savers: Savers) -> Self {
        Self { book, savers, queue: VecDeque::new() }
    }

    pub(crate) fn book(&self) -> &PurgeBook {
        &self.book
    }

    /// The newest purge that is over, in DRAM as well, when a daemon begins with that arena.
    pub(crate) fn over(book: &PurgeBook, arena: &mut State, is_empty: bool) -> PurgeId {
        if is_empty || book.since(arena.newest_purge()).is_empty() {
            arena.set_newest_purge(book.last());
        }
        arena.newest_purge()
    }

    /// Whether there is room for one more.
    fn has_room(&self, tenant: Option<DomainId>) -> bool {
        let of_tenants = || self.queue.iter().filter(|one| one.tenant.is_some());
        let own = of_tenants().filter(|one| one.tenant == tenant).count();
        let is_full =
            tenant.is_some() && (own >= MAX_OF_ONE || of_tenants().count() >= MAX_OF_TENANTS);
        self.queue.len() < MAX_PURGES && !is_full
    }

    /// When one is answered although an SSD has not written it down.
    pub(crate) fn due(&self) -> Option<Instant> {
        let waits = self.queue.iter().filter(|one| !one.waiting.is_empty());
        waits.map(|one| one.due).min()
    }
}

impl Control {
    /// Somebody wants pages to be forgotten.
    pub(super) fn purge(&mut self, id: SessionId, request: RequestId, body: &Purge) {
        let scope = match self.purge_scope(id, body) {
            Ok(scope) => scope,
            Err((reason, detail)) => return self.refuse(id, request, reason, detail),
        };
        let session = self.sessions.get(&id).filter(|session| !session.is_operator());
        let tenant = session.and_then(|session| session.domain.as_ref()).map(|domain| domain.id);
        if !self.purging.has_room(tenant) {
            let detail = "as many purges are under way as may be";
            return self.refuse(id, request, RefusedReason::Busy, detail);
        }
        let purge = self.purging.book.add(scope);
        let who = self.sessions.get(&id).map_or(0, |session| session.peer.uid);
        tracing::info!(user = who, %purge, ?scope, "purge");
        self.begin_purge(purge, scope, (Some((id, request)), tenant));
    }

    /// What a session may purge of what it names.
    fn purge_scope(
        &self,
        id: SessionId,
        body: &Purge,
    ) -> Result<PurgeScope, (RefusedReason, &'static str)> {
        let Purge { domain, space, writer } = body;
        if domain.is_none() && space.is_none() && writer.is_none() {
            let detail = "nothing is named: a domain, a space or a writer";
            return Err((RefusedReason::Invalid, detail));
        }
        let session = self.sessions.get(&id);
        let named = domain.as_deref().map(DomainId::named);
        let own = session.and_then(|session| session.domain.as_ref()).map(|domain| domain.id);
        let everybody = session.is_some_and(Session::is_operator);
        let domain = match (named, own) {
            (named, _) if everybody => named,
            (None, Some(own)) => Some(own),
            (Some(named), Some(own)) if named == own => Some(named),
            _ => {
                let detail = "it is not the session's own domain, and only root and the daemon's \
                              own user may purge others";
                return Err((RefusedReason::Denied, detail));
            }
        };
        Ok(PurgeScope { domain, space: *space, writer: *writer })
    }

    fn begin_purge(
        &mut self,
        purge: PurgeId,
        scope: PurgeScope,
        (asker, tenant): (Option<(SessionId, RequestId)>, Option<DomainId>),
    ) {
        self.purging.queue.push_back(UnderWay {
            purge,
            asker,
            tenant,
            swept: None,
            waiting: self.purging.savers.devices().collect(),
            missed: Vec::new(),
            due: Instant::now() + SAVE_PATIENCE,
        });
        self.purging.savers.save();
        self.feed(Event::Purge { purge, scope });
        self.settle_purges();
        // The time by which it must be over is one to wake up at.
        self.look_again.notify_one();
    }

    /// Goes on where an earlier daemon was stopped: nobody was told that these are over, but an SSD
    /// has them in writing already.
    pub(super) fn go_on_purging(&mut self) {
        for (scope, purge) in self.purging.book.since(self.purged) {
            self.begin_purge(purge, scope, (None, None));
        }
    }

    /// An SSD that comes late knew of purges that nobody else did.
    pub(super) fn learned(&mut self, purges: Vec<(PurgeScope, PurgeId)>) {
        for (scope, purge) in purges {
            self.begin_purge(purge, scope, (None, None));
        }
        self.settle_purges();
    }

    /// The pages of a purge are gone.
    pub(super) fn swept(&mut self, purge: PurgeId, found: Purged) {
        if let Some(one) = self.purging.queue.iter_mut().find(|one| one.purge == purge) {
            one.swept = Some(found);
            self.purge_swept = true;
        }
    }

    /// An SSD's list was written.
    pub(crate) fn saved(&mut self, saved: Saved) {
        let Saved { device, upto, result, learned } = saved;
        self.learned(learned);
        if let Err(error) = &result {
            let path = self.purging.book.directory(device);
            tracing::error!(%path, %error, "an SSD cannot write purges down");
        }
        for one in &mut self.purging.queue {
            if one.purge <= upto && one.waiting.remove(&device) && result.is_err() {
                one.missed.push(device);
            }
        }
        self.settle_purges();
    }

    /// Some SSD takes too long.
    pub(crate) fn purges_overdue(&mut self) {
        let now = Instant::now();
        for one in self.purging.queue.iter_mut().filter(|one| one.due <= now) {
            one.missed.extend(std::mem::take(&mut one.waiting));
        }
        self.settle_purges();
    }

    /// Answers what is over.
    pub(super) fn settle_purges(&mut self) {
        let mut under_way = VecDeque::new();
        for mut one in std::mem::take(&mut self.purging.queue) {
            let Some(mut found) = one.swept.take_if(|_| one.waiting.is_empty()) else {
                under_way.push_back(one);
                continue;
            };
            let directory = |device: &DeviceId| {
                let mut name = self.purging.book.directory(*device);
                name.truncate(name.floor_char_boundary(MAX_TEXT_BYTES));
                name
            };
            found.missed = one.missed.iter().map(directory).collect();
            let Purged { pages, dram_bytes, ssd_bytes, .. } = found;
            let purge = one.purge;
            tracing::info!(%purge, pages, dram_bytes, ssd_bytes, "purged");
            if let Some((session, request)) = one.asker {
                self.reply(session, request, &Reply::Purged(found));
            }
        }
        self.purging.queue = under_way;
        // While any is under way, what is written may yet be purged.
        if self.purging.queue.is_empty() {
            let purge = self.purging.book.last();
            if purge > self.purged {
                self.purged = purge;
                self.state.set_newest_purge(purge);
                self.feed(Event::PurgeOver { purge });
            }
        }
    }
}
