use crate::bell::{from_now, whole_ms};
use crate::client::{Client, Inner, not_expected};
use crate::connection::{Connection, Ticket, locked};
use crate::inbox::Expects;
use crate::{MissReason, OpenError};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use undercroft_arena::StagingView;
use undercroft_wire::{
    Hint, HintKind, KeyRun, MAX_KEYS, OpenSpace, PageKey, Prefetch, Refused, RefusedReason, Reply,
    Request, Space, SpaceDigest, SpaceId,
};

/// How often a caller looks whether another thread has opened the space.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// A space of a client, and where it stands in the session of the moment.
#[derive(Debug)]
pub(crate) struct SpaceState {
    space: Space,
    digest: SpaceDigest,
    /// What this process's hash makes of the probe prefix, as the first handle was told.
    probe: Option<PageKey>,
    standing: Mutex<Standing>,
    /// What computing a page costs, nanoseconds; 0: nobody has said.
    recompute_ns: AtomicU64,
    /// How many handles there are. Changed to and from 0 only under the lock of the client's spaces.
    handles: AtomicUsize,
}

/// Each but the first is of one connection; one of an older connection never replaces it.
#[derive(Debug, Clone)]
enum Standing {
    Closed,
    /// Asked for in the connection of this generation, and not answered yet.
    Asked(u64),
    Refused(u64, RefusedReason),
    Open(Arc<Opened>),
}

impl Standing {
    /// 0 before the first connection.
    fn generation(&self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Asked(generation) | Self::Refused(generation, _) => *generation,
            Self::Open(opened) => opened.generation,
        }
    }
}

/// Who may ask for a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// The one who claimed it.
    Ours,
    /// Somebody has asked and not been answered.
    Theirs,
    /// It is open.
    Settled,
    /// Nobody: there is a newer connection.
    Outdated,
}

/// What a session knows about an open space.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) generation: u64,
    pub(crate) id: SpaceId,
    pub(crate) staging: StagingView,
}

impl SpaceState {
    pub(crate) fn new(space: Space, probe: Option<PageKey>) -> Self {
        let digest = space.digest();
        let standing = Mutex::new(Standing::Closed);
        let recompute_ns = AtomicU64::new(0);
        Self { space, digest, probe, standing, recompute_ns, handles: AtomicUsize::new(0) }
    }

    /// Whether somebody who says this of the probe prefix may have it.
    pub(crate) fn agrees(&self, probe: Option<PageKey>) -> bool {
        self.probe.is_none() || probe.is_none() || self.probe == probe
    }

    pub(crate) fn digest(&self) -> SpaceDigest {
        self.digest
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.space.geometry.page_bytes() as usize
    }

