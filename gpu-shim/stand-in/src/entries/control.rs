//! How a test speaks with the stand-in. None of these fails at random, and none needs `cuInit`.

use crate::Code;
use crate::calls::Call;
use crate::report::Report;
use crate::settings::Setting;
use crate::state::Held;
use crate::stream::Fate;
use std::ffi::{CStr, c_char};

/// What a control function answers when it did not understand.
const REFUSED: i32 = -1;

/// Drops everything, as if the library had just been loaded, but for `cuInit`: what waits on streams
/// never starts, what runs is waited for, and settings, plans and counts are new.
#[unsafe(no_mangle)]
extern "C" fn stand_in_reset() {
    Held::lock().reset();
}

/// Sets what kind of driver this is. 0, or -1 for a name that [`Setting`] does not have.
///
/// # Safety
/// `name` is a text that ends in NUL.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_set(name: *const c_char, value: u64) -> i32 {
    // SAFETY: the caller answers for its text.
    let Some(setting) = unsafe { text(name) }.and_then(Setting::from_name) else {
        return REFUSED;
    };
    let mut held = Held::lock();
    held.settings.set(setting, value);
    held.changed();
    0
}

/// From the `nth` call of that name on (1 is the next), `times` of them do nothing but answer
/// `code`. 0, or -1 for a name that is no call.
///
/// # Safety
/// `call` is a text that ends in NUL.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_fail(call: *const c_char, nth: u64, code: i32, times: u64) -> i32 {
    // SAFETY: the caller answers for its text.
    let Some(call) = unsafe { text(call) }.and_then(Call::from_name) else {
        return REFUSED;
    };
    Held::lock().failures.plan(call, nth, Code(code), times);
    0
}

/// The `nth` operation that starts from now on (1 is the next; copies, batches and kernels count)
/// fails with `code`. Sticky (not 0): nothing of it is done, what waits on the context's streams never
/// starts, and every call on the context answers the code, but those that destroy, push and pop. Not sticky:
/// half of what it should have written is garbage, and whoever waits for something queued after it
/// learns the code, until somebody has: what is queued after that is clean.
#[unsafe(no_mangle)]
extern "C" fn stand_in_fail_operation(nth: u64, code: i32, sticky: i32) {
    let fate = Fate { code: Code(code), sticky: sticky != 0 };
    Held::lock().failures.plan_operation(nth, fate);
}

/// From now on `per_million` of a million calls fail with a code that is plausible for them, and as
/// many operations, not sticky; `sticky_per_million` operations kill their context. The calls that
/// wait or look tell of operations only. Those that destroy are spared unless `destroying` is not 0: then they do
/// what they do and answer a code nevertheless. Nothing fails any more if both shares are 0.
#[unsafe(no_mangle)]
extern "C" fn stand_in_chaos(
    seed: u64,
    per_million: u64,
    sticky_per_million: u64,
    destroying: i32,
) {
    let mut held = Held::lock();
    held.failures.set_chance(seed, per_million, sticky_per_million, destroying != 0);
}

/// Writes the report.
///
/// # Safety
/// `report` is where one may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_report(report: *mut Report) {
    let found = Held::lock().report_of(None);
    // SAFETY: the caller answers for its pointer.
    unsafe { report.write(found) };
}

/// How often the call of that name was made, whatever it answered; 0 for a name that is none.
///
/// # Safety
/// `call` is a text that ends in NUL.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_calls(call: *const c_char) -> u64 {
    // SAFETY: the caller answers for its text.
    let call = unsafe { text(call) }.and_then(Call::from_name);
    call.map_or(0, |call| Held::lock().counts.calls(call))
}

/// Copies what is known of a violation, by number from 0, into `buffer`, without a NUL and cut to
/// `room` bytes. How long the text is; 0 if there is none of that number.
///
/// # Safety
/// `room` bytes may be written at `buffer`.
#[unsafe(no_mangle)]
unsafe extern "C" fn stand_in_violation(index: usize, buffer: *mut u8, room: usize) -> usize {
    let held = Held::lock();
    let Some(text) = held.violations.get(index) else {
        return 0;
    };
    // SAFETY: the caller answers for as many bytes.
    unsafe { buffer.copy_from_nonoverlapping(text.as_ptr(), text.len().min(room)) };
    text.len()
}

/// # Safety
/// `at` is null or a text that ends in NUL and is not written meanwhile.
unsafe fn text<'a>(at: *const c_char) -> Option<&'a str> {
    if at.is_null() {
        return None;
    }
    // SAFETY: the caller answers for its text.
    unsafe { CStr::from_ptr(at) }.to_str().ok()
}
