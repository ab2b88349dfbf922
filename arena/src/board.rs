use crate::mapping::Mapping;
use crate::memory::usable_bytes;
use crate::shared_file::{SharedFile, check_received};
use crate::{ArenaError, Backing, checksum_bytes};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use undercroft_wire::Epoch;

mod firsts;

use firsts::Firsts;

/// `UCBOARD` and a zero byte.
const MAGIC: u64 = u64::from_le_bytes(*b"UCBOARD\0");
const VERSION: u64 = 2;
/// The version before: without the table of first pages.
const VERSION_BEFORE: u64 = 1;
/// Words of the head that never change, the last of them their CRC.
const FORM_WORDS: usize = 5;
/// The word that counts beats.
const BEATS: usize = 8;
/// The word that says what the daemon does.
const DOING: usize = 9;
/// Where the generations begin, bytes.
const HEAD_BYTES: u64 = 4096;
/// The unit of the arena that has a generation, bytes.
const UNIT_BYTES: u64 = undercroft_wire::FRAME_ALIGN as u64;
const GENERATION_BYTES: u64 = size_of::<u32>() as u64;
/// As much of the arena as one board is for, at most.
const MAX_ARENA_BYTES: u64 = 1 << 46;

/// What the daemon does, as its board says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum DaemonState {
    /// It answers.
    Serving = 1,
    /// It ends, to be started again: who waits for it may stop waiting.
    Stopping = 2,
}

/// What the daemon tells the clients of one domain without being asked: that it lives, and for
/// each 4 KiB of the domain's arena a generation that grows whenever its bytes stop meaning what
/// they meant. And which pages chains may begin with, so that nobody need ask for others. Clients
/// read it and cannot write it.
///
/// A reader that took a generation before it copied a page's bytes, and finds the same one
/// afterwards, copied the bytes of that page.
#[derive(Debug)]
pub struct Board {
    file: SharedFile,
    mapping: Mapping,
    form: Form,
    /// Places that parts have, by where they start: how long they are. Both bytes of the board.
    taken: BTreeMap<u64, u64>,
}

/// A board as a client sees it.
#[derive(Debug)]
pub struct BoardView {
    mapping: Mapping,
    form: Form,
}

/// What a board's head says of it, once for all.
#[derive(Debug, Clone, Copy)]
struct Form {
    epoch: Epoch,
    /// Where the generations end, bytes.
    places_end: u64,
    /// The table of first pages, behind the generations.
    firsts: Option<Firsts>,
    /// The length of the file.
    bytes: u64,
}

impl Board {
    /// Makes a board for up to `arena_bytes` bytes of arena at a time, of this epoch.
    ///
    /// # Errors
    /// No bytes, or the system refuses.
    pub fn create(epoch: Epoch, arena_bytes: u64) -> Result<Self, ArenaError> {
        Self::create_in(&Backing::memfd(), epoch, arena_bytes)
    }

    /// As [`Board::create`], where `backing` says.
    ///
    /// # Errors
    /// No bytes, or more than the backing gives.
    pub fn create_in(
        backing: &Backing,
        epoch: Epoch,
        arena_bytes: u64,
    ) -> Result<Self, ArenaError> {
        let form = Form::of(VERSION, epoch, arena_bytes)?;
        let board = Self::map(backing.create(form.bytes, false, true)?, form)?;
        let words = board.mapping.words();
        for (word, value) in words.iter().zip(form_words(VERSION, epoch, arena_bytes)) {
            word.store(value, Ordering::Relaxed);
        }
        board.serve();
        Ok(board)
    }

    /// Takes over a board that an earlier daemon left: what its [`Board::fd`] and
    /// [`Board::read_only_fd`] were. Every generation is as it was, its parts' places are free
    /// until they are taken with [`Board::take`], and nothing is known of first pages.
    ///
    /// # Errors
    /// Not a board, or one of another version, size or without protection.
    pub fn adopt(fd: OwnedFd, read_only: Option<OwnedFd>) -> Result<Self, ArenaError> {
        let form = read_form(&fd)?;
        let (file, _) = SharedFile::adopt(fd, read_only, form.bytes)?;
        let board = Self::map(file, form)?;
        board.forget_firsts();
        board.serve();
        Ok(board)
    }

