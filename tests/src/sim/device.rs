//! A page log on a lying device as the daemon's glue drives it: operations in, completions out,
//! each held against what must be on the device.

use super::content::{Book, checksum, holds};
use super::ledger::Ledger;
use super::plan::{Class, DevicePlan};
use super::report::{Count, Report};
use crate::lying::{LyingDisk, LyingEngine};
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use undercroft_arena::Span;
use undercroft_core::{self as core, Event};
use undercroft_ssd_tier::{
    AppendOutcome, Completion, Engine, Health, Machine, Op, ReadOutcome, RelocateOutcome,
};
use undercroft_wire::{DeviceId, Extent, JobId, PageIdentity, SegmentId, SegmentUse};

/// Turns in a row at one moment that changed nothing.
const IDLE_TURNS: u32 = 64;

/// What an answer is expected for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) kind: AskedKind,
    pub(super) identity: PageIdentity,
    /// The frame it has meanwhile.
    frame: Option<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AskedKind {
    Append,
    Read(Extent),
    Relocate(Extent),
    Prove(Extent),
}

/// How far a device is in this life of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The lock is somebody else's until then, who may be dead.
    Locked(u64),
    Open,
    /// Out for this life.
    Lost,
}

/// A device, its store, and in each life the log that works on it.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) class: Class,
    pub(super) plan: DevicePlan,
    pub(super) book: Rc<Book>,
    pub(super) disk: LyingDisk,
    pub(super) engine: LyingEngine,
    pub(super) ledger: Ledger,
    pub(super) stage: Stage,
    pub(super) log: Option<Machine>,
    /// Work that found the log's queue full.
    pub(super) waiting: VecDeque<Op>,
    /// What the log has not answered.
    pub(super) asked: BTreeMap<JobId, Asked>,
    /// Segments it was asked to free.
    pub(super) freeing: BTreeSet<(SegmentId, SegmentUse)>,
    /// Answers on their way to the core, and when they get there.
    pub(super) inbox: VecDeque<(u64, Completion)>,
    /// Records found at start that the core has not heard of.
    pub(super) unread: VecDeque<core::RecoveredRecord>,
    pub(super) read_at: Option<u64>,
    pub(super) free_segments: u32,
    /// When the log's thread wakes.
    pub(super) turn_at: Option<u64>,
    idle_turns: (u64, u32),
    /// Whether it was not well at some time in this life.
    pub(super) faltered: bool,
    /// Whether the power was cut since the store was last open.
    pub(super) after_cut: bool,
    /// Whether the store was ever opened.
    pub(super) in_use: bool,
}

impl Device {
    pub(super) fn new(
        id: DeviceId,
        class: Class,
        plan: DevicePlan,
        book: Rc<Book>,
        seed: u64,
    ) -> Self {
        let disk = LyingDisk::new(seed);
        disk.set_atlas(plan.atlas);
        disk.set_pace(plan.latency.clone(), plan.slowness.clone());
        Self {
            id,
            class,
            plan,
            book,
            engine: disk.engine(),
            disk,
            ledger: Ledger::default(),
            stage: Stage::Locked(0),
            log: None,
            waiting: VecDeque::new(),
            asked: BTreeMap::new(),
            freeing: BTreeSet::new(),
            inbox: VecDeque::new(),
            unread: VecDeque::new(),
            read_at: None,
            free_segments: 0,
            turn_at: None,
            idle_turns: (0, 0),
            faltered: false,
            after_cut: false,
            in_use: false,
        }
    }

    /// Hands an operation over.
    pub(super) fn submit(&mut self, op: Op, at: u64) {
        let (job, asked) = match &op {
            Op::Append { job, identity, payload, .. } => {
                (*job, Asked::new(AskedKind::Append, identity, Some(payload)))
            }
            Op::Read { job, identity, extent, into } => {
                (*job, Asked::new(AskedKind::Read(*extent), identity, Some(into)))
            }
            Op::Relocate { job, identity, extent, .. } => {
                (*job, Asked::new(AskedKind::Relocate(*extent), identity, None))
            }
            Op::Prove { job, identity, extent } => {
                (*job, Asked::new(AskedKind::Prove(*extent), identity, None))
            }
            Op::FreeSegment { segment, segment_use } => {
                let new = self.freeing.insert((*segment, *segment_use));
                assert!(new, "a segment is freed once");
                self.waiting.push_back(op);
                return self.wake(at);
            }
        };
        let before = self.asked.insert(job, asked);
        assert!(before.is_none(), "a job has one number");
        self.waiting.push_back(op);
        self.wake(at);
    }

    pub(super) fn wake(&mut self, at: u64) {
        self.turn_at = Some(self.turn_at.map_or(at, |turn| turn.min(at)));
    }

    /// When something is to be done, if nothing happens before.
    pub(super) fn next_time(&self) -> Option<u64> {
        let log = self.log.as_ref();
        let due = log.and_then(Machine::next_due).map(|due| due.as_micros() as u64);
        let turn = self.turn_at.filter(|_| log.is_some());
        [turn, due, self.disk.next_due()].into_iter().flatten().min()
    }

