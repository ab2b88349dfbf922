//! A segment that is being filled, and how its table of contents is written.

use crate::format::{BLOCK, ENTRIES_PER_TABLE, Table, TableEntry};
use crate::layout::Layout;
use crate::proof::Proof;
use std::collections::VecDeque;
use std::time::Duration;
use undercroft_wire::{SegmentId, SegmentUse, frame_bytes};

/// A record that no full batch names yet.
#[derive(Debug)]
struct Pending {
    entry: TableEntry,
    /// When its write was over; `None` before.
    since: Option<Duration>,
}

/// How far the segment's header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderState {
    ToWrite,
    Writing,
    Written,
}

/// A segment that is being filled. Batches of the table are written one after another. One that
/// is not full is written to its own block and the one after it by turns, so that a torn block
/// never takes with it what an earlier copy named; its last copy always lies at its own place.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) segment: SegmentId,
    pub(crate) segment_use: SegmentUse,
    pub(crate) header: HeaderState,
    /// Where the next record goes, bytes from the segment's start.
    next_offset: u64,
    records: u32,
    /// From the first record of the current batch on.
    pending: VecDeque<Pending>,
    batch: u32,
    /// How many of `pending` the newest copy of the batch names.
    listed: usize,
    /// Whether that copy lies at the batch's own place.
    at_home: bool,
    copies: u32,
    table_in_flight: bool,
    writing: u32,
    closed: bool,
    broken: bool,
    doubted: bool,
}

/// One table block to be written.
#[derive(Debug)]
pub(crate) struct TableJob {
    /// Which block from the end of the segment.
    pub(crate) index: u32,
    /// What it says.
    pub(crate) table: Table,
}

impl Draft {
    /// An empty segment.
    pub(crate) fn new(segment: SegmentId, segment_use: SegmentUse) -> Self {
        Self {
            segment,
            segment_use,
            header: HeaderState::ToWrite,
            next_offset: BLOCK,
            records: 0,
            pending: VecDeque::new(),
            batch: 0,
            listed: 0,
            at_home: true,
            copies: 0,
            table_in_flight: false,
            writing: 0,
            closed: false,
            broken: false,
            doubted: false,
        }
    }

    /// Whether a page of that size can be added.
    pub(crate) fn fits(&self, layout: &Layout, page_bytes: u32) -> bool {
        let stored = u64::from(frame_bytes(page_bytes));
        !self.closed && layout.fits(self.next_offset, stored, self.records + 1)
    }

    /// The number and the offset, in blocks, of the record that is added next.
    pub(crate) fn next(&self) -> (u32, u32) {
        (self.records, (self.next_offset / BLOCK) as u32)
    }

    /// Adds the record [`Draft::next`] spoke of; its write is about to start.
    pub(crate) fn add(&mut self, entry: TableEntry) {
        debug_assert!(!self.closed, "a closed segment takes no records");
        self.next_offset += u64::from(frame_bytes(entry.identity.page_bytes));
        self.records += 1;
        self.writing += 1;
        self.pending.push_back(Pending { entry, since: None });
    }

    fn pending(&mut self, record: u32) -> &mut Pending {
        let first = self.batch * ENTRIES_PER_TABLE as u32;
        record
            .checked_sub(first)
            .and_then(|index| self.pending.get_mut(index as usize))
            .expect("a record that is being written is in no table yet")
    }

    /// A record was encrypted: this is what it will prove itself with.
    pub(crate) fn prove(&mut self, record: u32, proof: Proof) {
        self.pending(record).entry.proof = proof;
    }

    /// A record's write is over.
    pub(crate) fn written(&mut self, record: u32, ok: bool, now: Duration) {
        let pending = self.pending(record);
        assert!(pending.since.is_none(), "a record's write is over once");
        pending.since = Some(now);
        pending.entry.void = !ok;
        self.writing -= 1;
    }

    /// No more records are added.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Gives the segment up: what is in it stays readable, but nothing more is listed.
    pub(crate) fn break_off(&mut self) {
        self.broken = true;
        self.closed = true;
    }

    /// Takes no more records, and will not be sealed: some of it may never reach the medium.
    pub(crate) fn doubt(&mut self) {
        self.doubted = true;
        self.closed = true;
    }

    /// Whether it may not be sealed.
    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Whether it was given up.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// How many records a batch written now can name: those before the first whose write is not
    /// over.
    fn ready(&self) -> usize {
        let batch = self.pending.iter().take(ENTRIES_PER_TABLE);
        batch.take_while(|pending| pending.since.is_some()).count()
    }

    /// Whether `ready` records are all the batch will ever have.
    fn is_last_copy(&self, ready: usize) -> bool {
        ready == ENTRIES_PER_TABLE
            || (self.closed && self.writing == 0 && self.pending.len() == ready)
    }

    /// When the next table block is to be written: at once for a batch that got its last record,
    /// else when its oldest unlisted record has waited for `flush`.
    pub(crate) fn table_due(&self, flush: Duration) -> Option<Duration> {
        if self.table_in_flight || self.broken || self.header != HeaderState::Written {
            return None;
        }
        let ready = self.ready();
        if self.is_last_copy(ready) {
            let complete = ready == self.listed && self.at_home;
            return (!complete).then_some(Duration::ZERO);
        }
        let oldest = self.pending.get(self.listed).filter(|_| ready > self.listed)?;
        oldest.since.map(|since| since + flush)
    }

    /// Starts the table block that is due, the `write`th of this use.
    pub(crate) fn start_table(&mut self, write: u32) -> TableJob {
        let ready = self.ready();
        debug_assert!(ready > 0 && !self.table_in_flight, "a table block is due");
        let home = self.is_last_copy(ready) || self.copies.is_multiple_of(2);
        self.table_in_flight = true;
        self.listed = ready;
        self.at_home = home;
        self.copies += 1;
        let entries = self.pending.iter().take(ready).map(|pending| pending.entry).collect();
        let (segment, segment_use, batch) = (self.segment, self.segment_use, self.batch);
        TableJob {
            index: batch + u32::from(!home),
            table: Table { segment, segment_use, batch, write, sealed: false, entries, late: None },
        }
    }

    /// The table block's write is over.
    pub(crate) fn table_written(&mut self, ok: bool) {
        self.table_in_flight = false;
        if !ok {
            self.break_off();
        } else if self.listed == ENTRIES_PER_TABLE && self.at_home {
            self.pending.drain(..ENTRIES_PER_TABLE);
            self.batch += 1;
            (self.listed, self.at_home, self.copies) = (0, true, 0);
        }
    }

    /// Whether nothing is left to be written but the seal.
    pub(crate) fn is_drained(&self) -> bool {
        let listed = self.broken || (self.pending.len() == self.listed && self.at_home);
        self.closed
            && listed
            && self.writing == 0
            && !self.table_in_flight
            && self.header != HeaderState::Writing
    }
}

/// The block that says that a segment with `records` records is complete, the `write`th of its
/// use.
pub(crate) fn seal(
    segment: SegmentId,
    segment_use: SegmentUse,
    records: u32,
    write: u32,
) -> TableJob {
    let batch = records.div_ceil(ENTRIES_PER_TABLE as u32);
    let entries = Vec::new();
    let table = Table { segment, segment_use, batch, write, sealed: true, entries, late: None };
    TableJob { index: batch, table }
}
