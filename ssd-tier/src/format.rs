//! The bytes on disk, version 2: `docs/disk-format.md` is the same in prose.
//!
//! Everything is little-endian and lies in blocks of 4 KiB that end with the CRC-64/NVME of the
//! bytes before. Decoding believes nothing: a block is either exactly what this version writes
//! or it is refused.

use crate::cipher::{Cipher, KEY_ID_STORE, NONCE_BYTES, SALT_BYTES, TAG_BYTES};
use crate::layout::Layout;
use crate::proof::{Proof, ProofKind};
use crate::seal::{UNPROVED_BYTES, Unproved};
use undercroft_arena::checksum_bytes;
use undercroft_wire::{
    DomainId, MAX_PAGE_BYTES, MIN_PAGE_BYTES, Origin, PageIdentity, PageKey, PurgeId, SegmentId,
    SegmentUse, SpaceDigest,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of everything on disk, bytes.
pub(crate) const BLOCK: u64 = 4096;
/// [`BLOCK`] where a length is counted in memory.
pub(crate) const BLOCK_LEN: usize = BLOCK as usize;
/// The version this build writes and the only one it reads.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// Records one table block names.
pub(crate) const ENTRIES_PER_TABLE: usize = 23;

/// Generations of superblocks, and of the openings that uses of segments are numbered by, are
/// smaller: they have half a word.
const LAST_GENERATION: u64 = u32::MAX as u64;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"UCROFTSB";
const SEGMENT_MAGIC: [u8; 8] = *b"UCROFTSG";
const TABLE_MAGIC: [u8; 8] = *b"UCROFTTB";

const SEGMENT_FREED: u32 = 1;
const TABLE_SEALED: u16 = 1;
const TABLE_LATE: u16 = 2;
const ENTRY_HAS_PARENT: u16 = 1;
const ENTRY_VOID: u16 = 2;
pub(crate) const COMPRESSION_NONE: u8 = 0;
/// Where the entries of a table block lie, and padding behind them: what is encrypted.
const ENTRIES: std::ops::Range<usize> = 64..64 + UNPROVED_BYTES;
/// Where the nonce lies that they are encrypted under.
const NONCE: std::ops::Range<usize> = 48..48 + NONCE_BYTES;
/// From this on, a process numbers the table blocks it writes into uses that others began.
pub(crate) const FIRST_LATE_WRITE: u32 = 1 << 31;

/// One block of 4 KiB.
pub(crate) type Block = [u8; BLOCK_LEN];

/// A store's own random name: blocks of another store in the same place are not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreId(pub(crate) [u8; 16]);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    store: [u8; 16],
    generation: U64,
    segment_bytes: U64,
    room_bytes: U64,
    segments: U32,
    key_check: [u8; 16],
    reserved: [u8; 4012],
    crc: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSegment {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    store: [u8; 16],
    segment: U32,
    key_id: U32,
    segment_use: U64,
    salt: [u8; SALT_BYTES],
    reserved: [u8; 4008],
    crc: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTable {
    magic: [u8; 8],
    version: U32,
    flags: U16,
    count: U16,
    store: [u8; 16],
    segment: U32,
    batch: U32,
    segment_use: U64,
    write: U32,
    late_nonce: [u8; NONCE_BYTES - 4],
    reserved: [u8; 4],
    entries: [RawEntry; ENTRIES_PER_TABLE],
    padding: [u8; UNPROVED_BYTES - ENTRIES_PER_TABLE * size_of::<RawEntry>()],
    tag: [u8; TAG_BYTES],
    spare: [u8; 8],
    crc: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    domain: [u8; 16],
    space: [u8; 32],
    key: [u8; 32],
    parent: [u8; 32],
    depth: U32,
    page_bytes: U32,
    stored_bytes: U32,
    offset_blocks: U32,
    flags: U16,
    compression: u8,
    proof_kind: u8,
    writer: U32,
    payload_crc: U64,
    proof: [u8; 16],
    born: U32,
    purge: U32,
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == BLOCK_LEN);
    assert!(size_of::<RawSegment>() == BLOCK_LEN);
    assert!(size_of::<RawTable>() == BLOCK_LEN);
    assert!(size_of::<RawEntry>() == 168);
    assert!(ENTRIES.end == std::mem::offset_of!(RawTable, tag));
    assert!(NONCE.start == std::mem::offset_of!(RawTable, write));
};

/// What a block turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decoded<T> {
    /// Exactly what was looked for.
    Valid(T),
    /// Not written by this store for this place and use: zeros, a record's payload, an earlier use.
    Foreign,
    /// Written for this place, but damaged since.
    Corrupt,
    /// Undamaged, but of a version this build does not read.
    Version(u32),
}

