use crate::bell::{from_now, whole_ms};
use crate::client::{Inner, not_expected};
use crate::connection::{Connection, locked};
use crate::inbox::Expects;
use crate::{MissReason, OpenError};
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
    standing: Mutex<Standing>,
}

#[derive(Debug, Clone)]
enum Standing {
    Closed,
    /// Asked for in the connection of this generation.
    Asked(u64),
    Refused(u64, RefusedReason),
    Open(Arc<Opened>),
}

/// What a session knows about an open space.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) generation: u64,
    pub(crate) id: SpaceId,
    pub(crate) staging: StagingView,
}

impl SpaceState {
    pub(crate) fn new(space: Space) -> Self {
        let digest = space.digest();
        Self { space, digest, standing: Mutex::new(Standing::Closed) }
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

    pub(crate) fn opened(&self, opened: Opened) {
        *locked(&self.standing) = Standing::Open(Arc::new(opened));
    }

    /// The connection is gone, and with it the space's number and staging.
    pub(crate) fn close(&self) {
        *locked(&self.standing) = Standing::Closed;
    }

    pub(crate) fn was_asked_in(&self, generation: u64) -> bool {
        match &*locked(&self.standing) {
            Standing::Closed => false,
            Standing::Asked(asked) | Standing::Refused(asked, _) => *asked == generation,
            Standing::Open(opened) => opened.generation == generation,
        }
    }

    pub(crate) fn is_refused_in(&self, generation: u64) -> bool {
        matches!(&*locked(&self.standing), Standing::Refused(asked, _) if *asked == generation)
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

    /// Claims the right to ask for it: nobody else is asking in this generation.
    fn claim(&self, generation: u64) -> bool {
        let mut standing = locked(&self.standing);
        let asked = match &*standing {
            Standing::Asked(asked) => *asked == generation,
            Standing::Open(opened) => opened.generation == generation,
            Standing::Closed | Standing::Refused(..) => false,
        };
        if !asked {
            *standing = Standing::Asked(generation);
        }
        !asked
    }

    fn refused(&self, generation: u64, refused: &Refused) {
        *locked(&self.standing) = Standing::Refused(generation, refused.reason);
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
    let generation = connection.generation;
    if !state.claim(generation) {
        return wait_for_other(connection, state, until);
    }
    let request = Request::OpenSpace(OpenSpace { space: state.space.clone() });
    let ticket = connection.post(&request, Expects::Opening(Arc::clone(state)), until).map_err(
        |reason| {
            state.unclaim(generation);
            OpenError::Unanswered(reason)
        },
    )?;
    // If no answer comes in time, it still opens the space when it does come.
    match ticket.reply(until).map_err(OpenError::Unanswered)? {
        Reply::SpaceOpened(_) => Ok(()),
        Reply::Refused(refused) => {
            state.refused(generation, &refused);
            Err(OpenError::Refused { reason: refused.reason, detail: refused.detail })
        }
        other => {
            let reason = not_expected(connection, &other, "an open space");
            Err(OpenError::Unanswered(reason))
        }
    }
}

fn wait_for_other(
    connection: &Connection,
    state: &SpaceState,
    until: Instant,
) -> Result<(), OpenError> {
    loop {
        match state.in_generation(connection.generation) {
            Ok(_) => return Ok(()),
            Err(MissReason::Refused(reason)) => {
                let detail = "another thread asked for it".into();
                return Err(OpenError::Refused { reason, detail });
            }
            Err(_) if connection.is_closed() => {
                return Err(OpenError::Unanswered(MissReason::Disconnected));
            }
            Err(_) if Instant::now() >= until => {
                return Err(OpenError::Unanswered(MissReason::Deadline));
            }
            Err(_) => {}
        }
        let _nothing = connection.drain();
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// An open space: what lookups, fetches and stores are asked of. Cheap to clone. It stays valid
/// over lost connections.
#[derive(Debug, Clone)]
pub struct SpaceHandle {
    pub(crate) client: Arc<Inner>,
    pub(crate) state: Arc<SpaceState>,
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
        self.ready().is_ok()
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