    /// One turn of the log's thread.
    pub(super) fn turn(&mut self, now: u64, rng: &mut Rng, report: &mut Report) {
        self.disk.tell_time(now);
        self.disk.land_late();
        self.turn_at = None;
        let Some(mut log) = self.log.take() else {
            return;
        };
        let time = Duration::from_micros(now);
        let mut moved = false;
        while log.wants_ops()
            && let Some(op) = self.waiting.pop_front()
        {
            if let Op::FreeSegment { segment, segment_use } = &op {
                self.ledger.free(*segment, *segment_use);
            }
            log.accept(op, time);
            moved = true;
        }
        log.pump(&mut self.engine, time);
        let work = log.has_work();
        let mut done = Vec::new();
        self.engine.wait(None, &mut done).expect("the engine is broken elsewhere");
        moved |= work || !done.is_empty();
        // The log's clock has gone on while it waited.
        done.into_iter().for_each(|done| log.finished(done, time));
        if work {
            log.work();
        }
        let answers: Vec<Completion> = log.answers().collect();
        moved |= !answers.is_empty();
        for answer in answers {
            self.judge(&answer, report);
            let before = self.inbox.back().map_or(0, |(at, _)| *at);
            let delay = if rng.bool() { 0 } else { rng.u64(..200) };
            self.inbox.push_back((before.max(now + delay), answer));
        }
        let blocked = self.waiting.is_empty() || !log.wants_ops();
        self.log = Some(log);
        if moved || !blocked {
            self.wake(now + rng.u64(..20));
        }
        self.count_idle_turn(now, moved);
    }

    /// A log that wants to be woken again and again and then does nothing would burn a processor.
    fn count_idle_turn(&mut self, now: u64, moved: bool) {
        let (at, turns) = self.idle_turns;
        self.idle_turns = if moved || at != now { (now, 0) } else { (now, turns + 1) };
        assert!(self.idle_turns.1 < IDLE_TURNS, "the log spins without doing anything");
    }

    /// Whether the log may be excused for a record that it cannot read.
    fn is_excused(&self, extent: &Extent) -> bool {
        self.faltered || self.disk.has_harmed(Some(extent.segment.0))
    }

    fn judge(&mut self, answer: &Completion, report: &mut Report) {
        match answer {
            Completion::Appended { job, payload, outcome, .. } => {
                let asked = self.answered(*job, Some(payload));
                assert_eq!(asked.kind, AskedKind::Append, "an answer to what was asked");
                match outcome {
                    AppendOutcome::Written(extent) => self.wrote(*extent, asked.identity, report),
                    AppendOutcome::NoSpace => {}
                    AppendOutcome::Failed => {
                        let excused = self.faltered || self.class != Class::Truthful;
                        assert!(excused, "an append failed on a device that does not fail");
                    }
                }
            }
            Completion::Read { job, into, outcome } => {
                let asked = self.answered(*job, Some(into));
                let AskedKind::Read(extent) = asked.kind else { panic!("nobody asked for a read") };
                if let ReadOutcome::Verified { payload_crc } = outcome {
                    assert!(holds(into, &asked.identity), "wrong bytes were verified: {extent:?}");
                    assert_eq!(*payload_crc, checksum(&asked.identity), "the page's checksum");
                }
                self.proved(&extent, &asked.identity, *outcome, report);
            }
            Completion::Proved { job, outcome } => {
                let asked = self.answered(*job, None);
                let AskedKind::Prove(extent) = asked.kind else { panic!("nobody asked for it") };
                self.proved(&extent, &asked.identity, *outcome, report);
            }
            Completion::Relocated { job, outcome, .. } => {
                let asked = self.answered(*job, None);
                let AskedKind::Relocate(from) = asked.kind else { panic!("nobody asked for it") };
                match outcome {
                    RelocateOutcome::Written(extent) => self.wrote(*extent, asked.identity, report),
                    RelocateOutcome::NoSpace => {}
                    RelocateOutcome::Corrupt => self.refused(&from, report),
                    RelocateOutcome::Failed => {
                        let excused = self.faltered || self.class != Class::Truthful;
                        assert!(excused, "a relocation failed on a device that does not fail");
                        report.count(Count::Refused);
                    }
                }
            }
            Completion::SegmentFreed { segment, segment_use, .. } => {
                report.count(Count::Freed);
                let asked = self.freeing.remove(&(*segment, *segment_use));
                assert!(asked, "a segment is freed because it was asked for, and once");
            }
            Completion::Health { health, .. } => {
                if *health == Health::Well {
                    report.count(Count::Recoveries);
                } else {
                    report.count(Count::Falters);
                    self.faltered = true;
                    let excused = self.class != Class::Truthful;
                    assert!(excused, "a device that does nothing wrong is called {health:?}");
                }
            }
            Completion::DeviceLost { .. } => panic!("a log without a thread loses no device"),
        }
    }

