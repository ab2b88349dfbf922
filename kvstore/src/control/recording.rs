//! Recordings of what is looked up and offered: which pages, and nothing of what they hold.

use super::Control;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;
use undercroft_wire::{
    DomainId, PageKey, Recorded, RecordedRun, RefusedReason, Reply, Request, RequestId, SessionId,
    SpaceId,
};

/// Pages kept for a recorder that has not asked for them yet: 4 MiB of names.
const MAX_PAGES: usize = 512 << 10;
/// Lookups and offers kept for it.
const MAX_RUNS: usize = 32 << 10;
/// Pages of one answer, unless a single run has more: names take ten bytes at most.
const ANSWER_PAGES: usize = 64 << 10;
const ANSWER_RUNS: usize = 8 << 10;

/// The recording under way, and what is to be known of spaces for one.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    under_way: Option<Recording>,
    /// Tokens of a page, by the space's number: no more than there are spaces.
    pub(super) page_tokens: HashMap<SpaceId, u32>,
}

/// What one session is told of the others.
#[derive(Debug)]
struct Recording {
    session: SessionId,
    /// Whose pages; `None`: everybody's.
    domain: Option<DomainId>,
    /// Names pages. Its keys are drawn anew for each recording and never leave it.
    names: RandomState,
    since: Instant,
    domains: Vec<DomainId>,
    runs: VecDeque<RecordedRun>,
    /// In all of `runs`.
    pages: usize,
    dropped: u64,
}

impl Recordings {
    /// A session's connection has ended.
    pub(super) fn session_over(&mut self, id: SessionId) {
        self.under_way.take_if(|recording| recording.session == id);
    }
}

impl Control {
    /// Somebody wants to know what was asked for, or begins to.
    pub(super) fn record(&mut self, id: SessionId, request: RequestId) {
        let under_way = &mut self.recording.under_way;
        if let Some(recording) = under_way.as_mut().filter(|recording| recording.session == id) {
            let recorded = recording.take();
            return self.reply(id, request, &Reply::Recorded(recorded));
        }
        if under_way.is_some() {
            let detail = "another recording is under way";
            return self.refuse(id, request, RefusedReason::Busy, detail);
        }
        let Some(session) = self.sessions.get(&id) else { return };
        let own = session.domain.as_ref().map(|domain| domain.id);
        let domain = if session.is_operator() { None } else { own };
        if domain.is_none() && !session.is_operator() {
            let detail = "no domain is for this user: there is nothing to record";
            return self.refuse(id, request, RefusedReason::Denied, detail);
        }
        let user = session.peer.uid;
        tracing::info!(user, everybody = domain.is_none(), "a recording begins");
        self.recording.under_way = Some(Recording::new(id, domain));
        self.reply(id, request, &Reply::Recorded(Recorded::default()));
    }

    /// Keeps what a session asks for, if somebody records it.
    pub(super) fn note_traffic(&mut self, id: SessionId, body: &Request<'_>) {
        if self.recording.under_way.is_none() {
            return;
        }
        let (space, first, parent, keys) = match body {
            Request::Lookup(lookup) => (lookup.spaces.first().copied(), 0, None, &lookup.keys),
            Request::Offer(offer) => (Some(offer.space), offer.first, offer.parent, &offer.keys),
            _ => return,
        };
        let is_open = |space: &SpaceId| self.core.is_open(id, *space);
        let (Some(space), Some(domain)) = (space.filter(is_open), self.domain_of(id)) else {
            return;
        };
        let page_tokens = self.recording.page_tokens.get(&space).copied().unwrap_or(0);
        let is_lookup = matches!(body, Request::Lookup(_));
        if let Some(recording) = &mut self.recording.under_way {
            let run = Run { domain, page_tokens, is_lookup, first, parent, keys: keys.as_slice() };
            recording.note(&run);
        }
    }
}

/// A lookup or an offer as it came.
struct Run<'a> {
    domain: DomainId,
    page_tokens: u32,
    is_lookup: bool,
    first: u32,
    parent: Option<PageKey>,
    keys: &'a [PageKey],
}

impl Recording {
    fn new(session: SessionId, domain: Option<DomainId>) -> Self {
        Self {
            session,
            domain,
            names: RandomState::new(),
            since: Instant::now(),
            domains: Vec::new(),
            runs: VecDeque::new(),
            pages: 0,
            dropped: 0,
        }
    }

