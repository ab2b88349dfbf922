//! What a fake daemon remembers: a map from keys to frames, and what it was told.

use crate::fake_daemon::Peer;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use undercroft_arena::{Board, HugePages, Part, PartOptions, Span, Staging, copy_checked};
use undercroft_wire::{
    BoardAdded, Commit, CommitOutcome, CommitReply, Epoch, Fetch, FetchEnd, FetchOutcome,
    FetchReady, FetchSource, Gift, Given, HoldId, KeyRun, LeaseId, LookupReply, Mode, Offer,
    OfferId, OfferOutcome, OfferReply, OpenSpace, PageKey, PagePlace, PartAdded, PartId,
    PrefetchReply, Refused, RefusedReason, Release, Reply, Request, RequestId, SessionId, SlotId,
    SpaceDigest, SpaceId, SpaceOpened, Stamp, StatusReport, Take, TakenHold, Token, Welcome,
};

/// Bytes of a page in all these tests; not a multiple of 4 KiB, so that slots are longer.
pub(crate) const PAGE_BYTES: u32 = 6144;
const FRAME_BYTES: u32 = 8192;
const PART_BYTES: u64 = 64 * FRAME_BYTES as u64;

/// An offer as it came: its first key's depth, its parent, its keys, its stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offered {
    pub(crate) first: u32,
    pub(crate) parent: Option<PageKey>,
    pub(crate) keys: Vec<PageKey>,
    pub(crate) stamp: Stamp,
}

/// A daemon's memory, shared by its connections.
pub(crate) struct Shelf {
    pub(crate) epoch: Epoch,
    pub(crate) mode: Mode,
    pub(crate) slots: u32,
    parts: BTreeMap<PartId, Part>,
    /// What clients are told without being asked, if there is one, and where each part is on it.
    pub(crate) board: Option<Board>,
    places: HashMap<PartId, u64>,
    /// Frames used of each part.
    used: HashMap<PartId, u64>,
    pages: HashMap<PageKey, PagePlace>,
    staging: HashMap<(SessionId, SpaceId), Staging>,
    spaces: u32,
    free: Vec<SlotId>,
    offered: HashMap<SlotId, PageKey>,
    /// Which space has which number.
    numbers: HashMap<SpaceDigest, SpaceId>,
    holds: HashMap<HoldId, (SessionId, Vec<PageKey>)>,
    leases: HashMap<(SessionId, LeaseId), (SpaceId, Vec<PagePlace>)>,
    tokens: HashMap<Token, (SessionId, Gift)>,
    given: u64,
    sessions: u64,
    /// The session of each connection of the daemon of the moment.
    session_of: HashMap<usize, SessionId>,
    /// What the clients did, for the tests to look at.
    pub(crate) offers: Vec<Offered>,
    pub(crate) releases: Vec<Release>,
    pub(crate) returned: Vec<SlotId>,
    pub(crate) commits: Vec<usize>,
    pub(crate) dropped: Vec<HoldId>,
    pub(crate) let_go: Vec<PartId>,
    pub(crate) missed: Vec<u32>,
}

pub(crate) type Shared = Arc<Mutex<Shelf>>;

impl Shelf {
    pub(crate) fn new(epoch: u64, mode: Mode, slots: u32) -> Shared {
        Arc::new(Mutex::new(Self {
            epoch: Epoch(epoch),
            mode,
            slots,
            parts: BTreeMap::from([(PartId(3), part(PartId(3)))]),
            board: None,
            places: HashMap::new(),
            used: HashMap::new(),
            pages: HashMap::new(),
            staging: HashMap::new(),
            spaces: 0,
            free: Vec::new(),
            offered: HashMap::new(),
            numbers: HashMap::new(),
            holds: HashMap::new(),
            leases: HashMap::new(),
            tokens: HashMap::new(),
            given: 0,
            session_of: HashMap::new(),
            sessions: 40,
            offers: Vec::new(),
            releases: Vec::new(),
            returned: Vec::new(),
            commits: Vec::new(),
            dropped: Vec::new(),
            let_go: Vec::new(),
            missed: Vec::new(),
        }))
    }