    fn answered(&mut self, job: JobId, frame: Option<&Span>) -> Asked {
        let asked = self.asked.remove(&job).expect("a job is answered once");
        let place = |span: &Span| (span.as_ptr().addr(), span.len());
        assert_eq!(frame.map(place), asked.frame.as_ref().map(place), "the frame comes back");
        let still = asked.frame.as_ref().is_some_and(|frame| self.disk.has_memory(frame, false));
        assert!(!still, "a frame comes back when its transfer is over");
        asked
    }

    fn wrote(&mut self, extent: Extent, identity: PageIdentity, report: &mut Report) {
        report.count(Count::Written);
        assert_eq!(extent.device, self.id, "a record lies on the device that wrote it");
        // Freed while it was being written: nobody will ask for it.
        let kept = !self.freeing.contains(&(extent.segment, extent.segment_use));
        self.ledger.write(extent, identity, self.plan.encrypted, kept);
    }

    fn proved(
        &mut self,
        extent: &Extent,
        identity: &PageIdentity,
        outcome: ReadOutcome,
        report: &mut Report,
    ) {
        if !matches!(outcome, ReadOutcome::Verified { .. }) {
            return self.refused(extent, report);
        }
        report.count(Count::Verified);
        let written = self.ledger.was_written(extent, identity);
        assert!(written, "a record was verified that nobody wrote: {identity:?} at {extent:?}");
        if let Some(entry) = self.ledger.get_mut(extent) {
            entry.whole = true;
        }
    }

    fn refused(&mut self, extent: &Extent, report: &mut Report) {
        report.count(Count::Refused);
        let whole = self.ledger.get(extent).is_some_and(|entry| entry.whole);
        let excused = self.is_excused(extent);
        assert!(!whole || excused, "a record that must be there is refused: {extent:?}");
    }

    /// What an answer means to the core.
    pub(super) fn event(answer: &Completion) -> Event<'static> {
        match *answer {
            Completion::Appended { job, outcome, free_segments, .. } => {
                let outcome = match outcome {
                    AppendOutcome::Written(extent) => core::AppendOutcome::Written(extent),
                    AppendOutcome::NoSpace => core::AppendOutcome::NoSpace,
                    AppendOutcome::Failed => core::AppendOutcome::Failed,
                };
                Event::Appended { job, outcome, free_segments }
            }
            Completion::Read { job, outcome, .. } => {
                Event::ReadDone { job, outcome: read_outcome(outcome) }
            }
            Completion::Proved { job, outcome } => {
                Event::Proved { job, outcome: read_outcome(outcome) }
            }
            Completion::Relocated { job, outcome, free_segments } => {
                let outcome = match outcome {
                    RelocateOutcome::Written(extent) => core::AppendOutcome::Written(extent),
                    RelocateOutcome::NoSpace => core::AppendOutcome::NoSpace,
                    RelocateOutcome::Corrupt | RelocateOutcome::Failed => {
                        core::AppendOutcome::Failed
                    }
                };
                Event::Relocated { job, outcome, free_segments }
            }
            Completion::SegmentFreed { device, segment, segment_use, free_segments } => {
                Event::SegmentFreed { device, segment, segment_use, free_segments }
            }
            Completion::Health { device, health } => {
                let health = match health {
                    Health::Well => core::Health::Well,
                    Health::Stalled => core::Health::Stalled,
                    Health::ReadOnly => core::Health::ReadOnly,
                    Health::Out => core::Health::Out,
                };
                Event::DeviceHealth { device, health }
            }
            Completion::DeviceLost { device } => Event::DeviceLost { device },
        }
    }

    /// What it has not done yet, for people.
    pub(super) fn waits_for(&self) -> String {
        let Self { id, stage, waiting, asked, freeing, inbox, .. } = self;
        let unread = self.unread.len();
        let asked = asked.keys();
        format!(
            "device {id}, {stage:?}: waiting {waiting:?}, asked {asked:?}, freeing {freeing:?}, \
             {} answers on their way, {unread} records unread",
            inbox.len()
        )
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.asked.is_empty()
            && self.freeing.is_empty()
            && self.inbox.is_empty()
            && self.unread.is_empty()
            && self.read_at.is_none()
            && !matches!(self.stage, Stage::Locked(_))
    }
}

impl Asked {
    fn new(kind: AskedKind, identity: &PageIdentity, frame: Option<&Span>) -> Self {
        Self { kind, identity: *identity, frame: frame.cloned() }
    }
}

fn read_outcome(outcome: ReadOutcome) -> core::ReadOutcome {
    match outcome {
        ReadOutcome::Verified { payload_crc } => core::ReadOutcome::Ok(payload_crc),
        ReadOutcome::Corrupt => core::ReadOutcome::Corrupt,
        ReadOutcome::Failed => core::ReadOutcome::Failed,
    }
}
