//! Everything that clients, copy workers and failing SSDs can do, in any order, against a handful
//! of frames. The world checks every promise: what is delivered is the page asked for, leased
//! frames keep their bytes, jobs never share a frame, nothing is asked of a device that cannot do
//! it; `audit()` runs after every step.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod world;

use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use undercroft_core::{
    Admission, Config, DeviceState, Health, LoadPolicy, Micros, Policy, RecoveredRecord,
    WriteBudget,
};
use undercroft_wire::{
    DeviceId, DomainId, DropHold, Fetch, FetchOutcome, FetchSource, Hint, HintKind, HoldId,
    LeaseId, Lookup, Mode, OfferId, PageKey, Prefetch, PurgeScope, Reply, Request, Rival,
    SessionId, SlotId, SpaceId, Stamp, Token,
};
use world::devices::{Size, config, size};
use world::log::Log;
use world::{MANY, OTHER, World, key};

const CHAINS: u64 = 4;
const DEPTH: u64 = 8;

/// Four chains of eight pages, two and two of them sharing their first three.
fn chain(number: u64) -> Vec<PageKey> {
    let number = number % CHAINS;
    (0..DEPTH).map(|depth| key(if depth < 3 { number % 2 } else { number }, depth)).collect()
}

#[derive(Debug, Clone, Copy)]
struct Faults {
    policy: (Policy, Admission, WriteBudget),
    /// What is made of what loading costs, and what computing a page costs, nanoseconds.
    load: (LoadPolicy, u64),
    /// SSDs, of different sizes.
    devices: usize,
    jobs_fail: bool,
    /// Devices stall and recover from it.
    moody: bool,
    devices_die: bool,
    /// The daemon dies in the middle, and its devices are read while clients go on.
    crashes: bool,
    /// What it had in memory outlives it.
    remembers: bool,
}

impl Faults {
    fn settings(self, sizes: &[Size]) -> Config {
        let (policy, admission, write_budget) = self.policy;
        Config { policy, admission, write_budget, load: self.load.0, ..config(sizes) }
    }
}

fn policy() -> impl Strategy<Value = (Policy, Admission, WriteBudget)> {
    let admissions = [Admission::Through, Admission::Demote, Admission::Auto(2)];
    let tight = WriteBudget { bytes_per_s: Some(2 * 4096), ..WriteBudget::default() };
    let budgets = [WriteBudget::NONE, WriteBudget::NONE, tight];
    (
        prop::sample::select(Policy::ALL.to_vec()),
        prop::sample::select(admissions.to_vec()),
        prop::sample::select(budgets.to_vec()),
    )
}

/// Pages that cost much more and much less to load than to compute.
fn load() -> impl Strategy<Value = (LoadPolicy, u64)> {
    let costs = [(LoadPolicy::Off, 0), (LoadPolicy::Advisory, 900_000)];
    let enforced = [(LoadPolicy::Enforced, 60_000), (LoadPolicy::Enforced, 9_000_000)];
    prop::sample::select([costs, enforced].concat())
}

struct OpenOffer {
    session: u64,
    space: SpaceId,
    offer: OfferId,
    slots: Vec<SlotId>,
}

struct OpenHold {
    space: SpaceId,
    hold: HoldId,
    keys: Vec<PageKey>,
}

struct Chaos {
    world: World,
    faults: Faults,
    /// Live sessions, their process and domain.
    sessions: BTreeMap<u64, (u32, DomainId)>,
    /// The spaces of each domain.
    spaces: BTreeMap<DomainId, [SpaceId; 2]>,
    slots: u32,
    offers: Vec<OpenOffer>,
    holds: Vec<OpenHold>,
    /// Leases that may be taken: token, space, and whose they are.
    gifts: Vec<(Token, SpaceId, (u64, u64))>,
    /// Leases fetched from a hold that had not expired.
    promised: Vec<(u64, u64)>,
    /// What each device has not told yet.
    unread: Vec<VecDeque<RecoveredRecord>>,
    stamp: Stamp,
    next_session: u64,
    next_lease: u64,
}

type Op = (u8, u32, u32, u32);

