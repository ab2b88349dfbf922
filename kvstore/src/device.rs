//! One SSD as the control thread drives it: what is under way, what waits for the page log's
//! queue, and what each completion means to the core.

use crate::waiting::Waiting;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_arena::Part;
use undercroft_core::{AppendOutcome, Event, Health, ReadOutcome};
use undercroft_ssd_tier::{self as ssd, Completion, LogCounters, LogFacts, Op, PageLog, Recovery};
use undercroft_wire::{DeviceId, JobId};

/// A completion and the page log it is from.
#[derive(Debug)]
pub(crate) struct Completed {
    pub(crate) device: DeviceId,
    pub(crate) completion: Completion,
}

/// A page log and the work it was given.
pub(crate) struct Device {
    id: DeviceId,
    directory: PathBuf,
    /// `None` until its records are being told, and for good if it cannot be opened.
    log: Option<PageLog>,
    /// Work that is not in the log's queue yet.
    waiting: Waiting,
    /// Jobs not yet answered, but reads. If the log is lost they failed; the kernel only reads
    /// their frames. A read not yet answered then keeps its frame for good: the kernel may still
    /// write to it.
    unanswered: HashMap<JobId, Unanswered>,
    /// When the search for its records began, and how long it took.
    search: Option<(Instant, Option<Duration>)>,
    proofs: Proofs,
}

#[derive(Debug, Clone, Copy)]
enum Unanswered {
    Append,
    Relocation,
    Proof,
}

/// How recovered records proved themselves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Proofs {
    pub(crate) proved: u64,
    pub(crate) disproved: u64,
}

impl Device {
    /// A device whose records are not known yet.
    pub(crate) fn new(id: DeviceId, directory: PathBuf) -> Self {
        Self {
            id,
            directory,
            log: None,
            waiting: Waiting::default(),
            unanswered: HashMap::new(),
            search: None,
            proofs: Proofs::default(),
        }
    }

    /// Where its page log lies.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Known once its log is open.
    pub(crate) fn facts(&self) -> Option<&LogFacts> {
        self.log.as_ref().map(PageLog::facts)
    }

    pub(crate) fn counters(&self) -> LogCounters {
        self.log.as_ref().map(PageLog::counters).unwrap_or_default()
    }

    pub(crate) fn proofs(&self) -> Proofs {
        self.proofs
    }

    /// How long it took until all its records were known.
    pub(crate) fn recovery_time(&self) -> Option<Duration> {
        self.search.and_then(|(_, took)| took)
    }

    /// Its log is open and its records are about to be told.
    pub(crate) fn opened(&mut self, log: PageLog, recovery: &Recovery, began: Instant) {
        let path = self.directory.display();
        let facts = log.facts();
        if let Some(aside) = &facts.set_aside {
            let aside = aside.display();
            tracing::warn!(%path, %aside, "a page log that cannot be read was set aside");
        }
        let Recovery { corrupt_tables, corrupt_superblocks, io_errors, other_protection, .. } =
            recovery;
        if corrupt_tables + io_errors + u64::from(*corrupt_superblocks) > 0 {
            tracing::warn!(
                %path, corrupt_tables, corrupt_superblocks, io_errors,
                "parts of the page log are damaged: what they named is lost"
            );
        }
        if *other_protection > 0 {
            let (segments, encrypted) = (other_protection, facts.encrypted);
            tracing::warn!(
                %path, segments, encrypted,
                "segments from before ssd.encryption was changed are not used"
            );
        }
        self.search = Some((began, None));
        self.log = Some(log);
        self.push_waiting();
    }

    /// All its records were told; `unproved` of them have yet to prove themselves.
    pub(crate) fn recovered(&mut self, unproved: u64) {
        let Some((began, took)) = &mut self.search else { return };
        let took = *took.insert(began.elapsed());
        let records = self.counters().recovered_records;
        let records_per_s = (records as f64 / took.as_secs_f64().max(1e-6)) as u64;
        let (path, ms) = (self.directory.display(), took.as_millis() as u64);
        tracing::info!(%path, records, unproved, ms, records_per_s, "recovered");
    }

