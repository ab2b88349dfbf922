//! The whole log in one thread and virtual time, against a list of what was stored.

use super::rig::{Numbers, Setting, Stored, fill, holds, identity, tiny};
use super::sim::{Disk, Faults, SimLog};
use crate::{AppendOutcome, Completion, EngineChoice, LogConfig, Op, ReadOutcome, RelocateOutcome};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;
use undercroft_arena::{Memory, Span};
use undercroft_wire::{Extent, JobId, Origin, SegmentUse, frame_bytes};

const FRAME: usize = 16 << 10;
const FRAMES: u64 = 64;

/// What an answer is expected for.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Append { number: u64, page_bytes: u32 },
    Read(Stored),
    Relocate(Stored),
    Prove(Stored),
}

struct Model {
    numbers: Numbers,
    memory: Memory,
    idle: Vec<u64>,
    lent: std::collections::BTreeMap<u64, u64>,
    stored: Vec<Stored>,
    freed: std::collections::BTreeSet<SegmentUse>,
    expected: std::collections::BTreeMap<u64, Expected>,
    next: u64,
    /// Whether the disk lies: then a record may prove to be lost, but never be another.
    lies: bool,
    verified: u64,
    lost: u64,
}

impl Model {
    fn new(seed: u64, lies: bool) -> Self {
        Self {
            numbers: Numbers(seed),
            memory: Memory::new(FRAMES * FRAME as u64, 0).unwrap(),
            idle: (0..FRAMES).collect(),
            lent: std::collections::BTreeMap::new(),
            stored: Vec::new(),
            freed: std::collections::BTreeSet::new(),
            expected: std::collections::BTreeMap::new(),
            next: 0,
            lies,
            verified: 0,
            lost: 0,
        }
    }

    /// A frame that no other job has until its answer came.
    fn frame(&mut self, job: u64, page_bytes: u32) -> Span {
        let index = self.idle.pop().unwrap();
        self.lent.insert(job, index);
        self.memory.span(index * FRAME as u64, frame_bytes(page_bytes) as usize).unwrap()
    }

    fn act(&mut self, log: &mut SimLog) {
        if self.expected.len() as u64 >= FRAMES / 2 || !log.machine.wants_ops() {
            return;
        }
        let job = self.next;
        self.next += 1;
        let choice = self.numbers.below(100);
        if self.stored.is_empty() || choice < 45 {
            let page_bytes = [512, 4096, 5000, 8192, 16384][self.numbers.below(5) as usize];
            let payload = self.frame(job, page_bytes);
            let payload_crc = fill(&payload, job, page_bytes);
            let identity = identity(job, page_bytes);
            self.expected.insert(job, Expected::Append { number: job, page_bytes });
            let op = Op::Append {
                job: JobId(job),
                identity,
                origin: Origin::default(),
                payload,
                payload_crc,
            };
            return log.machine.accept(op, log.now);
        }
        let index = self.numbers.below(self.stored.len() as u64) as usize;
        let stored = self.stored[index];
        let (identity, extent) = (stored.identity(), stored.extent);
        let op = if choice < 85 {
            self.expected.insert(job, Expected::Read(stored));
            let into = self.frame(job, stored.page_bytes);
            Op::Read { job: JobId(job), identity, extent, into }
        } else if choice < 88 {
            self.expected.insert(job, Expected::Prove(stored));
            Op::Prove { job: JobId(job), identity, extent }
        } else if choice < 94 {
            self.expected.insert(job, Expected::Relocate(stored));
            Op::Relocate { job: JobId(job), identity, origin: Origin::default(), extent }
        } else {
            let oldest = self.stored.iter().map(|stored| stored.extent);
            let oldest = oldest.min_by_key(|extent| extent.segment_use).unwrap();
            self.forget(&oldest);
            Op::FreeSegment { segment: oldest.segment, segment_use: oldest.segment_use }
        };
        log.machine.accept(op, log.now);
    }

    /// Reads and relocations under way may be answered either way from here on.
    fn forget(&mut self, segment: &Extent) {
        self.freed.insert(segment.segment_use);
        self.stored.retain(|stored| stored.extent.segment_use != segment.segment_use);
    }

    /// A page was written; its segment may have been freed meanwhile.
    fn remember(&mut self, stored: Stored) {
        if !self.freed.contains(&stored.extent.segment_use) {
            self.stored.push(stored);
        }
    }

    fn is_stored(&self, stored: &Stored) -> bool {
        self.stored.contains(stored)
    }