impl Chaos {
    fn new(faults: Faults, frames: u64, slots: u32) -> Self {
        let sizes = &SIZES[..faults.devices];
        let mut world = World::with_devices_in(faults.settings(sizes), frames, sizes);
        world.add_part(OTHER, 2);
        Self::on(world, faults, slots, 1)
    }

    /// Clients of a world, whatever lies on its devices.
    fn on(mut world: World, faults: Faults, slots: u32, next: u64) -> Self {
        world.recompute_ns = faults.load.1;
        let unread = world.logs.iter().map(|log| log.recover().into()).collect();
        let mut chaos = Self {
            world,
            unread,
            faults,
            sessions: BTreeMap::new(),
            spaces: BTreeMap::new(),
            slots,
            offers: Vec::new(),
            holds: Vec::new(),
            gifts: Vec::new(),
            promised: Vec::new(),
            stamp: Stamp(0),
            next_session: next,
            next_lease: next << 32,
        };
        let own = DomainId::default();
        for (pid, mode) in [(1, Mode::ZeroCopy), (1, Mode::ZeroCopy), (2, Mode::Copy)] {
            chaos.connect(pid, mode, own);
        }
        chaos.connect(3, Mode::ZeroCopy, OTHER);
        chaos
    }

    fn connect(&mut self, pid: u32, mode: Mode, domain: DomainId) {
        let session = self.next_session;
        self.next_session += 1;
        self.world.open_in(domain, session, pid, mode);
        let small = self.world.open_space(session, 1, 4096, self.slots);
        let large = self.world.open_space(session, 2, 5000, self.slots);
        self.spaces.insert(domain, [small, large]);
        self.sessions.insert(session, (pid, domain));
    }

    fn session(&self, at: u32) -> u64 {
        *self.sessions.keys().nth(at as usize % self.sessions.len()).unwrap()
    }

    fn apply(&mut self, (op, a, b, c): Op) {
        let session = self.session(a);
        // The larger pages get a turn now and then.
        let (_, domain) = self.sessions[&session];
        let space = self.spaces[&domain][usize::from(b.is_multiple_of(5))];
        let keys = chain(u64::from(b >> 4));
        let from = (c % DEPTH as u32) as usize;
        let upto = from + (c >> 4) as usize % (keys.len() - from) + 1;
        match op % 37 {
            0..=2 => self.lookup(session, space, &keys[..upto], c),
            3..=6 => self.fetch(session, space, &keys[..upto], c),
            7 => self.fetch(session, space, &keys[from..upto], c),
            8 => self.fetch_hold(session, a, b, c),
            9..=11 => self.release(a, b, c),
            12..=15 => self.offer(
                session,
                space,
                &keys[..upto],
                b,
                from * usize::from(c.is_multiple_of(3)),
            ),
            16..=18 => self.commit(a, b, c),
            19..=25 => self.end_job(a, b),
            26 => self.world.free_segments(),
            27 => {
                let now = Micros(self.world.now.0 + u64::from(a % 8) * 1000);
                self.world.advance(now);
            }
            28 => self.prefetch(session, space, &keys[..upto], c),
            29 | 36 => self.hint(session, space, &keys[..upto], c),
            30 => self.drop_hold(session, a),
            31 | 32 => self.recover_some(a, b),
            33 => self.change_health(a, b),
            34 if a.is_multiple_of(2) => self.give(b),
            34 => self.take(session, b),
            _ => self.break_something(session, a, b),
        }
    }

    fn give(&mut self, at: u32) {
        if self.world.leases.is_empty() {
            return;
        }
        let leases = &self.world.leases;
        let (&(owner, lease), held) = leases.iter().nth(at as usize % leases.len()).unwrap();
        let space = held.space;
        if self.sessions.contains_key(&owner.0)
            && let Ok(token) = self.world.give_lease(owner.0, lease.0)
        {
            self.gifts.push((token, space, (owner.0, lease.0)));
        }
    }

    fn take(&mut self, session: u64, at: u32) {
        if let Some((token, space, from)) = self.gifts.pop() {
            let lease = self.next_lease;
            self.next_lease += 1;
            let taken = self.world.take_lease((session, lease), token, space, from);
            if taken.is_err() && at.is_multiple_of(2) {
                self.gifts.push((token, space, from));
            }
        }
    }

