//! A device through the lives of its daemon: opened, killed, cut off, closed, lost.

use super::content::{checksum, content};
use super::device::{AskedKind, Device, Stage};
use super::ledger::Entry;
use super::plan::Class;
use super::report::{Count, Report};
use fastrand::Rng;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use undercroft_core::{self as core, Event};
use undercroft_ssd_tier::{Health, LogConfig, Machine, OpenError, Recovery, StoreKey};
use undercroft_wire::{DeviceId, Extent, JobId, PageIdentity};

/// What came of opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    Well,
    /// The process was cut off in the middle of it.
    Died,
    /// It cannot be opened in this life.
    Refused,
}

impl Device {
    fn config(&self) -> LogConfig {
        let plan = &self.plan;
        LogConfig {
            device: self.id,
            segment_bytes: Some(plan.room_bytes),
            queue_depth: plan.queue_depth,
            table_flush_ms: plan.table_flush_ms,
            key: plan.encrypted.then(|| StoreKey::from(plan.key)),
            stall: Duration::from_millis(plan.stall_ms),
            ..LogConfig::new("lying", plan.capacity_bytes)
        }
    }

    /// Opens the store in a new life of the daemon.
    pub(super) fn open(&mut self, now: u64, rng: &mut Rng, report: &mut Report) -> Opened {
        self.disk.tell_time(now);
        self.disk.land_late();
        let expected = self.expected();
        self.disk.witness(|witness| witness.opened_anew());
        let dies = (rng.u8(..16) == 0).then(|| rng.u32(..30));
        if let Some(transfers) = dies {
            self.disk.die_after(transfers);
        }
        let mut entropy = rng.fork();
        let entropy = Box::new(move |bytes: &mut [u8]| entropy.fill(bytes));
        let opened = Machine::open(&self.disk, &self.config(), entropy);
        if self.disk.stop_dying() {
            report.count(Count::CutOff);
            return Opened::Died;
        }
        match opened {
            Ok((log, recovery)) => {
                self.check_recovery(&recovery, &expected, report);
                self.take_over(recovery, now, rng);
                self.after_cut = false;
                self.in_use = true;
                self.log = Some(log);
                self.stage = Stage::Open;
                self.wake(now);
                Opened::Well
            }
            Err(error) => {
                report.count(Count::Unopened);
                self.refused_to_open(&error);
                Opened::Refused
            }
        }
    }

    /// A store that cannot be opened: only devices that are at fault have such.
    fn refused_to_open(&mut self, error: &OpenError) {
        self.stage = Stage::Lost;
        match error {
            OpenError::Io { .. } | OpenError::NoSpace { .. } => {
                assert_ne!(self.class, Class::Truthful, "a truthful device was refused: {error}");
            }
            OpenError::Damaged { .. } | OpenError::Foreign { .. } => {
                // The daemon sets aside what is damaged. It may be that nothing was there yet; and
                // what failed flushes leave of a first format is nobody's any more.
                let failed = self.class == Class::Failing;
                let nothing = failed || matches!(error, OpenError::Damaged { .. });
                let excused = self.class == Class::Lying || (nothing && !self.in_use);
                assert!(excused, "a store was given up: {error}");
                self.disk.replace();
                self.ledger.start_over(BTreeMap::new());
                self.in_use = false;
            }
            _ => panic!("a store cannot be opened: {error}"),
        }
    }

    /// What must be found at the next start.
    fn expected(&self) -> BTreeMap<Extent, PageIdentity> {
        let survives = |(extent, entry): &(Extent, Entry)| {
            let (segment, segment_use) = (extent.segment.0, extent.segment_use.0);
            let news = self.disk.witness(|witness| witness.news(segment, segment_use));
            let listed = entry.found || (news.opened && extent.record < news.listed);
            let there = if self.after_cut { entry.durable || news.sealing } else { listed };
            let kept = entry.encrypted == self.plan.encrypted && segment < self.plan.segments();
            there && kept && !news.ending
        };
        let records = self.ledger.iter().filter(survives);
        records.map(|(extent, entry)| (extent, entry.identity)).collect()
    }

    fn check_recovery(
        &self,
        recovery: &Recovery,
        expected: &BTreeMap<Extent, PageIdentity>,
        report: &mut Report,
    ) {
        report.more(Count::Found, recovery.records.len() as u64);
        let mut found = BTreeMap::new();
        let mut last = None;
        for record in &recovery.records {
            let (extent, identity) = (record.extent, record.identity);
            let order = Some((extent.segment_use, extent.segment, extent.record));
            assert!(last < order, "records are found in the order they were appended");
            last = order;
            self.book.check(&identity);
            let known = self.ledger.was_written(&extent, &identity);
            assert!(known, "a record was found that nobody wrote: {identity:?} at {extent:?}");
            let sum = checksum(&identity);
            assert_eq!(record.payload_crc, sum, "a record names its page's checksum");
            found.insert(extent, identity);
        }
        if self.disk.has_harmed(None) {
            // Who knows how many segments the store thinks it has.
            return;
        }
        for (extent, identity) in expected {
            // It may have been harmed while the store was opened.
            let harmed = self.disk.has_harmed(Some(extent.segment.0));
            let here = found.get(extent) == Some(identity);
            let counts = Recovery { records: Vec::new(), ..recovery.clone() };
            let cut = self.after_cut;
            assert!(
                here || harmed,
                "a record is lost: {identity:?} at {extent:?}; cut: {cut}; {counts:?}"
            );
        }
    }

