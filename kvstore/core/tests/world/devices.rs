//! The SSDs of the world: what may be asked of them, and how they answer.

use super::log::Log;
use super::memory::place;
use super::{OTHER, World, content, content_of};
use undercroft_core::{
    Action, AppendOutcome, Config, CopyOutcome, DeviceConfig, DeviceReport, DeviceState,
    DomainConfig, DomainLimits, Event, Health, Limits, ReadOutcome, RecoveredRecord,
};
use undercroft_wire::{
    DeviceId, DomainId, Extent, JobId, Origin, PageIdentity, PageKey, SegmentId, SegmentUse,
    SpaceId,
};

pub(crate) const FIRST: DeviceId = DeviceId(0);
pub(crate) const SECOND: DeviceId = DeviceId(1);

/// Size of an SSD.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Pages of 4096 bytes that it may hold.
    pub(crate) pages: u64,
    pub(crate) segments: u32,
    /// Records in a segment.
    pub(crate) records: u32,
}

pub(crate) fn size(pages: u64, segments: u32, records: u32) -> Size {
    Size { pages, segments, records }
}

/// A configuration with SSDs of these sizes.
pub(crate) fn config(sizes: &[Size]) -> Config {
    let limits = DomainLimits { weight: 2, ..DomainLimits::default() };
    let few = DomainLimits {
        max_reads: 1,
        max_session_bytes: 4 * 4096,
        ssd_bytes: 6 * 4096,
        ssd_floor_bytes: 2 * 4096,
        ..DomainLimits::default()
    };
    let device = |size: &Size| DeviceConfig {
        capacity_bytes: size.pages * 4096,
        low_water_segments: 1,
        read_bytes_per_s: 1 << 30,
        read_latency_us: 100,
    };
    Config {
        domains: vec![
            DomainConfig { id: DomainId::default(), limits, max_age_s: 0 },
            DomainConfig { id: OTHER, limits: few, max_age_s: 0 },
        ],
        devices: sizes.iter().map(device).collect(),
        slab_bytes: 2 * 4096,
        demote_ahead: 2,
        fetch_window: 2,
        step_pages: 2,
        limits: Limits {
            max_lane_bytes: 2 * 4096,
            max_ahead_bytes: 4096,
            max_expected: 2,
            ..Limits::default()
        },
        ..Config::default()
    }
}

impl World {
    /// A world with an empty SSD of `segments` segments with `records` records each.
    pub(crate) fn with_ssd(frames: u64, pages: u64, segments: u32, records: u32) -> Self {
        Self::with_devices(frames, &[size(pages, segments, records)])
    }

    /// A world with empty SSDs.
    pub(crate) fn with_devices(frames: u64, sizes: &[Size]) -> Self {
        Self::with_devices_in(config(sizes), frames, sizes)
    }

    /// As [`World::with_devices`], with a configuration of its own for those SSDs.
    pub(crate) fn with_devices_in(config: Config, frames: u64, sizes: &[Size]) -> Self {
        let logs = sizes.iter().enumerate();
        let logs = logs.map(|(at, size)| Log::new(DeviceId(at as u8), size.segments, size.records));
        let mut world = Self::with_logs(frames, config, logs.collect());
        for at in 0..sizes.len() {
            world.recover(DeviceId(at as u8), &[], true);
        }
        world
    }

    /// A world whose SSDs have not told yet what lies on them.
    pub(crate) fn with_logs(frames: u64, config: Config, logs: Vec<Log>) -> Self {
        let mut world = Self::with_frames(frames, config);
        world.logs = logs;
        for log in &mut world.logs {
            log.state = DeviceState::Recovering;
        }
        world
    }

    pub(crate) fn log(&self, device: DeviceId) -> &Log {
        &self.logs[usize::from(device.0)]
    }

    pub(crate) fn log_mut(&mut self, device: DeviceId) -> &mut Log {
        &mut self.logs[usize::from(device.0)]
    }

    /// A device tells a piece of what lies on it.
    pub(crate) fn recover(&mut self, device: DeviceId, records: &[RecoveredRecord], last: bool) {
        let log = self.log_mut(device);
        let free_segments = log.free_segments();
        if last && log.state == DeviceState::Recovering {
            log.state = DeviceState::Ready;
        }
        self.step(Event::Recovered { device, records, free_segments, last });
    }

