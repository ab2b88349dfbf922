//! What a process could do to memory that it is only meant to read.
//!
//! A descriptor that was opened through a read-only mount stays what it is whoever holds it. A
//! memfd does not: whoever owns the file, or overrides the mode of others' files, opens it again
//! for writing. A container keeps nobody from that: its root mostly has such rights. So where an
//! arena is of memfds it is mapped by processes that cannot, and whose company cannot; the others
//! are given copies.

use crate::peer::Peer;
use crate::process;
use std::fs;
use undercroft_wire::CopyReason;

/// Rights that lead to writing a file of mode 0600 that is somebody else's, one way or another:
/// its owner or its mode is changed or overridden, its owner is become, or memory is written.
const RIGHTS: u64 = 1 << 0 // CHOWN
    | 1 << 1 // DAC_OVERRIDE
    | 1 << 3 // FOWNER
    | 1 << 7 // SETUID
    | 1 << 16 // SYS_MODULE
    | 1 << 17 // SYS_RAWIO
    | 1 << 19 // SYS_PTRACE
    | 1 << 21; // SYS_ADMIN

/// What the kernel says of a process. `None` where it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    /// Whether it is of the daemon's user, or can become so at will.
    is_own_user: bool,
    /// Capabilities that it has or can get by running a program.
    rights: u64,
    /// Whether it has process numbers of its own.
    has_own_pids: bool,
    /// Whether its mounts are neither the daemon's nor the machine's.
    has_own_mounts: bool,
    /// Whether the daemon's user means anything in its user namespace: rights of another one are
    /// rights over that one's users only.
    knows_our_user: bool,
}

/// Why this process must not map an arena of memfds; `None` if it may.
pub(crate) fn danger(peer: &Peer) -> Option<CopyReason> {
    let standing = Standing::of(peer.pid);
    // Read by number: if the process was gone by now, it may have been another's.
    let is_its = peer.process.as_ref().is_some_and(|process| !process::is_gone(process));
    match standing {
        Some(standing) if is_its => standing.danger(),
        Some(_) => Some(CopyReason::Unknown),
        None => danger_of_user(peer.uid, rustix::process::geteuid().as_raw()),
    }
}

/// Whether the process lives in a container: its user number is not what it seems to be. `None` where
/// the system does not tell.
pub(crate) fn is_contained(peer: &Peer) -> Option<bool> {
    let process = peer.process.as_ref()?;
    let contained = contained(&peer.pid.to_string())?;
    // Read by number: if the process was gone by now, it may have been another's.
    (!process::is_gone(process)).then_some(contained)
}

fn contained(pid: &str) -> Option<bool> {
    let depth = |pid| numbers(&read(pid, "status")?, "NSpid:", 10).map(|all| all.len());
    if depth(pid)? > depth("self")? || read(pid, "uid_map")? != read("self", "uid_map")? {
        return Some(true);
    }
    let mounts = |pid| read(pid, "mountinfo").map(|text| mount_ids(&text));
    // The daemon itself may have been given mounts of its own.
    let [Some(theirs), Some(ours), Some(machines)] = [pid, "self", "1"].map(mounts) else {
        return Some(false);
    };
    Some(!theirs.iter().any(|mount| ours.contains(mount) || machines.contains(mount)))
}

fn read(pid: &str, name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{name}")).ok()
}

/// The same where the system tells nothing of a process but its user.
fn danger_of_user(uid: u32, own: u32) -> Option<CopyReason> {
    (uid == 0 || uid == own).then_some(CopyReason::Unknown)
}

/// Whether the system hides processes of other users: then nobody can say of them what they could
/// do, and they are judged by their user alone.
pub(crate) fn is_blind() -> bool {
    fs::read_to_string("/proc/1/status").is_err()
}

impl Standing {
    fn danger(self) -> Option<CopyReason> {
        if self.is_own_user {
            let is_contained = self.has_own_pids || self.has_own_mounts || !self.knows_our_user;
            // Outside of containers the daemon's user could do worse than this.
            return is_contained.then_some(CopyReason::OwnUserContained);
        }
        if self.knows_our_user && self.rights & RIGHTS != 0 {
            return Some(CopyReason::Privileged);
        }
        // Whatever it is itself: a root beside it, whom nobody here sees, takes from it what it was
        // given. User numbers of its own say nothing of that one's.
        self.has_own_pids.then_some(CopyReason::Container)
    }