    /// One that has a board.
    pub(crate) fn with_board(epoch: u64, mode: Mode, slots: u32) -> Shared {
        let shelf = Self::new(epoch, mode, slots);
        {
            let mut shelf = shelf.lock().unwrap();
            let mut board = Board::create(Epoch(epoch), 4 * PART_BYTES).unwrap();
            shelf.places = HashMap::from([(PartId(3), board.place(PART_BYTES).unwrap())]);
            shelf.board = Some(board);
        }
        shelf
    }

    /// What is in the frame of this page is another page's from now on.
    pub(crate) fn raise(&self, key: PageKey) {
        let place = self.pages[&key];
        self.board.as_ref().unwrap().raise(self.places[&place.part], place.offset);
    }

    /// The control thread turns.
    pub(crate) fn beat(&self) {
        self.board.as_ref().unwrap().beat();
    }

    /// Puts a page of `byte`s there, as if it had been stored.
    pub(crate) fn put(&mut self, key: PageKey, byte: u8) {
        self.put_in(PartId(3), key, byte);
    }

    pub(crate) fn put_in(&mut self, part: PartId, key: PageKey, byte: u8) {
        let place = self.new_frame(part, key);
        let frame = self.frame(place).sub(0, PAGE_BYTES as usize).unwrap();
        frame.copy_from_slice(&vec![byte; PAGE_BYTES as usize]);
    }

    fn begins(&self, place: PagePlace, beginning: &[u8]) -> bool {
        let mut begins = false;
        self.frame(place).read(|bytes| begins = bytes.starts_with(beginning));
        begins
    }

    /// Forgets the pages that do not begin so.
    pub(crate) fn keep(&mut self, beginning: &[u8]) {
        let kept = self.pages.iter().filter(|(_, place)| self.begins(**place, beginning));
        self.pages = kept.map(|(key, place)| (*key, *place)).collect();
    }

    /// Puts one byte into another one's place, in the first page that begins so, and says whether
    /// there is one.
    pub(crate) fn spoil(&mut self, beginning: &[u8]) -> bool {
        let place = self.pages.values().find(|place| self.begins(**place, beginning));
        let last = place.map(|place| self.frame(*place).sub(PAGE_BYTES as usize - 1, 1).unwrap());
        last.is_some_and(|byte| {
            byte.copy_from_slice(&[!beginning[0]]);
            true
        })
    }

    fn new_frame(&mut self, part: PartId, key: PageKey) -> PagePlace {
        let used = self.used.entry(part).or_default();
        let place = PagePlace { part, offset: *used * u64::from(FRAME_BYTES) };
        *used += 1;
        self.pages.insert(key, place);
        place
    }

    fn frame(&self, place: PagePlace) -> Span {
        self.parts[&place.part].span(place.offset, FRAME_BYTES as usize).unwrap()
    }

    /// Adds a part, or puts another one in the place of one that is there. Says how a client is
    /// told.
    pub(crate) fn grow(&mut self, id: PartId) -> (Reply, OwnedFd) {
        self.parts.insert(id, part(id));
        self.part_added(id)
    }

    fn part_added(&self, part: PartId) -> (Reply, OwnedFd) {
        let board_offset = self.places.get(&part).copied().unwrap_or(0);
        let added = Reply::PartAdded(PartAdded { part, bytes: PART_BYTES, board_offset });
        (added, self.parts[&part].read_only_fd().unwrap())
    }

    /// In how many places of this process a part is mapped, the shelf's own included.
    pub(crate) fn mappings(&self, part: PartId) -> usize {
        let inode = rustix::fs::fstat(self.parts[&part].read_only_fd().unwrap()).unwrap().st_ino;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inodes = maps.lines().filter_map(|line| line.split_whitespace().nth(4)?.parse().ok());
        inodes.filter(|of: &u64| *of == inode).count()
    }

