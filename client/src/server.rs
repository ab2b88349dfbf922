use crate::ConnectError;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::geteuid;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whose daemon may be believed. Pages come from it unchecked, and it is told what prompts begin
/// with: a stranger who got hold of the path must not answer.
///
/// Without a choice of the engine's: root, as which a service manager listens for a daemon that it
/// starts on demand (the kernel names who listened); our own user; and whoever owns the socket's
/// directory, because nobody else but root decides what lies there. A directory that everybody may
/// write to belongs to root, so that there a stranger's socket is not believed.
///
/// The kernel's answer is of the moment the other side began to listen, and of a user, not of a
/// program: what it is good for is exactly this choice.
pub(crate) fn check(
    socket: &OwnedFd,
    path: &Path,
    chosen: Option<u32>,
) -> Result<(), ConnectError> {
    let found = getsockopt(socket, PeerCredentials)
        .map_err(|errno| ConnectError::System {
            path: path.to_owned(),
            doing: "see who serves the socket",
            source: errno.into(),
        })?
        .uid();
    let allowed = match chosen {
        Some(uid) => vec![(uid, "the one asked for")],
        None => believed(path),
    };
    if allowed.iter().any(|(uid, _)| *uid == found) {
        return Ok(());
    }
    let shown: Vec<String> = allowed.iter().map(|(uid, why)| format!("{uid} ({why})")).collect();
    let allowed = shown.join(", ");
    Err(ConnectError::Stranger { path: path.to_owned(), found, allowed })
}

fn believed(path: &Path) -> Vec<(u32, &'static str)> {
    let mut allowed = vec![(0, "root"), (geteuid().as_raw(), "this process's own")];
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    // A directory that cannot be looked at speaks for nobody.
    if let Ok(directory) = std::fs::metadata(directory) {
        allowed.push((directory.uid(), "the owner of the socket's directory"));
    }
    allowed
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_stranger_is_named_and_so_is_who_may_serve() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours);
        let own = geteuid().as_raw();
        let path = std::env::temp_dir().join("undercroft.sock");
        check(&ours, &path, None).unwrap();
        check(&ours, &path, Some(own)).unwrap();
        let error = check(&ours, &path, Some(own + 1)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ConnectError::Stranger { found, .. } if found == own), "{text}");
        assert!(text.contains(&format!("{} (the one asked for)", own + 1)), "{text}");
    }

    #[test]
    fn the_directorys_owner_may_serve_and_no_other_stranger() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("u.sock");
        let owner = std::fs::metadata(directory.path()).unwrap().uid();
        let uids: Vec<u32> = believed(&path).into_iter().map(|(uid, _)| uid).collect();
        assert_eq!(uids, [0, geteuid().as_raw(), owner]);
        assert_eq!(believed(Path::new("u.sock")).len(), 3);
        assert_eq!(believed(Path::new("/nowhere/at/all/u.sock")).len(), 2);
    }
}