fn seal_block(block: &mut Block) {
    let sum = checksum_bytes(&block[..BLOCK_LEN - 8]);
    block[BLOCK_LEN - 8..].copy_from_slice(&sum.to_le_bytes());
}

fn crc_holds(block: &Block, found: U64) -> bool {
    checksum_bytes(&block[..BLOCK_LEN - 8]) == found.get()
}

/// The head of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The store's name.
    pub(crate) store: StoreId,
    /// Grows by one each time the store is opened: the valid copy with the larger one counts.
    pub(crate) generation: u64,
    /// The store's shape.
    pub(crate) layout: Layout,
    /// Tells the store's key from others; zero as long as nothing was encrypted.
    pub(crate) key_check: [u8; 16],
}

impl Superblock {
    /// Encodes a copy.
    pub(crate) fn encode(&self) -> Block {
        let mut raw = RawSuperblock::new_zeroed();
        raw.magic = SUPERBLOCK_MAGIC;
        raw.version = FORMAT_VERSION.into();
        raw.store = self.store.0;
        raw.generation = self.generation.into();
        raw.segment_bytes = self.layout.segment_bytes.into();
        raw.room_bytes = self.layout.room_bytes.into();
        raw.segments = self.layout.segments.into();
        raw.key_check = self.key_check;
        let mut block: Block = zerocopy::transmute!(raw);
        seal_block(&mut block);
        block
    }

    /// Decodes a copy.
    pub(crate) fn decode(block: &Block) -> Decoded<Self> {
        let raw: &RawSuperblock = zerocopy::transmute_ref!(block);
        if !crc_holds(block, raw.crc) {
            let ours = raw.magic == SUPERBLOCK_MAGIC;
            return if ours { Decoded::Corrupt } else { Decoded::Foreign };
        }
        if raw.magic != SUPERBLOCK_MAGIC {
            return Decoded::Foreign;
        }
        if raw.version != FORMAT_VERSION {
            return Decoded::Version(raw.version.get());
        }
        let layout = Layout {
            segment_bytes: raw.segment_bytes.get(),
            room_bytes: raw.room_bytes.get(),
            segments: raw.segments.get(),
        };
        // The next opening counts on, and numbers its uses by it in half a word.
        let countable = raw.generation.get() < LAST_GENERATION;
        if raw.flags != 0 || !layout.is_sane() || !countable {
            return Decoded::Corrupt;
        }
        let (store, generation) = (StoreId(raw.store), raw.generation.get());
        Decoded::Valid(Self { store, generation, layout, key_check: raw.key_check })
    }
}

/// The head of a segment in one of its uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Which segment.
    pub(crate) segment: SegmentId,
    /// Which use of it.
    pub(crate) segment_use: SegmentUse,
    /// Whether that use is over: its records are not to be recovered.
    pub(crate) freed: bool,
    /// The salt its keys derive from; `None` where nothing in it is encrypted.
    pub(crate) salt: Option<[u8; SALT_BYTES]>,
}

