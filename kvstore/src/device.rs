//! The SSD tier as the control thread drives it: what is under way, what waits for the page log's
//! queue, and what each completion means to the core.

use std::collections::{HashSet, VecDeque};
use undercroft_core::{AppendOutcome, Event, Health, ReadOutcome};
use undercroft_ssd_tier::{self as ssd, Completion, LogCounters, LogFacts, Op, PageLog};
use undercroft_wire::{DeviceId, JobId};

/// A page log and the work it was given.
pub(crate) struct Device {
    log: PageLog,
    /// Work that found the log's queue full. Bounded by the frames the core reserved for it.
    waiting: VecDeque<Op>,
    /// Appends and relocations not yet answered. If the log is lost they failed; the kernel only
    /// reads their frames. A read not yet answered then keeps its frame for good: the kernel may
    /// still write to it.
    appends: HashSet<JobId>,
    relocations: HashSet<JobId>,
}

impl Device {
    pub(crate) fn new(log: PageLog) -> Self {
        Self { log, waiting: VecDeque::new(), appends: HashSet::new(), relocations: HashSet::new() }
    }

    pub(crate) fn facts(&self) -> &LogFacts {
        self.log.facts()
    }

    pub(crate) fn counters(&self) -> LogCounters {
        self.log.counters()
    }

    /// Hands an operation over, now or as soon as the log's queue takes it.
    pub(crate) fn submit(&mut self, op: Op) {
        match &op {
            Op::Append { job, .. } => {
                self.appends.insert(*job);
            }
            Op::Relocate { job, .. } => {
                self.relocations.insert(*job);
            }
            Op::Read { .. } | Op::Prove { .. } | Op::FreeSegment { .. } => {}
        }
        self.waiting.push_back(op);
        self.push_waiting();
    }

    /// Whether operations wait for the log's queue.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Hands waiting operations over as far as the log's queue takes them, in order.
    pub(crate) fn push_waiting(&mut self) {
        while let Some(op) = self.waiting.pop_front() {
            if let Err(op) = self.log.submit(op) {
                self.waiting.push_front(op);
                return;
            }
        }
    }

    /// What a completion means to the core.
    pub(crate) fn completed(&mut self, completion: Completion) -> Vec<Event<'static>> {
        match completion {
            Completion::Appended { job, outcome, free_segments, .. } => {
                self.appends.remove(&job);
                vec![Event::Appended { job, outcome: append_outcome(outcome), free_segments }]
            }
            Completion::Read { job, outcome, .. } => {
                vec![Event::ReadDone { job, outcome: read_outcome(outcome) }]
            }
            Completion::Relocated { job, outcome, free_segments } => {
                self.relocations.remove(&job);
                vec![Event::Relocated { job, outcome: relocate_outcome(outcome), free_segments }]
            }
            Completion::SegmentFreed { device, segment, segment_use, free_segments } => {
                vec![Event::SegmentFreed { device, segment, segment_use, free_segments }]
            }
            Completion::Proved { job, outcome } => {
                vec![Event::Proved { job, outcome: read_outcome(outcome) }]
            }
            Completion::Health { device, health } => {
                vec![Event::DeviceHealth { device, health: core_health(health) }]
            }
            Completion::DeviceLost { device } => {
                tracing::error!(%device, "the SSD tier is gone: its pages are misses from here on");
                self.lost()
            }
        }
    }

    fn lost(&mut self) -> Vec<Event<'static>> {
        // What never reached the log has touched nothing: it can be answered whatever it is.
        let untouched = self.waiting.drain(..).filter_map(|op| match op {
            Op::Read { job, .. } => Some(Event::ReadDone { job, outcome: ReadOutcome::Failed }),
            _ => None,
        });
        let mut events = vec![Event::DeviceLost { device: DeviceId(0) }];
        events.extend(untouched);
        let failed = AppendOutcome::Failed;
        events.extend(self.appends.drain().map(|job| Event::Appended {
            job,
            outcome: failed,
            free_segments: 0,
        }));
        events.extend(self.relocations.drain().map(|job| Event::Relocated {
            job,
            outcome: failed,
            free_segments: 0,
        }));
        events
    }

    /// Writes what is pending and closes the log.
    pub(crate) fn close(self) {
        self.log.close();
    }
}

fn core_health(health: ssd::Health) -> Health {
    match health {
        ssd::Health::Well => Health::Well,
        ssd::Health::Stalled => Health::Stalled,
        ssd::Health::ReadOnly => Health::ReadOnly,
        ssd::Health::Out => Health::Out,
    }
}

fn append_outcome(outcome: ssd::AppendOutcome) -> AppendOutcome {
    match outcome {
        ssd::AppendOutcome::Written(extent) => AppendOutcome::Written(extent),
        ssd::AppendOutcome::NoSpace => AppendOutcome::NoSpace,
        ssd::AppendOutcome::Failed => AppendOutcome::Failed,
    }
}

fn read_outcome(outcome: ssd::ReadOutcome) -> ReadOutcome {
    match outcome {
        ssd::ReadOutcome::Verified { payload_crc } => ReadOutcome::Ok(payload_crc),
        ssd::ReadOutcome::Corrupt => ReadOutcome::Corrupt,
        ssd::ReadOutcome::Failed => ReadOutcome::Failed,
    }
}

fn relocate_outcome(outcome: ssd::RelocateOutcome) -> AppendOutcome {
    match outcome {
        ssd::RelocateOutcome::Written(extent) => AppendOutcome::Written(extent),
        ssd::RelocateOutcome::NoSpace => AppendOutcome::NoSpace,
        ssd::RelocateOutcome::Corrupt | ssd::RelocateOutcome::Failed => AppendOutcome::Failed,
    }
}
