//! Loads and stores, and how they end.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::device::{Copier, UndercroftDevice};
use crate::grows::{self, Grows, Out};
use crate::lookup::UndercroftHold;
use crate::outcome::{Fault, UNDERCROFT_OK, answer, code, remember};
use crate::space::UndercroftSpace;
use crate::strings::{self, time};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_client::wire::{PageKey, Stamp};
use undercroft_client::{
    FetchFrom, Hold, Loaded, MissReason, SpaceHandle, StoreOptions, StoreRun, Stored, Token,
};
use undercroft_gpu_shim::cuda::EngineStream;
use undercroft_gpu_shim::{BlockId, Device, DeviceError};

/// What to load, and where to. Exactly one of `keys`, `hold` and `token` is set. A field that is zero has its
/// default. It and its arrays are needed during the call only, for a started load too.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftLoadRequest {
    /// `sizeof(undercroft_load_request)`.
    pub size: usize,
    /// Where the blocks lie.
    pub device: *const UndercroftDevice,
    /// `pages` keys of 32 bytes: a run of one chain, in prefix order.
    pub keys: *const u8,
    /// What a lookup held: `pages` of it from page `hold_first` on. It may be freed during a started load.
    pub hold: *const UndercroftHold,
    /// 16 bytes: a lease that another process gave. It has ended when the load is over.
    pub token: *const u8,
    /// `pages` numbers: page `i` goes to block `blocks[i]`, and none is named twice. Null: to block `i`.
    pub blocks: *const u32,
    /// How many pages: no more than the device has blocks.
    pub pages: usize,
    /// With `hold`: the first page of it.
    pub hold_first: u32,
    /// Not 0: the first layers of all pages come first, so that an engine can begin on them. For started loads
    /// from keys or a hold: `undercroft_task_wait_layer` waits for each.
    pub by_layer: u32,
    /// What the request's lookup answered with.
    pub stamp: u64,
    /// No copy is begun after it, microseconds from the call on. Those that were are waited for.
    pub deadline_us: u64,
}

// SAFETY: numbers and raw pointers.
unsafe impl Grows for UndercroftLoadRequest {
    const NAME: &'static str = "undercroft_load_request";
    const FIRST_BYTES: usize = 80;
}

/// What a load brought.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftLoaded {
    /// `sizeof(undercroft_loaded)`.
    pub size: usize,
    /// Leading pages that lie in their blocks. What is in the other blocks is not to be used.
    pub pages: u32,
    /// Of what the daemon delivered, how many pages it read from SSD.
    pub ssd_pages: u32,
    /// Bytes copied into blocks.
    pub bytes: u64,
    /// Why it was not more: what the call returned.
    pub why: i32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: numbers.
unsafe impl Grows for UndercroftLoaded {
    const NAME: &'static str = "undercroft_loaded";
    const FIRST_BYTES: usize = 32;
}

/// What to store. A field that is zero has its default. It and its arrays are needed during the call only, for a
/// started store too.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftStoreRequest {
    /// `sizeof(undercroft_store_request)`.
    pub size: usize,
    /// Where the blocks lie.
    pub device: *const UndercroftDevice,
    /// `pages` keys of 32 bytes: a run of one chain, in prefix order.
    pub keys: *const u8,
    /// 32 bytes: the key of the page before the first one. Null, and `first` 0: the run starts its chain.
    pub parent: *const u8,
    /// `pages` numbers: page `i` lies in block `blocks[i]`. Null: in block `i`.
    pub blocks: *const u32,
    /// How many pages.
    pub pages: usize,
    /// Distance of the first page from the start of the chain.
    pub first: u32,
    /// Not 0: pages for which no room in staging was free, or that somebody else is storing just now, are offered
    /// again until they are settled or the deadline has come. Otherwise nobody is waited for.
    pub wait_for_credits: u32,
    /// What the request's lookup answered with.
    pub stamp: u64,
    /// It is over by then, microseconds from the call on; a copy that has begun is waited for.
    pub deadline_us: u64,
    /// With `use_after_stream`: a `CUstream` or `cudaStream_t`. What is on it at the time of the call happens
    /// before the blocks are read.
    pub after_stream: *mut c_void,
    /// Not 0: `after_stream` counts. For a GPU only.
    pub use_after_stream: u32,
    /// Must be zero.
    pub reserved: u32,
}

// SAFETY: numbers and raw pointers.
unsafe impl Grows for UndercroftStoreRequest {
    const NAME: &'static str = "undercroft_store_request";
    const FIRST_BYTES: usize = 88;
}