impl SegmentHeader {
    /// Encodes the header.
    pub(crate) fn encode(&self, store: StoreId) -> Block {
        let mut raw = RawSegment::new_zeroed();
        raw.magic = SEGMENT_MAGIC;
        raw.version = FORMAT_VERSION.into();
        raw.flags = if self.freed { SEGMENT_FREED } else { 0 }.into();
        raw.store = store.0;
        raw.segment = self.segment.0.into();
        raw.segment_use = self.segment_use.0.into();
        if let Some(salt) = self.salt {
            raw.key_id = KEY_ID_STORE.into();
            raw.salt = salt;
        }
        let mut block: Block = zerocopy::transmute!(raw);
        seal_block(&mut block);
        block
    }

    /// Decodes the header of `segment`.
    pub(crate) fn decode(block: &Block, store: StoreId, segment: SegmentId) -> Decoded<Self> {
        let raw: &RawSegment = zerocopy::transmute_ref!(block);
        // One damaged field leaves the other, so that damage is told from what was never ours.
        let (magic, name) = (raw.magic == SEGMENT_MAGIC, raw.store == store.0);
        if !crc_holds(block, raw.crc) {
            return if magic || name { Decoded::Corrupt } else { Decoded::Foreign };
        }
        if !magic || !name || raw.segment != segment.0 {
            return Decoded::Foreign;
        }
        if raw.version != FORMAT_VERSION {
            return Decoded::Version(raw.version.get());
        }
        let salt = match raw.key_id.get() {
            0 => None,
            KEY_ID_STORE => Some(raw.salt),
            _ => return Decoded::Corrupt,
        };
        let countable = raw.segment_use.get() >> 32 < LAST_GENERATION;
        if raw.flags.get() & !SEGMENT_FREED != 0 || !countable {
            return Decoded::Corrupt;
        }
        let segment_use = SegmentUse(raw.segment_use.get());
        let freed = raw.flags.get() & SEGMENT_FREED != 0;
        Decoded::Valid(Self { segment, segment_use, freed, salt })
    }
}

/// One record as its table names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableEntry {
    /// Whose bytes they are.
    pub(crate) identity: PageIdentity,
    /// Where they come from.
    pub(crate) origin: Origin,
    /// Where they start in the segment, in blocks.
    pub(crate) offset_blocks: u32,
    /// CRC-64/NVME of the page.
    pub(crate) payload_crc: u64,
    /// What the stored bytes must agree with.
    pub(crate) proof: Proof,
    /// The write failed: the record keeps its number and nothing else.
    pub(crate) void: bool,
}

impl TableEntry {
    fn encode(&self, kind: ProofKind) -> RawEntry {
        let mut raw = RawEntry::new_zeroed();
        let identity = &self.identity;
        raw.domain = identity.domain.0;
        raw.space = identity.space.0;
        raw.key = identity.key.0;
        raw.parent = identity.parent.map_or([0; 32], |parent| parent.0);
        raw.depth = identity.depth.into();
        raw.page_bytes = identity.page_bytes.into();
        raw.stored_bytes = identity.page_bytes.into();
        raw.offset_blocks = self.offset_blocks.into();
        let void = if self.void { ENTRY_VOID } else { 0 };
        raw.flags = (entry_flags(identity) | void).into();
        raw.compression = COMPRESSION_NONE;
        raw.proof_kind = kind as u8;
        raw.writer = self.origin.writer.into();
        raw.payload_crc = self.payload_crc.into();
        raw.proof = self.proof.0;
        raw.born = self.origin.born.into();
        raw.purge = self.origin.purge.0.into();
        raw
    }