    fn lookup(&mut self, session: u64, space: SpaceId, keys: &[PageKey], c: u32) {
        let hold_ms = if c.is_multiple_of(2) { c % 40 } else { 0 };
        let reply = self.world.lookup_hold(session, &[space], keys, hold_ms);
        assert_eq!(reply.pages, reply.dram + reply.ssd);
        self.stamp = reply.stamp;
        if let Some(hold) = reply.hold {
            let keys = keys[..reply.pages as usize].to_vec();
            self.holds.push(OpenHold { space, hold, keys });
        }
    }

    fn fetch(&mut self, session: u64, space: SpaceId, keys: &[PageKey], c: u32) {
        let lease = self.next_lease;
        self.next_lease += 1;
        let stamp = if c.is_multiple_of(3) { Stamp(0) } else { self.stamp };
        self.world.fetch(session, lease, space, keys, stamp, c % 16);
    }

    fn fetch_hold(&mut self, session: u64, a: u32, b: u32, c: u32) {
        if self.holds.is_empty() {
            return;
        }
        let OpenHold { space, hold, keys } = &self.holds[b as usize % self.holds.len()];
        let first = a as usize % keys.len();
        let count = c as usize % (keys.len() - first) + 1;
        let run = keys[first..first + count].to_vec();
        let (hold, space) = (*hold, *space);
        let source = FetchSource::Hold { hold, first: first as u32, count: count as u32 };
        let lease = self.next_lease;
        self.next_lease += 1;
        self.world.fetch_from(session, lease, space, (&run, source), self.stamp, c % 16);
        self.promised.push((session, lease));
    }

    fn release(&mut self, a: u32, b: u32, c: u32) {
        if self.world.leases.is_empty() {
            return;
        }
        let leases = &self.world.leases;
        let (owner, lease) = *leases.keys().nth(b as usize % leases.len()).unwrap();
        let upto = if c.is_multiple_of(3) { c % 9 } else { u32::MAX };
        let session = self.session(a);
        // Another session of the same process may release it, and nobody else.
        let process = |session: u64| self.world.processes[&SessionId(session)];
        if process(session) == process(owner.0) {
            self.world.release_from(session, owner.0, lease.0, upto);
        } else {
            let release = undercroft_wire::Release { session: owner, lease, upto };
            self.world.ask(session, &Request::Release(release));
        }
    }

    fn offer(&mut self, session: u64, space: SpaceId, keys: &[PageKey], b: u32, from: usize) {
        let from = from.min(keys.len() - 1);
        let above = from.checked_sub(1).map(|above| keys[above]);
        let stamp = if b.is_multiple_of(4) { Stamp(0) } else { self.stamp };
        let first = from as u32;
        let reply = self.world.offer(session, space, above, first, &keys[from..], stamp);
        if let Some(reply) = reply
            && !reply.slots.is_empty()
        {
            let (offer, slots) = (reply.offer, reply.slots);
            self.offers.push(OpenOffer { session, space, offer, slots });
        }
    }

    fn commit(&mut self, a: u32, b: u32, c: u32) {
        if self.offers.is_empty() {
            return;
        }
        let at = b as usize % self.offers.len();
        let OpenOffer { session, space, offer, mut slots } = self.offers.swap_remove(at);
        if !self.sessions.contains_key(&session) {
            return;
        }
        let returned = slots.split_off(slots.len() - usize::from(c.is_multiple_of(4)));
        if a.is_multiple_of(5) {
            // Slots nobody assigned, or assigned twice.
            slots.push(SlotId(c % 8));
            slots.push(SlotId(1000));
        }
        self.world.commit(session, space, offer, &slots, &returned);
    }

    fn end_job(&mut self, a: u32, b: u32) {
        let count = self.world.jobs.len();
        if count > 0 {
            let fails = self.faults.jobs_fail && b.is_multiple_of(8);
            self.world.end_job(a as usize % count, fails);
        }
    }

    fn prefetch(&mut self, session: u64, space: SpaceId, keys: &[PageKey], c: u32) {
        let prefetch = Prefetch { space, keys: keys.into(), ttl_ms: c % 16 };
        self.world.ask(session, &Request::Prefetch(prefetch));
    }

