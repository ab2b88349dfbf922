//! The bytes on disk, version 1: `docs/disk-format.md` is the same in prose.
//!
//! Everything is little-endian and lies in blocks of 4 KiB that end with the CRC-64/NVME of the
//! bytes before. Decoding believes nothing: a block is either exactly what this version writes
//! or it is refused.

use crate::layout::Layout;
use undercroft_arena::{checksum_bytes, combine};
use undercroft_wire::{
    DomainId, MAX_PAGE_BYTES, MIN_PAGE_BYTES, PageIdentity, PageKey, SegmentId, SegmentUse,
    SpaceDigest,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of everything on disk, bytes.
pub(crate) const BLOCK: u64 = 4096;
/// [`BLOCK`] where a length is counted in memory.
pub(crate) const BLOCK_LEN: usize = BLOCK as usize;
/// The version this build writes and the only one it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Records one table block names.
pub(crate) const ENTRIES_PER_TABLE: usize = 25;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"UCROFTSB";
const SEGMENT_MAGIC: [u8; 8] = *b"UCROFTSG";
const TABLE_MAGIC: [u8; 8] = *b"UCROFTTB";
const RECORD_MAGIC: [u8; 8] = *b"UCROFTRC";

const SEGMENT_FREED: u32 = 1;
const TABLE_SEALED: u16 = 1;
const ENTRY_HAS_PARENT: u16 = 1;
const ENTRY_VOID: u16 = 2;
const COMPRESSION_NONE: u8 = 0;
const PROOF_CRC64: u8 = 1;

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
    reserved: [u8; 4028],
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
    salt: [u8; 32],
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
    reserved: [u8; 16],
    entries: [RawEntry; ENTRIES_PER_TABLE],
    spare: [u8; 24],
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
    reserved: [u8; 12],
    proof: [u8; 16],
}

#[derive(IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawProof {
    magic: [u8; 8],
    version: U32,
    flags: U16,
    compression: u8,
    proof_kind: u8,
    store: [u8; 16],
    segment: U32,
    record: U32,
    segment_use: U64,
    domain: [u8; 16],
    space: [u8; 32],
    key: [u8; 32],
    parent: [u8; 32],
    depth: U32,
    page_bytes: U32,
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == BLOCK_LEN);
    assert!(size_of::<RawSegment>() == BLOCK_LEN);
    assert!(size_of::<RawTable>() == BLOCK_LEN);
    assert!(size_of::<RawEntry>() == 160);
    assert!(size_of::<RawProof>() == 168);
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
        if raw.flags != 0 || !layout.is_sane() {
            return Decoded::Corrupt;
        }
        let (store, generation) = (StoreId(raw.store), raw.generation.get());
        Decoded::Valid(Self { store, generation, layout })
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
        if raw.flags.get() & !SEGMENT_FREED != 0 || raw.key_id != 0 {
            return Decoded::Corrupt;
        }
        let segment_use = SegmentUse(raw.segment_use.get());
        let freed = raw.flags.get() & SEGMENT_FREED != 0;
        Decoded::Valid(Self { segment, segment_use, freed })
    }
}

/// One record as its table names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableEntry {
    /// Whose bytes they are.
    pub(crate) identity: PageIdentity,
    /// Where they start in the segment, in blocks.
    pub(crate) offset_blocks: u32,
    /// CRC-64/NVME over identity, position and payload.
    pub(crate) proof: u64,
    /// The write failed: the record keeps its number and nothing else.
    pub(crate) void: bool,
}

impl TableEntry {
    fn encode(&self) -> RawEntry {
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
        raw.proof_kind = PROOF_CRC64;
        raw.proof[..8].copy_from_slice(&self.proof.to_le_bytes());
        raw
    }

