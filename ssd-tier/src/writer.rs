//! Where records go: opening, filling, listing, sealing and freeing segments. No I/O: it says
//! which blocks to write, and is told when they are written.

mod mending;

use crate::cipher::{Cipher, CipherMaker};
use crate::draft::{Draft, HeaderState, TableJob, seal};
use crate::format::{BLOCK, Block, Position, SegmentHeader, StoreId, Superblock, TableEntry};
use crate::layout::Layout;
use crate::proof::{Proof, Subject};
use crate::records::Records;
use crate::segment::{Phase, Record, Segment};
pub(crate) use mending::Patient;
use std::collections::VecDeque;
use std::time::Duration;
use undercroft_wire::{DeviceId, Extent, Origin, PageIdentity, SegmentId, SegmentUse, frame_bytes};

/// How long a complete segment may wait for the flush that precedes its seal. One flush serves
/// all that became complete meanwhile.
const SEAL_WAIT: Duration = Duration::from_secs(1);

/// How many of the segments that are opened next are kept ready: the first write to a block that
/// was only reserved costs a file system more than any later one.
const ZERO_AHEAD: usize = 2;

/// What of the log is being written, besides payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chore {
    /// The header that opens a segment.
    Header(SegmentId),
    /// A table block.
    Table(SegmentId),
    /// A flush, so that segments can be sealed.
    Flush,
    /// A seal.
    Seal(SegmentId),
    /// The header that ends a use.
    EndUse(SegmentId),
}

/// A chore and where its block goes; a flush has none.
#[derive(Debug)]
pub(crate) struct ChoreJob {
    pub(crate) chore: Chore,
    pub(crate) write: Option<(u64, Block)>,
}

/// Who asks for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An append: leaves one segment free for relocations.
    Append,
    /// A relocation: may take the last one, since it is what frees others.
    Relocation,
}

/// What became of the wish for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// The record may be written at this offset of the file.
    At(Extent, u64),
    /// No segment is free.
    NoSegment,
    /// No segment is large enough.
    TooLarge,
}

/// All segments of a log.
#[derive(Debug)]
pub(crate) struct Writer {
    device: DeviceId,
    store: StoreId,
    layout: Layout,
    flush_after: Duration,
    /// Makes keys; `None` where nothing is encrypted.
    ciphers: Option<CipherMaker>,
    segments: Vec<Segment>,
    free: VecDeque<SegmentId>,
    zeroing: Option<SegmentId>,
    /// Found open at start and not mended yet, by the age of their uses.
    left_open: Vec<SegmentId>,
    /// The one that is being mended, and whether no flush has failed since.
    mending: Option<(SegmentId, bool)>,
    /// Those being filled or drained; the last may be open.
    drafts: Vec<Draft>,
    open: bool,
    next_use: SegmentUse,
    drained: Vec<SegmentId>,
    drained_since: Duration,
    flushing: Option<Vec<SegmentId>>,
    to_seal: Vec<SegmentId>,
    to_end: VecDeque<SegmentId>,
    closing: bool,
    /// Segments whose use is over, for the owner to report.
    pub(crate) freed: Vec<(SegmentId, SegmentUse)>,
}

impl Writer {
    /// A log with the segments found at start. Uses are numbered from `next_use` on.
    pub(crate) fn new(
        device: DeviceId,
        superblock: &Superblock,
        segments: Vec<Segment>,
        next_use: SegmentUse,
        flush_after: Duration,
        ciphers: Option<CipherMaker>,
    ) -> Self {
        let (store, layout) = (superblock.store, superblock.layout);
        assert_eq!(segments.len(), layout.segments as usize, "every segment was scanned");
        let ids = (0..layout.segments).map(SegmentId);
        let free = ids.clone().filter(|id| segments[id.0 as usize].phase == Phase::Free).collect();
        let state = |id: &SegmentId| &segments[id.0 as usize];
        let mut left_open: Vec<_> = ids.filter(|id| state(id).left_open.is_some()).collect();
        left_open.sort_by_key(|id| state(id).segment_use);
        Self {
            device,
            store,
            layout,
            flush_after,
            ciphers,
            segments,
            free,
            zeroing: None,
            left_open,
            mending: None,
            drafts: Vec::new(),
            open: false,
            next_use,
            drained: Vec::new(),
            drained_since: Duration::ZERO,
            flushing: None,
            to_seal: Vec::new(),
            to_end: VecDeque::new(),
            closing: false,
            freed: Vec::new(),
        }
    }

