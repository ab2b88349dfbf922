use crate::MissReason;
use crate::connection::Lost;
use crate::fetch::{Delivery, ReadyRun};
use crate::parts::Arena;
use crate::pulse::Pulse;
use crate::reader::Reader;
use crate::releases::Releases;
use crate::space::{Opened, SpaceState};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar};
use undercroft_arena::StagingView;
use undercroft_wire::{
    FetchEnd, FetchReady, HoldId, LeaseId, OfferId, PartAdded, PartId, PartRetired, Reply,
    RequestId, SessionId, SlotId, SpaceId, SpaceOpened, Welcome, decode_reply,
};

mod places;

pub(crate) use places::Placed;

/// The most requests that may wait for an answer, given-up ones included.
const MAX_MAILBOXES: usize = 65_536;

/// What came in and who waits for it. Guarded by the connection's lock.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// `None` while a thread is reading.
    pub(crate) reader: Option<Reader>,
    /// Why the connection ended.
    pub(crate) closed: Option<Lost>,
    mailboxes: HashMap<RequestId, Mailbox>,
    leases: HashMap<LeaseId, RequestId>,
    pub(crate) last_request: u32,
    last_lease: LeaseId,
    /// How many threads sleep, so that nobody is looked for where nobody is.
    parked: usize,
    welcome: Option<Welcome>,
    arena: Arc<Arena>,
    pulse: Arc<Pulse>,
    releases: Arc<Releases>,
    /// Parts that came before the arena was entered, and whether they retire already.
    early: Vec<(PartAdded, OwnedFd, bool)>,
    entered: bool,
    pub(crate) parts: HashMap<PartId, Placed>,
}

/// What answers a request, besides its one reply.
#[derive(Debug)]
pub(crate) enum Expects {
    /// One reply.
    Reply,
    /// One reply that assigns slots of this space.
    Slots(SpaceId),
    /// One reply that opens this space.
    Opening(Arc<SpaceState>),
    /// Pages under a lease.
    Pages(LeaseId, Delivery),
    /// That this lease has ended. Nobody waits for it.
    Released(SessionId, LeaseId),
}

/// Something the daemon gave to a caller that is gone: it must be given back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    DropHold(HoldId),
    ReturnSlots { space: SpaceId, offer: OfferId, slots: Vec<SlotId> },
}

/// What a fetch hears next.
#[derive(Debug)]
pub(crate) enum Heard {
    Pages(ReadyRun),
    End(FetchEnd),
    Refused(undercroft_wire::Refused),
}

#[derive(Debug)]
struct Mailbox {
    expects: Expects,
    reply: Option<Reply>,
    parked: Option<Arc<Condvar>>,
    /// Nobody waits any more; kept because the answer must be looked after.
    given_up: bool,
}

impl Mailbox {
    fn is_ready(&self) -> bool {
        let pages = matches!(&self.expects, Expects::Pages(_, d) if d.is_ready());
        pages || self.reply.is_some()
    }

    fn wake(&self) {
        if let Some(signal) = &self.parked {
            signal.notify_one();
        }
    }

    /// What must be given back now that nobody takes `reply`.
    fn chore(&self, reply: Reply) -> Option<Chore> {
        match (reply, &self.expects) {
            (Reply::Offer(offer), Expects::Slots(space)) if !offer.slots.is_empty() => {
                Some(Chore::ReturnSlots { space: *space, offer: offer.offer, slots: offer.slots })
            }
            (reply, _) => hold_of(&reply),
        }
    }
}

fn hold_of(reply: &Reply) -> Option<Chore> {
    match reply {
        Reply::Lookup(found) => found.hold.map(Chore::DropHold),
        Reply::TakenHold(taken) => Some(Chore::DropHold(taken.hold)),
        _ => None,
    }
}

fn violation(what: &str) -> Lost {
    Lost::Protocol(what.to_owned())
}

impl Inbox {
    pub(crate) fn new(
        reader: Reader,
        arena: Arc<Arena>,
        pulse: Arc<Pulse>,
        releases: Arc<Releases>,
    ) -> Self {
        Self {
            reader: Some(reader),
            closed: None,
            mailboxes: HashMap::new(),
            leases: HashMap::new(),
            last_request: 0,
            last_lease: LeaseId(0),
            parked: 0,
            welcome: None,
            arena,
            pulse,
            releases,
            early: Vec::new(),
            entered: false,
            parts: HashMap::new(),
        }
    }

