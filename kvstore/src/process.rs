//! Facts about processes: a peer's life, our own processor time.

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open, setrlimit};
use std::fs;

/// Opens a descriptor that becomes readable when the process is gone. `None` when it already is,
/// or when the system cannot say.
pub(crate) fn watch(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::NONBLOCK).ok()
}

/// When the process started, clock ticks since boot: with the pid it names a process for ever.
pub(crate) fn start_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command name may hold spaces and parentheses: fields are counted after the last one.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    fields.split(' ').nth(19).and_then(|f| f.parse().ok()).unwrap_or(0)
}

/// Processor time of this process so far, seconds, user and system.
pub(crate) fn cpu_seconds() -> f64 {
    let clock = rustix::time::ClockId::ProcessCPUTime;
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Resident memory of this process that it shares with nobody, bytes: its heap and stacks, without
/// the arena, staging areas and the state file. 0 where the system does not tell.
pub(crate) fn heap_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
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
    fn as_many_files_may_be_open_as_the_system_allows() {
        raise_file_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn a_dead_process_is_noticed() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let fd = watch(child.id()).unwrap();
        child.wait().unwrap();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let soon = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&soon)).unwrap(), 1);
    }
}
