//! How calls end, and how that is told in words.

#![expect(unsafe_code, reason = "exported by name, for C")]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use thiserror::Error;
use undercroft_client::{ConnectError, MissReason, OpenError};
use undercroft_gpu_shim::DeviceError;

/// The version of this ABI. It grows when functions or fields are added; what is here stays.
pub const UNDERCROFT_ABI_VERSION: u32 = 1;

/// All of what was asked for.
pub const UNDERCROFT_OK: i32 = 0;
/// No tier holds the page.
pub const UNDERCROFT_MISS_ABSENT: i32 = 1;
/// No daemon is connected, or the connection was lost during the call.
pub const UNDERCROFT_MISS_DISCONNECTED: i32 = 2;
/// The call's deadline passed.
pub const UNDERCROFT_MISS_DEADLINE: i32 = 3;
/// An earlier call's deadline passed and the daemon has shown no sign of life since. It was not asked.
pub const UNDERCROFT_MISS_HUNG: i32 = 4;
/// The page changed while it was copied.
pub const UNDERCROFT_MISS_CHANGED: i32 = 5;
/// The daemon refused the request.
pub const UNDERCROFT_MISS_REFUSED: i32 = 6;
/// The daemon has not opened the space in this session.
pub const UNDERCROFT_MISS_NOT_OPEN: i32 = 7;
/// This process was forked from the one that connected. It must connect anew.
pub const UNDERCROFT_MISS_FORKED: i32 = 8;
/// The daemon has no frame or slot to deliver it in.
pub const UNDERCROFT_MISS_FULL: i32 = 9;
/// Its record on SSD did not prove itself, or a blob is not what was stored.
pub const UNDERCROFT_MISS_DAMAGED: i32 = 10;
/// The hold is gone, or the arguments contradict each other.
pub const UNDERCROFT_MISS_INVALID: i32 = 11;
/// It was given up before it was delivered: a task that was cancelled.
pub const UNDERCROFT_MISS_RELEASED: i32 = 12;
/// Too many calls of this client wait for an answer, or too many tasks for a thread.
pub const UNDERCROFT_MISS_BUSY: i32 = 13;
/// The run is longer than one request may be, or a blob is longer than the memory for it.
pub const UNDERCROFT_MISS_TOO_LONG: i32 = 14;
/// The device could not copy the page.
pub const UNDERCROFT_MISS_DEVICE: i32 = 15;
/// Other bytes are kept under the blob's key, all of them, and stay.
pub const UNDERCROFT_MISS_TAKEN: i32 = 16;
/// Computing it is faster than loading it, as far as the daemon can tell.
pub const UNDERCROFT_MISS_SLOWER: i32 = 17;
/// A reason that this header does not know.
pub const UNDERCROFT_MISS_OTHER: i32 = 99;
/// Not a miss: a task is not over yet.
pub const UNDERCROFT_PENDING: i32 = 100;

/// An argument is wrong: a null pointer, a number out of range, a struct without its size.
pub const UNDERCROFT_ERROR_ARGUMENT: i32 = -1;
/// There is no connection, and one was insisted on.
pub const UNDERCROFT_ERROR_CONNECT: i32 = -2;
/// The daemon refused the space, or did not answer.
pub const UNDERCROFT_ERROR_OPEN: i32 = -3;
/// The device cannot be made, or failed.
pub const UNDERCROFT_ERROR_DEVICE: i32 = -4;
/// A bug in this library. The process goes on, and so may the caller.
pub const UNDERCROFT_ERROR_INTERNAL: i32 = -5;

/// Every reason with its number and its name.
const MISSES: &[(i32, &CStr)] = &[
    (UNDERCROFT_OK, c"ok"),
    (UNDERCROFT_MISS_ABSENT, c"absent"),
    (UNDERCROFT_MISS_DISCONNECTED, c"disconnected"),
    (UNDERCROFT_MISS_DEADLINE, c"deadline"),
    (UNDERCROFT_MISS_HUNG, c"hung"),
    (UNDERCROFT_MISS_CHANGED, c"changed"),
    (UNDERCROFT_MISS_REFUSED, c"refused"),
    (UNDERCROFT_MISS_NOT_OPEN, c"not_open"),
    (UNDERCROFT_MISS_FORKED, c"forked"),
    (UNDERCROFT_MISS_FULL, c"full"),
    (UNDERCROFT_MISS_DAMAGED, c"damaged"),
    (UNDERCROFT_MISS_INVALID, c"invalid"),
    (UNDERCROFT_MISS_RELEASED, c"released"),
    (UNDERCROFT_MISS_BUSY, c"busy"),
    (UNDERCROFT_MISS_TOO_LONG, c"too_long"),
    (UNDERCROFT_MISS_DEVICE, c"device"),
    (UNDERCROFT_MISS_TAKEN, c"taken"),
    (UNDERCROFT_MISS_SLOWER, c"slower"),
    (UNDERCROFT_MISS_OTHER, c"other"),
    (UNDERCROFT_PENDING, c"pending"),
    (UNDERCROFT_ERROR_ARGUMENT, c"argument"),
    (UNDERCROFT_ERROR_CONNECT, c"connect"),
    (UNDERCROFT_ERROR_OPEN, c"open"),
    (UNDERCROFT_ERROR_DEVICE, c"device failed"),
    (UNDERCROFT_ERROR_INTERNAL, c"internal"),
];

