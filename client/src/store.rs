use crate::MissReason;
use crate::bell::from_now;
use crate::client::not_expected;
use crate::connection::{Connection, Ticket};
use crate::inbox::{Chore, Expects};
use crate::space::{Opened, SpaceHandle};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{BlockId, Device, DeviceError, StoreJob};
use undercroft_wire::{
    Commit, CommitOutcome, CommitReply, KeyRun, MAX_KEYS, Offer, OfferId, OfferOutcome, OfferReply,
    PageKey, Reply, Request, SlotId, Stamp,
};

/// Committed at once, about, bytes: while the daemon copies one batch, the device gathers the
/// next.
const BATCH_BYTES: usize = 4 << 20;
/// The pause before asking again where all credits are other threads' ones.
const CREDIT_PAUSE: Duration = Duration::from_micros(200);
/// The pauses before asking again for what others are storing: the first, and the longest.
const COMING_PAUSES: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(5));

/// Pages of one chain to store.
#[derive(Debug, Clone, Copy)]
pub struct StoreRun<'a> {
    /// The page before the first one; `None` if the run starts its chain.
    pub parent: Option<PageKey>,
    /// Distance of the first page from the start of the chain.
    pub first: u32,
    /// The pages' keys, in prefix order.
    pub keys: &'a [PageKey],
    /// What the request's lookup answered with, [`Stamp`] 0 for none.
    pub stamp: Stamp,
}

/// How to store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// The call returns by then, whatever is stored; if the device is copying a batch, when it is
    /// done with that one. The blocks are the call's until it returns.
    pub deadline: Duration,
    /// Offer pages again for which no staging slot was free, and those that somebody else is
    /// storing just now, until they are settled or the deadline has come. Otherwise the first are
    /// declined and the others are coming: the engine never waits for anybody.
    pub wait_for_credits: bool,
}

/// Pages that the daemon did not want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Declined {
    /// No staging slot was free.
    pub credits: u32,
    /// The page before was in no tier.
    pub parent: u32,
    /// No room, and nothing older to give up for it.
    pub full: u32,
    /// Admission decided against it.
    pub admission: u32,
}

impl Declined {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.credits + self.parent + self.full + self.admission
    }
}

/// What became of the pages of a store. The counts add up to the run's length.
#[derive(Debug, Default)]
#[must_use]
pub struct Stored {
    /// Pages that lookups find from now on.
    pub stored: u32,
    /// Pages that were there already.
    pub held: u32,
    /// Pages that somebody else was storing when the call ended, and may yet give up.
    pub coming: u32,
    /// Pages the daemon did not want.
    pub declined: Declined,
    /// Pages whose copy failed, here or at the daemon.
    pub failed: u32,
    /// Pages whose fate is unknown: the call ended before they were settled.
    pub unsettled: u32,
    /// Why the call ended early; `None` if every page was settled, or none was to be waited for.
    pub why: Option<MissReason>,
    /// What the device said, where [`MissReason::Device`] is the reason.
    pub fault: Option<DeviceError>,
}

impl SpaceHandle {
    /// Stores pages: offers their keys, has `device` gather the wanted ones out of its blocks
    /// (page `i` of the run out of `blocks[i]`) into staging, and commits them in batches.
    /// Returns when the daemon has settled all of them, or at the deadline: no batch is begun after
    /// it, one that the device has begun is waited for. Until then the blocks must not change.
    pub fn store(
        &self,
        run: StoreRun<'_>,
        device: &dyn Device,
        blocks: &[BlockId],
        options: StoreOptions,
    ) -> Stored {
        let until = from_now(options.deadline);
        let ready = self.ready().and_then(|ready| self.check(run, device, blocks).map(|()| ready));
        let (connection, opened) = match ready {
            Ok(ready) => ready,
            Err(why) => {
                let unsettled = run.keys.len() as u32;
                return Stored { unsettled, why: Some(why), ..Stored::default() };
            }
        };
        let page_bytes = self.state.page_bytes();
        let slots = opened.staging.slots() as usize;
        let storing = Storing {
            connection,
            opened,
            run,
            device,
            blocks,
            until,
            wait_for_credits: options.wait_for_credits,
            page_bytes,
            // At least two batches, where there are slots for two.
            batch: (BATCH_BYTES / page_bytes).min(slots / 2).max(1),
            least_window: (2 * slots).clamp(16, MAX_KEYS),
            window: (2 * slots).clamp(16, MAX_KEYS),
            fates: vec![None; run.keys.len()],
            next: 0,
            starved: false,
            pause: COMING_PAUSES.0,
            assigned: VecDeque::new(),
            commits: VecDeque::new(),
        };
        storing.run()
    }