/// What became of the pages of a store. The first nine counts add up to the pages of the request.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftStored {
    /// `sizeof(undercroft_stored)`.
    pub size: usize,
    /// Pages that lookups find from now on.
    pub stored: u32,
    /// Pages that were there already.
    pub held: u32,
    /// Pages that somebody else was storing when the call ended, and may yet give up.
    pub coming: u32,
    /// Declined: no room in staging was free.
    pub declined_credits: u32,
    /// Declined: the page before was in no tier.
    pub declined_parent: u32,
    /// Declined: no room, and nothing older to give up for it.
    pub declined_full: u32,
    /// Declined: the daemon's admission decided against it.
    pub declined_admission: u32,
    /// Pages whose copy failed, here or at the daemon.
    pub failed: u32,
    /// Pages whose fate is unknown: the call ended before they were settled.
    pub unsettled: u32,
    /// Why it ended early: what the call returned.
    pub why: i32,
}

// SAFETY: numbers.
unsafe impl Grows for UndercroftStored {
    const NAME: &'static str = "undercroft_stored";
    const FIRST_BYTES: usize = 48;
}

/// Loads pages into blocks, each as soon as it is ready. Returns when every page is in place, or when the rest
/// will not come; why not goes into the return value, and `loaded` is filled in whatever is returned that is not an
/// error. Until it returns the blocks are the call's alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_load(
    space: *const UndercroftSpace,
    request: *const UndercroftLoadRequest,
    loaded: *mut UndercroftLoaded,
) -> i32 {
    answer("undercroft_load", || {
        // SAFETY: the caller's, as the header says.
        let (plan, out) = unsafe { (LoadPlan::new(space, request)?, Out::new(loaded)?) };
        let (loaded, words) = plan.run();
        Ok(told(out, loaded, loaded.why, words.as_deref()))
    })
}

/// Stores blocks: has those pages copied that the daemon wants. Returns when it has settled all of them, or at the
/// deadline. That a page was declined is no miss: `stored` has the counts, and is filled in whatever is returned
/// that is not an error. Until it returns the blocks must not change.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_store(
    space: *const UndercroftSpace,
    request: *const UndercroftStoreRequest,
    stored: *mut UndercroftStored,
) -> i32 {
    answer("undercroft_store", || {
        // SAFETY: the caller's, as the header says.
        let (plan, out) = unsafe { (StorePlan::new(space, request)?, Out::new(stored)?) };
        let (stored, words) = plan.run();
        Ok(told(out, stored, stored.why, words.as_deref()))
    })
}

/// Fills the caller's struct in, and keeps the words.
pub(crate) fn told<T: Grows>(out: Out<T>, result: T, why: i32, words: Option<&str>) -> i32 {
    out.put(result);
    if let Some(words) = words {
        remember(&words);
    }
    why
}

enum Source {
    Keys(Vec<PageKey>),
    Hold(Arc<Hold>, u32, u32),
    Token(Token),
}

/// A load with all it needs, whoever runs it.
pub(crate) struct LoadPlan {
    space: SpaceHandle,
    copier: Copier,
    source: Source,
    blocks: Vec<BlockId>,
    stamp: Stamp,
    until: Instant,
    pub(crate) by_layer: bool,
}

impl LoadPlan {
    /// # Safety
    /// The handles are as [`strings::handle`], the request as [`grows::read`] and its arrays as
    /// [`strings::items`].
    pub(crate) unsafe fn new(
        space: *const UndercroftSpace,
        request: *const UndercroftLoadRequest,
    ) -> Result<Self, Fault> {
        // SAFETY: the caller's.
        let (space, given) = unsafe { (strings::handle("space", space)?, grows::read(request)?) };
        // SAFETY: the caller's.
        let device = unsafe { strings::handle("request.device", given.device) }?;
        let copier = Copier::of(device);
        same_pages(&space.handle, copier.device())?;
        let most = copier.device().blocks();
        if given.pages > most as usize {
            return Err(too_few_blocks(given.pages, most));
        }
        // SAFETY: the caller's.
        let blocks = unsafe { blocks(given.blocks, given.pages, most) }?;
        if let Some(block) = named_twice(&blocks) {
            return Err(Fault::argument(format!("request.blocks has block {block} twice")));
        }
        Ok(Self {
            space: space.handle.clone(),
            copier,
            // SAFETY: the caller's.
            source: unsafe { source(&given) }?,
            blocks,
            stamp: Stamp(given.stamp),
            until: from_now(given.deadline_us),
            by_layer: given.by_layer != 0,
        })
    }

