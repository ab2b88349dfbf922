use crate::{
    Epoch, Explain, Explained, GpuReport, HoldId, KeyRun, LeaseId, OfferId, PageKey, PagePlace,
    PartId, SessionId, SlotId, Space, SpaceDigest, SpaceId, Stamp, StatusReport, Token,
};
use serde::{Deserialize, Serialize};

/// How pages reach a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// The session maps the arena read-only and copies pages straight out of it.
    ZeroCopy,
    /// Pages are delivered into the session's staging area.
    Copy,
}

/// First message of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version the client speaks.
    pub min: u16,
    /// Newest protocol version the client speaks.
    pub max: u16,
    /// What the client calls itself, for `status`. At most 64 bytes are kept.
    pub name: String,
    /// Ask for copy mode although zero-copy would be possible.
    pub copy_mode: bool,
}

/// Names a space and asks for a staging area for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSpace {
    /// The full identity.
    pub space: Space,
    /// What the client's hash makes of the prefix that everybody knows ([`crate::probe_tokens`]):
    /// the key of its first page. A space that others have told another one of is refused: they would
    /// never find each other's pages. `None`: not told, and never refused for that.
    pub probe: Option<PageKey>,
}

/// What loading pages competes with, as whoever asks knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Rival {
    /// What computing one page anew costs, nanoseconds; 0: nobody knows, and nothing is weighed
    /// against it.
    pub recompute_ns: u64,
    /// Pages that arrive later than this after the lookup are of no use, milliseconds; 0: at any
    /// time.
    pub due_ms: u32,
    /// Leading pages that the engine has itself: they need not be loaded and gain nothing.
    pub have: u32,
}

/// Which leading pages are held by all of `spaces`?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup<'a> {
    /// Opened spaces of one family; at least one.
    pub spaces: Vec<SpaceId>,
    /// The keys of one chain from its start.
    #[serde(borrow)]
    pub keys: KeyRun<'a>,
    /// If not 0, what was found stays until it is fetched, given back, or this long has passed.
    pub hold_ms: u32,
    /// What the pages are weighed against.
    pub rival: Rival,
}

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchSource<'a> {
    /// These keys: a run of one chain.
    Keys {
        /// The keys, in prefix order.
        #[serde(borrow)]
        keys: KeyRun<'a>,
    },
    /// `count` pages of what a lookup held, from `first` on. The hold stays until it is dropped
    /// or expires, so that every space of the family can be fetched under it.
    Hold {
        /// The hold a lookup answered with.
        hold: HoldId,
        /// First page, counted from the start of the lookup's keys.
        first: u32,
        /// How many pages.
        count: u32,
    },
}

/// Deliver pages under a lease, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch<'a> {
    /// The space to fetch from.
    pub space: SpaceId,
    /// The lease's number, chosen by the client, never used before in this session.
    pub lease: LeaseId,
    /// What to fetch.
    #[serde(borrow)]
    pub source: FetchSource<'a>,
    /// The request this fetch belongs to, as its lookup answered; 0 for now.
    pub stamp: Stamp,
    /// After this long the daemon ends the fetch with what was ready.
    pub deadline_ms: u32,
    /// As [`Rival::recompute_ns`]: a fetch that falls behind it is cut.
    pub recompute_ns: u64,
}

/// Ends a lease, or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The session the lease was made in: another one of the same process may release it.
    pub session: SessionId,
    /// Which lease.
    pub lease: LeaseId,
    /// Pages before this index (counted as in the fetch) are released; `u32::MAX` ends the lease.
    pub upto: u32,
}

/// Gives a hold back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropHold {
    /// Which hold.
    pub hold: HoldId,
}

/// Would the daemon like these pages?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer<'a> {
    /// The space they belong to.
    pub space: SpaceId,
    /// The page before the first key; `None` if the run starts the chain.
    pub parent: Option<PageKey>,
    /// Depth of the first key: 0 if the run starts the chain.
    pub first: u32,
    /// A run of one chain.
    #[serde(borrow)]
    pub keys: KeyRun<'a>,
    /// The request's stamp, the same for all its offers; 0 for now.
    pub stamp: Stamp,
}

/// These slots are filled (or will not be).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The space of the offer.
    pub space: SpaceId,
    /// The offer the slots were assigned by.
    pub offer: OfferId,
    /// Slots that hold their page, in prefix order.
    pub filled: Vec<SlotId>,
    /// Slots given back unfilled.
    pub returned: Vec<SlotId>,
}

/// Lift pages towards DRAM ahead of need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefetch<'a> {
    /// The space they belong to.
    pub space: SpaceId,
    /// A run of one chain from its start.
    #[serde(borrow)]
    pub keys: KeyRun<'a>,
    /// How long they should stay.
    pub ttl_ms: u32,
}