    fn check(
        &self,
        run: StoreRun<'_>,
        device: &dyn Device,
        blocks: &[BlockId],
    ) -> Result<(), MissReason> {
        let fits = u32::try_from(run.keys.len()).is_ok_and(|n| run.first.checked_add(n).is_some());
        let chained = run.parent.is_some() == (run.first > 0);
        let same = device.geometry() == self.space().geometry && blocks.len() == run.keys.len();
        if fits && chained && same { Ok(()) } else { Err(MissReason::Invalid) }
    }
}

/// What became of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stored,
    Held,
    /// Somebody else is storing it.
    Coming,
    NoCredit,
    NoParent,
    Full,
    NotAdmitted,
    Failed,
}

/// A slot the daemon assigned to a key.
#[derive(Debug, Clone, Copy)]
struct Assigned {
    key: usize,
    offer: OfferId,
    slot: SlotId,
}

/// A commit whose reply has not come yet.
struct Committed {
    ticket: Ticket,
    offer: OfferId,
    keys: Vec<usize>,
}

/// Why a store ends early.
enum Cut {
    Miss(MissReason),
    Fault(DeviceError),
}

impl From<MissReason> for Cut {
    fn from(reason: MissReason) -> Self {
        Self::Miss(reason)
    }
}

/// What became of a key that was offered; `None` if it is still to be stored.
fn fate_of(outcome: OfferOutcome) -> Option<Fate> {
    match outcome {
        OfferOutcome::Wanted => None,
        OfferOutcome::Held => Some(Fate::Held),
        OfferOutcome::Coming => Some(Fate::Coming),
        OfferOutcome::NoCredit => Some(Fate::NoCredit),
        OfferOutcome::NoParent => Some(Fate::NoParent),
        OfferOutcome::Full => Some(Fate::Full),
        OfferOutcome::NotAdmitted => Some(Fate::NotAdmitted),
    }
}

struct Storing<'a> {
    connection: Arc<Connection>,
    opened: Arc<Opened>,
    run: StoreRun<'a>,
    device: &'a dyn Device,
    blocks: &'a [BlockId],
    until: Instant,
    wait_for_credits: bool,
    page_bytes: usize,
    /// Pages gathered and committed at once.
    batch: usize,
    /// Keys offered at once where credits are short: a long run must not travel again and again.
    least_window: usize,
    window: usize,
    fates: Vec<Option<Fate>>,
    /// The first key that has not been offered to the end.
    next: usize,
    /// The last offer found no free slot, and none has become free since.
    starved: bool,
    /// How long to let others go on before what they store is offered again.
    pause: Duration,
    assigned: VecDeque<Assigned>,
    commits: VecDeque<Committed>,
}

