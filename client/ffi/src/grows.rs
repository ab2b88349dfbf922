//! Structs that can grow: the first field of each is its size in the caller's header.

#![expect(unsafe_code, reason = "pointers come from C")]

use crate::outcome::Fault;
use std::mem::{MaybeUninit, size_of};
use std::ptr;

/// Bytes that no struct of any later version will have.
const ABSURD: usize = 4096;

/// A struct whose first field is its size.
///
/// # Safety
/// It is `repr(C)`, its first field is a `usize`, and every pattern of bytes is a value of it. Its
/// fields lie without gaps and end at a multiple of 8 bytes, in every version: callers leave padding
/// as it is, and here it would be a field that is set and not known.
pub(crate) unsafe trait Grows: Copy {
    /// What the header calls it.
    const NAME: &'static str;
    /// Its size in ABI version 1, where each of its fields is held to its place by
    /// `tests/version1.c`.
    const FIRST_BYTES: usize;
    /// Whether it can be what it says.
    const IS_SOUND: bool = size_of::<Self>() >= Self::FIRST_BYTES
        && Self::FIRST_BYTES.is_multiple_of(8)
        && size_of::<Self>().is_multiple_of(8);
}

/// A struct of the caller's to be written to.
pub(crate) struct Out<T> {
    to: *mut T,
    bytes: usize,
}

/// Reads what the caller filled in. What an older header lacks is zero.
///
/// # Safety
/// `from` is null, or points to as many readable bytes as its first field says.
pub(crate) unsafe fn read<T: Grows>(from: *const T) -> Result<T, Fault> {
    // SAFETY: the caller's.
    let bytes = unsafe { size(from) }?;
    let mut value = MaybeUninit::<T>::zeroed();
    let known = bytes.min(size_of::<T>());
    // SAFETY: both sides have at least `known` bytes, and they are apart.
    unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), value.as_mut_ptr().cast(), known) };
    for at in known..bytes {
        // SAFETY: the caller's struct has `bytes` bytes.
        if unsafe { from.cast::<u8>().add(at).read() } != 0 {
            return Err(Fault::argument(format!(
                "a field of {} that this library does not know is set, at byte {at}: the header \
                 is newer than the library",
                T::NAME
            )));
        }
    }
    // SAFETY: every pattern of bytes is a value.
    Ok(unsafe { value.assume_init() })
}

impl<T: Grows> Out<T> {
    /// Looks at a struct that is to be written to.
    ///
    /// # Safety
    /// `to` is null, or points to as many writable bytes as its first field says, until the last
    /// use of what is returned.
    pub(crate) unsafe fn new(to: *mut T) -> Result<Self, Fault> {
        // SAFETY: the caller's.
        let bytes = unsafe { size(to.cast_const()) }?;
        Ok(Self { to, bytes })
    }

    /// Writes it, but for its size. What a newer header has beyond it becomes zero.
    pub(crate) fn put(self, value: T) {
        let head = size_of::<usize>();
        let known = self.bytes.min(size_of::<T>());
        let (from, to) = (ptr::from_ref(&value).cast::<u8>(), self.to.cast::<u8>());
        // SAFETY: `from` has at least `known` bytes, `to` has `bytes`, and neither is less than
        // the first version's, which has a size.
        unsafe {
            ptr::copy_nonoverlapping(from.add(head), to.add(head), known - head);
            ptr::write_bytes(to.add(known), 0, self.bytes - known);
        }
    }
}

/// # Safety
/// `at` is null or points to a readable `usize`.
unsafe fn size<T: Grows>(at: *const T) -> Result<usize, Fault> {
    const { assert!(T::IS_SOUND) };
    if at.is_null() {
        return Err(Fault::argument(format!("{} is null", T::NAME)));
    }
    // SAFETY: the caller's, and the first field is a `usize`.
    let bytes = unsafe { at.cast::<usize>().read() };
    if (T::FIRST_BYTES..=ABSURD).contains(&bytes) {
        return Ok(bytes);
    }
    Err(Fault::argument(format!(
        "the size of {} is {bytes}, allowed {} to {ABSURD}: set it to sizeof({})",
        T::NAME,
        T::FIRST_BYTES,
        T::NAME
    )))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    /// Version 1 had `size` and `first`.
    #[repr(C)]
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Sample {
        size: usize,
        first: u64,
        second: u64,
    }

    // SAFETY: numbers only.
    unsafe impl Grows for Sample {
        const NAME: &'static str = "sample";
        const FIRST_BYTES: usize = 16;
    }

    #[test]
    fn an_older_callers_struct_is_read_and_written_within_its_bounds() {
        let mut old = [16usize, 7, 99];
        let at = old.as_mut_ptr().cast::<Sample>();
        // SAFETY: it has the 16 bytes that it says, and 8 more.
        let read = unsafe { read(at.cast_const()) }.unwrap();
        assert_eq!(read, Sample { size: 16, first: 7, second: 0 });
        // SAFETY: as above.
        let out = unsafe { Out::new(at) }.unwrap();
        out.put(Sample { size: 0, first: 1, second: 2 });
        assert_eq!(old, [16, 1, 99]);
    }

    #[test]
    fn a_newer_callers_struct_is_taken_while_it_asks_for_nothing_new() {
        let mut new = [32usize, 7, 8, 0];
        let at = new.as_mut_ptr().cast::<Sample>();
        // SAFETY: it has the 32 bytes that it says.
        assert_eq!(unsafe { read(at.cast_const()) }.unwrap().second, 8);
        new[3] = 1;
        let at = new.as_mut_ptr().cast::<Sample>();
        // SAFETY: as above.
        let told = unsafe { read(at.cast_const()) }.unwrap_err().to_string();
        assert!(told.contains("newer") && told.contains("byte 24"), "{told}");
        // SAFETY: as above.
        unsafe { Out::new(at) }.unwrap().put(Sample { size: 0, first: 1, second: 2 });
        assert_eq!(new, [32, 1, 2, 0]);
    }

    #[test]
    fn a_struct_without_its_size_is_refused_by_name() {
        for bytes in [0usize, 15, 4097] {
            let sample = Sample { size: bytes, first: 0, second: 0 };
            // SAFETY: only its size is read before it is refused.
            let told = unsafe { read(&raw const sample) }.unwrap_err().to_string();
            assert!(told.contains("sizeof(sample)") && told.contains(&bytes.to_string()), "{told}");
        }
        // SAFETY: null is allowed for.
        let told = unsafe { read(ptr::null::<Sample>()) }.unwrap_err().to_string();
        assert_eq!(told, "sample is null");
    }
}