    fn leading(&self, keys: &KeyRun<'_>) -> u32 {
        keys.as_slice().iter().take_while(|key| self.pages.contains_key(*key)).count() as u32
    }

    /// Answers everything a client may say the way a daemon does.
    pub(crate) fn answer(&mut self, peer: &mut Peer, id: RequestId, request: &Request<'_>) {
        let reply = match request {
            Request::Hello(_) => return self.greet(peer, id),
            Request::OpenSpace(open) => return self.open(peer, id, open),
            Request::Fetch(fetch) => return self.fetch(peer, id, fetch),
            Request::Release(release) => {
                self.release(*release);
                Reply::Done
            }
            Request::DropHold(drop) => return self.drop_hold(peer, drop.hold),
            Request::Lookup(lookup) => self.look_up(peer, &lookup.keys, lookup.hold_ms),
            Request::Give(give) => self.give(peer, give.what),
            Request::Take(take) => return self.take(peer, id, take),
            Request::Offer(offer) => self.offer(offer),
            Request::Commit(commit) => self.commit(peer, commit),
            Request::Prefetch(prefetch) => {
                let resident = self.leading(&prefetch.keys);
                Reply::Prefetch(PrefetchReply { resident, started: 7 })
            }
            Request::Status => {
                Reply::Status(Box::new(StatusReport { pid: 4711, ..StatusReport::default() }))
            }
            Request::Hint(_) | Request::Ping => Reply::Done,
            Request::PartLetGo(gone) => return self.let_go.push(gone.part),
            Request::Gpu(_) => return,
            Request::Missed(missed) => return self.missed.push(missed.lookups),
            Request::Purge(_) | Request::Record | Request::Explain(_) | Request::TakeOver => {
                panic!("not asked of a shelf: {request:?}")
            }
        };
        peer.reply(id, &reply);
    }

    fn greet(&mut self, peer: &mut Peer, id: RequestId) {
        self.sessions += 1;
        self.session_of.insert(peer.number, SessionId(self.sessions));
        let parts = if self.mode == Mode::ZeroCopy { self.parts.len() as u32 } else { 0 };
        peer.reply(
            id,
            &Reply::Welcome(Welcome {
                version: 2,
                session: SessionId(self.sessions),
                epoch: self.epoch,
                mode: self.mode,
                parts,
                domain: "default".to_owned(),
            }),
        );
        if let Some(board) = &self.board {
            let fd = board.read_only_fd().unwrap();
            let bytes = rustix::fs::fstat(&fd).unwrap().st_size as u64;
            peer.reply_with(id, &Reply::BoardAdded(BoardAdded { bytes }), fd.as_fd());
        }
        for part in self.parts.keys().take(parts as usize) {
            let (added, fd) = self.part_added(*part);
            peer.reply_with(id, &added, fd.as_fd());
        }
    }

    fn open(&mut self, peer: &mut Peer, id: RequestId, open: &OpenSpace) {
        let space = *self.numbers.entry(open.space.digest()).or_insert_with(|| {
            self.spaces += 1;
            SpaceId(self.spaces)
        });
        let staging = Staging::create(self.slots, FRAME_BYTES).unwrap();
        self.free = (0..self.slots).map(SlotId).collect();
        let opened = SpaceOpened { space, slots: self.slots, slot_bytes: FRAME_BYTES };
        peer.reply_with(id, &Reply::SpaceOpened(opened), staging.fd());
        self.staging.insert((self.session_of[&peer.number], space), staging);
    }

