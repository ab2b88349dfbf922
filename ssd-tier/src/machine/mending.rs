//! Mending a segment that was found open at start, so that no later start has its records prove
//! themselves again: each is read, proves itself and is written again as it is.

use super::{Machine, Task};
use crate::engine::{Engine, Io, Kind};
use crate::format::{Block, TableEntry};
use crate::scratch::ScratchPage;
use crate::seal::Unproved;
use crate::segment::Record;
use crate::storage::block_memory;
use crate::writer::Patient;
use std::collections::VecDeque;
use std::time::Duration;
use undercroft_arena::Span;
use undercroft_wire::{Extent, PageIdentity};

/// A device that has other things to do is asked for one transfer in so long a time.
const PAUSE: Duration = Duration::from_millis(10);

/// How far a segment is mended. One transfer of it is under way at a time.
#[derive(Debug)]
pub(super) struct Mending {
    patient: Patient,
    unproved: Unproved,
    header_written: bool,
    /// The batch that comes next, or whose records are being mended.
    batch: usize,
    /// Whether its table block is in `block`.
    has_table: bool,
    /// Records of it that are to be mended.
    records: VecDeque<(Extent, TableEntry, Record)>,
    block: Span,
    step: Step,
    last: Duration,
}

/// Where its transfer is.
#[derive(Debug)]
enum Step {
    /// None is under way.
    Next,
    /// To be started.
    Ready(Io),
    InFlight,
}

/// What a transfer of it does.
#[derive(Debug)]
pub(super) enum Mend {
    Header,
    ReadTable,
    ReadRecord { identity: PageIdentity, extent: Extent, record: Record, page: ScratchPage },
    WriteRecord { page: ScratchPage },
    WriteTable,
}

impl Machine {
    /// Goes on with the segment that is being mended, or begins with one.
    pub(super) fn mend(&mut self, engine: &mut dyn Engine, now: Duration) {
        if self.mending.is_none() && !self.begin_mending(now) {
            return;
        }
        let Some(mending) = &mut self.mending else { return };
        if matches!(mending.step, Step::InFlight) {
            return;
        }
        if self.closing || !self.writer.goes_on_mending() {
            return self.end_mending(false, now);
        }
        if !self.watch.takes_writes() || (now < mending.last + PAUSE && self.is_busy()) {
            return;
        }
        if let Some(io) = self.next_of_mending(now) {
            let mending = self.mending.as_mut().expect("it is being mended");
            mending.step = Step::InFlight;
            self.launch(io, engine, now);
        }
    }

    fn begin_mending(&mut self, now: Duration) -> bool {
        if self.closing || !self.watch.takes_writes() {
            return false;
        }
        let Some(patient) = self.writer.begin_mending() else { return false };
        let Ok(block) = block_memory(1) else {
            self.writer.end_mending(None, now);
            return false;
        };
        self.mending = Some(Mending {
            patient,
            unproved: Unproved::none(),
            header_written: false,
            batch: 0,
            has_table: false,
            records: VecDeque::new(),
            block,
            step: Step::Next,
            last: now,
        });
        true
    }

    /// Whether somebody waits for the device.
    fn is_busy(&self) -> bool {
        let waiting = !self.reads.is_empty() || !self.writes.is_empty() || !self.lifts.is_empty();
        waiting || self.pages_in_flight > self.depth.now() / 2
    }

    /// When to go on or to begin, if nothing happens before.
    pub(super) fn next_mending(&self) -> Option<Duration> {
        if !self.watch.takes_writes() || self.closing {
            return None;
        }
        match &self.mending {
            Some(Mending { step: Step::InFlight, .. }) => None,
            Some(mending) => Some(mending.last + PAUSE),
            None => self.writer.has_to_mend().then_some(Duration::ZERO),
        }
    }