    /// Its log cannot be opened, or what it found cannot be told.
    pub(crate) fn failed(&mut self, reason: &str) -> Vec<Event<'static>> {
        let path = self.directory.display();
        tracing::error!(%path, reason, "an SSD is lost: its pages are misses until a restart");
        self.lost()
    }

    /// Hands an operation over, now or as soon as the log's queue takes it.
    pub(crate) fn submit(&mut self, op: Op) {
        let unanswered = match &op {
            Op::Append { job, .. } => Some((*job, Unanswered::Append)),
            Op::Relocate { job, .. } => Some((*job, Unanswered::Relocation)),
            Op::Prove { job, .. } => Some((*job, Unanswered::Proof)),
            Op::Read { .. } | Op::FreeSegment { .. } => None,
        };
        self.unanswered.extend(unanswered);
        self.waiting.push(op);
        self.push_waiting();
    }

    /// The arena has these parts now.
    pub(crate) fn set_memory(&self, parts: Vec<Arc<Part>>) {
        if let Some(log) = &self.log {
            log.set_memory(parts);
        }
    }

    /// Whether operations wait for the log's queue.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Hands waiting operations over as far as the log's queue takes them, reads first. Appends only
    /// as far as it goes on taking others with them: it stops at twice its depth.
    pub(crate) fn push_waiting(&mut self) {
        let Some(log) = &self.log else { return };
        if self.waiting.is_empty() {
            return;
        }
        let appends = 2 * log.counters().queue_depth as usize;
        self.waiting.hand_over(appends, Instant::now(), |op| log.submit(op).err());
    }

    /// What a completion means to the core.
    pub(crate) fn completed(&mut self, completion: Completion) -> Vec<Event<'static>> {
        match completion {
            Completion::Appended { job, outcome, free_segments, .. } => {
                self.unanswered.remove(&job);
                self.waiting.appended(Instant::now());
                vec![Event::Appended { job, outcome: append_outcome(outcome), free_segments }]
            }
            Completion::Read { job, outcome, .. } => {
                vec![Event::ReadDone { job, outcome: read_outcome(outcome) }]
            }
            Completion::Relocated { job, outcome, free_segments } => {
                self.unanswered.remove(&job);
                vec![Event::Relocated { job, outcome: relocate_outcome(outcome), free_segments }]
            }
            Completion::Proved { job, outcome } => {
                self.unanswered.remove(&job);
                match outcome {
                    ssd::ReadOutcome::Verified { .. } => self.proofs.proved += 1,
                    ssd::ReadOutcome::Corrupt | ssd::ReadOutcome::Failed => {
                        self.proofs.disproved += 1;
                    }
                }
                vec![Event::Proved { job, outcome: read_outcome(outcome) }]
            }
            Completion::Health { device, health } => {
                self.log_health(health);
                vec![Event::DeviceHealth { device, health: core_health(health) }]
            }
            Completion::SegmentFreed { device, segment, segment_use, free_segments } => {
                vec![Event::SegmentFreed { device, segment, segment_use, free_segments }]
            }
            Completion::DeviceLost { .. } => self.failed("its page log broke"),
        }
    }

    fn log_health(&self, health: ssd::Health) {
        let path = self.directory.display();
        match health {
            ssd::Health::Well => tracing::info!(%path, "an SSD is well again"),
            ssd::Health::Stalled => {
                tracing::warn!(%path, "an SSD stalls: its pages are misses until it answers again");
            }
            ssd::Health::ReadOnly => {
                tracing::error!(%path, "an SSD fails to write: nothing is written to it for now");
            }
            ssd::Health::Out => {
                tracing::error!(%path, "an SSD fails: its pages are misses until it is well again");
            }
        }
    }

    fn lost(&mut self) -> Vec<Event<'static>> {
        let mut events = vec![Event::DeviceLost { device: self.id }];
        // What never reached the log has touched nothing: it can be answered whatever it is.
        let untouched = self.waiting.drain().filter_map(|op| match op {
            Op::Read { job, .. } => Some(Event::ReadDone { job, outcome: ReadOutcome::Failed }),
            _ => None,
        });
        events.extend(untouched);
        let (outcome, free_segments) = (AppendOutcome::Failed, 0);
        events.extend(self.unanswered.drain().map(|(job, unanswered)| match unanswered {
            Unanswered::Append => Event::Appended { job, outcome, free_segments },
            Unanswered::Relocation => Event::Relocated { job, outcome, free_segments },
            Unanswered::Proof => Event::Proved { job, outcome: ReadOutcome::Failed },
        }));
        events
    }

    /// Its log, to be closed.
    pub(crate) fn into_log(self) -> Option<(PathBuf, PageLog)> {
        self.log.map(|log| (self.directory, log))
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use undercroft_arena::Memory;
    use undercroft_wire::{
        DomainId, Extent, PageIdentity, PageKey, SegmentId, SegmentUse, SpaceDigest,
    };

    #[test]
    fn every_job_of_a_device_that_never_opens_is_answered_once() {
        let id = DeviceId(3);
        let mut device = Device::new(id, PathBuf::from("/nowhere"));
        let (segment, segment_use) = (SegmentId(0), SegmentUse(1));
        let extent = Extent { device: id, segment, segment_use, record: 0 };
        let identity = PageIdentity {
            domain: DomainId::named("default"),
            space: SpaceDigest([1; 32]),
            key: PageKey([2; 32]),
            parent: None,
            depth: 0,
            page_bytes: 4096,
        };
        let memory = Memory::new(8192, 0).unwrap();
        let page = |offset| memory.span(offset, 4096).unwrap();
        let [append, read, relocate, prove] = [1, 2, 3, 4].map(JobId);
        device.submit(Op::Append {
            job: append,
            identity,
            origin: undercroft_wire::Origin::default(),
            payload: page(0),
            payload_crc: 0,
        });
        device.submit(Op::Read { job: read, identity, extent, into: page(4096) });
        device.submit(Op::Relocate {
            job: relocate,
            identity,
            origin: undercroft_wire::Origin::default(),
            extent,
        });
        device.submit(Op::Prove { job: prove, identity, extent });
        device.submit(Op::FreeSegment { segment, segment_use });
        assert!(device.is_behind());

        let events = device.failed("it is a test");
        assert!(!device.is_behind() && events.len() == 5, "{events:?}");
        assert_eq!(events[0], Event::DeviceLost { device: id });
        let (outcome, free_segments) = (AppendOutcome::Failed, 0);
        for event in [
            Event::Appended { job: append, outcome, free_segments },
            Event::ReadDone { job: read, outcome: ReadOutcome::Failed },
            Event::Relocated { job: relocate, outcome, free_segments },
            Event::Proved { job: prove, outcome: ReadOutcome::Failed },
        ] {
            assert!(events.contains(&event), "{event:?} is not in {events:?}");
        }
        assert_eq!(device.failed("again"), [Event::DeviceLost { device: id }]);
    }
}
