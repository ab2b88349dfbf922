use super::fuse_file::answer_read;
use super::lossy_disk::LossyDisk;
use fuser::ReplyData;
use std::sync::{Mutex, MutexGuard};

/// Reads of a disk that hang until somebody lets them go on.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    /// `None` while nothing hangs.
    held: Mutex<Option<Vec<HeldRead>>>,
}

/// A read that was not answered.
#[derive(Debug)]
pub(super) struct HeldRead {
    pub(super) at: u64,
    pub(super) bytes: u32,
    pub(super) reply: ReplyData,
}

impl Stall {
    /// From now on reads hang.
    pub(crate) fn begin(&self) {
        self.held().get_or_insert_default();
    }

    /// How many hang.
    pub(crate) fn reads(&self) -> usize {
        self.held().as_ref().map_or(0, Vec::len)
    }

    /// All of them go on, with what the disk holds now.
    pub(crate) fn end(&self, disk: &Mutex<LossyDisk>) {
        let reads = self.held().take();
        for read in reads.into_iter().flatten() {
            answer_read(disk, read);
        }
    }

    /// Gives the read back if it is not to hang.
    pub(super) fn hold(&self, read: HeldRead) -> Option<HeldRead> {
        match &mut *self.held() {
            Some(reads) => {
                reads.push(read);
                None
            }
            None => Some(read),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<HeldRead>>> {
        self.held.lock().expect("no thread panics over reads that hang")
    }
}
