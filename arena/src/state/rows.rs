//! What the rows hold, and how it is laid out in words.

use super::words::EMPTY;
use crate::FileId;
use crate::sum::checksum_bytes;
use undercroft_wire::{DomainId, LeaseId, PageKey, PartId, SessionId, SpaceDigest, SpaceId};

/// A part of the arena, as the state file remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartRow {
    /// Its number.
    pub part: PartId,
    /// Whose it is.
    pub domain: DomainId,
    /// Its size, bytes.
    pub bytes: u64,
    /// Where its generations start on the domain's board, bytes.
    pub board_offset: u64,
    /// Which file it is, so that another one is not taken for it.
    pub file: FileId,
    /// Whether nothing new is placed in it.
    pub retiring: bool,
}

/// A space, as the state file remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceRow {
    /// Its number.
    pub space: SpaceId,
    /// Whose it is.
    pub domain: DomainId,
    /// What it is.
    pub digest: SpaceDigest,
    /// Bytes of its pages.
    pub page_bytes: u32,
    /// What its clients' hash makes of the probe prefix, if any has told.
    pub probe: Option<PageKey>,
}

/// A slab, as the state file remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlabRow {
    /// The part it was cut from.
    pub part: PartId,
    /// Where it starts there, bytes.
    pub offset: u64,
    /// Its size, bytes.
    pub bytes: u64,
    /// Bytes of its frames.
    pub frame_bytes: u32,
}

/// A session, as the state file remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRow {
    /// Its number.
    pub session: SessionId,
    /// Its process.
    pub pid: u32,
    /// When that started, clock ticks since boot: with the pid it names the process.
    pub started: u64,
    /// Its domain.
    pub domain: DomainId,
}

/// A page in a lease, as the state file remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRow {
    /// Whose lease.
    pub session: SessionId,
    /// Which of its leases.
    pub lease: LeaseId,
    /// Which page of the lease.
    pub index: u32,
    /// The part its frame lies in.
    pub part: PartId,
    /// Where the frame starts there, bytes.
    pub offset: u64,
    /// The frame's generation when it was leased.
    pub generation: u32,
}

/// A page in a frame, as the state file remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRow {
    /// Its space.
    pub space: SpaceId,
    /// Its key.
    pub key: PageKey,
    /// The key of the page before it; `None` for the first of a chain.
    pub parent: Option<PageKey>,
    /// How many pages come before it in its chain.
    pub depth: u32,
    /// CRC-64/NVME of its bytes.
    pub crc: u64,
    /// How dear it is to whoever chooses what leaves.
    pub heat: u64,
    /// The frame's generation.
    pub generation: u32,
    /// The user whose process stored it.
    pub writer: u32,
    /// When it was stored, seconds since 1970; 0: not known.
    pub born: u32,
    /// It was purged, and is there only because somebody uses its frame.
    pub purged: bool,
}

/// A frame that is not free, as the state file remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRow {
    /// The part it lies in.
    pub part: PartId,
    /// Where it starts there, bytes.
    pub offset: u64,
    /// Its size, bytes.
    pub frame_bytes: u32,
    /// The page in it; `None`: it was being filled, and its bytes mean nothing.
    pub page: Option<PageRow>,
}

/// Which table a row belongs to: bound into its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum TableId {
    Parts = 1,
    Spaces = 2,
    Slabs = 3,
    Sessions = 4,
    Leases = 5,
    Frames = 6,
}

/// The state word of a row that holds something.
pub(super) const TAKEN: u64 = 1;
/// The state word of a part in which nothing new is placed.
pub(super) const RETIRING: u64 = 2;

/// A row of `N` words: its state, what it holds, its checksum.
pub(super) trait Row<const N: usize>: Sized {
    const TABLE: TableId;
    /// Its name, for people.
    const NAME: &'static str;
    fn encode(&self) -> [u64; N];
    /// `None` where a value cannot be. The checksum was found right before.
    fn decode(words: &[u64; N]) -> Option<Self>;
}

/// The row with its checksum, for the place `row` of its table.
pub(super) fn sealed<const N: usize, R: Row<N>>(value: &R, row: u32) -> [u64; N] {
    let mut words = value.encode();
    words[N - 1] = row_check(R::TABLE, row, &words);
    words
}

/// What `words` say, or `None` for a row that is empty or not what was written there.
pub(super) fn opened<const N: usize, R: Row<N>>(words: &[u64; N], row: u32) -> Option<R> {
    let whole = words[0] != EMPTY && words[N - 1] == row_check(R::TABLE, row, words);
    if whole { R::decode(words) } else { None }
}

/// The state word is not covered: it may change alone. In its place is the row's.
fn row_check<const N: usize>(table: TableId, row: u32, words: &[u64; N]) -> u64 {
    let mut covered = [0; 16];
    covered[1..N - 1].copy_from_slice(&words[1..N - 1]);
    covered[0] = pair(table as u32, row);
    check(covered)
}

/// CRC-64/NVME of 16 words: for as many it takes half the time that it takes for fewer.
pub(super) fn check(words: [u64; 16]) -> u64 {
    checksum_bytes(words.map(u64::to_le_bytes).as_flattened())
}

