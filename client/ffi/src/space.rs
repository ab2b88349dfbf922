//! Spaces: what pages are asked of.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::client::UndercroftClient;
use crate::grows::{self, Grows, Out};
use crate::keys::{self, UndercroftFamily, UndercroftGeometry};
use crate::outcome::{Fault, UNDERCROFT_OK, answer, miss, quietly};
use crate::strings::{self, Place, time};
use std::sync::Arc;
use std::time::Duration;
use undercroft_client::{MissReason, SpaceHandle, TaskPool};
use undercroft_wire::{HintKind, PageKey, Rank, Space};

/// The conversation is in use now.
pub const UNDERCROFT_HINT_ACTIVE: u32 = 1;
/// It waits for its user or a tool.
pub const UNDERCROFT_HINT_PAUSED: u32 = 2;
/// It will not go on.
pub const UNDERCROFT_HINT_ENDED: u32 = 3;
/// It is expected to go on after `after_us`.
pub const UNDERCROFT_HINT_EXPECTED: u32 = 4;
/// Keep it for `after_us`.
pub const UNDERCROFT_HINT_PIN: u32 = 5;
/// Give its DRAM up first.
pub const UNDERCROFT_HINT_DEMOTE: u32 = 6;

/// The identity under which keys mean something, in a client. It stays valid over lost connections. Any number
/// of threads may use it at once.
pub struct UndercroftSpace {
    pub(crate) handle: SpaceHandle,
    pub(crate) pool: Arc<TaskPool>,
}

/// Which space to open.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftSpaceOptions {
    /// `sizeof(undercroft_space_options)`.
    pub size: usize,
    /// What all shards share.
    pub family: *const UndercroftFamily,
    /// The shape of a page.
    pub geometry: UndercroftGeometry,
    /// Which shard of `rank_count`, from 0.
    pub rank_index: u16,
    /// How many shards there are; 0: the pages are the same on every rank.
    pub rank_count: u16,
    /// Which KV-cache group of a hybrid model; 0 where there is one.
    pub group: u32,
    /// The key of the first page of the probe prefix, token ids 1, 2, 3 ... `page_tokens`, as this process's
    /// hash names it: 32 bytes. A space of which others have told another one is refused, as neither would
    /// find the other's pages. Null: not told. Keys of `undercroft_keys_from_tokens` need none.
    pub probe: *const u8,
}

// SAFETY: numbers and raw pointers.
unsafe impl Grows for UndercroftSpaceOptions {
    const NAME: &'static str = "undercroft_space_options";
    const FIRST_BYTES: usize = 64;
}

/// What a prefetch set in motion.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftPrefetched {
    /// `sizeof(undercroft_prefetched)`.
    pub size: usize,
    /// Pages that are in DRAM already.
    pub resident: u32,
    /// Pages that are being read.
    pub started: u32,
}

// SAFETY: numbers.
unsafe impl Grows for UndercroftPrefetched {
    const NAME: &'static str = "undercroft_prefetched";
    const FIRST_BYTES: usize = 16;
}

/// Opens a space, now and again in every later session. It goes to `space`; free it with
/// `undercroft_space_free`.
///
/// Where nobody insisted on a daemon (`wait_us` of 0), a space is handed out even if the daemon is not there or
/// does not answer in time, which takes the deadline to find out (0 to wait for nobody); what is asked of it
/// misses until it is open. Otherwise `UNDERCROFT_ERROR_OPEN`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_space_open(
    client: *const UndercroftClient,
    options: *const UndercroftSpaceOptions,
    deadline_us: u64,
    space: *mut *mut UndercroftSpace,
) -> i32 {
    answer("undercroft_space_open", || {
        // SAFETY: the caller's, as the header says.
        unsafe { strings::clear(space) };
        // SAFETY: as above.
        let client = unsafe { strings::handle("client", client) }?;
        // SAFETY: as above.
        let (given, place) = unsafe { (grows::read(options)?, Place::new("space", space)?) };
        let rank = match given.rank_count {
            0 => Rank::Shared,
            count => Rank::Of { index: given.rank_index, count },
        };
        // SAFETY: as above.
        let family = unsafe { keys::family(given.family) }?;
        let geometry = given.geometry.check()?;
        let identity = Space { family, rank, group: given.group, geometry };
        identity.validate().map_err(|error| Fault::argument(error.to_string()))?;
        if client.is_foreign() {
            return Ok(miss(Some(MissReason::Forked)));
        }
        let probe = match given.probe.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(PageKey(unsafe { strings::bytes("probe", given.probe) }?)),
        };
        let deadline = time(deadline_us);
        let handle = client.client.open_probed_space(&identity, probe, deadline)?;
        let pool = Arc::clone(&client.pool);
        place.put(Box::into_raw(Box::new(UndercroftSpace { handle, pool })));
        Ok(UNDERCROFT_OK)
    })
}

