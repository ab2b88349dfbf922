//! The control thread's state: it feeds the core with events, performs the actions that come out,
//! and keeps the sessions. Everything here runs on one thread; nothing here waits.

mod explaining;
mod fitting;
mod greeting;
mod inheriting;
mod purging;
mod recording;
mod silence;
mod spaces;

pub(crate) use purging::Purging;

use crate::arena::Arena;
use crate::config::Config;
use crate::copy_pool::{Copied, CopyJob, CopyPool, Direction};
use crate::device::{Completed, Device};
use crate::domains::Domains;
use crate::estate::Heirloom;
use crate::kernel;
use crate::listener::BoundSocket;
use crate::mourner::Mourner;
use crate::part_maker::PartMaker;
use crate::quarantine::Quarantine;
use crate::recovery::Found;
use crate::restoring::{publish_firsts, remember};
use crate::session::{FrameError, Session, Turn, TurnEnd, each_frame};
use crate::staging_maker::StagingMaker;
use crate::standing;
use crate::store;
use crate::succession::Succession;
use crate::takeover::Bequest;
use crate::turns::Whose;
use recording::Recordings;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use undercroft_arena::{Span, State};
use undercroft_core::{
    Action, CopyOutcome, Core, DeviceReport, DeviceState, Event, FramePlace, Health, Micros,
};
use undercroft_ssd_tier::Op;
use undercroft_wire::{
    DeviceId, Fallback, JobId, PurgeId, Purged, Refused, RefusedReason, ReloadStatus, Reply,
    Request, RequestId, SessionId, SlotId, SpaceDigest, SpaceId, Stamp, StartKind, StartStatus,
    decode_request,
};

pub(crate) use fitting::{Fitting, Readiness};

/// How long one session's requests are handled before it is somebody else's turn.
const TURN: Duration = Duration::from_millis(1);
/// Stamps taken from the state file at once.
const STAMPS: u64 = 1 << 20;
/// Answers are sent at the end of a turn, or as soon as so many bytes wait.
const FLUSH_BYTES: usize = 256 << 10;
/// Actions that there is kept room for, however many a step had.
const KEPT_ACTIONS: usize = 4096;

/// The control thread's state.
pub(crate) struct Control {
    pub(crate) core: Core,
    pub(crate) sessions: HashMap<SessionId, Session>,
    pub(crate) arena: Arena,
    /// The SSDs by number.
    pub(crate) devices: Vec<Device>,
    pub(crate) config: Config,
    /// What the next daemon will know of the arena.
    state: State,
    pub(crate) start: StartStatus,
    /// How the configuration was read again.
    pub(crate) reload: ReloadStatus,
    pub(crate) fitting: Fitting,
    pub(crate) started: Instant,
    pub(crate) protocol_errors: u64,
    pool: CopyPool,
    mourner: Mourner,
    staging_maker: StagingMaker,
    /// Areas being made, and what they will take.
    staging_wanted: HashMap<(SessionId, SpaceDigest), u64>,
    pub(crate) domains: Domains,
    actions: Vec<Action>,
    /// Copies whose staging is gone already; answered as soon as the step is performed.
    failed_copies: VecDeque<Copied>,
    unflushed: Vec<SessionId>,
    timer: Option<Micros>,
    /// Rung when the timer comes sooner or the page log falls behind.
    pub(crate) look_again: Arc<Notify>,
    /// Frames that an earlier daemon's reads may yet land in.
    pub(crate) quarantine: Quarantine,
    /// Whether the core knows that nothing lands in them any more.
    has_settled: bool,
    /// When sessions that hold frames are next looked at for their silence; `None` while none does.
    pub(crate) listen_at: Option<Instant>,
    /// How often one was found silent for too long.
    pub(crate) lease_alarms: u64,
    /// What the kernel does not have.
    pub(crate) fallbacks: Vec<Fallback>,
    /// Whether processes of other users are hidden from us.
    pub(crate) is_blind: bool,
    /// Whether a socket unit of the service manager listens beside it.
    has_socket_unit: bool,
    pub(crate) purging: Purging,
    recording: Recordings,
    /// The newest purge that the core was told is over.
    purged: PurgeId,
    /// The pages of a purge are gone since that was looked at.
    purge_swept: bool,
    /// The session of the daemon that takes over.
    successor: Option<SessionId>,
    /// Rung when another daemon takes over.
    pub(crate) leaving: Arc<Notify>,
}

