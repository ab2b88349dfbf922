//! Copy workers: the threads that move page bytes between staging and arena and check what they
//! copied.

use crate::bell::Bell;
use crate::turns::{Turns, Whose};
use crossbeam_channel::{Sender, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use undercroft_arena::{Span, copy_checked};
use undercroft_wire::JobId;

/// What workers are given ahead of time, bytes: some milliseconds of work. What is theirs is done in
/// order, and who comes next waits for all of it.
const AHEAD_BYTES: u64 = 8 << 20;

/// One page to move. The spans keep their memory alive until the copy is over, whatever becomes
/// of the session.
#[derive(Debug)]
pub(crate) struct CopyJob {
    pub(crate) job: JobId,
    pub(crate) direction: Direction,
    pub(crate) from: Span,
    pub(crate) to: Span,
}

impl CopyJob {
    fn bytes(&self) -> u64 {
        self.from.len() as u64
    }
}

/// Which way a page goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Out of a session's staging into a frame; the checksum is born here.
    In,
    /// Out of a frame into a session's staging (copy mode).
    Out,
}

/// What became of a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copied {
    pub(crate) job: JobId,
    pub(crate) direction: Direction,
    /// What the page takes.
    pub(crate) bytes: u64,
    /// Whether the destination holds the page.
    pub(crate) ok: bool,
    /// CRC-64/NVME of the page in its frame, after a copy in that went well.
    pub(crate) checksum: Option<u64>,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct CopyPool {
    jobs: Option<Sender<CopyJob>>,
    /// Bytes that workers have.
    ahead_bytes: u64,
    /// Jobs that workers do not have yet. Bounded by the slots and frames the core gave them.
    waiting: Turns<CopyJob>,
    threads: Vec<JoinHandle<()>>,
}

impl CopyPool {
    /// Starts `workers` threads with room for `room` jobs.
    pub(crate) fn start(workers: usize, room: usize, done: &Bell<Copied>) -> std::io::Result<Self> {
        let (sender, receiver) = bounded::<CopyJob>(room);
        let mut threads = Vec::with_capacity(workers);
        for worker in 0..workers {
            let receiver = receiver.clone();
            let done = done.clone();
            let thread = std::thread::Builder::new()
                .name(format!("copy-{worker}"))
                .spawn(move || receiver.iter().for_each(|job| done.ring(perform(job))))?;
            threads.push(thread);
        }
        Ok(Self { jobs: Some(sender), ahead_bytes: 0, waiting: Turns::new(), threads })
    }

    /// Hands a job of a session over, now or when it is its turn.
    pub(crate) fn submit(&mut self, whose: Whose, job: CopyJob) {
        let bytes = job.bytes();
        self.waiting.push(whose, job, bytes);
        self.push_waiting();
    }

    /// A worker is done with a job.
    pub(crate) fn done(&mut self, copied: &Copied) {
        let ahead = self.ahead_bytes.checked_sub(copied.bytes);
        self.ahead_bytes = ahead.expect("what is done was given away");
        self.push_waiting();
    }

    /// Hands waiting jobs over in turn, as far as that keeps workers busy. One is always theirs,
    /// however large.
    fn push_waiting(&mut self) {
        let Some(jobs) = &self.jobs else { return };
        while self.ahead_bytes < AHEAD_BYTES && !jobs.is_full() {
            let Some((job, bytes)) = self.waiting.pop() else { return };
            // Nobody else sends, so there is room; workers end after us.
            if jobs.try_send(job).is_ok() {
                self.ahead_bytes += bytes;
            }
        }
    }

    /// Lets the workers finish what they have and waits for them.
    pub(crate) fn stop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a copy worker had panicked");
            }
        }
    }
}

fn perform(job: CopyJob) -> Copied {
    let bytes = job.bytes();
    let CopyJob { job, direction, from, to } = job;
    // A panic here is our bug, but the page is only a miss and the other workers go on.
    let copied = catch_unwind(AssertUnwindSafe(|| match direction {
        Direction::In => Some(copy_checked(&from, &to)),
        Direction::Out => {
            to.copy_from(&from);
            None
        }
    }));
    let ok = copied.is_ok();
    if !ok {
        tracing::error!(%job, "copy failed");
    }
    Copied { job, direction, bytes, ok, checksum: copied.ok().flatten() }
}
