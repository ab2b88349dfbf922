//! The file of a page log, open for reading only.

use super::InspectError;
use crate::storage::{Storage, block_memory};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use undercroft_arena::Span;

/// A regular file that cannot be written to through this.
#[derive(Debug)]
pub(super) struct Medium {
    file: File,
    owner: u32,
}

impl Medium {
    /// Opens it past the page cache where that is possible: what is looked at is the medium.
    pub(super) fn open(path: &Path) -> Result<Self, InspectError> {
        let failed = |source| InspectError::Open { path: path.into(), source };
        let not_a_file = || InspectError::NotAFile { path: path.into() };
        // Whatever else it is, the first transfer would fail in some way of its own.
        if !path.metadata().map_err(failed)?.is_file() {
            return Err(not_a_file());
        }
        let refused = Errno::INVAL.raw_os_error();
        let file = match Self::open_direct(path) {
            Err(error) if error.raw_os_error() == Some(refused) => {
                Self::open_with(path, OFlags::empty())
            }
            result => result,
        };
        let file = file.map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        // The name may have come to mean something else meanwhile.
        if !facts.is_file() {
            return Err(not_a_file());
        }
        Ok(Self { file, owner: facts.uid() })
    }

    fn open_with(path: &Path, flags: OFlags) -> io::Result<File> {
        // A pipe would wait for somebody to write to it.
        let flags = (flags | OFlags::NONBLOCK).bits() as i32;
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    }

    fn open_direct(path: &Path) -> io::Result<File> {
        let file = Self::open_with(path, OFlags::DIRECT)?;
        // Some file systems take the flag and refuse the transfer.
        let block = block_memory(1).map_err(io::Error::other)?;
        block.write(|bytes| file.read_at(bytes, 0))?;
        Ok(file)
    }

    /// The user it belongs to.
    pub(super) fn owner(&self) -> u32 {
        self.owner
    }

    /// Takes the shared lock; false if a daemon has the other one.
    pub(super) fn lock(&self) -> io::Result<bool> {
        self.flock(FlockOperation::NonBlockingLockShared)
    }

    /// Gives the lock back.
    pub(super) fn unlock(&self) -> io::Result<()> {
        self.flock(FlockOperation::Unlock).map(drop)
    }

    fn flock(&self, operation: FlockOperation) -> io::Result<bool> {
        loop {
            match rustix::fs::flock(&self.file, operation) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Storage for Medium {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &Span) -> io::Result<usize> {
        into.write(|bytes| self.file.read_at(bytes, offset))
    }

    fn write_at(&self, _offset: u64, _from: &Span) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}
