//! Facts about processes: a peer's life, our own processor time.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, getrlimit, pidfd_open, set_dumpable_behavior,
    setrlimit, test_kill_process,
};
use std::fs;
use std::os::unix::fs::MetadataExt;
use undercroft_wire::ProcessState;

/// Opens a descriptor that becomes readable when the process is gone. `None` when it already is,
/// or when the system cannot say.
pub(crate) fn watch(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::NONBLOCK).ok()
}

/// Whether some process has this number. One that cannot be asked is there.
pub(crate) fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// Whether the process behind a descriptor is gone.
pub(crate) fn is_gone(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // What cannot be asked is not known to be gone: its frames stay.
    matches!(poll(&mut fds, Some(&at_once)), Ok(ready) if ready > 0)
}

/// What names the process for ever together with its pid: the number of its pidfd, which is never
/// used twice (Linux 6.9), else the time it started. 0 where neither can be had.
pub(crate) fn identity(pid: u32, process: Option<&OwnedFd>) -> u64 {
    let inode = process.filter(|fd| is_pidfs(fd)).and_then(|fd| rustix::fs::fstat(fd).ok());
    inode.map_or_else(|| start_time(pid), |facts| facts.st_ino)
}

/// Whether the inodes of pidfds are processes.
pub(crate) fn is_pidfs(process: &OwnedFd) -> bool {
    const PID_FS_MAGIC: u64 = 0x5049_4446;
    rustix::fs::fstatfs(process).is_ok_and(|facts| facts.f_type as u64 == PID_FS_MAGIC)
}

/// What a process does.
pub(crate) fn state(pid: u32) -> ProcessState {
    match stat_field(pid, 0).and_then(|state| state.chars().next()) {
        Some('T' | 't') => ProcessState::Stopped,
        Some('Z' | 'X' | 'x') => ProcessState::Dead,
        Some(_) => ProcessState::Alive,
        None => ProcessState::Unknown,
    }
}

/// User and group of a process, as far as the system tells; the highest numbers, which nobody has,
/// where it does not.
pub(crate) fn owner(pid: u32) -> (u32, u32) {
    let facts = fs::metadata(format!("/proc/{pid}"));
    facts.map_or((u32::MAX, u32::MAX), |facts| (facts.uid(), facts.gid()))
}

/// When the process started, clock ticks since boot.
fn start_time(pid: u32) -> u64 {
    stat_field(pid, 19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// A field of `/proc/PID/stat`, counted from the one after the command's name.
fn stat_field(pid: u32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold spaces and parentheses: fields are counted after the last one.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(number).map(str::to_owned)
}

/// Shuts the daemon's memory and descriptors to everybody but root: no debugger of the same user,
/// no `/proc/PID/mem`, no descriptor fetched out of it, and no core file with keys and prompts.
pub(crate) fn keep_to_itself() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "processes of the daemon's user may look into it");
    }
}

/// Descriptors that this process has open. 0 where the system does not tell.
pub(crate) fn open_descriptors() -> u32 {
    // The one that reads the directory is among them.
    fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1) as u32)
}

/// Processor time of this process so far, seconds, user and system.
pub(crate) fn cpu_seconds() -> f64 {
    let clock = rustix::time::ClockId::ProcessCPUTime;
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Memory of this process that it shares with nobody, bytes, resident or swapped out: its heap,
/// its stacks and what its SSDs encrypt pages in, without the arena, staging areas and the state
/// file. 0 where the system does not tell.
pub(crate) fn heap_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    (kib("RssAnon:").unwrap_or(0) + kib("VmSwap:").unwrap_or(0)) << 10
}

/// Raises the soft limit of open files to the hard one: each session takes a few, and the usual
/// soft limit of 1024 would turn engines away long before `server.max_sessions` does.
pub(crate) fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn our_own_facts_are_plausible() {
        let pid = std::process::id();
        assert!(watch(pid).is_some());
        assert!(start_time(pid) > 0);
        assert_eq!(start_time(pid), start_time(pid));
        assert!(cpu_seconds() > 0.0);
        let before = heap_bytes();
        let touched = vec![1_u8; 64 << 20];
        let grown = heap_bytes().saturating_sub(before);
        assert!(before > 0 && grown >= 60 << 20, "{before} bytes, {grown} more: {}", touched[1]);
    }

    #[test]
    fn a_process_that_stops_is_seen_to() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert_eq!(state(child.id()), ProcessState::Alive);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        while state(child.id()) == ProcessState::Alive {
            std::thread::yield_now();
        }
        assert_eq!(state(child.id()), ProcessState::Stopped);
        child.kill().unwrap();
        assert!(is_there(child.id()));
        child.wait().unwrap();
        assert!(!is_there(child.id()));
        assert_eq!(state(child.id()), ProcessState::Unknown);
    }

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        raise_file_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn a_dead_process_is_noticed() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        assert!(!is_gone(&watch(std::process::id()).unwrap()));
        let fd = watch(child.id()).unwrap();
        let identity = identity(child.id(), Some(&fd));
        assert!(identity > 0 && identity != super::identity(std::process::id(), None));
        child.wait().unwrap();
        assert!(is_gone(&fd));
    }
}
