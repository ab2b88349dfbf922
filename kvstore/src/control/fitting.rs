//! Bringing the arena to its configured size while requests are served: parts come, and parts go.

use super::Control;
use crate::arena::PartStage;
use crate::bounds;
use crate::config::{Config, ConfigError, DomainConfig, Renewal, human};
use crate::domains::Domains;
use crate::error::StartError;
use crate::estate::Keeper;
use crate::part_maker::{MadePart, PartMaker, Parted, WantedPart};
use crate::session::Session;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use undercroft_arena::{ArenaError, Part, PartFacts, PartRow};
use undercroft_core::Event;
use undercroft_wire::{
    DomainId, Mode, PartAdded, PartId, PartRetired, Reply, RequestId, SessionId,
};

/// How long the first arena of a daemon waits for memory that others have. Engines come back within
/// a second or two.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far the arenas of a daemon that begins anew have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    /// Some domain has no part yet. Clients are greeted, so that they let an older arena go, and
    /// their requests wait.
    Shut,
    /// Every domain has a part: requests are served, and more comes.
    Served,
    /// All are as large as they are to be at the start.
    Whole,
}

/// What is under way to bring the arenas to their sizes.
pub(crate) struct Fitting {
    maker: PartMaker,
    /// Bytes of the part that is being made for a domain: one at a time.
    making: HashMap<DomainId, u64>,
    /// Why a domain has less than it is to have.
    short: HashMap<DomainId, String>,
    /// Who has yet to let go of a part that is empty.
    parting: HashMap<PartId, HashSet<SessionId>>,
    /// Whether something has changed that may let an arena grow.
    due: bool,
    readiness: watch::Sender<Readiness>,
    /// Whether it was told that not all of the arena is kept over a restart.
    has_told_unkept: bool,
    /// Why it cannot be.
    failure: Option<StartError>,
}

impl Fitting {
    /// `kept` says that there is an arena to begin with.
    pub(crate) fn new(maker: PartMaker, kept: bool) -> Self {
        Self {
            maker,
            making: HashMap::new(),
            short: HashMap::new(),
            parting: HashMap::new(),
            due: true,
            readiness: watch::Sender::new(if kept { Readiness::Whole } else { Readiness::Shut }),
            has_told_unkept: false,
            failure: None,
        }
    }

    /// Changes as the arena opens, or when it cannot.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Whether requests are served.
    pub(crate) fn is_open(&self) -> bool {
        *self.readiness.borrow() >= Readiness::Served
    }

    /// Whether the arena was, once, as large as it was to be.
    pub(crate) fn is_whole(&self) -> bool {
        *self.readiness.borrow() == Readiness::Whole
    }

    /// It never goes back.
    fn opens(&self, to: Readiness) {
        self.readiness.send_if_modified(|now| {
            let further = to > *now;
            *now = to.max(*now);
            further
        });
    }

    pub(crate) fn take_failure(&mut self) -> Option<StartError> {
        self.failure.take()
    }

    /// Why the domain has less than it is to have.
    pub(crate) fn short(&self, domain: DomainId) -> Option<&String> {
        self.short.get(&domain)
    }
}

