#![expect(
    unsafe_code,
    reason = "io_uring takes buffers by address; this is the bare twin of the log's ring"
)]

use crate::BenchError;
use io_uring::{IoUring, opcode, types};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{DeviceError, Memory, Span};

/// Direct I/O needs offsets, lengths and addresses that are multiples of this.
const ALIGN: u64 = 4096;
/// The one registered file.
const FILE: types::Fixed = types::Fixed(0);

/// Of ten operations of a mix, how many write.
const WRITES_OF_TEN: usize = 3;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
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
/// flight, registered file and buffers, nothing done with the bytes.
pub(super) struct BareRing {
    /// Before the memory: the kernel lets go of the buffers first.
    ring: IoUring,
    /// Whether the kernel took the buffers; else plain operations, as the daemon's ring does.
    registered: bool,
    /// Whether the file system does direct I/O; else it is done without, as the daemon does.
    direct: bool,
    buffers: Vec<Span>,
    block: u32,
    way: Way,
    _file: File,
}

impl BareRing {
    pub(super) fn open(path: &Path, way: Way, depth: u32, block: u32) -> Result<Self, BenchError> {
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
        let memory = Memory::new(stride * u64::from(depth), 1).map_err(DeviceError::from)?;
        let buffers: Vec<Span> = (0..u64::from(depth))
            .map(|index| memory.span(index * stride, block as usize))
            .collect::<Result<_, _>>()
            .map_err(DeviceError::from)?;
        for (index, buffer) in (1_u8..).zip(&buffers) {
            // No drive is asked to store zeros: some do not.
            buffer.write(|bytes| fastrand::Rng::with_seed(index.into()).fill(bytes));
        }
        let iovecs: Vec<libc::iovec> = buffers
            .iter()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        // SAFETY: the spans in `buffers` keep their memory mapped, and `ring` is dropped first.
        let registered = unsafe { ring.submitter().register_buffers(&iovecs) }.is_ok();
        Ok(Self { ring, registered, direct, buffers, block, way, _file: file })
    }

    /// In words, for the report.
    pub(super) fn name(&self) -> String {
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
    pub(super) fn run(
        &mut self,
        offsets: &[u64],
        next: &mut usize,
        window: Duration,
    ) -> io::Result<f64> {
        let since = Instant::now();
        let mut in_flight = 0;
        for buffer in 0..self.buffers.len() {
            self.push(buffer, self.way.of(*next, offsets));
            *next += 1;
            in_flight += 1;
        }
        let (mut bytes, mut failure) = (0, None);
        while in_flight > 0 {
            self.ring.submit_and_wait(1)?;
            let done: Vec<(i32, u64)> =
                self.ring.completion().map(|entry| (entry.result(), entry.user_data())).collect();
            for (result, buffer) in done {
                in_flight -= 1;
                if result != self.block as i32 {
                    failure = Some(io::Error::other(format!(
                        "moved {result} of {} bytes in one operation",
                        self.block
                    )));
                    continue;
                }
                bytes += u64::from(self.block);
                if since.elapsed() < window && failure.is_none() {
                    self.push(buffer as usize, self.way.of(*next, offsets));
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

    fn push(&mut self, buffer: usize, (way, offset): (Way, u64)) {
        let span = &self.buffers[buffer];
        let (at, index, block) = (span.as_mut_ptr(), buffer as u16, self.block);
        let entry = match (way, self.registered) {
            (Way::Read, true) => {
                opcode::ReadFixed::new(FILE, at, block, index).offset(offset).build()
            }
            (Way::Read, false) => opcode::Read::new(FILE, at, block).offset(offset).build(),
            (Way::Write, true) => {
                opcode::WriteFixed::new(FILE, at, block, index).offset(offset).build()
            }
            (Way::Write, false) => opcode::Write::new(FILE, at, block).offset(offset).build(),
            (Way::Mix, _) => unreachable!("one operation goes one way"),
        };
        // SAFETY: the buffer stays mapped while the ring lives, only one operation at a time uses
        // it (its number is the operation's), and its length was fixed at registration.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(buffer as u64)) };
        pushed.expect("the queue has room for one entry per buffer");
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
pub(super) fn is_allowed() -> bool {
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
        match BareRing::open(path, way, depth, block as u32) {
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
        let mut read = BareRing::open(&path, Way::Read, 4, block as u32).unwrap();
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
