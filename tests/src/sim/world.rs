//! One run: cores, devices and clients in virtual time.

use super::clients::Clients;
use super::content::{Book, checksum, content};
use super::device::{Device, Stage};
use super::plan::Plan;
use super::purges::Purges;
use super::report::{Count, Report};
use fastrand::Rng;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use undercroft_arena::{Memory, Span, checksum_bytes};
use undercroft_core::{Action, CopyOutcome, Core, Event, FramePlace, Micros, ReadOutcome};
use undercroft_ssd_tier::{Completion, Op};
use undercroft_wire::{
    DeviceId, JobId, PageIdentity, PagePlace, PartId, SessionId, SlotId, SpaceId,
};

/// Says what happens, to whoever looks for why a run failed.
macro_rules! note {
    ($world:expr, $($text:tt)*) => {
        if $world.trace {
            println!("{:>12} {}", $world.now, format_args!($($text)*));
        }
    };
}
pub(super) use note;

/// What nobody may take for a page.
const POISON: u8 = 0x5b;
/// Jobs from here on are the simulator's own.
pub(super) const OWN_JOBS: u64 = 1 << 60;

/// Where a frame lies: part and offset.
pub(super) type Frame = (u32, u64);

/// What lies in a frame, and how many bytes that is.
#[derive(Debug, Clone, Copy)]
struct Held {
    bytes: u32,
    /// The page, once it is whole.
    page: Option<PageIdentity>,
}

/// A copy between a slot and a frame on its way.
#[derive(Debug)]
struct Copy {
    due: u64,
    job: JobId,
}

/// The daemon in one of its lives, and everything around it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) book: Rc<Book>,
    pub(super) rng: Rng,
    pub(super) report: Report,
    /// Virtual time, microseconds.
    pub(super) now: u64,
    pub(super) devices: Vec<Device>,
    pub(super) core: Core,
    parts: Vec<Memory>,
    /// Jobs the core waits for.
    pub(super) jobs: BTreeMap<JobId, Action>,
    copies: Vec<Copy>,
    /// What whole frames hold.
    frames: HashMap<Frame, Held>,
    /// What clients have put into their slots.
    pub(super) filled: HashMap<(SessionId, SpaceId, SlotId), PageIdentity>,
    /// What was delivered into slots.
    pub(super) delivered: HashMap<(SessionId, SpaceId, SlotId), Vec<u8>>,
    /// Pages of which some record counts: written in this life, sealed, or proved.
    believed: HashSet<PageIdentity>,
    pub(super) clients: Clients,
    /// When clients do something again; `None` while they rest.
    pub(super) act_at: Option<u64>,
    /// Answers that will never come: reads on devices that were lost.
    pub(super) unanswered: HashSet<JobId>,
    pub(super) purges: Purges,
    /// Says what happens.
    pub(super) trace: bool,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Open(usize),
    Turn(usize),
    Deliver(usize),
    Tell(usize),
    Copied,
    Purged,
    Timer,
    Act,
}