    fn hint(&mut self, session: u64, space: SpaceId, keys: &[PageKey], c: u32) {
        let kind = match c % 7 {
            0 => HintKind::Active,
            1 => HintKind::Ended,
            2 => HintKind::Demote,
            3 => HintKind::Paused,
            4 => HintKind::PinMs(c / 7 % 16),
            _ => HintKind::ExpectedInMs(c / 7 % 16),
        };
        self.world.ask(session, &Request::Hint(Hint { space, keys: keys.into(), kind }));
    }

    fn drop_hold(&mut self, session: u64, a: u32) {
        if !self.holds.is_empty() {
            let held = self.holds.swap_remove(a as usize % self.holds.len());
            self.world.ask(session, &Request::DropHold(DropHold { hold: held.hold }));
        }
    }

    fn break_something(&mut self, session: u64, a: u32, b: u32) {
        let mode = self.world.modes[&SessionId(session)];
        let (pid, domain) = self.sessions[&session];
        match b % 8 {
            0 => {
                self.world.close(session);
                self.sessions.remove(&session);
                self.connect(pid, mode, domain);
            }
            1 => {
                self.world.kill(session);
                self.sessions.remove(&session);
                self.connect(pid, mode, domain);
            }
            2 if self.faults.jobs_fail && self.faults.devices > 0 => {
                let device = self.device(b / 8);
                let extents = self.world.log(device).extents();
                if !extents.is_empty() {
                    self.world.log_mut(device).damage(extents[a as usize % extents.len()]);
                }
            }
            3 if self.faults.devices_die && a.is_multiple_of(4) => {
                self.world.lose(self.device(b / 8));
            }
            4 if self.faults.moody => self.stall_everything(),
            5 if self.world.memory.parts.len() < 4 => {
                self.world.add_part(domain, u64::from(a % 5));
            }
            6 if a.is_multiple_of(3) => self.purge(session, domain, a / 3),
            6 => self.trespass(session, domain),
            7 if a.is_multiple_of(2) => self.world.end_quarantine(),
            7 => self.retire_some(a / 2),
            _ => {}
        }
    }

    fn purge(&mut self, session: u64, domain: DomainId, how: u32) {
        let all = PurgeScope { domain: Some(domain), ..PurgeScope::default() };
        let user = world::user_of(how / 6);
        let scope = match how % 3 {
            0 => all,
            1 => PurgeScope { space: Some(world::digest(1)), ..all },
            _ => PurgeScope { writer: Some(user), ..all },
        };
        // What else happens goes on while pages are being forgotten, or waits for that.
        if how % 6 < 3 {
            self.world.begin_purge(scope);
        } else {
            self.world.purge(scope);
        }
        // Nobody holds anything any more.
        self.promised.clear();
        self.holds.clear();
        for space in self.spaces[&domain] {
            for number in 0..CHAINS {
                let found = self.world.lookup(session, space, &chain(number)).pages as usize;
                self.check_purged(&scope, space, &chain(number)[..found]);
            }
        }
    }

    /// None of what was found in DRAM is in the scope of a purge.
    fn check_purged(&self, scope: &PurgeScope, space: SpaceId, found: &[PageKey]) {
        let rows = self.world.state.frames.values().flatten();
        let (domain, digest, _) = self.world.state.spaces[&space];
        let gone = scope.writer.is_none() && scope.means(domain, digest, 0);
        assert!(!gone || found.is_empty(), "what was purged is found");
        for row in rows.filter(|row| row.space == space && found.contains(&row.key)) {
            assert!(!scope.means(domain, digest, row.writer), "what was purged is found");
        }
    }

    fn retire_some(&mut self, at: u32) {
        let parts = self.world.memory.parts.iter().filter(|(_, part)| !part.retired);
        let parts: Vec<_> = parts.map(|(part, _)| *part).collect();
        if !parts.is_empty() {
            self.world.retire(parts[at as usize % parts.len()]);
        }
    }

