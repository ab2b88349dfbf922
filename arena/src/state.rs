//! What the daemon remembers across its own death: which pages lie in which frames of which parts,
//! and who leases them.
//!
//! The layout is in `docs/state-format.md`.

mod claim;
mod error;
mod frames;
mod header;
mod layout;
mod leases;
mod places;
mod rows;
mod table;
mod words;

#[cfg(test)]
mod tests;

pub use error::{StateError, Unkept};
pub use layout::StateLimits;
pub use rows::{FrameRow, LeaseRow, PageRow, PartRow, SessionRow, SlabRow, SpaceRow};

use crate::mapping::Mapping;
use crate::memory::usable_bytes;
use crate::{ArenaError, memfd};
use claim::Claim;
use header::{CLEAN, Counter, DEVICES, FORM_BYTES, FORM_WORDS, Form};
use layout::Layout;
use leases::Holders;
use places::Places;
use rows::{CutRow, RETIRING};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use table::Table;
use undercroft_wire::{Epoch, PageKey, PartId, PurgeId, SessionId, SpaceId, Stamp};
use words::Words;

/// No count of starts, sessions or stamps comes near it.
const BEYOND: u64 = 1 << 62;

/// The state file: a memfd of the daemon alone, never handed out.
///
/// Its methods are named for what happened in the core, and are stores into a mapping: when one
/// returns, a daemon that adopts the file after this one was killed finds it so. Killed in the
/// middle of one, it finds each row as it was before or as it is after, or not at all.
#[derive(Debug)]
pub struct State {
    words: Words,
    /// Sole right to write it; `None` once it was handed over.
    claim: Option<Claim>,
    layout: Layout,
    form: Form,
    parts: Table<16, PartRow>,
    spaces: Table<16, SpaceRow>,
    slabs: Table<8, CutRow>,
    sessions: Table<8, SessionRow>,
    leases: Table<8, LeaseRow>,
    places: Places,
    space_rows: HashMap<SpaceId, u32>,
    holders: Holders,
    odd: u64,
    was_clean: bool,
}

impl State {
    /// Makes an empty state file for an arena of this epoch.
    ///
    /// # Errors
    /// A limit out of range, or the system refuses.
    pub fn create(epoch: Epoch, limits: &StateLimits) -> Result<Self, StateError> {
        let layout = limits.layout()?;
        let fd = memfd::create(layout.bytes, false)?;
        let form = Form { epoch, limits: *limits };
        let claim = Claim::on(&fd)?;
        let state = Self::empty((map(fd, layout.bytes)?, Some(claim)), layout, form);
        for (at, word) in form.encode().into_iter().enumerate().rev() {
            // The magic last: a head that begins with it is whole.
            state.words.store(at, word);
        }
        state.raise(Counter::Starts, Some(1));
        state.raise(Counter::NextSession, Some(1));
        Ok(state)
    }

    /// Takes over the state file that an earlier daemon left behind. Rows that do not prove
    /// themselves, or that cannot be beside the others, are dropped and counted.
    ///
    /// # Errors
    /// Not a state file, one of another version or with a damaged head, one that could change its
    /// size, or one that another daemon writes; nothing of it was changed then.
    pub fn adopt(fd: OwnedFd) -> Result<Self, StateError> {
        let form = read_form(&fd)?;
        let layout = form.limits.layout()?;
        // Sealed and as long as its head says: no access to the mapping can fault.
        memfd::check(&fd, layout.bytes)?;
        let claim = Claim::on(&fd)?;
        let mut state = Self::empty((map(fd, layout.bytes)?, Some(claim)), layout, form);
        state.read_parts();
        state.read_spaces();
        state.read_slabs();
        state.read_holders();
        state.was_clean = state.words.load(CLEAN) == 1;
        state.words.store(CLEAN, 0);
        state.raise(Counter::Starts, state.starts().checked_add(1));
        Ok(state)
    }