/// What the engine knows about a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HintKind {
    /// In use now.
    Active,
    /// Waiting for its user or a tool.
    Paused,
    /// Will not go on.
    Ended,
    /// Expected to go on after this many milliseconds.
    ExpectedInMs(u32),
    /// Keep it for this many milliseconds.
    PinMs(u32),
    /// Give its DRAM up first.
    Demote,
}

/// Tells the daemon about a conversation, named by the key of its last page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint<'a> {
    /// The space.
    pub space: SpaceId,
    /// The conversation's pages, or its last ones.
    #[serde(borrow)]
    pub keys: KeyRun<'a>,
    /// What about it.
    pub kind: HintKind,
}

/// What is handed to another session of the same domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Gift {
    /// A hold.
    Hold(HoldId),
    /// A lease of this session, all of whose pages are delivered.
    Lease(LeaseId),
}

/// Asks for a token that makes a hold or a lease another session's. Until somebody takes it, it
/// stays this session's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Give {
    /// What to hand over.
    pub what: Gift,
}

/// Takes what a token stands for: it is this session's from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    /// What the giver was given for it.
    pub token: Token,
    /// For a lease, its number in this session, never used before; means nothing for a hold.
    pub lease: LeaseId,
    /// For a lease, the space its pages must be of, opened in this session; for a hold `None`. A
    /// token of the other kind or of another space is refused and stays good: whose pages they
    /// are is not left to the two sessions' word.
    pub space: Option<SpaceId>,
}

/// The client has let go of a part's mapping, as [`PartRetired`] asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartLetGo {
    /// Which part.
    pub part: PartId,
}

/// Lookups that the client did not send: the board said that nothing begins with their first pages.
/// Each counts as a lookup of one key that found nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// How many, since the client last said so.
    pub lookups: u32,
}

/// Forgets pages for good, in every tier: those that have all of what is named, and something is.
/// A session may purge its own domain; the daemon's own user and root may purge every domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// The name of the domain whose pages they are, configured now or once; `None`: of every
    /// domain that the asker may purge.
    pub domain: Option<String>,
    /// The space they are of; `None`: any.
    pub space: Option<SpaceDigest>,
    /// The user whose processes stored them; `None`: anybody.
    pub writer: Option<u32>,
}

/// Everything a client may say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the message of that name")]
pub enum Request<'a> {
    Hello(Hello),
    OpenSpace(OpenSpace),
    Lookup(Lookup<'a>),
    Fetch(Fetch<'a>),
    Release(Release),
    DropHold(DropHold),
    Offer(Offer<'a>),
    Commit(Commit),
    Prefetch(Prefetch<'a>),
    Hint(Hint<'a>),
    Status,
    Ping,
    Give(Give),
    Take(Take),
    PartLetGo(PartLetGo),
    Purge(Purge),
    /// Hands everything that outlives a daemon to the one that asks, and stops. For the daemon's
    /// own user.
    TakeOver,
    /// What the session copies pages with, for `status`. Said again when it changes.
    Gpu(GpuReport),
    /// Comes in front of what the client has to say anyway, or after a while without.
    Missed(Missed),
    /// What others looked up and offered since it was asked the last time; the first of a session
    /// begins a recording, which ends with the session.
    Record,
    Explain(Explain),
}

/// Answer to a hello. The domain's board follows as [`BoardAdded`], then the arena's parts as
/// [`PartAdded`]; in copy mode neither comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version both sides use from here on.
    pub version: u16,
    /// This session.
    pub session: SessionId,
    /// The arena's lifetime; another one means the old mappings are of no use.
    pub epoch: Epoch,
    /// How pages will be delivered.
    pub mode: Mode,
    /// How many parts follow before anything else.
    pub parts: u32,
    /// The domain the connection was found to belong to.
    pub domain: String,
}

/// The domain's board: generations of frames and the daemon's heartbeat. Its read-only descriptor
/// travels with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardAdded {
    /// Its length, bytes.
    pub bytes: u64,
}

/// A part of the arena, at the start or later; its read-only descriptor travels with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartAdded {
    /// Which part.
    pub part: PartId,
    /// Its length, bytes.
    pub bytes: u64,
    /// Where the generations of its frames begin on the board, bytes.
    pub board_offset: u64,
}

/// A part is going away: nothing new is delivered from it. The client unmaps it once no fetch has
/// pages in it, and says [`PartLetGo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRetired {
    /// Which part.
    pub part: PartId,
}

/// A space is open. The staging area's descriptor travels with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceOpened {
    /// The number to use in requests.
    pub space: SpaceId,
    /// Slots in the staging area.
    pub slots: u32,
    /// Bytes from one slot to the next.
    pub slot_bytes: u32,
}