impl World {
    pub(super) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::new(&mut rng);
        Self::with_plan(plan, rng, trace)
    }

    /// A world as planned; everything else is decided by `rng`.
    pub(super) fn with_plan(mut plan: Plan, mut rng: Rng, trace: bool) -> Self {
        let book = Book { spaces: plan.book.spaces.clone(), ..plan.book };
        let book = Rc::new(book);
        plan.book = Book { spaces: Vec::new(), ..*book };
        let numbered = plan.devices.iter().enumerate();
        let devices = numbered.map(|(at, device)| {
            let id = DeviceId(at as u8);
            Device::new(id, plan.class, device.clone(), Rc::clone(&book), rng.u64(..))
        });
        let devices = devices.collect();
        let core = Core::new(plan.core.clone()).expect("the plan's configuration is valid");
        let mut world = Self {
            clients: Clients::new(&plan),
            plan,
            book,
            rng,
            report: Report::default(),
            now: 0,
            devices,
            core,
            parts: Vec::new(),
            jobs: BTreeMap::new(),
            copies: Vec::new(),
            frames: HashMap::new(),
            filled: HashMap::new(),
            delivered: HashMap::new(),
            believed: HashSet::new(),
            act_at: None,
            unanswered: HashSet::new(),
            purges: Purges::default(),
            trace,
        };
        world.begin_life();
        world
    }

    /// Starts the daemon. Frames lie in other memory than before: what the devices were lent is
    /// theirs until they are done with it.
    pub(super) fn begin_life(&mut self) {
        let purge = self.purges.list.last();
        let config = undercroft_core::Config { purge, ..self.plan.core.clone() };
        let part = |(_, bytes): &(_, u64)| Memory::new(*bytes, 0).expect("there is memory");
        self.parts = self.plan.parts.iter().map(part).collect();
        self.core = Core::new(config).expect("the plan's configuration is valid");
        self.jobs.clear();
        self.copies.clear();
        self.frames.clear();
        self.filled.clear();
        self.delivered.clear();
        self.believed.clear();
        self.unanswered.clear();
        self.clients = Clients::new(&self.plan);
        for (part, (domain, bytes)) in (0..).map(PartId).zip(self.plan.parts.clone()) {
            self.step(Event::PartAdded { part, domain, bytes });
        }
        self.connect_all();
        self.act_at = Some(self.now);
    }

    /// Feeds one event, checks the core, and does what it wants.
    pub(super) fn step(&mut self, event: Event<'_>) {
        note!(self, "{event:?}");
        let mut actions = Vec::new();
        self.core.step(Micros(self.now), event, &mut actions);
        self.core.audit();
        self.report.count(Count::Steps);
        for action in actions {
            note!(self, "  {action:?}");
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match &action {
            Action::Reply { session, request, reply } => {
                return self.replied(*session, *request, reply);
            }
            Action::PartEmpty { .. } => unreachable!("no part was told to retire"),
            Action::Purged { purge, .. } => return self.swept(*purge),
            Action::FreeSegment { device, segment, segment_use } => {
                let (segment, segment_use) = (*segment, *segment_use);
                return self.submit(*device, Op::FreeSegment { segment, segment_use });
            }
            Action::CopyIn { job, frame, .. } => {
                self.claim(frame);
                self.start_copy(*job);
            }
            Action::CopyOut { job, session, space, slot, frame, .. } => {
                let offset = u64::from(slot.0) * u64::from(frame.bytes);
                self.clients.check_unused_slot(*session, *space, offset);
                let held = self.held(frame);
                assert!(held.is_some(), "only whole pages are delivered");
                self.start_copy(*job);
            }
            Action::Append { job, device, frame, identity, origin, payload_crc } => {
                let held = self.held(frame);
                assert_eq!(held, Some(*identity), "the page that is written is the one named");
                self.book.check(identity);
                let payload_crc = *payload_crc;
                assert_eq!(payload_crc, checksum(identity), "the checksum born with the page");
                let payload = self.span(frame);
                let (job, identity, origin) = (*job, *identity, *origin);
                self.submit(*device, Op::Append { job, identity, origin, payload, payload_crc });
            }
            Action::Read { job, extent, identity, frame } => {
                self.claim(frame);
                let into = self.span(frame);
                let (job, extent, identity) = (*job, *extent, *identity);
                self.submit(extent.device, Op::Read { job, identity, extent, into });
            }
            Action::Relocate { job, extent, identity, origin } => {
                let (job, extent, identity, origin) = (*job, *extent, *identity, *origin);
                self.submit(extent.device, Op::Relocate { job, identity, origin, extent });
            }
            Action::Prove { job, extent, identity } => {
                let (job, extent, identity) = (*job, *extent, *identity);
                self.submit(extent.device, Op::Prove { job, identity, extent });
            }
        }
        let job = job_of(&action);
        let before = self.jobs.insert(job, action);
        assert_eq!(before, None, "a job has one number");
    }

    pub(super) fn submit(&mut self, device: DeviceId, op: Op) {
        let at = self.now + if self.rng.bool() { 0 } else { self.rng.u64(..50) };
        let device = &mut self.devices[usize::from(device.0)];
        assert_eq!(device.stage, Stage::Open, "nothing is asked of a device that is not there");
        device.submit(op, at);
    }

    fn start_copy(&mut self, job: JobId) {
        let due = self.now + self.rng.u64(1..200);
        self.copies.push(Copy { due, job });
    }

    /// A frame is about to be filled: nobody may be using it.
    fn claim(&mut self, frame: &FramePlace) {
        let at = place(frame);
        let shares = |(part, offset): Frame, bytes: u32| {
            let end = frame.offset + u64::from(frame.bytes);
            part == frame.part.0 && offset < end && frame.offset < offset + u64::from(bytes)
        };
        self.clients.check_unleased(&self.book, shares);
        for job in self.jobs.values() {
            let used = frame_of(job).is_some_and(|used| shares(place(used), used.bytes));
            assert!(!used, "a frame in use by a job is not filled: {job:?}");
        }
        let span = self.span(frame);
        for device in &self.devices {
            let lent = device.disk.has_memory(&span, false);
            assert!(!lent, "a frame that a device has is not filled");
        }
        span.write(|bytes| bytes.fill(POISON));
        self.frames.retain(|at, held| !shares(*at, held.bytes));
        self.frames.insert(at, Held { bytes: frame.bytes, page: None });
    }

    /// The page that lies in the frame, whole.
    fn held(&self, frame: &FramePlace) -> Option<PageIdentity> {
        self.frames.get(&place(frame)).and_then(|held| held.page)
    }

    fn fill(&mut self, frame: &FramePlace, page: PageIdentity) {
        self.frames.insert(place(frame), Held { bytes: frame.bytes, page: Some(page) });
    }

    fn span(&self, frame: &FramePlace) -> Span {
        self.frame(place(frame), frame.bytes)
    }

    /// The memory of a frame.
    pub(super) fn frame(&self, (part, offset): Frame, bytes: u32) -> Span {
        let part = &self.parts[part as usize];
        part.span(offset, bytes as usize).expect("a frame lies in a part")
    }

    /// A copy is over.
    fn end_copy(&mut self, job: JobId) {
        let action = self.jobs.remove(&job).expect("a copy that was asked for");
        let failed = self.rng.u32(..1000) < self.plan.copies_fail;
        match action {
            Action::CopyIn { session, space, slot, frame, .. } => {
                let page = self.filled.get(&(session, space, slot)).copied();
                let Some(page) = page.filter(|_| !failed) else {
                    return self.step(Event::CopiedIn { job, outcome: CopyOutcome::Failed });
                };
                let bytes = content(&page);
                self.span(&frame).write(|room| room[..bytes.len()].copy_from_slice(&bytes));
                self.fill(&frame, page);
                self.stored(&page);
                let outcome = CopyOutcome::Ok(checksum_bytes(&bytes));
                self.step(Event::CopiedIn { job, outcome });
            }
            Action::CopyOut { session, space, slot, frame, page_bytes, .. } => {
                let bytes = self.span(&frame).read(|bytes| bytes[..page_bytes as usize].to_vec());
                let bytes = if failed { Vec::new() } else { bytes };
                self.delivered.insert((session, space, slot), bytes);
                self.step(Event::CopiedOut { job, ok: !failed });
            }
            _ => unreachable!("only copies are copied"),
        }
    }

    /// A device's answer reaches the core.
    pub(super) fn answered(&mut self, answer: Completion) {
        let job = match &answer {
            Completion::Appended { job, .. }
            | Completion::Read { job, .. }
            | Completion::Relocated { job, .. }
            | Completion::Proved { job, .. } => Some(*job),
            Completion::SegmentFreed { .. } | Completion::Health { .. } => None,
            Completion::DeviceLost { .. } => None,
        };
        if job.is_some_and(|job| job.0 >= OWN_JOBS) {
            return;
        }
        let event = Device::event(&answer);
        self.job_over(job, &event);
        self.step(event);
    }

    /// Notes what the end of a job means for frames and records.
    pub(super) fn job_over(&mut self, job: Option<JobId>, event: &Event<'_>) {
        let Some(job) = job else { return };
        let action = self.jobs.remove(&job).expect("a job is answered once");
        use undercroft_core::AppendOutcome::Written;
        match (&action, event) {
            (Action::Append { identity, .. }, Event::Appended { outcome: Written(_), .. })
            | (Action::Relocate { identity, .. }, Event::Relocated { outcome: Written(_), .. })
            | (Action::Prove { identity, .. }, Event::Proved { outcome: ReadOutcome::Ok(_), .. }) =>
            {
                self.believed.insert(*identity);
            }
            (
                Action::Read { identity, frame, .. },
                Event::ReadDone { outcome: ReadOutcome::Ok(_), .. },
            ) => {
                self.fill(frame, *identity);
                self.believed.insert(*identity);
            }
            _ => {}
        }
    }

    /// A device tells the core some of what lies on it.
    fn tell(&mut self, at: usize) {
        let device = &mut self.devices[at];
        let count = device.unread.len().min(self.rng.usize(..12));
        let mut records: Vec<_> = device.unread.drain(..count).collect();
        for record in &mut records {
            record.purged = self.purges.list.covers(&record.identity, &record.origin);
        }
        let last = device.unread.is_empty();
        device.read_at = (!last).then(|| self.now + self.rng.u64(..300));
        let (id, free_segments) = (device.id, device.free_segments);
        let sealed = records.iter().filter(|record| record.sealed);
        self.believed.extend(sealed.map(|record| record.identity));
        self.step(Event::Recovered { device: id, records: &records, free_segments, last });
    }

    /// Whether a lookup may count a page: it is in a frame, or in a record that counts.
    pub(super) fn may_count(&self, page: &PageIdentity) -> bool {
        self.believed.contains(page) || self.frames.values().any(|held| held.page == Some(*page))
    }

    /// What there is to do, and when.
    fn all(&self) -> Vec<(u64, Next)> {
        let mut all: Vec<(u64, Next)> = Vec::new();
        for (at, device) in self.devices.iter().enumerate() {
            if let Stage::Locked(until) = device.stage {
                all.push((until, Next::Open(at)));
            }
            all.extend(device.next_time().map(|time| (time, Next::Turn(at))));
            all.extend(device.inbox.front().map(|(time, _)| (*time, Next::Deliver(at))));
            all.extend(device.read_at.map(|time| (time, Next::Tell(at))));
        }
        let copied = self.copies.iter().map(|copy| copy.due).min();
        all.extend(copied.map(|time| (time, Next::Copied)));
        all.extend(self.purges.written_at.map(|time| (time, Next::Purged)));
        all.extend(self.core.next_timer().map(|time| (time.0, Next::Timer)));
        all.extend(self.act_at.map(|time| (time, Next::Act)));
        all
    }

    /// When there is something to do next.
    pub(super) fn next_time(&self) -> Option<u64> {
        self.all().into_iter().map(|(time, _)| time).min()
    }

    fn next(&mut self) -> Option<(u64, Next)> {
        let mut all = self.all();
        let first = all.iter().map(|(time, _)| *time).min()?;
        // What is overdue is due now: which of it comes first, nobody can tell.
        let first = first.max(self.now);
        all.retain(|(time, _)| *time <= first);
        let (_, next) = all[self.rng.usize(..all.len())];
        Some((first, next))
    }

    /// Does the next thing there is to do. False when there is nothing any more, or when a start
    /// of the daemon was cut short.
    pub(super) fn advance(&mut self) -> Moved {
        let Some((time, next)) = self.next() else {
            return Moved::Nothing;
        };
        self.now = time;
        match next {
            Next::Open(at) => return self.open(at),
            Next::Turn(at) => {
                let device = &mut self.devices[at];
                device.turn(time, &mut self.rng, &mut self.report);
            }
            Next::Deliver(at) => {
                let (_, answer) = self.devices[at].inbox.pop_front().expect("it is there");
                self.answered(answer);
            }
            Next::Tell(at) => self.tell(at),
            Next::Copied => {
                let due = self.copies.iter().position(|copy| copy.due <= time);
                let copy = self.copies.swap_remove(due.expect("a copy is due"));
                self.end_copy(copy.job);
            }
            Next::Purged => self.write_purges(),
            Next::Timer => self.step(Event::Tick),
            Next::Act => self.act(),
        }
        Moved::On
    }

    /// Copies on their way.
    pub(super) fn copies(&self) -> usize {
        self.copies.len()
    }

    /// Whether nothing is under way but time.
    pub(super) fn is_idle(&self) -> bool {
        let answered = self.jobs.keys().all(|job| self.unanswered.contains(job));
        answered && self.copies.is_empty() && self.devices.iter().all(Device::is_idle)
    }

    /// Checks what a client was given.
    pub(super) fn check_page(&self, page: &PageIdentity, at: &PagePlace) {
        let frame = self.frame((at.part.0, at.offset), page.page_bytes);
        for device in &self.devices {
            let lent = device.disk.has_memory(&frame, true);
            assert!(!lent, "a page is delivered while a device may write to it");
        }
        assert!(super::content::holds(&frame, page), "wrong bytes for {page:?} at {at:?}");
    }
}

/// What came of doing the next thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    On,
    /// There is nothing to do.
    Nothing,
    /// The daemon was cut off while it opened a store.
    Died,
}

fn place(frame: &FramePlace) -> Frame {
    (frame.part.0, frame.offset)
}

fn job_of(action: &Action) -> JobId {
    match action {
        Action::CopyIn { job, .. }
        | Action::CopyOut { job, .. }
        | Action::Append { job, .. }
        | Action::Read { job, .. }
        | Action::Relocate { job, .. }
        | Action::Prove { job, .. } => *job,
        Action::Reply { .. }
        | Action::FreeSegment { .. }
        | Action::Purged { .. }
        | Action::PartEmpty { .. } => {
            unreachable!("it has no job")
        }
    }
}

fn frame_of(action: &Action) -> Option<&FramePlace> {
    match action {
        Action::CopyIn { frame, .. }
        | Action::CopyOut { frame, .. }
        | Action::Append { frame, .. }
        | Action::Read { frame, .. } => Some(frame),
        _ => None,
    }
}