    /// Makes a mailbox for the answer to a request that is about to be sent.
    pub(crate) fn expect(&mut self, expects: Expects) -> Result<RequestId, MissReason> {
        if self.closed.is_some() {
            return Err(MissReason::Disconnected);
        }
        if self.mailboxes.len() >= MAX_MAILBOXES {
            return Err(MissReason::Busy);
        }
        let request = loop {
            self.last_request = self.last_request.wrapping_add(1);
            let request = RequestId(self.last_request);
            if request.0 != 0 && !self.mailboxes.contains_key(&request) {
                break request;
            }
        };
        if let Expects::Pages(lease, _) = &expects {
            self.leases.insert(*lease, request);
            self.last_lease = self.last_lease.max(*lease);
        }
        let given_up = matches!(expects, Expects::Released(..));
        let mailbox = Mailbox { expects, reply: None, parked: None, given_up };
        self.mailboxes.insert(request, mailbox);
        Ok(request)
    }

    /// Takes the one reply to a request. No other will come, so its mailbox goes, too.
    pub(crate) fn take_reply(&mut self, request: RequestId) -> Option<Reply> {
        let reply = self.mailboxes.get_mut(&request)?.reply.take()?;
        self.forget(request);
        Some(reply)
    }

    /// What a fetch's daemon said next, in order.
    pub(crate) fn take_heard(&mut self, request: RequestId) -> Option<Heard> {
        let mailbox = self.mailboxes.get_mut(&request)?;
        if let Expects::Pages(_, delivery) = &mut mailbox.expects {
            if let Some(run) = delivery.runs.pop_front() {
                return Some(Heard::Pages(run));
            }
            if let Some(end) = delivery.end.take() {
                return Some(Heard::End(end));
            }
        }
        match mailbox.reply.take() {
            Some(Reply::Refused(refused)) => Some(Heard::Refused(refused)),
            _ => None,
        }
    }

    /// Nobody waits for this request's answer any more. What it gave is to be given back, now or
    /// when it comes.
    pub(crate) fn give_up(&mut self, request: RequestId) -> Option<Chore> {
        let mailbox = self.mailboxes.get_mut(&request)?;
        match mailbox.reply.take() {
            Some(reply) => {
                let chore = mailbox.chore(reply);
                self.forget(request);
                chore
            }
            // Slots would be lost until the session ends, and an opened space is kept.
            None if matches!(mailbox.expects, Expects::Slots(_) | Expects::Opening(_)) => {
                mailbox.given_up = true;
                None
            }
            None => {
                self.forget(request);
                None
            }
        }
    }

    pub(crate) fn forget(&mut self, request: RequestId) {
        if let Some(mailbox) = self.mailboxes.remove(&request)
            && let Expects::Pages(lease, _) = mailbox.expects
        {
            self.leases.remove(&lease);
        }
    }

    pub(crate) fn park(&mut self, request: RequestId, signal: &Arc<Condvar>) {
        self.parked += 1;
        if let Some(mailbox) = self.mailboxes.get_mut(&request) {
            mailbox.parked = Some(Arc::clone(signal));
        }
    }

    pub(crate) fn unpark(&mut self, request: RequestId) {
        self.parked -= 1;
        if let Some(mailbox) = self.mailboxes.get_mut(&request) {
            mailbox.parked = None;
        }
    }

    /// Wakes one sleeping thread to go on reading, if the reader is free.
    pub(crate) fn hand_reader_on(&self) {
        if self.parked == 0 || self.reader.is_none() {
            return;
        }
        let next = self.mailboxes.values().find(|m| m.parked.is_some() && !m.is_ready());
        next.into_iter().for_each(Mailbox::wake);
    }

    /// Ends it all. Pages that were delivered stay deliverable, and the mappings stay the client's.
    pub(crate) fn close(&mut self, lost: Lost) {
        self.closed.get_or_insert(lost);
        self.parts.clear();
        self.early.clear();
        self.mailboxes.values().for_each(Mailbox::wake);
    }

