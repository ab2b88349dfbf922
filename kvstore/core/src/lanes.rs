use crate::domains::DomainAt;
use crate::jobs::Job;
use crate::{Action, Core};
use std::collections::VecDeque;
use undercroft_wire::{DeviceId, JobId};

/// What a domain of weight 1 may have handed on in one turn, bytes.
const TURN_BYTES: u64 = 64 << 10;

/// What jobs wait for before they are given to a device: reads and writes do not wait for each
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneAt {
    Reads(DeviceId),
    Writes(DeviceId),
}

/// Jobs of one kind for one device. A device does what it was given in order, so it is given no
/// more than keeps it busy; the rest waits here, and domains take turns (deficit round robin:
/// Shreedhar and Varghese, 1995). So nobody waits behind all that another domain wants.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// Bytes of what was given to the device and has not ended, frames counted whole.
    pub(crate) under_way_bytes: u64,
    /// What waits, of each domain.
    queues: Vec<Queue>,
    /// The domains that anything waits of, in turn.
    turns: VecDeque<DomainAt>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Held>,
    /// Bytes it may hand on in this turn.
    credit: u64,
}

/// A job that was not given to its device yet.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) job: JobId,
    bytes: u64,
    action: Action,
}

/// The lanes of all devices.
#[derive(Debug)]
pub(crate) struct Lanes {
    reads: Vec<Lane>,
    writes: Vec<Lane>,
}

impl Lane {
    fn new(domains: usize) -> Self {
        let queues = (0..domains).map(|_| Queue::default()).collect();
        Self { queues, ..Self::default() }
    }

    fn push(&mut self, domain: DomainAt, held: Held) {
        let queue = &mut self.queues[domain.0 as usize].waiting;
        if queue.is_empty() {
            self.turns.push_back(domain);
        }
        queue.push_back(held);
    }

    /// The next job of those domains that may have one more.
    fn next(
        &mut self,
        weight: impl Fn(DomainAt) -> u64,
        may: impl Fn(DomainAt) -> bool,
    ) -> Option<(DomainAt, Held)> {
        let mut passed = 0;
        while passed < self.turns.len() {
            let domain = *self.turns.front()?;
            if !may(domain) {
                passed += 1;
                self.turns.rotate_left(1);
                continue;
            }
            let queue = &mut self.queues[domain.0 as usize];
            let held = queue.waiting.pop_front().expect("a domain in turn waits");
            if held.bytes > queue.credit {
                queue.credit += weight(domain) * TURN_BYTES;
                queue.waiting.push_front(held);
                passed = 0;
                self.turns.rotate_left(1);
                continue;
            }
            queue.credit -= held.bytes;
            if queue.waiting.is_empty() {
                // Who wants nothing saves nothing up.
                queue.credit = 0;
                self.turns.pop_front();
            }
            return Some((domain, held));
        }
        None
    }

    /// Takes a job out that was not given away yet.
    fn withdraw(&mut self, domain: DomainAt, job: JobId) -> bool {
        let queue = &mut self.queues[domain.0 as usize].waiting;
        let Some(at) = queue.iter().position(|held| held.job == job) else {
            return false;
        };
        queue.remove(at);
        if queue.is_empty() {
            self.turns.retain(|other| *other != domain);
        }
        true
    }

    /// Takes out all that waits.
    fn drain(&mut self) -> Vec<Held> {
        self.turns.clear();
        self.queues.iter_mut().flat_map(|queue| queue.waiting.drain(..)).collect()
    }

    /// The domains that anything waits of.
    pub(crate) fn turns(&self) -> impl Iterator<Item = DomainAt> + '_ {
        self.turns.iter().copied()
    }

    /// All that waits, by domain.
    pub(crate) fn held(&self) -> impl Iterator<Item = (DomainAt, &Held)> {
        let numbered = self.queues.iter().enumerate();
        numbered.flat_map(|(at, queue)| {
            queue.waiting.iter().map(move |held| (DomainAt(at as u32), held))
        })
    }
}

impl Lanes {
    pub(crate) fn new(devices: usize, domains: usize) -> Self {
        let lanes = || (0..devices).map(|_| Lane::new(domains)).collect();
        Self { reads: lanes(), writes: lanes() }
    }

    pub(crate) fn get(&self, at: LaneAt) -> &Lane {
        match at {
            LaneAt::Reads(device) => &self.reads[usize::from(device.0)],
            LaneAt::Writes(device) => &self.writes[usize::from(device.0)],
        }
    }

