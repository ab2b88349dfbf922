use super::machine::cores;
use crate::BenchError;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{DeviceError, Memory, Span};

/// Threads look at the clock after about this many bytes.
const STRIDE_BYTES: usize = 64 << 20;
/// How long each way of copying is tried before the best one is taken.
const TRIAL: Duration = Duration::from_millis(150);

/// A way to copy a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The C library's `memcpy`.
    Memcpy,
    /// Stores past the cache, as the daemon and the host device use.
    Stream,
}

/// How pages are copied, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Straight from one side to the other.
    Once(Kernel),
    /// From one side into a staging slot, and from there to the other side. A page counts once.
    Twice(Kernel, Kernel),
}

impl Copies {
    const ONCE: [Self; 2] = [Self::Once(Kernel::Memcpy), Self::Once(Kernel::Stream)];
    const TWICE: [Self; 3] = [
        Self::Twice(Kernel::Memcpy, Kernel::Memcpy),
        Self::Twice(Kernel::Memcpy, Kernel::Stream),
        Self::Twice(Kernel::Stream, Kernel::Stream),
    ];

    /// In words, for the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Once(Kernel::Memcpy) => "memcpy",
            Self::Once(Kernel::Stream) => "streaming copy",
            Self::Twice(Kernel::Memcpy, Kernel::Memcpy) => "two memcpys",
            Self::Twice(Kernel::Memcpy, Kernel::Stream) => "memcpy and streaming copy",
            Self::Twice(Kernel::Stream, _) => "two streaming copies",
        }
    }
}

/// The bare twin of page copies: page by page over a working set no cache holds.
pub(crate) struct BareCopy {
    source: Span,
    target: Span,
    /// One slot for each thread: what is copied twice is in the cache the second time.
    staging: Span,
    page: usize,
    /// By thread: the next page of its share.
    next: Vec<usize>,
}

impl BareCopy {
    /// Two sides of `bytes` each, for pages of at most `most` bytes.
    pub(crate) fn new(bytes: u64, most: u64) -> Result<Self, BenchError> {
        let threads = cores() as usize;
        let span = |bytes: u64| -> Result<Span, DeviceError> {
            let memory = Memory::new(bytes, threads)?;
            Ok(memory.span(0, memory.len())?)
        };
        Ok(Self {
            source: span(bytes)?,
            target: span(bytes)?,
            staging: span(most * threads as u64)?,
            page: most as usize,
            next: Vec::new(),
        })
    }

    /// The fastest way to copy pages of this size once with so many threads.
    pub(crate) fn best_once(&mut self, page: usize, threads: usize) -> Copies {
        self.best(&Copies::ONCE, page, threads)
    }

    /// The fastest way to copy pages of this size twice with so many threads.
    pub(crate) fn best_twice(&mut self, page: usize, threads: usize) -> Copies {
        self.best(&Copies::TWICE, page, threads)
    }

    fn best(&mut self, ways: &[Copies], page: usize, threads: usize) -> Copies {
        let mut best = (0.0, ways[0]);
        for way in ways {
            let speed = self.run(*way, page, threads, TRIAL);
            if speed > best.0 {
                best = (speed, *way);
            }
        }
        best.1
    }

    /// Copies for about as long as told. Returns bytes a second.
    pub(crate) fn run(
        &mut self,
        copies: Copies,
        page: usize,
        threads: usize,
        window: Duration,
    ) -> f64 {
        assert!(page <= self.page && threads * self.page <= self.staging.len());
        self.next.resize(threads, 0);
        let share = self.source.len() / page / threads;
        let (source, target, staging) = (&self.source, &self.target, &self.staging);
        let slot_bytes = self.page;
        let since = Instant::now();
        let copy = |thread: usize, next: &mut usize| {
            let mut pages = 0;
            while since.elapsed() < window {
                for _ in 0..(STRIDE_BYTES / page).max(1) {
                    *next = (*next + 1) % share;
                    let at = (thread * share + *next) * page;
                    match copies {
                        Copies::Once(kernel) => kernel.copy(target, at, source, at, page),
                        Copies::Twice(first, second) => {
                            let slot = thread * slot_bytes;
                            first.copy(staging, slot, source, at, page);
                            second.copy(target, at, staging, slot, page);
                        }
                    }
                    pages += 1;
                }
            }
            pages
        };
        let pages: usize = std::thread::scope(|scope| {
            let next = self.next.iter_mut().enumerate();
            let started: Vec<_> =
                next.map(|(thread, next)| scope.spawn(move || copy(thread, next))).collect();
            started.into_iter().map(|thread| thread.join().expect("a copy does not panic")).sum()
        });
        (pages * page) as f64 / since.elapsed().as_secs_f64()
    }
}

impl Kernel {
    fn copy(self, to: &Span, at: usize, from: &Span, from_at: usize, len: usize) {
        match self {
            Self::Stream => to.copy_at(at, from, from_at, len),
            Self::Memcpy => {
                let to = to.sub(at, len).expect("pages lie inside their side");
                let from = from.sub(from_at, len).expect("pages lie inside their side");
                from.read(|bytes| to.copy_from_slice(bytes));
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn every_page_of_every_thread_arrives_in_every_way() {
        let page = 4096;
        for copies in Copies::ONCE.into_iter().chain(Copies::TWICE) {
            let mut bare = BareCopy::new(64 * 4096, 4096).unwrap();
            bare.source.write(|bytes| {
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte = (at / page + 1) as u8;
                }
            });
            let threads = cores().min(2) as usize;
            // A busy machine may leave a thread no time in one run; each goes on where it was.
            let right = (0..1000).any(|_| {
                assert!(bare.run(copies, page, threads, Duration::from_millis(2)) >= 0.0);
                bare.target.read(|bytes| {
                    bytes.iter().enumerate().all(|(at, byte)| *byte == (at / page + 1) as u8)
                })
            });
            assert!(right, "{}", copies.name());
        }
    }
}
