//! The control thread's state: it feeds the core with events, performs the actions that come out,
//! and keeps the sessions. Everything here runs on one thread; nothing here waits.

use crate::config::{Config, human};
use crate::copy_pool::{Copied, CopyJob, CopyPool, Direction};
use crate::device::{Completed, Device};
use crate::mourner::Mourner;
use crate::recovery::Found;
use crate::session::{FrameError, Peer, Session, Turn, each_frame};
use crate::staging_maker::{Made, StagingMaker, Wanted};
use crate::store;
use rustix::fd::OwnedFd;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use undercroft_arena::{Part, PartFacts, Span};
use undercroft_core::{Action, CopyOutcome, Core, Event, FramePlace, Micros, ProcessId};
use undercroft_ssd_tier::Op;
use undercroft_wire::{
    DeviceId, DomainId, Epoch, Hello, Mode, OpenSpace, PartAdded, PartId, Refused, RefusedReason,
    Reply, Request, RequestId, SessionId, SlotId, SpaceDigest, SpaceId, StartStatus, Welcome,
    decode_request, frame_bytes, negotiate,
};

/// The most slots a staging area is cut into.
const MAX_SLOTS: u64 = 4096;
/// What `status` keeps of a client's name, bytes.
const MAX_NAME_BYTES: usize = 64;
/// The domain every connection belongs to until there are rules for more.
pub(crate) const DEFAULT_DOMAIN: &str = "default";
/// How long one session's requests are handled before it is somebody else's turn.
const TURN: Duration = Duration::from_millis(1);
/// Answers are sent at the end of a turn, or as soon as so many bytes wait.
const FLUSH_BYTES: usize = 256 << 10;

/// One part of the arena with the descriptor that clients get.
#[derive(Debug)]
pub(crate) struct ArenaPart {
    pub(crate) part: Arc<Part>,
    pub(crate) facts: PartFacts,
    pub(crate) read_only: Arc<OwnedFd>,
    /// Bytes that hold frames; the mapping may be longer.
    pub(crate) usable_bytes: u64,
}

/// The control thread's state.
pub(crate) struct Control {
    pub(crate) core: Core,
    pub(crate) sessions: HashMap<SessionId, Session>,
    pub(crate) arena: Vec<ArenaPart>,
    /// The SSDs by number.
    pub(crate) devices: Vec<Device>,
    pub(crate) config: Config,
    pub(crate) epoch: Epoch,
    pub(crate) start: StartStatus,
    pub(crate) started: Instant,
    pub(crate) protocol_errors: u64,
    pub(crate) refused: Vec<String>,
    pool: CopyPool,
    mourner: Mourner,
    staging_maker: StagingMaker,
    /// Areas being made, and what they will take.
    staging_wanted: HashSet<(SessionId, SpaceDigest)>,
    staging_wanted_bytes: u64,
    domain: DomainId,
    actions: Vec<Action>,
    /// Copies whose staging is gone already; answered as soon as the step is performed.
    failed_copies: VecDeque<Copied>,
    unflushed: Vec<SessionId>,
    timer: Option<Micros>,
    /// Rung when the timer comes sooner or the page log falls behind.
    pub(crate) look_again: Arc<Notify>,
}

/// What [`Control::new`] is made of.
pub(crate) struct ControlParts {
    pub(crate) core: Core,
    pub(crate) arena: Vec<ArenaPart>,
    pub(crate) devices: Vec<Device>,
    pub(crate) config: Config,
    pub(crate) epoch: Epoch,
    pub(crate) pool: CopyPool,
    pub(crate) mourner: Mourner,
    pub(crate) staging_maker: StagingMaker,
    pub(crate) refused: Vec<String>,
}