    fn get_mut(&mut self, at: LaneAt) -> &mut Lane {
        match at {
            LaneAt::Reads(device) => &mut self.reads[usize::from(device.0)],
            LaneAt::Writes(device) => &mut self.writes[usize::from(device.0)],
        }
    }
}

impl Core {
    /// Bytes that may be under way in a lane before jobs wait: where there is only one domain
    /// nobody is waited for.
    pub(crate) fn lane_limit(&self) -> u64 {
        let alone = self.config.domains.len() == 1;
        if alone { u64::MAX } else { self.config.limits.max_lane_bytes }
    }

    /// Whether the domain may have one more job in the lane.
    pub(crate) fn may_hand_on(&self, at: LaneAt, domain: DomainAt) -> bool {
        let domain = self.domains.get(domain);
        matches!(at, LaneAt::Writes(_)) || domain.reads < domain.config.limits.max_reads
    }

    /// Gives a job to its device, at once or when it is its turn.
    pub(crate) fn hand_in(
        &mut self,
        at: LaneAt,
        domain: DomainAt,
        (job, bytes): (JobId, u64),
        action: Action,
        actions: &mut Vec<Action>,
    ) {
        let lane = self.lanes.get(at);
        let free = lane.turns.is_empty() && lane.under_way_bytes < self.lane_limit();
        if free && self.may_hand_on(at, domain) {
            self.give_away(at, domain, bytes);
            actions.push(action);
        } else {
            self.lanes.get_mut(at).push(domain, Held { job, bytes, action });
        }
    }

    fn give_away(&mut self, at: LaneAt, domain: DomainAt, bytes: u64) {
        self.lanes.get_mut(at).under_way_bytes += bytes;
        self.domains.get_mut(domain).reads += u32::from(matches!(at, LaneAt::Reads(_)));
    }

    /// A job that was given to its device has ended.
    pub(crate) fn lane_done(&mut self, at: LaneAt, bytes: u64) {
        let under_way = &mut self.lanes.get_mut(at).under_way_bytes;
        *under_way = under_way.checked_sub(bytes).expect("a job ends once");
        if let LaneAt::Reads(device) = at {
            self.wake_lulls(device);
        }
    }

    /// A read that the domain waited for has ended, or is no longer waited for.
    pub(crate) fn read_over(&mut self, domain: DomainAt) {
        let reads = &mut self.domains.get_mut(domain).reads;
        *reads = reads.checked_sub(1).expect("a read ends once");
    }

    /// Takes a read out of its lane; false if the device has it.
    pub(crate) fn withdraw_read(&mut self, device: DeviceId, domain: DomainAt, job: JobId) -> bool {
        let withdrawn = self.lanes.get_mut(LaneAt::Reads(device)).withdraw(domain, job);
        self.wake_lulls(device);
        withdrawn
    }

    /// Gives devices what there is room for. What waits for one that takes no writes any more goes
    /// elsewhere.
    pub(crate) fn hand_on(&mut self, actions: &mut Vec<Action>) {
        for device in self.devices.ids() {
            if !self.devices.get(device).takes_appends() {
                self.withdraw_appends(device, actions);
            }
            self.hand_on_in(LaneAt::Reads(device), actions);
            self.hand_on_in(LaneAt::Writes(device), actions);
        }
    }

    fn hand_on_in(&mut self, at: LaneAt, actions: &mut Vec<Action>) {
        let limit = self.lane_limit();
        if self.lanes.get(at).turns.is_empty() {
            return;
        }
        while self.lanes.get(at).under_way_bytes < limit {
            let mut lane = std::mem::take(self.lanes.get_mut(at));
            let weight = |domain| u64::from(self.domains.get(domain).config.limits.weight.max(1));
            let next = lane.next(weight, |domain| self.may_hand_on(at, domain));
            *self.lanes.get_mut(at) = lane;
            let Some((domain, held)) = next else {
                break;
            };
            self.give_away(at, domain, held.bytes);
            actions.push(held.action);
        }
        if let LaneAt::Reads(device) = at {
            self.wake_lulls(device);
        }
    }

    fn withdraw_appends(&mut self, device: DeviceId, actions: &mut Vec<Action>) {
        for held in self.lanes.get_mut(LaneAt::Writes(device)).drain() {
            let Some(Job::Append { page, refused, .. }) = self.jobs.remove(&held.job) else {
                unreachable!("writes that wait are appends")
            };
            self.append_over(page, (device, refused), None, actions);
        }
    }
}