    /// A new file that holds all that this one does, and has room for as much as `limits` allow
    /// besides.
    ///
    /// # Errors
    /// A limit out of range, or the system refuses. This file is as it was.
    pub fn widened(&self, limits: &StateLimits) -> Result<Self, StateError> {
        let mut wide = Self::create(self.epoch(), &self.limits().with(limits))?;
        for counter in Counter::ALL {
            wide.raise(counter, Some(self.get(counter)));
        }
        wide.words.store(DEVICES, self.words.load(DEVICES));
        wide.was_clean = self.was_clean;
        wide.odd = self.odd;
        // Rows that were taken in here are taken in there: nothing about them has changed.
        for part in self.parts() {
            let _taken = wide.part_added(&part);
            if part.retiring {
                let _taken = wide.part_retiring(part.part);
            }
        }
        for space in self.spaces() {
            let _taken = wide.space(&space);
        }
        for slab in self.slabs() {
            let _taken = wide.slab(&slab);
        }
        for FrameRow { part, offset, page, .. } in self.frames() {
            let _taken = match page {
                Some(page) => wide.filled(part, offset, &page),
                None => wide.filling(part, offset),
            };
        }
        for session in self.sessions() {
            let _taken = wide.session(&session);
        }
        for LeaseRow { session, lease, index, part, offset, .. } in self.leased_pages() {
            let _taken = wide.leased(session, lease, index, part, offset);
        }
        Ok(wide)
    }

    fn empty((words, claim): (Words, Option<Claim>), layout: Layout, form: Form) -> Self {
        Self {
            claim,
            parts: Table::new(layout.parts),
            spaces: Table::new(layout.spaces),
            slabs: Table::new(layout.slabs),
            sessions: Table::new(layout.sessions),
            leases: Table::new(layout.leases),
            places: Places::default(),
            space_rows: HashMap::new(),
            holders: Holders::default(),
            odd: 0,
            was_clean: false,
            words,
            layout,
            form,
        }
    }

    fn read_parts(&mut self) {
        let (words, places) = (&self.words, &mut self.places);
        let most = self.form.limits.max_part_bytes;
        let (table, odd) = Table::adopt(self.layout.parts, words, |row, part: &PartRow| {
            part.bytes > 0 && part.bytes <= most && places.add_part(part, row)
        });
        self.parts = table;
        self.odd += odd;
        let next = self.places.parts().map(|part| u64::from(part.part.0) + 1).max();
        self.raise(Counter::NextPart, next);
    }

    fn read_spaces(&mut self) {
        let known = &mut self.space_rows;
        let (table, odd) =
            Table::adopt(self.layout.spaces, &self.words, |row, space: &SpaceRow| {
                // Of two rows of one number the first stays, and is the one that is known.
                let is_first = !known.contains_key(&space.space);
                if is_first {
                    known.insert(space.space, row);
                }
                is_first
            });
        self.spaces = table;
        self.odd += odd;
    }

    fn read_slabs(&mut self) {
        let (layout, places) = (&self.layout, &mut self.places);
        let (table, odd) = Table::adopt(layout.slabs, &self.words, |row, cut: &CutRow| {
            let fits = places.fits(&cut.slab).is_ok();
            if fits {
                places.add_slab(layout, &cut.slab, row, cut.cut);
            }
            fits
        });
        self.slabs = table;
        self.odd += odd;
        let next = self.places.slabs().map(|slab| u64::from(slab.cut) + 1).max();
        self.raise(Counter::NextCut, next);
    }

    fn read_holders(&mut self) {
        let (words, holders) = (&self.words, &mut self.holders);
        let mut last = 0;
        let (sessions, odd) =
            Table::adopt(self.layout.sessions, words, |row, session: &SessionRow| {
                last = last.max(session.session.0);
                holders.add(session.session, row)
            });
        let (leases, lost) = Table::adopt(self.layout.leases, words, |row, page: &LeaseRow| {
            holders.lease(page, row)
        });
        self.sessions = sessions;
        self.leases = leases;
        self.odd += odd + lost;
        self.raise(Counter::NextSession, last.checked_add(1));
    }

    /// Of its two copies the larger: a number that is skipped does no harm, one that is taken
    /// twice does. One that nothing can have counted up to is none: each copy changes alone, so
    /// that no checksum covers it.
    fn get(&self, counter: Counter) -> u64 {
        let copies = counter.places().map(|at| self.words.load(at));
        copies.into_iter().filter(|copy| *copy < BEYOND).max().unwrap_or(0)
    }

    fn raise(&self, counter: Counter, least: Option<u64>) {
        let value = self.get(counter).max(least.unwrap_or(0));
        for at in counter.places() {
            self.words.store(at, value);
        }
    }
}