    fn look_up(&mut self, peer: &Peer, keys: &KeyRun<'_>, hold_ms: u32) -> Reply {
        let pages = self.leading(keys);
        let hold = (hold_ms > 0 && pages > 0).then(|| {
            let id = self.new_hold();
            let held = keys.as_slice()[..pages as usize].to_vec();
            self.holds.insert(id, (self.session_of[&peer.number], held));
            id
        });
        let (dram, stamp, present, worth) = (pages, Stamp(77), pages, pages);
        let (estimate_us, copy_us, ssd) = (5, 3, 0);
        Reply::Lookup(LookupReply {
            pages,
            dram,
            ssd,
            hold,
            stamp,
            estimate_us,
            present,
            worth,
            copy_us,
        })
    }

    fn fetch(&mut self, peer: &mut Peer, id: RequestId, fetch: &Fetch<'_>) {
        let keys = match &fetch.source {
            FetchSource::Keys { keys } => keys.as_slice().to_vec(),
            FetchSource::Hold { hold, first, count } => {
                let session = self.session_of[&peer.number];
                let held = self.holds.get(hold).filter(|(owner, _)| *owner == session).cloned();
                held.unwrap_or_default()
                    .1
                    .into_iter()
                    .skip(*first as usize)
                    .take(*count as usize)
                    .collect()
            }
        };
        let there: Vec<PagePlace> =
            keys.iter().map_while(|key| self.pages.get(key).copied()).collect();
        let asked = match &fetch.source {
            FetchSource::Keys { .. } => keys.len(),
            FetchSource::Hold { count, .. } => *count as usize,
        };
        let whole = there.len() == asked;
        let lease = (self.session_of[&peer.number], fetch.lease);
        self.leases.insert(lease, (fetch.space, there));
        let outcome = if whole { FetchOutcome::Complete } else { FetchOutcome::Missing };
        self.deliver(peer, id, lease, outcome);
    }

    fn deliver(
        &self,
        peer: &mut Peer,
        id: RequestId,
        of: (SessionId, LeaseId),
        outcome: FetchOutcome,
    ) {
        let (space, there) = &self.leases[&of];
        let lease = of.1;
        let places: Vec<PagePlace> =
            (0..).zip(there).map(|(index, at)| self.place((of.0, *space), index, *at)).collect();
        // In pairs, so that every run longer than two comes in several messages.
        for (index, pair) in places.chunks(2).enumerate() {
            let ready = FetchReady { lease, first: index as u32 * 2, places: pair.to_vec() };
            peer.reply(id, &Reply::FetchReady(ready));
        }
        let (ready, outcome) = (there.len() as u32, outcome.to_byte());
        peer.reply(id, &Reply::FetchEnd(FetchEnd { lease, ready, ssd: 0, outcome }));
    }

    fn release(&mut self, release: Release) {
        self.releases.push(release);
        if release.upto == u32::MAX {
            self.leases.remove(&(release.session, release.lease));
        }
    }

    fn drop_hold(&mut self, peer: &Peer, hold: HoldId) {
        self.dropped.push(hold);
        let session = self.session_of[&peer.number];
        self.holds.retain(|id, (owner, _)| *id != hold || *owner != session);
    }

    /// How many holds and leases there are.
    pub(crate) fn promises(&self) -> (usize, usize) {
        (self.holds.len(), self.leases.len())
    }

    fn new_hold(&mut self) -> HoldId {
        self.given += 1;
        HoldId(900 + self.given)
    }

    fn give(&mut self, peer: &Peer, what: Gift) -> Reply {
        let session = self.session_of[&peer.number];
        let there = match what {
            Gift::Hold(hold) => self.holds.get(&hold).is_some_and(|(owner, _)| *owner == session),
            Gift::Lease(lease) => self.leases.contains_key(&(session, lease)),
        };
        if !there {
            return refused(RefusedReason::Unknown);
        }
        self.given += 1;
        let token = Token([self.given as u8; 16]);
        self.tokens.insert(token, (session, what));
        Reply::Given(Given { token })
    }

