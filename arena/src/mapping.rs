#![expect(
    unsafe_code,
    reason = "mapping memory is a raw system call; the only mmap of the workspace"
)]

use crate::memfd;
use memmap2::{MmapOptions, MmapRaw};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Size of a huge page on every machine this runs on (x86-64, and arm64 with 4 KiB base pages).
pub(crate) const HUGE_BYTES: usize = 2 << 20;

/// One mapping, unmapped on drop. It starts at a multiple of [`HUGE_BYTES`] when it is at least
/// that long.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// What unmaps it.
    _owner: Owner,
}

#[derive(Debug)]
#[expect(dead_code, reason = "what is in them is only ever dropped")]
enum Owner {
    /// Too short for a huge page: wherever the kernel puts it.
    Anywhere(MmapRaw),
    /// Placed by us: the kernel aligns shared memory only where huge pages are its default, and a
    /// mapping that is out of step with its file can never use them.
    Aligned(Aligned),
    /// Somebody else: it is not unmapped here.
    Lender,
}

/// A range of addresses that starts at a multiple of [`HUGE_BYTES`].
#[derive(Debug)]
struct Aligned {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address range of the process, not of a thread; nothing in it is bound
// to the thread that made it. Who may touch its bytes is the contract in the crate's head.
unsafe impl Send for Mapping {}
// SAFETY: as above; every method that takes `&self` is a system call or returns a raw pointer.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from its start, shared. `len` is a multiple of the file's page size.
    pub(crate) fn shared(fd: BorrowedFd<'_>, len: usize, writable: bool) -> Result<Self, Errno> {
        if len < HUGE_BYTES {
            let options = options(len);
            let file = fd.as_raw_fd();
            let map =
                if writable { options.map_raw(file) } else { options.map_raw_read_only(file) };
            return map.map_err(|e| errno(&e)).and_then(Self::anywhere);
        }
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        if memfd::is_hugetlb(fd) {
            // The kernel aligns reserved huge pages by itself, and refuses them where it has none.
            // SAFETY: no address is asked for, so nothing existing is replaced.
            let base =
                unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0)? };
            let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
            return Ok(Self::aligned(Aligned { base, len }));
        }
        let none = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let reserved = Aligned::anonymous(len, ProtFlags::empty(), none)?;
        let at = reserved.base.as_ptr().cast::<c_void>();
        // SAFETY: `at..at + len` is the reservation made above: mapped by us, used by nobody, and
        // replaced as a whole.
        let placed =
            unsafe { rustix::mm::mmap(at, len, prot, MapFlags::SHARED | MapFlags::FIXED, fd, 0) };
        match placed {
            Ok(_) => Ok(Self::aligned(reserved)),
            Err(errno) => {
                // The kernel may have taken the reservation away before it failed, and another
                // thread may have mapped something there since: it is not ours to unmap any more.
                // What is left of it is addresses without memory.
                std::mem::forget(reserved);
                Err(errno)
            }
        }
    }

    /// Maps `len` bytes of private zeroed memory.
    pub(crate) fn anonymous(len: usize) -> Result<Self, Errno> {
        if len < HUGE_BYTES {
            let map = options(len).map_anon().map_err(|e| errno(&e))?;
            return Self::anywhere(map.into());
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        Aligned::anonymous(len, prot, MapFlags::PRIVATE).map(Self::aligned)
    }

    /// Memory that is mapped by somebody else, who keeps it.
    pub(crate) fn lent(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, _owner: Owner::Lender }
    }

    fn anywhere(map: MmapRaw) -> Result<Self, Errno> {
        let base = NonNull::new(map.as_mut_ptr()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len: map.len(), _owner: Owner::Anywhere(map) })
    }

    fn aligned(range: Aligned) -> Self {
        Self { base: range.base, len: range.len, _owner: Owner::Aligned(range) }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn at(&self, range: &Range<usize>) -> (*mut c_void, usize) {
        assert!(range.start <= range.end && range.end <= self.len, "range inside the mapping");
        // SAFETY: the assertion above keeps the pointer inside the mapping.
        let start = unsafe { self.base.as_ptr().add(range.start) };
        (start.cast(), range.end - range.start)
    }

    /// All of it as words. Of memory that this process cannot write they are only loaded, relaxed.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping starts at a page boundary, is as long, and lives as long as `self`.
        // Its file is sealed against shrinking or ours alone, so it never faults. Any bytes are a
        // valid word. All access to memory that is reached this way is atomic.
        unsafe { slice::from_raw_parts(self.base.as_ptr().cast(), self.len / size_of::<u64>()) }
    }

    /// All of it as words half as long; as [`Mapping::words`].
    pub(crate) fn half_words(&self) -> &[AtomicU32] {
        // SAFETY: as in `words`. No word is reached as a whole and in halves.
        unsafe { slice::from_raw_parts(self.base.as_ptr().cast(), self.len / size_of::<u32>()) }
    }

    /// All of it as bytes; as [`Mapping::words`].
    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: as in `words`. No byte is reached as itself and as part of a word.
        unsafe { slice::from_raw_parts(self.base.as_ptr().cast(), self.len) }
    }

    /// Leaves the whole mapping out of core dumps.
    pub(crate) fn keep_out_of_dumps(&self) -> Result<(), Errno> {
        self.advise(&(0..self.len), Advice::LinuxDontDump)
    }

    /// Allows huge pages where the kernel leaves the choice to the process.
    pub(crate) fn allow_huge(&self) -> Result<(), Errno> {
        self.advise(&(0..self.len), Advice::LinuxHugepage)
    }

    /// Forbids huge pages.
    pub(crate) fn forbid_huge(&self) -> Result<(), Errno> {
        self.advise(&(0..self.len), Advice::LinuxNoHugepage)
    }

    /// Faults every page of `range` in, for writing or only for reading.
    pub(crate) fn populate(&self, range: &Range<usize>, write: bool) -> Result<(), Errno> {
        let advice = if write { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
        self.advise(range, advice)
    }

    fn advise(&self, range: &Range<usize>, advice: Advice) -> Result<(), Errno> {
        let (start, len) = self.at(range);
        // SAFETY: the range is inside the mapping, and the advice given by this module changes no
        // byte of it.
        retry(|| unsafe { rustix::mm::madvise(start, len, advice) })
    }

    /// Makes `range` one run of huge pages, at once and whatever the system's settings for shared
    /// memory are (Linux 6.1). At least one page of each must be present.
    pub(crate) fn collapse(&self, range: &Range<usize>) -> Result<(), Errno> {
        let (start, len) = self.at(range);
        retry(|| {
            // SAFETY: the range is inside the mapping; collapsing moves bytes, it changes none.
            let rc = unsafe { libc::madvise(start, len, libc::MADV_COLLAPSE) };
            if rc == 0 { Ok(()) } else { Err(last_errno()) }
        })
    }

    /// Keeps the mapping in memory.
    pub(crate) fn lock(&self) -> Result<(), Errno> {
        // SAFETY: the range is the mapping.
        unsafe { rustix::mm::mlock(self.base.as_ptr().cast(), self.len) }
    }
}

