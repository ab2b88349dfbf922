//! A run from its first start to its last end.

use super::device::{Device, Stage};
use super::plan::Class;
use super::report::{Count, Report};
use super::store::Opened;
use super::world::{Moved, OWN_JOBS, World, note};
use std::collections::HashMap;
use undercroft_arena::Memory;
use undercroft_core::Event;
use undercroft_ssd_tier::Op;
use undercroft_wire::{DeviceId, Extent, JobId, SessionId, frame_bytes};

/// More than this does not happen before everything is answered.
const MOST_MOVES: u32 = 1_000_000;
/// Nor does more time pass, microseconds: the slowest transfers take this long twice.
const LONGEST_WAIT: u64 = 60_000_000;

/// How a life of the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    PowerCut,
    /// In good order; then the power is cut, or not.
    Close {
        then_cut: bool,
    },
}

/// Runs a seed to its end.
///
/// # Panics
/// A promise is broken: the panic's message says which.
pub(super) fn run(seed: u64, trace: bool) -> Report {
    World::new(seed, trace).run()
}

impl World {
    /// Goes through all lives of the daemon.
    pub(super) fn run(mut self) -> Report {
        let lives = self.plan.lives;
        note!(self, "{:?}", self.plan);
        for life in 1..=lives {
            self.live();
            let last = life == lives;
            if last || self.rng.u8(..3) == 0 {
                self.come_to_rest();
            }
            if last {
                self.survey();
            }
            self.end_life();
            if last {
                break;
            }
            self.change_plan();
            self.begin_life();
        }
        for device in &self.devices {
            self.report.faults(&device.disk.tally());
        }
        self.report.count(Count::Seeds);
        self.report.more(Count::Truthful, u64::from(self.plan.class == Class::Truthful));
        self.report.more(Count::SeveralDevices, u64::from(self.devices.len() > 1));
        self.report.more(Count::Micros, self.now);
        self.report
    }

    /// Lets clients do what they will.
    fn live(&mut self) {
        let loses = self.plan.class != Class::Truthful && self.rng.u8(..16) == 0;
        let mut moves = self.rng.u32(1..600);
        for _ in 0..MOST_MOVES {
            if self.act_at.is_none() {
                return;
            }
            if loses && moves == 0 {
                self.lose_a_device();
            }
            moves = moves.wrapping_sub(1);
            if self.advance() == Moved::Died {
                self.die_while_opening();
            }
        }
        panic!("the clients' work has no end");
    }

    /// Opens a device's store, as soon as its lock is free.
    pub(super) fn open(&mut self, at: usize) -> Moved {
        let (now, device) = (self.now, &mut self.devices[at]);
        let id = device.id;
        match device.open(now, &mut self.rng, &mut self.report) {
            Opened::Well => {
                let found = device.unread.len();
                note!(self, "device {id} is open, {found} records; {:?}", device.plan);
                Moved::On
            }
            Opened::Died => Moved::Died,
            Opened::Refused => {
                self.step(Event::DeviceLost { device: id });
                Moved::On
            }
        }
    }

    fn die_while_opening(&mut self) {
        let act_at = self.act_at;
        self.end_life();
        self.begin_life();
        self.act_at = act_at.map(|_| self.now);
    }