    fn map(file: SharedFile, form: Form) -> Result<Self, ArenaError> {
        let mapping = Mapping::shared(file.fd(), usable_bytes("board", form.bytes)?, true)
            .map_err(ArenaError::system("map a board", form.bytes))?;
        let _dumped = mapping.keep_out_of_dumps();
        // One generation of a large frame is not worth a huge page.
        let _no_huge_pages = mapping.forbid_huge();
        Ok(Self { file, mapping, form, taken: BTreeMap::new() })
    }

    fn serve(&self) {
        self.mapping.words()[DOING].store(DaemonState::Serving as u64, Ordering::Release);
    }

    /// For the descriptor store.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.fd()
    }

    /// What clients are given.
    ///
    /// # Errors
    /// `/proc` is not there, or the process is out of descriptors.
    pub fn read_only_fd(&self) -> Result<OwnedFd, ArenaError> {
        self.file.read_only_fd()
    }

    /// Whether nobody but the daemon can open it for writing, whatever his rights over files.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.file.is_protected()
    }

    /// Its length, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The arena's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.form.epoch
    }

    /// A place for the generations of a part of `part_bytes` bytes: where it starts on the board,
    /// bytes; `None`: there is no room. What stands there may be anything.
    pub fn place(&mut self, part_bytes: u64) -> Option<u64> {
        let len = place_bytes(part_bytes)?;
        let mut start = HEAD_BYTES;
        for (taken, taken_len) in &self.taken {
            if taken - start >= len {
                break;
            }
            start = taken + taken_len;
        }
        (start + len <= self.form.places_end).then(|| {
            self.taken.insert(start, len);
            start
        })
    }

    /// The place of a part that was adopted. `false` if it cannot be: not on the board, or taken.
    #[must_use]
    pub fn take(&mut self, board_offset: u64, part_bytes: u64) -> bool {
        let end = place_bytes(part_bytes).and_then(|len| board_offset.checked_add(len));
        let inside = end.is_some_and(|end| end <= self.form.places_end);
        let aligned = board_offset >= HEAD_BYTES && board_offset.is_multiple_of(GENERATION_BYTES);
        let (Some(end), true, true) = (end, inside, aligned) else { return false };
        let before = self.taken.range(..end).next_back();
        let free = before.is_none_or(|(start, len)| start + len <= board_offset);
        if free {
            self.taken.insert(board_offset, end - board_offset);
        }
        free
    }

    /// The part is no more; another one may have its place.
    pub fn let_go(&mut self, board_offset: u64) {
        self.taken.remove(&board_offset);
    }

    /// The bytes from `offset` on in the part with this place mean something else from now on.
    /// Must be called before they change. Returns the new generation.
    ///
    /// # Panics
    /// A place that is not on the board.
    pub fn raise(&self, board_offset: u64, offset: u64) -> u32 {
        let at = generation_at(board_offset, offset).expect("a place and an offset inside it");
        let raised = self.mapping.half_words()[at].fetch_add(1, Ordering::AcqRel);
        // Whoever sees a byte that is written after this sees the new generation too.
        fence(Ordering::Release);
        raised.wrapping_add(1)
    }

    /// The generation of the bytes from `offset` on in the part with this place.
    ///
    /// # Panics
    /// A place that is not on the board.
    #[must_use]
    pub fn generation(&self, board_offset: u64, offset: u64) -> u32 {
        let at = generation_at(board_offset, offset).expect("a place and an offset inside it");
        self.mapping.half_words()[at].load(Ordering::Relaxed)
    }

    /// The daemon lives.
    pub fn beat(&self) {
        self.mapping.words()[BEATS].fetch_add(1, Ordering::Release);
    }

    /// The daemon ends.
    pub fn stop(&self) {
        self.mapping.words()[DOING].store(DaemonState::Stopping as u64, Ordering::Release);
    }
}

impl BoardView {
    /// Maps a board that was received as `fd`. The descriptor is not needed afterwards.
    ///
    /// # Errors
    /// Not a board, one of another version or size, or one that could shrink under the mapping.
    pub fn map(fd: impl AsFd) -> Result<Self, ArenaError> {
        let form = read_form(&fd)?;
        check_received(&fd, form.bytes)?;
        let mapping = Mapping::shared(fd.as_fd(), usable_bytes("board", form.bytes)?, false)
            .map_err(ArenaError::system("map a board", form.bytes))?;
        // The engine's core dumps are not ours to fail over.
        let _dumped = mapping.keep_out_of_dumps();
        if let Some(firsts) = form.firsts {
            firsts.prepare(&mapping);
        }
        Ok(Self { mapping, form })
    }

