//! Reads and relocations: what is done with bytes that came from the medium.

use super::{Machine, Relocation, Task, is_frame};
use crate::engine::Kind;
use crate::format::proof;
use crate::scratch::ScratchPage;
use crate::segment::Record;
use crate::writer::{Placement, Purpose};
use crate::{Completion, ReadOutcome, RelocateOutcome};
use undercroft_arena::{Span, checksum};
use undercroft_wire::{Extent, JobId, PageIdentity};

/// Bytes checked before the engine is looked after again.
const CHECK_BYTES: usize = 1 << 20;

impl Machine {
    /// Starts a read, or answers it at once where there is nothing to read.
    pub(super) fn read(&mut self, job: JobId, identity: PageIdentity, extent: Extent, into: Span) {
        if !is_frame(&into, &identity) {
            self.counters.invalid_ops += 1;
            self.answers.push(Completion::Read { job, into, outcome: ReadOutcome::Failed });
            return;
        }
        match self.lookup(&identity, &extent) {
            Some(record) => {
                let offset = self.writer.offset(&extent, &record);
                let task = Task::Read { job, identity, extent, record };
                self.page_io(Kind::Read, offset, into, task);
            }
            None => {
                self.counters.corrupt_records += 1;
                self.answers.push(Completion::Read { job, into, outcome: ReadOutcome::Corrupt });
            }
        }
    }

    fn lookup(&self, identity: &PageIdentity, extent: &Extent) -> Option<Record> {
        self.writer.record(extent).filter(|record| record.page_bytes == identity.page_bytes)
    }

    /// Starts relocations as long as there is memory for their pages.
    pub(super) fn start_relocations(&mut self) {
        while let Some(relocation) = self.relocations.pop_front() {
            let (job, identity) = (relocation.job, relocation.identity);
            let Some(record) = self.lookup(&identity, &relocation.extent) else {
                self.counters.corrupt_records += 1;
                self.relocated(job, RelocateOutcome::Corrupt);
                continue;
            };
            match self.scratch.lend(identity.page_bytes) {
                Ok(Some(page)) => {
                    let offset = self.writer.offset(&relocation.extent, &record);
                    let frame = page.frame.clone();
                    let task = Task::Fetch { relocation, record, page };
                    self.page_io(Kind::Read, offset, frame, task);
                }
                Ok(None) => {
                    self.relocations.push_front(relocation);
                    return;
                }
                Err(_) => self.relocated(job, RelocateOutcome::Failed),
            }
        }
    }

    /// Whether the bytes that landed are the page's: their checksum, joined with identity and
    /// position, must be the record's proof.
    fn verify(
        &mut self,
        identity: &PageIdentity,
        extent: &Extent,
        record: &Record,
        landed: &Span,
        ok: bool,
    ) -> ReadOutcome {
        if !ok {
            return ReadOutcome::Failed;
        }
        let page = landed.sub(0, identity.page_bytes as usize);
        let payload_crc = checksum(&page.expect("a frame holds its page"));
        if proof(identity, &self.writer.position(extent), payload_crc) != record.proof {
            self.counters.corrupt_records += 1;
            return ReadOutcome::Corrupt;
        }
        self.counters.read_records += 1;
        self.counters.read_bytes += u64::from(identity.page_bytes);
        ReadOutcome::Verified { payload_crc }
    }

    /// Appends a page that was read for relocation.
    fn restore(&mut self, relocation: Relocation, record: Record, page: ScratchPage, ok: bool) {
        let Relocation { job, identity, extent } = &relocation;
        let (job, identity) = (*job, *identity);
        let outcome = match self.verify(&identity, extent, &record, &page.frame, ok) {
            ReadOutcome::Verified { payload_crc } => {
                match self.writer.place(&identity, payload_crc, Purpose::Relocation) {
                    Placement::At(extent, offset) => {
                        let frame = page.frame.clone();
                        let task = Task::Restore { relocation, extent, page };
                        return self.page_io(Kind::Write, offset, frame, task);
                    }
                    Placement::NoSegment | Placement::TooLarge => {
                        self.counters.no_space += 1;
                        RelocateOutcome::NoSpace
                    }
                }
            }
            ReadOutcome::Corrupt => RelocateOutcome::Corrupt,
            ReadOutcome::Failed => RelocateOutcome::Failed,
        };
        self.scratch.take_back(page);
        self.relocated(job, outcome);
    }

    /// Whether bytes have landed that were not checked yet.
    pub(crate) fn has_landed(&self) -> bool {
        !self.landed.is_empty()
    }

    /// Checks and answers some of what has landed. Checking takes the processor; so the owner
    /// first starts the transfers that took the place of these, and the medium is never idle
    /// for it.
    pub(crate) fn check_landed(&mut self) {
        let mut checked = 0;
        while checked < CHECK_BYTES
            && let Some((task, span)) = self.landed.pop_front()
        {
            checked += span.len();
            let task = self.tasks.remove(task);
            self.judge(task, span, true);
        }
    }

    /// Answers a read, or goes on with a relocation, whose transfer is over.
    pub(super) fn judge(&mut self, task: Task, into: Span, ok: bool) {
        match task {
            Task::Read { job, identity, extent, record } => {
                let outcome = self.verify(&identity, &extent, &record, &into, ok);
                self.answers.push(Completion::Read { job, into, outcome });
            }
            Task::Fetch { relocation, record, page } => self.restore(relocation, record, page, ok),
            Task::Append { .. } | Task::Restore { .. } | Task::Chore(_) => {
                unreachable!("only reads land")
            }
        }
    }
}
