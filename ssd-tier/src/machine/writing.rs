//! Appends: finding room, encrypting, writing.

use super::{Lift, Machine, Task, is_frame};
use crate::engine::{Io, Kind};
use crate::proof::Subject;
use crate::scratch::ScratchPage;
use crate::writer::{Placement, Purpose};
use crate::{AppendOutcome, Completion};
use std::collections::VecDeque;
use std::time::Duration;
use undercroft_arena::Span;
use undercroft_wire::{Extent, JobId, Origin, PageIdentity};

/// How long an append may wait for a segment to become free.
const APPEND_WAIT: Duration = Duration::from_secs(2);
/// Appends that may wait for one. Their frames wait with them, and nothing else does.
const MAX_WAITING_APPENDS: usize = 4096;

/// A page to be appended.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) job: JobId,
    pub(super) identity: PageIdentity,
    pub(super) origin: Origin,
    pub(super) payload: Span,
    pub(super) payload_crc: u64,
}

/// A page's write that was not started yet.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// What is written is there.
    Ready(Io),
    /// The append of this task is encrypted first.
    ToSeal { task: usize, offset: u64 },
}

impl Machine {
    /// Takes an append.
    pub(super) fn append(&mut self, append: Append, now: Duration) {
        if !is_frame(&append.payload, &append.identity) {
            self.counters.invalid_ops += 1;
            self.appended(append.job, append.payload, AppendOutcome::Failed);
        } else if self.waiting.is_empty() {
            self.try_append(append, now);
        } else {
            self.wait_for_segment(append, now);
        }
    }

    fn try_append(&mut self, append: Append, now: Duration) {
        let purpose = Purpose::Append;
        match self.writer.place((&append.identity, append.origin), append.payload_crc, purpose) {
            Placement::At(extent, offset) => self.write_out(append, extent, offset),
            Placement::NoSegment => self.wait_for_segment(append, now),
            Placement::TooLarge => {
                self.counters.invalid_ops += 1;
                self.appended(append.job, append.payload, AppendOutcome::Failed);
            }
        }
    }

    fn write_out(&mut self, append: Append, extent: Extent, offset: u64) {
        let payload = append.payload.clone();
        let task = self.tasks.insert(Task::Append { append, extent, sealed: None });
        self.writes.push_back(match self.writer.cipher(extent.segment) {
            Some(_) => Outgoing::ToSeal { task, offset },
            None => Outgoing::Ready(page_io(task, Kind::Write, offset, payload)),
        });
    }

    fn wait_for_segment(&mut self, append: Append, now: Duration) {
        if self.closing || self.waiting.len() >= MAX_WAITING_APPENDS {
            self.no_space(append);
        } else {
            self.waiting.push_back((append, now));
        }
    }

    pub(super) fn no_space(&mut self, append: Append) {
        self.counters.no_space += 1;
        self.appended(append.job, append.payload, AppendOutcome::NoSpace);
    }

    pub(super) fn appended(&mut self, job: JobId, payload: Span, outcome: AppendOutcome) {
        let free_segments = self.writer.free_segments();
        self.answers.push(Completion::Appended { job, payload, outcome, free_segments });
    }

    /// Tries again what waits for a segment.
    pub(super) fn retry_waiting(&mut self, now: Duration) {
        let mut rest: VecDeque<_> = std::mem::take(&mut self.waiting);
        while let Some((append, since)) = rest.pop_front() {
            let purpose = Purpose::Append;
            match self.writer.place((&append.identity, append.origin), append.payload_crc, purpose)
            {
                Placement::At(extent, offset) => self.write_out(append, extent, offset),
                _ if self.closing || now >= since + APPEND_WAIT => self.no_space(append),
                _ => {
                    rest.push_front((append, since));
                    break;
                }
            }
        }
        self.waiting = rest;
    }

    /// When the append that has waited longest for a segment is refused.
    pub(super) fn next_refusal(&self) -> Option<Duration> {
        self.waiting.front().map(|(_, since)| *since + APPEND_WAIT)
    }

    /// The next write, encrypted if it must be and the turn and the log's memory allow it.
    pub(super) fn next_write(&mut self, turn: &mut usize, now: Duration) -> Option<Io> {
        while let Some(outgoing) = self.writes.pop_front() {
            let (task, offset) = match outgoing {
                Outgoing::Ready(io) => return Some(io),
                Outgoing::ToSeal { task, offset } => (task, offset),
            };
            if *turn == 0 || !self.scratch.has_room(self.page_bytes_of(task)) {
                self.writes.push_front(Outgoing::ToSeal { task, offset });
                return None;
            }
            if let Some(frame) = self.seal(task) {
                *turn = turn.saturating_sub(frame.len());
                return Some(page_io(task, Kind::Write, offset, frame));
            }
            self.give_up(task, now);
        }
        None
    }

