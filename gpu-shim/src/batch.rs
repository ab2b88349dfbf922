use crate::pace::{Link, sleep_until};
use crate::{BlockId, Completion, DeviceError, KvLayout, LoadJob, Run, StoreJob};
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use undercroft_arena::Span;
use undercroft_wire::frame_bytes;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Host to device.
    Load,
    /// Device to host.
    Store,
}

/// One page and one block.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) page: Span,
    pub(crate) block: BlockId,
}

/// Whether a layout can take these jobs.
pub(crate) fn check_jobs(
    layout: &KvLayout,
    direction: Direction,
    jobs: &[Job],
) -> Result<(), DeviceError> {
    for job in jobs {
        if !layout.has_block(job.block) {
            return Err(DeviceError::Block { found: job.block.0, blocks: layout.blocks() });
        }
        if !layout.takes_page(&job.page) {
            let page_bytes = layout.geometry().page_bytes();
            let (found, frame_bytes) = (job.page.len(), frame_bytes(page_bytes));
            return Err(DeviceError::PageBytes { found, page_bytes, frame_bytes });
        }
    }
    match direction {
        Direction::Load => check_distinct(jobs),
        Direction::Store => match jobs.iter().find(|job| !job.page.is_writable()) {
            Some(job) => Err(DeviceError::ReadOnly { block: job.block.0 }),
            None => Ok(()),
        },
    }
}

/// Two pages written to one block at a time would leave a mixture.
pub(crate) fn check_distinct(jobs: &[Job]) -> Result<(), DeviceError> {
    let mut blocks: Vec<u32> = jobs.iter().map(|job| job.block.0).collect();
    blocks.sort_unstable();
    match blocks.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(DeviceError::BlockTwice { block: pair[0] }),
        None => Ok(()),
    }
}

impl From<LoadJob> for Job {
    fn from(LoadJob { page, block }: LoadJob) -> Self {
        Self { page, block }
    }
}

impl From<StoreJob> for Job {
    fn from(StoreJob { block, page }: StoreJob) -> Self {
        Self { page, block }
    }
}

/// The jobs of one call, cut into items: one layer of one job each, all jobs' first layers first,
/// so that an engine can start on layer 0 while the rest is copied.
#[derive(Debug)]
pub(crate) struct Batch {
    layout: Arc<KvLayout>,
    tensors: Arc<[Span]>,
    link: Option<Arc<Link>>,
    direction: Direction,
    jobs: Vec<Job>,
    /// The next item that no thread has taken.
    next: AtomicUsize,
    /// Per layer, how many jobs are not copied yet.
    left: Vec<AtomicUsize>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    layers_done: u32,
    failed: bool,
    /// The fewest layers that somebody waits for: waking a waiter for every layer would take
    /// longer than copying one.
    wanted: Option<u32>,
}

impl Progress {
    fn outcome(&self) -> Result<bool, DeviceError> {
        if self.failed {
            return Err(DeviceError::Lost { reason: "a copy panicked".to_owned() });
        }
        Ok(true)
    }
}

impl Batch {
    /// `tensors` are the layout's, each as long as the layout says.
    pub(crate) fn new(
        layout: Arc<KvLayout>,
        tensors: Arc<[Span]>,
        link: Option<Arc<Link>>,
        direction: Direction,
        jobs: Vec<Job>,
    ) -> Self {
        let layers = layout.geometry().layers();
        let done = if jobs.is_empty() { layers } else { 0 };
        Self {
            layout,
            tensors,
            link,
            direction,
            next: AtomicUsize::new(0),
            left: (0..layers).map(|_| AtomicUsize::new(jobs.len())).collect(),
            jobs,
            progress: Mutex::new(Progress { layers_done: done, ..Progress::default() }),
            changed: Condvar::new(),
        }
    }

    /// Whether every item was taken by some thread.
    pub(crate) fn is_taken(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.items()
    }

    fn items(&self) -> usize {
        self.jobs.len() * self.left.len()
    }

    /// Takes items and copies them until none is left.
    pub(crate) fn work(&self) {
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= self.items() {
                break;
            }
            let (layer, job) = (item / self.jobs.len(), item % self.jobs.len());
            // A panic here is our bug. It must not become a thread that is gone and an engine that
            // waits for it: the item counts as done and the batch as failed.
            let copied = panic::catch_unwind(AssertUnwindSafe(|| {
                self.copy(&self.jobs[job], layer as u32..layer as u32 + 1);
            }));
            if copied.is_err() {
                self.lock().failed = true;
            }
            self.pace(1, layer as u32..layer as u32 + 1);
            // The last to finish a layer publishes what all of them copied.
            if self.left[layer].fetch_sub(1, Ordering::AcqRel) == 1 {
                self.publish();
            }
        }
    }

    /// Copies everything on the calling thread, page by page: nobody can wait for a layer
    /// meanwhile, and so the order is the memory's.
    pub(crate) fn work_alone(&self) {
        let layers = 0..self.layout.geometry().layers();
        for job in &self.jobs {
            self.copy(job, layers.clone());
        }
        self.pace(self.jobs.len() as u64, layers);
        for left in &self.left {
            left.store(0, Ordering::Release);
        }
        self.publish();
    }

    fn copy(&self, job: &Job, layers: Range<u32>) {
        for Run { tensor, at, in_page, bytes } in self.layout.runs(job.block, layers) {
            let memory = &self.tensors[tensor];
            let in_tensor = (at - self.layout.tensors()[tensor].base) as usize;
            match self.direction {
                Direction::Load => memory.copy_at(in_tensor, &job.page, in_page, bytes),
                Direction::Store => job.page.copy_at(in_page, memory, in_tensor, bytes),
            }
        }
    }

    fn pace(&self, jobs: u64, layers: Range<u32>) {
        if let Some(link) = &self.link {
            sleep_until(link.book(jobs * self.layout.layers_bytes(layers)));
        }
    }

    fn publish(&self) {
        let mut progress = self.lock();
        let copied = self.left.iter().take_while(|left| left.load(Ordering::Acquire) == 0);
        progress.layers_done = copied.count() as u32;
        if progress.wanted.is_some_and(|wanted| wanted <= progress.layers_done) {
            progress.wanted = None;
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Completion for Arc<Batch> {
    fn wait_layers(&self, layers: u32, deadline: Option<Instant>) -> Result<bool, DeviceError> {
        let mut progress = self.lock();
        loop {
            if progress.layers_done >= layers {
                return progress.outcome();
            }
            let fewest = progress.wanted.map_or(layers, |wanted| wanted.min(layers));
            progress.wanted = Some(fewest);
            let Some(deadline) = deadline else {
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let waited = self.changed.wait_timeout(progress, left);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn layers_done(&self) -> u32 {
        self.lock().layers_done
    }
}
