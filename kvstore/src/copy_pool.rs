//! Copy workers: the threads that move page bytes between staging and arena and check what they
//! copied.

use crate::bell::Bell;
use crossbeam_channel::{Sender, TrySendError, bounded};
use std::collections::VecDeque;
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
    /// Whether the destination holds the page.
    pub(crate) ok: bool,
    /// CRC-64/NVME of the page in its frame, after a copy in that went well.
    pub(crate) checksum: Option<u64>,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct CopyPool {
    jobs: Option<Sender<CopyJob>>,
    /// Jobs that found the queue full. Bounded by the slots and frames the core gave them.
    waiting: VecDeque<CopyJob>,
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
        Ok(Self { jobs: Some(sender), waiting: VecDeque::new(), threads })
    }

    /// Hands a job over, now or as soon as the workers' queue takes it.
    pub(crate) fn submit(&mut self, job: CopyJob) {
        self.waiting.push_back(job);
        self.push_waiting();
    }

    /// Hands waiting jobs over as far as the workers' queue takes them, in order.
    pub(crate) fn push_waiting(&mut self) {
        let Some(jobs) = &self.jobs else { return };
        while let Some(job) = self.waiting.pop_front() {
            if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
                jobs.try_send(job)
            {
                self.waiting.push_front(job);
                return;
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
    Copied { job, direction, ok, checksum: copied.ok().flatten() }
}
