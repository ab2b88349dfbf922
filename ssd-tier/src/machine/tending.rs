//! What is done about a device that falters: everything that waits for it is answered at once, and
//! it is probed until it is well again.

use super::{Errand, Machine, Task};
use crate::engine::{Engine, Io, Kind};
use crate::format::BLOCK;
use crate::machine::writing::Outgoing;
use crate::{Completion, Health, ReadOutcome};
use std::time::Duration;

/// The block that probes write and read back: after the superblocks, before the segments.
const PROBE_AT: u64 = 2 * BLOCK;
const PROBE_MAGIC: [u8; 8] = *b"UCROFTPR";

/// What a probe is about to do. One that gets through all of them says that the device is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Write,
    Flush,
    Read,
}

impl Machine {
    /// What can be asked of the device.
    #[must_use]
    pub fn health(&self) -> Health {
        self.watch.health()
    }

    /// Looks after the device.
    pub(super) fn tend(&mut self, engine: &mut dyn Engine, now: Duration) {
        if let Some(health) = self.watch.check(self.is_clogged(now), now) {
            self.counters.stalls += u64::from(health == Health::Stalled);
            self.report_health();
            self.shed(now);
        }
        if self.watch.begin_probe(now) {
            self.counters.probes += 1;
            let block = self.probe.take().expect("one probe is under way at a time");
            let number = self.counters.probes;
            block.write(|bytes| {
                bytes.fill(number as u8);
                bytes[..8].copy_from_slice(&PROBE_MAGIC);
                bytes[8..16].copy_from_slice(&number.to_le_bytes());
            });
            let task = self.tasks.insert(Task::Probe(Step::Write));
            self.launch(Io::new(task, Kind::Write, PROBE_AT, Some(block)), engine, now);
        }
        if let Some(io) = self.next_step.take() {
            self.launch(io, engine, now);
        }
    }

    /// Whether transfers of pages that are late take all there may be: no other is started before
    /// one of them comes back. A probe says nothing of that: only a part of the device may hang.
    fn is_clogged(&self, now: Duration) -> bool {
        let page = |task: &usize| self.tasks.get(*task).is_some_and(Task::is_page);
        let late = self.watch.late(now).filter(page).count();
        late > 0 && late >= self.depth.now()
    }

    fn report_health(&mut self) {
        let (device, health) = (self.device, self.watch.health());
        self.answers.push(Completion::Health { device, health });
    }

    /// Whether a page may be lifted for this.
    pub(super) fn takes(&self, errand: Errand) -> bool {
        self.watch.takes_reads() && (errand == Errand::Prove || self.watch.takes_writes())
    }

    /// Answers what waits and cannot be started. What the device has is answered when it comes
    /// back: until then its memory belongs to the kernel.
    fn shed(&mut self, now: Duration) {
        if !self.watch.takes_reads() {
            for io in std::mem::take(&mut self.reads) {
                self.over(io, false, now);
            }
        }
        for lift in std::mem::take(&mut self.lifts) {
            if self.takes(lift.errand) {
                self.lifts.push_back(lift);
            } else {
                self.end_lift(&lift, ReadOutcome::Failed);
            }
        }
        if !self.watch.takes_writes() {
            for outgoing in std::mem::take(&mut self.writes) {
                match outgoing {
                    Outgoing::Ready(io) => self.over(io, false, now),
                    Outgoing::ToSeal { task, .. } => self.give_up(task, now),
                }
            }
            for (append, _) in std::mem::take(&mut self.waiting) {
                self.no_space(append);
            }
        }
    }

    /// A step of a probe is over.
    pub(super) fn probe_over(&mut self, step: Step, io: Io, ok: bool, now: Duration) {
        if !ok && step == Step::Flush {
            self.writer.flush_failed(now);
        }
        let ok = ok && self.watch.was_in_time(&io, now);
        let (step, kind) = match step {
            _ if !ok => return self.probed(io, false, now),
            Step::Write => (Step::Flush, Kind::Flush),
            Step::Flush => (Step::Read, Kind::Read),
            Step::Read => {
                let number = self.counters.probes.to_le_bytes();
                let same = io.span.as_ref().is_some_and(|block| {
                    block.read(|bytes| bytes[..8] == PROBE_MAGIC && bytes[8..16] == number)
                });
                return self.probed(io, same, now);
            }
        };
        let block = io.span.or_else(|| self.probe.take()).expect("a probe has its block");
        let task = self.tasks.insert(Task::Probe(step));
        self.next_step = Some(match kind {
            Kind::Flush => {
                self.probe = Some(block);
                Io::new(task, kind, 0, None)
            }
            _ => {
                // What is read back must come from the device.
                block.write(|bytes| bytes.fill(0));
                Io::new(task, kind, PROBE_AT, Some(block))
            }
        });
    }

    fn probed(&mut self, io: Io, well: bool, now: Duration) {
        if let Some(block) = io.span {
            self.probe = Some(block);
        }
        let well = well && !self.is_clogged(now);
        if self.watch.probed(well, now) {
            self.report_health();
        }
    }
}
