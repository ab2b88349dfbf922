//! The bytes of format version 1, written out by hand from `docs/disk-format.md`.

use crate::format::{
    BLOCK_LEN, Block, Decoded, FORMAT_VERSION, Position, SegmentHeader, StoreId, Superblock, Table,
    TableEntry,
};
use crate::layout::{DATA_START, Layout, table_room};
use crate::proof::{Proof, Subject};
use crate::{LogConfig, OpenError};
use undercroft_arena::checksum_bytes;
use undercroft_wire::{
    DomainId, Origin, PageIdentity, PageKey, PurgeId, SegmentId, SegmentUse, SpaceDigest,
};

const STORE: StoreId = StoreId([0xab; 16]);

fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

fn finish(mut block: Block) -> Block {
    let sum = checksum_bytes(&block[..4088]);
    put(&mut block, 4088, &sum.to_le_bytes());
    block
}

fn identity() -> PageIdentity {
    PageIdentity {
        domain: DomainId([1; 16]),
        space: SpaceDigest([2; 32]),
        key: PageKey([3; 32]),
        parent: Some(PageKey([4; 32])),
        depth: 5,
        page_bytes: 70_000,
    }
}

#[test]
fn superblock() {
    let layout = Layout { segment_bytes: 0x0040_3000, room_bytes: 0x0040_0000, segments: 9 };
    let superblock = Superblock { store: STORE, generation: 7, layout, key_check: [0xcc; 16] };
    let mut expected = [0; BLOCK_LEN];
    put(&mut expected, 0, b"UCROFTSB");
    put(&mut expected, 8, &2_u32.to_le_bytes());
    put(&mut expected, 16, &[0xab; 16]);
    put(&mut expected, 32, &7_u64.to_le_bytes());
    put(&mut expected, 40, &0x0040_3000_u64.to_le_bytes());
    put(&mut expected, 48, &0x0040_0000_u64.to_le_bytes());
    put(&mut expected, 56, &9_u32.to_le_bytes());
    put(&mut expected, 60, &[0xcc; 16]);
    let expected = finish(expected);
    assert_eq!(superblock.encode(), expected);
    assert_eq!(Superblock::decode(&expected), Decoded::Valid(superblock));
}

#[test]
fn segment_header() {
    let header = SegmentHeader {
        segment: SegmentId(3),
        segment_use: SegmentUse(1 << 32),
        freed: true,
        salt: Some([0xee; 32]),
    };
    let mut expected = [0; BLOCK_LEN];
    put(&mut expected, 0, b"UCROFTSG");
    put(&mut expected, 8, &2_u32.to_le_bytes());
    put(&mut expected, 12, &1_u32.to_le_bytes());
    put(&mut expected, 16, &[0xab; 16]);
    put(&mut expected, 32, &3_u32.to_le_bytes());
    put(&mut expected, 36, &1_u32.to_le_bytes());
    put(&mut expected, 40, &(1_u64 << 32).to_le_bytes());
    put(&mut expected, 48, &[0xee; 32]);
    let expected = finish(expected);
    assert_eq!(header.encode(STORE), expected);
    assert_eq!(SegmentHeader::decode(&expected, STORE, SegmentId(3)), Decoded::Valid(header));
    assert_eq!(SegmentHeader::decode(&expected, STORE, SegmentId(4)), Decoded::Foreign);
    let other = StoreId([0; 16]);
    assert_eq!(SegmentHeader::decode(&expected, other, SegmentId(3)), Decoded::Foreign);
}

fn table() -> Table {
    let entry = |void| TableEntry {
        identity: identity(),
        origin: Origin { writer: 1000, born: 1_700_000_000, purge: PurgeId(7) },
        offset_blocks: 17,
        payload_crc: 99,
        proof: Proof([0xdd; 16]),
        void,
    };
    Table {
        segment: SegmentId(3),
        segment_use: SegmentUse(8),
        batch: 2,
        write: 6,
        sealed: false,
        entries: vec![entry(false), entry(true)],
        late: None,
    }
}

#[test]
fn table_block() {
    let mut expected = [0; BLOCK_LEN];
    put(&mut expected, 0, b"UCROFTTB");
    put(&mut expected, 8, &2_u32.to_le_bytes());
    put(&mut expected, 14, &2_u16.to_le_bytes());
    put(&mut expected, 16, &[0xab; 16]);
    put(&mut expected, 32, &3_u32.to_le_bytes());
    put(&mut expected, 36, &2_u32.to_le_bytes());
    put(&mut expected, 40, &8_u64.to_le_bytes());
    put(&mut expected, 48, &6_u32.to_le_bytes());
    for (at, flags) in [(64, 1_u16), (232, 3)] {
        put(&mut expected, at, &[1; 16]);
        put(&mut expected, at + 16, &[2; 32]);
        put(&mut expected, at + 48, &[3; 32]);
        put(&mut expected, at + 80, &[4; 32]);
        put(&mut expected, at + 112, &5_u32.to_le_bytes());
        put(&mut expected, at + 116, &70_000_u32.to_le_bytes());
        put(&mut expected, at + 120, &70_000_u32.to_le_bytes());
        put(&mut expected, at + 124, &17_u32.to_le_bytes());
        put(&mut expected, at + 128, &flags.to_le_bytes());
        put(&mut expected, at + 131, &[1]);
        put(&mut expected, at + 132, &1000_u32.to_le_bytes());
        put(&mut expected, at + 136, &99_u64.to_le_bytes());
        put(&mut expected, at + 144, &[0xdd; 16]);
        put(&mut expected, at + 160, &1_700_000_000_u32.to_le_bytes());
        put(&mut expected, at + 164, &7_u32.to_le_bytes());
    }
    let expected = finish(expected);
    assert_eq!(table().encode(STORE, None), expected);
    let decoded = Table::decode(&expected, STORE, SegmentId(3), SegmentUse(8), None);
    assert_eq!(decoded, Decoded::Valid(table()));
    let stale = Table::decode(&expected, STORE, SegmentId(3), SegmentUse(9), None);
    assert_eq!(stale, Decoded::Foreign);
}

