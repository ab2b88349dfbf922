use crate::MissReason;
use crate::bell::{from_now, whole_ms};
use crate::client::{Client, Inner, not_expected};
use crate::connection::{Connection, Ticket};
use crate::inbox::Expects;
use crate::space::SpaceHandle;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_wire::{
    DropHold, HoldId, KeyRun, Lookup, LookupReply, MAX_KEYS, MAX_SPACES_PER_LOOKUP, PageKey, Reply,
    Request, Rival, Stamp,
};

/// How to look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookupOptions {
    /// If given, nothing of what was found is evicted until it is fetched and the hold dropped,
    /// or this long has passed, or as long as the daemon lets a hold last.
    pub hold: Option<Duration>,
    /// The answer is there by then, or it is a miss.
    pub deadline: Duration,
    /// If given, pages that take longer to load than this are not worth it.
    pub due: Option<Duration>,
    /// Leading pages that the engine has itself. They need not be loaded, and are found all the same.
    pub have: u32,
}

impl Default for LookupOptions {
    fn default() -> Self {
        Self { hold: None, deadline: Duration::from_millis(50), due: None, have: 0 }
    }
}

/// What a lookup found.
#[derive(Debug, Default)]
#[must_use]
pub struct Found {
    /// Leading pages that every space asked about holds; where the daemon enforces its cost model, of
    /// these no more than are worth loading.
    pub pages: u32,
    /// Of these, how many are in DRAM in every space.
    pub dram: u32,
    /// Of these, how many must be read from SSD in at least one space.
    pub ssd: u32,
    /// The hold, if one was asked for and anything was found. There may be none all the same: a
    /// domain holds no more than it may. What was found is fetched by its keys then.
    pub hold: Option<Hold>,
    /// The request's place in the daemon's order, for its fetches and stores.
    pub stamp: Stamp,
    /// Estimated time until all found pages are in DRAM.
    pub estimate: Duration,
    /// Leading pages that are there, whether or not they are worth loading.
    pub present: u32,
    /// Leading pages that are worth loading, as far as the daemon can tell: all that are there, until it
    /// was told what computing them costs ([`SpaceHandle::set_recompute`]) or when they are due.
    pub worth: u32,
    /// Estimated time to copy all found pages out of DRAM.
    pub copy: Duration,
    /// Why it was not more: `None` if every page was found.
    pub why: Option<MissReason>,
}

impl Found {
    fn miss(why: MissReason) -> Self {
        Self { why: Some(why), ..Self::default() }
    }
}

/// A promise that what a lookup found stays until it is fetched. Dropping it gives it back; it
/// also expires by itself.
#[derive(Debug)]
pub struct Hold {
    pub(crate) client: Arc<Inner>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) id: HoldId,
    pub(crate) pages: u32,
}

impl Hold {
    /// How many pages are held, counted from the start of the lookup's keys.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.client.is_foreign() {
            // Holds end with their connection.
            let _ended = self.connection.tell(&Request::DropHold(DropHold { hold: self.id }));
        }
    }
}

/// A lookup that was sent, and whose answer is awaited elsewhere. Dropping it gives the answer up,
/// and what it holds with it.
#[derive(Debug)]
#[must_use]
pub struct PendingLookup {
    client: Arc<Inner>,
    ticket: Ticket,
    wanted: usize,
    asked: usize,
}

impl SpaceHandle {
    /// The longest run of leading pages this space holds. `keys` is one chain from its start.
    pub fn lookup(&self, keys: &[PageKey], options: LookupOptions) -> Found {
        look_up(&self.client, &[self], keys, options)
    }
}

impl Client {
    /// The longest run of leading pages that all these spaces hold: the ranks and groups of one
    /// family, opened by this client.
    pub fn lookup_family(
        &self,
        spaces: &[&SpaceHandle],
        keys: &[PageKey],
        options: LookupOptions,
    ) -> Found {
        look_up(self.inner(), spaces, keys, options)
    }

    /// Whether a chain that begins with this page may be found now. `false`: a lookup would find
    /// nothing, and needs not be sent: the daemon's board says that nothing begins so. `None`: not
    /// connected, or the daemon hangs; it would find nothing either. `true` says nothing: look up.
    /// It asks nobody and never waits. Only what was stored without a parent begins a chain: of a
    /// page in the middle of one it may say `false` although it is there.
    #[must_use]
    pub fn may_hold(&self, first: &PageKey) -> Option<bool> {
        self.well_linked().map(|connection| connection.may_hold(first))
    }

    /// As [`may_hold`](Self::may_hold), of what will be asked again: the daemon does not count it as
    /// a lookup.
    #[must_use]
    pub fn peek(&self, first: &PageKey) -> Option<bool> {
        self.well_linked().map(|connection| connection.may_start(first))
    }

