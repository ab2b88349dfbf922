//! A device that stalls or fails, in virtual time.

use super::rig::{Stored, fill, holds, identity, tiny};
use super::sim::{Disk, Faults, SimLog};
use crate::{
    AppendOutcome, Completion, EngineChoice, Health, LogConfig, Op, ReadOutcome, RelocateOutcome,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use undercroft_arena::Memory;
use undercroft_wire::{JobId, Origin, frame_bytes};

const PAGE: u32 = 8192;
const FAILING: Faults = Faults { error: 1000, short: 0, lost: 0, misdirected: 0, flipped: 0 };

struct Patient {
    log: SimLog,
    memory: Memory,
    job: u64,
    /// Answers nobody has asked for yet.
    answers: Vec<Completion>,
}

impl Patient {
    fn new() -> Self {
        Self::on(&Arc::new(Disk::default()))
    }

    fn config() -> LogConfig {
        let config = tiny(Path::new("simulated"), EngineChoice::Auto);
        LogConfig { capacity_bytes: 1 << 20, ..config }
    }

    fn on(disk: &Arc<Disk>) -> Self {
        let log = SimLog::open(disk, &Self::config(), 1, Faults::default()).unwrap();
        Self { log, memory: Memory::new(64 << 20, 0).unwrap(), job: 0, answers: Vec::new() }
    }

    fn submit(&mut self, op: impl FnOnce(JobId, undercroft_arena::Span) -> Op) -> JobId {
        self.job += 1;
        let span = self.memory.span(self.job * 16384, frame_bytes(PAGE) as usize).unwrap();
        let job = JobId(self.job);
        self.log.machine.accept(op(job, span), self.log.now);
        job
    }

    fn append(&mut self, number: u64) -> JobId {
        self.submit(|job, payload| {
            let payload_crc = fill(&payload, number, PAGE);
            Op::Append {
                job,
                identity: identity(number, PAGE),
                origin: Origin::default(),
                payload,
                payload_crc,
            }
        })
    }

    fn read(&mut self, stored: Stored) -> JobId {
        self.submit(|job, into| {
            let (identity, extent) = (stored.identity(), stored.extent);
            Op::Read { job, identity, extent, into }
        })
    }

    /// Turns until that is answered, or for a virtual minute.
    fn until(&mut self, mut wanted: impl FnMut(&Completion) -> bool) -> Completion {
        let end = self.log.now + Duration::from_secs(60);
        while self.log.now < end {
            self.answers.extend(self.log.machine.answers());
            if let Some(found) = self.answers.iter().position(&mut wanted) {
                return self.answers.remove(found);
            }
            self.log.turn();
        }
        panic!("no such answer within a minute");
    }

    fn health(&mut self) -> Health {
        match self.until(|answer| matches!(answer, Completion::Health { .. })) {
            Completion::Health { health, .. } => health,
            _ => unreachable!("it was just looked for"),
        }
    }

    fn appended(&mut self, number: u64) -> AppendOutcome {
        let job = self.append(number);
        let of_it = |a: &Completion| matches!(a, Completion::Appended { job: j, .. } if *j == job);
        match self.until(of_it) {
            Completion::Appended { outcome, .. } => outcome,
            _ => unreachable!("it was just looked for"),
        }
    }

    fn store(&mut self, number: u64) -> Stored {
        match self.appended(number) {
            AppendOutcome::Written(extent) => Stored { number, page_bytes: PAGE, extent },
            other => panic!("page {number} was not written: {other:?}"),
        }
    }

    fn outcome(&mut self, stored: Stored) -> ReadOutcome {
        let job = self.read(stored);
        let of_it = |a: &Completion| matches!(a, Completion::Read { job: j, .. } if *j == job);
        let Completion::Read { outcome, into, .. } = self.until(of_it) else {
            unreachable!("it was just looked for")
        };
        if matches!(outcome, ReadOutcome::Verified { .. }) {
            assert!(holds(&into, stored.number, PAGE), "wrong bytes");
        }
        outcome
    }

    fn assert_reads(&mut self, stored: Stored) {
        let outcome = self.outcome(stored);
        assert!(matches!(outcome, ReadOutcome::Verified { .. }), "{stored:?} is {outcome:?}");
    }
}

#[test]
fn a_stall_is_said_within_its_time_and_what_waits_is_answered() {
    let mut patient = Patient::new();
    let stored: Vec<Stored> = (0..8).map(|number| patient.store(number)).collect();
    patient.log.engine.stuck = true;
    let since = patient.log.now;
    let jobs: Vec<JobId> = stored.iter().map(|stored| patient.read(*stored)).collect();
    let append = patient.append(100);
    assert_eq!(patient.health(), Health::Stalled);
    let took = patient.log.now - since;
    assert!(took < Duration::from_millis(510), "{took:?}");
    // Two are in flight, the depth of this log; the others and the append are answered.
    let mut failed = Vec::new();
    for answer in std::mem::take(&mut patient.answers) {
        match answer {
            Completion::Read { job, outcome: ReadOutcome::Failed, .. } => failed.push(job),
            Completion::Appended { job, outcome: AppendOutcome::Failed, .. } => {
                assert_eq!(job, append);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(failed.len() >= 6 && failed.iter().all(|job| jobs.contains(job)), "{failed:?}");
    // From here on nothing waits.
    assert_eq!(patient.outcome(stored[0]), ReadOutcome::Failed);
    assert_eq!(patient.appended(101), AppendOutcome::Failed);
    let (job, extent) = (JobId(9000), stored[1].extent);
    let op =
        Op::Relocate { job, identity: stored[1].identity(), origin: Origin::default(), extent };
    patient.log.machine.accept(op, patient.log.now);
    let answer = patient.until(|a| matches!(a, Completion::Relocated { .. }));
    assert!(matches!(answer, Completion::Relocated { outcome: RelocateOutcome::Failed, .. }));
    assert_eq!(patient.log.machine.counters().stalls, 1);
    patient.log.engine.stuck = false;
    assert_eq!(patient.health(), Health::Well);
    stored.iter().for_each(|stored| patient.assert_reads(*stored));
    let later = patient.store(102);
    patient.assert_reads(later);
    patient.log.close();
}

#[test]
fn failed_writes_make_it_read_only_until_a_probe_gets_through() {
    let mut patient = Patient::new();
    let stored = patient.store(1);
    patient.log.engine.faults = FAILING;
    for number in 2..12 {
        assert_eq!(patient.appended(number), AppendOutcome::Failed);
    }
    assert_eq!(patient.health(), Health::ReadOnly);
    patient.log.engine.faults = Faults::default();
    assert_eq!(patient.appended(20), AppendOutcome::Failed, "not before it was probed");
    patient.assert_reads(stored);
    assert_eq!(patient.health(), Health::Well);
    let later = patient.store(21);
    patient.assert_reads(later);
    patient.log.close();
}

#[test]
fn a_device_that_fails_at_everything_goes_out_and_comes_back() {
    let mut patient = Patient::new();
    let stored: Vec<Stored> = (0..8).map(|number| patient.store(number)).collect();
    patient.log.engine.faults = FAILING;
    let mut tries = 0;
    while !patient.answers.iter().any(|a| matches!(a, Completion::Health { .. })) {
        assert_eq!(patient.outcome(stored[0]), ReadOutcome::Failed);
        tries += 1;
        assert!(tries < 100, "its errors are counted");
    }
    assert_eq!(patient.health(), Health::Out);
    // Many probes fail meanwhile, more and more rarely.
    let end = patient.log.now + Duration::from_secs(600);
    while patient.log.now < end {
        patient.log.turn();
    }
    let probes = patient.log.machine.counters().probes;
    assert!((10..40).contains(&probes), "{probes} probes in ten minutes");
    assert_eq!(patient.log.machine.health(), Health::Out);
    patient.log.engine.faults = Faults::default();
    assert_eq!(patient.health(), Health::Well);
    stored.iter().for_each(|stored| patient.assert_reads(*stored));
    patient.log.close();
}

/// What was written before a failed flush may never reach the medium, and a later flush that
/// succeeds says nothing of it.
#[test]
fn a_failed_flush_leaves_unsealed_what_was_being_filled_too() {
    let disk = Arc::new(Disk::default());
    let mut patient = Patient::on(&disk);
    let complete = patient.store(0);
    let mut filling = patient.store(1);
    let mut number = 1;
    while filling.extent.segment == complete.extent.segment {
        number += 1;
        filling = patient.store(number);
    }
    let tables = patient.log.now + Duration::from_millis(500);
    while patient.log.now < tables {
        patient.log.turn();
    }
    patient.log.engine.faults = FAILING;
    while patient.log.machine.counters().io_errors == 0 {
        patient.log.turn();
    }
    patient.log.engine.faults = Faults::default();
    let later = patient.store(number + 1);
    assert_ne!(later.extent.segment, filling.extent.segment, "it takes no more");
    patient.log.close();
    let reopened = SimLog::open(&disk, &Patient::config(), 2, Faults::default()).unwrap();
    let sealed = |stored: &Stored| {
        let mut records = reopened.recovery.records.iter();
        records.find(|record| record.extent == stored.extent).map(|record| record.sealed)
    };
    assert_eq!(sealed(&complete), Some(false));
    assert_eq!(sealed(&filling), Some(false));
    assert_eq!(sealed(&later), Some(true));
}

#[test]
fn a_part_that_hangs_never_takes_the_whole_device_with_it_in_silence() {
    let mut patient = Patient::new();
    let stored: Vec<Stored> = (0..8).map(|number| patient.store(number)).collect();
    // Two pages to a segment: those of the first two segments hang.
    patient.log.engine.hung = (64 << 10)..(64 << 10) + 2 * (28 << 10);
    let (bad, good) = stored.split_at(3);
    assert!(bad.iter().all(|stored| stored.extent.segment.0 < 2), "{bad:?}");
    assert!(good[2..].iter().all(|stored| stored.extent.segment.0 > 1), "{good:?}");
    patient.read(bad[0]);
    assert_eq!(patient.health(), Health::Stalled);
    assert_eq!(patient.health(), Health::Well, "the probe lies elsewhere");
    patient.assert_reads(good[2]);
    // One more, and as many hang as this log has transfers at once.
    patient.read(bad[1]);
    assert_eq!(patient.health(), Health::Stalled);
    for _ in 0..3 {
        let since = patient.log.now;
        assert_eq!(patient.outcome(good[3]), ReadOutcome::Failed);
        let took = patient.log.now - since;
        assert!(took < Duration::from_millis(510), "{took:?}");
        (0..10_000).for_each(|_| patient.log.turn());
    }
    patient.log.engine.hung = 0..0;
    assert_eq!(patient.health(), Health::Well);
    stored.iter().for_each(|stored| patient.assert_reads(*stored));
}
