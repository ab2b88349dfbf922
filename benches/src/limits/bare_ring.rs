#![expect(
    unsafe_code,
    reason = "io_uring takes buffers by address; this is the bare twin of the log's ring"
)]

use crate::BenchError;
use io_uring::{IoUring, opcode, types};
use rustix::fs::{Mode, OFlags};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{DeviceError, Memory};

/// Direct I/O needs offsets, lengths and addresses that are multiples of this.
const ALIGN: u64 = 4096;
/// The one registered file.
const FILE: types::Fixed = types::Fixed(0);

/// Of ten operations of a mix, how many write.
const WRITES_OF_TEN: usize = 3;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
    /// Seven operations of ten read; the others write half the extents away.
    Mix,
}

impl Way {
    /// Of the operation with this number: its way, and the extent it goes to.
    fn of(self, number: usize, offsets: &[u64]) -> (Self, u64) {
        let at = |index: usize| offsets[index % offsets.len()];
        match self {
            // Adds up to three of any ten in a row, spread as evenly as can be.
            Self::Mix if number * WRITES_OF_TEN % 10 < WRITES_OF_TEN => {
                (Self::Write, at(number + offsets.len() / 2))
            }
            Self::Mix => (Self::Read, at(number)),
            way => (way, at(number)),
        }
    }
}

/// The fastest direct I/O this machine does from one thread: `depth` operations of one size in
/// flight, registered file and buffers, nothing done with the bytes. They go to, or come from, as
/// much memory as the daemon's do: a device whose transfers a processor copies, as those of virtual
/// machines are, is faster where they stay in its cache, and no store of pages can stay there.
pub(crate) struct BareRing {
    /// Before the memory: the kernel lets go of the buffers first.
    ring: IoUring,
    /// Whether the kernel took the buffers; else plain operations, as the daemon's ring does.
    registered: bool,
    /// Whether the file system does direct I/O; else it is done without, as the daemon does.
    direct: bool,
    memory: Memory,
    /// Places in the memory that no operation uses; the one used longest ago is next.
    places: VecDeque<u64>,
    depth: u32,
    block: u32,
    way: Way,
    _file: File,
}

impl BareRing {
    /// Operations of `block` bytes on the file, up to `depth` at once, all over `memory_bytes` of
    /// memory (at most 1 GiB; at least what they need at once is taken).
    pub(crate) fn open(
        path: &Path,
        way: Way,
        depth: u32,
        block: u32,
        memory_bytes: u64,
    ) -> Result<Self, BenchError> {
        let failed = || BenchError::system("set up the bare io_uring loop");
        let access = match way {
            Way::Read => OFlags::RDONLY,
            Way::Write => OFlags::WRONLY,
            Way::Mix => OFlags::RDWR,
        };
        let flags = access | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty());
        let direct = opened.is_ok();
        let opened = opened
            .or_else(|_| rustix::fs::open(path, flags, Mode::empty()))
            .map_err(io::Error::from)
            .map_err(BenchError::file("open", path))?;
        let file = File::from(opened);
        let ring = ring(depth).map_err(failed())?;
        ring.submitter().register_files(&[file.as_raw_fd()]).map_err(failed())?;
        let stride = u64::from(block).next_multiple_of(ALIGN);
        let bytes = (stride * u64::from(depth)).max(memory_bytes / stride * stride);
        let memory = Memory::new(bytes, 1).map_err(DeviceError::from)?;
        let all = memory.span(0, bytes as usize).map_err(DeviceError::from)?;
        // No drive is asked to store zeros: some do not.
        all.write(|bytes| fastrand::Rng::with_seed(1).fill(bytes));
        let iovec = libc::iovec { iov_base: all.as_mut_ptr().cast(), iov_len: all.len() };
        // SAFETY: `memory` keeps it mapped, and `ring` is dropped first.
        let registered = unsafe { ring.submitter().register_buffers(&[iovec]) }.is_ok();
        let places = (0..bytes / stride).map(|index| index * stride).collect();
        Ok(Self { ring, registered, direct, memory, places, depth, block, way, _file: file })
    }

    /// In words, for the report.
    pub(crate) fn name(&self) -> String {
        let mut name = "io_uring".to_owned();
        for (has, what) in [
            (self.direct, ", O_DIRECT"),
            (self.registered, ", registered buffers"),
            (self.way == Way::Mix, ", 70 % reads and 30 % writes"),
        ] {
            name.push_str(if has { what } else { "" });
        }
        name
    }

    /// Goes through `offsets` again and again, from the one at `*next` on, for as long as told.
    /// Returns bytes a second.
    pub(crate) fn run(
        &mut self,
        offsets: &[u64],
        next: &mut usize,
        window: Duration,
    ) -> io::Result<f64> {
        let since = Instant::now();
        let mut in_flight = 0;
        for _ in 0..self.depth {
            self.push(self.way.of(*next, offsets));
            *next += 1;
            in_flight += 1;
        }
        let (mut bytes, mut failure) = (0, None);
        while in_flight > 0 {
            self.ring.submit_and_wait(1)?;
            let done: Vec<(i32, u64)> =
                self.ring.completion().map(|entry| (entry.result(), entry.user_data())).collect();
            for (result, place) in done {
                in_flight -= 1;
                self.places.push_back(place);
                if result != self.block as i32 {
                    failure = Some(io::Error::other(format!(
                        "moved {result} of {} bytes in one operation",
                        self.block
                    )));
                    continue;
                }
                bytes += u64::from(self.block);
                if since.elapsed() < window && failure.is_none() {
                    self.push(self.way.of(*next, offsets));
                    *next += 1;
                    in_flight += 1;
                }
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(bytes as f64 / since.elapsed().as_secs_f64()),
        }
    }

    fn push(&mut self, (way, offset): (Way, u64)) {
        let place = self.places.pop_front().expect("there is a place for each operation");
        let block = self.block;
        let span = self.memory.span(place, block as usize).expect("places lie in the memory");
        let at = span.as_mut_ptr();
        let entry = match (way, self.registered) {
            (Way::Read, true) => opcode::ReadFixed::new(FILE, at, block, 0).offset(offset).build(),
            (Way::Read, false) => opcode::Read::new(FILE, at, block).offset(offset).build(),
            (Way::Write, true) => {
                opcode::WriteFixed::new(FILE, at, block, 0).offset(offset).build()
            }
            (Way::Write, false) => opcode::Write::new(FILE, at, block).offset(offset).build(),
            (Way::Mix, _) => unreachable!("one operation goes one way"),
        };
        // SAFETY: the memory stays mapped while the ring lives, and only one operation at a time
        // uses a place: it is in `places` again when its operation is over.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(place)) };
        pushed.expect("the queue has room for as many entries as are in flight");
    }
}