    /// Bytes of records a segment was sized for.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.layout.room_bytes
    }

    /// Segments that may be opened, the one kept for relocations included.
    pub(crate) fn free_segments(&self) -> u32 {
        (self.free.len() + usize::from(self.zeroing.is_some())) as u32
    }

    /// A segment that is to be zeroed before it is opened: where it lies in the file. The caller
    /// says [`Writer::end_zeroing`].
    pub(crate) fn begin_zeroing(&mut self) -> Option<std::ops::Range<u64>> {
        // Of the last one a relocation may be in need.
        if self.zeroing.is_some() || self.closing || self.free.len() < 2 {
            return None;
        }
        let untouched = |id: &SegmentId| self.segments[id.0 as usize].untouched;
        let index = self.free.iter().take(ZERO_AHEAD).position(untouched)?;
        let id = self.free.remove(index)?;
        self.segments[id.0 as usize].phase = Phase::Zeroing;
        self.zeroing = Some(id);
        let start = self.layout.segment_at(id);
        Some(start..start + self.layout.segment_bytes)
    }

    /// Nothing is written to the segment any more; whether it was zeroed to its end. One that
    /// could not be is used all the same.
    pub(crate) fn end_zeroing(&mut self, whole: bool) {
        let id = self.zeroing.take().expect("a segment is being zeroed");
        let segment = &mut self.segments[id.0 as usize];
        segment.phase = Phase::Free;
        segment.untouched = false;
        if whole { self.free.push_front(id) } else { self.free.push_back(id) }
    }

    /// What is known of a record; `None` if it is not there, or not any more.
    pub(crate) fn record(&self, extent: &Extent) -> Option<Record> {
        let segment = self.segments.get(extent.segment.0 as usize)?;
        let current = extent.device == self.device
            && segment.segment_use == extent.segment_use
            && !matches!(segment.phase, Phase::Free | Phase::Zeroing | Phase::Freeing);
        let record = *segment.records.get(extent.record)?;
        (current && record.is_live()).then_some(record)
    }

    /// Where a record starts in the file.
    pub(crate) fn offset(&self, extent: &Extent, record: &Record) -> u64 {
        self.layout.segment_at(extent.segment) + u64::from(record.offset_blocks) * BLOCK
    }

    /// The position a record's proof is bound to.
    pub(crate) fn position(&self, extent: &Extent) -> Position {
        Position {
            store: self.store,
            segment: extent.segment,
            segment_use: extent.segment_use,
            record: extent.record,
        }
    }

    /// Finds room for a page and gives it a record number. The caller writes the payload and
    /// says [`Writer::written`].
    pub(crate) fn place(
        &mut self,
        (identity, origin): (&PageIdentity, Origin),
        payload_crc: u64,
        purpose: Purpose,
    ) -> Placement {
        let stored = u64::from(frame_bytes(identity.page_bytes));
        if !self.layout.fits(BLOCK, stored, 1) {
            return Placement::TooLarge;
        }
        // While the last free segment is in use, only relocations write: they are what will free
        // another, so nothing may take the room they need.
        let keep = usize::from(purpose == Purpose::Append);
        let fits = |draft: &Draft| draft.fits(&self.layout, identity.page_bytes);
        let open = self.drafts.last().filter(|_| self.open);
        if open.is_some_and(fits) {
            if self.free.len() < keep {
                return Placement::NoSegment;
            }
        } else {
            if self.free.len() <= keep || self.closing {
                return Placement::NoSegment;
            }
            self.close_open();
            self.open_next();
        }
        self.add_record(identity, origin, payload_crc)
    }

    fn open_next(&mut self) {
        let id = self.free.pop_front().expect("a segment is free: the caller checked");
        let segment_use = self.next_use;
        self.next_use = SegmentUse(segment_use.0 + 1);
        let segment = &mut self.segments[id.0 as usize];
        assert_eq!(segment.phase, Phase::Free, "segment {id} is on the free list");
        let cipher = self.ciphers.as_mut().map(|make| make.make(self.store, id, segment_use));
        *segment = Segment { phase: Phase::Filling, segment_use, cipher, ..Segment::free() };
        self.drafts.push(Draft::new(id, segment_use));
        self.open = true;
    }

    fn close_open(&mut self) {
        if std::mem::take(&mut self.open) {
            self.drafts.last_mut().expect("an open segment is the last draft").close();
        }
    }

    fn add_record(
        &mut self,
        identity: &PageIdentity,
        origin: Origin,
        payload_crc: u64,
    ) -> Placement {
        let draft = self.drafts.last_mut().expect("a segment is open");
        let (record, offset_blocks) = draft.next();
        let (segment, segment_use) = (draft.segment, draft.segment_use);
        let extent = Extent { device: self.device, segment, segment_use, record };
        let position = Position { store: self.store, segment, segment_use, record };
        let state = &mut self.segments[segment.0 as usize];
        let proof = match state.cipher {
            Some(_) => Proof::default(),
            None => Subject { identity, position, payload_crc }.crc_proof(),
        };
        let identity = *identity;
        draft.add(TableEntry { identity, origin, offset_blocks, payload_crc, proof, void: false });
        let records = &mut state.records;
        assert_eq!(records.len(), record as usize, "records are numbered without gaps");
        // Not readable before it is written: the length stays 0.
        let kept = Record { offset_blocks, page_bytes: 0, payload_crc, proof };
        records.push(kept);
        Placement::At(extent, self.offset(&extent, &kept))
    }

    /// The keys of the segment a record lies in; `None` where it is not encrypted.
    pub(crate) fn cipher(&self, segment: SegmentId) -> Option<&Cipher> {
        self.segments.get(segment.0 as usize).and_then(Segment::cipher)
    }

    /// A record was encrypted and is about to be written.
    pub(crate) fn prove(&mut self, extent: &Extent, proof: Proof) {
        let index = self.draft_index(extent.segment);
        self.drafts[index].prove(extent.record, proof);
        let records = &mut self.segments[extent.segment.0 as usize].records;
        records[extent.record].proof = proof;
    }

    /// A payload's write is over.
    pub(crate) fn written(&mut self, extent: &Extent, page_bytes: u32, ok: bool, now: Duration) {
        let index = self.draft_index(extent.segment);
        let draft = &mut self.drafts[index];
        draft.written(extent.record, ok, now);
        if ok {
            let records = &mut self.segments[extent.segment.0 as usize].records;
            records[extent.record].page_bytes = page_bytes;
        } else {
            // A medium that failed once here is not written to again in this use.
            self.close_draft(index);
        }
        self.settle(now);
    }

    fn draft_index(&self, segment: SegmentId) -> usize {
        let mut drafts = self.drafts.iter();
        drafts.position(|draft| draft.segment == segment).expect("the segment is being filled")
    }

    fn close_draft(&mut self, index: usize) {
        if self.open && index + 1 == self.drafts.len() {
            self.open = false;
        }
        self.drafts[index].close();
    }

    /// Ends a segment's use. The answer comes through `freed` and may come at once.
    pub(crate) fn free_segment(&mut self, id: SegmentId, segment_use: SegmentUse, now: Duration) {
        let Some(segment) = self.segments.get_mut(id.0 as usize) else {
            self.freed.push((id, segment_use));
            return;
        };
        let current = segment.segment_use == segment_use;
        match segment.phase {
            Phase::Filling if current => {
                segment.free_requested = true;
                let index = self.draft_index(id);
                self.close_draft(index);
                self.settle(now);
            }
            Phase::Sealing | Phase::Mending if current => segment.free_requested = true,
            Phase::Drained | Phase::Closed if current => self.end_use(id),
            // Its answer is on the way.
            Phase::Freeing if current => {}
            _ => self.freed.push((id, segment_use)),
        }
    }

    fn end_use(&mut self, id: SegmentId) {
        self.drained.retain(|drained| *drained != id);
        if let Some(covered) = &mut self.flushing {
            covered.retain(|covered| *covered != id);
        }
        self.to_seal.retain(|waiting| *waiting != id);
        let segment = &mut self.segments[id.0 as usize];
        segment.phase = Phase::Freeing;
        segment.records = Records::default();
        self.to_end.push_back(id);
    }

    fn release(&mut self, id: SegmentId) {
        let segment = &mut self.segments[id.0 as usize];
        segment.phase = Phase::Free;
        segment.records = Records::default();
        self.free.push_back(id);
        if std::mem::take(&mut segment.free_requested) {
            self.freed.push((id, segment.segment_use));
        }
    }

    /// Moves segments that have nothing left to write but their seal on.
    fn settle(&mut self, now: Duration) {
        let mut index = 0;
        while index < self.drafts.len() {
            if !self.drafts[index].is_drained() {
                index += 1;
                continue;
            }
            let draft = self.drafts.remove(index);
            let id = draft.segment;
            let segment = &mut self.segments[id.0 as usize];
            if !segment.has_live() {
                // Nobody else knows of it, so nobody else would ever free it.
                self.release(id);
            } else if segment.free_requested {
                self.end_use(id);
            } else if draft.is_broken() || draft.is_doubted() {
                segment.phase = Phase::Closed;
            } else {
                segment.phase = Phase::Drained;
                self.drain(id, now);
            }
        }
    }

    /// Has a segment wait for the next flush, and then for its seal.
    fn drain(&mut self, id: SegmentId, now: Duration) {
        if self.drained.is_empty() {
            self.drained_since = now;
        }
        self.drained.push(id);
    }

    /// The next chore that is due; the caller carries it out and says [`Writer::chore_done`].
    pub(crate) fn next_chore(&mut self, now: Duration) -> Option<ChoreJob> {
        self.header_chore()
            .or_else(|| self.table_chore(now))
            .or_else(|| self.end_chore())
            .or_else(|| self.seal_chore())
            .or_else(|| self.flush_chore(now))
    }

    fn header_chore(&mut self) -> Option<ChoreJob> {
        let waiting = |draft: &&mut Draft| draft.header == HeaderState::ToWrite;
        let draft = self.drafts.iter_mut().find(waiting)?;
        draft.header = HeaderState::Writing;
        let (segment, segment_use) = (draft.segment, draft.segment_use);
        let salt = self.segments[segment.0 as usize].salt();
        let header = SegmentHeader { segment, segment_use, freed: false, salt };
        let write = Some((self.layout.segment_at(segment), header.encode(self.store)));
        Some(ChoreJob { chore: Chore::Header(segment), write })
    }

    fn table_chore(&mut self, now: Duration) -> Option<ChoreJob> {
        let wait = if self.closing { Duration::ZERO } else { self.flush_after };
        let due = |draft: &&mut Draft| draft.table_due(wait).is_some_and(|due| due <= now);
        let draft = self.drafts.iter_mut().find(due)?;
        let segment = &mut self.segments[draft.segment.0 as usize];
        let job = draft.start_table(segment.next_table_write());
        Some(ChoreJob { chore: Chore::Table(job.table.segment), write: self.table_block(&job) })
    }

    fn table_block(&self, job: &TableJob) -> Option<(u64, Block)> {
        let segment = job.table.segment;
        let offset = self.layout.table_at(segment, job.index);
        Some((offset, job.table.encode(self.store, self.cipher(segment))))
    }

    fn end_chore(&mut self) -> Option<ChoreJob> {
        let segment = self.to_end.pop_front()?;
        let state = &self.segments[segment.0 as usize];
        let (segment_use, salt) = (state.segment_use, state.salt());
        let header = SegmentHeader { segment, segment_use, freed: true, salt };
        let write = Some((self.layout.segment_at(segment), header.encode(self.store)));
        Some(ChoreJob { chore: Chore::EndUse(segment), write })
    }

    fn seal_chore(&mut self) -> Option<ChoreJob> {
        let id = self.to_seal.pop()?;
        let segment = &mut self.segments[id.0 as usize];
        assert_eq!(segment.phase, Phase::Drained, "segment {id} is sealed once");
        segment.phase = Phase::Sealing;
        if let Some(late) = segment.late.take() {
            return Some(self.late_seal(id, late));
        }
        let write = segment.next_table_write();
        let job = seal(id, segment.segment_use, segment.records.len() as u32, write);
        Some(ChoreJob { chore: Chore::Seal(id), write: self.table_block(&job) })
    }

    fn flush_chore(&mut self, now: Duration) -> Option<ChoreJob> {
        let due = self.flush_due().is_some_and(|due| due <= now);
        due.then(|| {
            self.flushing = Some(std::mem::take(&mut self.drained));
            ChoreJob { chore: Chore::Flush, write: None }
        })
    }

    fn flush_due(&self) -> Option<Duration> {
        let wait = if self.closing { Duration::ZERO } else { SEAL_WAIT };
        let waiting = !self.drained.is_empty() && self.flushing.is_none();
        waiting.then(|| self.drained_since + wait)
    }

    /// Ends uses without saying so on the medium, where nothing can be written to it.
    pub(crate) fn end_uses_unsaid(&mut self, now: Duration) {
        while let Some(id) = self.to_end.pop_front() {
            self.chore_done(Chore::EndUse(id), false, now);
        }
    }

    /// When the next chore becomes due, if nothing happens before.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let tables = self.drafts.iter().filter_map(|draft| draft.table_due(self.flush_after));
        // A use may end after the turn's chores were begun.
        let ends = (!self.to_end.is_empty()).then_some(Duration::ZERO);
        tables.chain(self.flush_due()).chain(ends).min()
    }

    /// A chore is over.
    pub(crate) fn chore_done(&mut self, chore: Chore, ok: bool, now: Duration) {
        match chore {
            Chore::Header(id) | Chore::Table(id) => {
                let index = self.draft_index(id);
                if !ok {
                    self.close_draft(index);
                }
                let draft = &mut self.drafts[index];
                match chore {
                    Chore::Table(_) => draft.table_written(ok),
                    _ if ok => draft.header = HeaderState::Written,
                    _ => {
                        draft.header = HeaderState::Written;
                        draft.break_off();
                    }
                }
                self.settle(now);
            }
            Chore::Flush => {
                let covered = self.flushing.take().expect("a flush is in flight");
                if ok {
                    self.to_seal.extend(covered);
                } else {
                    self.drained.extend(covered);
                    self.flush_failed(now);
                }
                // Those that became complete meanwhile wait their own time.
                self.drained_since = now;
            }
            Chore::Seal(id) => {
                self.close_segment(id);
                if self.segments[id.0 as usize].free_requested {
                    self.end_use(id);
                }
            }
            Chore::EndUse(id) => {
                // Should the header not have been written, a restart finds the old records again:
                // they prove themselves or are misses.
                self.segments[id.0 as usize].free_requested = true;
                self.release(id);
            }
        }
    }

    /// A flush has failed. Whatever was written before and not flushed may never reach the medium,
    /// and no later flush says so: it stays readable, checked record by record, and is never
    /// called sealed. That goes for segments that are being filled too; they take no more.
    pub(crate) fn flush_failed(&mut self, now: Duration) {
        let flushing = self.flushing.iter_mut().flat_map(std::mem::take);
        let doubted: Vec<SegmentId> = flushing.chain(self.drained.drain(..)).collect();
        doubted.into_iter().for_each(|id| self.close_segment(id));
        self.give_up_mending();
        self.close_open();
        self.drafts.iter_mut().for_each(Draft::doubt);
        self.settle(now);
    }

    fn close_segment(&mut self, id: SegmentId) {
        self.segments[id.0 as usize].phase = Phase::Closed;
    }

    /// Closes the open segment and makes all chores due at once.
    pub(crate) fn begin_close(&mut self, now: Duration) {
        self.closing = true;
        self.close_open();
        self.settle(now);
    }

    /// Whether nothing is left to be written.
    pub(crate) fn is_quiet(&self) -> bool {
        self.drafts.is_empty()
            && self.drained.is_empty()
            && self.flushing.is_none()
            && self.to_seal.is_empty()
            && self.to_end.is_empty()
            && !self.segments.iter().any(|s| matches!(s.phase, Phase::Sealing | Phase::Freeing))
    }
}
