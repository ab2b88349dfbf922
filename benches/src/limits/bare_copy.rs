use super::machine::cores;
use crate::BenchError;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{DeviceError, Memory, Span};

/// Threads look at the clock after about this many bytes.
const STRIDE_BYTES: usize = 64 << 20;

/// The bare twin of page copies: `memcpy` page by page over a working set no cache holds.
pub(super) struct BareCopy {
    source: Span,
    target: Span,
    /// Small, like the staging area that stores go through.
    staging: Span,
    /// By thread: the next page of its share.
    next: Vec<usize>,
}

impl BareCopy {
    /// Two sides of `bytes` each.
    pub(super) fn new(bytes: u64, staging_bytes: u64) -> Result<Self, BenchError> {
        let span = |bytes: u64| -> Result<Span, DeviceError> {
            let memory = Memory::new(bytes, cores() as usize)?;
            Ok(memory.span(0, memory.len())?)
        };
        Ok(Self {
            source: span(bytes)?,
            target: span(bytes)?,
            staging: span(staging_bytes)?,
            next: Vec::new(),
        })
    }

    /// Pages straight from one side to the other, bytes a second.
    pub(super) fn copy_once(&mut self, page: usize, window: Duration, threads: usize) -> f64 {
        self.next.resize(threads, 0);
        let (source, target) = (&self.source, &self.target);
        let copy = |at: usize, _slot: usize| target.copy_at(at, source, at, page);
        run(page, source.len(), 0, window, &mut self.next, &copy)
    }

    /// Pages from one side into a staging slot and from there to the other side, bytes a second;
    /// each page counts once.
    pub(super) fn copy_twice(&mut self, page: usize, window: Duration, threads: usize) -> f64 {
        self.next.resize(threads, 0);
        let (source, target, staging) = (&self.source, &self.target, &self.staging);
        let copy = |at: usize, slot: usize| {
            staging.copy_at(slot, source, at, page);
            target.copy_at(at, staging, slot, page);
        };
        run(
            page,
            source.len(),
            staging.len(),
            window,
            &mut self.next,
            &copy,
        )
    }
}

fn run(
    page: usize,
    bytes: usize,
    staging: usize,
    window: Duration,
    next: &mut [usize],
    copy: &(dyn Fn(usize, usize) + Sync),
) -> f64 {
    let threads = next.len();
    let share = bytes / page / threads;
    let slots = (staging / page / threads).max(1);
    let since = Instant::now();
    let pages: usize = std::thread::scope(|scope| {
        let started: Vec<_> = next
            .iter_mut()
            .enumerate()
            .map(|(thread, next)| {
                scope.spawn(move || {
                    let mut copied = 0;
                    while since.elapsed() < window {
                        for _ in 0..(STRIDE_BYTES / page).max(1) {
                            *next = (*next + 1) % share;
                            let slot = thread * slots + *next % slots;
                            copy((thread * share + *next) * page, slot * page);
                            copied += 1;
                        }
                    }
                    copied
                })
            })
            .collect();
        started
            .into_iter()
            .map(|thread| thread.join().expect("a copy does not panic"))
            .sum()
    });
    (pages * page) as f64 / since.elapsed().as_secs_f64()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn every_page_of_every_thread_arrives() {
        let page = 4096;
        for twice in [false, true] {
            let mut bare = BareCopy::new(64 * 4096, 8 * 4096).unwrap();
            bare.source.write(|bytes| {
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte = (at / page + 1) as u8;
                }
            });
            let window = Duration::from_millis(5);
            let speed = match twice {
                false => bare.copy_once(page, window, 2),
                true => bare.copy_twice(page, window, 2),
            };
            assert!(speed > 0.0);
            let right = bare.target.read(|bytes| {
                bytes
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == (at / page + 1) as u8)
            });
            assert!(right, "twice {twice}");
        }
    }
}
