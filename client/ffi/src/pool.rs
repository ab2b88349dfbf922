//! Threads that run started loads and stores.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use undercroft_client::MissReason;

/// What a thread of the pool does. It does not unwind.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// A client's threads, made when the first task comes.
pub(crate) struct Pool {
    /// The process that made it. In a forked child there are no threads, and any lock may be held.
    process: u32,
    threads: usize,
    limit: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Work>,
    threads: Vec<JoinHandle<()>>,
    is_closed: bool,
}

impl Pool {
    pub(crate) fn new(threads: usize, limit: usize) -> Self {
        Self { process: std::process::id(), threads, limit, shared: Arc::default() }
    }

    /// Whether this is another process than the one that made it.
    pub(crate) fn is_foreign(&self) -> bool {
        self.process != std::process::id()
    }

    /// Has a thread do this when there is one.
    pub(crate) fn submit(&self, work: Work) -> Result<(), MissReason> {
        if self.is_foreign() {
            return Err(MissReason::Forked);
        }
        let mut queue = self.shared.lock();
        if queue.is_closed {
            return Err(MissReason::Disconnected);
        }
        if queue.waiting.len() >= self.limit {
            return Err(MissReason::Busy);
        }
        while queue.threads.len() < self.threads {
            let shared = Arc::clone(&self.shared);
            let name = format!("undercroft-{}", queue.threads.len());
            let thread = std::thread::Builder::new().name(name).spawn(move || shared.run());
            match thread {
                Ok(thread) => queue.threads.push(thread),
                // Those that there are do.
                Err(_) if !queue.threads.is_empty() => break,
                Err(_) => return Err(MissReason::Busy),
            }
        }
        queue.waiting.push_back(work);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Takes nothing more, drops what waits and waits for what is under way.
    pub(crate) fn close(&self) {
        if self.is_foreign() {
            return;
        }
        let (waiting, threads) = {
            let mut queue = self.shared.lock();
            queue.is_closed = true;
            (std::mem::take(&mut queue.waiting), std::mem::take(&mut queue.threads))
        };
        self.shared.changed.notify_all();
        drop(waiting);
        for thread in threads {
            // A task that frees its own client would wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                // Work does not unwind, so that there is no panic to pass on.
                let _joined = thread.join();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(work) = self.next() {
            work();
        }
    }

    fn next(&self) -> Option<Work> {
        let mut queue = self.lock();
        loop {
            if let Some(work) = queue.waiting.pop_front() {
                return Some(work);
            }
            if queue.is_closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads)
    }
}
