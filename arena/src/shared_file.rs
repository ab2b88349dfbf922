use crate::mount::{check_pair, is_read_only};
use crate::{ArenaError, FileId, memfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Memory that the daemon writes and others may be given to read.
#[derive(Debug)]
pub(crate) struct SharedFile {
    fd: OwnedFd,
    /// Of a file on a mount: it cannot be made again.
    read_only: Option<OwnedFd>,
    bytes: u64,
}

impl SharedFile {
    /// A sealed memfd of `bytes` bytes.
    pub(crate) fn memfd(bytes: u64, hugetlb: bool) -> Result<Self, ArenaError> {
        Ok(Self { fd: memfd::create(bytes, hugetlb)?, read_only: None, bytes })
    }

    /// A file on a mount, and what reads it.
    pub(crate) fn mounted(fd: OwnedFd, read_only: OwnedFd, bytes: u64) -> Self {
        Self { fd, read_only: Some(read_only), bytes }
    }

    /// One that an earlier daemon left, for `bytes` usable bytes. Returns also its real size.
    pub(crate) fn adopt(
        fd: OwnedFd,
        read_only: Option<OwnedFd>,
        bytes: u64,
    ) -> Result<(Self, u64), ArenaError> {
        let sealed = memfd::is_sealed(&fd);
        match &read_only {
            _ if sealed => {}
            Some(read_only) if is_shared_memory(&fd) => check_pair(&fd, read_only)?,
            _ => return Err(ArenaError::NotSealed),
        }
        let whole = memfd::check_size(&fd, bytes)?;
        let read_only = read_only.filter(|_| !sealed);
        Ok((Self { fd, read_only, bytes: whole }, whole))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn is_hugetlb(&self) -> bool {
        memfd::is_hugetlb(&self.fd)
    }

    /// Whether nobody else can open it for writing, whatever his rights.
    pub(crate) fn is_protected(&self) -> bool {
        self.read_only.is_some()
    }

    pub(crate) fn id(&self) -> Result<FileId, ArenaError> {
        FileId::of(&self.fd)
    }

    /// A descriptor fit to be handed out.
    pub(crate) fn read_only_fd(&self) -> Result<OwnedFd, ArenaError> {
        match &self.read_only {
            None => memfd::reopen_read_only(&self.fd, self.bytes),
            Some(fd) => fd.try_clone().map_err(|source| ArenaError::System {
                what: "duplicate a descriptor",
                bytes: self.bytes,
                source,
            }),
        }
    }
}

/// Checks a descriptor that a client received for `bytes` usable bytes and returns how many there
/// are: memory that could shrink would make its mapping fault. So it is sealed, or a file without
/// name on a mount through which nobody can write.
pub(crate) fn check_received(fd: impl AsFd, bytes: u64) -> Result<u64, ArenaError> {
    let fd = fd.as_fd();
    if !memfd::is_sealed(fd) {
        let unnamed = || rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink == 0);
        if !is_shared_memory(fd) || !is_read_only(fd)? || !unnamed() {
            return Err(ArenaError::NotSealed);
        }
    }
    memfd::check_size(fd, bytes)
}

fn is_shared_memory(fd: impl AsFd) -> bool {
    memfd::is_tmpfs(&fd) || memfd::is_hugetlb(&fd)
}
