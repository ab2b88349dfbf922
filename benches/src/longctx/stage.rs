use super::options::Checked;
use super::target::Target;
use crate::daemon::{Daemon, DaemonPlan};
use crate::interrupt::Interrupt;
use crate::{BenchError, PageContent};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use undercroft_client::{
    Client, ConnectOptions, FetchFrom, Loaded, LookupOptions, PartView, PartWatcher, SpaceHandle,
    StoreOptions, StoreRun, Wait,
};
use undercroft_gpu_shim::BlockId;
use undercroft_wire::{Chain, PageKey, SsdStatus, Stamp, StatusReport};

const GREETING: Duration = Duration::from_secs(5);
/// No restore or store takes nearly so long.
const DEADLINE: Duration = Duration::from_secs(600);
/// What is put into DRAM in one go where what leaves it must arrive on SSD.
const PIECE_BYTES: u64 = 16 << 20;
const SETTLE_PAUSE: Duration = Duration::from_millis(2);
/// How long a daemon may take to know what is on its SSD.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(120);
/// Chains of pages that nobody restores begin with this, those of contexts with their number.
const FILLER: u32 = u32::MAX;

/// How long an arena may take to be mapped.
const MAPPING_PATIENCE: Duration = Duration::from_secs(60);

/// A context that is offloaded and restored: its pages' names, and their blocks on the device.
struct Conversation {
    keys: Vec<PageKey>,
    blocks: Vec<BlockId>,
}

/// An engine's session, as it is when it has run for a while: with page tables for all of the
/// arena, or all of it registered.
struct Session {
    client: Client,
    space: SpaceHandle,
}

/// Makes page tables for what is mapped, and counts it.
#[derive(Default)]
struct Faulted {
    bytes: AtomicU64,
}

impl PartWatcher for Faulted {
    fn mapped(&self, part: &PartView) {
        // Where the kernel refuses, the first load does it page by page.
        let _refused = part.prefault(1);
        self.bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
    }

    fn leaving(&self, _: &PartView) {}
}

/// How long one restore of all contexts took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Restored {
    /// Until the first layer of all its pages was in place, seconds, on average over the contexts.
    pub(super) first_s: f64,
    /// Until the last one was.
    pub(super) last_s: f64,
    /// Of all contexts together, bytes a second.
    pub(super) bytes_per_s: f64,
}

/// A tier that a context is restored from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    Dram,
    Ssd,
}

impl Tier {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dram => "dram",
            Self::Ssd => "ssd",
        }
    }
}

/// A daemon of its own, a device, and the contexts that go from one to the other.
pub(super) struct Stage<'a> {
    checked: &'a Checked,
    target: &'a dyn Target,
    interrupt: &'a Interrupt,
    conversations: Vec<Conversation>,
    /// One for each context.
    sessions: Vec<Session>,
    arena_bytes: u64,
    pub(super) daemon: Daemon,
}

impl<'a> Stage<'a> {
    /// Starts the daemon. Each of `contexts` contexts has `pages` pages.
    pub(super) fn start(
        checked: &'a Checked,
        target: &'a dyn Target,
        (contexts, pages): (u32, u64),
        plan: DaemonPlan,
        interrupt: &'a Interrupt,
    ) -> Result<Self, BenchError> {
        let conversations = (0..contexts).map(|number| {
            let first = u64::from(number) * pages;
            Conversation {
                keys: keys(checked, number, pages),
                blocks: (first..first + pages).map(|block| BlockId(block as u32)).collect(),
            }
        });
        let (conversations, arena_bytes) = (conversations.collect(), plan.arena_bytes);
        let daemon = Daemon::start(plan, interrupt)?;
        let sessions = Vec::new();
        let mut stage =
            Self { checked, target, interrupt, conversations, sessions, arena_bytes, daemon };
        stage.sessions = stage.open()?;
        Ok(stage)
    }

    /// Writes every context into its blocks, stores it, and drops it on the device. Returns the
    /// bytes a second at which all were stored.
    pub(super) fn offload(&self) -> Result<f64, BenchError> {
        self.over_blocks(|block, content| self.target.fill(block, content).map(|()| 0))?;
        let since = Instant::now();
        std::thread::scope(|scope| {
            let stores = self.conversations.iter().zip(&self.sessions).map(|(one, session)| {
                scope.spawn(|| self.store(&session.space, &one.keys, &one.blocks, 0))
            });
            let stores: Vec<_> = stores.collect();
            stores.into_iter().try_for_each(|store| store.join().expect("stores do not panic"))
        })?;
        Ok(self.bytes() as f64 / since.elapsed().as_secs_f64())
    }

