//! Where the socket and the store are when nobody says otherwise. `XDG_RUNTIME_DIR` and `HOME`
//! may be unset.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The longest socket path the system takes, bytes (`sun_path` less its terminator).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The socket's default path.
#[must_use]
pub fn default_socket() -> PathBuf {
    let directory = variable("RUNTIME_DIRECTORY")
        .or_else(|| variable("XDG_RUNTIME_DIR").map(|d| d.join("undercroft")))
        .unwrap_or_else(|| {
            if is_root() {
                PathBuf::from("/run/undercroft")
            } else {
                PathBuf::from(format!("/tmp/undercroft-{}", uid()))
            }
        });
    directory.join("undercroft.sock")
}

/// The store's default directory.
#[must_use]
pub fn default_state() -> PathBuf {
    variable("STATE_DIRECTORY")
        .or_else(|| variable("XDG_STATE_HOME").map(|d| d.join("undercroft")))
        .or_else(|| is_root().then(|| PathBuf::from("/var/lib/undercroft")))
        .or_else(|| variable("HOME").map(|d| d.join(".local/state/undercroft")))
        .unwrap_or_else(|| PathBuf::from(format!("/var/tmp/undercroft-{}", uid())))
}

/// The credential of this name that the service manager gave us, if it did.
pub(crate) fn credential(name: &str) -> Option<PathBuf> {
    let directory = env::var_os("CREDENTIALS_DIRECTORY").filter(|v| !v.is_empty())?;
    let path = PathBuf::from(directory).join(name);
    path.exists().then_some(path)
}

fn variable(name: &str) -> Option<PathBuf> {
    // systemd may list several directories, separated by colons; ours is the first.
    let value = env::var_os(name).filter(|v| !v.is_empty())?;
    let first = value.to_string_lossy().split(':').next().map(PathBuf::from)?;
    first.is_absolute().then_some(first)
}

/// Who else could put something of theirs where we put ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// The user it belongs to.
    Owner(u32),
    /// Everybody may write there, and remove what others wrote.
    Everybody,
}

/// Whether a directory is in somebody else's hands. Root is nobody else, and where the sticky bit
/// is set everybody keeps their own. A link counts as whoever made it.
pub(crate) fn stranger(directory: &Path) -> std::io::Result<Option<Stranger>> {
    let link = std::fs::symlink_metadata(directory)?;
    let facts = std::fs::metadata(directory)?;
    if let Some(owner) = [link.uid(), facts.uid()].into_iter().find(|owner| is_foreign(*owner)) {
        return Ok(Some(Stranger::Owner(owner)));
    }
    let (open, sticky) = (facts.mode() & 0o002 != 0, facts.mode() & 0o1000 != 0);
    Ok((open && !sticky).then_some(Stranger::Everybody))
}

/// Whether a user is neither us nor root.
pub(crate) fn is_foreign(owner: u32) -> bool {
    owner != uid() && owner != 0
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn is_root() -> bool {
    uid() == 0
}