impl Control {
    pub(crate) fn new(parts: ControlParts) -> Self {
        Self {
            core: parts.core,
            sessions: HashMap::new(),
            arena: parts.arena,
            devices: parts.devices,
            config: parts.config,
            epoch: parts.epoch,
            start: StartStatus::default(),
            started: Instant::now(),
            protocol_errors: 0,
            refused: parts.refused,
            pool: parts.pool,
            mourner: parts.mourner,
            staging_maker: parts.staging_maker,
            staging_wanted: HashSet::new(),
            staging_wanted_bytes: 0,
            domain: DomainId::named(DEFAULT_DOMAIN),
            actions: Vec::new(),
            failed_copies: VecDeque::new(),
            unflushed: Vec::new(),
            timer: None,
            look_again: Arc::new(Notify::new()),
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
        for action in actions.drain(..) {
            self.perform(action);
        }
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
                self.copy(job, Direction::In, slot.zip(frame));
            }
            Action::CopyOut { job, session, space, slot, frame, page_bytes } => {
                let spans = self.copy_spans(session, space, slot, &frame, page_bytes);
                self.copy(job, Direction::Out, spans);
            }
            Action::Append { job, device, frame, identity, payload_crc } => {
                let payload = self.frame_span(&frame, frame.bytes);
                self.submit(device, Op::Append { job, identity, payload, payload_crc });
            }
            Action::Read { job, extent, identity, frame } => {
                let into = self.frame_span(&frame, frame.bytes);
                self.submit(extent.device, Op::Read { job, identity, extent, into });
            }
            Action::Relocate { job, extent, identity } => {
                self.submit(extent.device, Op::Relocate { job, identity, extent });
            }
            Action::Prove { job, extent, identity } => {
                self.submit(extent.device, Op::Prove { job, identity, extent });
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

    fn frame_span(&self, frame: &FramePlace, bytes: u32) -> Span {
        let part = &self.arena[frame.part.0 as usize].part;
        part.span(frame.offset, bytes as usize)
            .expect("the core places frames inside the parts it was told of")
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
        Some((self.frame_span(frame, page_bytes), slot))
    }

    fn copy(
        &mut self,
        job: undercroft_wire::JobId,
        direction: Direction,
        spans: Option<(Span, Span)>,
    ) {
        match spans {
            Some((from, to)) => self.pool.submit(CopyJob { job, direction, from, to }),
            None => {
                self.failed_copies.push_back(Copied { job, direction, ok: false, checksum: None })
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
        self.pool.push_waiting();
        for device in &mut self.devices {
            device.push_waiting();
        }
    }

    /// Something was found on an SSD.
    pub(crate) fn found(&mut self, found: Found) {
        match found {
            Found::Opened { device, log, recovery, began } => {
                self.device(device).opened(*log, &recovery, began);
            }
            Found::Records { device, records, free_segments, last } => {
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

    /// A connection was accepted.
    pub(crate) fn admit(&mut self, id: SessionId, session: Session) {
        self.sessions.insert(id, session);
    }

    /// Whether there is room for one more connection. Sessions that only hold leases are bounded
    /// by the core: a process that has reconnected must not shut others out.
    pub(crate) fn has_room(&self) -> bool {
        let connected = self.sessions.values().filter(|s| !s.is_lingering()).count();
        connected < self.config.max_sessions as usize && self.core.has_session_room()
    }

    /// Whether the session has said hello.
    pub(crate) fn greeted(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|s| s.mode.is_some())
    }

    pub(crate) fn count_protocol_error(&mut self) {
        self.protocol_errors += 1;
    }

    /// The socket is closed. Leases stay until the process is gone: its GPU may still be reading.
    pub(crate) fn disconnect(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let process = session.process.take();
        let greeted = session.mode.is_some();
        session.hang_up();
        if greeted {
            self.feed(Event::SessionClosed { session: id });
            self.flush_all();
        }
        let leased = self.core.session_leases(id).leases > 0;
        match process.filter(|_| leased).map(|process| self.mourner.watch(id, process)) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                // The leases stay for good rather than being given up under a reader.
                tracing::error!(session = %id, %error, "cannot watch a process: its leases stay");
            }
            None => self.bury(id),
        }
    }

    /// The session is over: its process is gone, or it held nothing.
    pub(crate) fn bury(&mut self, id: SessionId) {
        let greeted = self.greeted(id);
        self.sessions.remove(&id);
        if greeted {
            self.feed(Event::ProcessGone { session: id });
            self.flush_all();
        }
    }

    /// Handles whole frames of `inbox` for one turn.
    pub(crate) fn frames(&mut self, id: SessionId, inbox: &[u8]) -> Result<Turn, FrameError> {
        let began = Instant::now();
        let turn = each_frame(inbox, |header, body| {
            if !self.sessions.get(&id).is_some_and(Session::is_open) {
                return Err(FrameError::Dismissed);
            }
            let (request, message) = decode_request(header, body)?;
            self.request(id, request, &message)?;
            // Small requests may have large answers.
            if self.sessions.get(&id).is_some_and(|s| s.waiting() > FLUSH_BYTES) {
                self.flush(id);
            }
            let over = began.elapsed() >= TURN;
            Ok(if over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        self.flush_all();
        turn
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
            Request::OpenSpace(open) => self.open_space(id, request, open),
            Request::Status => {
                let report = Box::new(crate::report::report(self));
                self.reply(id, request, &Reply::Status(report));
            }
            Request::Ping => self.reply(id, request, &Reply::Done),
            Request::PartLetGo(_) | Request::Purge(_) | Request::TakeOver => {
                self.refuse(id, request, RefusedReason::Invalid, "not known to this build");
            }
            body => self.feed(Event::Request { session: id, request, body }),
        }
        if let Request::Release(release) = message {
            self.bury_if_done(release.session);
        }
    }

    /// A session whose connection is over is done with once its last lease was released by
    /// another of its process, which may live for long.
    fn bury_if_done(&mut self, id: SessionId) {
        let lingering = self.sessions.get(&id).is_some_and(Session::is_lingering);
        if lingering && self.core.session_leases(id).leases == 0 {
            self.mourner.forget(id);
            self.bury(id);
        }
    }

    fn refuse(&mut self, id: SessionId, request: RequestId, reason: RefusedReason, detail: &str) {
        // Request 0 is fire and forget: nobody waits for its answer.
        if request.0 != 0 {
            let refused = Refused { reason, detail: detail.to_owned() };
            self.reply(id, request, &Reply::Refused(refused));
        }
    }

    fn hello(&mut self, id: SessionId, request: RequestId, hello: &Hello) {
        let Some(version) = negotiate(hello.min, hello.max) else {
            let detail = format!(
                "the client speaks {}..={}, this daemon {}..={}",
                hello.min,
                hello.max,
                undercroft_wire::PROTOCOL_MIN,
                undercroft_wire::PROTOCOL_MAX
            );
            return self.refuse(id, request, RefusedReason::Version, &detail);
        };
        if !self.core.has_session_room() {
            let detail = "as many sessions hold leases as may be (server.max_sessions)";
            return self.refuse(id, request, RefusedReason::Busy, detail);
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        // A root client of an unprivileged daemon could re-open the arena for writing.
        let own = rustix::process::geteuid().as_raw();
        let could_write = session.peer.uid == 0 && own != 0;
        // Without word of its end, nobody would know when the frames it reads are free.
        let unwatched = session.process.is_none();
        let copies = self.config.copy_mode || hello.copy_mode || could_write || unwatched;
        let mode = if copies { Mode::Copy } else { Mode::ZeroCopy };
        session.mode = Some(mode);
        session.name = short_name(&hello.name);
        let Peer { pid, start_time, .. } = session.peer;
        // Processes of other pid namespaces have no number here, and none is the same as another.
        let process = ProcessId { pid, start: if pid == 0 { id.0 } else { start_time } };
        tracing::info!(session = %id, pid = process.pid, name = %session.name, ?mode, "session");
        self.feed(Event::SessionOpened { session: id, process, mode });
        let shared: &[ArenaPart] = if copies { &[] } else { &self.arena };
        let welcome = Welcome {
            version,
            session: id,
            epoch: self.epoch,
            mode,
            parts: shared.len() as u32,
            domain: DEFAULT_DOMAIN.to_owned(),
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.reply(request, &Reply::Welcome(welcome));
        for (index, part) in shared.iter().enumerate() {
            let (part_id, bytes) = (PartId(index as u32), part.part.len() as u64);
            let added = PartAdded { part: part_id, bytes, board_offset: 0 };
            session.reply_with(request, &Reply::PartAdded(added), Arc::clone(&part.read_only));
        }
        self.unflushed.push(id);
    }

    fn open_space(&mut self, id: SessionId, request: RequestId, open: &OpenSpace) {
        if let Err(error) = open.space.validate() {
            return self.refuse(id, request, RefusedReason::Invalid, &error.to_string());
        }
        let (digest, page_bytes) = (open.space.digest(), open.space.geometry.page_bytes());
        let space = match self.core.intern_space(self.domain, digest, page_bytes) {
            Ok(space) => space,
            Err(refused) => return self.refuse(id, request, refused.reason, &refused.detail),
        };
        let Some(session) = self.sessions.get(&id) else { return };
        if let Some(staging) = session.staging.get(&space) {
            let slots = staging.slots();
            return self.space_opened(&Wanted { session: id, request, digest, page_bytes, slots });
        }
        let slot_bytes = u64::from(frame_bytes(page_bytes));
        let slots = (self.config.staging_bytes / slot_bytes).clamp(1, MAX_SLOTS) as u32;
        let wanted = Wanted { session: id, request, digest, page_bytes, slots };
        if let Err(detail) = self.want_staging(wanted) {
            self.refuse(id, request, RefusedReason::Busy, &detail);
        }
    }

    /// Has a staging area made; [`Control::staging_made`] goes on with it.
    fn want_staging(&mut self, wanted: Wanted) -> Result<(), String> {
        if self.staging_wanted.contains(&(wanted.session, wanted.digest)) {
            return Err("the space is being opened already".to_owned());
        }
        let made: u64 = self.sessions.values().map(Session::staging_bytes).sum();
        let in_use = made + self.staging_wanted_bytes;
        let limit = self.config.staging_total_bytes;
        if in_use.saturating_add(wanted.bytes()) > limit {
            let open = human(in_use);
            return Err(format!(
                "staging areas take {open} of {limit} bytes (arena.staging_total)"
            ));
        }
        if !self.staging_maker.submit(wanted) {
            return Err("too many spaces are being opened".to_owned());
        }
        self.staging_wanted.insert((wanted.session, wanted.digest));
        self.staging_wanted_bytes += wanted.bytes();
        Ok(())
    }

    /// A staging area was made, or could not be.
    pub(crate) fn staging_made(&mut self, made: Made) {
        let Made { wanted, staging } = made;
        let Wanted { session: id, request, digest, page_bytes, .. } = wanted;
        self.staging_wanted.remove(&(id, digest));
        self.staging_wanted_bytes -= wanted.bytes();
        if !self.sessions.get(&id).is_some_and(Session::is_open) {
            return;
        }
        let staging = match staging {
            Ok(staging) => Arc::new(staging),
            Err(detail) => return self.refuse(id, request, RefusedReason::Busy, &detail),
        };
        // Named again: a space that nobody has open may have lost its number meanwhile.
        match self.core.intern_space(self.domain, digest, page_bytes) {
            Ok(space) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.staging.insert(space, staging);
                }
                self.space_opened(&wanted);
            }
            Err(refused) => self.refuse(id, request, refused.reason, &refused.detail),
        }
    }

    fn space_opened(&mut self, opened: &Wanted) {
        self.feed(Event::SpaceOpened {
            session: opened.session,
            request: opened.request,
            domain: self.domain,
            digest: opened.digest,
            page_bytes: opened.page_bytes,
            slots: opened.slots,
        });
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
        store::close(self.devices.drain(..).filter_map(Device::into_log));
    }
}

fn copied_event(copied: Copied) -> Event<'static> {
    let Copied { job, direction, ok, checksum } = copied;
    match direction {
        Direction::In => {
            let outcome = checksum.map_or(CopyOutcome::Failed, CopyOutcome::Ok);
            Event::CopiedIn { job, outcome }
        }
        Direction::Out => Event::CopiedOut { job, ok },
    }
}

fn short_name(name: &str) -> String {
    let printable = name.chars().filter(|c| !c.is_control());
    let mut short = String::new();
    for c in printable {
        if short.len() + c.len_utf8() > MAX_NAME_BYTES {
            break;
        }
        short.push(c);
    }
    short
}