    fn check(&mut self, answer: Completion) {
        if let Completion::Appended { job, .. } | Completion::Read { job, .. } = &answer {
            self.idle.extend(self.lent.remove(&job.0));
        }
        match answer {
            Completion::Appended { job, outcome, .. } => {
                let Some(Expected::Append { number, page_bytes }) = self.expected.remove(&job.0)
                else {
                    panic!("an answer nobody waits for: {job}");
                };
                match outcome {
                    AppendOutcome::Written(extent) => {
                        self.remember(Stored { number, page_bytes, extent });
                    }
                    AppendOutcome::NoSpace => {}
                    AppendOutcome::Failed => assert!(self.lies, "an append failed"),
                }
            }
            Completion::Read { job, into, outcome } => {
                let Some(Expected::Read(stored)) = self.expected.remove(&job.0) else {
                    panic!("an answer nobody waits for: {job}");
                };
                if let ReadOutcome::Verified { .. } = outcome {
                    assert!(holds(&into, stored.number, stored.page_bytes), "wrong bytes");
                    self.verified += 1;
                } else {
                    assert!(self.lies || !self.is_stored(&stored), "{stored:?}: {outcome:?}");
                    self.lost += 1;
                }
            }
            Completion::Relocated { job, outcome, .. } => {
                let Some(Expected::Relocate(stored)) = self.expected.remove(&job.0) else {
                    panic!("an answer nobody waits for: {job}");
                };
                match outcome {
                    RelocateOutcome::Written(extent) => {
                        self.remember(Stored { extent, ..stored });
                    }
                    RelocateOutcome::NoSpace => {}
                    RelocateOutcome::Corrupt | RelocateOutcome::Failed => {
                        assert!(self.lies || !self.is_stored(&stored), "{stored:?}: {outcome:?}");
                    }
                }
            }
            Completion::Proved { job, outcome } => {
                let Some(Expected::Prove(stored)) = self.expected.remove(&job.0) else {
                    panic!("an answer nobody waits for: {job}");
                };
                let proved = matches!(outcome, ReadOutcome::Verified { .. });
                assert!(proved || self.lies || !self.is_stored(&stored), "{stored:?}");
            }
            Completion::SegmentFreed { .. } | Completion::Health { .. } => {}
            Completion::DeviceLost { .. } => panic!("nothing broke"),
        }
    }

    fn turn(&mut self, log: &mut SimLog) {
        for _ in 0..self.numbers.below(4) {
            self.act(log);
        }
        log.turn();
        for answer in log.machine.answers().collect::<Vec<_>>() {
            self.check(answer);
        }
    }

    fn finish(&mut self, log: &mut SimLog) {
        for _ in 0..10_000 {
            if self.expected.is_empty() {
                return;
            }
            log.turn();
            for answer in log.machine.answers().collect::<Vec<_>>() {
                self.check(answer);
            }
        }
        panic!("answers are missing: {:?}", self.expected);
    }

    fn read_all(&mut self, log: &mut SimLog) {
        for stored in self.stored.clone() {
            let job = self.next;
            self.next += 1;
            self.expected.insert(job, Expected::Read(stored));
            let into = self.frame(job, stored.page_bytes);
            let (identity, extent) = (stored.identity(), stored.extent);
            log.machine.accept(Op::Read { job: JobId(job), identity, extent, into }, log.now);
            self.finish(log);
        }
    }

    /// Keeps those pages that a reopened log found; each must be one that was stored.
    fn keep_recovered(&mut self, log: &SimLog) {
        let found: Vec<Extent> = log.recovery.records.iter().map(|r| r.extent).collect();
        let uses: Vec<_> = found.iter().map(|e| (e.segment_use, e.record)).collect();
        assert!(uses.is_sorted(), "records come in the order they were appended");
        self.stored.retain(|stored| found.contains(&stored.extent));
    }
}

/// Every second seed is encrypted.
fn config(seed: u64) -> LogConfig {
    let setting = Setting { engine: EngineChoice::Auto, encrypted: seed.is_multiple_of(2) };
    LogConfig { table_flush_ms: 1, ..tiny(Path::new("simulated"), setting) }
}