    pub(crate) fn add_handle(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// Says whether it was the last one.
    pub(crate) fn drop_handle(&self) -> bool {
        self.handles.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub(crate) fn opened(&self, opened: Opened) {
        self.stand(Standing::Open(Arc::new(opened)));
    }

    pub(crate) fn refused(&self, generation: u64, reason: RefusedReason) {
        self.stand(Standing::Refused(generation, reason));
    }

    fn stand(&self, new: Standing) {
        let mut standing = locked(&self.standing);
        if standing.generation() <= new.generation() {
            *standing = new;
        }
    }

    /// The connection is gone, and with it the space's number and staging.
    pub(crate) fn close(&self, generation: u64) {
        let mut standing = locked(&self.standing);
        if standing.generation() <= generation {
            *standing = Standing::Closed;
        }
    }

    /// Whether it was asked for in this connection, whatever the answer.
    pub(crate) fn was_asked_in(&self, generation: u64) -> bool {
        locked(&self.standing).generation() == generation
    }

    pub(crate) fn is_open_in(&self, generation: u64) -> bool {
        matches!(&*locked(&self.standing), Standing::Open(opened) if opened.generation == generation)
    }

    /// Its staging area, where it is open.
    pub(crate) fn staging(&self) -> Option<StagingView> {
        match &*locked(&self.standing) {
            Standing::Open(opened) => Some(opened.staging.clone()),
            _ => None,
        }
    }

    fn in_generation(&self, generation: u64) -> Result<Arc<Opened>, MissReason> {
        match &*locked(&self.standing) {
            Standing::Open(opened) if opened.generation == generation => Ok(Arc::clone(opened)),
            Standing::Refused(asked, reason) if *asked == generation => {
                Err(MissReason::Refused(*reason))
            }
            _ => Err(MissReason::NotOpen),
        }
    }

    /// Claims the right to ask for it, unless somebody has it in this generation.
    fn claim(&self, generation: u64) -> Claim {
        let mut standing = locked(&self.standing);
        match &*standing {
            newer if newer.generation() > generation => Claim::Outdated,
            Standing::Asked(asked) if *asked == generation => Claim::Theirs,
            Standing::Open(opened) if opened.generation == generation => Claim::Settled,
            _ => {
                *standing = Standing::Asked(generation);
                Claim::Ours
            }
        }
    }

    /// The request was not sent: it may be asked for again.
    fn unclaim(&self, generation: u64) {
        let mut standing = locked(&self.standing);
        if matches!(&*standing, Standing::Asked(asked) if *asked == generation) {
            *standing = Standing::Closed;
        }
    }
}

/// Opens a space in a session, once, however many threads ask.
pub(crate) fn open(
    connection: &Arc<Connection>,
    state: &Arc<SpaceState>,
    until: Instant,
) -> Result<(), OpenError> {
    let mut has_waited = false;
    loop {
        if has_waited
            && let Err(MissReason::Refused(reason)) = state.in_generation(connection.generation)
        {
            let detail = "another thread asked for it".into();
            return Err(OpenError::Refused { reason, detail });
        }
        let missed = match post(connection, state, until) {
            Ok(Claimed::Asked(ticket)) => return hear(connection, &ticket, until),
            Ok(Claimed::Settled) => return Ok(()),
            Ok(Claimed::Theirs) if connection.is_closed() => MissReason::Disconnected,
            Ok(Claimed::Theirs) if Instant::now() >= until => MissReason::Deadline,
            Ok(Claimed::Theirs) => {
                let _nothing = connection.drain();
                std::thread::sleep(LOOK_AGAIN);
                has_waited = true;
                continue;
            }
            Err(reason) => reason,
        };
        return Err(OpenError::Unanswered(missed));
    }
}

/// Asks for a space without waiting for anything: the answer settles it whenever it comes. Where
/// it cannot be sent at once, or somebody has asked already, nothing happens.
pub(crate) fn ask(connection: &Arc<Connection>, state: &Arc<SpaceState>) {
    let _given_up = post(connection, state, Instant::now());
}

enum Claimed {
    Asked(Ticket),
    Theirs,
    Settled,
}

fn post(
    connection: &Arc<Connection>,
    state: &Arc<SpaceState>,
    until: Instant,
) -> Result<Claimed, MissReason> {
    match state.claim(connection.generation) {
        Claim::Ours => {}
        Claim::Theirs => return Ok(Claimed::Theirs),
        Claim::Settled => return Ok(Claimed::Settled),
        Claim::Outdated => return Err(MissReason::Disconnected),
    }
    let request = Request::OpenSpace(OpenSpace { space: state.space.clone(), probe: state.probe });
    let posted = connection.post(&request, Expects::Opening(Arc::clone(state)), until);
    if posted.is_err() {
        state.unclaim(connection.generation);
    }
    posted.map(Claimed::Asked)
}

/// Waits for the answer. If none comes in time, it still settles the space when it does come.
fn hear(connection: &Connection, ticket: &Ticket, until: Instant) -> Result<(), OpenError> {
    match ticket.reply(until).map_err(OpenError::Unanswered)? {
        Reply::SpaceOpened(_) => Ok(()),
        Reply::Refused(Refused { reason, detail }) => Err(OpenError::Refused { reason, detail }),
        other => {
            let reason = not_expected(connection, &other, "an open space");
            Err(OpenError::Unanswered(reason))
        }
    }
}

/// An open space: what lookups, fetches and stores are asked of. Cheap to clone. It stays valid
/// over lost connections. Without a handle the space is not opened in later sessions.
#[derive(Debug)]
pub struct SpaceHandle {
    pub(crate) client: Arc<Inner>,
    pub(crate) state: Arc<SpaceState>,
}

impl Clone for SpaceHandle {
    fn clone(&self) -> Self {
        self.state.add_handle();
        Self::new(Arc::clone(&self.client), Arc::clone(&self.state))
    }
}

impl Drop for SpaceHandle {
    fn drop(&mut self) {
        self.client.let_go(&self.state);
    }
}

/// What a prefetch set in motion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefetched {
    /// Pages that are in DRAM already.
    pub resident: u32,
    /// Pages that are being read.
    pub started: u32,
}

impl SpaceHandle {
    /// Takes over the handle that `state` was counted for.
    pub(crate) fn new(client: Arc<Inner>, state: Arc<SpaceState>) -> Self {
        Self { client, state }
    }

    /// The space's full identity.
    #[must_use]
    pub fn space(&self) -> &Space {
        self.state.space()
    }

    /// Whether the space is open in the session of the moment.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.check_open().is_ok()
    }

    /// As [`SpaceHandle::is_open`], and why not.
    ///
    /// # Errors
    /// What any call would miss for just now.
    pub fn check_open(&self) -> Result<(), MissReason> {
        self.ready().map(drop)
    }

    /// Whether this client, or a clone of it, opened the space.
    #[must_use]
    pub fn is_of(&self, client: &Client) -> bool {
        Arc::ptr_eq(&self.client, client.inner())
    }

