//! Finding the records at start: headers and tables are read, payloads are not.

use crate::StoreKey;
use crate::cipher::{Cipher, SALT_BYTES};
use crate::format::{
    BLOCK, BLOCK_LEN, Block, Decoded, ENTRIES_PER_TABLE, SegmentHeader, Superblock, Table,
};
use crate::records::Records;
use crate::seal::{LeftOpen, Unproved};
use crate::segment::{Record, Segment};
use crate::storage::{Storage, block_memory, read_padded};
use crate::{RecoveredRecord, Recovery};
use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use undercroft_arena::{ArenaError, Span};
use undercroft_wire::{DeviceId, Extent, SegmentId, SegmentUse};

/// Table blocks read at once.
pub(crate) const CHUNK_BLOCKS: u32 = 16;
/// Segments read at the same time: enough to keep an SSD busy, little memory.
pub(crate) const THREADS: usize = 8;
/// The tables of a segment end where this many blocks in a row are not its own. One such block
/// may lie between valid ones, where a block was torn while it was written.
const END_OF_TABLES: u32 = 2;

/// What was found in all segments.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The segments by number.
    pub(crate) segments: Vec<Segment>,
    /// What the opener is told.
    pub(crate) recovery: Recovery,
    /// The largest use seen in any header.
    pub(crate) newest_use: SegmentUse,
}

/// What a scan needs to know.
#[derive(Clone, Copy)]
pub(crate) struct Scanner<'a> {
    /// Where the store lies.
    pub(crate) storage: &'a dyn Storage,
    /// Its head.
    pub(crate) head: &'a Superblock,
    /// What extents call it.
    pub(crate) device: DeviceId,
    /// Its key; `None` for a store that is not encrypted.
    pub(crate) key: Option<&'a StoreKey>,
    /// Segments read at the same time.
    pub(crate) threads: usize,
}

/// What was found in one segment.
#[derive(Debug, Default)]
struct Found {
    segment_use: SegmentUse,
    cipher: Option<(Cipher, [u8; SALT_BYTES])>,
    /// It is encrypted and the store is not, or the other way round.
    other_protection: bool,
    untouched: bool,
    records: Records,
    recovered: Vec<RecoveredRecord>,
    left_open: Option<LeftOpen>,
    corrupt: u64,
    io_errors: u64,
}

/// Reads the headers and tables of all segments.
pub(crate) fn scan(scanner: Scanner<'_>) -> Result<Scan, ArenaError> {
    let head = scanner.head;
    let next = AtomicU32::new(0);
    let results: Mutex<BTreeMap<u32, Found>> = Mutex::new(BTreeMap::new());
    let work = |chunk: &Span| {
        loop {
            let segment = next.fetch_add(1, Ordering::Relaxed);
            if segment >= head.layout.segments {
                return;
            }
            let found = scanner.segment(SegmentId(segment), chunk);
            results.lock().expect("no scanning thread panics").insert(segment, found);
        }
    };
    let threads = scanner.threads.min(head.layout.segments as usize);
    let chunks: Vec<Span> =
        (0..threads).map(|_| block_memory(u64::from(CHUNK_BLOCKS))).collect::<Result<_, _>>()?;
    thread::scope(|scope| {
        for chunk in &chunks[1..] {
            // Without another thread the others do its share.
            let _helper = thread::Builder::new().spawn_scoped(scope, || work(chunk));
        }
        work(&chunks[0]);
    });
    Ok(gather(results.into_inner().expect("no scanning thread panics")))
}

fn gather(found: BTreeMap<u32, Found>) -> Scan {
    let mut scan = Scan::default();
    let mut batches = Vec::new();
    for found in found.into_values() {
        scan.recovery.corrupt_tables += found.corrupt;
        scan.recovery.io_errors += found.io_errors;
        scan.newest_use = scan.newest_use.max(found.segment_use);
        scan.recovery.other_protection += u64::from(found.other_protection);
        if found.recovered.is_empty() {
            let segment = if found.untouched { Segment::untouched() } else { Segment::free() };
            scan.segments.push(segment);
            scan.recovery.free_segments += 1;
        } else {
            let Found { segment_use, cipher, records, left_open, .. } = found;
            scan.segments.push(Segment::recovered(segment_use, cipher, records, left_open));
            batches.push((found.segment_use, found.recovered));
        }
    }
    batches.sort_by_key(|(segment_use, _)| *segment_use);
    let records = &mut scan.recovery.records;
    *records = batches.into_iter().flat_map(|(_, records)| records).collect();
    let seen = records.iter().map(|record| record.origin.purge);
    scan.recovery.newest_purge = seen.max().unwrap_or_default();
    scan
}