    /// Asks for what is another tenant's: nothing of it can be had.
    fn trespass(&mut self, session: u64, own: DomainId) {
        let spaces = self.spaces.iter().filter(|(domain, _)| **domain != own);
        let foreign: Vec<SpaceId> = spaces.flat_map(|(_, spaces)| *spaces).collect();
        for space in foreign {
            let keys = chain(0);
            let keys = undercroft_wire::KeyRun::from(keys.as_slice());
            let lookup = Lookup {
                spaces: vec![space],
                keys: keys.clone(),
                hold_ms: 10,
                rival: Rival::default(),
            };
            let reply = self.world.ask(session, &Request::Lookup(lookup));
            assert!(matches!(reply, Some(Reply::Refused(_))), "found another's: {reply:?}");
            let (lease, stamp) = (LeaseId(self.next_lease), Stamp(0));
            self.next_lease += 1;
            let source = FetchSource::Keys { keys };
            let fetch = Fetch { space, lease, source, stamp, deadline_ms: 10, recompute_ns: 0 };
            let reply = self.world.ask(session, &Request::Fetch(fetch));
            assert!(matches!(reply, Some(Reply::FetchEnd(_))), "fetched another's: {reply:?}");
        }
    }

    fn device(&self, at: u32) -> DeviceId {
        DeviceId((at as usize % self.faults.devices) as u8)
    }

    fn change_health(&mut self, a: u32, b: u32) {
        if self.faults.moody {
            let kinds = [Health::Well, Health::Stalled, Health::ReadOnly, Health::Out];
            // Well more often than not.
            let health = kinds.get(b as usize % 7).copied().unwrap_or_default();
            self.world.set_health(self.device(a), health);
        }
    }

    /// A device tells some more of what lies on it.
    fn recover_some(&mut self, a: u32, b: u32) {
        if self.faults.devices == 0 {
            return;
        }
        let device = self.device(a);
        if self.world.log(device).state == DeviceState::Recovering {
            let unread = &mut self.unread[usize::from(device.0)];
            let piece: Vec<_> = unread.drain(..unread.len().min(b as usize % 6)).collect();
            let last = unread.is_empty();
            self.world.recover(device, &piece, last);
        }
    }

    /// While no device answers, nothing that DRAM can do waits for one.
    fn stall_everything(&mut self) {
        for device in 0..self.faults.devices {
            self.world.set_health(DeviceId(device as u8), Health::Stalled);
        }
        self.world.finish_copies();
        for ((session, request), commit) in &self.world.commits {
            let answered = commit.answered.is_some();
            assert!(answered, "commit {request} of session {session} waits for a device");
        }
    }

