use crate::bell::{from_now, whole_ms};
use crate::client::Inner;
use crate::connection::{Connection, Ticket};
use crate::inbox::{Expects, Heard, Placed};
use crate::proof::Proof;
use crate::releases::ALL;
use crate::space::{Opened, SpaceHandle, SpaceState};
use crate::{Hold, MissReason};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use undercroft_arena::{BoardView, Span, StagingView};
use undercroft_wire::{
    FetchEnd, FetchOutcome, FetchReady, FetchSource, KeyRun, LeaseId, MAX_KEYS, PageKey, PagePlace,
    PartId, Release, Request, SlotId, Stamp,
};

/// What to fetch.
#[derive(Debug, Clone, Copy)]
pub enum FetchFrom<'a> {
    /// These pages: a run of one chain, in prefix order.
    Keys(&'a [PageKey]),
    /// `count` pages of what a lookup held, from page `first` on:
    /// `FetchFrom::Hold(hold, first, count)`.
    Hold(&'a Hold, u32, u32),
}

impl FetchFrom<'_> {
    pub(crate) fn pages(&self) -> usize {
        match self {
            Self::Keys(keys) => keys.len(),
            Self::Hold(_, _, count) => *count as usize,
        }
    }
}

/// Some pages that lie ready, in order.
#[derive(Debug)]
pub struct ReadyRun {
    /// Index of the first one, counted from the start of the fetch.
    pub first: u32,
    /// The pages' bytes: in the arena, or in staging in copy mode. They keep the mapping alive,
    /// but their content only stays while the fetch or this run does.
    pub pages: Vec<Span>,
    pub(crate) proof: Proof,
    count: usize,
    /// Held for the bytes' sake; `None` until somebody is handed the run.
    _lease: Option<Arc<Lease>>,
}

impl ReadyRun {
    /// How many of the run's pages, from the first on, are still what was delivered. Whoever
    /// copied pages out asks this when the copy is done and before the pages are let go: what
    /// lies beyond is a miss. It is all of them unless a daemon broke its promise or was
    /// exchanged; without a board nothing can be told and it is all of them, too.
    #[must_use]
    pub fn intact(&self) -> usize {
        self.proof.intact(self.count)
    }
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct FetchReport {
    /// Pages delivered, from the first on.
    pub pages: u32,
    /// Of these, how many the daemon read from SSD; 0 if it never said.
    pub ssd_pages: u32,
    /// Why it was not more: `None` if all were delivered.
    pub why: Option<MissReason>,
}

/// Pages on their way, under a lease. While it or a run of it lives, the daemon leaves the bytes of
/// every delivered page as they are, but for those let go by [`Fetch::release_upto`]; with the last
/// of them what was not delivered is given up and the rest is released. A device copy out of the
/// pages must be over before that.
#[derive(Debug)]
pub struct Fetch {
    pub(crate) lease: Option<Arc<Lease>>,
    until: Instant,
    /// How many pages a complete one has; `None` where only the daemon knows.
    wanted: Option<u32>,
    delivered: u32,
    end: Option<FetchReport>,
}

impl SpaceHandle {
    /// Asks for pages, and for their bytes to stay. Never waits for them: [`Fetch::next_ready`]
    /// does. `stamp` is what the request's lookup answered with, [`Stamp`] 0 for none.
    pub fn fetch(&self, from: FetchFrom<'_>, stamp: Stamp, deadline: Duration) -> Fetch {
        let until = from_now(deadline);
        // More than a number of 32 bits are refused before any are asked for.
        let wanted = Some(u32::try_from(from.pages()).unwrap_or(u32::MAX));
        Fetch::of(self.lease(from, stamp, until), wanted, until)
    }