    pub(crate) fn layers(&self) -> u32 {
        self.space.space().geometry.layers()
    }

    pub(crate) fn run(&self) -> (UndercroftLoaded, Option<String>) {
        let (device, left) = (self.copier.device(), self.left());
        let loaded = match self.from() {
            Ok(from) => self.space.fetch_into(device, from, &self.blocks, self.stamp, left),
            Err(token) => self.space.take_into(device, token, &self.blocks, left),
        };
        outcome_of_load(loaded)
    }

    /// As [`LoadPlan::run`], and tells of each layer how many leading pages have it.
    pub(crate) fn run_by_layer(&self, arrived: &dyn Fn(u32)) -> (UndercroftLoaded, Option<String>) {
        let Ok(from) = self.from() else {
            return self.run();
        };
        let (device, left) = (self.copier.device(), self.left());
        let mut load = self.space.fetch_by_layer(device, from, &self.blocks, self.stamp, left);
        for layer in 0..self.layers() {
            // It ends by the load's own deadline.
            match load.wait_layer(layer, Duration::MAX) {
                Ok(pages) => arrived(pages),
                Err(_) => break,
            }
        }
        outcome_of_load(load.finish())
    }

    fn from(&self) -> Result<FetchFrom<'_>, Token> {
        match &self.source {
            Source::Keys(keys) => Ok(FetchFrom::Keys(keys)),
            Source::Hold(hold, first, count) => Ok(FetchFrom::Hold(hold, *first, *count)),
            Source::Token(token) => Err(*token),
        }
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// # Safety
/// As [`LoadPlan::new`]. There are no more pages than a device has blocks.
unsafe fn source(given: &UndercroftLoadRequest) -> Result<Source, Fault> {
    let (is_keys, is_hold) = (!given.keys.is_null(), !given.hold.is_null());
    let is_token = !given.token.is_null();
    let is_nothing = given.pages == 0 && !is_hold && !is_token;
    if u8::from(is_keys) + u8::from(is_hold) + u8::from(is_token) != 1 && !is_nothing {
        return Err(Fault::argument("exactly one of request.keys, .hold and .token is to be set"));
    }
    if is_hold {
        let count = given.pages as u32;
        // SAFETY: the caller's.
        let hold = unsafe { strings::handle("request.hold", given.hold) }?;
        return Ok(Source::Hold(Arc::clone(&hold.hold), given.hold_first, count));
    }
    if is_token {
        // SAFETY: the caller's.
        return Ok(Source::Token(Token(unsafe { strings::bytes("request.token", given.token) }?)));
    }
    // SAFETY: the caller's.
    Ok(Source::Keys(unsafe { strings::keys(given.keys, given.pages) }?.to_vec()))
}

/// A store with all it needs, whoever runs it.
pub(crate) struct StorePlan {
    space: SpaceHandle,
    copier: Copier,
    parent: Option<PageKey>,
    first: u32,
    keys: Vec<PageKey>,
    blocks: Vec<BlockId>,
    stamp: Stamp,
    until: Instant,
    wait_for_credits: bool,
}

impl StorePlan {
    /// # Safety
    /// As [`LoadPlan::new`].
    pub(crate) unsafe fn new(
        space: *const UndercroftSpace,
        request: *const UndercroftStoreRequest,
    ) -> Result<Self, Fault> {
        // SAFETY: the caller's.
        let (space, given) = unsafe { (strings::handle("space", space)?, grows::read(request)?) };
        // SAFETY: the caller's.
        let device = unsafe { strings::handle("request.device", given.device) }?;
        if given.reserved != 0 {
            return Err(Fault::argument("request.reserved is not 0"));
        }
        if given.parent.is_null() != (given.first == 0) {
            let what = "request.parent and request.first contradict each other: a run with pages \
                        before it has both, one that starts its chain has neither";
            return Err(Fault::argument(what));
        }
        let parent = match given.parent.is_null() {
            true => None,
            // SAFETY: the caller's.
            false => Some(PageKey(unsafe { strings::bytes("request.parent", given.parent) }?)),
        };
        let copier = match given.use_after_stream {
            0 => Copier::of(device),
            // SAFETY: the caller's: it is a stream of the device's context.
            _ => Copier::after(device, unsafe { EngineStream::new(given.after_stream) })?,
        };
        same_pages(&space.handle, copier.device())?;
        // SAFETY: the caller's.
        let blocks = unsafe { blocks(given.blocks, given.pages, copier.device().blocks()) }?;
        if u32::try_from(given.pages).ok().and_then(|n| given.first.checked_add(n)).is_none() {
            return Err(Fault::argument("request.first and .pages are beyond 4294967295"));
        }
        Ok(Self {
            space: space.handle.clone(),
            copier,
            parent,
            first: given.first,
            // SAFETY: the caller's.
            keys: unsafe { strings::keys(given.keys, given.pages) }?.to_vec(),
            blocks,
            stamp: Stamp(given.stamp),
            until: from_now(given.deadline_us),
            wait_for_credits: given.wait_for_credits != 0,
        })
    }