    /// The next transfer. None if there is no memory for it yet, or none is left to be done; then
    /// the mending has ended.
    fn next_of_mending(&mut self, now: Duration) -> Option<Io> {
        let mending = self.mending.as_mut().expect("it is being mended");
        if let Step::Ready(io) = std::mem::replace(&mut mending.step, Step::Next) {
            return Some(io);
        }
        let patient = &mending.patient;
        let block = mending.block.clone();
        if !mending.header_written {
            let (offset, bytes) = &patient.header;
            block.copy_from_slice(bytes);
            let task = self.tasks.insert(Task::Mend(Mend::Header));
            return Some(Io::new(task, Kind::Write, *offset, Some(block)));
        }
        let Some(&table) = patient.tables.get(mending.batch) else {
            self.end_mending(true, now);
            return None;
        };
        let Some((extent, entry, record)) = mending.records.pop_front() else {
            let (kind, mend) = match mending.has_table {
                true => (Kind::Write, Mend::WriteTable),
                false => (Kind::Read, Mend::ReadTable),
            };
            let task = self.tasks.insert(Task::Mend(mend));
            return Some(Io::new(task, kind, table, Some(block)));
        };
        let page = match self.scratch.lend(record.page_bytes) {
            Ok(Some(page)) => page,
            Ok(None) => {
                mending.records.push_front((extent, entry, record));
                mending.last = now;
                return None;
            }
            Err(_) => {
                self.end_mending(false, now);
                return None;
            }
        };
        let (offset, frame) = (self.writer.offset(&extent, &record), page.frame.clone());
        let identity = entry.identity;
        let task = Task::Mend(Mend::ReadRecord { identity, extent, record, page });
        Some(Io::new(self.tasks.insert(task), Kind::Read, offset, Some(frame)))
    }

    /// A transfer of it is over. What was read of a record is looked at later, in
    /// [`Machine::mend_landed`].
    pub(super) fn mend_over(&mut self, mend: Mend, ok: bool, now: Duration) {
        let mending = self.mending.as_mut().expect("its transfers are over before it ends");
        mending.step = Step::Next;
        mending.last = now;
        let ok = match mend {
            Mend::Header => {
                mending.header_written = true;
                ok
            }
            Mend::ReadTable => ok && self.take_table(),
            Mend::ReadRecord { page, .. } => {
                debug_assert!(!ok, "what was read is looked at first");
                self.scratch.take_back(page);
                ok
            }
            Mend::WriteRecord { page } => {
                self.counters.mended_records += u64::from(ok);
                self.counters.mended_bytes += if ok { page.frame.len() as u64 } else { 0 };
                self.scratch.take_back(page);
                ok
            }
            Mend::WriteTable => {
                (mending.has_table, mending.batch) = (false, mending.batch + 1);
                ok
            }
        };
        if !ok {
            // It can be read as before, and be mended by the next start.
            self.end_mending(false, now);
        }
    }

    fn take_table(&mut self) -> bool {
        let mending = self.mending.as_mut().expect("it is being mended");
        let found = mending.block.read(|bytes| {
            let block: &Block = bytes.try_into().expect("a block is 4096 bytes");
            self.writer.entries_to_mend(&mending.patient, mending.batch, block)
        });
        mending.has_table = found.is_some();
        mending.records.extend(found.iter().flatten());
        found.is_some()
    }

    /// Whether a transfer that landed is one of a record to be mended.
    pub(super) fn is_to_mend(&self, task: usize) -> bool {
        matches!(self.tasks.get(task), Some(Task::Mend(Mend::ReadRecord { .. })))
    }

    /// A record's bytes are there: if they prove themselves, they are written where they came from.
    pub(super) fn mend_landed(&mut self, mend: Mend) {
        let Mend::ReadRecord { identity, extent, record, page } = mend else {
            unreachable!("only records land")
        };
        let mending = self.mending.as_mut().expect("its transfers are over before it ends");
        let bytes = page.frame.sub(0, identity.page_bytes as usize);
        let bytes = bytes.expect("a frame holds its page");
        if bytes.write(|bytes| self.writer.mend(&identity, &extent, &record, bytes)) {
            let (offset, frame) = (self.writer.offset(&extent, &record), page.frame.clone());
            let task = self.tasks.insert(Task::Mend(Mend::WriteRecord { page }));
            mending.step = Step::Ready(Io::new(task, Kind::Write, offset, Some(frame)));
            return;
        }
        self.scratch.take_back(page);
        mending.step = Step::Next;
        if !mending.unproved.add(extent.record) {
            // The seal has no room for its number.
            self.writer.give_up_mending();
        }
    }

    fn end_mending(&mut self, whole: bool, now: Duration) {
        let mending = self.mending.take().expect("it is being mended");
        if let Step::Ready(io) = mending.step
            && let Task::Mend(Mend::WriteRecord { page }) = self.tasks.remove(io.task)
        {
            self.scratch.take_back(page);
        }
        self.writer.end_mending(whole.then_some(mending.unproved), now);
    }
}
