use crate::arguments::optional_seconds;
use crate::device::Held;
use crate::error::value;
use crate::outcome::{Loaded, Stored};
use crate::pool::{Lane, Pool, Refused};
use pyo3::prelude::*;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use undercroft_client::wire::{PageKey, Stamp};
use undercroft_client::{FetchFrom, Hold, MissReason, SpaceHandle, StoreOptions, StoreRun};
use undercroft_gpu_shim::BlockId;

/// What pages are loaded.
pub(crate) enum Source {
    Keys(Vec<PageKey>),
    Hold(Arc<Hold>, u32, u32),
}

impl Source {
    fn from(&self) -> FetchFrom<'_> {
        match self {
            Self::Keys(keys) => FetchFrom::Keys(keys),
            Self::Hold(hold, first, count) => FetchFrom::Hold(hold, *first, *count),
        }
    }
}

/// A load, with all it needs.
pub(crate) struct Load {
    pub(crate) space: SpaceHandle,
    pub(crate) held: Arc<Held>,
    pub(crate) source: Source,
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) stamp: Stamp,
    pub(crate) until: Instant,
}

impl Load {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    pub(crate) fn run(&self) -> Loaded {
        let device = &*self.held.device;
        let (source, blocks) = (self.source.from(), &self.blocks);
        self.space.fetch_into(device, source, blocks, self.stamp, self.left()).into()
    }

    /// Tells `layers` of each layer that lies in its blocks.
    fn run_by_layer(&self, layers: impl Fn(u32)) -> Loaded {
        let device = &*self.held.device;
        let (source, blocks) = (self.source.from(), &self.blocks);
        let mut load = self.space.fetch_by_layer(device, source, blocks, self.stamp, self.left());
        for layer in 0..device.geometry().layers() {
            match load.wait_layer(layer, self.left()) {
                Ok(pages) => layers(pages),
                Err(_) => break,
            }
        }
        load.finish().into()
    }
}

/// A store, with all it needs.
pub(crate) struct Store {
    pub(crate) space: SpaceHandle,
    pub(crate) held: Arc<Held>,
    pub(crate) keys: Vec<PageKey>,
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) parent: Option<PageKey>,
    pub(crate) first: u32,
    pub(crate) stamp: Stamp,
    pub(crate) until: Instant,
    pub(crate) wait_for_credits: bool,
}

impl Store {
    pub(crate) fn run(&self) -> Stored {
        let Self { parent, first, keys, stamp, wait_for_credits, .. } = self;
        let run = StoreRun { parent: *parent, first: *first, keys, stamp: *stamp };
        let deadline = self.until.saturating_duration_since(Instant::now());
        let options = StoreOptions { deadline, wait_for_credits: *wait_for_credits };
        self.space.store(run, &*self.held.device, &self.blocks, options).into()
    }
}

/// What becomes of a task.
struct Shared<T> {
    pid: u32,
    is_done: AtomicBool,
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    is_begun: bool,
    is_cancelled: bool,
    /// Leading pages of each layer that has come, layer by layer.
    layers: Vec<u32>,
    outcome: Option<T>,
}