    pub(crate) fn pages(&self) -> u32 {
        self.keys.len() as u32
    }

    pub(crate) fn run(&self) -> (UndercroftStored, Option<String>) {
        let run = StoreRun {
            parent: self.parent,
            first: self.first,
            keys: &self.keys,
            stamp: self.stamp,
        };
        let options = StoreOptions {
            deadline: self.until.saturating_duration_since(Instant::now()),
            wait_for_credits: self.wait_for_credits,
        };
        outcome_of_store(self.space.store(run, self.copier.device(), &self.blocks, options))
    }
}

/// A device of other pages than the space's would take every load for a miss, and nobody would hear of it.
fn same_pages(space: &SpaceHandle, device: &dyn Device) -> Result<(), Fault> {
    let (wanted, found) = (space.space().geometry, device.geometry());
    if found == wanted {
        return Ok(());
    }
    let what = format!("the device's pages are {found:?}, and the space's are {wanted:?}");
    Err(Fault::Argument(what))
}

fn too_few_blocks(pages: usize, most: u32) -> Fault {
    Fault::argument(format!("request.pages is {pages}, and the device has {most} blocks"))
}

/// # Safety
/// As [`strings::items`].
unsafe fn blocks(at: *const u32, pages: usize, most: u32) -> Result<Vec<BlockId>, Fault> {
    if at.is_null() {
        let count = u32::try_from(pages).ok().filter(|count| *count <= most);
        let count = count.ok_or_else(|| too_few_blocks(pages, most))?;
        return Ok((0..count).map(BlockId).collect());
    }
    // SAFETY: the caller's.
    let blocks: &[u32] = unsafe { strings::items("request.blocks", at, pages) }?;
    if let Some(at) = blocks.iter().position(|block| *block >= most) {
        let found = blocks[at];
        let what = format!("request.blocks[{at}] is {found}, and the device has {most} blocks");
        return Err(Fault::Argument(what));
    }
    Ok(blocks.iter().map(|block| BlockId(*block)).collect())
}

fn named_twice(blocks: &[BlockId]) -> Option<u32> {
    let mut numbers: Vec<u32> = blocks.iter().map(|block| block.0).collect();
    numbers.sort_unstable();
    numbers.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

fn from_now(microseconds: u64) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + time(microseconds).min(YEAR)
}

pub(crate) fn outcome_of_load(loaded: Loaded) -> (UndercroftLoaded, Option<String>) {
    let words = words(loaded.why, loaded.fault.as_ref());
    let told = UndercroftLoaded {
        size: 0,
        pages: loaded.pages,
        ssd_pages: loaded.ssd_pages,
        bytes: loaded.bytes,
        why: loaded.why.map_or(UNDERCROFT_OK, code),
        reserved: 0,
    };
    (told, words)
}

pub(crate) fn outcome_of_store(stored: Stored) -> (UndercroftStored, Option<String>) {
    let words = words(stored.why, stored.fault.as_ref());
    let told = UndercroftStored {
        size: 0,
        stored: stored.stored,
        held: stored.held,
        coming: stored.coming,
        declined_credits: stored.declined.credits,
        declined_parent: stored.declined.parent,
        declined_full: stored.declined.full,
        declined_admission: stored.declined.admission,
        failed: stored.failed,
        unsettled: stored.unsettled,
        why: stored.why.map_or(UNDERCROFT_OK, code),
    };
    (told, words)
}

fn words(why: Option<MissReason>, fault: Option<&DeviceError>) -> Option<String> {
    match (why, fault) {
        (Some(why), Some(fault)) => Some(format!("{why}: {fault}")),
        (Some(why), None) => Some(why.to_string()),
        (None, _) => None,
    }
}
