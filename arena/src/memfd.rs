use crate::ArenaError;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const NAME: &str = "undercroft-arena";
/// No holder of a descriptor can make a mapping of it fault: it neither shrinks nor grows, and
/// nobody can add seals that would lock the owner out.
const SEALS: SealFlags = SealFlags::from_bits_retain(
    SealFlags::SHRINK.bits() | SealFlags::GROW.bits() | SealFlags::SEAL.bits(),
);

/// Creates a sealed memfd of `bytes` bytes that only its owner may open again.
pub(crate) fn create(bytes: u64, hugetlb: bool) -> Result<OwnedFd, ArenaError> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if hugetlb {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let fd = match rustix::fs::memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 the flag is unknown.
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        other => other,
    }
    .map_err(ArenaError::system("create a memfd", bytes))?;
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)
        .map_err(ArenaError::system("set the mode of a memfd", bytes))?;
    rustix::fs::ftruncate(&fd, bytes).map_err(ArenaError::system("size a memfd", bytes))?;
    rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(ArenaError::system("seal a memfd", bytes))?;
    Ok(fd)
}

/// Whether the kernel makes no memfd that can never be run as a program.
pub(crate) fn is_refused_noexec() -> bool {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    matches!(rustix::fs::memfd_create(NAME, flags), Err(Errno::INVAL))
}

/// Opens the same memory once more, unable to write: a descriptor fit to be handed out.
pub(crate) fn reopen_read_only(fd: &OwnedFd, bytes: u64) -> Result<OwnedFd, ArenaError> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(ArenaError::system("open a memfd read-only through /proc/self/fd", bytes))
}

/// Whether the file can neither shrink nor grow, for ever.
pub(crate) fn is_sealed(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SEALS))
}

/// Checks a descriptor against what was announced for it and returns how many bytes to map:
/// `bytes` rounded up to the file's own page size.
pub(crate) fn check(fd: impl AsFd, bytes: u64) -> Result<u64, ArenaError> {
    if is_sealed(&fd) { check_size(fd, bytes) } else { Err(ArenaError::NotSealed) }
}

/// As [`check`], of a file whose size is known not to change.
pub(crate) fn check_size(fd: impl AsFd, bytes: u64) -> Result<u64, ArenaError> {
    let stat = rustix::fs::fstat(&fd).map_err(ArenaError::system("inspect a descriptor", bytes))?;
    let found = u64::try_from(stat.st_size).unwrap_or(0);
    let expected = bytes.checked_next_multiple_of(page_bytes(&fd, &stat));
    if bytes == 0 || expected != Some(found) {
        return Err(ArenaError::WrongSize { found, expected: bytes });
    }
    Ok(found)
}

/// What the size of a file is a multiple of. The block size of ordinary shared memory says how
/// large its pages may become, not how large they must be.
fn page_bytes(fd: impl AsFd, stat: &rustix::fs::Stat) -> u64 {
    let reserved = is_hugetlb(fd);
    if reserved { u64::try_from(stat.st_blksize).unwrap_or(0).max(4096) } else { 4096 }
}

/// Whether the file consists of reserved huge pages.
pub(crate) fn is_hugetlb(fd: impl AsFd) -> bool {
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    is_on(fd, HUGETLBFS_MAGIC)
}

/// Whether the file is ordinary shared memory.
pub(crate) fn is_tmpfs(fd: impl AsFd) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    is_on(fd, TMPFS_MAGIC)
}

fn is_on(fd: impl AsFd, magic: u64) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|system| u64::try_from(system.f_type).ok() == Some(magic))
}
