//! Binding the unix socket without taking it from a living daemon or trusting a foreign directory.

use crate::error::StartError;
use crate::paths::{Stranger, stranger};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A bound socket; its file is removed when this is dropped, unless somebody else goes on with it.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    inode: u64,
    stays: bool,
}

impl BoundSocket {
    /// Binds `path` with mode 0660, making its directory (0750) where it is missing.
    pub(crate) fn bind(path: &Path) -> Result<Self, StartError> {
        let failed = |doing, source| StartError::Socket { path: path.to_owned(), doing, source };
        prepare_directory(path)?;
        remove_stale(path)?;
        let listener = bind_closed(path).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => StartError::SocketInUse { path: path.to_owned() },
            _ => failed("bind it", source),
        })?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o660);
        fs::set_permissions(path, mode).map_err(|e| failed("set its mode", e))?;
        let inode = fs::symlink_metadata(path).map_err(|e| failed("look at it", e))?.ino();
        Ok(Self { listener, path: path.to_owned(), inode, stays: false })
    }

    /// Goes on with a socket that already listens, if it is the one at `path`: clients that wait
    /// in it are served. One of another path is closed, and `path` is bound anew.
    pub(crate) fn inherit(socket: OwnedFd, path: &Path) -> Result<Self, StartError> {
        let at = rustix::net::getsockname(&socket)
            .ok()
            .and_then(|address| SocketAddrUnix::try_from(address).ok())
            .and_then(|address| Some(PathBuf::from(OsStr::from_bytes(address.path_bytes()?))));
        let facts = fs::symlink_metadata(path).ok().filter(|facts| facts.file_type().is_socket());
        match facts.filter(|_| at.as_deref() == Some(path)) {
            Some(facts) => {
                let listener = UnixListener::from(socket);
                let failed =
                    |source| StartError::Socket { path: path.to_owned(), doing: "use it", source };
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self { listener, path: path.to_owned(), inode: facts.ino(), stays: false })
            }
            None => {
                tracing::warn!(inherited = ?at, configured = %path.display(), "an inherited socket is not the configured one");
                drop(socket);
                Self::bind(path)
            }
        }
    }

    /// Leaves the file where it is: the socket behind it goes on listening in other hands.
    pub(crate) fn stay(&mut self) {
        self.stays = true;
    }
}

/// Connections the kernel keeps for us while the control thread is busy.
const BACKLOG: i32 = 128;

/// A listening socket whose file nobody but the owner may connect to, from the moment it exists.
/// The file takes its mode from the socket; a umask would be set for all threads at once.
fn bind_closed(path: &Path) -> std::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Only what this daemon bound: a successor may already have put its own socket there.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours
            && !self.stays
            && let Err(error) = fs::remove_file(&self.path)
        {
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
    let own = rustix::process::geteuid().as_raw();
    // Somebody else could replace the socket under us and read what engines say.
    match stranger(directory).map_err(|e| failed("look at its directory", e))? {
        Some(Stranger::Owner(owner)) => {
            Err(StartError::SocketDirectory { path: directory.to_owned(), owner, own })
        }
        Some(Stranger::Everybody) => {
            Err(StartError::SocketDirectoryOpen { path: directory.to_owned() })
        }
        None => Ok(()),
    }
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
    fn a_directory_that_everybody_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(directory.path(), mode(0o777)).unwrap();
        let path = directory.path().join("u.sock");
        let error = BoundSocket::bind(&path).unwrap_err();
        assert!(matches!(error, StartError::SocketDirectoryOpen { .. }), "{error}");
        fs::set_permissions(directory.path(), mode(0o1777)).unwrap();
        BoundSocket::bind(&path).unwrap();
    }

    #[test]
    fn a_socket_is_closed_to_others_from_its_first_moment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("u.sock");
        let _listener = bind_closed(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o177, 0);
    }

    #[test]
    fn an_inherited_socket_is_gone_on_with_if_it_is_the_right_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("u.sock");
        let mut first = BoundSocket::bind(&path).unwrap();
        first.stay();
        let kept: OwnedFd = first.listener.try_clone().unwrap().into();
        drop(first);
        // In between nobody serves, and nobody is refused.
        let _waiting = UnixStream::connect(&path).unwrap();
        let second = BoundSocket::inherit(kept, &path).unwrap();
        second.listener.accept().unwrap();

        let other = directory.path().join("other.sock");
        let kept = second.listener.try_clone().unwrap().into();
        drop(second);
        let third = BoundSocket::inherit(kept, &other).unwrap();
        UnixStream::connect(&other).unwrap();
        assert!(UnixStream::connect(&path).is_err());
        drop(third);
        assert!(!other.exists());
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