    /// The connection, if its daemon turns. This is no call, so none that a daemon that hangs has
    /// cost.
    fn well_linked(&self) -> Option<Arc<Connection>> {
        self.inner().linked().ok().filter(|connection| !connection.is_hung())
    }

    /// Sends what [`lookup_family`](Self::lookup_family) asks and returns. The answer is taken by
    /// [`PendingLookup::wait`], once; `options.deadline` is for the sending. A hold lasts from when
    /// the daemon answers.
    ///
    /// # Errors
    /// Why it was not sent.
    pub fn start_lookup(
        &self,
        spaces: &[&SpaceHandle],
        keys: &[PageKey],
        options: LookupOptions,
    ) -> Result<PendingLookup, MissReason> {
        begin(self.inner(), spaces, keys, options, from_now(options.deadline))
    }
}

fn look_up(
    client: &Arc<Inner>,
    spaces: &[&SpaceHandle],
    keys: &[PageKey],
    options: LookupOptions,
) -> Found {
    let until = from_now(options.deadline);
    match begin(client, spaces, keys, options, until) {
        Ok(pending) => pending.until(until).unwrap_or_else(Found::miss),
        Err(why) => Found::miss(why),
    }
}

fn begin(
    client: &Arc<Inner>,
    spaces: &[&SpaceHandle],
    keys: &[PageKey],
    options: LookupOptions,
    until: Instant,
) -> Result<PendingLookup, MissReason> {
    let foreign = spaces.iter().any(|space| !Arc::ptr_eq(&space.client, client));
    if spaces.is_empty() || spaces.len() > MAX_SPACES_PER_LOOKUP || foreign {
        return Err(MissReason::Invalid);
    }
    let (connection, first) = spaces[0].ready()?;
    let mut ids = vec![first.id];
    for space in &spaces[1..] {
        let (other, opened) = space.ready()?;
        // A reconnection between two of them: their numbers do not belong together.
        if !Arc::ptr_eq(&other, &connection) {
            return Err(MissReason::Disconnected);
        }
        ids.push(opened.id);
    }
    let asked = &keys[..keys.len().min(MAX_KEYS)];
    let request = Request::Lookup(Lookup {
        spaces: ids,
        keys: KeyRun::from(asked),
        hold_ms: options.hold.map_or(0, whole_ms),
        rival: rival(spaces, options),
    });
    let ticket = connection.post(&request, Expects::Reply, until)?;
    let (wanted, asked) = (keys.len(), asked.len());
    Ok(PendingLookup { client: Arc::clone(client), ticket, wanted, asked })
}

/// What the pages are weighed against: of several spaces the quickest to compute, and nothing where one
/// of them has said nothing.
fn rival(spaces: &[&SpaceHandle], options: LookupOptions) -> Rival {
    let recompute_ns = spaces.iter().map(|space| space.recompute_ns()).min().unwrap_or(0);
    Rival { recompute_ns, due_ms: options.due.map_or(0, whole_ms), have: options.have }
}

impl PendingLookup {
    /// Waits for the answer, at most for so long.
    pub fn wait(&self, deadline: Duration) -> Found {
        self.until(from_now(deadline)).unwrap_or_else(Found::miss)
    }

    fn until(&self, until: Instant) -> Result<Found, MissReason> {
        let connection = self.ticket.connection();
        if connection.is_foreign() {
            return Err(MissReason::Forked);
        }
        match self.ticket.reply(until)? {
            Reply::Lookup(reply) => {
                found(&self.client, Arc::clone(connection), self.wanted, self.asked, &reply)
            }
            other => Err(not_expected(connection, &other, "a lookup's answer")),
        }
    }
}

fn found(
    client: &Arc<Inner>,
    connection: Arc<Connection>,
    wanted: usize,
    asked: usize,
    reply: &LookupReply,
) -> Result<Found, MissReason> {
    let LookupReply { pages, dram, ssd, hold, stamp, present, worth, .. } = *reply;
    let is_sum = u64::from(dram) + u64::from(ssd) == u64::from(pages);
    if present as usize > asked || pages.max(worth) > present || !is_sum {
        return Err(connection.violated("a lookup's counts contradict each other"));
    }
    let why = match pages as usize {
        all if all == wanted => None,
        all if all == asked => Some(MissReason::TooLong),
        _ if pages < present => Some(MissReason::Slower),
        _ => Some(MissReason::Absent),
    };
    let client = Arc::clone(client);
    let hold = hold.map(|id| Hold { client, connection, id, pages });
    let estimate = Duration::from_micros(reply.estimate_us);
    let copy = Duration::from_micros(reply.copy_us);
    Ok(Found { pages, dram, ssd, hold, stamp, estimate, present, worth, copy, why })
}