    pub(crate) fn set_health(&mut self, device: DeviceId, health: Health) {
        self.log_mut(device).health = health;
        self.step(Event::DeviceHealth { device, health });
    }

    pub(crate) fn lose(&mut self, device: DeviceId) {
        self.log_mut(device).state = DeviceState::Lost;
        self.step(Event::DeviceLost { device });
    }

    /// Nothing is asked of a device that cannot do it.
    pub(super) fn check_asked(&self, action: &Action) {
        match action {
            Action::Append { device, .. } | Action::FreeSegment { device, .. } => {
                assert!(self.log(*device).takes_appends(), "it takes no appends: {action:?}");
            }
            Action::Relocate { extent, .. } => {
                assert!(self.log(extent.device).takes_appends(), "it takes none: {action:?}");
            }
            Action::Read { extent, .. } | Action::Prove { extent, .. } => {
                assert!(self.log(extent.device).answers(), "it does not answer: {action:?}");
            }
            Action::Reply { .. }
            | Action::Purged { .. }
            | Action::CopyIn { .. }
            | Action::CopyOut { .. }
            | Action::PartEmpty { .. } => {}
        }
    }

    /// How many of the keys a lookup may report: what it reports is in a frame or in a record that
    /// counts. A page may leave in the very step that reported it.
    pub(super) fn readable(&self, spaces: &[SpaceId], keys: &[PageKey]) -> u32 {
        let known = spaces.iter().filter_map(|space| self.spaces.get(space));
        let known: Vec<_> = known.copied().collect();
        let readable = |key: &&PageKey| {
            known.iter().all(|spec| {
                let in_dram = self.memory.has(content(spec.domain, spec.digest, key));
                let same = |page: &PageIdentity| spec.is_of(page) && page.key == **key;
                in_dram || self.logs.iter().any(|log| log.may_seem_to_have(same))
            })
        };
        keys.iter().take_while(readable).count() as u32
    }

    pub(super) fn give_up(&mut self, device: DeviceId, segment: SegmentId, of: SegmentUse) {
        let reads = |job: &Action| match job {
            Action::Read { extent, .. }
            | Action::Relocate { extent, .. }
            | Action::Prove { extent, .. } => extent.device == device && extent.segment == segment,
            _ => false,
        };
        assert!(!self.jobs.values().any(reads), "nobody reads a freed segment");
        self.log_mut(device).to_free.push((segment, of));
    }

    /// The device that a job under way is for.
    pub(crate) fn device_of(job: &Action) -> Option<DeviceId> {
        match job {
            Action::Append { device, .. } => Some(*device),
            Action::Read { extent, .. }
            | Action::Relocate { extent, .. }
            | Action::Prove { extent, .. } => Some(extent.device),
            _ => None,
        }
    }

    /// Ends the `at`-th job under way; `fails` makes it fail.
    pub(crate) fn end_job(&mut self, at: usize, fails: bool) {
        let Some((&job, _)) = self.jobs.iter().nth(at) else {
            return;
        };
        match self.jobs.remove(&job).unwrap() {
            Action::CopyIn { session, space, slot, frame, .. } => {
                let held = self.slots.get(&(session, space, slot)).copied();
                let outcome = match held {
                    Some(held) if !fails => {
                        self.memory.fill(&frame, held);
                        CopyOutcome::Ok(held)
                    }
                    _ => CopyOutcome::Failed,
                };
                self.step(Event::CopiedIn { job, outcome });
            }
            Action::CopyOut { session, space, slot, frame, .. } => {
                let held = self.memory.held(place(&frame)).expect("a pinned frame keeps its page");
                if !fails {
                    self.slots.insert((session, space, slot), held);
                }
                self.step(Event::CopiedOut { job, ok: !fails });
            }
            Action::Append { device, frame, identity, origin, .. } => {
                let held = self.memory.held(place(&frame)).expect("a frame being written is whole");
                assert_eq!(held, content_of(&identity));
                let record = (identity, origin);
                let (outcome, free_segments) = self.append(device, record, fails, false);
                self.step(Event::Appended { job, outcome, free_segments });
            }
            Action::Relocate { extent, identity, origin, .. } => {
                let fails = fails || self.log(extent.device).record(extent).is_none();
                let record = (identity, origin);
                let (outcome, free_segments) = self.append(extent.device, record, fails, true);
                self.step(Event::Relocated { job, outcome, free_segments });
            }
            Action::Read { extent, identity, frame, .. } => {
                let record = self.log(extent.device).record(extent);
                let outcome = read_outcome(record, identity, fails);
                if let ReadOutcome::Ok(held) = outcome {
                    self.memory.fill(&frame, held);
                }
                self.step(Event::ReadDone { job, outcome });
            }
            Action::Prove { extent, identity, .. } => self.end_proof(job, extent, identity, fails),
            other => panic!("not a job: {other:?}"),
        }
    }