    fn decode(raw: &RawEntry, kind: ProofKind) -> Option<Self> {
        let flags = raw.flags.get();
        let page_bytes = raw.page_bytes.get();
        let known = flags & !(ENTRY_HAS_PARENT | ENTRY_VOID) == 0
            && raw.compression == COMPRESSION_NONE
            && raw.proof_kind == kind as u8
            && raw.stored_bytes == raw.page_bytes
            && (MIN_PAGE_BYTES..=MAX_PAGE_BYTES).contains(&page_bytes);
        known.then(|| Self {
            identity: PageIdentity {
                domain: DomainId(raw.domain),
                space: SpaceDigest(raw.space),
                key: PageKey(raw.key),
                parent: (flags & ENTRY_HAS_PARENT != 0).then_some(PageKey(raw.parent)),
                depth: raw.depth.get(),
                page_bytes,
            },
            origin: Origin {
                writer: raw.writer.get(),
                born: raw.born.get(),
                purge: PurgeId(raw.purge.get()),
            },
            offset_blocks: raw.offset_blocks.get(),
            payload_crc: raw.payload_crc.get(),
            proof: Proof(raw.proof),
            void: flags & ENTRY_VOID != 0,
        })
    }
}

pub(crate) fn entry_flags(identity: &PageIdentity) -> u16 {
    if identity.parent.is_some() { ENTRY_HAS_PARENT } else { 0 }
}

/// One block of a segment's table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Which segment.
    pub(crate) segment: SegmentId,
    /// Which use of it.
    pub(crate) segment_use: SegmentUse,
    /// Names the records from `batch ×` [`ENTRIES_PER_TABLE`] on.
    pub(crate) batch: u32,
    /// Its number among the table blocks written in this use: no two have the same.
    pub(crate) write: u32,
    /// No more records follow, and those before have been flushed to the medium.
    pub(crate) sealed: bool,
    /// At most [`ENTRIES_PER_TABLE`].
    pub(crate) entries: Vec<TableEntry>,
    /// Of a seal without entries that another process wrote than the one that filled the segment.
    pub(crate) late: Option<Late>,
}

/// What the seal of a segment says that was found open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Late {
    /// What its nonce has behind the number of the write.
    pub(crate) nonce: [u8; NONCE_BYTES - 4],
    /// The records it does not speak for.
    pub(crate) unproved: Unproved,
}

impl Table {
    /// Whether its batch may lie in that block: its own place or, while it is not full, the next.
    pub(crate) fn may_lie_at(&self, index: u32) -> bool {
        [Some(index), index.checked_sub(1)].contains(&Some(self.batch))
    }

    /// Encodes the block, encrypted where the use of its segment has a cipher.
    pub(crate) fn encode(&self, store: StoreId, cipher: Option<&Cipher>) -> Block {
        assert!(self.entries.len() <= ENTRIES_PER_TABLE, "a table block holds 23 entries");
        let mut raw = RawTable::new_zeroed();
        raw.magic = TABLE_MAGIC;
        raw.version = FORMAT_VERSION.into();
        let late = if self.late.is_some() { TABLE_LATE } else { 0 };
        raw.flags = (if self.sealed { TABLE_SEALED } else { 0 } | late).into();
        raw.count = (self.entries.len() as u16).into();
        raw.store = store.0;
        raw.segment = self.segment.0.into();
        raw.batch = self.batch.into();
        raw.segment_use = self.segment_use.0.into();
        raw.write = self.write.into();
        let kind = ProofKind::of(cipher);
        for (slot, entry) in raw.entries.iter_mut().zip(&self.entries) {
            *slot = entry.encode(kind);
        }
        if let Some(late) = &self.late {
            assert!(self.sealed && self.entries.is_empty(), "only a seal comes late");
            raw.late_nonce = late.nonce;
        }
        let mut block: Block = zerocopy::transmute!(raw);
        if let Some(late) = &self.late {
            block[ENTRIES].copy_from_slice(late.unproved.bytes());
        }
        if let Some(cipher) = cipher {
            let (head, rest) = block.split_at_mut(ENTRIES.start);
            let (entries, rest) = rest.split_at_mut(ENTRIES.len());
            let tag = cipher.seal_table(nonce_in(head), head, entries);
            rest[..TAG_BYTES].copy_from_slice(&tag);
        }
        seal_block(&mut block);
        block
    }