/// Why a call is an error.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    /// A wrong argument, in words.
    #[error("{0}")]
    Argument(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("a bug in this library: {0}")]
    Internal(&'static str),
}

impl Fault {
    pub(crate) fn argument(what: impl Into<String>) -> Self {
        Self::Argument(what.into())
    }

    fn code(&self) -> i32 {
        match self {
            Self::Argument(_) => UNDERCROFT_ERROR_ARGUMENT,
            Self::Connect(_) => UNDERCROFT_ERROR_CONNECT,
            Self::Open(_) => UNDERCROFT_ERROR_OPEN,
            Self::Device(_) => UNDERCROFT_ERROR_DEVICE,
            Self::Internal(_) => UNDERCROFT_ERROR_INTERNAL,
        }
    }
}

/// The number of a reason.
pub(crate) fn code(why: MissReason) -> i32 {
    match why {
        MissReason::Absent => UNDERCROFT_MISS_ABSENT,
        MissReason::Disconnected => UNDERCROFT_MISS_DISCONNECTED,
        MissReason::Deadline => UNDERCROFT_MISS_DEADLINE,
        MissReason::Hung => UNDERCROFT_MISS_HUNG,
        MissReason::Changed => UNDERCROFT_MISS_CHANGED,
        MissReason::Refused(_) => UNDERCROFT_MISS_REFUSED,
        MissReason::NotOpen => UNDERCROFT_MISS_NOT_OPEN,
        MissReason::Forked => UNDERCROFT_MISS_FORKED,
        MissReason::Full => UNDERCROFT_MISS_FULL,
        MissReason::Damaged => UNDERCROFT_MISS_DAMAGED,
        MissReason::Invalid => UNDERCROFT_MISS_INVALID,
        MissReason::Released => UNDERCROFT_MISS_RELEASED,
        MissReason::Busy => UNDERCROFT_MISS_BUSY,
        MissReason::TooLong => UNDERCROFT_MISS_TOO_LONG,
        MissReason::Device => UNDERCROFT_MISS_DEVICE,
        MissReason::Taken => UNDERCROFT_MISS_TAKEN,
        MissReason::Slower => UNDERCROFT_MISS_SLOWER,
        _ => UNDERCROFT_MISS_OTHER,
    }
}

/// A call's number for how it ended; in words it is this thread's last error.
pub(crate) fn miss(why: Option<MissReason>) -> i32 {
    why.map_or(UNDERCROFT_OK, |why| {
        remember(&why);
        code(why)
    })
}

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Keeps the words for `undercroft_last_error`.
pub(crate) fn remember(words: &dyn fmt::Display) {
    let mut words = words.to_string().into_bytes();
    words.retain(|byte| *byte != 0);
    let Ok(words) = CString::new(words) else {
        return;
    };
    // A thread that is ending has nobody left to ask.
    let _ending = LAST.try_with(|last| last.replace(Some(words)));
}

/// Runs an exported function's body: what is wrong becomes a number and words, and a panic ends
/// here.
pub(crate) fn answer(call: &str, body: impl FnOnce() -> Result<i32, Fault>) -> i32 {
    let before = LAST.try_with(RefCell::take).ok().flatten();
    // What a body leaves half done is behind locks that are not poisoned, or its own.
    let outcome = match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(fault)) => {
            remember(&format_args!("{call}: {fault}"));
            fault.code()
        }
        Err(_) => {
            remember(&format_args!("{call}: a bug in this library: it panicked"));
            UNDERCROFT_ERROR_INTERNAL
        }
    };
    let is_told = LAST.try_with(|last| last.borrow().is_some()).unwrap_or(true);
    match outcome {
        _ if is_told => {}
        // The words are those of the last call that has some to say.
        UNDERCROFT_OK => drop(LAST.try_with(|last| last.replace(before))),
        _ => remember(&format_args!("{call}: {}", name_of(outcome).to_string_lossy())),
    }
    outcome
}

/// Runs the body of a function that answers nothing.
pub(crate) fn quietly(call: &str, body: impl FnOnce()) {
    let _told = answer(call, || {
        body();
        Ok(UNDERCROFT_OK)
    });
}

/// The ABI version of the library that is linked, to hold against `UNDERCROFT_ABI_VERSION` of the header.
#[unsafe(no_mangle)]
pub extern "C" fn undercroft_abi_version() -> u32 {
    UNDERCROFT_ABI_VERSION
}

/// The library's own version, as "0.1.0". It stays for ever.
#[unsafe(no_mangle)]
pub extern "C" fn undercroft_version() -> *const c_char {
    static VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// A short name for what a call returned, as "absent" or "deadline". It stays for ever; never null.
#[unsafe(no_mangle)]
pub extern "C" fn undercroft_outcome_name(outcome: i32) -> *const c_char {
    name_of(outcome).as_ptr()
}

fn name_of(outcome: i32) -> &'static CStr {
    let known = MISSES.iter().find(|(code, _)| *code == outcome);
    known.map_or(c"unknown", |(_, name)| *name)
}

/// In words, why this thread's last call that did not return `UNDERCROFT_OK` did not: what was found, and
/// what is allowed. Never null; valid until this thread calls this library again.
#[unsafe(no_mangle)]
pub extern "C" fn undercroft_last_error() -> *const c_char {
    let last = LAST.try_with(|last| last.borrow().as_ref().map(|words| words.as_ptr()));
    last.ok().flatten().unwrap_or(c"".as_ptr())
}