    /// Says what computing one page anew costs, on this space's engine when it does little else;
    /// zero: that is not known, as at first. The daemon weighs loads of every handle of this space
    /// against it from the next call on.
    pub fn set_recompute(&self, page: Duration) {
        let ns = u64::try_from(page.as_nanos()).unwrap_or(u64::MAX);
        self.state.recompute_ns.store(ns, Ordering::Relaxed);
    }

    pub(crate) fn recompute_ns(&self) -> u64 {
        self.state.recompute_ns.load(Ordering::Relaxed)
    }

    /// Lifts pages towards DRAM ahead of need, to stay there for about `ttl`. `keys` is a run of
    /// one chain from its start.
    ///
    /// # Errors
    /// Why nothing was set in motion.
    pub fn prefetch(
        &self,
        keys: &[PageKey],
        ttl: Duration,
        deadline: Duration,
    ) -> Result<Prefetched, MissReason> {
        let until = from_now(deadline);
        let (connection, opened) = self.ready()?;
        let keys = KeyRun::from(&keys[..keys.len().min(MAX_KEYS)]);
        let request = Request::Prefetch(Prefetch { space: opened.id, keys, ttl_ms: whole_ms(ttl) });
        match connection.call(&request, Expects::Reply, until)? {
            Reply::Prefetch(reply) => {
                Ok(Prefetched { resident: reply.resident, started: reply.started })
            }
            other => Err(not_expected(&connection, &other, "a prefetch's answer")),
        }
    }

    /// Tells the daemon about the conversation whose pages (or last pages) are `keys`.
    ///
    /// # Errors
    /// Why it was not heard.
    pub fn hint(
        &self,
        keys: &[PageKey],
        kind: HintKind,
        deadline: Duration,
    ) -> Result<(), MissReason> {
        let until = from_now(deadline);
        let (connection, opened) = self.ready()?;
        let keys = KeyRun::from(&keys[keys.len().saturating_sub(MAX_KEYS)..]);
        let request = Request::Hint(Hint { space: opened.id, keys, kind });
        match connection.call(&request, Expects::Reply, until)? {
            Reply::Done => Ok(()),
            other => Err(not_expected(&connection, &other, "a hint's answer")),
        }
    }

    /// The connection of the moment and the space's place in it.
    pub(crate) fn ready(&self) -> Result<(Arc<Connection>, Arc<Opened>), MissReason> {
        let connection = self.client.connection()?;
        let opened = match self.state.in_generation(connection.generation) {
            Err(MissReason::NotOpen) => {
                // Its answer may have come when nobody was waiting any more.
                let _nothing = connection.drain();
                self.state.in_generation(connection.generation)?
            }
            other => other?,
        };
        Ok((connection, opened))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use undercroft_arena::Staging;
    use undercroft_wire::{Dtype, Family, Geometry, Rank};

    pub(crate) fn state() -> SpaceState {
        let family = Family {
            model: [7; 32],
            adapter: [0; 32],
            dtype: Dtype::Bf16,
            quantization: "none".into(),
            attention: "rope".into(),
            layout: "nhd".into(),
            layers: 1,
            kv_heads: 1,
            page_tokens: 16,
        };
        let geometry = Geometry::new(1, 2, 2048).unwrap();
        SpaceState::new(Space { family, rank: Rank::Shared, group: 0, geometry }, None)
    }

    fn opened(generation: u64) -> Opened {
        let staging = Staging::create(1, 4096).unwrap();
        let fd = staging.fd().try_clone_to_owned().unwrap();
        let staging = StagingView::map(fd, 1, 4096).unwrap();
        Opened { generation, id: SpaceId(generation as u32), staging }
    }

    /// A thread that was interrupted with an old connection in its hands.
    #[test]
    fn an_older_connection_never_takes_a_space_from_a_newer_one() {
        let state = state();
        assert_eq!(state.claim(1), Claim::Ours);
        assert_eq!(state.claim(1), Claim::Theirs);
        state.close(1);
        assert_eq!(state.claim(2), Claim::Ours);
        state.opened(opened(2));
        assert_eq!((state.claim(1), state.claim(2)), (Claim::Outdated, Claim::Settled));
        state.unclaim(1);
        state.refused(1, RefusedReason::Busy);
        state.opened(opened(1));
        state.close(1);
        assert_eq!(state.in_generation(2).unwrap().id, SpaceId(2));
        state.close(2);
        assert_eq!(state.in_generation(2).unwrap_err(), MissReason::NotOpen);
    }

    #[test]
    fn a_space_that_could_not_be_asked_for_is_nobodys() {
        let state = state();
        assert_eq!(state.claim(1), Claim::Ours);
        state.unclaim(1);
        assert!(!state.was_asked_in(1));
        assert_eq!(state.claim(1), Claim::Ours);
    }
}
