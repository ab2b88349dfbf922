#![expect(unsafe_code, reason = "what a client may do to its mapping are raw system calls")]

//! What a client can do to its staging area, and what the daemon makes of it.

use super::*;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

const SLOT: u32 = 256 << 10;
const SLOTS: u32 = 2;
const AREA: usize = (SLOTS * SLOT) as usize;

/// A staging area as both sides see it. The client has its own description of the file, as if
/// it had come over a socket.
struct Rig {
    staging: Staging,
    theirs: mapping::Mapping,
    frame: Span,
}

impl Rig {
    fn new() -> Self {
        let staging = Staging::create(SLOTS, SLOT).unwrap();
        let theirs = mapping::Mapping::shared(staging.fd(), AREA, true).unwrap();
        let frame = Memory::new(SLOT.into(), 1).unwrap().span(0, SLOT as usize).unwrap();
        Self { staging, theirs, frame }
    }

    /// The daemon copies a page out and believes the copy, and copies one in.
    fn copy(&self, round: usize) {
        let slot = self.staging.slot(SlotId(round as u32 % SLOTS)).unwrap();
        let sum = copy_checked(&slot, &self.frame);
        assert_eq!(sum, checksum(&self.frame), "the sum is that of the copy");
        self.frame.write(|bytes| bytes.fill(round as u8));
        slot.copy_from(&self.frame);
        assert!(self.frame.read(|bytes| bytes.iter().all(|byte| *byte == round as u8)));
    }
}

fn advise(at: *mut u8, len: usize, advice: i32) -> bool {
    // SAFETY: the callers name ranges of a mapping that lives, and nobody relies on its bytes.
    unsafe { libc::madvise(at.cast(), len, advice) == 0 }
}

#[test]
fn its_size_and_seals_are_not_the_clients_to_change() {
    let rig = Rig::new();
    let fd = rig.staging.fd();
    for bytes in [0, 4096, AREA as u64 - 1, AREA as u64 + 1, 1 << 40] {
        assert!(rustix::fs::ftruncate(fd, bytes).is_err(), "{bytes}");
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::TRUNC;
    assert!(rustix::fs::open(path, flags, Mode::empty()).is_err(), "nor by opening it anew");
    for mode in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
        let beyond = rustix::fs::fallocate(fd, mode, AREA as u64, 4096);
        assert!(beyond.is_err() || rustix::fs::fstat(fd).unwrap().st_size as usize == AREA);
    }
    for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert!(rustix::fs::fallocate(fd, mode, 0, 4096).is_err());
    }
    for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE, SealFlags::SHRINK] {
        assert_eq!(rustix::fs::fcntl_add_seals(fd, seal), Err(Errno::PERM));
    }
    assert!(rustix::io::pwrite(fd, b"x", AREA as u64).is_err());
    assert_eq!(rustix::fs::fstat(fd).unwrap().st_size as usize, AREA);
    assert!(memfd::is_tmpfs(fd), "a hole in reserved huge pages would be a fault");
    rig.copy(1);
}

#[test]
fn the_daemon_survives_what_is_taken_away_while_it_copies() {
    let rig = Rig::new();
    let stop = AtomicBool::new(false);
    let attacks = AtomicU32::new(0);
    let base = AtomicUsize::new(rig.theirs.base().as_ptr() as usize);
    let until_stopped = |attack: &mut dyn FnMut(usize)| {
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            attack(round);
            attacks.fetch_add(1, Ordering::Relaxed);
        }
    };
    let at = |offset: usize| (base.load(Ordering::Relaxed) + offset) as *mut u8;
    let page = |round: usize| round * 611_953 % (AREA / 4096) * 4096;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until_stopped(&mut |round| {
                let len = [4096, 64 << 10, AREA as u64][round % 3];
                let start = (page(round) as u64).min(AREA as u64 - len);
                rustix::fs::fallocate(rig.staging.fd(), punch(), start, len).unwrap();
            });
        });
        scope.spawn(|| {
            until_stopped(&mut |round| {
                let advice = [libc::MADV_REMOVE, libc::MADV_PAGEOUT, libc::MADV_DONTNEED];
                let _done = advise(at(page(round)), 4096, advice[round % 3]);
            });
        });
        scope.spawn(|| {
            until_stopped(&mut |round| {
                // SAFETY: one byte of the client's mapping, which other threads may write too.
                unsafe { at(page(round)).write_volatile(round as u8) };
            });
        });
        let mut round = 0;
        while round < 300 || attacks.load(Ordering::Relaxed) < 1000 {
            rig.copy(round);
            round += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(rustix::fs::fstat(rig.staging.fd()).unwrap().st_size as usize, AREA);
}