#[test]
fn record_proof() {
    let position =
        Position { store: STORE, segment: SegmentId(3), segment_use: SegmentUse(8), record: 51 };
    let payload: Vec<u8> = (0..70_000_u32).map(|n| (n % 251) as u8).collect();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(b"UCROFTRC");
    bytes.extend_from_slice(&2_u32.to_le_bytes());
    bytes.extend_from_slice(&1_u16.to_le_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes.extend_from_slice(&[0xab; 16]);
    bytes.extend_from_slice(&3_u32.to_le_bytes());
    bytes.extend_from_slice(&51_u32.to_le_bytes());
    bytes.extend_from_slice(&8_u64.to_le_bytes());
    for (byte, count) in [(1, 16), (2, 32), (3, 32), (4, 32)] {
        bytes.extend(std::iter::repeat_n(byte, count));
    }
    bytes.extend_from_slice(&5_u32.to_le_bytes());
    bytes.extend_from_slice(&70_000_u32.to_le_bytes());
    bytes.extend_from_slice(&70_000_u32.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&checksum_bytes(&payload).to_le_bytes());
    assert_eq!(bytes.len(), 184);
    bytes.extend_from_slice(&payload);
    let subject =
        Subject { identity: &identity(), position, payload_crc: checksum_bytes(&payload) };
    let mut expected = Proof::default();
    expected.0[..8].copy_from_slice(&checksum_bytes(&bytes).to_le_bytes());
    assert_eq!(subject.crc_proof(), expected);
    let mut page = payload;
    assert!(subject.open(None, &expected, &mut page));
    page[9] ^= 1;
    assert!(!subject.open(None, &expected, &mut page));
}

/// Computed by another implementation of HKDF. What the other keys derive from is held by whole
/// stores, in `stores.rs`.
#[test]
fn derived_secrets() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&super::rig::key().check(STORE)), "adfe43c630c2c6a2d51c256f670b224b");
    assert_eq!(
        hex(&*super::rig::key().domain_secret(&DomainId([1; 16]))),
        "7e565f74ef84540bdd5828844a1335408b7f482249a2215b196d82ccbee939df"
    );
}

#[test]
fn every_flipped_bit_of_a_block_is_noticed() {
    let block = table().encode(STORE, None);
    for bit in 0..BLOCK_LEN * 8 {
        let mut damaged = block;
        damaged[bit / 8] ^= 1 << (bit % 8);
        let decoded = Table::decode(&damaged, STORE, SegmentId(3), SegmentUse(8), None);
        assert_eq!(decoded, Decoded::Corrupt, "bit {bit}");
    }
}

#[test]
fn versions_are_told_apart_from_damage() {
    let mut block = table().encode(STORE, None);
    block[8] = FORMAT_VERSION as u8 + 1;
    let decoded = Table::decode(&finish(block), STORE, SegmentId(3), SegmentUse(8), None);
    assert_eq!(decoded, Decoded::Version(FORMAT_VERSION + 1));
}

#[test]
fn default_shapes_have_room_for_their_capacity() -> Result<(), OpenError> {
    for (capacity, room, segments) in [
        (1, 4 << 20, 5),
        (1 << 30, 16 << 20, 68),
        (10 << 30, 256 << 20, 44),
        (1 << 40, 256 << 20, 4100),
    ] {
        let layout = Layout::new(&LogConfig::new("log", capacity))?;
        assert_eq!((layout.room_bytes, layout.segments), (room, segments));
        // Whole pages of any power of two from 64 KiB on fill the room.
        for page in (16..=22).map(|bits| 1_u64 << bits) {
            let records = room / page;
            assert!(layout.fits(4096 + room - page, page, records as u32));
        }
        assert!(u64::from(segments - 4) * room >= capacity);
        let spent = layout.file_bytes() - DATA_START - u64::from(segments) * room;
        // Of the room of all segments, the spare ones included.
        let whole = u64::from(segments) * room;
        assert!(spent < whole / 50, "headers and tables are few: {spent}");
    }
    assert_eq!([table_room(1), table_room(23), table_room(24)], [8192, 8192, 12288]);
    Ok(())
}
