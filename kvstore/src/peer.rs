//! Who is at the other end of a connection, as the kernel says.
#![expect(unsafe_code, reason = "SO_PEERPIDFD is in no safe interface yet")]

use crate::process;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::fs;
use std::os::fd::AsFd;
use tokio::net::UnixStream;

/// `SO_PEERPIDFD` (Linux 6.5), where the system's headers do not have it yet.
const SO_PEERPIDFD: libc::c_int = 77;

/// The process that connected.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// With the pid it names the process for ever; 0 where the system does not tell.
    pub(crate) start: u64,
    /// Tells of the process's end. `None` when the system cannot say.
    pub(crate) process: Option<OwnedFd>,
}

impl Peer {
    /// The process that connected `stream`.
    ///
    /// # Errors
    /// The system does not say who it is, or it is gone: its number may be another's by now, and
    /// with it the other's domain.
    pub(crate) fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let pid = credentials.pid().unwrap_or(0) as u32;
        let process = match peer_pidfd(stream.as_fd()) {
            Ok(process) => Some(process),
            // Before Linux 6.5 there is the number alone.
            Err(error) if is_unknown(&error) => process::watch(pid),
            Err(error) => return Err(error),
        };
        let start = process::identity(pid, process.as_ref());
        Ok(Self { pid, uid: credentials.uid(), gid: credentials.gid(), start, process })
    }

    /// Whether its user may look after the daemon: root, and the daemon's own.
    pub(crate) fn is_operator(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }

    /// Paths of the control groups it is in, one for each hierarchy; none where `/proc` does not
    /// tell or the process is gone.
    pub(crate) fn cgroups(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        // Read by number: if the process was gone by now, it may have been another's.
        let alive = self.process.as_ref().is_some_and(|process| !process::is_gone(process));
        if alive {
            text.lines().filter_map(cgroup_path).map(str::to_owned).collect()
        } else {
            vec![]
        }
    }
}

/// The path in a line of `/proc/PID/cgroup`, for the hierarchies in which a process's place is an
/// administrator's choice: version 2 and systemd's own.
fn cgroup_path(line: &str) -> Option<&str> {
    let mut fields = line.splitn(3, ':');
    let (hierarchy, name, path) = (fields.next()?, fields.next()?, fields.next()?);
    let chosen = (hierarchy == "0" && name.is_empty()) || name == "name=systemd";
    chosen.then_some(path)
}

/// Whether the kernel tells which very process is at the other end.
pub(crate) fn has_pidfd() -> bool {
    let pair = std::os::unix::net::UnixStream::pair();
    pair.is_ok_and(|(ours, _theirs)| peer_pidfd(ours.as_fd()).is_ok())
}

/// Whether the system does not know the option, or does not let us ask for it.
fn is_unknown(error: &std::io::Error) -> bool {
    let unknown = [libc::ENOPROTOOPT, libc::EOPNOTSUPP, libc::ENOSYS, libc::EPERM, libc::EACCES];
    error.raw_os_error().is_some_and(|errno| unknown.contains(&errno))
}

/// The descriptor of the very process that connected.
fn peer_pidfd(socket: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `fd` and `length` are of the type and size the option asks for, and live for the
    // call.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if answer != 0 || fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[tokio::test]
    async fn our_own_other_end_is_ourselves() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert!(peer.start > 0 && !process::is_gone(peer.process.as_ref().unwrap()));
        assert_eq!(Peer::of(&ours).unwrap().start, peer.start);
    }

    #[test]
    fn only_a_system_that_does_not_know_better_is_asked_for_the_number() {
        let is_unknown = |errno| is_unknown(&std::io::Error::from_raw_os_error(errno));
        assert!(is_unknown(libc::ENOPROTOOPT) && is_unknown(libc::EPERM));
        for gone in [libc::EINVAL, libc::ESRCH, libc::ENODATA, libc::EMFILE] {
            assert!(!is_unknown(gone), "{gone}");
        }
    }

    #[test]
    fn a_cgroup_is_read_from_the_hierarchies_that_count() {
        assert_eq!(cgroup_path("0::/kubepods/a"), Some("/kubepods/a"));
        assert_eq!(cgroup_path("1:name=systemd:/user.slice"), Some("/user.slice"));
        assert_eq!(cgroup_path("4:memory:/somewhere"), None);
        assert_eq!(cgroup_path("0::/with:colon"), Some("/with:colon"));
        assert_eq!(cgroup_path("nonsense"), None);
    }
}
