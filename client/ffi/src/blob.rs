//! Bytes of any length under one key.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::grows::Out;
use crate::outcome::{Fault, UNDERCROFT_MISS_TOO_LONG, answer, miss, remember};
use crate::space::UndercroftSpace;
use crate::strings::{self, Place, time};
use crate::transfer::{UndercroftStored, outcome_of_store};
use std::ffi::c_void;
use std::slice;
use std::time::Instant;
use undercroft_client::StoreOptions;
use undercroft_client::wire::PageKey;

/// Stores bytes of any length under a key of 32 bytes: the state of a sequence, say, that an engine hands out in one
/// piece (`llama_state_seq_get_data`). They are cut into pages of the space and kept as a chain of them.
///
/// `UNDERCROFT_OK` if they can be loaded from now on, `UNDERCROFT_MISS_FULL` if a page of them was declined, else why
/// not. `UNDERCROFT_MISS_TAKEN` if other bytes are under the key: they stay, and can be loaded, and these are not
/// stored. The key must say what the bytes are, as `undercroft_keys_from_tokens` with all tokens as one page does. It is
/// the key of no page: both may be in one space. The counts of pages go to `stored`, which may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_blob_store(
    space: *const UndercroftSpace,
    key: *const u8,
    bytes: *const c_void,
    length: usize,
    deadline_us: u64,
    stored: *mut UndercroftStored,
) -> i32 {
    answer("undercroft_blob_store", || {
        // SAFETY: the caller's, as the header says.
        let (space, key) =
            unsafe { (strings::handle("space", space)?, strings::bytes("key", key)?) };
        // SAFETY: as above.
        let bytes: &[u8] = unsafe { strings::items("bytes", bytes.cast(), length) }?;
        let out = match stored.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { Out::new(stored) }?),
        };
        let options = StoreOptions { deadline: time(deadline_us), wait_for_credits: true };
        let stored = space.handle.store_blob(PageKey(key), bytes, options);
        let (told, words) = outcome_of_store(stored);
        if let Some(out) = out {
            out.put(told);
        }
        if let Some(words) = words {
            remember(&words);
        }
        Ok(told.why)
    })
}

/// Loads what `undercroft_blob_store` stored under a key into memory with room for `capacity` bytes. All of it, as it
/// was stored, or nothing: one page that is missing is a miss, and what lies in the memory then is not to be used.
///
/// How long it is goes to `length`, also where it is too long for the memory: then `UNDERCROFT_MISS_TOO_LONG` is
/// returned, and a `capacity` of 0 asks for the length alone. 0 where nothing was found. `UNDERCROFT_MISS_DAMAGED` if
/// the bytes are not those that were stored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_blob_load(
    space: *const UndercroftSpace,
    key: *const u8,
    into: *mut c_void,
    capacity: usize,
    deadline_us: u64,
    length: *mut usize,
) -> i32 {
    answer("undercroft_blob_load", || {
        // SAFETY: the caller's, as the header says.
        let (space, key) =
            unsafe { (strings::handle("space", space)?, strings::bytes("key", key)?) };
        // SAFETY: as above.
        let place = unsafe { Place::new("length", length) }?;
        if into.is_null() && capacity > 0 {
            return Err(Fault::argument(format!("into is null, and capacity {capacity}")));
        }
        let began = Instant::now();
        let deadline = time(deadline_us);
        let blob = match space.handle.find_blob(PageKey(key), deadline) {
            Ok(blob) => blob,
            Err(why) => {
                place.put(0);
                return Ok(miss(Some(why)));
            }
        };
        // It is bounded by what one request may name, which memory can have.
        let bytes = blob.len() as usize;
        place.put(bytes);
        if bytes > capacity {
            remember(&format_args!("the blob has {bytes} bytes, and there is room for {capacity}"));
            return Ok(UNDERCROFT_MISS_TOO_LONG);
        }
        let into: &mut [u8] = match bytes {
            0 => &mut [],
            // SAFETY: as above: there is room for `capacity` bytes, which nobody else touches.
            _ => unsafe { slice::from_raw_parts_mut(into.cast(), bytes) },
        };
        let left = deadline.saturating_sub(began.elapsed());
        Ok(miss(blob.load(into, left).err()))
    })
}