/// Numbers and facts about the file itself.
impl State {
    /// For the descriptor store.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.words.fd().as_fd()
    }

    /// The arena's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.form.epoch
    }

    /// The bounds it was created with.
    #[must_use]
    pub fn limits(&self) -> StateLimits {
        self.form.limits
    }

    /// Rows that were dropped when it was adopted: neither this build nor a kill leaves any.
    #[must_use]
    pub fn odd(&self) -> u64 {
        self.odd
    }

    /// Whether the daemon before this one had [`State::finish`]ed.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// The daemon ends in order: nothing will change any more.
    pub fn finish(&mut self) {
        self.words.store(CLEAN, 1);
    }

    /// The daemon reads from the devices that `name` stands for, 0 for none. Returns the ones of the
    /// daemon before: what that one had under way may still come from them.
    pub fn replace_devices(&mut self, name: u64) -> u64 {
        let before = self.words.load(DEVICES);
        self.words.store(DEVICES, name);
        before
    }

    /// Another daemon may adopt it from here on, while this process still lives. Whoever calls
    /// this changes nothing more, in the file or in the arena it speaks of.
    pub fn let_go(&mut self) {
        self.claim = None;
    }

    /// How often it was created or adopted, this time included.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.get(Counter::Starts)
    }

    /// The first session number that was never taken.
    #[must_use]
    pub fn next_session(&self) -> SessionId {
        SessionId(self.get(Counter::NextSession))
    }

    /// Session numbers below `next` are taken.
    pub fn set_next_session(&mut self, next: SessionId) {
        self.raise(Counter::NextSession, Some(next.0));
    }

    /// The first part number that was never taken; `None`: there is none left.
    #[must_use]
    pub fn next_part(&self) -> Option<PartId> {
        u32::try_from(self.get(Counter::NextPart)).ok().map(PartId)
    }

    /// Part numbers below `next` are taken. Adding a part says so of itself.
    pub fn set_next_part(&mut self, next: PartId) {
        self.raise(Counter::NextPart, Some(next.0.into()));
    }

    /// The first stamp that was never promised.
    #[must_use]
    pub fn next_stamp(&self) -> Stamp {
        Stamp(self.get(Counter::NextStamp))
    }

    /// Stamps below `next` may be given out. A daemon takes a block of them at a time.
    pub fn set_next_stamp(&mut self, next: Stamp) {
        self.raise(Counter::NextStamp, Some(next.0));
    }

    /// The newest purge up to which all were over: no page that one of them means is here.
    #[must_use]
    pub fn newest_purge(&self) -> PurgeId {
        PurgeId(u32::try_from(self.get(Counter::Purged)).unwrap_or(u32::MAX))
    }

    /// All purges up to this one are over.
    pub fn set_newest_purge(&mut self, newest: PurgeId) {
        self.raise(Counter::Purged, Some(newest.0.into()));
    }
}

/// Parts, spaces and slabs.
impl State {
    /// A part is there.
    ///
    /// # Errors
    /// No room for one more or for one so large, or one of that number is there.
    pub fn part_added(&mut self, part: &PartRow) -> Result<(), Unkept> {
        let limit = self.form.limits.max_part_bytes;
        if part.bytes > limit {
            return Err(Unkept::Full { table: "frames of a part, bytes of it", limit });
        }
        if part.bytes == 0 || self.places.part(part.part).is_some() {
            return Err(Unkept::Conflict { what: "part", why: "it is empty or its number taken" });
        }
        self.raise(Counter::NextPart, Some(u64::from(part.part.0) + 1));
        let row = self.parts.put(&self.words, part)?;
        self.places.add_part(part, row);
        Ok(())
    }

    /// Nothing new is placed in the part.
    ///
    /// # Errors
    /// It is not known.
    pub fn part_retiring(&mut self, part: PartId) -> Result<(), Unkept> {
        let place = self.places.part(part).ok_or(Unkept::Unknown { what: "part" })?;
        self.parts.mark(&self.words, place.row, RETIRING);
        Ok(())
    }

    /// The part is no more, and its slabs with it: the memory of its rows goes back to the
    /// system. One that is not known is none already.
    pub fn part_gone(&mut self, part: PartId) {
        let Some(place) = self.places.remove_part(part) else { return };
        for slab in place.slabs() {
            self.slabs.clear(&self.words, slab.row);
        }
        self.parts.clear(&self.words, place.row);
        let at = self.layout.frames_at + place.row as usize * self.layout.part_words;
        self.words.give_back(at..at + self.layout.part_words);
    }

