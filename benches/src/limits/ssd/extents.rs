//! Where the bare loops read and write.

use super::Tier;
use crate::BenchError;
use crate::limits::bare_ring::Way;
use crate::limits::rig::Rig;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The bare loops' own file for writing.
pub(super) const TWIN_BYTES: u64 = 1 << 30;
/// A hole shorter than this may be taken for written, which costs the bare loop nothing to read.
const HOLE_STEP: u64 = 256 << 10;
/// What is looked at of each step.
const SAMPLE_BYTES: u64 = 64;

/// The daemon's one file.
pub(super) fn log_file(rig: &Rig) -> Result<PathBuf, BenchError> {
    let store = rig.daemon.store().expect("this daemon has an SSD tier");
    let files = store.read_dir().map_err(BenchError::file("read", store))?;
    let largest = files
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.path())))
        .max();
    largest.map(|(_, path)| path).ok_or_else(|| rig.problem("its store has no file".to_owned()))
}

/// Where whole pages of the file hold something. A hole would be read without the device, and so
/// may zeros be, which the daemon writes ahead of a segment's first use.
pub(crate) fn written_extents(path: &Path, page: u32) -> io::Result<Vec<u64>> {
    let file = File::open(path)?;
    let page = u64::from(page);
    let mut offsets = Vec::new();
    let mut sample = [0; SAMPLE_BYTES as usize];
    let zeros = sample;
    'pages: for offset in (0..file.metadata()?.len() / page).map(|index| index * page) {
        let steps = (offset..offset + page).step_by(HOLE_STEP as usize);
        for at in steps.chain([offset + page - SAMPLE_BYTES]) {
            file.read_exact_at(&mut sample, at)?;
            if sample == zeros {
                continue 'pages;
            }
        }
        offsets.push(offset);
    }
    if offsets.is_empty() {
        Err(io::Error::other("no page of it was written"))
    } else {
        Ok(offsets)
    }
}

/// A file like the daemon's, all of it written once, for the bare loops that write.
pub(super) struct Twin {
    path: PathBuf,
    offsets: Vec<u64>,
    _folder: tempfile::TempDir,
}

impl Twin {
    pub(super) fn create(within: &Path, tier: Tier) -> Result<Self, BenchError> {
        let folder = crate::daemon::folder("undercroft-bench-twin-", within)?;
        let path = folder.path().join("twin");
        let file = File::create(&path).map_err(BenchError::file("create", &path))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, TWIN_BYTES)
            .map_err(io::Error::from)
            .map_err(BenchError::file("reserve room for", &path))?;
        let page = u64::from(tier.page);
        let offsets: Vec<u64> = (0..TWIN_BYTES / page).map(|index| index * page).collect();
        let mut ring = tier.bare(&path, Way::Write)?;
        let mut next = 0;
        while next < offsets.len() {
            let window = Duration::from_millis(100);
            let written = ring.run(&offsets, &mut next, window);
            written.map_err(BenchError::file("write", &path))?;
        }
        Ok(Self { path, offsets, _folder: folder })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where its pages begin.
    pub(super) fn offsets(&self) -> &[u64] {
        &self.offsets
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    const PAGE: u64 = 2 * HOLE_STEP;

    /// A sparse file of four pages with these pieces written.
    fn extents(pieces: &[(u64, u64, u8)]) -> io::Result<Vec<u64>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = File::create_new(&path).unwrap();
        file.set_len(4 * PAGE).unwrap();
        for (at, len, byte) in pieces {
            file.write_all_at(&vec![*byte; *len as usize], *at).unwrap();
        }
        written_extents(&path, PAGE as u32)
    }

    #[test]
    fn holes_zeros_and_pages_that_are_only_begun_are_left_out() {
        let begun = (2 * PAGE, PAGE - SAMPLE_BYTES, 7);
        let found = extents(&[(0, PAGE, 7), (PAGE, PAGE, 0), begun]).unwrap();
        assert_eq!(found, [0]);
        let found = extents(&[(PAGE + HOLE_STEP, 3 * PAGE - HOLE_STEP, 7)]).unwrap();
        assert_eq!(found, [2 * PAGE, 3 * PAGE]);
    }

    #[test]
    fn a_file_without_a_written_page_is_an_error() {
        assert!(extents(&[]).unwrap_err().to_string().contains("no page of it was written"));
    }
}
