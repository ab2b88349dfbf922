use crate::arguments::optional_seconds;
use crate::device::Held;
use crate::error::value;
use crate::outcome::{Loaded, Stored};
use pyo3::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_client::wire::{PageKey, Stamp};
use undercroft_client::{
    Ended, FetchFrom, Hold, Lane, MissReason, SpaceHandle, StoreOptions, StoreRun, Task, TaskPool,
};
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
    fn run_by_layer(&self, layers: &dyn Fn(u32)) -> Loaded {
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

/// What was started, or why it was not.
struct Started<T>(Result<Task<T>, MissReason>);

impl<T> Started<T> {
    /// Whether it is over, or will never be in this process.
    fn is_done(&self) -> bool {
        self.0.as_ref().map_or(true, |task| task.end().is_some() || task.is_foreign())
    }

    /// Waits for its end, at most for so long.
    fn end(&self, python: Python<'_>, timeout: Option<Duration>) -> Option<End<'_, T>>
    where
        T: Send + Sync,
    {
        let task = match &self.0 {
            Ok(task) => task,
            Err(why) => return Some(End::Missed(*why)),
        };
        match python.detach(|| task.wait(timeout)) {
            Some(ended) => Some(ended.into()),
            None => task.is_foreign().then_some(End::Missed(MissReason::Forked)),
        }
    }

    fn cancel(&self) -> bool {
        self.0.as_ref().is_ok_and(Task::give_up)
    }
}

/// How a task ended, as Python is told.
enum End<'a, T> {
    Through(&'a T),
    Missed(MissReason),
    Panicked,
}

impl<'a, T> From<&'a Ended<T>> for End<'a, T> {
    fn from(ended: &'a Ended<T>) -> Self {
        match ended {
            Ended::Through(outcome) => Self::Through(outcome),
            Ended::GivenUp => Self::Missed(MissReason::Released),
            Ended::Panicked => Self::Panicked,
        }
    }
}

const PANICKED: &str = "the task panicked";

impl From<End<'_, Self>> for Loaded {
    fn from(end: End<'_, Self>) -> Self {
        match end {
            End::Through(loaded) => loaded.clone(),
            End::Missed(why) => Self::missed(why),
            End::Panicked => Self::failed(PANICKED),
        }
    }
}

/// A load that was started.
#[pyclass(frozen, module = "undercroft")]
pub(crate) struct LoadTask {
    started: Started<Loaded>,
    by_layer: Option<u32>,
}

impl LoadTask {
    pub(crate) fn start(pool: &TaskPool, load: Load, by_layer: bool) -> Self {
        let layers = by_layer.then(|| load.held.device.geometry().layers());
        let work = move |arrived: &dyn Fn(u32)| {
            if by_layer { load.run_by_layer(arrived) } else { load.run() }
        };
        Self { started: Started(pool.start(Lane::Loads, work)), by_layer: layers }
    }
}

#[pymethods]
impl LoadTask {
    #[getter]
    fn done(&self) -> bool {
        self.started.is_done()
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, python: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        Ok(self.result(python, timeout)?.is_some())
    }

    #[pyo3(signature = (timeout = None))]
    fn result(&self, python: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Loaded>> {
        let timeout = optional_seconds("timeout", timeout)?;
        Ok(self.started.end(python, timeout).map(Loaded::from))
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
            Some(_) => {}
        }
        let Ok(task) = &self.started.0 else {
            return Ok(Some(0));
        };
        let Some(arrived) = python.detach(|| task.wait_layer(layer, timeout)) else {
            return Ok(task.is_foreign().then_some(0));
        };
        let end = arrived.end.map(|end| Loaded::from(End::from(end)).pages);
        Ok(end.or(arrived.pages))
    }

    fn cancel(&self) -> bool {
        self.started.cancel()
    }
}

/// A store that was started.
#[pyclass(frozen, module = "undercroft")]
pub(crate) struct StoreTask {
    started: Started<Stored>,
    pages: usize,
}

impl StoreTask {
    pub(crate) fn start(pool: &TaskPool, store: Store) -> Self {
        let pages = store.keys.len();
        Self { started: Started(pool.start(Lane::Stores, move |_| store.run())), pages }
    }
}

#[pymethods]
impl StoreTask {
    #[getter]
    fn done(&self) -> bool {
        self.started.is_done()
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, python: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        Ok(self.result(python, timeout)?.is_some())
    }

    #[pyo3(signature = (timeout = None))]
    fn result(&self, python: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Stored>> {
        let timeout = optional_seconds("timeout", timeout)?;
        Ok(self.started.end(python, timeout).map(|end| match end {
            End::Through(stored) => stored.clone(),
            End::Missed(why) => Stored::missed(self.pages, why),
            End::Panicked => Stored::failed(self.pages, PANICKED),
        }))
    }

    fn cancel(&self) -> bool {
        self.started.cancel()
    }
}