impl Drop for BareRing {
    fn drop(&mut self) {
        // After a failed run operations may be in flight: the kernel is told to let go of all.
        let _none = self
            .ring
            .submitter()
            .register_sync_cancel(Some(types::Timespec::new().sec(5)), types::CancelBuilder::any());
    }
}

/// Whether this process may use io_uring at all.
pub(crate) fn is_allowed() -> bool {
    ring(1).is_ok()
}

/// The cheapest kind of ring the kernel has.
fn ring(depth: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .dontfork()
        .build(depth)
        .or_else(|_| IoUring::builder().dontfork().build(depth))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn opened(path: &Path, way: Way, depth: u32, block: usize) -> Option<BareRing> {
        match BareRing::open(path, way, depth, block as u32, 0) {
            Ok(ring) => Some(ring),
            Err(error) => {
                // Past the harness, which would swallow it.
                writeln!(io::stdout(), "SKIPPED bare_ring: no io_uring here: {error}").unwrap();
                None
            }
        }
    }

    #[test]
    fn what_is_written_fills_the_extents_and_is_read_back_whole() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        let block = 64 << 10;
        std::fs::write(&path, vec![0; 8 * block]).unwrap();
        let offsets: Vec<u64> = (0..8).map(|index| index * block as u64).collect();
        let Some(mut write) = opened(&path, Way::Write, 4, block) else { return };
        let mut next = 0;
        let window = Duration::from_millis(10);
        while next < 8 {
            assert!(write.run(&offsets, &mut next, window).unwrap() > 0.0);
        }
        let written = std::fs::read(&path).unwrap();
        assert!(written.chunks(block).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
        let mut read =
            BareRing::open(&path, Way::Read, 4, block as u32, 16 * block as u64).unwrap();
        assert!(read.run(&offsets, &mut next, window).unwrap() > 0.0);
        let beyond = [8 * block as u64];
        let error = read.run(&beyond, &mut next, window).unwrap_err().to_string();
        assert!(error.starts_with("moved 0 of 65536 bytes"), "{error}");
    }

    #[test]
    fn a_mix_writes_three_of_ten_and_comes_by_every_extent() {
        let offsets: Vec<u64> = (0..64).collect();
        let ways: Vec<(Way, u64)> = (0..640).map(|n| Way::Mix.of(n, &offsets)).collect();
        for ten in ways.windows(10) {
            assert_eq!(ten.iter().filter(|(way, _)| *way == Way::Write).count(), 3);
        }
        for wanted in [Way::Read, Way::Write] {
            let mut extents: Vec<u64> =
                ways.iter().filter(|(way, _)| *way == wanted).map(|(_, at)| *at).collect();
            extents.sort_unstable();
            extents.dedup();
            assert_eq!(extents, offsets, "{wanted:?}");
        }
    }

    #[test]
    fn a_mix_reads_and_writes_the_same_file() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        let block = 4096;
        let original: Vec<u8> = (0..10).flat_map(|extent| vec![extent; block]).collect();
        std::fs::write(&path, &original).unwrap();
        let offsets: Vec<u64> = (0..10).map(|index| index * block as u64).collect();
        let Some(mut mix) = opened(&path, Way::Mix, 2, block) else { return };
        assert!(mix.name().ends_with("70 % reads and 30 % writes"), "{}", mix.name());
        let mut next = 0;
        while next < 20 {
            assert!(mix.run(&offsets, &mut next, Duration::from_millis(1)).unwrap() > 0.0);
        }
        let file = std::fs::read(&path).unwrap();
        let changed = |extent: usize| {
            let bytes = extent * block..(extent + 1) * block;
            file[bytes.clone()] != original[bytes]
        };
        // Ten extents and a pattern of ten: each round writes to the same three.
        let written = [2, 5, 9];
        assert!((0..10).all(|extent| written.contains(&extent) || !changed(extent)));
        assert!(changed(5));
    }
}
