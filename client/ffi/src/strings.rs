//! What C hands over: text, arrays, handles, times.

#![expect(unsafe_code, reason = "pointers come from C")]

use crate::outcome::Fault;
use std::ffi::{CStr, c_char};
use std::ptr::{self, NonNull};
use std::slice;
use std::time::Duration;
use undercroft_wire::PageKey;

/// The text at `at`, or `default` for null.
///
/// # Safety
/// `at` is null or points to bytes that end with a zero and stay as they are during the call.
pub(crate) unsafe fn text(what: &str, at: *const c_char, default: &str) -> Result<String, Fault> {
    if at.is_null() {
        return Ok(default.to_owned());
    }
    // SAFETY: the caller's.
    let text = unsafe { CStr::from_ptr(at) }.to_str();
    text.map(str::to_owned).map_err(|_| Fault::argument(format!("{what} is not UTF-8")))
}

/// The items at `at`; null is allowed for where there are none.
///
/// # Safety
/// `at` is null or points to `count` readable items, which nobody changes during `'a`.
pub(crate) unsafe fn items<'a, T>(
    what: &str,
    at: *const T,
    count: usize,
) -> Result<&'a [T], Fault> {
    if count == 0 {
        return Ok(&[]);
    }
    if at.is_null() {
        return Err(Fault::argument(format!("{what} is null, and there are {count}")));
    }
    if !at.is_aligned() || count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Fault::argument(format!("{what} is no array of {count} items")));
    }
    // SAFETY: it is not null, is aligned, no longer than memory can be, and the rest is the
    // caller's.
    Ok(unsafe { slice::from_raw_parts(at, count) })
}

/// `count` keys of 32 bytes each.
///
/// # Safety
/// As [`items`], of 32 bytes each.
pub(crate) unsafe fn keys<'a>(at: *const u8, count: usize) -> Result<&'a [PageKey], Fault> {
    // SAFETY: a key is 32 bytes and nothing else; the rest is the caller's.
    unsafe { items("keys", at.cast::<PageKey>(), count) }
}

/// `N` bytes.
///
/// # Safety
/// `at` is null or points to `N` readable bytes.
pub(crate) unsafe fn bytes<const N: usize>(what: &str, at: *const u8) -> Result<[u8; N], Fault> {
    if at.is_null() {
        return Err(Fault::argument(format!("{what} is null, {N} bytes are needed")));
    }
    // SAFETY: the caller's; bytes have no alignment.
    Ok(unsafe { at.cast::<[u8; N]>().read() })
}

/// What a handle stands for.
///
/// # Safety
/// `at` is null, or was handed out by this library as such a handle and not freed until after `'a`.
pub(crate) unsafe fn handle<'a, T>(what: &str, at: *const T) -> Result<&'a T, Fault> {
    // SAFETY: the caller's.
    unsafe { at.as_ref() }.ok_or_else(|| Fault::argument(format!("{what} is null")))
}

/// Where a call writes a handle or a number.
pub(crate) struct Place<T>(NonNull<T>);

impl<T> Place<T> {
    /// # Safety
    /// `at` is null or may be written to, whatever is there, until the last use of what is returned.
    pub(crate) unsafe fn new(what: &str, at: *mut T) -> Result<Self, Fault> {
        let place = NonNull::new(at).map(Self);
        place.ok_or_else(|| Fault::argument(format!("{what} is null")))
    }

    pub(crate) fn put(self, value: T) {
        // SAFETY: whoever made it vouches for it.
        unsafe { self.0.write(value) };
    }
}

/// A handle's place has null until there is a handle: whoever frees it in any case, frees that.
///
/// # Safety
/// As [`Place::new`].
pub(crate) unsafe fn clear<T>(at: *mut *mut T) {
    if let Some(at) = NonNull::new(at) {
        // SAFETY: the caller's.
        unsafe { at.write(ptr::null_mut()) };
    }
}

pub(crate) fn time(microseconds: u64) -> Duration {
    Duration::from_micros(microseconds)
}