impl Scanner<'_> {
    fn segment(&self, segment: SegmentId, chunk: &Span) -> Found {
        let mut found = Found::default();
        let header = match self.read_header(segment, chunk) {
            Ok(Decoded::Valid(header)) => header,
            Ok(Decoded::Foreign) => {
                found.untouched = chunk.read(|bytes| block_of(bytes, 0).iter().all(|b| *b == 0));
                return found;
            }
            Ok(Decoded::Corrupt | Decoded::Version(_)) => {
                found.corrupt += 1;
                return found;
            }
            Err(_) => {
                found.io_errors += 1;
                return found;
            }
        };
        found.segment_use = header.segment_use;
        if header.freed {
            return found;
        }
        // Whoever can write to the disk could put plain records of his own making into an
        // encrypted store: none are taken.
        if header.salt.is_some() != self.key.is_some() {
            found.other_protection = true;
            return found;
        }
        let (store, segment_use) = (self.head.store, header.segment_use);
        let keys = header.salt.zip(self.key);
        found.cipher =
            keys.map(|(salt, key)| (Cipher::new(key, store, segment, segment_use, &salt), salt));
        match self.read_tables(&header, found.cipher.as_ref().map(|(cipher, _)| cipher), chunk) {
            Ok(tables) => {
                found.corrupt += tables.corrupt;
                tables.into_records(self.head, self.device, segment, &mut found);
            }
            Err(_) => found.io_errors += 1,
        }
        found
    }

    /// Reads the header of a segment.
    pub(crate) fn read_header(
        &self,
        segment: SegmentId,
        chunk: &Span,
    ) -> io::Result<Decoded<SegmentHeader>> {
        let block = chunk.sub(0, BLOCK_LEN).map_err(io::Error::other)?;
        read_padded(self.storage, self.head.layout.segment_at(segment), &block)?;
        Ok(block.read(|bytes| SegmentHeader::decode(block_of(bytes, 0), self.head.store, segment)))
    }

    /// Reads the tables of a segment.
    pub(crate) fn read_tables(
        &self,
        header: &SegmentHeader,
        cipher: Option<&Cipher>,
        chunk: &Span,
    ) -> io::Result<Tables> {
        let (store, segment, segment_use) = (self.head.store, header.segment, header.segment_use);
        let mut tables = Tables { segment_use, ..Tables::default() };
        self.each_table(segment, chunk, &mut |index, block| {
            tables.take(index, Table::decode(block, store, segment, segment_use, cipher))
        })?;
        Ok(tables)
    }

    /// Shows `take` the table blocks of a segment, each with its number from the end, until it
    /// has called two in a row not its own by `false`.
    pub(crate) fn each_table(
        &self,
        segment: SegmentId,
        chunk: &Span,
        take: &mut dyn FnMut(u32, &Block) -> bool,
    ) -> io::Result<()> {
        let layout = &self.head.layout;
        let mut strangers = 0;
        let mut first = 0;
        while first < layout.max_tables() {
            let count = CHUNK_BLOCKS.min(layout.max_tables() - first);
            let blocks = chunk.sub(0, count as usize * BLOCK_LEN).map_err(io::Error::other)?;
            read_padded(self.storage, layout.table_at(segment, first + count - 1), &blocks)?;
            for index in first..first + count {
                // They grow backwards: the first lies last.
                let at = (first + count - 1 - index) as usize;
                let own = blocks.read(|bytes| take(index, block_of(bytes, at)));
                strangers = if own { 0 } else { strangers + 1 };
                if strangers == END_OF_TABLES {
                    return Ok(());
                }
            }
            first += count;
        }
        Ok(())
    }
}

