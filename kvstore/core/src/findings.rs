use crate::Core;
use crate::page::{Dram, Mark, OnSsd, PageId};
use crate::stats::DeviceState;
use std::collections::VecDeque;
use undercroft_wire::{
    DomainId, Finding, Looked, Miss, MissCause, PageKey, SessionId, SpaceDigest, SpaceId,
};

/// Other spaces of the domain that are searched for a page of which nothing is known.
const OTHER_SPACES: usize = 8;

/// A lookup, or lookups that the board answered, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Whose.
    pub session: SessionId,
    /// Its process.
    pub pid: u32,
    /// Its domain.
    pub domain: DomainId,
    /// What it came to.
    pub finding: Finding,
}

/// The newest lookups.
#[derive(Debug)]
pub(crate) struct Findings {
    list: VecDeque<Explanation>,
    /// How many are kept.
    limit: usize,
}

impl Findings {
    pub(crate) fn new(limit: u32) -> Self {
        let limit = limit as usize;
        Self { list: VecDeque::with_capacity(limit), limit }
    }

    fn note(&mut self, explanation: Explanation) {
        if let Some(last) = self.list.back_mut()
            && last.session == explanation.session
            && let (Finding::Board { lookups: before }, Finding::Board { lookups }) =
                (last.finding, explanation.finding)
        {
            let lookups = before.saturating_add(lookups);
            *last = Explanation { finding: Finding::Board { lookups }, ..explanation };
            return;
        }
        if self.list.len() == self.limit {
            self.list.pop_front();
        }
        self.list.push_back(explanation);
    }
}

/// What a lookup found, as it is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome<'a> {
    pub(crate) session: SessionId,
    pub(crate) spaces: &'a [SpaceId],
    pub(crate) keys: u32,
    pub(crate) dram: u32,
    pub(crate) ssd: u32,
    /// The first key that was not found.
    pub(crate) missed: Option<PageKey>,
    /// Whether that one is there, and not worth loading.
    pub(crate) is_there: bool,
}

/// Saying of lookups what they came to, and why it was no more.
impl Core {
    /// What the newest lookups came to, oldest first: as many as [`crate::Config::explained`].
    pub fn explanations(&self) -> impl DoubleEndedIterator<Item = &Explanation> {
        self.findings.list.iter()
    }

    /// Milliseconds since 1970, by the time that [`crate::Config::unix_s`] was told.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        u64::from(self.config.unix_s) * 1000 + self.now.0 / 1000
    }

    /// The lookup is about to be answered.
    pub(crate) fn explain(&mut self, outcome: &Outcome<'_>) {
        let (Some(first), true) = (outcome.spaces.first(), self.findings.limit > 0) else {
            return;
        };
        let lacks = |key: &PageKey| outcome.spaces.iter().find(|space| !self.has(**space, key));
        let at = outcome.missed.as_ref().and_then(lacks).unwrap_or(first);
        let miss = outcome.missed.map(|key| match outcome.is_there {
            true => {
                Miss { key: key.head(), cause: MissCause::Slower, left_unix_s: None, held_in: None }
            }
            false => self.miss(outcome.spaces, *at, &key),
        });
        if let Some(miss) = miss {
            self.stats.misses[miss.cause as usize] += 1;
        }
        let looked = Looked {
            space: self.spaces.get(*at).digest,
            spaces: outcome.spaces.len() as u32,
            keys: outcome.keys,
            dram: outcome.dram,
            ssd: outcome.ssd,
            miss,
        };
        self.note_finding(outcome.session, Finding::Looked(looked));
    }

    pub(crate) fn note_finding(&mut self, id: SessionId, finding: Finding) {
        let Some(session) = self.sessions.get(&id).filter(|_| self.findings.limit > 0) else {
            return;
        };
        let domain = self.domains.get(session.domain).config.id;
        let (unix_ms, pid) = (self.unix_ms(), session.process.pid);
        self.findings.note(Explanation { unix_ms, session: id, pid, domain, finding });
    }

    fn has(&self, space: SpaceId, key: &PageKey) -> bool {
        self.index.find(space, key).is_some_and(|id| self.is_visible(id))
    }

    /// Of a page that lookups do not find.
    fn miss(&self, asked: &[SpaceId], space: SpaceId, key: &PageKey) -> Miss {
        let stands = self.index.find(space, key).and_then(|id| self.why_unseen(id));
        let obituary = self.obituary(space, key);
        let mut held_in = None;
        let cause = stands.or(obituary.map(|(cause, _)| cause)).unwrap_or_else(|| {
            if self.devices.are_recovering() {
                return MissCause::Recovering;
            }
            held_in = self.held_elsewhere(asked, key);
            held_in.map_or(MissCause::NeverStored, |_| MissCause::OtherSpace)
        });
        let left = obituary.filter(|(known, _)| *known == cause).map(|(_, unix_s)| unix_s);
        Miss { key: key.head(), cause, left_unix_s: left, held_in }
    }

    /// Why lookups do not find a page that is known; `None` where it is in no tier.
    fn why_unseen(&self, id: PageId) -> Option<MissCause> {
        let page = &self.index[id];
        if page.is(Mark::Purged) {
            return Some(MissCause::Purged);
        }
        if !page.is_present() {
            return None;
        }
        if self.is_purged(id) {
            return Some(MissCause::Purged);
        }
        if self.is_expired(page) {
            return Some(MissCause::Expired);
        }
        if matches!(page.dram, Dram::Offered | Dram::Filling) {
            return Some(MissCause::Coming);
        }
        let (segment, _) = page.record()?;
        let device = self.devices.get(self.segments.device(segment));
        match page.on_ssd() {
            _ if device.state == DeviceState::Lost => Some(MissCause::DeviceLost),
            _ if !device.answers() => Some(MissCause::Silent),
            OnSsd::Unproved => Some(MissCause::Unproved),
            _ => None,
        }
    }

    /// The first of some other spaces of the same domain that has the page.
    fn held_elsewhere(&self, asked: &[SpaceId], key: &PageKey) -> Option<SpaceDigest> {
        let domain = self.spaces.get(*asked.first()?).domain;
        let others = self.spaces.of(domain).filter(|space| !asked.contains(space));
        let found = others.take(OTHER_SPACES).find(|space| self.has(*space, key));
        found.map(|space| self.spaces.get(space).digest)
    }
}
