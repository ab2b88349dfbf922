//! A page log that another daemon has: whether it could be opened, found out without a change.

use crate::config::LogConfig;
use crate::entropy;
use crate::error::OpenError;
use crate::storage::{Storage, check, room_for};
use crate::store::open_head;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use undercroft_arena::Span;

/// Whether what [`PageLog::prepare`](crate::PageLog::prepare) would refuse stands in the way, but for
/// a lock: the file may be another's who is about to go.
pub(crate) fn look(config: &LogConfig) -> Result<(), OpenError> {
    let path = config.path.as_path();
    let opened = |source| OpenError::Open { path: path.into(), source };
    if path.symlink_metadata().is_ok_and(|facts| !facts.is_file()) {
        return Err(OpenError::NotAFile { path: path.into() });
    }
    let file = match File::open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(opened(error)),
    };
    file.as_ref().map(|file| check(file, path)).transpose()?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let directory = File::open(directory).map_err(opened)?;
    let untouched = Untouched { file, directory };
    let mut entropy = entropy::system().map_err(|source| OpenError::Entropy { source })?;
    match open_head(&untouched, config, &|bytes| untouched.room_for(bytes), &mut entropy) {
        // They are set aside.
        Ok(_) | Err(OpenError::Version { .. } | OpenError::Damaged { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads are of what is there, and writes come to nothing.
struct Untouched {
    file: Option<File>,
    directory: File,
}

impl Untouched {
    fn room_for(&self, bytes: u64) -> io::Result<(u64, u64)> {
        let reserved = match &self.file {
            Some(file) => file.metadata()?.blocks() * 512,
            None => 0,
        };
        room_for(&self.directory, reserved, bytes)
    }
}

impl Storage for Untouched {
    fn bytes(&self) -> io::Result<u64> {
        self.file.as_ref().map_or(Ok(0), |file| Ok(file.metadata()?.len()))
    }

    fn read_at(&self, offset: u64, into: &Span) -> io::Result<usize> {
        let Some(file) = &self.file else { return Ok(0) };
        into.write(|bytes| file.read_at(bytes, offset))
    }

    fn write_at(&self, _offset: u64, from: &Span) -> io::Result<usize> {
        Ok(from.len())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
}