    fn take(&mut self, peer: &mut Peer, id: RequestId, take: &Take) {
        let session = self.session_of[&peer.number];
        let reply = match (self.tokens.get(&take.token).copied(), take.space) {
            (Some((_, Gift::Hold(old))), None) if self.holds.contains_key(&old) => {
                let (_, held) = self.holds.remove(&old).unwrap();
                let (hold, pages) = (self.new_hold(), held.len() as u32);
                self.holds.insert(hold, (session, held));
                Reply::TakenHold(TakenHold { hold, pages })
            }
            (Some((giver, Gift::Lease(old))), Some(space))
                if self.leases.get(&(giver, old)).is_some_and(|(of, _)| *of == space) =>
            {
                let pages = self.leases.remove(&(giver, old)).unwrap();
                self.leases.insert((session, take.lease), pages);
                self.tokens.remove(&take.token);
                return self.deliver(peer, id, (session, take.lease), FetchOutcome::Complete);
            }
            (None, _) => return peer.reply(id, &refused(RefusedReason::Unknown)),
            _ => return peer.reply(id, &refused(RefusedReason::Invalid)),
        };
        self.tokens.remove(&take.token);
        peer.reply(id, &reply);
    }

    fn place(&self, staging: (SessionId, SpaceId), index: u32, at: PagePlace) -> PagePlace {
        if self.mode == Mode::ZeroCopy {
            return at;
        }
        let slot = self.staging[&staging].slot(SlotId(index)).unwrap();
        slot.copy_from(&self.frame(at));
        let offset = u64::from(index) * u64::from(FRAME_BYTES);
        PagePlace { part: PagePlace::STAGING, offset }
    }

    fn offer(&mut self, offer: &Offer<'_>) -> Reply {
        let keys = offer.keys.as_slice().to_vec();
        let (first, parent, stamp) = (offer.first, offer.parent, offer.stamp);
        let mut slots = Vec::new();
        let mut outcomes = Vec::new();
        for key in &keys {
            let outcome = if self.pages.contains_key(key) {
                OfferOutcome::Held
            } else if self.offered.values().any(|offered| offered == key) {
                OfferOutcome::Coming
            } else if let Some(slot) = self.free.pop() {
                self.offered.insert(slot, *key);
                slots.push(slot);
                OfferOutcome::Wanted
            } else {
                OfferOutcome::NoCredit
            };
            outcomes.push(outcome.to_byte());
        }
        self.offers.push(Offered { first, parent, keys, stamp });
        Reply::Offer(OfferReply { offer: OfferId(self.offers.len() as u64), outcomes, slots })
    }

    fn commit(&mut self, peer: &Peer, commit: &Commit) -> Reply {
        let session = self.session_of[&peer.number];
        let mut outcomes = Vec::new();
        for slot in &commit.filled {
            let outcome = match self.offered.remove(slot) {
                None => CommitOutcome::Invalid,
                Some(key) => {
                    let place = self.new_frame(PartId(3), key);
                    let from = self.staging[&(session, commit.space)].slot(*slot).unwrap();
                    let _sum = copy_checked(&from, &self.frame(place));
                    self.free.push(*slot);
                    CommitOutcome::Stored
                }
            };
            outcomes.push(outcome.to_byte());
        }
        for slot in &commit.returned {
            assert!(self.offered.remove(slot).is_some(), "a slot that was not given is returned");
            self.free.push(*slot);
            self.returned.push(*slot);
        }
        self.commits.push(commit.filled.len());
        Reply::Commit(CommitReply { offer: commit.offer, outcomes })
    }
}

fn part(id: PartId) -> Part {
    let options = PartOptions { huge: HugePages::Off, ..PartOptions::default() };
    Part::create(id, PART_BYTES, &options).unwrap().0
}

/// A refusal as an answer.
pub(crate) fn refused(reason: RefusedReason) -> Reply {
    Reply::Refused(Refused { reason, detail: "as the test wants".into() })
}
