use crate::config::MAX_DEVICES;
use crate::cost::{Meter, Pace};
use crate::segments::{Age, Segments};
use crate::stats::{DeviceReport, DeviceState, DeviceStats, TierFill};
use crate::wear::Wear;
use crate::{Core, DeviceConfig, Health, Micros, WriteBudget};
use std::cmp::Ordering;
use std::collections::VecDeque;
use undercroft_wire::{DeviceId, Extent};

use crate::page::PageId;

/// Devices whose loads differ by less than one step of 4 ms are filled evenly rather than by load.
const LOAD_STEPS_PER_S: u64 = 250;

/// All SSDs, by number.
#[derive(Debug)]
pub(crate) struct Devices {
    list: Vec<Device>,
    /// Those that answer: lookups ask this for every page they find on SSD.
    answering: DeviceSet,
}

/// Some of the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DeviceSet(u64);

/// One SSD: how it does, what lies on it, what is under way there.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) config: DeviceConfig,
    pub(crate) state: DeviceState,
    pub(crate) health: Health,
    /// As the page log last said.
    pub(crate) free_segments: u32,
    pub(crate) segments: Segments,
    /// Bytes of the jobs under way, frames counted whole.
    pub(crate) load_bytes: u64,
    /// Its reads of pages that somebody wants, and how fast they are.
    pub(crate) reading: Meter,
    /// Records that have not proved themselves.
    pub(crate) unproved: u64,
    /// Records to be proved, in order of recovery. Some may be gone, or have proved themselves to
    /// be damaged otherwise, by the time they are looked at.
    pub(crate) to_prove: VecDeque<(PageId, Extent)>,
    /// Proofs under way.
    pub(crate) proving: u32,
    pub(crate) wear: Wear,
    pub(crate) stats: DeviceStats,
}

impl DeviceSet {
    pub(crate) fn contains(self, device: DeviceId) -> bool {
        usize::from(device.0) < MAX_DEVICES && self.0 >> device.0 & 1 == 1
    }

    #[must_use]
    pub(crate) fn with(self, device: DeviceId) -> Self {
        Self(self.0 | 1 << device.0)
    }