fn live(seed: u64, faults: Faults, lies: bool) -> Model {
    let disk = Arc::new(Disk::default());
    let mut log = SimLog::open(&disk, &config(seed), seed, faults).unwrap();
    let mut model = Model::new(seed ^ 1, lies);
    for _ in 0..400 {
        model.turn(&mut log);
    }
    model.finish(&mut log);
    model.read_all(&mut log);
    log.close();
    let mut log = SimLog::open(&disk, &config(seed), seed, Faults::default()).unwrap();
    if !lies {
        assert_eq!((log.recovery.corrupt_tables, log.recovery.io_errors), (0, 0));
        let before = model.stored.len();
        model.keep_recovered(&log);
        assert_eq!(model.stored.len(), before, "a closed log forgets nothing");
        assert!(log.recovery.records.iter().all(|record| record.sealed));
    }
    model.keep_recovered(&log);
    model.read_all(&mut log);
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_healthy_disk_serves_everything(seed in any::<u64>()) {
        let faults = Faults { short: 100, ..Faults::default() };
        let model = live(seed, faults, false);
        prop_assert!(model.verified > 50);
    }

    #[test]
    fn a_failing_disk_never_serves_wrong_bytes(seed in any::<u64>()) {
        let faults = Faults { error: 30, short: 50, ..Faults::default() };
        live(seed, faults, true);
    }

    #[test]
    fn a_lying_disk_never_serves_wrong_bytes(seed in any::<u64>()) {
        let faults = Faults { error: 5, short: 20, lost: 30, misdirected: 30, flipped: 30 };
        let model = live(seed, faults, true);
        prop_assert!(model.lost > 0 && model.verified > 0);
    }

    #[test]
    fn a_killed_log_never_serves_wrong_bytes(seed in any::<u64>()) {
        let disk = Arc::new(Disk::default());
        let mut model = Model::new(seed ^ 2, false);
        for life in 0..6 {
            let seed = seed.wrapping_add(2 * life);
            let mut log = SimLog::open(&disk, &config(seed), seed, Faults::default()).unwrap();
            model.keep_recovered(&log);
            // Torn blocks of the life before are counted, and nothing else is damaged.
            prop_assert!(log.recovery.corrupt_tables <= 6, "{}", log.recovery.corrupt_tables);
            model.read_all(&mut log);
            for _ in 0..150 {
                model.turn(&mut log);
            }
            log.engine.die();
            model.expected.clear();
            model.idle.extend(std::mem::take(&mut model.lent).into_values());
        }
    }
}

/// What a kill forgets is bounded: records older than the flush time are in tables.
#[test]
fn a_kill_forgets_only_the_newest_records() {
    for seed in 0..40 {
        let disk = Arc::new(Disk::default());
        let mut log = SimLog::open(&disk, &config(seed), seed, Faults::default()).unwrap();
        let mut model = Model::new(seed, false);
        for _ in 0..200 {
            model.turn(&mut log);
        }
        model.finish(&mut log);
        for _ in 0..100 {
            log.turn();
        }
        log.engine.die();
        let stored = model.stored.len();
        let log = SimLog::open(&disk, &config(seed), seed, Faults::default()).unwrap();
        model.keep_recovered(&log);
        assert_eq!(model.stored.len(), stored, "seed {seed}");
    }
}

/// Two segments are kept zeroed ahead of the writer, and what is idle stays idle.
#[test]
fn segments_are_zeroed_ahead_of_their_first_use() {
    let disk = Arc::new(Disk::default());
    let mut log = SimLog::open(&disk, &config(0), 1, Faults::default()).unwrap();
    // What a file system may have left where nothing was written.
    let segment_bytes = crate::layout::Layout::new(&config(0)).unwrap().segment_bytes;
    let second = crate::layout::DATA_START as usize + segment_bytes as usize;
    let places = [second + 5000, second + 2 * segment_bytes as usize];
    places.iter().for_each(|at| disk.bytes.lock().unwrap()[*at] = 7);
    (0..200).for_each(|_| log.turn());
    assert_eq!(log.machine.counters().zeroed_bytes, 2 * segment_bytes);
    let left: Vec<u8> = places.iter().map(|at| disk.bytes.lock().unwrap()[*at]).collect();
    assert_eq!(left, [0, 7]);
    let mut model = Model::new(3, false);
    for _ in 0..100 {
        model.turn(&mut log);
    }
    model.finish(&mut log);
    model.read_all(&mut log);
    assert!(log.machine.counters().zeroed_bytes > 2 * segment_bytes);
    log.close();
    let mut log = SimLog::open(&disk, &config(0), 1, Faults::default()).unwrap();
    model.read_all(&mut log);
}
