//! Values that no writer of ours writes, under CRCs that agree, and heads that cannot be read.

use super::rig::{Setting, tiny};
use super::sim::{Disk, Faults, SimLog};
use crate::format::{
    BLOCK_LEN, Decoded, ENTRIES_PER_TABLE, SegmentHeader, Superblock, Table, TableEntry,
};
use crate::layout::DATA_START;
use crate::machine::Machine;
use crate::storage::Storage;
use crate::{EngineChoice, LogConfig, OpenError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use undercroft_arena::{Memory, Span};
use undercroft_wire::{JobId, Origin, SegmentId, SegmentUse};

const PAGE: u32 = 4096;

fn config() -> LogConfig {
    let setting = Setting { engine: EngineChoice::Auto, encrypted: false };
    tiny(Path::new("simulated"), setting)
}

/// A store that was closed with four pages in its first segment, and its head.
fn image() -> (Vec<u8>, Superblock) {
    let disk = Arc::new(Disk::default());
    let mut log = SimLog::open(&disk, &config(), 1, Faults::default()).unwrap();
    let memory = Memory::new(4 * u64::from(PAGE), 0).unwrap();
    for number in 0..4 {
        let payload = memory.span(number * u64::from(PAGE), PAGE as usize).unwrap();
        let payload_crc = super::rig::fill(&payload, number, PAGE);
        let (job, identity) = (JobId(number), super::rig::identity(number, PAGE));
        let op =
            crate::Op::Append { job, identity, origin: Origin::default(), payload, payload_crc };
        log.machine.accept(op, log.now);
    }
    log.close();
    let bytes = disk.bytes.lock().unwrap().clone();
    let Decoded::Valid(head) = Superblock::decode(bytes[..BLOCK_LEN].try_into().unwrap()) else {
        panic!("the first superblock is good");
    };
    (bytes, head)
}

fn put(bytes: &mut [u8], at: u64, block: &[u8; BLOCK_LEN]) {
    bytes[at as usize..at as usize + BLOCK_LEN].copy_from_slice(block);
}

fn open(bytes: Vec<u8>) -> Result<SimLog, OpenError> {
    SimLog::open(&Arc::new(Disk::holding(bytes)), &config(), 1, Faults::default())
}

#[test]
fn a_superblock_that_cannot_be_is_damaged() {
    let (bytes, head) = image();
    let shape = |change: fn(&mut Superblock)| {
        let mut changed = head;
        change(&mut changed);
        changed
    };
    for superblock in [
        shape(|head| head.layout.room_bytes = 0),
        shape(|head| head.layout.room_bytes = !4095),
        shape(|head| head.layout.segment_bytes = 0),
        shape(|head| head.layout.segments = 0),
        shape(|head| head.layout.segments = u32::MAX),
        shape(|head| head.generation = u64::MAX),
        shape(|head| head.generation = u64::from(u32::MAX)),
    ] {
        let mut bytes = bytes.clone();
        put(&mut bytes, 0, &superblock.encode());
        put(&mut bytes, BLOCK_LEN as u64, &superblock.encode());
        let error = open(bytes).map(drop).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{superblock:?}: {error}");
    }
}

#[test]
fn numbers_at_the_end_of_their_range_are_misses() {
    let (bytes, head) = image();
    let intact = open(bytes.clone()).unwrap();
    assert_eq!(intact.recovery.records.len(), 4);
    let first = intact.recovery.records[0];
    let (segment, segment_use) = (first.extent.segment, first.extent.segment_use);
    let entry = TableEntry {
        origin: super::rig::origin(1),
        identity: first.identity,
        offset_blocks: u32::MAX,
        payload_crc: 0,
        proof: crate::proof::Proof::default(),
        void: false,
    };
    let table = |batch| Table {
        segment,
        segment_use,
        batch,
        write: 9,
        sealed: false,
        entries: vec![entry; ENTRIES_PER_TABLE],
        late: None,
    };
    // The places of the first batch are taken by tables that say to be of other ones.
    for batch in [u32::MAX, u32::MAX - 1, u32::MAX / 25, 1 << 31] {
        let mut bytes = bytes.clone();
        for index in [0, 1] {
            let at = head.layout.table_at(segment, index);
            put(&mut bytes, at, &table(batch).encode(head.store, None));
        }
        let log = open(bytes).unwrap();
        assert!(log.recovery.records.is_empty(), "batch {batch}");
        assert!(log.recovery.corrupt_tables > 0, "batch {batch}");
    }
    // A use after which no other can be numbered.
    let last = SegmentUse(u64::MAX);
    let header =
        SegmentHeader { segment: SegmentId(0), segment_use: last, freed: false, salt: None };
    let mut bytes = bytes;
    put(&mut bytes, head.layout.segment_at(SegmentId(0)), &header.encode(head.store));
    assert!(open(bytes).unwrap().recovery.records.is_empty());
}

/// A disk of which one block cannot be read.
struct Unreadable(Disk, Vec<u64>);

impl Storage for Unreadable {
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }

    fn read_at(&self, offset: u64, into: &Span) -> io::Result<usize> {
        let covered = offset..offset + into.len() as u64;
        match self.1.iter().any(|block| covered.contains(block)) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => self.0.read_at(offset, into),
        }
    }

    fn write_at(&self, offset: u64, from: &Span) -> io::Result<usize> {
        self.0.write_at(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.0.allocate(bytes)
    }
}

#[test]
fn one_superblock_that_cannot_be_read_leaves_the_other() {
    let block = BLOCK_LEN as u64;
    for bad in [0, block, DATA_START - block] {
        let storage = Unreadable(Disk::holding(image().0), vec![bad]);
        let entropy = Box::new(|bytes: &mut [u8]| bytes.fill(7));
        let (_, recovery) = Machine::open(&storage, &config(), entropy).unwrap();
        assert_eq!(recovery.corrupt_superblocks, u32::from(bad < DATA_START - block));
        assert_eq!(recovery.records.len(), 4, "with block {bad} unreadable");
    }
    let storage = Unreadable(Disk::holding(image().0), vec![0, block]);
    let entropy = Box::new(|bytes: &mut [u8]| bytes.fill(7));
    let error = Machine::open(&storage, &config(), entropy).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
}