    /// Decodes a block found among the tables of `segment` in its use `segment_use`.
    pub(crate) fn decode(
        block: &Block,
        store: StoreId,
        segment: SegmentId,
        segment_use: SegmentUse,
        cipher: Option<&Cipher>,
    ) -> Decoded<Self> {
        let head = match TableHead::decode(block, store, segment, segment_use) {
            Decoded::Valid(head) => head,
            Decoded::Foreign => return Decoded::Foreign,
            Decoded::Corrupt => return Decoded::Corrupt,
            Decoded::Version(found) => return Decoded::Version(found),
        };
        let raw: &RawTable = zerocopy::transmute_ref!(block);
        let mut opened = *block;
        if let Some(cipher) = cipher {
            let (bound, rest) = opened.split_at_mut(ENTRIES.start);
            let entries = &mut rest[..ENTRIES.len()];
            if !cipher.open_table(nonce_in(bound), bound, &raw.tag, entries) {
                return Decoded::Corrupt;
            }
        }
        let late = head.late.then(|| Late {
            nonce: raw.late_nonce,
            unproved: Unproved::from_bytes(opened[ENTRIES].try_into().expect("as many bytes")),
        });
        let opened: &RawTable = zerocopy::transmute_ref!(&opened);
        let kind = ProofKind::of(cipher);
        let entries = opened.entries.iter().take(head.count);
        let entries: Option<Vec<_>> =
            entries.map(|entry| TableEntry::decode(entry, kind)).collect();
        let TableHead { batch, write, sealed, .. } = head;
        match entries {
            Some(entries) => {
                Decoded::Valid(Self { segment, segment_use, batch, write, sealed, entries, late })
            }
            None => Decoded::Corrupt,
        }
    }
}

/// The nonce that a table block names in its head.
fn nonce_in(head: &[u8]) -> &[u8; NONCE_BYTES] {
    head[NONCE].try_into().expect("as many bytes")
}

/// What a table block says without its entries: never encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableHead {
    /// As in [`Table`].
    pub(crate) batch: u32,
    /// As in [`Table`].
    pub(crate) write: u32,
    /// As in [`Table`].
    pub(crate) sealed: bool,
    /// Whether it is a late seal.
    pub(crate) late: bool,
    /// Number of entries.
    pub(crate) count: usize,
}

impl TableHead {
    /// Decodes the head of a block found among the tables of `segment` in its use `segment_use`.
    pub(crate) fn decode(
        block: &Block,
        store: StoreId,
        segment: SegmentId,
        segment_use: SegmentUse,
    ) -> Decoded<Self> {
        let raw: &RawTable = zerocopy::transmute_ref!(block);
        let (magic, name) = (raw.magic == TABLE_MAGIC, raw.store == store.0);
        if !crc_holds(block, raw.crc) {
            return if magic || name { Decoded::Corrupt } else { Decoded::Foreign };
        }
        let place = raw.segment == segment.0 && raw.segment_use == segment_use.0;
        if !magic || !name || !place {
            return Decoded::Foreign;
        }
        if raw.version != FORMAT_VERSION {
            return Decoded::Version(raw.version.get());
        }
        let count = usize::from(raw.count.get());
        let flags = raw.flags.get();
        let (sealed, late) = (flags & TABLE_SEALED != 0, flags & TABLE_LATE != 0);
        let known = flags & !(TABLE_SEALED | TABLE_LATE) == 0 && count <= ENTRIES_PER_TABLE;
        if !known || (late && !(sealed && count == 0)) {
            return Decoded::Corrupt;
        }
        let (batch, write) = (raw.batch.get(), raw.write.get());
        Decoded::Valid(Self { batch, write, sealed, late, count })
    }
}

/// The position a record's proof is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Which store.
    pub(crate) store: StoreId,
    /// Which segment.
    pub(crate) segment: SegmentId,
    /// Which use of it.
    pub(crate) segment_use: SegmentUse,
    /// The record's number in that use.
    pub(crate) record: u32,
}