    fn lease(
        &self,
        from: FetchFrom<'_>,
        stamp: Stamp,
        until: Instant,
    ) -> Result<Lease, MissReason> {
        let (connection, opened) = self.ready()?;
        let wanted = from.pages();
        if wanted > MAX_KEYS {
            return Err(MissReason::TooLong);
        }
        let source = match from {
            FetchFrom::Keys(keys) => FetchSource::Keys { keys: KeyRun::from(keys) },
            FetchFrom::Hold(hold, first, count) => {
                if !Arc::ptr_eq(&hold.connection, &connection) {
                    return Err(MissReason::Invalid);
                }
                FetchSource::Hold { hold: hold.id, first, count }
            }
        };
        let lease = connection.new_lease();
        let delivery = Delivery::new(wanted as u32, &self.state, &opened);
        let request = Request::Fetch(undercroft_wire::Fetch {
            space: opened.id,
            lease,
            source,
            stamp,
            deadline_ms: whole_ms(until.saturating_duration_since(Instant::now())),
            recompute_ns: self.recompute_ns(),
        });
        let ticket = connection.post(&request, Expects::Pages(lease, delivery), until)?;
        Ok(Lease::new(Arc::clone(&self.client), ticket, lease))
    }
}

impl Fetch {
    pub(crate) fn of(
        lease: Result<Lease, MissReason>,
        wanted: Option<u32>,
        until: Instant,
    ) -> Self {
        match lease {
            Ok(lease) => {
                Self { lease: Some(Arc::new(lease)), until, wanted, delivered: 0, end: None }
            }
            Err(why) => {
                let end = Some(FetchReport { pages: 0, ssd_pages: 0, why: Some(why) });
                Self { lease: None, until, wanted, delivered: 0, end }
            }
        }
    }

    /// Waits for the next pages, in order; `None` when no more will come, and
    /// [`Fetch::report`] says why.
    pub fn next_ready(&mut self) -> Option<ReadyRun> {
        self.next_by(self.until)
    }

    /// The next pages if they are ready now. `None` says nothing about later ones: ask
    /// [`Fetch::is_over`].
    pub fn try_ready(&mut self) -> Option<ReadyRun> {
        self.next_by(Instant::now())
    }

    /// Whether no more pages will come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// How it ended, or how it stands if it is not over yet.
    pub fn report(&self) -> FetchReport {
        self.end.unwrap_or(FetchReport { pages: self.delivered, ssd_pages: 0, why: None })
    }

    /// Waits for all that will come, letting it pass by, and says how it ended. Pages that lie
    /// ready stay so while the fetch lives.
    pub fn outcome(&mut self) -> FetchReport {
        while self.next_ready().is_some() {}
        self.report()
    }

    /// Lets go of the pages before `upto`, counted from the start of the fetch: their bytes may
    /// change from now on. A run longer than DRAM only goes on when its early pages are let go.
    pub fn release_upto(&mut self, upto: u32) {
        let upto = upto.min(self.delivered);
        if let Some(lease) = &self.lease
            && upto > lease.released.fetch_max(upto, Ordering::Relaxed)
        {
            lease.release(upto);
        }
    }

    /// A page of it was not what was delivered any more.
    pub(crate) fn found_changed(&self) {
        if let Some(lease) = &self.lease {
            lease.client.counts.changed_pages.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As [`Fetch::next_ready`], but waits no longer than until then.
    pub(crate) fn next_by(&mut self, until: Instant) -> Option<ReadyRun> {
        if self.end.is_some() {
            return None;
        }
        let lease = self.lease.as_ref()?;
        match lease.hear(until.min(self.until)) {
            Ok(Heard::Pages(run)) => {
                self.delivered += run.pages.len() as u32;
                return Some(ReadyRun { _lease: Some(Arc::clone(lease)), ..run });
            }
            Ok(Heard::End(end)) => self.ended(end),
            Ok(Heard::Refused(refused)) => {
                lease.refused.store(true, Ordering::Relaxed);
                self.cut(MissReason::Refused(refused.reason));
            }
            Err(MissReason::Deadline) if Instant::now() < self.until => {}
            Err(MissReason::Deadline) => {
                lease.ticket.missed();
                self.cut(MissReason::Deadline);
            }
            Err(reason) => self.cut(reason),
        }
        None
    }

    fn ended(&mut self, end: FetchEnd) {
        let outcome = FetchOutcome::from_byte(end.outcome);
        let is_whole = self.wanted.is_none_or(|wanted| self.delivered == wanted);
        let told_right = end.ready == self.delivered
            && end.ssd <= end.ready
            && (is_whole || outcome != Some(FetchOutcome::Complete));
        let Some(outcome) = outcome.filter(|_| told_right) else {
            if let Some(lease) = &self.lease {
                lease.ticket.connection().violated("a fetch's end contradicts its pages");
            }
            self.cut(MissReason::Disconnected);
            return;
        };
        let why = MissReason::of_fetch(outcome);
        self.end = Some(FetchReport { pages: end.ready, ssd_pages: end.ssd, why });
    }

    fn cut(&mut self, why: MissReason) {
        let pages = self.delivered;
        self.end = Some(FetchReport { pages, ssd_pages: 0, why: Some(why) });
    }
}

/// The daemon's promise to leave pages as they are. It outlives the connection, so its end is
/// told to the next one if this one is gone.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) client: Arc<Inner>,
    ticket: Ticket,
    pub(crate) id: LeaseId,
    /// Pages before this one were let go.
    released: AtomicU32,
    /// The daemon never gave it.
    refused: AtomicBool,
}

impl Lease {
    pub(crate) fn new(client: Arc<Inner>, ticket: Ticket, id: LeaseId) -> Self {
        let (released, refused) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { client, ticket, id, released, refused }
    }