impl Aligned {
    /// Maps `len` bytes without a file.
    fn anonymous(len: usize, prot: ProtFlags, flags: MapFlags) -> Result<Self, Errno> {
        let whole = len.checked_add(HUGE_BYTES).ok_or(Errno::NOMEM)?;
        // SAFETY: no address is asked for, so nothing existing is replaced.
        let start = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), whole, prot, flags)? };
        let start = start.cast::<u8>();
        let head = start.align_offset(HUGE_BYTES);
        // SAFETY: `head <= HUGE_BYTES`, so all three ranges lie inside what was just mapped; nobody
        // knows its address yet.
        unsafe {
            if head > 0 {
                rustix::mm::munmap(start.cast(), head)?;
            }
            let base = start.add(head);
            if head < HUGE_BYTES {
                rustix::mm::munmap(base.add(len).cast(), HUGE_BYTES - head)?;
            }
            Ok(Self { base: NonNull::new(base).ok_or(Errno::NOMEM)?, len })
        }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: the range is ours alone and every `Span` into it keeps its region, and so its
        // mapping, alive; so nothing refers to it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own range: {unmapped:?}");
    }
}

fn options(len: usize) -> MmapOptions {
    let mut options = MmapOptions::new();
    options.len(len);
    options
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::INVAL)
}

fn last_errno() -> Errno {
    errno(&std::io::Error::last_os_error())
}

/// Populating and collapsing give up early when a signal or a shortage of a moment comes between.
fn retry(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    const TRIES: u32 = 8;
    for _ in 1..TRIES {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
    call()
}