/// What a lookup found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LookupReply {
    /// Leading pages that every space asked about holds, and that are to be loaded: where the cost
    /// model is enforced no more than are worth it.
    pub pages: u32,
    /// Of these, how many are in DRAM in every space.
    pub dram: u32,
    /// Of these, how many must be read from SSD in at least one space.
    pub ssd: u32,
    /// The hold, if one was asked for and anything was found.
    pub hold: Option<HoldId>,
    /// The request's stamp, to be used in its fetches and offers.
    pub stamp: Stamp,
    /// Estimated time until all pages are in DRAM, microseconds.
    pub estimate_us: u64,
    /// Leading pages that are there, whether or not they are worth loading: at least `pages`.
    pub present: u32,
    /// Leading pages that are worth loading, as far as is known: at most `present`.
    pub worth: u32,
    /// Estimated time in which the engine copies all pages out of DRAM, microseconds.
    pub copy_us: u64,
}

/// Some pages of a fetch are ready, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReady {
    /// The fetch's lease.
    pub lease: LeaseId,
    /// Index of the first page in `places`, counted as in the fetch.
    pub first: u32,
    /// Where they lie.
    pub places: Vec<PagePlace>,
}

/// No more pages will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchEnd {
    /// The fetch's lease.
    pub lease: LeaseId,
    /// How many pages were delivered in all, from the first on.
    pub ready: u32,
    /// Of these, how many were read from SSD.
    pub ssd: u32,
    /// A [`crate::FetchOutcome`] byte.
    pub outcome: u8,
}

/// What the daemon wants of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferReply {
    /// Number to commit under.
    pub offer: OfferId,
    /// One [`crate::OfferOutcome`] byte per key.
    pub outcomes: Vec<u8>,
    /// The slots of the wanted keys, in order.
    pub slots: Vec<SlotId>,
}

/// What became of the committed slots; they are free again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReply {
    /// The offer.
    pub offer: OfferId,
    /// One [`crate::CommitOutcome`] byte per filled slot, in the commit's order.
    pub outcomes: Vec<u8>,
}

/// How many of a prefetch's pages are in DRAM or on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchReply {
    /// Already in DRAM.
    pub resident: u32,
    /// Being read.
    pub started: u32,
}

/// The token that was asked for. It is good for one [`Take`], for as long as a hold may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// To be told to the taker.
    pub token: Token,
}

/// A hold has changed hands. A lease is answered by its pages: [`FetchReady`] and [`FetchEnd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenHold {
    /// The hold, by its number.
    pub hold: HoldId,
    /// How many pages it holds in each of its spaces.
    pub pages: u32,
}

/// What was looked up and offered, oldest first. There may be more to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Recorded {
    /// Lookups and offers that found no room to be kept, since the recording began.
    pub dropped: u64,
    /// What each of the others asked for.
    pub runs: Vec<RecordedRun>,
}

/// The pages of a lookup or an offer. They have names of this recording, drawn from a secret that
/// nobody keeps: equal ones are equal pages, and no name can be told from a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedRun {
    /// When, milliseconds since the recording began.
    pub at_ms: u64,
    /// Whether it was a lookup; else an offer.
    pub is_lookup: bool,
    /// Whose domain, numbered from 0 as they come.
    pub domain: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Distance of the first page from the start of its chain.
    pub first: u32,
    /// The page before the first one.
    pub parent: Option<u64>,
    /// The pages, in prefix order.
    pub pages: Vec<u64>,
}

/// What a purge has removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Pages that no lookup will find again, in whatever tier they were.
    pub pages: u64,
    /// What they took in DRAM, bytes.
    pub dram_bytes: u64,
    /// What they took on SSDs, bytes. It lies there until it is overwritten, and is never served.
    pub ssd_bytes: u64,
    /// Directories of SSDs that could not take it down. Should the next start find nothing but
    /// these, pages come back: the purge is to be asked again once they are well. At most 256, of
    /// 256 bytes each.
    pub missed: Vec<String>,
}

/// Something that outlives a daemon; its descriptor travels with the message. `Done` follows the
/// last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heirloom {
    /// What it is: the name it has in a descriptor store, too.
    pub name: String,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusedReason {
    /// A limit is reached; the same request may succeed later.
    Busy,
    /// The request names something that is not there.
    Unknown,
    /// The daemon is stopping.
    Stopping,
    /// No version in common.
    Version,
    /// A field is out of range.
    Invalid,
    /// The peer may not ask for this, or belongs to no domain.
    Denied,
}

/// A request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub reason: RefusedReason,
    /// One line for people.
    pub detail: String,
}

/// Everything the daemon may say.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each variant is the message of that name")]
pub enum Reply {
    Welcome(Welcome),
    PartAdded(PartAdded),
    SpaceOpened(SpaceOpened),
    Lookup(LookupReply),
    FetchReady(FetchReady),
    FetchEnd(FetchEnd),
    Offer(OfferReply),
    Commit(CommitReply),
    Prefetch(PrefetchReply),
    Status(Box<StatusReport>),
    Refused(Refused),
    Done,
    BoardAdded(BoardAdded),
    PartRetired(PartRetired),
    Given(Given),
    TakenHold(TakenHold),
    Purged(Purged),
    Heirloom(Heirloom),
    Recorded(Recorded),
    Explained(Explained),
}