    fn of(pid: u32) -> Option<Self> {
        let pid = pid.to_string();
        let status = read(&pid, "status")?;
        let own_status = read("self", "status")?;
        let uids = numbers(&status, "Uid:", 10)?;
        let root_and_own = [0, u64::from(rustix::process::geteuid().as_raw())];
        let [is_root, is_own_user] = root_and_own.map(|uid| uids.contains(&uid));
        let rights = |name| numbers(&status, name, 16)?.first().copied();
        let permitted = rights("CapPrm:")?;
        // Root gets all that its bounding set leaves with the next program it runs.
        let rights = if is_root { permitted | rights("CapBnd:")? } else { permitted };
        let depth = |status: &str| numbers(status, "NSpid:", 10).map(|all| all.len());
        let knows = |map: &str, own: u32| {
            let (theirs, ours) = (read(&pid, map)?, read("self", map)?);
            Some(theirs == ours || is_mapped(&theirs, own))
        };
        let knows_our_user = knows("uid_map", rustix::process::geteuid().as_raw())?
            && knows("gid_map", rustix::process::getegid().as_raw())?;
        let mounts = mount_ids(&read(&pid, "mountinfo")?);
        let is_in = |whose: &str| {
            let known = mount_ids(&read(whose, "mountinfo").unwrap_or_default());
            mounts.iter().any(|mount| known.contains(mount))
        };
        Some(Self {
            is_own_user,
            rights,
            has_own_pids: depth(&status)? > depth(&own_status)?,
            has_own_mounts: !is_in("self") && !is_in("1"),
            knows_our_user,
        })
    }
}

/// The numbers of a line of `/proc/PID/status`.
fn numbers(status: &str, name: &str, radix: u32) -> Option<Vec<u64>> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().map(|word| u64::from_str_radix(word, radix).ok()).collect()
}

/// Whether a map of user or group numbers gives `own` a number. What cannot be said of our own
/// namespace from there counts as if it did.
fn is_mapped(map: &str, own: u32) -> bool {
    map.lines().any(|line| {
        let fields: Vec<u64> =
            line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [_, outside, count] = fields[..] else { return true };
        let is_unknown = outside == u64::from(u32::MAX);
        is_unknown || (outside..outside + count).contains(&u64::from(own))
    })
}

/// Numbers of the mounts in a `/proc/PID/mountinfo`: no two namespaces have one in common.
fn mount_ids(mountinfo: &str) -> Vec<u64> {
    mountinfo.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const PLAIN: Standing = Standing {
        is_own_user: false,
        rights: 0,
        has_own_pids: false,
        has_own_mounts: false,
        knows_our_user: true,
    };

    #[test]
    fn who_could_write_is_given_copies() {
        let own = Standing { is_own_user: true, ..PLAIN };
        let root = Standing { rights: RIGHTS, ..PLAIN };
        let inside = Standing { has_own_pids: true, has_own_mounts: true, ..PLAIN };
        let mapped_away = |standing| Standing { knows_our_user: false, ..standing };
        for (standing, danger) in [
            (PLAIN, None),
            (Standing { has_own_mounts: true, ..PLAIN }, None),
            (own, None),
            (Standing { has_own_mounts: true, ..own }, Some(CopyReason::OwnUserContained)),
            (Standing { has_own_pids: true, ..own }, Some(CopyReason::OwnUserContained)),
            (mapped_away(own), Some(CopyReason::OwnUserContained)),
            (root, Some(CopyReason::Privileged)),
            (Standing { rights: 1 << 1, ..PLAIN }, Some(CopyReason::Privileged)),
            (Standing { rights: 1 << 10, ..PLAIN }, None),
            (mapped_away(root), None),
            (inside, Some(CopyReason::Container)),
            (mapped_away(inside), Some(CopyReason::Container)),
        ] {
            assert_eq!(standing.danger(), danger, "{standing:?}");
        }
    }

    #[test]
    fn where_nothing_is_told_the_user_decides() {
        assert_eq!(danger_of_user(1000, 990), None);
        assert_eq!(danger_of_user(0, 990), Some(CopyReason::Unknown));
        assert_eq!(danger_of_user(990, 990), Some(CopyReason::Unknown));
    }

    #[test]
    fn maps_of_numbers_are_read() {
        assert!(is_mapped("         0          0 4294967295\n", 990));
        assert!(!is_mapped("0 100000 65536\n", 990));
        assert!(is_mapped("0 100000 65536\n65536 990 1\n", 990));
        assert!(!is_mapped("0 1000 1\n", 990));
        assert!(!is_mapped("0 1000 1\n", 1001));
        assert!(is_mapped("0 4294967295 1\n", 990), "seen from inside of a namespace");
        assert!(is_mapped("nonsense\n", 990));
        assert!(!is_mapped("", 990), "nobody is anybody there yet");
    }

    #[test]
    fn we_ourselves_are_of_our_own_user_and_in_no_container() {
        let own = Standing::of(std::process::id()).unwrap();
        assert!(own.is_own_user && own.knows_our_user);
        assert!(!own.has_own_pids && !own.has_own_mounts, "{own:?}");
        assert_eq!(own.danger(), None);
        assert_eq!(Standing::of(u32::MAX >> 1), None);
        assert_eq!((contained("self"), contained("4294967294")), (Some(false), None));
    }
}
