//! The beginning and the end of sessions.

use super::Control;
use crate::config::DomainConfig;
use crate::peer::Peer;
use crate::session::Session;
use crate::standing;
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::unix::OwnedWriteHalf;
use undercroft_arena::SessionRow;
use undercroft_core::{Event, ProcessId};
use undercroft_wire::{
    BoardAdded, CopyReason, Hello, Mode, PROTOCOL_MAX, PROTOCOL_MIN, PartAdded, RefusedReason,
    Reply, RequestId, SessionId, Welcome, negotiate,
};

/// So many connections of a user may be about to say hello, however few sessions there may be.
const FEW_SILENT: usize = 8;
/// What `status` keeps of a client's name, bytes.
const MAX_NAME_BYTES: usize = 64;

impl Control {
    /// A connection was accepted.
    pub(crate) fn admit(&mut self, id: SessionId, session: Session) {
        self.sessions.insert(id, session);
    }

    /// Whether there is room for one more connection, of this peer; else why not. Sessions that
    /// only hold leases are bounded by the core: a process that has reconnected must not shut others
    /// out. Nor must another domain: all of them together have no more than there are.
    pub(crate) fn has_room(
        &self,
        peer: &Peer,
        domain: Option<&DomainConfig>,
    ) -> Result<(), String> {
        let most = self.config.max_sessions as usize;
        let connected = || self.sessions.values().filter(|session| !session.is_lingering());
        let Some(domain) = domain else {
            // Operators, and whoever is about to be told that no domain is for him: not at the cost of
            // the others.
            let alike = |session: &&Session| {
                session.domain.is_none() && session.peer.is_operator() == peer.is_operator()
            };
            return match connected().filter(alike).count() {
                0..FEW_SILENT => Ok(()),
                _ => Err(format!("{FEW_SILENT} connections that no domain is for are open")),
            };
        };
        let in_domains = connected().filter(|session| session.domain.is_some()).count();
        if in_domains >= most || !self.core.has_session_room() {
            return Err(format!("server.max_sessions is reached ({most})"));
        }
        let own = connected().filter(|session| session.is_of(domain)).count();
        let share = domain.shares.max_sessions as usize;
        if own >= share {
            let name = &domain.name;
            return Err(format!("max_sessions of domain {name} is reached ({share})"));
        }
        let silent = |s: &&Session| s.mode.is_none() && s.peer.uid == peer.uid;
        if connected().filter(silent).count() >= most.div_ceil(2).max(FEW_SILENT) {
            let Peer { uid, .. } = peer;
            let half = "half of server.max_sessions have not said hello";
            return Err(format!("connections of user {uid}: {half}"));
        }
        Ok(())
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
        let process = session.peer.process.take();
        let greeted = session.mode.is_some();
        for staging in session.hang_up() {
            self.staging_maker.let_go(staging);
        }
        self.let_all_go(id);
        self.recording.session_over(id);
        if greeted {
            self.feed(Event::SessionClosed { session: id });
            self.flush_all();
        }
        let leased = self.core.session_leases(id).leases > 0;
        match process.filter(|_| leased) {
            Some(process) => self.watch(id, process),
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

    pub(super) fn bury_all_done(&mut self) {
        let lingering = self.sessions.iter().filter(|(_, session)| session.is_lingering());
        for id in lingering.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.bury_if_done(id);
        }
    }

    /// A session whose connection is over is done with once its last lease was released by
    /// another of its process, which may live for long.
    pub(super) fn bury_if_done(&mut self, id: SessionId) {
        let lingering = self.sessions.get(&id).is_some_and(Session::is_lingering);
        if lingering && self.core.session_leases(id).leases == 0 {
            self.mourner.forget(id);
            self.bury(id);
        }
    }

    pub(super) fn hello(&mut self, id: SessionId, request: RequestId, hello: &Hello) {
        let welcomed = self.welcome(id, hello);
        let welcome = match welcomed {
            Ok(welcome) => welcome,
            Err((reason, detail)) => return self.refuse(id, request, reason, &detail),
        };
        let mode = welcome.mode;
        self.reply(id, request, &Reply::Welcome(welcome));
        self.share_arena(id, request, mode);
    }

    /// Makes a session of a connection, or says why not.
    fn welcome(
        &mut self,
        id: SessionId,
        hello: &Hello,
    ) -> Result<Welcome, (RefusedReason, String)> {
        let Some(version) = negotiate(hello.min, hello.max) else {
            let (theirs, ours) = ((hello.min, hello.max), (PROTOCOL_MIN, PROTOCOL_MAX));
            let detail = format!(
                "the client speaks {}..={}, this daemon {}..={}",
                theirs.0, theirs.1, ours.0, ours.1
            );
            return Err((RefusedReason::Version, detail));
        };
        let session = self.sessions.get(&id).expect("it has just said hello");
        let Some(domain) = session.domain.clone() else {
            let Peer { uid, gid, .. } = session.peer;
            if session.is_operator() {
                return Ok(self.welcome_operator(id, hello, version));
            }
            let detail = format!("no domain is for user {uid} and group {gid} (config [[domain]])");
            return Err((RefusedReason::Denied, detail));
        };
        if !self.core.has_session_room_in(domain.id) {
            let detail = "as many sessions hold leases as may be (server.max_sessions)";
            return Err((RefusedReason::Busy, detail.to_owned()));
        }
        let of_domain = |s: &&Session| s.is_open() && s.mode.is_some() && s.is_of(&domain);
        if self.sessions.values().filter(of_domain).count() >= domain.shares.max_sessions as usize {
            let name = &domain.name;
            let detail = format!("domain {name} has as many sessions as it may (max_sessions)");
            return Err((RefusedReason::Busy, detail));
        }
        let mode = self.begin(id, hello, &domain);
        let parts = match mode {
            Mode::ZeroCopy => self.arena.readable(domain.id).count() as u32,
            Mode::Copy => 0,
        };
        let domain = domain.name.clone();
        Ok(Welcome { version, session: id, epoch: self.arena.epoch, mode, parts, domain })
    }

    /// An operator whom no domain is for may ask how the daemon is, and nothing about pages: the
    /// core never hears of the session.
    fn welcome_operator(&mut self, id: SessionId, hello: &Hello, version: u16) -> Welcome {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.mode = Some(Mode::Copy);
            session.name = short_name(&hello.name);
        }
        let (epoch, mode, domain) = (self.arena.epoch, Mode::Copy, String::new());
        Welcome { version, session: id, epoch, mode, parts: 0, domain }
    }

