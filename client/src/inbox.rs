use crate::MissReason;
use crate::connection::Lost;
use crate::fetch::{Delivery, ReadyRun};
use crate::parts::{Arena, MAX_PARTS, Mapped};
use crate::pulse::Pulse;
use crate::reader::Reader;
use crate::space::{Opened, SpaceState};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar};
use undercroft_arena::StagingView;
use undercroft_wire::{
    FetchEnd, FetchReady, HoldId, LeaseId, OfferId, PartAdded, PartId, PartRetired, Reply,
    RequestId, SlotId, SpaceId, SpaceOpened, Welcome, decode_reply,
};

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
    /// Parts that came before the arena was entered, and whether they retire already.
    early: Vec<(PartAdded, OwnedFd, bool)>,
    entered: bool,
    pub(crate) parts: HashMap<PartId, Placed>,
}

/// A part that this connection delivers pages of.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) part: Arc<Mapped>,
    /// Where its generations begin on the board, bytes; 0 without one.
    pub(crate) board_offset: u64,
    /// It retires; fetches up to this one may still be given pages of it.
    retired: Option<LeaseId>,
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
    pub(crate) fn new(reader: Reader, arena: Arc<Arena>, pulse: Arc<Pulse>) -> Self {
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
        let mailbox = Mailbox { expects, reply: None, parked: None, given_up: false };
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

    /// Maps the parts that came with the greeting, and from here on each as it comes.
    pub(crate) fn enter(&mut self) -> Result<(), Lost> {
        self.entered = true;
        std::mem::take(&mut self.early).into_iter().try_for_each(|(added, fd, retires)| {
            self.map(added, &fd)?;
            if retires {
                self.retire(added.part);
            }
            Ok(())
        })
    }

    /// Parts that retired and of which nothing is used or will be delivered any more; they are
    /// not delivered from again. Also says whether others are still waited for.
    pub(crate) fn vacated(&mut self) -> (Vec<PartId>, bool) {
        let oldest = self.running().min();
        let gone = |placed: &Placed| {
            let over = |last| oldest.is_none_or(|oldest| oldest > last);
            placed.retired.is_some_and(over) && placed.part.view.users() == 0
        };
        let gone: Vec<PartId> = self.parts.extract_if(|_, p| gone(p)).map(|(id, _)| id).collect();
        (gone, self.parts.values().any(|placed| placed.retired.is_some()))
    }

    /// Fetches that may still be given pages.
    fn running(&self) -> impl Iterator<Item = LeaseId> {
        let ended = |m: &Mailbox| matches!(&m.expects, Expects::Pages(_, d) if d.end.is_some());
        let runs = move |request| self.mailboxes.get(request).is_some_and(|m| !ended(m));
        self.leases.iter().filter(move |(_, request)| runs(request)).map(|(lease, _)| *lease)
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
                Reply::Welcome(welcome) => self.greeted(request, welcome)?,
                Reply::BoardAdded(_) => self.add_board(fds)?,
                Reply::PartAdded(added) => self.add_part(added, fds)?,
                Reply::PartRetired(PartRetired { part }) => self.retire(part),
                Reply::SpaceOpened(opened) => self.opened(generation, request, opened, fds)?,
                Reply::FetchReady(ready) => self.deliver(&ready)?,
                Reply::FetchEnd(end) => self.end_fetch(end),
                reply => chores.extend(self.put(request, reply)),
            }
        }
        Ok(())
    }

    /// Puts a reply into its mailbox, or says what must be given back if there is none.
    fn put(&mut self, request: RequestId, reply: Reply) -> Option<Chore> {
        let Some(mailbox) = self.mailboxes.get_mut(&request) else {
            return hold_of(&reply);
        };
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

    fn add_board(&mut self, fds: &mut VecDeque<OwnedFd>) -> Result<(), Lost> {
        let fd = fds.pop_front().ok_or_else(|| violation("a board without its descriptor"))?;
        let Some(welcome) = &self.welcome else {
            return Err(violation("a board before the welcome"));
        };
        let board = self.arena.board(welcome.epoch, &fd)?;
        if self.pulse.found(board) { Ok(()) } else { Err(violation("a second board")) }
    }

    fn add_part(&mut self, added: PartAdded, fds: &mut VecDeque<OwnedFd>) -> Result<(), Lost> {
        let fd = fds.pop_front().ok_or_else(|| violation("a part without its descriptor"))?;
        if self.welcome.is_none() {
            return Err(violation("a part before the welcome"));
        }
        if self.parts.len() + self.early.len() >= MAX_PARTS {
            return Err(violation("too many parts"));
        }
        if self.entered {
            return self.map(added, &fd);
        }
        self.early.push((added, fd, false));
        Ok(())
    }

    fn map(&mut self, added: PartAdded, fd: &OwnedFd) -> Result<(), Lost> {
        let PartAdded { board_offset, bytes, .. } = added;
        if let Some(board) = self.pulse.board().filter(|_| board_offset != 0) {
            let last = board.generation(board_offset, bytes.saturating_sub(1));
            last.ok_or_else(|| violation("a part whose generations are not on the board"))?;
        }
        let placed = Placed { part: self.arena.add(added, fd)?, board_offset, retired: None };
        match self.parts.insert(added.part, placed) {
            None => Ok(()),
            Some(_) => Err(violation("a part twice")),
        }
    }

    fn retire(&mut self, part: PartId) {
        if let Some(placed) = self.parts.get_mut(&part) {
            placed.retired = Some(self.last_lease);
            self.arena.stir();
        }
        let mut early = self.early.iter_mut();
        if let Some((_, _, retires)) = early.find(|(added, ..)| added.part == part) {
            *retires = true;
        }
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
        state.opened(Opened { generation, id: opened.space, staging });
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
        }
        mailbox.wake();
    }
}

#[cfg(test)]
mod tests;