impl Storing<'_> {
    fn run(mut self) -> Stored {
        let cut = self.work().err();
        self.give_back();
        self.settle_the_rest();
        let (why, fault) = match cut {
            None => (None, None),
            Some(Cut::Miss(why)) => (Some(why), None),
            Some(Cut::Fault(fault)) => (Some(MissReason::Device), Some(fault)),
        };
        let mut stored = Stored { why, fault, ..Stored::default() };
        for fate in &self.fates {
            *match fate {
                Some(Fate::Stored) => &mut stored.stored,
                Some(Fate::Held) => &mut stored.held,
                Some(Fate::Coming) => &mut stored.coming,
                Some(Fate::NoCredit) => &mut stored.declined.credits,
                Some(Fate::NoParent) => &mut stored.declined.parent,
                Some(Fate::Full) => &mut stored.declined.full,
                Some(Fate::NotAdmitted) => &mut stored.declined.admission,
                Some(Fate::Failed) => &mut stored.failed,
                None => &mut stored.unsettled,
            } += 1;
        }
        stored
    }

    fn work(&mut self) -> Result<(), Cut> {
        loop {
            if !self.assigned.is_empty() {
                self.gather_batch()?;
                self.settle_at_hand()?;
            } else if self.next < self.fates.len() && !self.starved {
                self.offer()?;
            } else if let Some(commit) = self.commits.pop_front() {
                let reply = commit.ticket.reply(self.until)?;
                self.settle(&commit, reply)?;
                self.settle_at_hand()?;
            } else if self.next < self.fates.len() {
                self.pause()?;
            } else if let Some(keys) = self.coming() {
                self.offer_later(keys)?;
            } else {
                return Ok(());
            }
        }
    }

    /// All slots are in use by other threads' stores: asks again in a while.
    fn pause(&mut self) -> Result<(), MissReason> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.decline_the_rest();
            return Err(MissReason::Deadline);
        }
        std::thread::sleep(left.min(CREDIT_PAUSE));
        self.starved = false;
        Ok(())
    }

    /// The first run of keys that others are storing, if they are to be waited for.
    fn coming(&self) -> Option<Range<usize>> {
        if !self.wait_for_credits {
            return None;
        }
        let is_coming = |fate: &Option<Fate>| *fate == Some(Fate::Coming);
        let first = self.fates.iter().position(is_coming)?;
        let count = self.fates[first..].iter().take(MAX_KEYS).take_while(|f| is_coming(f)).count();
        Some(first..first + count)
    }

    /// Lets others go on for a while, then asks again. They may have given up.
    fn offer_later(&mut self, keys: Range<usize>) -> Result<(), MissReason> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(MissReason::Deadline);
        }
        std::thread::sleep(left.min(self.pause));
        self.pause = (self.pause * 2).min(COMING_PAUSES.1);
        let outcomes = self.ask(keys.clone())?;
        for (key, outcome) in keys.zip(outcomes) {
            self.fates[key] = match outcome {
                // Others' stores take the slots: as good as coming.
                OfferOutcome::NoCredit => Some(Fate::Coming),
                outcome => fate_of(outcome),
            };
        }
        Ok(())
    }

    fn decline_the_rest(&mut self) {
        for fate in &mut self.fates[self.next..] {
            fate.get_or_insert(Fate::NoCredit);
        }
    }

    /// Offers the next keys and takes up what the daemon assigns.
    fn offer(&mut self) -> Result<(), MissReason> {
        let limit = if self.wait_for_credits { self.window } else { MAX_KEYS };
        let from = self.next;
        let keys = from..from + limit.min(self.fates.len() - from);
        let outcomes = self.ask(keys.clone())?;
        for (key, outcome) in keys.clone().zip(&outcomes) {
            self.fates[key] = fate_of(*outcome);
        }
        self.next = keys.end;
        let short = outcomes.iter().position(|outcome| *outcome == OfferOutcome::NoCredit);
        match short.filter(|_| self.wait_for_credits) {
            Some(short) => self.offer_again(from + short),
            // A run that is held needs no slots: ask about more at once.
            None => self.window = (self.window * 2).min(MAX_KEYS),
        }
        Ok(())
    }

    /// Offers these keys and notes the slots assigned to them.
    fn ask(&mut self, range: Range<usize>) -> Result<Vec<OfferOutcome>, MissReason> {
        let from = range.start;
        let keys = &self.run.keys[range];
        let parent = if from == 0 { self.run.parent } else { Some(self.run.keys[from - 1]) };
        let request = Request::Offer(Offer {
            space: self.opened.id,
            parent,
            first: self.run.first + from as u32,
            keys: KeyRun::from(keys),
            stamp: self.run.stamp,
        });
        let expects = Expects::Slots(self.opened.id);
        let reply = match self.connection.call(&request, expects, self.until)? {
            Reply::Offer(reply) => reply,
            other => return Err(not_expected(&self.connection, &other, "an offer's answer")),
        };
        self.take_up(from, keys.len(), &reply)
    }

    fn take_up(
        &mut self,
        from: usize,
        count: usize,
        reply: &OfferReply,
    ) -> Result<Vec<OfferOutcome>, MissReason> {
        let outcomes: Option<Vec<_>> =
            reply.outcomes.iter().map(|byte| OfferOutcome::from_byte(*byte)).collect();
        let outcomes = outcomes.filter(|outcomes| outcomes.len() == count);
        let wanted = |all: &Vec<_>| all.iter().filter(|o| **o == OfferOutcome::Wanted).count();
        let Some(outcomes) = outcomes.filter(|all| wanted(all) == reply.slots.len()) else {
            return Err(self.connection.violated("an offer's answer does not fit the offer"));
        };
        let is_wanted = |(_, outcome): &(usize, &OfferOutcome)| **outcome == OfferOutcome::Wanted;
        let keys = (from..).zip(&outcomes).filter(is_wanted);
        for ((key, _), slot) in keys.zip(&reply.slots) {
            self.assigned.push_back(Assigned { key, offer: reply.offer, slot: *slot });
        }
        Ok(outcomes)
    }

    /// The keys from `from` on are offered again, in order, once slots are free. What was
    /// assigned or settled among them stays so.
    fn offer_again(&mut self, from: usize) {
        let taken = |key| self.assigned.iter().any(|assigned| assigned.key == key);
        let first = (from..self.next).find(|key| !taken(*key)).unwrap_or(self.next);
        for fate in &mut self.fates[first..self.next] {
            if matches!(fate, Some(Fate::NoCredit | Fate::NoParent)) {
                *fate = None;
            }
        }
        self.next = first;
        self.window = self.least_window;
        self.starved = true;
    }

    /// Has the device gather the next pages into their slots, and commits them.
    fn gather_batch(&mut self) -> Result<(), Cut> {
        if Instant::now() >= self.until {
            return Err(Cut::Miss(MissReason::Deadline));
        }
        let offer = self.assigned.front().expect("somebody asked for a batch of something").offer;
        let batch: Vec<Assigned> = self
            .assigned
            .iter()
            .take(self.batch)
            .take_while(|assigned| assigned.offer == offer)
            .copied()
            .collect();
        let jobs: Option<Vec<StoreJob>> = batch.iter().map(|assigned| self.job(assigned)).collect();
        let Some(jobs) = jobs else {
            return Err(Cut::Miss(self.connection.violated("a slot outside of staging")));
        };
        if let Err(fault) = self.device.store(jobs).and_then(|transfer| transfer.wait()) {
            // Its successors could never be found without it.
            for assigned in &batch {
                self.fates[assigned.key] = Some(Fate::Failed);
            }
            return Err(Cut::Fault(fault));
        }
        let filled = batch.iter().map(|assigned| assigned.slot).collect();
        let request =
            Request::Commit(Commit { space: self.opened.id, offer, filled, returned: Vec::new() });
        let ticket = self.connection.post(&request, Expects::Reply, self.until)?;
        self.assigned.drain(..batch.len());
        let keys = batch.iter().map(|assigned| assigned.key).collect();
        self.commits.push_back(Committed { ticket, offer, keys });
        Ok(())
    }

    fn job(&self, assigned: &Assigned) -> Option<StoreJob> {
        let slot = self.opened.staging.slot(assigned.slot).ok()?;
        let page = slot.sub(0, self.page_bytes).ok()?;
        Some(StoreJob { block: self.blocks[assigned.key], page })
    }

    /// Settles the commits whose replies have been read while waiting for something else.
    fn settle_at_hand(&mut self) -> Result<(), MissReason> {
        while let Some(commit) = self.commits.front() {
            let Some(reply) = commit.ticket.reply_at_hand() else {
                return Ok(());
            };
            let commit = self.commits.pop_front().expect("looked at above");
            self.settle(&commit, reply)?;
        }
        Ok(())
    }

    fn settle(&mut self, commit: &Committed, reply: Reply) -> Result<(), MissReason> {
        let CommitReply { offer, outcomes } = match reply {
            Reply::Commit(reply) => reply,
            other => return Err(not_expected(&self.connection, &other, "a commit's answer")),
        };
        if offer != commit.offer || outcomes.len() != commit.keys.len() {
            return Err(self.connection.violated("a commit's answer does not fit the commit"));
        }
        for (key, outcome) in commit.keys.iter().zip(outcomes) {
            self.fates[*key] = Some(match CommitOutcome::from_byte(outcome) {
                Some(CommitOutcome::Stored) => Fate::Stored,
                Some(CommitOutcome::Held) => Fate::Held,
                Some(CommitOutcome::Full) => Fate::Full,
                Some(CommitOutcome::Invalid | CommitOutcome::Failed) => Fate::Failed,
                None => return Err(self.connection.violated("an unknown outcome of a commit")),
            });
        }
        self.starved = false;
        Ok(())
    }

    /// Hears what became of the commits under way, as far as the deadline allows. How the call
    /// ended is known already.
    fn settle_the_rest(&mut self) {
        while let Some(commit) = self.commits.pop_front() {
            if let Ok(reply) = commit.ticket.reply(self.until) {
                let _known = self.settle(&commit, reply);
            }
        }
    }

    /// Returns the slots that will not be filled.
    fn give_back(&mut self) {
        while let Some(Assigned { offer, .. }) = self.assigned.front().copied() {
            let mut slots = Vec::new();
            while let Some(assigned) = self.assigned.front().filter(|a| a.offer == offer) {
                slots.push(assigned.slot);
                self.assigned.pop_front();
            }
            let space = self.opened.id;
            self.connection.do_chore(&Chore::ReturnSlots { space, offer, slots });
        }
    }
}