    /// Lets everything end: nothing may be left over.
    fn come_to_rest(&mut self) {
        for device in 0..self.faults.devices {
            let piece: Vec<_> = self.unread[device].drain(..).collect();
            if self.world.logs[device].state == DeviceState::Recovering {
                self.world.recover(DeviceId(device as u8), &piece, true);
            }
        }
        self.world.end_quarantine();
        self.world.finish_jobs();
        self.world.advance(Micros(self.world.now.0 + 1_000_000_000));
        self.world.finish_jobs();
        // All that is left belongs to devices that do not answer.
        for ((session, request), commit) in &self.world.commits {
            let answered = commit.answered.is_some();
            assert!(answered, "commit {request} of session {session} is never answered");
        }
        let leases: Vec<_> = self.world.leases.keys().copied().collect();
        for (session, lease) in leases {
            let held = &self.world.leases[&(session, lease)];
            let closed = self.world.closed.contains(&session);
            let begun = !held.places.is_empty() || held.ended.is_some();
            assert!(closed || held.ended.is_some() || !begun, "every fetch ends");
            if let Some(end) = held.ended
                && self.promised.contains(&(session.0, lease.0))
                && self.faults.devices == 0
            {
                let missing = FetchOutcome::Missing.to_byte();
                assert_ne!(end.outcome, missing, "what is held does not go missing");
            }
        }
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.world.close(session);
        }
        let all: Vec<_> = self.world.modes.keys().copied().collect();
        for session in all {
            self.world.kill(session.0);
        }
        self.world.finish_all_jobs();
        // There may be more of it than one step does.
        let mut rounds = 0;
        while self.world.core.next_timer().is_some_and(|due| due <= self.world.now) {
            self.world.advance(self.world.now);
            self.world.finish_all_jobs();
            rounds += 1;
            assert!(rounds < MANY, "what there is to do comes to an end");
        }
        let left = self.world.memory.parts.values().any(|part| part.retired);
        assert!(!left, "parts that nobody uses become empty");
        assert_eq!(self.world.core.next_timer(), None, "nothing waits any more");
        assert!(self.world.jobs.is_empty());
    }

    /// Starts another daemon on the same SSDs while everything is under way.
    fn crash(mut self, frames: u64, torn: u32) -> Self {
        let crash = |log: Log| log.crash(|record| torn >> (record % 8) & 1 == 1);
        if self.faults.remembers {
            self.die_in_a_step(torn >> 8);
        }
        let logs = std::mem::take(&mut self.world.logs).into_iter().map(crash).collect();
        let world = if self.faults.remembers {
            self.world.succeed(logs, (torn >> 28) as usize + 1)
        } else {
            let settings = self.faults.settings(&SIZES[..self.faults.devices]);
            let mut world = World::with_logs(frames, settings, logs);
            world.add_part(OTHER, 3);
            world
        };
        Self::on(world, self.faults, self.slots, self.next_session)
    }

    /// Something happens, and the daemon dies before all that it means is remembered.
    fn die_in_a_step(&mut self, at: u32) {
        self.world.dies_after = Some(at as usize / 8 % 6);
        let session = self.session(at);
        let (_, domain) = self.sessions[&session];
        match at % 8 {
            0..=2 => self.end_job(at, 1),
            3 => self.release(at, at >> 8, 0),
            4 => self.release(at, at >> 8, at >> 4),
            5 => {
                self.world.leases.retain(|(owner, _), _| owner.0 != session);
                self.world.kill_quietly(SessionId(session));
            }
            _ => self.fetch(session, self.spaces[&domain][0], &chain(at.into()), 1),
        }
    }

    /// Starts another core on the same SSDs: what it finds there is what was written.
    fn restart(self, torn: u32) {
        let crash = |mut log: Log| {
            log.mend();
            log.crash(|record| torn >> (record % 8) & 1 == 1)
        };
        let logs = self.world.logs.into_iter().map(crash).collect();
        let sizes = [size(100, 5, 4); SIZES.len()];
        // What is on the devices may be more than a quota allows: here all of it is looked for.
        let mut settings = self.faults.settings(&sizes[..self.faults.devices]);
        settings.domains.iter_mut().for_each(|domain| domain.limits.ssd_bytes = u64::MAX);
        let mut world = World::with_logs(64, settings, logs);
        for at in 0..world.logs.len() {
            let (device, records) = (world.logs[at].device, world.logs[at].recover());
            let (early, late) = records.split_at(records.len() / 2);
            world.recover(device, early, false);
            world.recover(device, late, false);
        }
        world.finish_jobs();
        let stats = world.core.stats();
        assert_eq!(stats.recovery_ignored, 0, "the core writes nothing it would not read");
        assert_eq!(stats.unproved_records, 0, "every record is asked for its proof");
        world.add_part(OTHER, 64);
        world.open(1, 1, Mode::ZeroCopy);
        world.open_in(OTHER, 2, 2, Mode::ZeroCopy);
        for session in [1, 2] {
            check_restarted(&mut world, session);
        }
        for at in 0..world.logs.len() {
            world.recover(DeviceId(at as u8), &[], true);
        }
        world.finish_jobs();
    }
}

/// What was written is found, and can be fetched.
fn check_restarted(world: &mut World, session: u64) {
    for (number, page_bytes) in [(1, 4096), (2, 5000)] {
        let space = world.open_space(session, number, page_bytes, 2);
        for number in 0..CHAINS {
            let keys = chain(number);
            let found = world.lookup(session, space, &keys);
            let spec = world.spaces[&space];
            let whole = |key: &&PageKey| world.logs.iter().any(|log| log.has(&spec, key));
            let torn = |key: &&PageKey| world.logs.iter().any(|log| log.is_torn(&spec, key));
            let upper = keys.iter().take_while(whole).count() as u32;
            let lower = keys.iter().take_while(|key| whole(key) && !torn(key)).count() as u32;
            assert!((lower..=upper).contains(&found.pages), "what was written is found");
            let lease = world.next_lease();
            let run = &keys[..(found.pages as usize).min(2)];
            world.fetch(session, lease, space, run, found.stamp, 1000);
            world.finish_jobs();
            let held = world.lease(session, lease);
            assert_eq!(held.places.len(), run.len(), "what lookup names can be fetched");
            world.release(session, lease, u32::MAX);
        }
    }
}