impl<T: Clone> Shared<T> {
    fn new(pid: u32) -> Arc<Self> {
        let (is_begun, is_cancelled) = (false, false);
        let state = State { is_begun, is_cancelled, layers: Vec::new(), outcome: None };
        let (is_done, changed) = (AtomicBool::new(false), Condvar::new());
        Arc::new(Self { pid, is_done, state: Mutex::new(state), changed })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, outcome: T) {
        self.lock().outcome.get_or_insert(outcome);
        self.is_done.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether it may go on: nobody has called it off.
    fn begin(&self) -> bool {
        let mut state = self.lock();
        state.is_begun = true;
        !state.is_cancelled
    }

    fn cancel(&self) -> bool {
        if self.is_foreign() {
            return false;
        }
        let mut state = self.lock();
        state.is_cancelled |= !state.is_begun;
        state.is_cancelled
    }

    fn add_layer(&self, pages: u32) {
        self.lock().layers.push(pages);
        self.changed.notify_all();
    }

    /// The threads of another process will never settle it here.
    fn is_foreign(&self) -> bool {
        process::id() != self.pid
    }

    fn wait<R>(
        &self,
        timeout: Option<Duration>,
        look: impl Fn(&State<T>) -> Option<R>,
    ) -> Option<R> {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.lock();
        loop {
            if let Some(seen) = look(&state) {
                return Some(seen);
            }
            let Some(until) = until else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Puts `work` on the pool's threads. Whatever becomes of it, the task is settled.
fn start<T: Clone + Send + 'static>(
    pool: &Pool,
    lane: Lane,
    missed: impl Fn(MissReason) -> T + Send + Sync + 'static,
    failed: impl Fn(&str) -> T + Send + 'static,
    work: impl FnOnce(&Shared<T>) -> T + Send + 'static,
) -> Arc<Shared<T>> {
    let shared = Shared::new(pool.pid());
    let missed = Arc::new(missed);
    let (task, missing) = (Arc::clone(&shared), Arc::clone(&missed));
    let job = move || {
        let outcome = if task.begin() {
            // A panic is our bug, and no reason for an engine to wait for ever.
            panic::catch_unwind(AssertUnwindSafe(|| work(&task)))
                .unwrap_or_else(|_| failed("the task panicked"))
        } else {
            missing(MissReason::Released)
        };
        task.settle(outcome);
    };
    if let Err(refused) = pool.submit(lane, Box::new(job)) {
        let why = match refused {
            Refused::Busy => MissReason::Busy,
            Refused::Closed => MissReason::Disconnected,
            Refused::Forked => MissReason::Forked,
        };
        shared.settle(missed(why));
    }
    shared
}

/// A load that was started.
#[pyclass(frozen, module = "undercroft")]
pub(crate) struct LoadTask {
    shared: Arc<Shared<Loaded>>,
    by_layer: Option<u32>,
}

impl LoadTask {
    pub(crate) fn start(pool: &Pool, load: Load, by_layer: bool) -> Self {
        let layers = by_layer.then(|| load.held.device.geometry().layers());
        let work = move |task: &Shared<Loaded>| {
            if by_layer { load.run_by_layer(|pages| task.add_layer(pages)) } else { load.run() }
        };
        let shared = start(pool, Lane::Loads, Loaded::missed, Loaded::failed, work);
        Self { shared, by_layer: layers }
    }

    fn is_foreign(&self) -> bool {
        self.shared.is_foreign() && !self.shared.is_done.load(Ordering::Acquire)
    }
}

#[pymethods]
impl LoadTask {
    #[getter]
    fn done(&self) -> bool {
        self.shared.is_done.load(Ordering::Acquire) || self.shared.is_foreign()
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, python: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        Ok(self.result(python, timeout)?.is_some())
    }

    #[pyo3(signature = (timeout = None))]
    fn result(&self, python: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Loaded>> {
        let timeout = optional_seconds("timeout", timeout)?;
        if self.is_foreign() {
            return Ok(Some(Loaded::missed(MissReason::Forked)));
        }
        Ok(python.detach(|| self.shared.wait(timeout, |state| state.outcome.clone())))
    }

    #[pyo3(signature = (layer, timeout = None))]
    fn wait_layer(
        &self,
        python: Python<'_>,
        layer: u32,
        timeout: Option<f64>,
    ) -> PyResult<Option<u32>> {
        let timeout = optional_seconds("timeout", timeout)?;
        match self.by_layer {
            None => return Err(value("the load was not started with by_layer")),
            Some(layers) if layer >= layers => {
                return Err(value(format!("layer is {layer}, allowed less than {layers}")));
            }
            Some(_) if self.is_foreign() => return Ok(Some(0)),
            Some(_) => {}
        }
        let come = |state: &State<Loaded>| {
            let settled = state.outcome.as_ref().map(|loaded| loaded.pages);
            settled.or_else(|| state.layers.get(layer as usize).copied())
        };
        Ok(python.detach(|| self.shared.wait(timeout, come)))
    }

    fn cancel(&self) -> bool {
        self.shared.cancel()
    }
}

/// A store that was started.
#[pyclass(frozen, module = "undercroft")]
pub(crate) struct StoreTask {
    shared: Arc<Shared<Stored>>,
    pages: usize,
}

impl StoreTask {
    pub(crate) fn start(pool: &Pool, store: Store) -> Self {
        let pages = store.keys.len();
        let missed = move |why| Stored::missed(pages, why);
        let failed = move |fault: &str| Stored::failed(pages, fault);
        let shared = start(pool, Lane::Stores, missed, failed, move |_| store.run());
        Self { shared, pages }
    }
}

#[pymethods]
impl StoreTask {
    #[getter]
    fn done(&self) -> bool {
        self.shared.is_done.load(Ordering::Acquire) || self.shared.is_foreign()
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, python: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        Ok(self.result(python, timeout)?.is_some())
    }

    #[pyo3(signature = (timeout = None))]
    fn result(&self, python: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Stored>> {
        let timeout = optional_seconds("timeout", timeout)?;
        if self.shared.is_foreign() && !self.shared.is_done.load(Ordering::Acquire) {
            return Ok(Some(Stored::missed(self.pages, MissReason::Forked)));
        }
        Ok(python.detach(|| self.shared.wait(timeout, |state| state.outcome.clone())))
    }

    fn cancel(&self) -> bool {
        self.shared.cancel()
    }
}