    fn lose_a_device(&mut self) {
        let at = self.rng.usize(..self.devices.len());
        if self.devices[at].stage != Stage::Open {
            return;
        }
        self.report.count(Count::LostDevices);
        let id = self.devices[at].id;
        // Answers that were given before it broke arrive before.
        while let Some((_, answer)) = self.devices[at].inbox.pop_front() {
            self.answered(answer);
        }
        for event in self.devices[at].lose(&mut self.report) {
            self.job_over(job_of(&event), &event);
            self.step(event);
        }
        let left: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| device_of(job) == Some(id))
            .map(|(j, _)| *j)
            .collect();
        self.unanswered.extend(left);
    }

    /// Waits until everything is answered.
    ///
    /// # Panics
    /// Something is not.
    pub(super) fn come_to_rest(&mut self) {
        note!(self, "coming to rest");
        self.act_at = None;
        let began = self.now;
        for _ in 0..MOST_MOVES {
            if self.is_idle() {
                return self.check_rest();
            }
            let waited = self.now - began;
            let endless = waited >= LONGEST_WAIT;
            assert!(!endless, "this is waited for without end: {}", self.waited_for());
            match self.advance() {
                Moved::On => {}
                Moved::Nothing => {
                    panic!("nothing moves, and this is waited for: {}", self.waited_for())
                }
                Moved::Died => {
                    self.end_life();
                    self.begin_life();
                    self.act_at = None;
                }
            }
        }
        panic!("something goes on without end");
    }

    /// What keeps the world from being at rest.
    fn waited_for(&self) -> String {
        let devices = self.devices.iter().filter(|device| !device.is_idle() || !device.is_closed());
        let devices: Vec<_> = devices.map(Device::waits_for).collect();
        format!("{:?} and {} copies; {}", self.jobs.values(), self.copies(), devices.join("; "))
    }

    fn check_rest(&mut self) {
        // Deadlines and holds run out; what was put off is written.
        let until = self.now + 5_000_000;
        while self.next_time().is_some_and(|time| time <= until) {
            if self.advance() == Moved::Died || !self.is_idle() {
                return self.come_to_rest();
            }
        }
        for ((session, request), answered) in &self.clients.commits {
            assert!(answered, "commit {request} of session {session} is never answered");
        }
        for ((session, lease), held) in &self.clients.leases {
            let over = held.ended.is_some() || !held.open;
            assert!(over, "lease {lease} of session {session} never ends");
        }
        for device in self.devices.iter().filter(|device| device.class == Class::Truthful) {
            let quiet = device.log.as_ref().is_some_and(undercroft_ssd_tier::Machine::is_quiet);
            if quiet {
                device.disk.witness(|witness| witness.at_rest());
            }
        }
        if self.plan.class == Class::Truthful {
            let on_ssd = self.core.ssd().map_or(0, |fill| fill.pages);
            self.report.more(Count::AtRest, self.core.dram().pages + on_ssd);
            self.report.more(Count::Unreachable, self.core.unreachable_pages());
        }
        // Every frame can be had again.
        let sessions: Vec<SessionId> = self.clients.sessions.keys().copied().collect();
        let lingering: Vec<SessionId> = self.clients.lingering.iter().copied().collect();
        for session in sessions.into_iter().chain(lingering) {
            self.clients.sessions.remove(&session);
            self.clients.lingering.remove(&session);
            self.bury(session);
        }
    }

    /// Reads every record that there should be, past the core.
    pub(super) fn survey(&mut self) {
        let mut streams: HashMap<[u8; 16], (DeviceId, Extent)> = HashMap::new();
        let mut number = OWN_JOBS;
        let memory = Memory::new(64 << 10, 0).expect("there is memory");
        for at in 0..self.devices.len() {
            if self.devices[at].stage != Stage::Open {
                continue;
            }
            let records: Vec<_> = self.devices[at].ledger.iter().collect();
            for (extent, entry) in records {
                number += 1;
                let (job, identity) = (JobId(number), entry.identity);
                let bytes = frame_bytes(identity.page_bytes) as usize;
                let into = memory.span(0, bytes).expect("a page is smaller");
                self.devices[at].submit(Op::Read { job, identity, extent, into }, self.now);
                let verified = self.report.of(Count::Verified);
                let mut moves = 0;
                while !self.devices[at].is_idle() {
                    moves += 1;
                    assert!(moves < MOST_MOVES, "a read goes on without end");
                    let _goes_on = self.advance();
                }
                if self.report.of(Count::Verified) > verified {
                    self.devices[at].check_stream(&extent, &identity, &mut streams);
                }
            }
        }
    }

    fn end_life(&mut self) {
        let end = match self.rng.u8(..6) {
            0 | 1 => End::Kill,
            2..5 => End::PowerCut,
            _ => End::Close { then_cut: self.rng.bool() },
        };
        note!(self, "the daemon ends: {end:?}");
        self.report.core(self.core.stats());
        self.cut_purges();
        let now = self.now;
        let Self { devices, report, .. } = self;
        match end {
            End::Kill => {
                report.count(Count::Kills);
                devices.iter_mut().for_each(|device| device.kill(report));
            }
            End::PowerCut => {
                report.count(Count::Cuts);
                devices.iter_mut().for_each(|device| device.cut_power(now, report));
            }
            End::Close { then_cut } => {
                self.report.count(Count::Closes);
                self.close_all();
                let now = self.now;
                for device in &mut self.devices {
                    let report = &mut self.report;
                    if then_cut { device.cut_power(now, report) } else { device.kill(report) }
                }
            }
        }
    }

    fn close_all(&mut self) {
        self.devices.iter_mut().for_each(|device| device.begin_close(self.now));
        for _ in 0..MOST_MOVES {
            if self.devices.iter().all(Device::is_closed) {
                return;
            }
            let next = self
                .devices
                .iter()
                .enumerate()
                .filter_map(|(at, device)| device.next_time().map(|time| (time, at)));
            let Some((time, at)) = next.min() else {
                panic!("a log that is being closed waits for nothing: {}", self.waited_for());
            };
            self.now = self.now.max(time);
            self.devices[at].turn(self.now, &mut self.rng, &mut self.report);
        }
        panic!("a log that is being closed does not come to rest");
    }

    /// The operator changes the configuration now and then.
    fn change_plan(&mut self) {
        for (plan, config) in self.devices.iter_mut().zip(&mut self.plan.core.devices) {
            if self.rng.u8(..8) == 0 {
                self.report.count(Count::Resized);
                plan.plan.capacity_bytes = plan.plan.room_bytes * self.rng.u64(1..=5);
                config.capacity_bytes = plan.plan.capacity_bytes;
            }
            if self.rng.u8(..12) == 0 {
                plan.plan.encrypted = !plan.plan.encrypted;
            }
        }
    }
}

fn device_of(job: &undercroft_core::Action) -> Option<DeviceId> {
    use undercroft_core::Action;
    match job {
        Action::Append { device, .. } => Some(*device),
        Action::Read { extent, .. }
        | Action::Relocate { extent, .. }
        | Action::Prove { extent, .. } => Some(extent.device),
        _ => None,
    }
}

fn job_of(event: &Event<'_>) -> Option<JobId> {
    match event {
        Event::Appended { job, .. }
        | Event::ReadDone { job, .. }
        | Event::Relocated { job, .. }
        | Event::Proved { job, .. } => Some(*job),
        _ => None,
    }
}