    /// The arena's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.form.epoch
    }

    /// How often the daemon said that it lives.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        load(&self.mapping.words()[BEATS])
    }

    /// What the daemon does, as far as it could say so.
    #[must_use]
    pub fn state(&self) -> DaemonState {
        match load(&self.mapping.words()[DOING]) {
            found if found == DaemonState::Serving as u64 => DaemonState::Serving,
            _ => DaemonState::Stopping,
        }
    }

    /// The generation of the bytes from `offset` on in the part with this place, or `None` for a
    /// place that is not on the board. Everything read before the call was read before it.
    #[must_use]
    pub fn generation(&self, board_offset: u64, offset: u64) -> Option<u32> {
        let at = generation_at(board_offset, offset)?;
        let places = self.form.places_end / GENERATION_BYTES;
        let generation = self.mapping.half_words().get(at).filter(|_| (at as u64) < places)?;
        // What was copied was copied before the generation is looked at.
        fence(Ordering::Acquire);
        let found = load_half(generation);
        Some(found)
    }
}

/// Memory that this process cannot write may be loaded only so.
fn load(word: &AtomicU64) -> u64 {
    let value = word.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    value
}

fn load_half(word: &AtomicU32) -> u32 {
    let value = word.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    value
}

impl Form {
    /// That of a board for this much arena.
    fn of(version: u64, epoch: Epoch, arena_bytes: u64) -> Result<Self, ArenaError> {
        let generations = Some(arena_bytes).filter(|bytes| *bytes <= MAX_ARENA_BYTES);
        let len = generations.and_then(place_bytes).ok_or(ArenaError::Size {
            what: "arena of a board",
            found: arena_bytes,
            allowed: "1 byte to 64 TiB",
        })?;
        let places_end = (HEAD_BYTES + len).next_multiple_of(4096);
        if version == VERSION_BEFORE {
            return Ok(Self { epoch, places_end, firsts: None, bytes: places_end });
        }
        let firsts = Some(Firsts::at(usable_bytes("board", places_end)?));
        Ok(Self { epoch, places_end, firsts, bytes: places_end + firsts::BYTES })
    }
}

/// Bytes of the generations of a part: places begin and end at cache lines. `None`: no bytes, or
/// more than there can be.
fn place_bytes(part_bytes: u64) -> Option<u64> {
    let units = part_bytes.div_ceil(UNIT_BYTES);
    let bytes = units.checked_mul(GENERATION_BYTES)?.checked_next_multiple_of(64)?;
    (bytes > 0).then_some(bytes)
}

/// Which generation of the board is that of `offset`.
fn generation_at(board_offset: u64, offset: u64) -> Option<usize> {
    let first = board_offset.checked_sub(HEAD_BYTES)? + HEAD_BYTES;
    let at = (first / GENERATION_BYTES).checked_add(offset / UNIT_BYTES)?;
    usize::try_from(at).ok()
}

fn form_words(version: u64, epoch: Epoch, arena_bytes: u64) -> [u64; FORM_WORDS] {
    let mut words = [MAGIC, version, epoch.0, arena_bytes, 0];
    words[FORM_WORDS - 1] = form_check(&words);
    words
}

fn form_check(words: &[u64; FORM_WORDS]) -> u64 {
    let bytes = words.map(u64::to_le_bytes);
    checksum_bytes(bytes[..FORM_WORDS - 1].as_flattened())
}

/// Reads the head of a file that may be anything.
fn read_form(fd: impl AsFd) -> Result<Form, ArenaError> {
    let mut bytes = [[0; 8]; FORM_WORDS];
    let read = rustix::io::pread(fd, bytes.as_flattened_mut(), 0)
        .map_err(ArenaError::system("read a board", HEAD_BYTES))?;
    let words = bytes.map(u64::from_le_bytes);
    let whole = read == size_of_val(&bytes) && words[FORM_WORDS - 1] == form_check(&words);
    let [magic, version, epoch, arena_bytes, _] = words;
    if !whole || magic != MAGIC || ![VERSION, VERSION_BEFORE].contains(&version) {
        return Err(ArenaError::NotBoard);
    }
    Form::of(version, Epoch(epoch), arena_bytes)
}

#[cfg(test)]
mod tests;
