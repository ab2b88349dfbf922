//! Finding the records at start: headers and tables are read, payloads are not.

use crate::format::{
    BLOCK_LEN, Block, Decoded, ENTRIES_PER_TABLE, Position, SegmentHeader, Superblock, Table,
    payload_crc,
};
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
const CHUNK_BLOCKS: u32 = 16;
/// Segments read at the same time: enough to keep an SSD busy, little memory.
const THREADS: usize = 8;
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

/// What was found in one segment.
#[derive(Debug, Default)]
struct Found {
    segment_use: SegmentUse,
    records: Vec<Record>,
    recovered: Vec<RecoveredRecord>,
    corrupt: u64,
    io_errors: u64,
}

/// Reads the headers and tables of all segments.
pub(crate) fn scan(
    storage: &dyn Storage,
    head: &Superblock,
    device: DeviceId,
) -> Result<Scan, ArenaError> {
    let next = AtomicU32::new(0);
    let results: Mutex<BTreeMap<u32, Found>> = Mutex::new(BTreeMap::new());
    let work = |chunk: &Span| {
        loop {
            let segment = next.fetch_add(1, Ordering::Relaxed);
            if segment >= head.layout.segments {
                return;
            }
            let found = scan_segment(storage, head, device, SegmentId(segment), chunk);
            results.lock().expect("no scanning thread panics").insert(segment, found);
        }
    };
    let threads = THREADS.min(head.layout.segments as usize);
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
        if found.recovered.is_empty() {
            scan.segments.push(Segment::free());
            scan.recovery.free_segments += 1;
        } else {
            scan.segments.push(Segment::recovered(found.segment_use, found.records));
            batches.push((found.segment_use, found.recovered));
        }
    }
    batches.sort_by_key(|(segment_use, _)| *segment_use);
    scan.recovery.records = batches.into_iter().flat_map(|(_, records)| records).collect();
    scan
}

fn scan_segment(
    storage: &dyn Storage,
    head: &Superblock,
    device: DeviceId,
    segment: SegmentId,
    chunk: &Span,
) -> Found {
    let mut found = Found::default();
    let scanned = match read_header(storage, head, segment, chunk) {
        Ok(Decoded::Valid(header)) => {
            found.segment_use = header.segment_use;
            if header.freed {
                return found;
            }
            read_tables(storage, head, &header, chunk)
        }
        Ok(Decoded::Foreign) => return found,
        Ok(Decoded::Corrupt | Decoded::Version(_)) => {
            found.corrupt += 1;
            return found;
        }
        Err(e) => Err(e),
    };
    match scanned {
        Ok(tables) => {
            found.corrupt += tables.corrupt;
            tables.into_records(head, device, segment, &mut found);
        }
        Err(_) => found.io_errors += 1,
    }
    found
}

fn block_of(bytes: &[u8], index: usize) -> &Block {
    let at = index * BLOCK_LEN;
    bytes[at..at + BLOCK_LEN].try_into().expect("a block is 4096 bytes")
}

fn read_header(
    storage: &dyn Storage,
    head: &Superblock,
    segment: SegmentId,
    chunk: &Span,
) -> io::Result<Decoded<SegmentHeader>> {
    let block = chunk.sub(0, BLOCK_LEN).map_err(io::Error::other)?;
    read_padded(storage, head.layout.segment_at(segment), &block)?;
    Ok(block.read(|bytes| SegmentHeader::decode(block_of(bytes, 0), head.store, segment)))
}

/// The tables of one segment, the fullest copy of each batch.
#[derive(Debug, Default)]
struct Tables {
    batches: BTreeMap<u32, Table>,
    segment_use: SegmentUse,
    sealed: bool,
    corrupt: u64,
}

fn read_tables(
    storage: &dyn Storage,
    head: &Superblock,
    header: &SegmentHeader,
    chunk: &Span,
) -> io::Result<Tables> {
    let (layout, segment) = (&head.layout, header.segment);
    let mut tables = Tables { segment_use: header.segment_use, ..Tables::default() };
    let mut strangers = 0;
    let mut first = 0;
    while first < layout.max_tables() {
        let count = CHUNK_BLOCKS.min(layout.max_tables() - first);
        let blocks = chunk.sub(0, count as usize * BLOCK_LEN).map_err(io::Error::other)?;
        read_padded(storage, layout.table_at(segment, first + count - 1), &blocks)?;
        for index in first..first + count {
            // They grow backwards: the first lies last.
            let at = (first + count - 1 - index) as usize;
            let decoded = blocks.read(|bytes| {
                Table::decode(block_of(bytes, at), head.store, segment, header.segment_use)
            });
            strangers = if tables.take(index, decoded) { 0 } else { strangers + 1 };
            if strangers == END_OF_TABLES {
                return Ok(tables);
            }
        }
        first += count;
    }
    Ok(tables)
}

impl Tables {
    /// Takes in what lies at block `index`; false if it is not one of this segment's tables.
    fn take(&mut self, index: u32, decoded: Decoded<Table>) -> bool {
        match decoded {
            // A batch lies at its own place or, while it was not full, at the next one.
            Decoded::Valid(table) if index == table.batch || index == table.batch + 1 => {
                self.sealed |= table.sealed;
                let known = self.batches.get(&table.batch).map_or(0, |t| t.entries.len());
                if !table.sealed && table.entries.len() > known {
                    self.batches.insert(table.batch, table);
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
            found.records.resize(first as usize, Record::default());
            for (record, entry) in (first..).zip(&table.entries) {
                let kept = Record {
                    offset_blocks: entry.offset_blocks,
                    page_bytes: entry.identity.page_bytes,
                    proof: entry.proof,
                };
                if entry.void || !kept.is_inside(head.layout.segment_bytes) {
                    found.corrupt += u64::from(!entry.void);
                    found.records.push(Record::default());
                    continue;
                }
                found.records.push(kept);
                let position = Position { store: head.store, segment, segment_use, record };
                found.recovered.push(RecoveredRecord {
                    identity: entry.identity,
                    extent: Extent { device, segment, segment_use, record },
                    payload_crc: payload_crc(&entry.identity, &position, entry.proof),
                    sealed: self.sealed,
                });
            }
        }
    }
}
