//! Binding the unix socket without taking it from a living daemon or trusting a foreign directory.

use crate::error::StartError;
use rustix::fs::Mode;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A bound socket; its file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl BoundSocket {
    /// Binds `path` with mode 0660, making its directory (0750) where it is missing.
    pub(crate) fn bind(path: &Path) -> Result<Self, StartError> {
        let failed = |doing, source| StartError::Socket { path: path.to_owned(), doing, source };
        prepare_directory(path)?;
        remove_stale(path)?;
        // Created with no access for anybody, opened up once it is ours.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(umask);
        let listener = bound.map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => StartError::SocketInUse { path: path.to_owned() },
            _ => failed("bind it", source),
        })?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o660);
        fs::set_permissions(path, mode).map_err(|e| failed("set its mode", e))?;
        listener.set_nonblocking(true).map_err(|e| failed("make it non-blocking", e))?;
        let inode = fs::symlink_metadata(path).map_err(|e| failed("look at it", e))?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Only what this daemon bound: a successor may already have put its own socket there.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn prepare_directory(path: &Path) -> Result<(), StartError> {
    let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) else {
        return Ok(());
    };
    let failed = |doing, source| StartError::Socket { path: directory.to_owned(), doing, source };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .map_err(|e| failed("make its directory", e))?;
    let facts = fs::symlink_metadata(directory).map_err(|e| failed("look at its directory", e))?;
    let own = rustix::process::geteuid().as_raw();
    let sticky_or_ours = facts.uid() == own || facts.uid() == 0;
    if sticky_or_ours {
        return Ok(());
    }
    // Somebody else could replace the socket under us and read what engines say.
    Err(StartError::SocketDirectory { path: directory.to_owned(), owner: facts.uid(), own })
}

fn remove_stale(path: &Path) -> Result<(), StartError> {
    let failed = |doing, source| StartError::Socket { path: path.to_owned(), doing, source };
    let facts = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at it", error)),
        Ok(facts) => facts,
    };
    if !facts.file_type().is_socket() {
        let source = std::io::Error::new(ErrorKind::AlreadyExists, "a file that is no socket");
        return Err(failed("replace it", source));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(StartError::SocketInUse { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|e| failed("remove the stale one", e))
        }
        Err(error) => Err(failed("see whether it is in use", error)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_living_socket_is_left_alone_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/u.sock");
        let first = BoundSocket::bind(&path).unwrap();
        let error = BoundSocket::bind(&path).unwrap_err();
        assert!(matches!(error, StartError::SocketInUse { .. }), "{error}");
        // As after `kill -9`: nobody listens, the file is still there.
        let listener = first.listener.try_clone().unwrap();
        std::mem::forget(first);
        drop(listener);
        let facts = fs::metadata(&path).unwrap();
        assert_eq!(facts.mode() & 0o777, 0o660);
    }

    #[test]
    fn a_socket_nobody_listens_on_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("u.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let bound = BoundSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_plain_file_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("u.sock");
        fs::write(&path, b"precious").unwrap();
        let error = BoundSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