#[test]
fn a_client_that_dies_in_the_middle_of_it_leaves_no_trace() {
    let rig = Rig::new();
    for round in 0..20 {
        // SAFETY: the child touches its mapping and the descriptor and nothing else.
        let child = unsafe { libc::fork() };
        if child == 0 {
            for step in 0usize.. {
                let start = step * 7919 % (AREA / 4096) * 4096;
                let _punched = rustix::fs::fallocate(rig.staging.fd(), punch(), start as u64, 4096);
                // SAFETY: the page lies inside the child's copy of the mapping.
                unsafe { rig.theirs.base().as_ptr().add(start).write_bytes(step as u8, 4096) };
            }
        }
        let child = Pid::from_raw(child).unwrap();
        for copy in 0..=round {
            rig.copy(copy);
        }
        kill_process(child, Signal::KILL).unwrap();
        rig.copy(round);
        waitpid(Some(child), WaitOptions::empty()).unwrap();
        let slot = rig.staging.slot(SlotId(0)).unwrap();
        assert_eq!(copy_checked(&slot, &rig.frame), copy_checked(&slot, &rig.frame), "it is still");
    }
}

/// `struct uffdio_api` and `struct uffdio_register` of the kernel.
#[repr(C)]
struct FaultApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct FaultRange {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// Has faults of this process on `mapping` wait for an answer that never comes.
fn hang_faults(mapping: &mapping::Mapping) -> Result<OwnedFd, std::io::Error> {
    const API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
    const REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
    const MISSING: u64 = 1;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: takes no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd as i32) };
    let mut api = FaultApi { api: 0xaa, features: 0, ioctls: 0 };
    let (start, len) = (mapping.base().as_ptr() as u64, mapping.len() as u64);
    let mut range = FaultRange { start, len, mode: MISSING, ioctls: 0 };
    // SAFETY: both structures are what the requests take, and live until the calls return.
    let refused = unsafe {
        libc::ioctl(fd.as_raw_fd(), API, &raw mut api) != 0
            || libc::ioctl(fd.as_raw_fd(), REGISTER, &raw mut range) != 0
    };
    if refused { Err(std::io::Error::last_os_error()) } else { Ok(fd) }
}

#[test]
fn a_client_that_hangs_its_own_faults_does_not_hang_the_daemon() {
    let rig = Rig::new();
    let _hung = match hang_faults(&rig.theirs) {
        Ok(fd) => fd,
        Err(error) => {
            let name = "a_client_that_hangs_its_own_faults_does_not_hang_the_daemon";
            let line = format!("SKIPPED {name}: userfaultfd: {error}\n");
            return std::io::stdout().write_all(line.as_bytes()).unwrap();
        }
    };
    rustix::fs::fallocate(rig.staging.fd(), punch(), 0, AREA as u64).unwrap();
    // Here the client would wait for ever. The daemon finds zeros.
    let slot = rig.staging.slot(SlotId(1)).unwrap();
    assert_eq!(copy_checked(&slot, &rig.frame), checksum(&rig.frame));
    assert!(rig.frame.read(|bytes| bytes.iter().all(|byte| *byte == 0)));
    rig.copy(1);
}

#[test]
fn a_descriptor_of_the_arena_takes_nothing_away() {
    for options in [SMALL, HUGE] {
        let part = part(4 << 20, &options);
        part.span(0, 4096).unwrap().copy_from_slice(&[7; 4096]);
        let fd = part.read_only_fd().unwrap();
        let theirs = mapping::Mapping::shared(fd.as_fd(), part.len(), false).unwrap();
        let base = theirs.base().as_ptr();
        for advice in [libc::MADV_REMOVE, libc::MADV_HWPOISON, libc::MADV_FREE] {
            if advice != libc::MADV_HWPOISON || !rustix::process::geteuid().is_root() {
                assert!(!advise(base, 4096, advice), "{advice}");
            }
        }
        // These work, on the client's own view and not on the page.
        assert!(advise(base, 4096, libc::MADV_DONTNEED));
        let _paged_out = advise(base, 4096, libc::MADV_PAGEOUT);
        assert_eq!(rustix::fs::fallocate(&fd, punch(), 0, 4096), Err(Errno::BADF));
        assert_eq!(bytes_of(&part.span(0, 4096).unwrap()), [7; 4096]);
    }
}
