use crate::ArenaError;
use std::os::fd::AsFd;

/// Names a file for as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileId {
    /// Its file system.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl FileId {
    /// Which file a descriptor is of.
    ///
    /// # Errors
    /// The system does not say.
    pub fn of(fd: impl AsFd) -> Result<Self, ArenaError> {
        let stat = rustix::fs::fstat(fd).map_err(ArenaError::system("inspect a descriptor", 0))?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}