fn block_of(bytes: &[u8], index: usize) -> &Block {
    let at = index * BLOCK_LEN;
    bytes[at..at + BLOCK_LEN].try_into().expect("a block is 4096 bytes")
}

/// The tables of one segment, the fullest copy of each batch.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// By number.
    pub(crate) batches: BTreeMap<u32, Table>,
    /// In which block each of them was found.
    places: BTreeMap<u32, u32>,
    segment_use: SegmentUse,
    /// Whether a seal was found.
    pub(crate) sealed: bool,
    /// What that seal does not speak for.
    pub(crate) unproved: Option<Unproved>,
    /// Blocks that did not prove themselves.
    pub(crate) corrupt: u64,
}

impl Tables {
    /// Takes in what lies at block `index`; false if it is not one of this segment's tables.
    fn take(&mut self, index: u32, decoded: Decoded<Table>) -> bool {
        match decoded {
            // A batch lies at its own place or, while it was not full, at the next one.
            Decoded::Valid(table) if table.may_lie_at(index) => {
                self.sealed |= table.sealed;
                let known = self.batches.get(&table.batch).map_or(0, |t| t.entries.len());
                if !table.sealed && table.entries.len() > known {
                    self.places.insert(table.batch, index);
                    self.batches.insert(table.batch, table);
                } else if let Some(late) = table.late {
                    self.unproved = Some(late.unproved);
                }
                true
            }
            Decoded::Foreign => false,
            Decoded::Valid(_) | Decoded::Corrupt | Decoded::Version(_) => {
                self.corrupt += 1;
                true
            }
        }
    }

    /// Whether a record is believed as it is: the segment was sealed, and the seal speaks for it.
    pub(crate) fn speak_for(&self, record: u32) -> bool {
        let unproved = self.unproved.as_ref();
        self.sealed && !unproved.is_some_and(|unproved| unproved.contains(record))
    }

    /// How a segment that was not sealed can be sealed; `None` where it was, or cannot be.
    fn left_open(&self, head: &Superblock, records: &Records) -> Option<LeftOpen> {
        let (last, place) = self.places.last_key_value().filter(|_| !self.sealed)?;
        // Of the two places of the last batch it takes the one that is not read: should it be torn,
        // nothing is lost by it.
        let seal_at = if place == last { last + 1 } else { *last };
        let free = self.places.values().all(|place| *place != seal_at);
        // No store of ours has a record so far back, but a forged one may say so.
        let start = head.layout.segment_bytes.checked_sub((u64::from(seal_at) + 1) * BLOCK)?;
        let behind = |record: &Record| record.is_live() && !record.is_inside(start);
        let room = seal_at < head.layout.max_tables() && !records.iter().any(behind);
        let tables = || self.places.values().copied().collect();
        (free && room).then(|| LeftOpen { tables: tables(), seal_at })
    }

    fn into_records(
        self,
        head: &Superblock,
        device: DeviceId,
        segment: SegmentId,
        found: &mut Found,
    ) {
        let segment_use = self.segment_use;
        for table in self.batches.values() {
            let first = table.batch * ENTRIES_PER_TABLE as u32;
            // A batch that is lost leaves a gap: numbers never shift.
            found.records.fill(first as usize);
            for (record, entry) in (first..).zip(&table.entries) {
                let kept = Record {
                    offset_blocks: entry.offset_blocks,
                    page_bytes: entry.identity.page_bytes,
                    payload_crc: entry.payload_crc,
                    proof: entry.proof,
                };
                if entry.void || !kept.is_inside(head.layout.segment_bytes) {
                    found.corrupt += u64::from(!entry.void);
                    found.records.push(Record::default());
                    continue;
                }
                found.records.push(kept);
                found.recovered.push(RecoveredRecord {
                    identity: entry.identity,
                    origin: entry.origin,
                    extent: Extent { device, segment, segment_use, record },
                    payload_crc: entry.payload_crc,
                    sealed: self.speak_for(record),
                });
            }
        }
        found.left_open = self.left_open(head, &found.records);
    }
}