    /// Whether a write waits for no more than another turn.
    pub(super) fn has_to_seal(&self) -> bool {
        let Some(Outgoing::ToSeal { task, .. }) = self.writes.front() else {
            return false;
        };
        self.pages_in_flight < self.depth.now() && self.scratch.has_room(self.page_bytes_of(*task))
    }

    /// Whether the next write waits for room to be encrypted.
    pub(super) fn waits_for_room(&self) -> bool {
        let Some(Outgoing::ToSeal { task, .. }) = self.writes.front() else {
            return false;
        };
        !self.scratch.has_room(self.page_bytes_of(*task))
    }

    fn page_bytes_of(&self, task: usize) -> u32 {
        match self.tasks.get(task) {
            Some(Task::Append { append, .. }) => append.identity.page_bytes,
            _ => unreachable!("only appends are encrypted on their way out"),
        }
    }

    /// Encrypts an append's page into the log's own memory; `None` if the system has none left
    /// for a page this large, or if the page is not what it was.
    fn seal(&mut self, task: usize) -> Option<Span> {
        let Some(Task::Append { append, extent, sealed }) = self.tasks.get_mut(task) else {
            unreachable!("only appends are encrypted on their way out")
        };
        let page = self.scratch.lend(append.identity.page_bytes).ok().flatten()?;
        let cipher = self.writer.cipher(extent.segment).expect("it is encrypted");
        let position = self.writer.position(extent);
        let (identity, payload_crc) = (&append.identity, append.payload_crc);
        let subject = Subject { identity, position, payload_crc };
        let bytes = identity.page_bytes as usize;
        let proof = append.payload.read(|plain| {
            page.frame.write(|room| {
                let (room, padding) = room.split_at_mut(bytes);
                // What was here before may have been a page in the clear.
                padding.fill(0);
                subject.seal(cipher, &plain[..bytes], room)
            })
        });
        let frame = page.frame.clone();
        let Some(proof) = proof else {
            self.scratch.take_back(page);
            self.counters.corrupt_records += 1;
            return None;
        };
        *sealed = Some(page);
        let extent = *extent;
        self.writer.prove(&extent, proof);
        Some(frame)
    }

    /// Ends an append that was not written yet.
    pub(super) fn give_up(&mut self, task: usize, now: Duration) {
        let Task::Append { append, extent, .. } = self.tasks.remove(task) else {
            unreachable!("only appends are encrypted on their way out")
        };
        self.writer.written(&extent, append.identity.page_bytes, false, now);
        self.appended(append.job, append.payload, AppendOutcome::Failed);
    }

    /// Appends a page that was lifted out of its segment and has proved itself.
    pub(super) fn restore(
        &mut self,
        lift: Lift,
        origin: Origin,
        payload_crc: u64,
        page: ScratchPage,
    ) {
        let identity = lift.identity;
        let placed = self.writer.place((&identity, origin), payload_crc, Purpose::Relocation);
        let Placement::At(extent, offset) = placed else {
            self.counters.no_space += 1;
            self.put_down(page);
            return self.relocated(lift.job, crate::RelocateOutcome::NoSpace);
        };
        if let Some(cipher) = self.writer.cipher(extent.segment) {
            let position = self.writer.position(&extent);
            let subject = Subject { identity: &identity, position, payload_crc };
            let proof = page.frame.write(|room| {
                let (payload, padding) = room.split_at_mut(identity.page_bytes as usize);
                padding.fill(0);
                subject.seal_in_place(cipher, payload)
            });
            self.writer.prove(&extent, proof);
        }
        let frame = page.frame.clone();
        let task = self.tasks.insert(Task::Restore { lift, extent, page });
        // Before anything that waits for room to be encrypted: this one gives room back.
        self.writes.push_front(Outgoing::Ready(page_io(task, Kind::Write, offset, frame)));
    }
}

/// A transfer of a whole page.
pub(super) fn page_io(task: usize, kind: Kind, offset: u64, span: Span) -> Io {
    Io::new(task, kind, offset, Some(span))
}