/// Frees a space. Null is allowed. Tasks started in it go on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_space_free(space: *mut UndercroftSpace) {
    quietly("undercroft_space_free", || {
        if !space.is_null() {
            // SAFETY: the caller's, as the header says: it is ours, and is not used again.
            drop(unsafe { Box::from_raw(space) });
        }
    });
}

/// `UNDERCROFT_OK` if the space is open in the session of the moment, else why not. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_space_is_open(space: *const UndercroftSpace) -> i32 {
    answer("undercroft_space_is_open", || {
        // SAFETY: the caller's, as the header says.
        let space = unsafe { strings::handle("space", space) }?;
        Ok(miss(space.handle.check_open().err()))
    })
}

/// Says what computing one page anew costs, nanoseconds, when the engine does little else; 0: not known, as at
/// first. The daemon weighs lookups and loads of the space against it from the next call on. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_space_set_recompute(
    space: *const UndercroftSpace,
    page_ns: u64,
) -> i32 {
    answer("undercroft_space_set_recompute", || {
        // SAFETY: the caller's, as the header says.
        let space = unsafe { strings::handle("space", space) }?;
        space.handle.set_recompute(Duration::from_nanos(page_ns));
        Ok(UNDERCROFT_OK)
    })
}

/// Lifts pages towards DRAM ahead of need, to stay there for about `ttl_us`. `keys` are `count` keys of one
/// chain from its start. What was set in motion goes to `prefetched`, which may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_prefetch(
    space: *const UndercroftSpace,
    keys: *const u8,
    count: usize,
    ttl_us: u64,
    deadline_us: u64,
    prefetched: *mut UndercroftPrefetched,
) -> i32 {
    answer("undercroft_prefetch", || {
        // SAFETY: the caller's, as the header says.
        let (space, keys) =
            unsafe { (strings::handle("space", space)?, strings::keys(keys, count)?) };
        let out = match prefetched.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { Out::new(prefetched) }?),
        };
        let found = space.handle.prefetch(keys, time(ttl_us), time(deadline_us));
        if let Some(out) = out {
            let found = found.unwrap_or_default();
            let undercroft_client::Prefetched { resident, started } = found;
            out.put(UndercroftPrefetched { size: 0, resident, started });
        }
        Ok(miss(found.err()))
    })
}

/// Tells the daemon about the conversation whose pages, or last pages, are `keys`. `kind` is one of
/// `UNDERCROFT_HINT_*`; `after_us` has a meaning for two of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_hint(
    space: *const UndercroftSpace,
    keys: *const u8,
    count: usize,
    kind: u32,
    after_us: u64,
    deadline_us: u64,
) -> i32 {
    answer("undercroft_hint", || {
        // SAFETY: the caller's, as the header says.
        let (space, keys) =
            unsafe { (strings::handle("space", space)?, strings::keys(keys, count)?) };
        let after_ms = u32::try_from(after_us.div_ceil(1000)).unwrap_or(u32::MAX);
        let kind = match kind {
            UNDERCROFT_HINT_ACTIVE => HintKind::Active,
            UNDERCROFT_HINT_PAUSED => HintKind::Paused,
            UNDERCROFT_HINT_ENDED => HintKind::Ended,
            UNDERCROFT_HINT_EXPECTED => HintKind::ExpectedInMs(after_ms),
            UNDERCROFT_HINT_PIN => HintKind::PinMs(after_ms),
            UNDERCROFT_HINT_DEMOTE => HintKind::Demote,
            _ => {
                let what = format!("kind is {kind}, allowed UNDERCROFT_HINT_* (1 to 6)");
                return Err(Fault::Argument(what));
            }
        };
        Ok(miss(space.handle.hint(keys, kind, time(deadline_us)).err()))
    })
}
