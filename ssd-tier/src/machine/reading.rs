//! Reads, relocations and proofs: what is done with bytes that came from the medium.

use super::writing::page_io;
use super::{Errand, LIFTS, Lift, Machine, TURN_BYTES, Task, is_frame};
use crate::engine::Kind;
use crate::proof::Subject;
use crate::scratch::ScratchPage;
use crate::segment::Record;
use crate::{Completion, ReadOutcome, RelocateOutcome};
use undercroft_arena::Span;
use undercroft_wire::{Extent, JobId, PageIdentity};

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
                let task = self.tasks.insert(Task::Read { job, identity, extent, record });
                self.reads.push_back(page_io(task, Kind::Read, offset, into));
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

    /// Reads pages into the log's own memory as long as there is room and not too many are there.
    /// Appends that wait for room get the next, or a long row of lifts would hold them up.
    pub(super) fn start_lifts(&mut self) {
        while self.lifted < LIFTS
            && (self.lifted == 0 || !self.waits_for_room())
            && let Some(lift) = self.lifts.pop_front()
        {
            let Some(record) = self.lookup(&lift.identity, &lift.extent) else {
                self.counters.corrupt_records += 1;
                self.end_lift(&lift, ReadOutcome::Corrupt);
                continue;
            };
            match self.scratch.lend(lift.identity.page_bytes) {
                Ok(Some(page)) => {
                    self.lifted += 1;
                    let offset = self.writer.offset(&lift.extent, &record);
                    let frame = page.frame.clone();
                    let task = self.tasks.insert(Task::Fetch { lift, record, page });
                    self.reads.push_back(page_io(task, Kind::Read, offset, frame));
                }
                Ok(None) => {
                    self.lifts.push_front(lift);
                    return;
                }
                Err(_) => self.end_lift(&lift, ReadOutcome::Failed),
            }
        }
    }

    /// Gives the memory of a lifted page back.
    pub(super) fn put_down(&mut self, page: ScratchPage) {
        self.lifted -= 1;
        self.scratch.take_back(page);
    }

    /// Takes a page that is to be lifted.
    pub(super) fn lift(&mut self, lift: Lift) {
        if self.takes(lift.errand) {
            self.lifts.push_back(lift);
        } else {
            self.end_lift(&lift, ReadOutcome::Failed);
        }
    }

    /// Answers a lift that goes no further.
    pub(super) fn end_lift(&mut self, lift: &Lift, outcome: ReadOutcome) {
        let job = lift.job;
        match (lift.errand, outcome) {
            (Errand::Prove, outcome) => self.answers.push(Completion::Proved { job, outcome }),
            (Errand::Relocate(_), ReadOutcome::Corrupt) => {
                self.relocated(job, RelocateOutcome::Corrupt);
            }
            (Errand::Relocate(_), _) => self.relocated(job, RelocateOutcome::Failed),
        }
    }

    /// Whether the bytes that landed are the page's; if so, they are the page afterwards.
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
        if self.lookup(identity, extent) != Some(*record) {
            // Its segment was given up while it was read, and its keys with it.
            return ReadOutcome::Corrupt;
        }
        let page = landed.sub(0, identity.page_bytes as usize).expect("a frame holds its page");
        let (position, payload_crc) = (self.writer.position(extent), record.payload_crc);
        let subject = Subject { identity, position, payload_crc };
        let cipher = self.writer.cipher(extent.segment);
        if !page.write(|bytes| subject.open(cipher, &record.proof, bytes)) {
            self.counters.corrupt_records += 1;
            return ReadOutcome::Corrupt;
        }
        self.counters.read_records += 1;
        self.counters.read_bytes += u64::from(identity.page_bytes);
        ReadOutcome::Verified { payload_crc }
    }

    /// Goes on with a lifted page.
    fn lifted(&mut self, lift: Lift, record: Record, page: ScratchPage, ok: bool) {
        let outcome = self.verify(&lift.identity, &lift.extent, &record, &page.frame, ok);
        match (lift.errand, outcome) {
            (Errand::Relocate(origin), ReadOutcome::Verified { payload_crc }) => {
                self.restore(lift, origin, payload_crc, page);
            }
            (_, outcome) => {
                self.put_down(page);
                self.end_lift(&lift, outcome);
            }
        }
    }

    /// Whether something can be done that waits for no transfer: bytes have landed that were not
    /// checked yet, or a page is to be encrypted.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.landed.is_empty() || self.has_to_seal()
    }

    /// Checks and answers some of what has landed. Checking takes the processor; so the owner
    /// first starts the transfers that took the place of these, and the medium is never idle
    /// for it.
    pub fn work(&mut self) {
        let mut checked = 0;
        while checked < TURN_BYTES
            && let Some((task, span)) = self.landed.pop_front()
        {
            checked += span.len();
            let task = self.tasks.remove(task);
            self.judge(task, span, true);
        }
    }

    /// Answers a read, or goes on with a lifted page, whose transfer is over.
    pub(super) fn judge(&mut self, task: Task, into: Span, ok: bool) {
        match task {
            Task::Read { job, identity, extent, record } => {
                let outcome = self.verify(&identity, &extent, &record, &into, ok);
                self.answers.push(Completion::Read { job, into, outcome });
            }
            Task::Fetch { lift, record, page } => self.lifted(lift, record, page, ok),
            Task::Mend(mend) => self.mend_landed(mend),
            _ => unreachable!("only reads land"),
        }
    }
}