/// What [`Control::new`] is made of.
pub(crate) struct ControlParts {
    pub(crate) core: Core,
    pub(crate) succession: Succession,
    pub(crate) devices: Vec<Device>,
    pub(crate) config: Config,
    pub(crate) pool: CopyPool,
    pub(crate) mourner: Mourner,
    pub(crate) staging_maker: StagingMaker,
    pub(crate) part_maker: PartMaker,
    pub(crate) has_socket_unit: bool,
    pub(crate) purging: Purging,
}

impl Control {
    pub(crate) fn new(parts: ControlParts) -> Self {
        let purged = parts.succession.state.newest_purge();
        // One that was kept serves as it is, and grows meanwhile. Of a daemon that was stopped as it began
        // there is nothing to serve.
        let any = parts.succession.arena.iter().next().is_some();
        let is_kept = any && parts.succession.start.kind != StartKind::Cold;
        Self {
            core: parts.core,
            sessions: HashMap::new(),
            arena: parts.succession.arena,
            devices: parts.devices,
            domains: Domains::new(parts.config.domains.clone()),
            config: parts.config,
            state: parts.succession.state,
            fitting: Fitting::new(parts.part_maker, is_kept),
            start: parts.succession.start,
            reload: ReloadStatus::default(),
            started: Instant::now(),
            protocol_errors: 0,
            pool: parts.pool,
            mourner: parts.mourner,
            staging_maker: parts.staging_maker,
            staging_wanted: HashMap::new(),
            actions: Vec::new(),
            failed_copies: VecDeque::new(),
            unflushed: Vec::new(),
            timer: None,
            look_again: Arc::new(Notify::new()),
            quarantine: Quarantine::default(),
            has_settled: false,
            listen_at: None,
            lease_alarms: 0,
            fallbacks: kernel::fallbacks(),
            is_blind: standing::is_blind(),
            has_socket_unit: parts.has_socket_unit,
            purged,
            purge_swept: false,
            purging: parts.purging,
            recording: Recordings::default(),
            successor: None,
            leaving: Arc::new(Notify::new()),
        }
    }

    /// A number that no session of this arena ever had.
    pub(crate) fn next_session(&mut self) -> SessionId {
        let id = self.state.next_session();
        self.state.set_next_session(SessionId(id.0 + 1));
        id
    }

    /// Takes in what is to be remembered of a step, before anybody is told of it.
    fn remember(&mut self) {
        let sessions = &mut self.sessions;
        remember(&mut self.core, &self.arena, &mut self.state, |untold| {
            if let Some(session) = sessions.get_mut(&untold) {
                session.close("its lease would be forgotten over a restart");
            }
        });
        if self.core.newest_stamp() >= self.state.next_stamp() {
            let next = Stamp(self.core.newest_stamp().0 + STAMPS);
            self.state.set_next_stamp(next);
        }
    }

    fn now(&self) -> Micros {
        Micros(self.started.elapsed().as_micros() as u64)
    }

    /// Feeds one event and performs what comes out.
    pub(crate) fn feed(&mut self, event: Event<'_>) {
        self.step(event);
        while let Some(failed) = self.failed_copies.pop_front() {
            self.step(copied_event(failed));
        }
        if std::mem::take(&mut self.purge_swept) {
            self.settle_purges();
        }
        let next = self.core.next_timer();
        if next.is_some_and(|next| self.timer.is_none_or(|armed| next < armed)) {
            self.look_again.notify_one();
        }
        self.timer = next;
    }

    fn step(&mut self, event: Event<'_>) {
        let now = self.now();
        let mut actions = std::mem::take(&mut self.actions);
        self.core.step(now, event, &mut actions);
        self.remember();
        publish_firsts(&mut self.core, &self.arena);
        for action in actions.drain(..) {
            self.perform(action);
        }
        actions.shrink_to(KEPT_ACTIONS);
        self.actions = actions;
    }