    /// Every part, by number.
    pub fn parts(&self) -> impl Iterator<Item = PartRow> + '_ {
        self.places.parts().filter_map(|place| self.parts.get(&self.words, place.row))
    }

    /// A space has a number.
    ///
    /// # Errors
    /// No room for one more, or the number is taken.
    pub fn space(&mut self, space: &SpaceRow) -> Result<(), Unkept> {
        if space.page_bytes == 0 || self.space_rows.contains_key(&space.space) {
            return Err(Unkept::Conflict { what: "space", why: "its number is taken" });
        }
        let row = self.spaces.put(&self.words, space)?;
        self.space_rows.insert(space.space, row);
        Ok(())
    }

    /// A space's clients have told what their hash makes of the probe prefix.
    ///
    /// # Errors
    /// The space is not known.
    pub fn space_probed(&mut self, space: SpaceId, probe: PageKey) -> Result<(), Unkept> {
        let known = self.space_rows.get(&space).copied();
        let found = known.and_then(|row| Some((row, self.spaces.get(&self.words, row)?)));
        let Some((before, row)) = found else {
            return Err(Unkept::Conflict { what: "space's probe", why: "it is not known" });
        };
        // Who dies in between leaves none, which costs its pages in DRAM. It is told once in its life.
        self.spaces.clear(&self.words, before);
        let after = self.spaces.put(&self.words, &SpaceRow { probe: Some(probe), ..row })?;
        self.space_rows.insert(space, after);
        Ok(())
    }

    /// The space's number means nothing any more.
    pub fn space_gone(&mut self, space: SpaceId) {
        if let Some(row) = self.space_rows.remove(&space) {
            self.spaces.clear(&self.words, row);
        }
    }

    /// Every space, in no order.
    pub fn spaces(&self) -> impl Iterator<Item = SpaceRow> + '_ {
        self.space_rows.values().filter_map(|row| self.spaces.get(&self.words, *row))
    }

    /// A slab was cut; all its frames are free.
    ///
    /// # Errors
    /// No room for one more, or it is not inside its part or over another one.
    pub fn slab(&mut self, slab: &SlabRow) -> Result<(), Unkept> {
        let conflict = |why| Unkept::Conflict { what: "slab", why };
        self.places.fits(slab).map_err(conflict)?;
        // Of slabs of one place, no two have the same number: rows of an earlier one mean nothing.
        let cut = self.get(Counter::NextCut).max(1);
        let number = u32::try_from(cut).map_err(|_| conflict("all numbers of cuts are taken"))?;
        self.raise(Counter::NextCut, Some(cut + 1));
        let row = self.slabs.put(&self.words, &CutRow { slab: *slab, cut: number })?;
        self.places.add_slab(&self.layout, slab, row, number);
        Ok(())
    }

    /// The slab that starts there is no more. One that is not known is none already.
    pub fn slab_gone(&mut self, part: PartId, offset: u64) {
        if let Some(slab) = self.places.remove_slab(part, offset) {
            self.slabs.clear(&self.words, slab.row);
            self.words.give_back(slab.words());
        }
    }

    /// Every slab, by part and offset.
    pub fn slabs(&self) -> impl Iterator<Item = SlabRow> + '_ {
        self.places.slabs().map(places::SlabPlace::slab)
    }
}

fn map(fd: OwnedFd, bytes: u64) -> Result<Words, StateError> {
    let len = usable_bytes("state file", bytes)?;
    let mapping = Mapping::shared(fd.as_fd(), len, true)
        .map_err(ArenaError::system("map the state file", bytes))?;
    // It holds keys.
    mapping.keep_out_of_dumps().map_err(ArenaError::system("keep keys out of dumps", bytes))?;
    // Huge pages would make a few rows cost as much as many. Where there are none they cannot be
    // forbidden either.
    let _no_huge_pages = mapping.forbid_huge();
    Ok(Words::new(mapping, fd))
}

/// Reads the head without mapping it: of a file that may be anything.
fn read_form(fd: &OwnedFd) -> Result<Form, StateError> {
    if !memfd::is_tmpfs(fd) {
        // Of reserved huge pages a hole would be a fault.
        return Err(StateError::NotState { what: "it is not ordinary shared memory" });
    }
    let mut bytes = [0; FORM_BYTES];
    let read = rustix::io::pread(fd, &mut bytes, 0)
        .map_err(ArenaError::system("read the state file", FORM_BYTES as u64))?;
    if read < FORM_BYTES {
        return Err(StateError::NotState { what: "it is too short for a head" });
    }
    Form::decode(&rows::words_of::<FORM_WORDS>(&bytes))
}