    #[must_use]
    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Devices {
    pub(crate) fn new(configs: &[DeviceConfig], budget: WriteBudget) -> Self {
        let numbered = configs.iter().enumerate();
        let device =
            |(at, config): (usize, &DeviceConfig)| Device::new(DeviceId(at as u8), *config, budget);
        let list = numbered.map(device).collect();
        let mut devices = Self { list, answering: DeviceSet::default() };
        devices.note_answering();
        devices
    }

    /// To be called after a device's state or health has changed.
    pub(crate) fn note_answering(&mut self) {
        let answering = self.list.iter().filter(|device| device.answers());
        self.answering = answering.fold(DeviceSet::default(), |set, device| set.with(device.id));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = DeviceId> + use<> {
        (0..self.list.len()).map(|at| DeviceId(at as u8))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.list.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Device> {
        self.list.iter_mut()
    }

    pub(crate) fn get(&self, device: DeviceId) -> &Device {
        &self.list[usize::from(device.0)]
    }

    pub(crate) fn get_mut(&mut self, device: DeviceId) -> &mut Device {
        &mut self.list[usize::from(device.0)]
    }

    /// For numbers that come from outside.
    pub(crate) fn find_mut(&mut self, device: DeviceId) -> Option<&mut Device> {
        self.list.get_mut(usize::from(device.0))
    }

    /// Whether the device's pages count in lookups, and its jobs may be waited for.
    pub(crate) fn answers(&self, device: DeviceId) -> bool {
        self.answering.contains(device)
    }

    /// Whether any device takes appends.
    pub(crate) fn take_appends(&self) -> bool {
        self.list.iter().any(Device::takes_appends)
    }

    /// Whether any has not told yet what lies on it.
    pub(crate) fn are_recovering(&self) -> bool {
        self.list.iter().any(|device| device.state == DeviceState::Recovering)
    }

    /// Makes the segments of all devices comparable by age after one was read: which of them are
    /// older nobody remembers, so full devices are taken to have been written side by side.
    pub(crate) fn spread_ages(&mut self, end: u64) {
        for device in &mut self.list {
            device.segments.spread_ages(end);
        }
    }

    /// A lost device of which not everything is forgotten.
    pub(crate) fn next_to_forget(&self) -> Option<DeviceId> {
        let full = |device: &&Device| {
            device.state == DeviceState::Lost && device.segments.newest().is_some()
        };
        self.list.iter().find(full).map(|device| device.id)
    }

    /// The device that the next page is written to, none of `refused`: one with segments left; of
    /// those the one that will be done soonest with what it was given, in steps; of equal ones the
    /// emptiest for its size, so that pages last as long on a small device as on a large one.
    pub(crate) fn to_append_to(&self, refused: DeviceSet) -> Option<DeviceId> {
        let takes = |device: &&Device| device.takes_appends() && !refused.contains(device.id);
        let best = self.list.iter().filter(takes).min_by(|a, b| a.compare_to_append(b));
        best.map(|device| device.id)
    }
}

impl Device {
    fn new(id: DeviceId, config: DeviceConfig, budget: WriteBudget) -> Self {
        Self {
            id,
            config,
            state: DeviceState::Recovering,
            health: Health::Well,
            free_segments: 0,
            segments: Segments::default(),
            load_bytes: 0,
            reading: Meter::new(Pace::new(config.read_latency_us, config.read_bytes_per_s)),
            unproved: 0,
            to_prove: VecDeque::new(),
            proving: 0,
            wear: Wear::new(budget),
            stats: DeviceStats::default(),
        }
    }

    pub(crate) fn answers(&self) -> bool {
        let does = matches!(self.health, Health::Well | Health::ReadOnly);
        does && self.state != DeviceState::Lost
    }

    /// Whether it may be written to and freed.
    pub(crate) fn takes_appends(&self) -> bool {
        self.health == Health::Well && self.state == DeviceState::Ready
    }

    fn compare_to_append(&self, other: &Self) -> Ordering {
        let fill = |device: &Self, by: &Self| {
            // What is under way counts as there; fractions are compared without dividing.
            let used = u128::from(device.segments.used_bytes) + u128::from(device.load_bytes);
            used * u128::from(by.config.capacity_bytes.max(1))
        };
        let by_room = self.is_used_up().cmp(&other.is_used_up());
        let by_load = || self.load_steps().cmp(&other.load_steps());
        by_room.then_with(by_load).then_with(|| fill(self, other).cmp(&fill(other, self)))
    }

    /// Whether appends may have to wait for a segment to be freed, however few bytes of pages there
    /// are: the page log keeps its last free one for relocations.
    fn is_used_up(&self) -> bool {
        self.free_segments <= 1
    }

    /// How long it will take for what is under way, coarsely: devices that do little are alike.
    fn load_steps(&self) -> u64 {
        let bytes_per_step = self.config.read_bytes_per_s / LOAD_STEPS_PER_S;
        self.load_bytes / bytes_per_step.max(1)
    }

    pub(crate) fn fill(&self) -> TierFill {
        TierFill {
            capacity_bytes: self.config.capacity_bytes,
            used_bytes: self.segments.used_bytes,
            pages: self.segments.pages,
        }
    }

    fn report(&self, now: Micros) -> DeviceReport {
        let pace = self.reading.pace(now);
        DeviceReport {
            device: self.id,
            state: self.state,
            health: self.health,
            fill: self.fill(),
            free_segments: self.free_segments,
            unproved_records: self.unproved,
            written_in_a_day_bytes: self.wear.written_in_a_day(),
            read_bytes_per_s: (1e6 / pace.us_per_byte) as u64,
            read_latency_us: pace.latency_us as u64,
            stats: self.stats,
        }
    }
}

/// A read, relocation or proof under way, as its device and segment count it.
impl Core {
    /// A job of `bytes` bytes was handed to the device.
    pub(crate) fn load(&mut self, device: DeviceId, bytes: u64) {
        self.devices.get_mut(device).load_bytes += bytes;
    }

    pub(crate) fn unload(&mut self, device: DeviceId, bytes: u64) {
        let load = &mut self.devices.get_mut(device).load_bytes;
        *load = load.checked_sub(bytes).expect("a job ends once");
    }

    /// A read of the record begins: its segment waits for the end.
    pub(crate) fn begin_reading(&mut self, extent: Extent, bytes: u64) {
        self.load(extent.device, bytes);
        let segments = &mut self.devices.get_mut(extent.device).segments;
        segments.get_mut(Age::of(extent)).expect("a record lies in a segment").reads += 1;
    }

    pub(crate) fn end_reading(&mut self, extent: Extent, bytes: u64) {
        self.unload(extent.device, bytes);
        let segments = &mut self.devices.get_mut(extent.device).segments;
        // The segment waits for its reads, unless its device is lost.
        if let Some(segment) = segments.get_mut(Age::of(extent)) {
            segment.reads -= 1;
        }
    }

    /// How full all devices are together; `None` without one, and once all are lost.
    #[must_use]
    pub fn ssd(&self) -> Option<TierFill> {
        let fills = self.devices.iter().filter(|device| device.state != DeviceState::Lost);
        fills.map(Device::fill).reduce(|sum, fill| TierFill {
            capacity_bytes: sum.capacity_bytes + fill.capacity_bytes,
            used_bytes: sum.used_bytes + fill.used_bytes,
            pages: sum.pages + fill.pages,
        })
    }

    /// What is known of each device, in the order of their numbers.
    pub fn devices(&self) -> impl Iterator<Item = DeviceReport> + '_ {
        self.devices.iter().map(|device| device.report(self.now))
    }
}