    fn note(&mut self, run: &Run<'_>) {
        if self.domain.is_some_and(|own| own != run.domain) {
            return;
        }
        if self.runs.len() >= MAX_RUNS || self.pages + run.keys.len() > MAX_PAGES {
            self.dropped += 1;
            return;
        }
        let domain = self.number(run.domain);
        // Keys are chained over a family, so that all ranks of a model have the same ones.
        let name = |key: &PageKey| self.names.hash_one((run.domain.0, key.0));
        self.pages += run.keys.len();
        self.runs.push_back(RecordedRun {
            at_ms: self.since.elapsed().as_millis() as u64,
            is_lookup: run.is_lookup,
            domain,
            page_tokens: run.page_tokens,
            first: run.first,
            parent: run.parent.as_ref().map(name),
            pages: run.keys.iter().map(name).collect(),
        });
    }

    fn number(&mut self, domain: DomainId) -> u32 {
        let known = self.domains.iter().position(|known| *known == domain);
        let number = known.unwrap_or_else(|| {
            self.domains.push(domain);
            self.domains.len() - 1
        });
        number as u32
    }

    /// The oldest of what is kept, as much as one answer may have.
    fn take(&mut self) -> Recorded {
        let mut pages = 0;
        let fits = self.runs.iter().take(ANSWER_RUNS).take_while(|run| {
            pages += run.pages.len();
            pages <= ANSWER_PAGES
        });
        let count = fits.count().max(1).min(self.runs.len());
        let runs: Vec<RecordedRun> = self.runs.drain(..count).collect();
        self.pages -= runs.iter().map(|run| run.pages.len()).sum::<usize>();
        Recorded { dropped: self.dropped, runs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: DomainId = DomainId([1; 16]);

    fn key(number: u32) -> PageKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        PageKey(bytes)
    }

    fn run(domain: DomainId, keys: &[PageKey]) -> Run<'_> {
        Run { domain, page_tokens: 16, is_lookup: true, first: 0, parent: None, keys }
    }

    #[test]
    fn equal_pages_of_a_domain_have_equal_names_and_others_have_others() {
        let keys = [key(1), key(2), key(1)];
        let mut recording = Recording::new(SessionId(1), None);
        recording.note(&run(OWN, &keys));
        recording.note(&run(DomainId([2; 16]), &keys));
        let Recorded { dropped, runs } = recording.take();
        let [own, other] = &runs[..] else { panic!("{runs:?}") };
        assert_eq!((dropped, own.domain, other.domain), (0, 0, 1));
        assert_eq!(own.pages[0], own.pages[2]);
        assert!(own.pages[0] != own.pages[1] && own.pages[0] != other.pages[0]);
        let mut another = Recording::new(SessionId(1), None);
        another.note(&run(OWN, &keys));
        assert_ne!(another.take().runs[0].pages[0], own.pages[0], "names are of one recording");
        assert_eq!((recording.pages, recording.take()), (0, Recorded::default()));
    }

    #[test]
    fn a_tenants_recording_has_nothing_of_others() {
        let keys = [key(1)];
        let mut recording = Recording::new(SessionId(1), Some(OWN));
        recording.note(&run(DomainId([2; 16]), &keys));
        assert_eq!(recording.take(), Recorded::default());
        recording.note(&run(OWN, &keys));
        assert_eq!(recording.take().runs.len(), 1);
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted() {
        let keys: Vec<PageKey> = (0..60_000).map(key).collect();
        let mut recording = Recording::new(SessionId(1), None);
        for _ in 0..20 {
            recording.note(&run(OWN, &keys));
        }
        assert_eq!((recording.runs.len(), recording.dropped), (8, 12));
        // One of these is as much as an answer has.
        let taken = recording.take();
        assert_eq!((taken.runs.len(), taken.dropped), (1, 12));
        recording.note(&run(OWN, &keys));
        assert_eq!((recording.runs.len(), recording.dropped), (8, 12));
        let mut many = Recording::new(SessionId(1), None);
        for _ in 0..=MAX_RUNS {
            many.note(&run(OWN, &keys[..1]));
        }
        assert_eq!((many.take().runs.len(), many.dropped), (ANSWER_RUNS, 1));
    }
}