    /// Whether a record that is found again must prove itself.
    fn is_whole(&self, before: &Entry, sealed: bool) -> bool {
        // A cut takes what was not flushed, and that is all it takes; a kill takes nothing.
        let kept = sealed || !self.after_cut || before.durable;
        // A seal speaks for its records as of the moment in which it is written. A segment that was
        // freed and used again comes back with its old seal if a cut takes the headers of both and
        // not the new records: nobody promises that the old ones are there.
        let newly = sealed && !before.sealed;
        newly || (before.whole && kept)
    }

    /// Begins a life with what was found.
    fn take_over(&mut self, recovery: Recovery, now: u64, rng: &mut Rng) {
        let mut found = BTreeMap::new();
        for record in &recovery.records {
            let before = self.ledger.get(&record.extent);
            let entry = Entry {
                identity: record.identity,
                whole: before.is_some_and(|entry| self.is_whole(&entry, record.sealed)),
                found: true,
                encrypted: self.plan.encrypted,
                durable: self.after_cut || before.is_some_and(|entry| entry.durable),
                sealed: record.sealed,
            };
            found.insert(record.extent, entry);
        }
        self.ledger.start_over(found);
        self.faltered = false;
        self.free_segments = recovery.free_segments;
        let records = recovery.records.into_iter().map(|record| core::RecoveredRecord {
            identity: record.identity,
            origin: record.origin,
            extent: record.extent,
            payload_crc: record.payload_crc,
            sealed: record.sealed,
            purged: false,
        });
        self.unread = records.collect();
        self.read_at = Some(now + rng.u64(..500));
    }

    /// After a record was read: what it was encrypted with must be its own. Whoever knows the page
    /// sees the key stream, and two records with one key stream have one key and one number.
    pub(super) fn check_stream(
        &self,
        extent: &Extent,
        identity: &PageIdentity,
        streams: &mut HashMap<[u8; 16], (DeviceId, Extent)>,
    ) {
        let entry = self.ledger.get(extent).filter(|entry| entry.encrypted && entry.whole);
        if entry.is_none() || self.disk.has_harmed(Some(extent.segment.0)) {
            return;
        }
        let (stored, page) = (self.disk.last_read(), content(identity));
        let stream: [u8; 16] = std::array::from_fn(|at| stored[at] ^ page[at]);
        assert_ne!(stream, [0; 16], "an encrypted record lies in the clear: {extent:?}");
        if let Some(other) = streams.insert(stream, (self.id, *extent)) {
            panic!("two records have one key stream: {extent:?} and {other:?}");
        }
    }

    /// The process ends, however it does. Nobody waits for anything any more.
    fn forget_life(&mut self, report: &mut Report) {
        if let Some(log) = self.log.take() {
            report.log(&log.counters());
        }
        self.engine = self.disk.engine();
        self.waiting.clear();
        self.asked.clear();
        self.freeing.clear();
        self.inbox.clear();
        self.unread.clear();
        self.read_at = None;
        self.turn_at = None;
    }

    /// The process is killed. Its transfers land later or never.
    pub(super) fn kill(&mut self, report: &mut Report) {
        let free_at = self.disk.kill();
        self.forget_life(report);
        self.stage = Stage::Locked(free_at);
    }

    /// The power is cut.
    pub(super) fn cut_power(&mut self, now: u64, report: &mut Report) {
        self.disk.cut_power();
        self.forget_life(report);
        self.after_cut = true;
        self.stage = Stage::Locked(now);
    }

    /// Has the log write what is left.
    pub(super) fn begin_close(&mut self, now: u64) {
        if let Some(log) = &mut self.log {
            log.begin_close(Duration::from_micros(now));
            self.wake(now);
        }
    }

    /// Whether the log has nothing left to write, or cannot.
    pub(super) fn is_closed(&self) -> bool {
        self.log.as_ref().is_none_or(|log| {
            self.waiting.is_empty() && (log.is_quiet() || log.health() != Health::Well)
        })
    }

    /// The engine breaks for good: what the daemon tells the core, as its glue does.
    pub(super) fn lose(&mut self, report: &mut Report) -> Vec<Event<'static>> {
        let device = self.id;
        let mut events = vec![Event::DeviceLost { device }];
        let waiting: Vec<JobId> = self.waiting.iter().filter_map(job_of).collect();
        for (job, asked) in &self.asked {
            let (job, failed) = (*job, core::AppendOutcome::Failed);
            match asked.kind {
                AskedKind::Append => {
                    events.push(Event::Appended { job, outcome: failed, free_segments: 0 });
                }
                AskedKind::Relocate(_) => {
                    events.push(Event::Relocated { job, outcome: failed, free_segments: 0 });
                }
                // What never reached the log has touched nothing; what did keeps its frame for
                // good, because the kernel may still write to it.
                AskedKind::Read(_) if waiting.contains(&job) => {
                    let outcome = core::ReadOutcome::Failed;
                    events.push(Event::ReadDone { job, outcome });
                }
                AskedKind::Read(_) | AskedKind::Prove(_) => {}
            }
        }
        self.disk.abandon();
        self.forget_life(report);
        self.stage = Stage::Lost;
        events
    }
}

fn job_of(op: &undercroft_ssd_tier::Op) -> Option<JobId> {
    use undercroft_ssd_tier::Op;
    match op {
        Op::Append { job, .. }
        | Op::Read { job, .. }
        | Op::Relocate { job, .. }
        | Op::Prove { job, .. } => Some(*job),
        Op::FreeSegment { .. } => None,
    }
}
