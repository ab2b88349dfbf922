//! Tries to write what it was only given to read, and to get hold of the daemon itself.

use super::say;
use anyhow::{Result, ensure};
use memmap2::MmapOptions;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::ptrace::{self, Options};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use rustix::fs::{FallocateFlags, Gid, Mode, OFlags, SealFlags, Uid};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use undercroft_client::wire::{FetchSource, KeyRun, LeaseId};
use undercroft_tests::RawClient;

const PAGES: u32 = 6;
/// Numbers of the daemon's descriptors that are tried.
const DESCRIPTORS: i32 = 64;

/// Tries everything and says what it could do.
pub(crate) fn run(socket: &Path) -> Result<()> {
    let mut client = RawClient::connect(socket)?;
    let space = client.open(1)?.map_err(|refused| anyhow::anyhow!(refused.detail))?;
    say(&format!("mode {:?}", client.mode))?;
    say(&format!("parts {}", client.parts.len()))?;
    for part in &client.parts {
        tell("arena", attempts(part.as_fd()))?;
    }
    if let Some(board) = &client.board {
        tell("board", attempts(board.as_fd()))?;
    }
    tell("daemon", upon_the_daemon(client.socket()))?;
    // The staging area is its own: it may write there, and spoil nothing but its own pages.
    let staging = &space.staging;
    if rustix::fs::ftruncate(staging, 4096).is_ok() {
        say("staging: truncated")?;
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let _its_own = rustix::fs::fallocate(staging, hole, 0, u64::from(space.slot_bytes));
    let keys = RawClient::keys(900, PAGES.min(space.slots));
    client.store(space.id, &keys)?;
    let source = FetchSource::Keys { keys: KeyRun::from(&keys[..]) };
    let (end, _) = client.fetch(space.id, source, LeaseId(1))?;
    ensure!(end.ready as usize == keys.len(), "its own pages did not come: {end:?}");
    say("over")
}

fn tell(of: &str, attempts: Vec<(&'static str, bool)>) -> Result<()> {
    for (what, _) in attempts.into_iter().filter(|(_, done)| *done) {
        say(&format!("{of}: {what}"))?;
    }
    Ok(())
}

fn attempts(fd: BorrowedFd<'_>) -> Vec<(&'static str, bool)> {
    let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let open = |flags| rustix::fs::open(&own, flags, Mode::empty());
    let is_mapped = |fd: i32| MmapOptions::new().len(4096).map_raw(fd).is_ok();
    let mut attempts = vec![
        ("written", rustix::io::pwrite(fd, &[1; 64], 0).is_ok()),
        ("mapped writable", is_mapped(fd.as_raw_fd())),
        ("shortened", rustix::fs::ftruncate(fd, 4096).is_ok()),
        ("lengthened", rustix::fs::ftruncate(fd, 1 << 40).is_ok()),
        ("punched", rustix::fs::fallocate(fd, hole, 0, 4096).is_ok()),
        ("sealed", rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE).is_ok()),
        ("made writable", rustix::fs::fchmod(fd, Mode::from_raw_mode(0o666)).is_ok()),
        ("taken over", rustix::fs::fchown(fd, Some(Uid::ROOT), Some(Gid::ROOT)).is_ok()),
    ];
    let opened = |flags| open(flags).is_ok_and(|fd| is_mapped(fd.as_raw_fd()));
    attempts.extend([
        ("opened for writing", open(OFlags::RDWR).is_ok()),
        ("opened for writing only", open(OFlags::WRONLY).is_ok()),
        ("opened and truncated", open(OFlags::RDWR | OFlags::TRUNC).is_ok()),
        ("remounted and opened", remount(&own) && opened(OFlags::RDWR)),
        ("bound elsewhere and opened", bind(&own).is_some_and(|fd| is_mapped(fd.as_raw_fd()))),
    ]);
    attempts
}

/// Makes the mount that a file was opened through writable.
fn remount(path: &str) -> bool {
    let none: Option<&str> = None;
    mount(none, path, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, none).is_ok()
}

/// Mounts a file somewhere of its own, writable, and opens it there.
fn bind(path: &str) -> Option<File> {
    let place = tempfile::NamedTempFile::new().ok()?;
    let none: Option<&str> = None;
    mount(Some(path), place.path(), none, MsFlags::MS_BIND, none).ok()?;
    let again = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    let _writable = mount(none, place.path(), none, again, none);
    File::options().read(true).write(true).open(place.path()).ok()
}

/// What it could do to the process at the other end of its socket.
fn upon_the_daemon(socket: BorrowedFd<'_>) -> Vec<(&'static str, bool)> {
    let pid = getsockopt(&socket, sockopt::PeerCredentials).map_or(0, |peer| peer.pid());
    let process: Option<OwnedFd> = getsockopt(&socket, sockopt::PeerPidfd).ok();
    let memory = |write| File::options().read(true).write(write).open(format!("/proc/{pid}/mem"));
    let fetched = |process: &OwnedFd| {
        (0..DESCRIPTORS).any(|fd| pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).is_ok())
    };
    let joined = |process: &OwnedFd| setns(process, CloneFlags::CLONE_NEWNS).is_ok();
    let attached = pid > 0 && ptrace::seize(Pid::from_raw(pid), Options::empty()).is_ok();
    if attached {
        let _let_go = ptrace::detach(Pid::from_raw(pid), None);
    }
    vec![
        ("read its memory", pid > 0 && memory(false).is_ok()),
        ("wrote its memory", pid > 0 && memory(true).is_ok()),
        ("listed its descriptors", pid > 0 && std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok()),
        ("fetched a descriptor", process.as_ref().is_some_and(fetched)),
        ("joined its mounts", process.as_ref().is_some_and(joined)),
        ("traced it", attached),
    ]
}
