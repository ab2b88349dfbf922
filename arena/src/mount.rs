use crate::{ArenaError, memfd};
use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// What files are called for the moment that they have a name.
const PREFIX: &str = "undercroft-";
const HUGE_BYTES: u64 = crate::mapping::HUGE_BYTES as u64;

/// A directory of shared memory that nobody but the daemon reaches, and the same directory through
/// a read-only bind mount.
///
/// A descriptor that was opened through a read-only mount stays so whoever holds it: opening it
/// again goes through the same mount, where not even root may write. A memfd has no mount, and
/// whoever may override its mode opens it for writing.
#[derive(Debug)]
pub struct Mount {
    writable: OwnedFd,
    read_only: OwnedFd,
    hugetlb: bool,
    /// Whether it has a size of its own.
    can_fill: bool,
}

impl Mount {
    /// Takes the directory `dir`, on tmpfs or hugetlbfs (of 2 MiB pages), and `read_only`, the same
    /// one through a read-only bind mount. It must be this user's and closed to all others. What a
    /// daemon that was killed left in it is removed.
    ///
    /// # Errors
    /// Two directories that are not so.
    pub fn new(dir: OwnedFd, read_only: OwnedFd) -> Result<Self, ArenaError> {
        let odd = |what| ArenaError::Mount { what };
        let inspect = || ArenaError::system("inspect a mount", 0);
        let stat = rustix::fs::fstat(&dir).map_err(inspect())?;
        let other = rustix::fs::fstat(&read_only).map_err(inspect())?;
        if (stat.st_dev, stat.st_ino) != (other.st_dev, other.st_ino) {
            return Err(odd("the other directory is not a bind mount of it"));
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(odd("it is not this user's alone: its mode must be 0700"));
        }
        if is_read_only(&dir)? || !is_read_only(&read_only)? {
            return Err(odd("it must be writable, and the other directory read-only"));
        }
        let hugetlb = memfd::is_hugetlb(&dir);
        if !hugetlb && !memfd::is_tmpfs(&dir) {
            return Err(odd("it is neither on tmpfs nor on hugetlbfs"));
        }
        let facts = rustix::fs::fstatvfs(&dir).map_err(inspect())?;
        if hugetlb && facts.f_bsize != HUGE_BYTES {
            return Err(odd("its huge pages are not of 2 MiB"));
        }
        let mount = Self { writable: dir, read_only, hugetlb, can_fill: facts.f_blocks > 0 };
        mount.sweep()?;
        Ok(mount)
    }

    /// Whether it gives reserved huge pages.
    #[must_use]
    pub fn is_hugetlb(&self) -> bool {
        self.hugetlb
    }

    /// Removes the names of files whose daemon was killed before it could: no descriptor of them is
    /// in the store yet.
    fn sweep(&self) -> Result<(), ArenaError> {
        let failed = || ArenaError::system("sweep a mount", 0);
        for entry in rustix::fs::Dir::read_from(&self.writable).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if entry.file_name().to_bytes().starts_with(PREFIX.as_bytes()) {
                self.unlink(entry.file_name())?;
            }
        }
        Ok(())
    }

    fn unlink(&self, name: impl rustix::path::Arg) -> Result<(), ArenaError> {
        match rustix::fs::unlinkat(&self.writable, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(ArenaError::system("unlink a file of a mount", 0)(errno)),
        }
    }

    /// Makes a file of `bytes` bytes without a name: the descriptor that writes, and one that
    /// never can. With `reserve` its memory is taken at once, where the mount could run out of it.
    pub(crate) fn create(
        &self,
        bytes: u64,
        reserve: bool,
    ) -> Result<(OwnedFd, OwnedFd), ArenaError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", process::id());
        let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let new = flags | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = rustix::fs::openat(&self.writable, &name, new, Mode::RUSR | Mode::WUSR)
            .map_err(ArenaError::system("create a file on a mount", bytes))?;
        let read_only =
            rustix::fs::openat(&self.read_only, &name, flags | OFlags::RDONLY, Mode::empty())
                .map_err(ArenaError::system("open a file through a read-only mount", bytes));
        self.unlink(&name)?;
        let read_only = read_only?;
        rustix::fs::ftruncate(&fd, bytes)
            .map_err(ArenaError::system("size a file of a mount", bytes))?;
        if reserve && self.can_fill {
            rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, bytes)
                .map_err(ArenaError::system("reserve a file of a mount", bytes))?;
        }
        check_pair(&fd, &read_only)?;
        Ok((fd, read_only))
    }
}

/// Checks that both descriptors are of one file that has no name, and that no holder of the second
/// can write it, whatever his rights.
pub(crate) fn check_pair(fd: &OwnedFd, read_only: &OwnedFd) -> Result<(), ArenaError> {
    let inspect = || ArenaError::system("inspect a descriptor", 0);
    let stat = rustix::fs::fstat(fd).map_err(inspect())?;
    let other = rustix::fs::fstat(read_only).map_err(inspect())?;
    let access = rustix::fs::fcntl_getfl(read_only).map_err(inspect())? & OFlags::ACCMODE;
    let unprotected = |what| Err(ArenaError::Unprotected { what });
    if (stat.st_dev, stat.st_ino) != (other.st_dev, other.st_ino) {
        return unprotected("the two descriptors are of two files");
    }
    if stat.st_nlink != 0 || stat.st_mode & 0o077 != 0 {
        return unprotected("the file has a name or is not its owner's alone");
    }
    if access != OFlags::RDONLY || !is_read_only(read_only)? {
        return unprotected("the descriptor was not opened through a read-only mount");
    }
    let path = format!("/proc/self/fd/{}", read_only.as_raw_fd());
    match rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => unprotected("the descriptor can be opened again for writing"),
        Err(Errno::ROFS) => Ok(()),
        Err(_) => unprotected("it cannot be told whether the descriptor can be opened for writing"),
    }
}

/// Whether what is reached through this descriptor's mount cannot be written.
pub(crate) fn is_read_only(fd: impl AsFd) -> Result<bool, ArenaError> {
    let mount = rustix::fs::fstatvfs(fd).map_err(ArenaError::system("inspect a mount", 0))?;
    Ok(mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}
