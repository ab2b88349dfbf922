//! The seam to the medium: positional, blocking transfers of whole blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::OpenError;
use crate::format::BLOCK;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use undercroft_arena::{ArenaError, Memory, Span};

/// How long to wait for a lock that a dying process may still hold.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// A medium of fixed length. Offsets, lengths and addresses are multiples of 4096.
pub trait Storage: Send + Sync {
    /// Its length, bytes.
    fn bytes(&self) -> io::Result<u64>;
    /// Reads into the span; may be short.
    fn read_at(&self, offset: u64, into: &Span) -> io::Result<usize>;
    /// Writes the span; may be short.
    fn write_at(&self, offset: u64, from: &Span) -> io::Result<usize>;
    /// Returns when what was written before is on the medium.
    fn flush(&self) -> io::Result<()>;
    /// Gives it this length, with every byte of it reserved.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
}

/// Memory for `blocks` blocks, aligned for direct transfers.
pub(crate) fn block_memory(blocks: u64) -> Result<Span, ArenaError> {
    let bytes = blocks * BLOCK;
    Memory::new(bytes, 0)?.span(0, bytes as usize)
}

/// Reads the whole span, or as much of it as lies before the end; the rest becomes zero.
pub(crate) fn read_padded(storage: &dyn Storage, offset: u64, into: &Span) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        let rest = into.sub(done, into.len() - done).map_err(io::Error::other)?;
        match storage.read_at(offset + done as u64, &rest) {
            Ok(n) if n > 0 && n.is_multiple_of(BLOCK as usize) => done += n,
            Ok(n) => {
                rest.write(|bytes| bytes[n..].fill(0));
                return Ok(());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes the whole span.
pub(crate) fn write_whole(storage: &dyn Storage, offset: u64, from: &Span) -> io::Result<()> {
    let mut done = 0;
    while done < from.len() {
        let rest = from.sub(done, from.len() - done).map_err(io::Error::other)?;
        match storage.write_at(offset + done as u64, &rest) {
            Ok(n) if n > 0 && n.is_multiple_of(BLOCK as usize) => done += n,
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether an open file may be a page log: a regular one, of nobody who could forge pages. Pages are
/// prompts, and without encryption a record proves that it is whole, not who wrote it.
pub(crate) fn check(file: &File, path: &Path) -> Result<(), OpenError> {
    let facts = file.metadata().map_err(|source| OpenError::Open { path: path.into(), source })?;
    if !facts.is_file() {
        return Err(OpenError::NotAFile { path: path.into() });
    }
    let user = rustix::process::geteuid().as_raw();
    if facts.uid() != user && facts.uid() != 0 {
        return Err(OpenError::Owner { path: path.into(), owner: facts.uid() });
    }
    Ok(())
}

/// Bytes that a file of this length takes beyond the `reserved` ones it has, and bytes available on
/// the file system of `place`.
pub(crate) fn room_for(place: &File, reserved: u64, bytes: u64) -> io::Result<(u64, u64)> {
    let system = rustix::fs::fstatvfs(place)?;
    Ok((bytes.saturating_sub(reserved), system.f_bavail.saturating_mul(system.f_frsize)))
}

/// A regular file, locked for as long as its description lives: the ring's own reference to it
/// included, so the lock outlasts a killed process until its last transfer is over.
#[derive(Debug)]
pub(crate) struct LockedFile {
    file: File,
    path: PathBuf,
    /// What the file system refused at first.
    refused: Vec<String>,
    /// Whether the file's space could not be reserved.
    unreserved: AtomicBool,
}

impl LockedFile {
    /// Opens or creates the file for direct transfers and locks it. What the path names is judged
    /// by the descriptor, never by name: between two looks at a name it may change.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let opened = |source| OpenError::Open { path: path.into(), source };
        // A directory or a link fails to open, a pipe or device opens: all get the same answer.
        if path.symlink_metadata().is_ok_and(|m| !m.is_file()) {
            return Err(OpenError::NotAFile { path: path.into() });
        }
        let mut refused = Vec::new();
        let file = match Self::open_direct(path) {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                refused.push(format!(
                    "direct I/O: refused by the file system of {}, the page cache is used",
                    path.display()
                ));
                Self::options(OFlags::empty()).open(path).map_err(opened)?
            }
            Err(e) => return Err(opened(e)),
        };
        check(&file, path)?;
        Self::lock(&file, path)?;
        Ok(Self { file, path: path.into(), refused, unreserved: AtomicBool::new(false) })
    }

    fn options(flags: OFlags) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags((flags | OFlags::NOFOLLOW).bits() as i32);
        options
    }

    fn open_direct(path: &Path) -> io::Result<File> {
        let file = Self::options(OFlags::DIRECT).open(path)?;
        // Some file systems take the flag and refuse the transfer.
        let block = block_memory(1).map_err(io::Error::other)?;
        match block.write(|bytes| file.read_at(bytes, 0)) {
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Err(e),
            // Whether this block can be read is for those to judge who need it.
            _ => Ok(file),
        }
    }

    fn lock(file: &File, path: &Path) -> Result<(), OpenError> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
                Err(Errno::WOULDBLOCK) => return Err(OpenError::Locked { path: path.into() }),
                Err(Errno::INTR) => {}
                Err(e) => {
                    return Err(OpenError::Io {
                        what: "lock",
                        path: path.into(),
                        source: e.into(),
                    });
                }
            }
        }
    }

    /// What the file system refused so far.
    pub(crate) fn refused(&self) -> Vec<String> {
        let unreserved = self.unreserved.load(Ordering::Relaxed).then(|| {
            let path = self.path.display();
            format!("space: the file system of {path} reserves none, a full disk fails appends")
        });
        self.refused.iter().cloned().chain(unreserved).collect()
    }

    /// The descriptor the lock belongs to.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Bytes still to be reserved for a length, and bytes the file system has for this user.
    pub(crate) fn room_for(&self, bytes: u64) -> io::Result<(u64, u64)> {
        room_for(&self.file, self.file.metadata()?.blocks() * 512, bytes)
    }
}

impl AsFd for LockedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Storage for LockedFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &Span) -> io::Result<usize> {
        into.write(|bytes| self.file.read_at(bytes, offset))
    }

    fn write_at(&self, offset: u64, from: &Span) -> io::Result<usize> {
        from.read(|bytes| self.file.write_at(bytes, offset))
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if self.bytes()? > bytes {
            self.file.set_len(bytes)?;
        }
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) => {
                    self.unreserved.store(true, Ordering::Relaxed);
                    return self.file.set_len(bytes);
                }
                result => return Ok(result?),
            }
        }
    }
}