    fn begin(&mut self, id: SessionId, hello: &Hello, of: &DomainConfig) -> Mode {
        let copy_reason = self.copy_reason(id, hello, of);
        let mode = if copy_reason.is_some() { Mode::Copy } else { Mode::ZeroCopy };
        let session = self.sessions.get_mut(&id).expect("it has just said hello");
        session.mode = Some(mode);
        session.copy_reason = copy_reason;
        session.name = short_name(&hello.name);
        let Peer { pid, start, uid, .. } = session.peer;
        // Processes of other pid namespaces have no number here, and none is the same as another.
        let process = ProcessId { pid, start: if pid == 0 && start == 0 { id.0 } else { start } };
        let (name, domain) = (&session.name, session.domain_name());
        let why = copy_reason.map(|why| why.to_string()).unwrap_or_default();
        tracing::info!(session = %id, pid, %name, %domain, ?mode, why, "session");
        if mode == Mode::ZeroCopy {
            let ProcessId { pid, start: started } = process;
            let row = SessionRow { session: id, pid, started, domain: of.id };
            if let Err(unkept) = self.state.session(&row) {
                tracing::warn!(session = %id, %unkept, "its leases would be forgotten over a restart");
            }
        }
        self.feed(Event::SessionOpened { session: id, domain: of.id, process, user: uid, mode });
        mode
    }

    /// Why a session is not to map the arena; `None` if it is.
    fn copy_reason(&self, id: SessionId, hello: &Hello, of: &DomainConfig) -> Option<CopyReason> {
        let peer = &self.sessions.get(&id)?.peer;
        if hello.copy_mode {
            return Some(CopyReason::Asked);
        }
        if of.copy_mode {
            return Some(CopyReason::Configured);
        }
        // Without word of its end, nobody would know when the frames it reads are free; and without
        // its number the next daemon could not ask for it.
        if peer.process.is_none() || peer.pid == 0 {
            return Some(CopyReason::Unwatched);
        }
        if self.arena.is_protected(of.id) { None } else { standing::danger(peer) }
    }

    /// The daemon at the other end wants to go on where this one is: everything ends here, and the
    /// session is kept to hand it over by.
    pub(super) fn hand_over(&mut self, id: SessionId, request: RequestId) {
        let own = rustix::process::geteuid().as_raw();
        let may = |session: &Session| session.is_operator() && session.peer.uid == own;
        if !self.sessions.get(&id).is_some_and(may) {
            let detail = "only a daemon of the same user, and in no container, may take over";
            return self.refuse(id, request, RefusedReason::Denied, detail);
        }
        // It is given what others must not write: here what cannot be told is not enough.
        if self.sessions.get(&id).and_then(|s| standing::is_contained(&s.peer)) != Some(false) {
            let detail = "the system does not tell whether it is in a container (/proc)";
            return self.refuse(id, request, RefusedReason::Denied, detail);
        }
        if self.sessions.get(&id).is_none_or(Session::is_left) {
            tracing::warn!("a daemon asked to take over and is gone: this one serves on");
            return;
        }
        if self.has_socket_unit {
            // It would go on listening, and start a daemon of its own beside the one that took over.
            let detail = "the service manager listens for it (undercroft.socket): upgrade it there, by \
                          systemctl restart undercroft";
            return self.refuse(id, request, RefusedReason::Denied, detail);
        }
        self.successor = Some(id);
        self.leaving.notify_one();
    }

    /// The socket of the daemon that takes over, if one does.
    pub(crate) fn take_successor(&mut self) -> Option<Rc<OwnedWriteHalf>> {
        let id = self.successor.take()?;
        self.sessions.remove(&id)?.into_socket()
    }

    /// Sends its domain's board, and the parts of the arena if it reads them in place.
    fn share_arena(&mut self, id: SessionId, request: RequestId, mode: Mode) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(domain) = session.domain.as_ref().map(|domain| domain.id) else { return };
        if mode == Mode::Copy {
            // It reads no frames, and may be one that could write what it is only to read.
            return;
        }
        if let Some(shared) = self.arena.board(domain) {
            let added = Reply::BoardAdded(BoardAdded { bytes: shared.board.bytes() });
            session.reply_with(request, &added, Arc::clone(&shared.read_only));
        }
        for (part_id, part) in self.arena.readable(domain) {
            let (bytes, board_offset) = (part.part.len() as u64, part.board_offset);
            let added = Reply::PartAdded(PartAdded { part: part_id, bytes, board_offset });
            session.reply_with(request, &added, Arc::clone(&part.read_only));
        }
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