    /// Restores every context that was dropped, all at once, and compares every byte. Returns how
    /// long it took, and how many bytes were wrong.
    pub(super) fn restore(&self, tier: Tier) -> Result<(Restored, u64), BenchError> {
        self.over_blocks(|block, _| self.target.drop_block(block).map(|()| 0))?;
        self.interrupt.check()?;
        let barrier = Barrier::new(self.sessions.len());
        let restore_one = |conversation: &Conversation, space: &SpaceHandle| {
            barrier.wait();
            self.restore_one(conversation, space, tier)
        };
        let times = std::thread::scope(|scope| {
            let restores = self.conversations.iter().zip(&self.sessions);
            let restores: Vec<_> = restores
                .map(|(one, session)| scope.spawn(|| restore_one(one, &session.space)))
                .collect();
            let joined = restores.into_iter().map(|one| one.join().expect("loads do not panic"));
            joined.collect::<Result<Vec<_>, _>>()
        })?;
        let count = times.len() as f64;
        let slowest = times.iter().map(|(_, last)| last.as_secs_f64()).fold(0.0, f64::max);
        let restored = Restored {
            first_s: times.iter().map(|(first, _)| first.as_secs_f64()).sum::<f64>() / count,
            last_s: times.iter().map(|(_, last)| last.as_secs_f64()).sum::<f64>() / count,
            bytes_per_s: self.bytes() as f64 / slowest,
        };
        self.interrupt.check()?;
        let wrong = self.over_blocks(|block, content| self.target.wrong_bytes(block, content))?;
        Ok((restored, wrong))
    }

    /// From the moment it is looked up until its first and its last layer are in place.
    fn restore_one(
        &self,
        Conversation { keys, blocks }: &Conversation,
        space: &SpaceHandle,
        tier: Tier,
    ) -> Result<(Duration, Duration), BenchError> {
        let device = self.target.device();
        let layers = device.geometry().layers();
        let since = Instant::now();
        let found = space.lookup(keys, lookup());
        let mut load =
            space.fetch_by_layer(device, FetchFrom::Keys(keys), blocks, found.stamp, DEADLINE);
        let first = load.wait_layer(0, DEADLINE).map(|pages| (pages, since.elapsed()));
        let last = load.wait_layer(layers - 1, DEADLINE).map(|pages| (pages, since.elapsed()));
        let loaded = load.finish();
        let all = keys.len() as u32;
        let from_ssd = if tier == Tier::Ssd { all } else { 0 };
        match (first, last, &loaded) {
            (Ok((in_first, first)), Ok((in_last, last)), Loaded { pages, ssd_pages, .. })
                if [in_first, in_last, *pages] == [all; 3] && *ssd_pages == from_ssd =>
            {
                Ok((first, last))
            }
            _ => Err(problem(tier, format!("of {all} pages came {loaded:?}"))),
        }
    }

    /// Puts other pages in the place of the contexts' in DRAM, no faster than the SSD takes these,
    /// until all of them are on SSD alone.
    pub(super) fn push_out(&self) -> Result<(), BenchError> {
        let Some(Session { client, space }) = self.sessions.first() else { return Ok(()) };
        let page_bytes = u64::from(self.checked.page_bytes());
        let all = self.conversations.iter().map(|one| one.keys.len()).sum::<usize>();
        let piece = (PIECE_BYTES / page_bytes).clamp(1, all as u64) as usize;
        let blocks: Vec<BlockId> = (0..piece as u32).map(BlockId).collect();
        // Twice as many as there are pages in DRAM, which is a few more than the contexts have.
        let most = 4 * all.div_ceil(piece) + 64;
        for number in 0..most as u32 {
            self.interrupt.check()?;
            let mut chain = Chain::new(&self.checked.space.family.digest(), b"");
            let filler: Vec<PageKey> =
                (0..piece as u32).map(|page| chain.push(&[FILLER, number, page])).collect();
            self.store(space, &filler, &blocks, filler.len())?;
            settle(client)?;
            let in_dram = |one: &Conversation| space.lookup(&one.keys[..1], lookup()).dram > 0;
            // The first page of a context leaves last.
            if !self.conversations.iter().any(in_dram) {
                break;
            }
        }
        for one in &self.conversations {
            let found = space.lookup(&one.keys, lookup());
            if found.ssd as usize != one.keys.len() {
                let (pages, ssd) = (found.pages, found.ssd);
                let all = one.keys.len();
                let told = format!("of {all} pages {pages} were found, {ssd} of them on SSD alone");
                return Err(problem(Tier::Ssd, told));
            }
        }
        Ok(())
    }

