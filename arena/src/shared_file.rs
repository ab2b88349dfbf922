use crate::{ArenaError, FileId, memfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Memory that the daemon writes and others may be given to read.
#[derive(Debug)]
pub(crate) struct SharedFile {
    fd: OwnedFd,
    bytes: u64,
}

impl SharedFile {
    /// A sealed memfd of `bytes` bytes.
    pub(crate) fn memfd(bytes: u64, hugetlb: bool) -> Result<Self, ArenaError> {
        Ok(Self { fd: memfd::create(bytes, hugetlb)?, bytes })
    }

    /// One that an earlier daemon left, for `bytes` usable bytes. Returns also its real size.
    pub(crate) fn adopt(
        fd: OwnedFd,
        _read_only: Option<OwnedFd>,
        bytes: u64,
    ) -> Result<(Self, u64), ArenaError> {
        let whole = memfd::check(&fd, bytes)?;
        Ok((Self { fd, bytes: whole }, whole))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn is_hugetlb(&self) -> bool {
        memfd::is_hugetlb(&self.fd)
    }

    pub(crate) fn id(&self) -> Result<FileId, ArenaError> {
        FileId::of(&self.fd)
    }

    /// A descriptor fit to be handed out.
    pub(crate) fn read_only_fd(&self) -> Result<OwnedFd, ArenaError> {
        memfd::reopen_read_only(&self.fd, self.bytes)
    }
}

/// Checks a descriptor that a client received for `bytes` usable bytes and returns how many there
/// are: memory that could shrink would make its mapping fault.
pub(crate) fn check_received(fd: impl AsFd, bytes: u64) -> Result<u64, ArenaError> {
    memfd::check(fd, bytes)
}