impl Control {
    /// The configuration was read again, or could not be: what may change while the daemon runs
    /// does, and what may not is named.
    pub(crate) fn reload(&mut self, read: Result<Config, ConfigError>) {
        self.reload.times += 1;
        let new = match read {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, "the new configuration is refused: the one from before runs on");
                self.reload.refused = Some(error.to_string());
                return;
            }
        };
        let Renewal { taken, pending } = self.config.renew(new);
        self.reload.refused = None;
        match (taken.as_slice(), pending.as_slice()) {
            ([], []) => tracing::info!("the configuration was read again: nothing has changed"),
            _ => tracing::info!(changed = taken.join("; "), "the configuration was read again"),
        }
        if !pending.is_empty() {
            let keys = pending.join("; ");
            tracing::warn!(keys, "these changes need a restart");
        }
        self.reload.pending = pending;
        self.domains = Domains::new(self.config.domains.clone());
        let ages = self.config.domains.iter().map(|domain| (domain.id, domain.max_age_s));
        for (domain, max_age_s) in ages.collect::<Vec<_>>() {
            self.feed(Event::MaxAge { domain, max_age_s });
        }
        for domain in self.config.domains.clone() {
            let limits = bounds::limits_of(&self.config, &domain);
            self.feed(Event::DomainLimits { domain: domain.id, limits });
        }
        self.arena.set_options(&self.config);
        // What the machine refused then it may give now.
        self.fitting.short.clear();
        self.fitting.due = true;
    }

    /// Goes on where an earlier daemon was stopped while parts retired.
    pub(super) fn go_on_retiring(&mut self) {
        let retiring = self.arena.iter().filter(|(_, part)| part.stage == PartStage::Retiring);
        for part in retiring.map(|(id, _)| id).collect::<Vec<_>>() {
            self.feed(Event::RetirePart { part });
        }
    }

    /// Takes the next steps towards the configured sizes, if there are any to take.
    pub(crate) fn fit(&mut self) {
        if !std::mem::take(&mut self.fitting.due) {
            return;
        }
        let domains: Vec<_> = self.domains.iter().cloned().collect();
        for domain in &domains {
            self.retire_surplus(domain);
            self.make_missing(domain);
        }
        if self.fitting.is_whole() {
            return;
        }
        let reached =
            |domain: &Arc<DomainConfig>| match self.arena.bytes_of(domain.id, PartStage::InUse) {
                has if has >= domain.dram_bytes => Readiness::Whole,
                0 => Readiness::Shut,
                _ => Readiness::Served,
            };
        self.fitting.opens(domains.iter().map(reached).min().unwrap_or(Readiness::Whole));
    }

    /// Has parts retire until what is left is no more than there is to be: those with the fewest
    /// pages, and of those that are alike the newest.
    fn retire_surplus(&mut self, domain: &DomainConfig) {
        let all = self.arena.bytes_of(domain.id, PartStage::InUse);
        let mut in_use = all - self.arena.bytes_of(domain.id, PartStage::Retiring);
        let used = self.arena.of(domain.id).filter(|(_, part)| part.stage == PartStage::InUse);
        let mut parts: Vec<_> = used.map(|(id, part)| (id, part.usable_bytes)).collect();
        parts.sort_by_key(|(id, _)| (Reverse(self.core.part_used_bytes(*id)), *id));
        while in_use > domain.dram_bytes
            && let Some((part, bytes)) = parts.pop()
        {
            in_use -= bytes;
            tracing::info!(%part, domain = domain.name, "a part of the arena retires");
            if let Err(unkept) = self.state.part_retiring(part) {
                tracing::warn!(%part, %unkept, "its retirement would be forgotten over a restart");
            }
            self.arena.set_stage(part, PartStage::Retiring);
            self.feed(Event::RetirePart { part });
        }
    }

    /// Has a part made if there is room for one. What retires counts until it is freed: there are
    /// never more bytes than the larger of the two sizes.
    fn make_missing(&mut self, domain: &DomainConfig) {
        let has = self.arena.bytes_of(domain.id, PartStage::InUse);
        let bytes = domain.dram_bytes.saturating_sub(has).min(self.config.part_bytes);
        let in_all = self.bytes_to_come(domain);
        let fitting = &mut self.fitting;
        let busy = fitting.making.contains_key(&domain.id);
        if bytes == 0 || busy || fitting.short.contains_key(&domain.id) {
            return;
        }
        let Some(id) = self.state.next_part() else {
            return self.fell_short(domain, "all numbers of parts are taken".to_owned());
        };
        // Two domains' parts may be under way at once.
        self.state.set_next_part(PartId(id.0.saturating_add(1)));
        let options = self.arena.options(domain.numa_node(id));
        // Engines may still have the arena of a daemon before: they let it go once they are greeted.
        let patience = (!fitting.is_whole()).then(|| self.started + PATIENCE);
        let wanted = WantedPart { id, domain: domain.id, bytes, in_all, patience, options };
        if fitting.maker.make(wanted) {
            fitting.making.insert(domain.id, bytes);
        } else {
            self.fell_short(domain, "too many parts come and go".to_owned());
        }
    }

    /// Bytes of parts that are still to be made for a domain, or for all of them while the arena opens:
    /// it becomes whole or nothing is begun. Parts that are asked for already will be there before the next.
    fn bytes_to_come(&self, domain: &DomainConfig) -> u64 {
        let missing = |domain: &DomainConfig| {
            let has = self.arena.bytes_of(domain.id, PartStage::InUse);
            let asked_for = self.fitting.making.get(&domain.id).copied().unwrap_or(0);
            domain.dram_bytes.saturating_sub(has).saturating_sub(asked_for)
        };
        if self.fitting.is_whole() {
            return missing(domain);
        }
        self.domains.iter().fold(0, |sum, domain| missing(domain).saturating_add(sum))
    }

    fn fell_short(&mut self, domain: &DomainConfig, why: String) {
        let (domain_name, has) =
            (&domain.name, human(self.arena.bytes_of(domain.id, PartStage::InUse)));
        let wanted = human(domain.dram_bytes);
        tracing::error!(domain = domain_name, has, wanted, why, "the arena stays smaller");
        self.fitting.short.insert(domain.id, why);
    }

    /// The maker of parts has done something.
    pub(crate) fn parted(&mut self, parted: Parted) {
        match parted {
            Parted::Made(made) => self.part_made(made),
            Parted::Told(told) => {
                told.iter().for_each(|(part, huge_bytes)| self.arena.tell(*part, *huge_bytes));
            }
        }
    }

    /// Has it found out in what pages the parts lie that were taken over.
    pub(super) fn look_at_parts(&mut self) {
        let untold = self.arena.untold();
        if !untold.is_empty() {
            self.fitting.maker.look_at(untold);
        }
    }

    /// A part was made, or could not be.
    fn part_made(&mut self, MadePart { wanted, made }: MadePart) {
        let WantedPart { id, domain, bytes, .. } = wanted;
        self.fitting.making.remove(&domain);
        self.fitting.due = true;
        let Some(domain) = self.domains.iter().find(|known| known.id == domain).cloned() else {
            return;
        };
        let has = self.arena.bytes_of(domain.id, PartStage::InUse);
        let added = match made {
            Ok((part, _)) if has.saturating_add(bytes) > domain.dram_bytes => {
                // The wish has changed meanwhile.
                self.fitting.maker.discard(part);
                Ok(())
            }
            Ok(made) => self.add_part(id, &domain, made, bytes),
            Err(error) => Err(error),
        };
        let Err(source) = added else { return };
        self.fell_short(&domain, source.to_string());
        if self.fitting.is_open() {
            // Engines have it already: less is better than nothing.
            self.fitting.opens(Readiness::Whole);
        } else {
            let (domain, bytes) = (domain.name.clone(), domain.dram_bytes);
            self.fitting.failure = Some(StartError::Arena { domain, bytes, source });
            // Wakes whoever waits for the opening: that it failed, it is told besides.
            self.fitting.readiness.send_modify(|_| {});
        }
    }

    /// Pages can be placed in a new part from here on.
    fn add_part(
        &mut self,
        id: PartId,
        domain: &DomainConfig,
        made: (Part, PartFacts),
        bytes: u64,
    ) -> Result<(), ArenaError> {
        let file = made.0.file_id()?;
        let (board_offset, read_only) = match self.arena.add_part(id, domain, made, bytes) {
            Ok(part) => (part.board_offset, Arc::clone(&part.read_only)),
            Err((part, error)) => {
                self.fitting.maker.discard(part);
                return Err(error);
            }
        };
        // Kept before it is written down: one that is written down and missing costs the whole arena.
        self.keep_part(id);
        let row =
            PartRow { part: id, domain: domain.id, bytes, board_offset, file, retiring: false };
        let known = self.state.part_added(&row).is_ok();
        if known {
            // Before any page of it can be named.
            let added = PartAdded { part: id, bytes, board_offset };
            self.tell_readers(domain.id, |session| {
                let fd = Arc::clone(&read_only);
                session.reply_with(RequestId(0), &Reply::PartAdded(added), fd);
            });
            self.feed(Event::PartAdded { part: id, domain: domain.id, bytes });
        }
        if !self.core.has_part(id) {
            self.free_part(id);
            let (what, allowed) = ("arena", "as many parts as there are rows for");
            return Err(ArenaError::Size { what, found: bytes, allowed });
        }
        self.register_parts();
        tracing::info!(part = %id, domain = domain.name, bytes, "the arena has a new part");
        Ok(())
    }

    /// Does `tell` to every session of the domain that reads the arena in place.
    fn tell_readers(
        &mut self,
        domain: DomainId,
        mut tell: impl FnMut(&mut Session),
    ) -> HashSet<SessionId> {
        let reads = |session: &Session| {
            let own = session.domain.as_ref().is_some_and(|own| own.id == domain);
            own && session.mode == Some(Mode::ZeroCopy) && session.is_open()
        };
        let readers = self.sessions.iter_mut().filter(|(_, session)| reads(session));
        let told: HashSet<_> = readers
            .map(|(id, session)| {
                tell(session);
                *id
            })
            .collect();
        self.unflushed.extend(&told);
        told
    }

    /// Nothing is in the part any more, and it will not be named again: its readers may let go.
    pub(super) fn part_empty(&mut self, id: PartId) {
        let Some(domain) = self.arena.part(id).map(|part| part.domain) else { return };
        self.arena.set_stage(id, PartStage::Empty);
        let retired = Reply::PartRetired(PartRetired { part: id });
        let told = self.tell_readers(domain, |session| session.reply(RequestId(0), &retired));
        self.fitting.parting.insert(id, told);
        self.free_if_let_go(id);
    }

    /// A session has unmapped a part.
    pub(super) fn let_go(&mut self, session: SessionId, part: PartId) {
        // What a session says of a part that does not retire is of no interest.
        if let Some(readers) = self.fitting.parting.get_mut(&part) {
            readers.remove(&session);
            self.free_if_let_go(part);
        }
    }

    /// A session is over: what its process may still map, nobody can ask it to let go of, and the
    /// kernel keeps for it alone.
    pub(super) fn let_all_go(&mut self, session: SessionId) {
        let parts: Vec<_> = self.fitting.parting.keys().copied().collect();
        parts.into_iter().for_each(|part| self.let_go(session, part));
    }

    fn free_if_let_go(&mut self, id: PartId) {
        if self.fitting.parting.get(&id).is_some_and(HashSet::is_empty) {
            self.fitting.parting.remove(&id);
            self.free_part(id);
            tracing::info!(part = %id, "a part of the arena is freed");
        }
    }

    fn free_part(&mut self, id: PartId) {
        let Some(part) = self.arena.remove(id) else { return };
        // In this order: a row whose part is not kept would cost the whole arena.
        self.state.part_gone(id);
        if Keeper::is_there() {
            part.heirlooms(id).for_each(|(heirloom, _)| Keeper.forget(&heirloom.to_string()));
        }
        self.register_parts();
        self.fitting.short.remove(&part.domain);
        self.fitting.due = true;
        self.look_again.notify_one();
        self.fitting.maker.free(part);
    }

    /// Why not all of the arena is kept over a restart.
    pub(crate) fn unkept(&self) -> Option<String> {
        // Beside it the socket, the state file and the mounts.
        const OTHERS: usize = 6;
        let needed = || self.arena.estate().count() + OTHERS;
        Keeper::is_there().then(needed).and_then(|needed| Keeper.shortage(needed))
    }

    fn keep_part(&mut self, id: PartId) {
        let unkept = self.unkept();
        if let Some(line) = unkept.filter(|_| !self.fitting.has_told_unkept) {
            tracing::error!("{line}");
            self.fitting.has_told_unkept = true;
        }
        if let Some(part) = self.arena.part(id).filter(|_| Keeper::is_there()) {
            part.heirlooms(id).for_each(|(heirloom, fd)| Keeper.keep(heirloom, fd));
        }
    }

    /// Has the rings know the memory there is now, and let go of what is gone.
    pub(super) fn register_parts(&self) {
        let parts = self.arena.memory();
        self.devices.iter().for_each(|device| device.set_memory(parts.clone()));
    }
}
