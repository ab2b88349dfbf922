use crate::ConnectError;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::geteuid;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The most symbolic links on the way to a socket, as in the kernel.
const MAX_LINKS: usize = 40;

/// Whose daemon may be believed. Pages come from it unchecked, and it is told what prompts begin
/// with: a stranger who got hold of the path must not answer.
///
/// Without a choice of the engine's: root, as which a service manager listens for a daemon that it
/// starts on demand (the kernel names who listened); our own user; and whoever owns the socket's
/// directory, if nobody else could have put that directory there: every directory on the way to it
/// belongs to root, to us or to that owner, and neither its group nor others may write to it. That
/// nobody may remove another one's files from `/tmp` does not keep a stranger from being there
/// first.
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
    let own = geteuid().as_raw();
    let mut allowed = vec![(0, "root"), (own, "this process's own")];
    // A directory that cannot be looked at speaks for nobody.
    if let Ok((ancestors, owner)) = way_to(path.parent().unwrap_or(Path::new("/")))
        && ancestors.iter().all(|ancestor| ancestor.is_sound([0, own, owner]))
    {
        allowed.push((owner, "the owner of the socket's directory"));
    }
    allowed
}

/// Who decides what lies in a directory.
#[derive(Debug, PartialEq, Eq)]
struct Ancestor {
    owner: u32,
    mode: u32,
}

impl Ancestor {
    /// Whether only these users do.
    fn is_sound(&self, users: [u32; 3]) -> bool {
        users.contains(&self.owner) && self.mode & 0o022 == 0
    }
}

/// Every directory that is looked into on the way to `directory`, symbolic links and what they
/// point to included, and who owns `directory` itself.
fn way_to(directory: &Path) -> io::Result<(Vec<Ancestor>, u32)> {
    let mut ancestors = Vec::new();
    let mut here = PathBuf::from("/");
    let mut links = 0;
    let mut left: VecDeque<OsString> = steps(&std::env::current_dir()?.join(directory)).collect();
    while let Some(step) = left.pop_front() {
        let found = std::fs::metadata(&here)?;
        ancestors.push(Ancestor { owner: found.uid(), mode: found.mode() });
        if step == ".." {
            here.pop();
            continue;
        }
        let next = here.join(step);
        if !std::fs::symlink_metadata(&next)?.is_symlink() {
            here = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(io::ErrorKind::TooManyLinks.into());
        }
        let target = std::fs::read_link(next)?;
        if target.is_absolute() {
            here = PathBuf::from("/");
        }
        steps(&target).rev().for_each(|step| left.push_front(step));
    }
    Ok((ancestors, std::fs::metadata(here)?.uid()))
}

fn steps(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let is_step =
        |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|part| part.as_os_str().to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::os::unix::fs::PermissionsExt;
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

    fn owners(path: &Path) -> Vec<u32> {
        believed(path).into_iter().skip(2).map(|(uid, _)| uid).collect()
    }

    #[test]
    fn the_directorys_owner_may_serve_where_nobody_else_could_have_made_it() {
        let own = geteuid().as_raw();
        assert_eq!(owners(Path::new("/proc/self/u.sock")), [own]);
        let top = std::fs::metadata("/").unwrap().uid();
        assert_eq!(owners(Path::new("/proc/self/task/../../../u.sock")), [top]);
        assert_eq!(owners(Path::new("/nowhere/at/all/u.sock")), []);
        assert_eq!(owners(Path::new("/u.sock")), [top]);
    }

    #[test]
    fn every_directory_that_is_looked_into_counts() {
        let top = tempfile::tempdir().unwrap();
        std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let directory = |name: &str, mode: u32| {
            let path = top.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (open, behind, closed) = (
            directory("open", 0o1777),
            directory("open/behind", 0o700),
            directory("closed", 0o751),
        );
        let modes = |path: &Path| -> Vec<u32> {
            let (ancestors, _) = way_to(path).unwrap();
            ancestors.iter().map(|ancestor| ancestor.mode & 0o7777).collect()
        };
        assert_eq!(modes(&behind).last(), Some(&0o1777));
        assert!(!modes(&closed).contains(&0o751), "what lies in it decides nothing about it");
        // The link lies where only its owner writes, and points to where everybody does.
        let link = closed.join("link");
        std::os::unix::fs::symlink("../open/behind", &link).unwrap();
        assert!(modes(&link).ends_with(&[0o751, 0o751, 0o700, 0o1777]), "{:?}", modes(&link));
        std::os::unix::fs::symlink(&behind, closed.join("whole")).unwrap();
        assert!(modes(&closed.join("whole")).ends_with(&[0o1777]));
        let endless = open.join("endless");
        std::os::unix::fs::symlink("endless", &endless).unwrap();
        assert!(way_to(&endless).is_err());
    }

    #[test]
    fn a_directory_in_one_that_others_write_to_speaks_for_nobody() {
        let of = |owner, mode: u32| Ancestor { owner, mode: 0o040_000 | mode };
        let users = [0, 1000, 2000];
        for sound in [of(0, 0o755), of(1000, 0o700), of(2000, 0o750), of(0, 0o555)] {
            assert!(sound.is_sound(users), "{sound:?}");
        }
        for odd in [of(0, 0o1777), of(2000, 0o770), of(1000, 0o702), of(3000, 0o700)] {
            assert!(!odd.is_sound(users), "{odd:?}");
        }
    }

    /// `/tmp` is where a daemon's socket lies by default if nobody says otherwise.
    #[test]
    fn a_stranger_who_made_the_default_directory_first_may_not_serve() {
        const NAME: &str = "a_stranger_who_made_the_default_directory_first_may_not_serve";
        const STRANGER: u32 = 65_534;
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let directory = top.path().join("undercroft-0");
        std::fs::create_dir(&directory).unwrap();
        if std::os::unix::fs::chown(&directory, Some(STRANGER), None).is_err() {
            println!("SKIPPED {NAME}: only root can give a directory away");
            return;
        }
        std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(owners(&directory.join("undercroft.sock")), []);
    }
}
