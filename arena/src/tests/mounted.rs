#![expect(unsafe_code, reason = "mounting, and opening by handle, are raw system calls here")]

//! Files on mounts of the daemon, and what a client can do to them that memfds allow it. All of it
//! in a thread with mounts of its own, which go with it.

use super::*;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::ptr;
use undercroft_wire::Epoch;

const BYTES: u64 = 4 << 20;

/// Mounts that only the calling thread sees.
struct Place {
    dir: PathBuf,
    read_only: PathBuf,
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn mount(
    from: &str,
    to: &Path,
    kind: &str,
    flags: libc::c_ulong,
    data: &str,
) -> Result<(), String> {
    let (from_c, to_c, kind_c, data_c) = (c(from), c(to.to_str().unwrap()), c(kind), c(data));
    let data = data_c.as_ptr().cast();
    // SAFETY: all four are strings that live until the call returns.
    let rc = unsafe { libc::mount(from_c.as_ptr(), to_c.as_ptr(), kind_c.as_ptr(), flags, data) };
    let error = std::io::Error::last_os_error();
    if rc == 0 { Ok(()) } else { Err(format!("cannot mount {kind} on {}: {error}", to.display())) }
}

impl Place {
    /// A file system of `kind` and a read-only bind of it, below a directory of this thread alone.
    fn new(name: &str, kind: &str, options: &str) -> Result<Self, String> {
        let base =
            std::env::temp_dir().join(format!("undercroft-mount-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&base).unwrap();
        // SAFETY: the thread gets mounts of its own; nothing of this process is invalidated.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            let error = std::io::Error::last_os_error();
            std::fs::remove_dir(&base).unwrap();
            return Err(format!("a mount namespace of its own: {error}"));
        }
        mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
        mount("tmpfs", &base, "tmpfs", 0, "mode=0700")?;
        let place = Self { dir: base.join("arena"), read_only: base.join("arena-ro") };
        std::fs::create_dir(&place.dir).unwrap();
        std::fs::create_dir(&place.read_only).unwrap();
        mount(kind, &place.dir, kind, 0, options)?;
        let from = place.dir.to_str().unwrap();
        mount(from, &place.read_only, "", libc::MS_BIND, "")?;
        let again = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        mount("none", &place.read_only, "", again, "")?;
        Ok(place)
    }

    fn open(&self) -> Mount {
        open_mount(&self.dir, &self.read_only).unwrap()
    }
}

fn open_mount(dir: &Path, read_only: &Path) -> Result<Mount, String> {
    let open = |path: &Path| std::fs::File::open(path).map(OwnedFd::from);
    let dirs = open(dir).and_then(|dir| Ok((dir, open(read_only)?)));
    let (dir, read_only) = dirs.map_err(|error| error.to_string())?;
    Mount::new(dir, read_only).map_err(|error| error.to_string())
}

impl Drop for Place {
    fn drop(&mut self) {
        // What the mounts covered: an empty directory in the world that others see. The file
        // systems go with the thread.
        let base = self.dir.parent().unwrap();
        let base_c = c(base.to_str().unwrap());
        // SAFETY: the path lives until the call returns.
        unsafe { libc::umount2(base_c.as_ptr(), libc::MNT_DETACH) };
        let _left_behind = std::fs::remove_dir(base);
    }
}

/// Runs `test` in a thread with a mount of `kind`, or says why it cannot.
fn with_mount(name: &str, kind: &str, options: &str, test: impl FnOnce(&Place) + Send) {
    let run = || match Place::new(name, kind, options) {
        Ok(place) => test(&place),
        Err(reason) => skip(name, &reason),
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

fn skip(name: &str, reason: &str) {
    let line = format!("SKIPPED {name}: {reason}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

fn tmpfs(place: &Place) -> Backing {
    Backing::mounted(place.open(), None).unwrap()
}

/// Runs `attack` in a thread that has no rights but those over files, as root in a container.
fn as_container_root(attack: impl FnOnce() + Send) {
    let run = || {
        let mut sets = capabilities(None).unwrap();
        let kept = CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::CHOWN
            | CapabilitySet::FOWNER
            | CapabilitySet::FSETID;
        sets.effective &= kept;
        sets.permitted &= kept;
        sets.inheritable = CapabilitySet::empty();
        set_capabilities(None, sets).unwrap();
        assert!(sets.effective.contains(CapabilitySet::DAC_OVERRIDE));
        attack();
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

/// Opens the file of a descriptor for writing, by way of its handle.
fn open_by_handle(fd: &OwnedFd) -> Result<OwnedFd, std::io::Error> {
    #[repr(C)]
    struct Handle {
        head: libc::file_handle,
        bytes: [u8; 128],
    }
    let head = libc::file_handle { handle_bytes: 128, handle_type: 0, f_handle: [] };
    let mut handle = Handle { head, bytes: [0; 128] };
    let (mut id, at) = (0, ptr::from_mut(&mut handle).cast());
    // SAFETY: the handle has room for 128 bytes behind its head, as it says; the path is empty.
    let rc = unsafe {
        libc::name_to_handle_at(fd.as_raw_fd(), c"".as_ptr(), at, &raw mut id, libc::AT_EMPTY_PATH)
    };
    if rc != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the handle was filled in above.
    let opened = unsafe { libc::open_by_handle_at(fd.as_raw_fd(), at, libc::O_RDWR) };
    if opened < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(opened) })
}

/// Every way to write that a client with this descriptor has; the names of those that worked.
fn attack(fd: &OwnedFd, bytes: u64) -> Vec<&'static str> {
    let mut worked = Vec::new();
    let mut attempt = |name, succeeded: bool| {
        if succeeded {
            worked.push(name);
        }
    };
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let reopened = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    attempt("open again", reopened.is_ok());
    attempt("open by handle", open_by_handle(fd).is_ok());
    attempt("truncate by path", std::fs::OpenOptions::new().write(true).open(&path).is_ok());
    attempt("change mode", rustix::fs::fchmod(fd, Mode::from_raw_mode(0o666)).is_ok());
    attempt("change owner", std::os::unix::fs::fchown(fd, Some(1), Some(1)).is_ok());
    attempt("write", rustix::io::pwrite(fd, b"x", 0).is_ok());
    attempt("truncate", rustix::fs::ftruncate(fd, 0).is_ok());
    attempt("punch", rustix::fs::fallocate(fd, punch(), 0, 4096).is_ok());
    attempt("seal", rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE).is_ok());
    attempt("map", mapping::Mapping::shared(fd.as_fd(), bytes as usize, true).is_ok());
    let view = mapping::Mapping::shared(fd.as_fd(), bytes as usize, false).unwrap();
    // SAFETY: the range is the mapping's.
    unsafe {
        let at = view.base().as_ptr().cast();
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        attempt("protect", libc::mprotect(at, 4096, writable) == 0);
        attempt("remove", libc::madvise(at, 4096, libc::MADV_REMOVE) == 0);
    }
    worked
}

#[test]
fn container_root_cannot_write_a_mounted_part_and_can_write_a_memfd() {
    let name = "container_root_cannot_write_a_mounted_part_and_can_write_a_memfd";
    with_mount(name, "tmpfs", "mode=0700,size=64m", |place| {
        let (mounted, facts) = Part::create_in(&tmpfs(place), PartId(7), BYTES, &SMALL).unwrap();
        assert!(mounted.is_protected() && facts.pages == PageKind::Base);
        let memfd = part(BYTES, &SMALL);
        assert!(!memfd.is_protected());
        let board = Board::create_in(&tmpfs(place), Epoch(1), BYTES).unwrap();
        let fds = [&mounted, &memfd].map(|part| {
            // The daemon's user is another one than the container's root.
            std::os::unix::fs::fchown(part.fd(), Some(61_000), Some(61_000)).unwrap();
            part.span(0, 4).unwrap().copy_from_slice(b"safe");
            part.read_only_fd().unwrap()
        });
        let board_fd = board.read_only_fd().unwrap();
        let board_bytes = rustix::fs::fstat(&board_fd).unwrap().st_size as u64;
        as_container_root(|| {
            assert_eq!(attack(&fds[0], BYTES), Vec::<&str>::new(), "through a read-only mount");
            assert_eq!(bytes_of(&mounted.span(0, 4).unwrap()), b"safe");
            assert_eq!(attack(&board_fd, board_bytes), Vec::<&str>::new());
            // Who overrides its mode opens a memfd for writing: that the attack can succeed is what
            // its failure above is worth.
            let worked = attack(&fds[1], BYTES);
            for way in ["open again", "truncate by path", "change mode", "change owner"] {
                assert!(worked.contains(&way), "{way}: {worked:?}");
            }
        });
    });
}

#[test]
fn a_mounted_part_is_seen_and_adopted_like_any_other() {
    let name = "a_mounted_part_is_seen_and_adopted_like_any_other";
    with_mount(name, "tmpfs", "mode=0700", seen_and_adopted);
}

#[test]
fn a_mount_that_prefers_huge_pages_takes_parts_of_any_size() {
    // The block size of its files is a huge page, which their sizes are no multiples of.
    let name = "a_mount_that_prefers_huge_pages_takes_parts_of_any_size";
    with_mount(name, "tmpfs", "mode=0700,huge=always", seen_and_adopted);
}

fn seen_and_adopted(place: &Place) {
    let backing = tmpfs(place);
    for options in [SMALL, HUGE, PartOptions { prefault_threads: 0, ..SMALL }] {
        let (first, _) = Part::create_in(&backing, PartId(7), BYTES + 1, &options).unwrap();
        first.span(BYTES, 1).unwrap().copy_from_slice(&[9]);
        let read_only = first.read_only_fd().unwrap();
        let view = PartView::map(&read_only, PartId(7), BYTES + 1).unwrap();
        let fd = rustix::io::dup(first.fd()).unwrap();
        drop(first);
        let copy = rustix::io::dup(&fd).unwrap();
        let refused = Part::adopt(PartId(7), BYTES + 1, copy, None, &options);
        assert!(matches!(refused, Err(ArenaError::NotSealed)), "it could not be handed out");
        let (part, _) = Part::adopt(PartId(7), BYTES + 1, fd, Some(read_only), &options).unwrap();
        assert!(part.is_protected());
        assert_eq!(bytes_of(&part.span(BYTES, 1).unwrap()), [9]);
        part.span(0, 4).unwrap().copy_from_slice(b"warm");
        assert_eq!(bytes_of(&view.span(0, 4).unwrap()), b"warm");
    }
    let board = Board::create_in(&backing, Epoch(4), BYTES).unwrap();
    let (fd, read_only) = (rustix::io::dup(board.fd()).unwrap(), board.read_only_fd().unwrap());
    let view = BoardView::map(&read_only).unwrap();
    drop(board);
    let board = Board::adopt(fd, Some(read_only)).unwrap();
    board.beat();
    assert_eq!((view.heartbeat(), view.epoch()), (1, Epoch(4)));
    let names = std::fs::read_dir(&place.dir).unwrap().count();
    assert_eq!(names, 0, "no file keeps a name");
}

#[test]
fn a_part_outlives_the_mounts_it_was_made_on() {
    let name = "a_part_outlives_the_mounts_it_was_made_on";
    let mut left = None;
    with_mount(name, "tmpfs", "mode=0700", |place| {
        let (part, facts) = Part::create_in(&tmpfs(place), PartId(0), BYTES, &HUGE).unwrap();
        let line = "reserved huge pages: there is no mount of reserved huge pages".to_owned();
        assert!(facts.refused.contains(&line), "{facts:?}");
        part.span(0, 4).unwrap().copy_from_slice(b"warm");
        left = Some((rustix::io::dup(part.fd()).unwrap(), part.read_only_fd().unwrap()));
    });
    // The next daemon has mounts of its own; those of the one before are gone with it.
    let Some((fd, read_only)) = left else { return };
    let (part, _) = Part::adopt(PartId(0), BYTES, fd, Some(read_only), &SMALL).unwrap();
    assert_eq!(bytes_of(&part.span(0, 4).unwrap()), b"warm");
    let fd = part.read_only_fd().unwrap();
    as_container_root(|| assert_eq!(attack(&fd, BYTES), Vec::<&str>::new()));
    assert!(PartView::map(&fd, PartId(0), BYTES).is_ok());
}

#[test]
fn a_descriptor_that_could_be_written_through_is_not_taken() {
    let name = "a_descriptor_that_could_be_written_through_is_not_taken";
    with_mount(name, "tmpfs", "mode=0700", |place| {
        let make = || {
            let (part, _) = Part::create_in(&tmpfs(place), PartId(0), 8192, &SMALL).unwrap();
            (rustix::io::dup(part.fd()).unwrap(), part.read_only_fd().unwrap())
        };
        let adopt = |fd: OwnedFd, read_only: OwnedFd| {
            Part::adopt(PartId(0), 8192, fd, Some(read_only), &SMALL).map(|_| ())
        };
        let ((fd, read_only), (other, _)) = (make(), make());
        let refused = |result| matches!(result, Err(ArenaError::Unprotected { .. }));
        let dup = |fd: &OwnedFd| rustix::io::dup(fd).unwrap();
        assert!(refused(adopt(other, dup(&read_only))), "two files");
        assert!(refused(adopt(dup(&fd), dup(&fd))), "the writable one twice");
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let same_mount = rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(matches!(PartView::map(&same_mount, PartId(0), 8192), Err(ArenaError::NotSealed)));
        assert!(refused(adopt(dup(&fd), same_mount)), "read-only, but not its mount");
        assert!(adopt(fd, read_only).is_ok());
        // A file that has a name can be opened by it.
        std::fs::write(place.dir.join("named"), [0; 8192]).unwrap();
        let named: OwnedFd = std::fs::File::open(place.read_only.join("named")).unwrap().into();
        assert!(matches!(PartView::map(&named, PartId(0), 8192), Err(ArenaError::NotSealed)));
    });
}

#[test]
fn directories_that_do_not_protect_are_refused_by_reason() {
    let name = "directories_that_do_not_protect_are_refused_by_reason";
    with_mount(name, "tmpfs", "mode=0700", |place| {
        let reason =
            |dir: &Path, read_only: &Path| open_mount(dir, read_only).map(|_| ()).unwrap_err();
        let Place { dir, read_only } = place;
        assert!(reason(dir, dir).contains("read-only"), "{}", reason(dir, dir));
        assert!(reason(read_only, read_only).contains("writable"));
        assert!(reason(dir, dir.parent().unwrap()).contains("bind mount"));
        assert!(
            reason(Path::new("/proc/self"), Path::new("/proc/self")).contains("this user's alone")
        );
        let mode = |mode| rustix::fs::chmod(dir, Mode::from_raw_mode(mode)).unwrap();
        mode(0o750);
        assert!(reason(dir, read_only).contains("0700"));
        mode(0o700);
        // A name that a killed daemon left is removed; what is not ours stays.
        for file in ["undercroft-1-0", "other"] {
            std::fs::write(dir.join(file), "").unwrap();
        }
        assert!(open_mount(dir, read_only).is_ok());
        let left: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
    });
}

#[test]
fn a_full_mount_is_an_error_and_not_a_death() {
    let name = "a_full_mount_is_an_error_and_not_a_death";
    with_mount(name, "tmpfs", "mode=0700,size=2m", |place| {
        let backing = tmpfs(place);
        for prefault_threads in [0, 1] {
            let options = PartOptions { prefault_threads, ..SMALL };
            let refused = Part::create_in(&backing, PartId(0), BYTES, &options);
            assert!(matches!(refused, Err(ArenaError::System { .. })), "{refused:?}");
            assert!(Part::create_in(&backing, PartId(0), 1 << 20, &options).is_ok());
        }
        let refused = Board::create_in(&backing, Epoch(1), 4 << 30);
        assert!(matches!(refused, Err(ArenaError::System { .. })), "{refused:?}");
    });
}

#[test]
fn container_root_cannot_take_a_reserved_huge_page_back() {
    let name = "container_root_cannot_take_a_reserved_huge_page_back";
    with_mount(name, "hugetlbfs", "mode=0700,pagesize=2M", |place| {
        let plain = place.dir.parent().unwrap().join("plain");
        let plain_read_only = place.dir.parent().unwrap().join("plain-ro");
        std::fs::create_dir(&plain).unwrap();
        std::fs::create_dir(&plain_read_only).unwrap();
        mount("tmpfs", &plain, "tmpfs", 0, "mode=0700").unwrap();
        mount(plain.to_str().unwrap(), &plain_read_only, "", libc::MS_BIND, "").unwrap();
        let again = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        mount("none", &plain_read_only, "", again, "").unwrap();
        let plain = || open_mount(&plain, &plain_read_only).unwrap();
        assert!(Backing::mounted(place.open(), None).is_err(), "huge pages are not all there is");
        assert!(Backing::mounted(plain(), Some(plain())).is_err());
        let backing = Backing::mounted(plain(), Some(place.open())).unwrap();
        let (part, facts) = Part::create_in(&backing, PartId(0), BYTES, &HUGE).unwrap();
        assert!(part.is_protected());
        if facts.pages != PageKind::Hugetlb {
            return skip(name, "no huge pages are reserved");
        }
        part.span(0, 4).unwrap().copy_from_slice(b"safe");
        let (fd, read_only) = (rustix::io::dup(part.fd()).unwrap(), part.read_only_fd().unwrap());
        std::os::unix::fs::fchown(&fd, Some(61_000), Some(61_000)).unwrap();
        drop(part);
        let (part, facts) = Part::adopt(PartId(0), BYTES, fd, Some(read_only), &HUGE).unwrap();
        assert_eq!((facts.pages, facts.huge_bytes), (PageKind::Hugetlb, BYTES));
        let view = PartView::map(part.read_only_fd().unwrap(), PartId(0), BYTES).unwrap();
        let fd = part.read_only_fd().unwrap();
        as_container_root(|| assert_eq!(attack(&fd, BYTES), Vec::<&str>::new()));
        assert_eq!(bytes_of(&view.span(0, 4).unwrap()), b"safe");
    });
}

#[test]
fn mounts_of_our_own_are_in_no_directory_and_nobody_writes_through_them() {
    let name = "mounts_of_our_own_are_in_no_directory_and_nobody_writes_through_them";
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = rustix::process::geteuid().as_raw();
    let mounts = match OwnMounts::make(own, rustix::process::getegid().as_raw()) {
        Ok(mounts) => mounts,
        Err(error) => return skip(name, &error.to_string()),
    };
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    let backing = mounts.into_backing().unwrap();
    assert!(backing.is_protected());
    for options in [SMALL, HUGE, PartOptions { prefault_threads: 0, ..SMALL }] {
        let (part, _) = Part::create_in(&backing, PartId(0), BYTES, &options).unwrap();
        std::os::unix::fs::fchown(part.fd(), Some(61_000), Some(61_000)).unwrap();
        part.span(0, 4).unwrap().copy_from_slice(b"safe");
        let fd = part.read_only_fd().unwrap();
        as_container_root(|| assert_eq!(attack(&fd, BYTES), Vec::<&str>::new()));
        assert_eq!(attack(&fd, BYTES), Vec::<&str>::new(), "with all the rights there are");
        assert_eq!(mount_again(&fd), Vec::<&str>::new());
        assert_eq!(bytes_of(&part.span(0, 4).unwrap()), b"safe");
    }
    // A board has room for an arena of any size, and takes no memory for what is not used.
    let board = Board::create_in(&backing, Epoch(1), 1 << 40).unwrap();
    assert!(board.is_protected());
    assert_eq!(attack(&board.read_only_fd().unwrap(), board.bytes()), Vec::<&str>::new());
    let taken = rustix::fs::fstat(board.fd()).unwrap().st_blocks;
    assert!(taken <= 64, "{taken} blocks");
}

#[test]
fn mounts_of_another_user_are_not_taken() {
    let name = "mounts_of_another_user_are_not_taken";
    match OwnMounts::make(61_000, 61_000) {
        Ok(mounts) => {
            let refused = mounts.into_backing().unwrap_err().to_string();
            assert!(refused.contains("this user's alone"), "{refused}");
        }
        Err(error) => skip(name, &error.to_string()),
    }
}

/// Every way to have the mount of this descriptor writable that one has who may mount; the names of
/// those that worked.
fn mount_again(fd: &OwnedFd) -> Vec<&'static str> {
    use rustix::mount::{MountFlags, OpenTreeFlags, mount_bind, mount_remount, open_tree};
    let mut worked = Vec::new();
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let place = std::env::temp_dir().join(format!("undercroft-again-{}", std::process::id()));
    std::fs::write(&place, "").unwrap();
    if mount_remount(&path, MountFlags::BIND, c"").is_ok() {
        worked.push("remount");
    }
    if mount_bind(&path, &place).is_ok() {
        worked.push("bind");
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH;
    if open_tree(fd, "", flags).is_ok() {
        worked.push("clone");
    }
    std::fs::remove_file(place).unwrap();
    worked
}
