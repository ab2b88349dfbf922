//! Lookups and holds.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::client::UndercroftClient;
use crate::grows::{Grows, Out};
use crate::keys::bytes_at;
use crate::outcome::{Fault, UNDERCROFT_OK, answer, code, miss, quietly};
use crate::space::UndercroftSpace;
use crate::strings::{self, Place, time};
use std::ptr;
use std::sync::Arc;
use undercroft_client::wire::MAX_SPACES_PER_LOOKUP;
use undercroft_client::{Hold, LookupOptions, SpaceHandle, Token};

/// Bytes of a token with which a hold is handed to another process.
pub const UNDERCROFT_TOKEN_BYTES: usize = 16;

/// A promise that what a lookup found stays until it is fetched or the promise has expired. Any number of
/// threads may load under it at once.
pub struct UndercroftHold {
    pub(crate) hold: Arc<Hold>,
}

/// What a lookup found.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftFound {
    /// `sizeof(undercroft_found)`.
    pub size: usize,
    /// Leading pages that every space asked about holds; where the daemon enforces its cost model, of these no
    /// more than are worth loading.
    pub pages: u32,
    /// Of these, how many are in DRAM in every space.
    pub dram: u32,
    /// Of these, how many must be read from SSD in at least one space.
    pub ssd: u32,
    /// Why it was not more: what the call returned.
    pub why: i32,
    /// The request's place in the daemon's order, for its loads and stores.
    pub stamp: u64,
    /// Estimated time until all found pages are in DRAM, microseconds.
    pub estimate_us: u64,
    /// The hold, if one was asked for and anything was found, else null. The caller's: free it with
    /// `undercroft_hold_free`. It may be null although pages were found, where the tenant holds as much as it may:
    /// load them by their keys then.
    pub hold: *mut UndercroftHold,
    /// Leading pages that are there, whether or not they are worth loading.
    pub present: u32,
    /// Leading pages that are worth loading, as far as the daemon can tell.
    pub worth: u32,
    /// Estimated time to copy all found pages out of DRAM, microseconds.
    pub copy_us: u64,
}

// SAFETY: numbers and raw pointers.
unsafe impl Grows for UndercroftFound {
    const NAME: &'static str = "undercroft_found";
    const FIRST_BYTES: usize = 48;
}

/// Finds the longest run of leading pages that all these spaces hold: the ranks and groups of one family, opened
/// by this client. `spaces` are `n_spaces` handles, `keys` are `n_keys` keys of one chain from its start.
///
/// With `hold_us` nothing of what was found is evicted until the hold is freed or that long has passed, or as long as
/// the daemon lets a hold last (`policy.max_hold_ms`); 0 for no hold. The answer is there by the deadline, or it is a miss. Returns why not all was found; `found` is filled
/// in whatever is returned that is not an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_lookup(
    client: *const UndercroftClient,
    spaces: *const *const UndercroftSpace,
    n_spaces: usize,
    keys: *const u8,
    n_keys: usize,
    hold_us: u64,
    deadline_us: u64,
    found: *mut UndercroftFound,
) -> i32 {
    answer("undercroft_lookup", || {
        // SAFETY: the caller's, as the header says.
        let (client, out) = unsafe { (strings::handle("client", client)?, Out::new(found)?) };
        // SAFETY: as above.
        let keys = unsafe { strings::keys(keys, n_keys) }?;
        if !(1..=MAX_SPACES_PER_LOOKUP).contains(&n_spaces) {
            let what = format!("n_spaces is {n_spaces}, allowed 1 to {MAX_SPACES_PER_LOOKUP}");
            return Err(Fault::Argument(what));
        }
        // SAFETY: as above.
        let spaces = unsafe { strings::items("spaces", spaces, n_spaces) }?;
        let spaces: Vec<&SpaceHandle> = spaces
            .iter()
            // SAFETY: as above.
            .map(|space| unsafe { strings::handle("a space", *space) }.map(|space| &space.handle))
            .collect::<Result<_, _>>()?;
        if let Some(at) = spaces.iter().position(|space| !space.is_of(&client.client)) {
            return Err(Fault::argument(format!("spaces[{at}] was opened by another client")));
        }
        let hold = (hold_us > 0).then(|| time(hold_us));
        let options =
            LookupOptions { hold, deadline: time(deadline_us), ..LookupOptions::default() };
        let all = client.client.lookup_family(&spaces, keys, options);
        let why = miss(all.why);
        out.put(UndercroftFound {
            size: 0,
            pages: all.pages,
            dram: all.dram,
            ssd: all.ssd,
            why: all.why.map_or(UNDERCROFT_OK, code),
            stamp: all.stamp.0,
            estimate_us: all.estimate.as_micros() as u64,
            hold: all.hold.map_or(ptr::null_mut(), handed_out),
            present: all.present,
            worth: all.worth,
            copy_us: all.copy.as_micros() as u64,
        });
        Ok(why)
    })
}

fn handed_out(hold: Hold) -> *mut UndercroftHold {
    Box::into_raw(Box::new(UndercroftHold { hold: Arc::new(hold) }))
}

/// How many pages are held, counted from the start of the lookup's keys; 0 for null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_hold_pages(hold: *const UndercroftHold) -> u32 {
    // SAFETY: the caller's, as the header says.
    unsafe { hold.as_ref() }.map_or(0, |hold| hold.hold.pages())
}

/// Gives the hold back and frees it. Null is allowed. Loads under way under it go on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_hold_free(hold: *mut UndercroftHold) {
    quietly("undercroft_hold_free", || {
        if !hold.is_null() {
            // SAFETY: the caller's, as the header says: it is ours, and is not used again.
            drop(unsafe { Box::from_raw(hold) });
        }
    });
}

/// Makes a token with which one other process of the same tenant can take the hold over, once, within the time a
/// hold may last. Writes 16 bytes to `token`. Keep the hold until the other side has it; then free it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_hold_give(
    hold: *const UndercroftHold,
    deadline_us: u64,
    token: *mut u8,
) -> i32 {
    answer("undercroft_hold_give", || {
        // SAFETY: the caller's, as the header says.
        let (hold, place) = unsafe { (strings::handle("hold", hold)?, bytes_at("token", token)?) };
        match hold.hold.give(time(deadline_us)) {
            Ok(Token(bytes)) => {
                place.put(bytes);
                Ok(UNDERCROFT_OK)
            }
            Err(why) => Ok(miss(Some(why))),
        }
    })
}

/// Takes over a hold that another process gave, by its token of 16 bytes. It goes to `hold`; free it with
/// `undercroft_hold_free`. `UNDERCROFT_MISS_REFUSED` if the token is no hold's, was used or has expired.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_hold_take(
    client: *const UndercroftClient,
    token: *const u8,
    deadline_us: u64,
    hold: *mut *mut UndercroftHold,
) -> i32 {
    answer("undercroft_hold_take", || {
        // SAFETY: the caller's, as the header says.
        unsafe { strings::clear(hold) };
        // SAFETY: as above.
        let client = unsafe { strings::handle("client", client) }?;
        // SAFETY: as above.
        let (token, place) =
            unsafe { (strings::bytes("token", token)?, Place::new("hold", hold)?) };
        match client.client.take_hold(Token(token), time(deadline_us)) {
            Ok(taken) => {
                place.put(handed_out(taken));
                Ok(UNDERCROFT_OK)
            }
            Err(why) => Ok(miss(Some(why))),
        }
    })
}
