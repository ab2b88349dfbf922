use crate::DeviceError;
use crate::batch::Batch;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Transfers that may wait for copy threads.
const QUEUE: usize = 1024;

/// Copy threads. All of them work on the oldest batch until every item of it is taken. Dropping
/// them finishes what was queued.
#[derive(Debug)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Arc<Batch>>,
    stopping: bool,
}

impl Workers {
    pub(crate) fn start(threads: usize) -> Result<Self, DeviceError> {
        let shared = Arc::new(Shared::default());
        let mut workers = Self { shared, threads: Vec::with_capacity(threads) };
        for index in 0..threads {
            let shared = Arc::clone(&workers.shared);
            let thread = std::thread::Builder::new()
                .name(format!("device-copy-{index}"))
                .spawn(move || shared.run())
                .map_err(DeviceError::Thread)?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub(crate) fn submit(&self, batch: Arc<Batch>) -> Result<(), DeviceError> {
        let mut queue = self.shared.lock();
        if queue.batches.len() >= QUEUE {
            return Err(DeviceError::Busy { limit: QUEUE });
        }
        queue.batches.push_back(batch);
        self.shared.changed.notify_all();
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(batch) = self.oldest() {
            batch.work();
        }
    }

    /// The oldest batch with items left; `None` when there is nothing left to do for good.
    fn oldest(&self) -> Option<Arc<Batch>> {
        let mut queue = self.lock();
        loop {
            while queue.batches.front().is_some_and(|batch| batch.is_taken()) {
                queue.batches.pop_front();
            }
            if let Some(batch) = queue.batches.front() {
                return Some(Arc::clone(batch));
            }
            if queue.stopping {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Copies do not unwind out of a batch, so there is no panic to pass on.
            let _joined = thread.join();
        }
    }
}