pub(super) fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

pub(super) fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// `M` words of the `8 × M` bytes.
pub(super) fn words_of<const M: usize>(bytes: &[u8]) -> [u64; M] {
    let mut words = [0; M];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    words
}

/// `M` bytes of the words that [`words_of`] made.
pub(super) fn bytes_of<const M: usize>(words: &[u64]) -> [u8; M] {
    let mut bytes = [0; M];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.to_le_bytes();
    }
    bytes
}

impl Row<16> for PartRow {
    const TABLE: TableId = TableId::Parts;
    const NAME: &'static str = "parts";

    fn encode(&self) -> [u64; 16] {
        let mut words = [0; 16];
        words[0] = if self.retiring { RETIRING } else { TAKEN };
        words[1] = self.part.0.into();
        words[2..4].copy_from_slice(&words_of::<2>(&self.domain.0));
        words[4..8].copy_from_slice(&[
            self.bytes,
            self.board_offset,
            self.file.device,
            self.file.inode,
        ]);
        words
    }

    fn decode(words: &[u64; 16]) -> Option<Self> {
        let retiring = match words[0] {
            TAKEN => false,
            RETIRING => true,
            _ => return None,
        };
        Some(Self {
            part: PartId(u32::try_from(words[1]).ok()?),
            domain: DomainId(bytes_of(&words[2..4])),
            bytes: words[4],
            board_offset: words[5],
            file: FileId { device: words[6], inode: words[7] },
            retiring,
        })
    }
}

impl Row<16> for SpaceRow {
    const TABLE: TableId = TableId::Spaces;
    const NAME: &'static str = "spaces";

    fn encode(&self) -> [u64; 16] {
        let mut words = [0; 16];
        words[0] = TAKEN;
        words[1] = pair(self.space.0, self.page_bytes);
        words[2..4].copy_from_slice(&words_of::<2>(&self.domain.0));
        words[4..8].copy_from_slice(&words_of::<4>(&self.digest.0));
        if let Some(probe) = &self.probe {
            words[8] = 1;
            words[9..13].copy_from_slice(&words_of::<4>(&probe.0));
        }
        words
    }

    fn decode(words: &[u64; 16]) -> Option<Self> {
        let (space, page_bytes) = halves(words[1]);
        (words[0] == TAKEN && page_bytes > 0).then(|| Self {
            space: SpaceId(space),
            domain: DomainId(bytes_of(&words[2..4])),
            digest: SpaceDigest(bytes_of(&words[4..8])),
            page_bytes,
            probe: (words[8] == 1).then(|| PageKey(bytes_of(&words[9..13]))),
        })
    }
}

/// A slab and which of all cuts made it: rows of its frames name that cut, so that what an earlier
/// slab left in the same place is not taken for theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CutRow {
    pub(super) slab: SlabRow,
    pub(super) cut: u32,
}

impl Row<8> for CutRow {
    const TABLE: TableId = TableId::Slabs;
    const NAME: &'static str = "slabs";

    fn encode(&self) -> [u64; 8] {
        let slab = &self.slab;
        let place = pair(slab.part.0, slab.frame_bytes);
        [TAKEN, place, slab.offset, slab.bytes, self.cut.into(), 0, 0, 0]
    }

    fn decode(words: &[u64; 8]) -> Option<Self> {
        let (part, frame_bytes) = halves(words[1]);
        let cut = u32::try_from(words[4]).ok()?;
        let [_, _, offset, bytes, ..] = *words;
        (words[0] == TAKEN && cut > 0).then_some(Self {
            slab: SlabRow { part: PartId(part), offset, bytes, frame_bytes },
            cut,
        })
    }
}

impl Row<8> for SessionRow {
    const TABLE: TableId = TableId::Sessions;
    const NAME: &'static str = "sessions";

    fn encode(&self) -> [u64; 8] {
        let [low, high] = words_of::<2>(&self.domain.0);
        [TAKEN, self.session.0, self.pid.into(), self.started, low, high, 0, 0]
    }

    fn decode(words: &[u64; 8]) -> Option<Self> {
        let pid = u32::try_from(words[2]).ok()?;
        (words[0] == TAKEN).then(|| Self {
            session: SessionId(words[1]),
            pid,
            started: words[3],
            domain: DomainId(bytes_of(&words[4..6])),
        })
    }
}

impl Row<8> for LeaseRow {
    const TABLE: TableId = TableId::Leases;
    const NAME: &'static str = "leased pages";

    fn encode(&self) -> [u64; 8] {
        let page = pair(self.index, self.part.0);
        let generation = self.generation.into();
        [TAKEN, self.session.0, self.lease.0, page, self.offset, generation, 0, 0]
    }

    fn decode(words: &[u64; 8]) -> Option<Self> {
        let (index, part) = halves(words[3]);
        let generation = u32::try_from(words[5]).ok()?;
        (words[0] == TAKEN).then(|| Self {
            session: SessionId(words[1]),
            lease: LeaseId(words[2]),
            index,
            part: PartId(part),
            offset: words[4],
            generation,
        })
    }
}
