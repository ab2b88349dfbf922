//! Copy workers: the threads that move page bytes between staging and arena and check what they
//! copied.

use crate::bell::Bell;
use crossbeam_channel::{Sender, TrySendError, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use undercroft_arena::{Span, copy_checked};
use undercroft_wire::JobId;

/// One page to move. The spans keep their memory alive until the copy is over, whatever becomes
/// of the session.
#[derive(Debug)]
pub(crate) struct CopyJob {
    pub(crate) job: JobId,
    pub(crate) direction: Direction,
    pub(crate) from: Span,
    pub(crate) to: Span,
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
    /// CRC-64/NVME over the destination's bytes, `None` if the copy failed.
    pub(crate) checksum: Option<u64>,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct CopyPool {
    jobs: Option<Sender<CopyJob>>,
    threads: Vec<JoinHandle<()>>,
}

impl CopyPool {
    /// Starts `workers` threads with room for `room` jobs waiting.
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
        Ok(Self { jobs: Some(sender), threads })
    }

    /// Hands a job over; gives it back when the queue is full.
    pub(crate) fn submit(&self, job: CopyJob) -> Result<(), CopyJob> {
        let Some(jobs) = &self.jobs else {
            return Err(job);
        };
        jobs.try_send(job).map_err(|e| match e {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
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
    let CopyJob { job, direction, from, to } = job;
    // A panic here is our bug, but the page is only a miss and the other workers go on.
    let checksum = catch_unwind(AssertUnwindSafe(|| copy_checked(&from, &to))).ok();
    if checksum.is_none() {
        tracing::error!(%job, "copy failed");
    }
    Copied { job, direction, checksum }
}
