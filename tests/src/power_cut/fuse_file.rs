use super::lossy_disk::{DiskError, LossyDisk};
use super::stall::{HeldRead, Stall};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

/// The only file's name.
pub(crate) const FILE_NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);
/// Nothing ever changes, so the kernel may know it for long.
const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// A file system of one file: a lossy disk. What the kernel answers to `fsync` on it is a flush of
/// that disk. A single thread serves it, so a flush covers every write that was answered.
#[derive(Debug)]
pub(crate) struct DiskFile {
    disk: Arc<Mutex<LossyDisk>>,
    stall: Arc<Stall>,
    bytes: u64,
}

impl DiskFile {
    pub(crate) fn new(disk: Arc<Mutex<LossyDisk>>, stall: Arc<Stall>) -> Self {
        let bytes = locked(&disk).bytes();
        Self { disk, stall, bytes }
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        let size = if is_file { self.bytes } else { 0 };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

pub(crate) fn locked(disk: &Mutex<LossyDisk>) -> MutexGuard<'_, LossyDisk> {
    disk.lock().expect("no thread panics over the disk")
}

/// A disk that is gone answers nothing but this.
fn errno(_error: DiskError) -> Errno {
    Errno::EIO
}

pub(super) fn answer_read(disk: &Mutex<LossyDisk>, HeldRead { at, bytes, reply }: HeldRead) {
    let disk = locked(disk);
    // A file may be read beyond its end, a disk may not.
    let left = disk.bytes().saturating_sub(at).min(u64::from(bytes)) as usize;
    match disk.read(at.min(disk.bytes()), left) {
        Ok(bytes) => reply.data(bytes),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for DiskFile {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == FILE_NAME {
            reply.entry(&KNOWN_FOR, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&KNOWN_FOR, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Past the page cache: what is read is what the disk holds, and a write is on the disk
        // when it is answered.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(read) = self.stall.hold(HeldRead { at, bytes, reply }) {
            answer_read(&self.disk, read);
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match locked(&self.disk).write(at, bytes) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Somebody closed the file: no reason for a disk to flush.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match locked(&self.disk).flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }
}