    /// Starts the daemon anew: its DRAM is empty, and the contexts are on SSD.
    pub(super) fn empty_dram(&mut self) -> Result<(), BenchError> {
        self.sessions.clear();
        self.daemon.begin_anew(self.interrupt)?;
        self.sessions = self.open()?;
        let Some(Session { client, .. }) = self.sessions.first() else { return Ok(()) };
        let since = Instant::now();
        loop {
            self.interrupt.check()?;
            let status = status(client)?;
            let is_known = |ssd: &SsdStatus| {
                ssd.devices.iter().all(|it| it.recovery_ms.is_some() && it.unproved_records == 0)
            };
            if !status.start.opening && status.ssd.as_ref().is_some_and(is_known) {
                return Ok(());
            }
            if since.elapsed() > RECOVERY_PATIENCE {
                return Err(problem(Tier::Ssd, "the store was not read in time".to_owned()));
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }

    /// Bytes of all contexts.
    fn bytes(&self) -> u64 {
        let pages: usize = self.conversations.iter().map(|one| one.keys.len()).sum();
        pages as u64 * u64::from(self.checked.page_bytes())
    }

    /// A session for each context, ready for its loads.
    fn open(&self) -> Result<Vec<Session>, BenchError> {
        self.conversations.iter().map(|_| self.open_one()).collect()
    }

    fn open_one(&self) -> Result<Session, BenchError> {
        let mut options = ConnectOptions::new(self.daemon.socket());
        options.name = "undercroft bench longctx".to_owned();
        options.wait = Wait::Now(GREETING);
        options.copy_mode = self.target.wants_copies()?;
        let mapped_bytes = if options.copy_mode { 0 } else { self.arena_bytes };
        let client = Client::connect(options)?;
        let faulted = Arc::new(Faulted::default());
        client.watch_parts(Arc::<Faulted>::clone(&faulted));
        let space = client.open_space(&self.checked.space, GREETING)?;
        let since = Instant::now();
        // Parts come one by one, as the daemon has made them.
        while faulted.bytes.load(Ordering::Relaxed) < mapped_bytes {
            self.interrupt.check()?;
            if since.elapsed() > MAPPING_PATIENCE {
                return Err(problem(Tier::Dram, "the arena was not mapped in time".to_owned()));
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
        self.target.attach(&client, mapped_bytes)?;
        Ok(Session { client, space })
    }

    /// Stores a chain from its start; what may be missing in the end are its last `loose` pages.
    fn store(
        &self,
        space: &SpaceHandle,
        keys: &[PageKey],
        blocks: &[BlockId],
        loose: usize,
    ) -> Result<(), BenchError> {
        let stamp: Stamp = space.lookup(&keys[..1], lookup()).stamp;
        let run = StoreRun { parent: None, first: 0, keys, stamp };
        let options = StoreOptions { deadline: DEADLINE, wait_for_credits: true };
        let stored = space.store(run, self.target.device(), blocks, options);
        if stored.stored as usize + loose >= keys.len() {
            return Ok(());
        }
        let all = keys.len();
        Err(problem(Tier::Dram, format!("of {all} pages the daemon stored {stored:?}")))
    }

    /// Does something with every block of every context, on all processors. Returns the sum.
    fn over_blocks(
        &self,
        each: impl Fn(BlockId, &PageContent) -> Result<u64, BenchError> + Sync,
    ) -> Result<u64, BenchError> {
        let Self { checked, conversations, .. } = self;
        let (digest, rank) = (checked.space.digest(), checked.space.rank);
        let pairs: Vec<(&PageKey, BlockId)> = conversations
            .iter()
            .flat_map(|one| one.keys.iter().zip(one.blocks.iter().copied()))
            .collect();
        let threads = crate::limits::cores() as usize;
        let share = pairs.len().div_ceil(threads).max(1);
        let over = |pairs: &[(&PageKey, BlockId)]| {
            pairs.iter().try_fold(0, |sum, (key, block)| {
                let content = PageContent::new(&checked.domain, &digest, rank, key);
                Ok::<u64, BenchError>(sum + each(*block, &content)?)
            })
        };
        std::thread::scope(|scope| {
            let over = &over;
            let started: Vec<_> =
                pairs.chunks(share).map(|share| scope.spawn(move || over(share))).collect();
            let sums = started.into_iter().map(|one| one.join().expect("blocks are looked at"));
            sums.sum()
        })
    }
}

fn keys(checked: &Checked, conversation: u32, pages: u64) -> Vec<PageKey> {
    let mut chain = Chain::new(&checked.space.family.digest(), b"");
    (0..pages as u32).map(|page| chain.push(&[conversation, page])).collect()
}

fn status(client: &Client) -> Result<Box<StatusReport>, BenchError> {
    client.status(DEADLINE).map_err(|why| problem(Tier::Ssd, why.to_string()))
}

/// Waits until the daemon writes no more.
fn settle(client: &Client) -> Result<(), BenchError> {
    let written = |status: &StatusReport| status.ssd.as_ref().map_or(0, SsdStatus::demoted_bytes);
    let mut last = written(&*status(client)?);
    loop {
        std::thread::sleep(SETTLE_PAUSE);
        let now = written(&*status(client)?);
        if now == last {
            return Ok(());
        }
        last = now;
    }
}

fn lookup() -> LookupOptions {
    LookupOptions { hold: None, deadline: DEADLINE, ..LookupOptions::default() }
}

fn problem(tier: Tier, problem: String) -> BenchError {
    BenchError::Measure { row: tier.name(), problem }
}