    /// When the core wants its next tick.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timer.map(|at| self.started + Duration::from_micros(at.0))
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Reply { session, request, reply } => self.reply(session, request, &reply),
            Action::CopyIn { job, session, space, slot, frame, page_bytes } => {
                let spans = self.copy_spans(session, space, slot, &frame, page_bytes);
                let (frame, slot) = spans.unzip();
                self.copy((job, session), Direction::In, slot.zip(frame));
            }
            Action::CopyOut { job, session, space, slot, frame, page_bytes } => {
                let spans = self.copy_spans(session, space, slot, &frame, page_bytes);
                self.copy((job, session), Direction::Out, spans);
            }
            Action::Append { job, device, frame, identity, origin, payload_crc } => {
                let payload = self.arena.frame(&frame, frame.bytes);
                self.submit(device, Op::Append { job, identity, origin, payload, payload_crc });
            }
            Action::Read { job, extent, identity, frame } => {
                let into = self.arena.frame(&frame, frame.bytes);
                self.submit(extent.device, Op::Read { job, identity, extent, into });
            }
            Action::Relocate { job, extent, identity, origin } => {
                self.submit(extent.device, Op::Relocate { job, identity, origin, extent });
            }
            Action::Prove { job, extent, identity } => {
                self.submit(extent.device, Op::Prove { job, identity, extent });
            }
            Action::PartEmpty { part } => self.part_empty(part),
            Action::Purged { purge, pages, dram_bytes, ssd_bytes } => {
                let missed = Vec::new();
                self.swept(purge, Purged { pages, dram_bytes, ssd_bytes, missed });
            }
            Action::FreeSegment { device, segment, segment_use } => {
                self.submit(device, Op::FreeSegment { segment, segment_use });
            }
        }
    }

    fn reply(&mut self, session: SessionId, request: RequestId, reply: &Reply) {
        let Some(to) = self.sessions.get_mut(&session) else {
            return;
        };
        match reply {
            Reply::SpaceOpened(opened) => match to.staging_fd(opened.space) {
                Some(fd) => to.reply_with(request, reply, fd),
                None => to.close("its staging area is gone"),
            },
            _ => to.reply(request, reply),
        }
        self.unflushed.push(session);
    }

    /// The frame and the slot of a copy; `None` once the session's staging is gone.
    fn copy_spans(
        &self,
        session: SessionId,
        space: SpaceId,
        slot: SlotId,
        frame: &FramePlace,
        page_bytes: u32,
    ) -> Option<(Span, Span)> {
        let staging = self.sessions.get(&session)?.staging.get(&space)?;
        let slot = staging.slot(slot).ok()?.sub(0, page_bytes as usize).ok()?;
        Some((self.arena.frame(frame, page_bytes), slot))
    }

    fn copy(
        &mut self,
        (job, session): (JobId, SessionId),
        direction: Direction,
        spans: Option<(Span, Span)>,
    ) {
        match self.domain_of(session).zip(spans) {
            Some((domain, (from, to))) => {
                let weight = self.domains.weight(domain);
                let whose = Whose { domain, weight, session };
                self.pool.submit(whose, CopyJob { job, direction, from, to });
            }
            None => {
                let failed = Copied { job, direction, bytes: 0, ok: false, checksum: None };
                self.failed_copies.push_back(failed);
            }
        }
    }

    fn device(&mut self, device: DeviceId) -> &mut Device {
        // The core was told of just these, and threads of others do not exist.
        &mut self.devices[usize::from(device.0)]
    }

    fn submit(&mut self, device: DeviceId, op: Op) {
        let device = self.device(device);
        device.submit(op);
        if device.is_behind() {
            self.look_again.notify_one();
        }
    }

    /// Whether operations wait for a page log's queue. Its making room rings no bell: an append
    /// that waits for a segment leaves the queue without an answer.
    pub(crate) fn is_device_behind(&self) -> bool {
        self.devices.iter().any(Device::is_behind)
    }

    /// Hands waiting work over as far as the queues take it.
    pub(crate) fn push_waiting(&mut self) {
        for device in &mut self.devices {
            device.push_waiting();
        }
    }

    /// Something was found on an SSD.
    pub(crate) fn found(&mut self, found: Found) {
        match found {
            Found::Opened { device, log, recovery, began } => {
                self.device(device).opened(*log, &recovery, began);
                // Parts may have come and gone since its search began.
                self.register_parts();
                self.locked(device);
            }
            Found::Purges(learned) => self.learned(learned),
            Found::Records { device, mut records, free_segments, last } => {
                self.purging.book().judge(&mut records);
                let records = records.as_slice();
                self.feed(Event::Recovered { device, records, free_segments, last });
                if last {
                    let report = self.core.devices().find(|report| report.device == device);
                    let unproved = report.map_or(0, |report| report.unproved_records);
                    self.device(device).recovered(unproved);
                }
            }
            Found::Failed { device, reason } => {
                for event in self.device(device).failed(&reason) {
                    self.feed(event);
                }
                self.quarantine.failed(device, Instant::now());
                self.settle();
            }
        }
    }

    /// A page log is done with something.
    pub(crate) fn completed(&mut self, Completed { device, completion }: Completed) {
        for event in self.device(device).completed(completion) {
            self.feed(event);
        }
    }

    /// A copy worker is done.
    pub(crate) fn copied(&mut self, copied: Copied) {
        self.pool.done(&copied);
        self.feed(copied_event(copied));
    }

    /// Sends what is queued.
    pub(crate) fn flush_all(&mut self) {
        while let Some(id) = self.unflushed.pop() {
            self.flush(id);
        }
    }

    /// Sends what is queued for one session.
    pub(crate) fn flush(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.flush();
        }
    }

    /// Handles whole frames of `inbox` for one turn.
    pub(crate) fn frames(&mut self, id: SessionId, inbox: &[u8]) -> Result<Turn, FrameError> {
        if self.core.is_session_busy(id) {
            return Ok(Turn { taken: 0, end: TurnEnd::Over });
        }
        let began = Instant::now();
        if let Some(session) = self.sessions.get_mut(&id) {
            session.heard = began;
        }
        let turn = each_frame(inbox, |header, body| {
            if !self.sessions.get(&id).is_some_and(Session::is_open) {
                return Err(FrameError::Dismissed);
            }
            let (request, message) = decode_request(header, body)?;
            if self.is_held(id, &message) {
                return Ok(ControlFlow::Break(TurnEnd::Held));
            }
            self.request(id, request, &message)?;
            // Small requests may have large answers.
            if self.sessions.get(&id).is_some_and(|s| s.waiting() > FLUSH_BYTES) {
                self.flush(id);
            }
            // What a request has left to do goes on between requests of other sessions, not of its own.
            let over = began.elapsed() >= TURN || self.core.is_session_busy(id);
            Ok(if over { ControlFlow::Break(TurnEnd::Over) } else { ControlFlow::Continue(()) })
        });
        // Of its own domain only, as what others do is not to be seen: a request that was taken up is a
        // sign of life, however long its answer takes.
        if let Some(domain) = self.sessions.get(&id).and_then(|session| session.domain.as_ref()) {
            self.arena.beat(domain.id);
        }
        self.flush_all();
        turn
    }

    /// Whether the request has to wait until there is something of the arena.
    fn is_held(&self, id: SessionId, message: &Request<'_>) -> bool {
        let waits = !matches!(
            message,
            Request::Hello(_)
                | Request::Status
                | Request::Ping
                | Request::Explain(_)
                | Request::TakeOver
                | Request::Gpu(_)
                | Request::Missed(_)
                | Request::PartLetGo(_)
        );
        waits && !self.fitting.is_open() && self.greeted(id)
    }

    fn request(
        &mut self,
        id: SessionId,
        request: RequestId,
        message: &Request<'_>,
    ) -> Result<(), FrameError> {
        match (self.greeted(id), message) {
            (false, Request::Hello(hello)) => {
                self.hello(id, request, hello);
                Ok(())
            }
            (false, _) => Err(FrameError::OutOfOrder("a request before the hello")),
            (true, Request::Hello(_)) => Err(FrameError::OutOfOrder("a second hello")),
            (true, message) => {
                self.greeted_request(id, request, message);
                Ok(())
            }
        }
    }

    fn greeted_request(&mut self, id: SessionId, request: RequestId, message: &Request<'_>) {
        match message {
            Request::Status => {
                let report = Box::new(crate::report::report_for(self, id));
                self.reply(id, request, &Reply::Status(report));
            }
            Request::Ping => self.reply(id, request, &Reply::Done),
            Request::TakeOver => self.hand_over(id, request),
            Request::Purge(purge) => self.purge(id, request, purge),
            Request::Record => self.record(id, request),
            Request::Explain(explain) => self.explain(id, request, explain),
            _ if self.sessions.get(&id).is_none_or(|session| session.domain.is_none()) => {
                let detail = "no domain is for this user: there are no pages to ask for";
                self.refuse(id, request, RefusedReason::Denied, detail);
            }
            Request::OpenSpace(open) => self.open_space(id, request, open),
            Request::Gpu(gpu) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.gpu = Some(gpu.clone());
                }
                if request.0 != 0 {
                    self.reply(id, request, &Reply::Done);
                }
            }
            Request::PartLetGo(gone) => {
                self.let_go(id, gone.part);
                if request.0 != 0 {
                    self.reply(id, request, &Reply::Done);
                }
            }
            body => {
                self.note_traffic(id, body);
                self.feed(Event::Request { session: id, request, body });
            }
        }
        match message {
            Request::Release(release) => self.bury_if_done(release.session),
            Request::Fetch(_) => self.listen_for_silence(),
            Request::Take(_) => {
                // The last lease of somebody who is gone may have changed hands.
                self.bury_all_done();
                self.listen_for_silence();
            }
            _ => {}
        }
    }

    fn refuse(&mut self, id: SessionId, request: RequestId, reason: RefusedReason, detail: &str) {
        // Request 0 is fire and forget: nobody waits for its answer.
        if request.0 != 0 {
            let refused = Refused { reason, detail: detail.to_owned() };
            self.reply(id, request, &Reply::Refused(refused));
        }
    }

    /// Everything that outlives this daemon, for one that goes on with it while this one still
    /// lives. Nothing of it may be changed from here on.
    ///
    /// # Errors
    /// There is no room for one more descriptor.
    pub(crate) fn bequeath(&mut self, socket: &BoundSocket) -> io::Result<Bequest> {
        self.state.let_go();
        let listener = (Heirloom::Socket, socket.listener.as_fd());
        let all = self.arena.estate().chain([(Heirloom::State, self.state.fd()), listener]);
        all.map(|(name, fd)| Ok((name, Arc::new(fd.try_clone_to_owned()?)))).collect()
    }

    /// Lets the clients go, ends the copy workers and closes the stores, `late` ones that were
    /// not taken over included. Everything written is then found again.
    pub(crate) fn shut(&mut self, late: Vec<Found>) {
        // First, so that nobody waits for an answer while the stores are being closed.
        self.sessions.clear();
        self.pool.stop();
        for found in late {
            if let Found::Opened { .. } = found {
                self.found(found);
            }
        }
        let devices = self.devices.len();
        let logs: Vec<_> = self.devices.drain(..).filter_map(Device::into_log).collect();
        // A device that stalls keeps transfers beyond its log's end, and one that broke has left
        // behind what it had under way.
        let is_well = |device: DeviceReport| {
            device.health == Health::Well && device.state != DeviceState::Lost
        };
        let all_well = self.core.devices().all(is_well);
        let all_open = logs.len() == devices && all_well;
        let all_closed = store::close(logs);
        self.arena.stop();
        // Else reads may yet land in frames, ours or those of a daemon before: the next one has to
        // wait for the locks.
        if all_open && all_closed && self.quarantine.bytes() == 0 {
            self.state.finish();
        }
    }
}

fn copied_event(copied: Copied) -> Event<'static> {
    let Copied { job, direction, bytes: _, ok, checksum } = copied;
    match direction {
        Direction::In => {
            let outcome = checksum.map_or(CopyOutcome::Failed, CopyOutcome::Ok);
            Event::CopiedIn { job, outcome }
        }
        Direction::Out => Event::CopiedOut { job, ok },
    }
}