/// The SSDs of a world, as many as it has.
const SIZES: [Size; 3] = [
    Size { pages: 10, segments: 5, records: 4 },
    Size { pages: 6, segments: 4, records: 3 },
    Size { pages: 30, segments: 9, records: 4 },
];

fn operations() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(any::<Op>(), 1..300)
}

fn run(faults: Faults, frames: u64, slots: u32, torn: u32, operations: &[Op]) {
    let mut chaos = Chaos::new(faults, frames, slots);
    let (before, after) = operations.split_at(operations.len() / 2);
    for op in before {
        chaos.apply(*op);
    }
    if faults.crashes {
        chaos = chaos.crash(frames, torn);
    }
    for op in after {
        chaos.apply(*op);
    }
    chaos.come_to_rest();
    chaos.restart(torn.rotate_right(8));
}

const FAULTS: Faults = Faults {
    policy: (Policy::Lru, Admission::Demote, WriteBudget::NONE),
    load: (LoadPolicy::Off, 0),
    devices: 0,
    jobs_fail: false,
    moody: false,
    devices_die: false,
    crashes: false,
    remembers: false,
};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dram_alone_keeps_its_promises(
        policy in policy(),
        load in load(),
        frames in 1..8_u64,
        slots in 1..4_u32,
        jobs_fail: bool,
        operations in operations(),
    ) {
        run(Faults { policy, load, jobs_fail, ..FAULTS }, frames, slots, 0, &operations);
    }

    #[test]
    fn two_tiers_keep_their_promises(
        policy in policy(),
        load in load(),
        frames in 1..8_u64,
        slots in 1..4_u32,
        devices in 1..=3_usize,
        jobs_fail: bool,
        operations in operations(),
    ) {
        run(Faults { policy, load, devices, jobs_fail, ..FAULTS }, frames, slots, 0, &operations);
    }

    #[test]
    fn a_crash_loses_only_what_is_torn(
        policy in policy(),
        load in load(),
        frames in 1..8_u64,
        slots in 1..4_u32,
        devices in 1..=3_usize,
        jobs_fail: bool,
        torn: u32,
        operations in operations(),
    ) {
        let faults = Faults { policy, load, devices, jobs_fail, crashes: true, ..FAULTS };
        run(faults, frames, slots, torn, &operations);
    }

    #[test]
    fn what_is_in_memory_outlives_the_daemon(
        policy in policy(),
        load in load(),
        frames in 1..8_u64,
        slots in 1..4_u32,
        devices in 0..=2_usize,
        (jobs_fail, moody) in any::<(bool, bool)>(),
        torn: u32,
        operations in operations(),
    ) {
        let moody = moody && devices > 0;
        let faults = Faults { policy, load, devices, jobs_fail, moody, crashes: true, remembers: true, ..FAULTS };
        run(faults, frames, slots, torn, &operations);
    }

    #[test]
    fn moody_devices_break_no_promise(
        policy in policy(),
        load in load(),
        frames in 1..8_u64,
        slots in 1..4_u32,
        devices in 1..=3_usize,
        (jobs_fail, crashes) in any::<(bool, bool)>(),
        torn: u32,
        operations in operations(),
    ) {
        let faults = Faults { policy, load, devices, jobs_fail, moody: true, crashes, ..FAULTS };
        run(faults, frames, slots, torn, &operations);
    }

    #[test]
    fn dying_devices_break_no_promise(
        policy in policy(),
        load in load(),
        frames in 1..8_u64,
        slots in 1..4_u32,
        devices in 1..=3_usize,
        (moody, crashes) in any::<(bool, bool)>(),
        torn: u32,
        operations in operations(),
    ) {
        let faults = Faults { policy, load, devices, jobs_fail: true, moody, devices_die: true, crashes, remembers: false };
        run(faults, frames, slots, torn, &operations);
    }
}