    fn end_proof(&mut self, job: JobId, extent: Extent, identity: PageIdentity, fails: bool) {
        let log = self.log_mut(extent.device);
        let record = if fails { None } else { log.prove(extent) };
        let outcome = read_outcome(record, identity, fails);
        self.step(Event::Proved { job, outcome });
    }

    fn append(
        &mut self,
        device: DeviceId,
        (identity, origin): (PageIdentity, Origin),
        fails: bool,
        relocates: bool,
    ) -> (AppendOutcome, u32) {
        let log = self.log_mut(device);
        let written = if fails { None } else { log.append(identity, origin, relocates) };
        let failure = if fails { AppendOutcome::Failed } else { AppendOutcome::NoSpace };
        (written.map_or(failure, AppendOutcome::Written), log.free_segments())
    }

    /// Frees the segments the core has given up.
    pub(crate) fn free_segments(&mut self) {
        for at in 0..self.logs.len() {
            while let Some((segment, segment_use)) = self.logs[at].to_free.pop() {
                let log = &mut self.logs[at];
                log.free(segment, segment_use);
                let (device, free_segments) = (log.device, log.free_segments());
                self.step(Event::SegmentFreed { device, segment, segment_use, free_segments });
            }
        }
    }

    /// Ends the oldest job that `is_it`; false if there is none.
    pub(crate) fn end_one(&mut self, fails: bool, is_it: impl Fn(&Self, &Action) -> bool) -> bool {
        let found = self.jobs.values().position(|job| is_it(self, job));
        found.inspect(|at| self.end_job(*at, fails)).is_some()
    }

    /// Ends what copy workers do and nothing else, until they have nothing left to do.
    pub(crate) fn finish_copies(&mut self) {
        while self.end_one(false, |_, job| Self::device_of(job).is_none()) {}
    }

    /// Ends every job, oldest first, until none is left but those of devices that do not answer.
    pub(crate) fn finish_jobs(&mut self) {
        for _ in 0..100_000 {
            self.free_segments();
            let answers = |world: &Self, job: &Action| {
                Self::device_of(job).is_none_or(|device| world.log(device).answers())
            };
            if !self.end_one(false, answers) {
                return;
            }
        }
        panic!("the core never comes to rest");
    }

    /// Ends every job, those included that nobody waits for any more.
    pub(crate) fn finish_all_jobs(&mut self) {
        self.finish_jobs();
        while self.end_one(false, |_, _| true) {
            self.finish_jobs();
        }
    }

    /// How many jobs under way `is_it`.
    pub(crate) fn count_jobs(&self, is_it: impl Fn(&Action) -> bool) -> usize {
        self.jobs.values().filter(|job| is_it(job)).count()
    }

    pub(crate) fn report(&self, device: DeviceId) -> DeviceReport {
        self.core.devices().nth(usize::from(device.0)).unwrap()
    }
}

fn read_outcome(record: Option<PageIdentity>, wanted: PageIdentity, fails: bool) -> ReadOutcome {
    match record {
        _ if fails => ReadOutcome::Failed,
        Some(record) if record == wanted => ReadOutcome::Ok(content_of(&wanted)),
        _ => ReadOutcome::Corrupt,
    }
}
