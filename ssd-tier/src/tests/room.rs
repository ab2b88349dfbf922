//! The log's own memory when little of it is left: pages on their way into other segments and
//! pages to be encrypted need it, and neither may wait for the other for good.

use super::rig::{fill, identity, tiny};
use super::sim::{Disk, Faults, SimLog};
use crate::{AppendOutcome, Completion, EngineChoice, LogConfig, Op, RelocateOutcome};
use std::path::Path;
use std::sync::Arc;
use undercroft_arena::Memory;
use undercroft_wire::{Extent, JobId, Origin, frame_bytes};

/// Of this size three fit into the memory of a log that has one transfer at a time, whatever the
/// number of pages that may be lifted.
const PAGE: u32 = 3 << 20;

struct Tight {
    log: SimLog,
    memory: Memory,
}

impl Tight {
    fn new() -> Self {
        let config = LogConfig {
            capacity_bytes: 24 << 20,
            segment_bytes: Some(8 << 20),
            queue_depth: 1,
            ..tiny(Path::new("simulated"), EngineChoice::Auto)
        };
        let log = SimLog::open(&Arc::new(Disk::default()), &config, 1, Faults::default()).unwrap();
        Self { log, memory: Memory::new(64 << 20, 0).unwrap() }
    }

    fn append(&mut self, number: u64) {
        let frame = frame_bytes(PAGE);
        let payload = self.memory.span(number * u64::from(frame), frame as usize).unwrap();
        let payload_crc = fill(&payload, number, PAGE);
        let (job, identity) = (JobId(number), identity(number, PAGE));
        let op = Op::Append { job, identity, origin: Origin::default(), payload, payload_crc };
        self.log.machine.accept(op, self.log.now);
    }

    /// The answers to so many operations.
    fn answers(&mut self, count: usize) -> Vec<Completion> {
        let mut answers = Vec::new();
        for _ in 0..1_000 {
            answers.extend(self.log.machine.answers());
            if answers.len() >= count {
                return answers;
            }
            self.log.turn();
        }
        panic!("{} of {count} answers came: {answers:?}", answers.len());
    }
}

#[test]
fn relocations_and_appends_never_wait_for_each_others_memory() {
    let mut tight = Tight::new();
    let mut stored: Vec<(u64, Extent)> = Vec::new();
    for number in 0..4 {
        tight.append(number);
        match &tight.answers(1)[..] {
            [Completion::Appended { outcome: AppendOutcome::Written(extent), .. }] => {
                stored.push((number, *extent));
            }
            other => panic!("{other:?}"),
        }
    }
    for (number, extent) in &stored {
        let (job, identity) = (JobId(100 + number), identity(*number, PAGE));
        let op = Op::Relocate { job, identity, origin: Origin::default(), extent: *extent };
        tight.log.machine.accept(op, tight.log.now);
    }
    (4..6).for_each(|number| tight.append(number));
    let answers = tight.answers(6);
    let written = |answer: &&Completion| {
        matches!(
            answer,
            Completion::Appended { outcome: AppendOutcome::Written(_), .. }
                | Completion::Relocated { outcome: RelocateOutcome::Written(_), .. }
        )
    };
    assert_eq!(answers.iter().filter(written).count(), 6, "{answers:?}");
}