    /// Whether nothing of it was let go.
    pub(crate) fn is_whole(&self) -> bool {
        self.released.load(Ordering::Relaxed) == 0 && !self.refused.load(Ordering::Relaxed)
    }

    fn hear(&self, until: Instant) -> Result<Heard, MissReason> {
        if self.client.is_foreign() {
            return Err(MissReason::Forked);
        }
        let request = self.ticket.request;
        self.connection().wait_until(request, until, |inbox| inbox.take_heard(request))
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        self.ticket.connection()
    }

    fn release(&self, upto: u32) {
        let Some(welcome) = self.connection().welcome() else {
            return;
        };
        let release = Release { session: welcome.session, lease: self.id, upto };
        self.client.release(self.connection(), release);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.refused.load(Ordering::Relaxed) {
            self.release(ALL);
        }
    }
}

/// What the daemon has delivered of a fetch and nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Delivery {
    page_bytes: usize,
    staging: StagingView,
    wanted: u32,
    delivered: u32,
    pub(crate) runs: VecDeque<ReadyRun>,
    pub(crate) end: Option<FetchEnd>,
    /// The daemon gives no more pages, whether or not anybody has heard that.
    pub(crate) is_over: bool,
}

impl Delivery {
    pub(crate) fn new(wanted: u32, state: &SpaceState, opened: &Opened) -> Self {
        Self {
            page_bytes: state.page_bytes(),
            staging: opened.staging.clone(),
            wanted,
            delivered: 0,
            runs: VecDeque::new(),
            end: None,
            is_over: false,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.runs.is_empty() || self.end.is_some()
    }

    /// Takes pages in, bound to the mappings of the moment.
    pub(crate) fn add(
        &mut self,
        ready: &FetchReady,
        parts: &HashMap<PartId, Placed>,
        board: Option<&Arc<BoardView>>,
    ) -> Result<(), String> {
        let count = ready.places.len();
        // Nothing at all could be said for ever, and would be kept.
        let in_order = count > 0 && ready.first == self.delivered && self.end.is_none();
        if !in_order || self.delivered as usize + count > self.wanted as usize {
            return Err(format!(
                "pages {}..+{count} of a fetch of {} after {}",
                ready.first, self.wanted, self.delivered
            ));
        }
        let mut proof = Proof::default();
        let mut pages = Vec::with_capacity(count);
        for PagePlace { part, offset } in ready.places.iter().copied() {
            if part == PagePlace::STAGING {
                pages.push(self.slot(offset)?);
                proof.skip();
                continue;
            }
            let placed =
                parts.get(&part).ok_or_else(|| format!("a page in unknown part {part}"))?;
            let span = placed.part.view.span(offset, self.page_bytes);
            pages.push(span.map_err(|e| e.to_string())?);
            if let Some(board) = board {
                proof.look(board, placed.board_offset, offset);
            }
        }
        self.delivered += count as u32;
        self.runs.push_back(ReadyRun { first: ready.first, pages, proof, count, _lease: None });
        Ok(())
    }

    /// A page in staging.
    fn slot(&self, offset: u64) -> Result<Span, String> {
        let slot_bytes = u64::from(self.staging.slot_bytes());
        let slot = u32::try_from(offset / slot_bytes).map_err(|e| e.to_string())?;
        if !offset.is_multiple_of(slot_bytes) {
            return Err(format!("a page inside of a slot, at {offset}"));
        }
        let slot = self.staging.slot(SlotId(slot)).map_err(|e| e.to_string())?;
        slot.sub(0, self.page_bytes).map_err(|e| e.to_string())
    }
}
