//! The functions of the library: `cu…` as `cuda.h` declares them, and `stand_in_…` for tests.
#![expect(unsafe_code, reason = "a C interface: names and pointers are as callers have them")]

mod capture;
mod context;
mod control;
mod copy;
mod device;
mod memory;
mod module;
mod stream;

use crate::Code;

/// Answers through a pointer.
///
/// # Safety
/// `at` is null or where a `T` may be written.
unsafe fn put<T>(at: *mut T, value: T) -> Result<(), Code> {
    if at.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller answers for `at`.
    unsafe { at.write(value) };
    Ok(())
}

/// Refuses flags that there are not.
fn check_flags(flags: u32, known: u32) -> Result<(), Code> {
    if flags & !known == 0 { Ok(()) } else { Err(Code::INVALID_VALUE) }
}