    fn decode(raw: &RawEntry) -> Option<Self> {
        let flags = raw.flags.get();
        let page_bytes = raw.page_bytes.get();
        let known = flags & !(ENTRY_HAS_PARENT | ENTRY_VOID) == 0
            && raw.compression == COMPRESSION_NONE
            && raw.proof_kind == PROOF_CRC64
            && raw.stored_bytes == raw.page_bytes
            && (MIN_PAGE_BYTES..=MAX_PAGE_BYTES).contains(&page_bytes);
        let [p0, p1, p2, p3, p4, p5, p6, p7, ..] = raw.proof;
        known.then(|| Self {
            identity: PageIdentity {
                domain: DomainId(raw.domain),
                space: SpaceDigest(raw.space),
                key: PageKey(raw.key),
                parent: (flags & ENTRY_HAS_PARENT != 0).then_some(PageKey(raw.parent)),
                depth: raw.depth.get(),
                page_bytes,
            },
            offset_blocks: raw.offset_blocks.get(),
            proof: u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]),
            void: flags & ENTRY_VOID != 0,
        })
    }
}

fn entry_flags(identity: &PageIdentity) -> u16 {
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
    /// No more records follow, and those before have been flushed to the medium.
    pub(crate) sealed: bool,
    /// At most [`ENTRIES_PER_TABLE`].
    pub(crate) entries: Vec<TableEntry>,
}

impl Table {
    /// Encodes the block.
    pub(crate) fn encode(&self, store: StoreId) -> Block {
        assert!(self.entries.len() <= ENTRIES_PER_TABLE, "a table block holds 25 entries");
        let mut raw = RawTable::new_zeroed();
        raw.magic = TABLE_MAGIC;
        raw.version = FORMAT_VERSION.into();
        raw.flags = if self.sealed { TABLE_SEALED } else { 0 }.into();
        raw.count = (self.entries.len() as u16).into();
        raw.store = store.0;
        raw.segment = self.segment.0.into();
        raw.batch = self.batch.into();
        raw.segment_use = self.segment_use.0.into();
        for (slot, entry) in raw.entries.iter_mut().zip(&self.entries) {
            *slot = entry.encode();
        }
        let mut block: Block = zerocopy::transmute!(raw);
        seal_block(&mut block);
        block
    }

    /// Decodes a block found among the tables of `segment` in its use `segment_use`.
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
        if flags & !TABLE_SEALED != 0 || count > ENTRIES_PER_TABLE {
            return Decoded::Corrupt;
        }
        let entries: Option<Vec<_>> =
            raw.entries.iter().take(count).map(TableEntry::decode).collect();
        let (batch, sealed) = (raw.batch.get(), flags & TABLE_SEALED != 0);
        match entries {
            Some(entries) => Decoded::Valid(Self { segment, segment_use, batch, sealed, entries }),
            None => Decoded::Corrupt,
        }
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

/// CRC-64/NVME over a record's identity and position: what stands before the payload.
fn preamble_crc(identity: &PageIdentity, position: &Position) -> u64 {
    let raw = RawProof {
        magic: RECORD_MAGIC,
        version: FORMAT_VERSION.into(),
        flags: entry_flags(identity).into(),
        compression: COMPRESSION_NONE,
        proof_kind: PROOF_CRC64,
        store: position.store.0,
        segment: position.segment.0.into(),
        record: position.record.into(),
        segment_use: position.segment_use.0.into(),
        domain: identity.domain.0,
        space: identity.space.0,
        key: identity.key.0,
        parent: identity.parent.map_or([0; 32], |parent| parent.0),
        depth: identity.depth.into(),
        page_bytes: identity.page_bytes.into(),
    };
    checksum_bytes(raw.as_bytes())
}

/// A record's proof: the CRC of identity, position and payload as one run of bytes, made from
/// the payload's own CRC without reading the payload again.
pub(crate) fn proof(identity: &PageIdentity, position: &Position, payload_crc: u64) -> u64 {
    combine(preamble_crc(identity, position), payload_crc, u64::from(identity.page_bytes))
}

/// The payload's CRC that a proof was made from. Combining is linear, `shift(a) ^ b`, so taking
/// the shifted preamble off leaves the payload's part.
pub(crate) fn payload_crc(identity: &PageIdentity, position: &Position, proved: u64) -> u64 {
    proved ^ proof(identity, position, 0)
}
