#![expect(unsafe_code, reason = "a thread gives up the mounts that it shares with others")]

//! Mounts that nobody has in any directory: made here, known by their descriptors alone.

use crate::{ArenaError, Backing, Mount};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount,
};
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::os::fd::OwnedFd;

/// A directory that is there wherever we are. The mounts cover it in one thread, for a moment.
const PLACE: &str = "/proc";
const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A directory on a mount, and the same directory through a read-only bind of it.
#[derive(Debug)]
pub struct MountPair {
    /// Files are made through this one.
    pub dir: OwnedFd,
    /// And what is handed out is opened through this one.
    pub read_only: OwnedFd,
}

/// Empty file systems of shared memory that are mounted nowhere. They live as long as there is a
/// descriptor of them or of a file in them.
#[derive(Debug)]
pub struct OwnMounts {
    /// Ordinary memory.
    pub plain: MountPair,
    /// Reserved huge pages, where the kernel has such.
    pub reserved: Option<MountPair>,
}

impl OwnMounts {
    /// Makes them, for this user and group alone. They have no size of their own: what bounds them
    /// is what bounds any memory.
    ///
    /// # Errors
    /// No right to mount (`CAP_SYS_ADMIN`).
    pub fn make(uid: u32, gid: u32) -> Result<Self, ArenaError> {
        // Mounts belong to a thread like its working directory does. The ones that this thread makes
        // go out of sight with it.
        std::thread::scope(|scope| {
            let made = scope.spawn(|| in_private(uid, gid)).join();
            made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Memory on them.
    ///
    /// # Errors
    /// They are not this process's user's alone.
    pub fn into_backing(self) -> Result<Backing, ArenaError> {
        let Self { plain, reserved } = self;
        let reserved = reserved.map(|MountPair { dir, read_only }| Mount::new(dir, read_only));
        Backing::mounted(Mount::new(plain.dir, plain.read_only)?, reserved.transpose()?)
    }
}

fn failed(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> ArenaError {
    move |errno| ArenaError::Mounting { what, source: errno.into() }
}

fn in_private(uid: u32, gid: u32) -> Result<OwnMounts, ArenaError> {
    // SAFETY: only mounts, and the working directory and file mask, which this thread does not use,
    // become its own: no descriptor of this process does.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
        .map_err(failed("have mounts of our own (it takes CAP_SYS_ADMIN)"))?;
    let apart = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", apart).map_err(failed("keep our mounts from others"))?;
    let options = format!("mode=0700,uid={uid},gid={gid}");
    // Without a size a tmpfs ends at half of the memory. A kernel without huge pages knows no `huge`.
    let bounded = format!("{options},size=0,nr_inodes=0");
    let plain = pair("tmpfs", &format!("{bounded},huge=advise"));
    let plain = plain.or_else(|_| pair("tmpfs", &bounded))?;
    let reserved = pair("hugetlbfs", &format!("{options},pagesize=2M"));
    Ok(OwnMounts { plain, reserved: reserved.ok() })
}

fn pair(kind: &str, options: &str) -> Result<MountPair, ArenaError> {
    let options = CString::new(options).expect("options have no zero byte");
    mount(kind, PLACE, kind, FLAGS, options.as_c_str()).map_err(failed("mount memory"))?;
    let dir = open()?;
    // Above it, where it covers it.
    mount_bind(PLACE, PLACE).map_err(failed("bind a mount"))?;
    mount_remount(PLACE, FLAGS | MountFlags::BIND | MountFlags::RDONLY, c"")
        .map_err(failed("make a bind read-only"))?;
    Ok(MountPair { dir, read_only: open()? })
}

fn open() -> Result<OwnedFd, ArenaError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(PLACE, flags, Mode::empty()).map_err(failed("open a mount"))
}