    /// Sorts every whole frame that was read.
    pub(crate) fn sort(
        &mut self,
        generation: u64,
        reader: &mut Reader,
        chores: &mut Vec<Chore>,
    ) -> Result<(), Lost> {
        while let Some((header, range)) = reader.next_frame()? {
            let (body, fds) = reader.body(range);
            let (request, reply) = decode_reply(&header, body)?;
            self.pulse.answered();
            match reply {
                // What is mapped belongs to the next connection by now.
                Reply::BoardAdded(_) | Reply::PartAdded(_) | Reply::SpaceOpened(_)
                    if self.closed.is_some() =>
                {
                    drop(fds.pop_front());
                }
                Reply::Welcome(welcome) => self.greeted(request, welcome)?,
                Reply::BoardAdded(_) => self.add_board(fds)?,
                Reply::PartAdded(added) => self.add_part(added, fds)?,
                Reply::PartRetired(PartRetired { part }) => self.retire(part),
                Reply::SpaceOpened(opened) => self.opened(generation, request, opened, fds)?,
                Reply::FetchReady(ready) => self.deliver(&ready)?,
                Reply::FetchEnd(end) => self.end_fetch(end),
                reply => {
                    self.note_refusal(generation, request, &reply);
                    chores.extend(self.put(request, reply));
                }
            }
        }
        if reader.has_stray_fds() {
            return Err(violation("a descriptor that no frame carries"));
        }
        Ok(())
    }

    /// A space that was refused is asked for again, whether somebody still waits for it or not.
    fn note_refusal(&self, generation: u64, request: RequestId, reply: &Reply) {
        if let (Reply::Refused(refused), Some(Expects::Opening(state))) =
            (reply, self.mailboxes.get(&request).map(|m| &m.expects))
        {
            state.refused(generation, refused.reason);
        }
    }

    /// Puts a reply into its mailbox, or says what must be given back if there is none.
    fn put(&mut self, request: RequestId, reply: Reply) -> Option<Chore> {
        let Some(mailbox) = self.mailboxes.get_mut(&request) else {
            return hold_of(&reply);
        };
        if let Expects::Released(session, lease) = mailbox.expects {
            self.releases.forget(session, lease);
        }
        if mailbox.given_up {
            let chore = mailbox.chore(reply);
            self.forget(request);
            return chore;
        }
        mailbox.reply = Some(reply);
        mailbox.wake();
        None
    }

    fn greeted(&mut self, request: RequestId, welcome: Welcome) -> Result<(), Lost> {
        if self.welcome.is_some() {
            return Err(violation("a second welcome"));
        }
        self.welcome = Some(welcome.clone());
        let _none = self.put(request, Reply::Welcome(welcome));
        Ok(())
    }

    fn opened(
        &mut self,
        generation: u64,
        request: RequestId,
        opened: SpaceOpened,
        fds: &mut VecDeque<OwnedFd>,
    ) -> Result<(), Lost> {
        let fd = fds.pop_front().ok_or_else(|| violation("a space without its descriptor"))?;
        let Some(Expects::Opening(state)) = self.mailboxes.get(&request).map(|m| &m.expects) else {
            return Ok(());
        };
        if (opened.slot_bytes as usize) < state.page_bytes() {
            return Err(violation("slots smaller than a page"));
        }
        let staging = StagingView::map(fd, opened.slots, opened.slot_bytes)
            .map_err(|e| Lost::Protocol(format!("staging: {e}")))?;
        state.opened(Opened { generation, id: opened.space, staging: staging.clone() });
        self.arena.staging_mapped(&staging);
        let _none = self.put(request, Reply::SpaceOpened(opened));
        Ok(())
    }

    fn deliver(&mut self, ready: &FetchReady) -> Result<(), Lost> {
        // A lease that was released: its pages are of no interest any more.
        let Some(request) = self.leases.get(&ready.lease) else {
            return Ok(());
        };
        let Some(mailbox) = self.mailboxes.get_mut(request) else {
            return Ok(());
        };
        if let Expects::Pages(_, delivery) = &mut mailbox.expects {
            delivery.add(ready, &self.parts, self.pulse.board()).map_err(Lost::Protocol)?;
        }
        mailbox.wake();
        Ok(())
    }

    fn end_fetch(&mut self, end: FetchEnd) {
        let Some(mailbox) =
            self.leases.get(&end.lease).and_then(|request| self.mailboxes.get_mut(request))
        else {
            return;
        };
        if let Expects::Pages(_, delivery) = &mut mailbox.expects {
            delivery.end = Some(end);
            delivery.is_over = true;
        }
        mailbox.wake();
    }
}

#[cfg(test)]
mod tests;
