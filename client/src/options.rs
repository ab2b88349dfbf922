use crate::ConnectError;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest socket path the kernel takes, bytes: `sun_path` without its final zero.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Whether to insist on a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The daemon must be there now, and greet within this long.
    Now(Duration),
    /// Go on without one; a thread connects when it appears, and all is a miss until then.
    Background,
}

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// What `undercroft status` calls this session. At most 64 bytes are kept.
    pub name: String,
    /// Have pages delivered into staging although the arena could be mapped.
    pub copy_mode: bool,
    /// The user the daemon's socket must be served by. `None`: root, this process's own user, or
    /// the owner of the directory the socket lies in, unless that directory lies in one that others
    /// may write to, as `/tmp` is. With systemd's socket activation it is root
    /// who serves, whatever user the daemon runs as.
    pub daemon_uid: Option<u32>,
    /// Whether to insist on a daemon.
    pub wait: Wait,
}

impl ConnectOptions {
    /// Connects to `socket` at once or not at all, giving the daemon two seconds to greet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            name: std::env::args_os()
                .next()
                .and_then(|path| Some(Path::new(&path).file_name()?.to_string_lossy().into_owned()))
                .unwrap_or_default(),
            copy_mode: false,
            daemon_uid: None,
            wait: Wait::Now(Duration::from_secs(2)),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        let bytes = self.socket.as_os_str().as_bytes().len();
        if bytes == 0 || bytes > MAX_SOCKET_PATH_BYTES {
            return Err(ConnectError::Path { path: self.socket.clone(), bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_the_kernel_would_not_take_is_refused_with_its_length() {
        let fits = ConnectOptions::new("/".repeat(MAX_SOCKET_PATH_BYTES));
        assert!(fits.check().is_ok());
        let error = ConnectOptions::new("a".repeat(108)).check().expect_err("one byte too long");
        let text = error.to_string();
        assert!(text.contains("108 bytes") && text.contains("107"), "{text}");
        assert!(ConnectOptions::new("").check().is_err());
    }
}
