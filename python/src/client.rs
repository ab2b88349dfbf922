use crate::arguments::{bytes, seconds};
use crate::device::Device;
use crate::error::{ConnectError, OpenError, value};
use crate::identity::{Family, Geometry};
use crate::keys::Keys;
use crate::lookup::LookupTask;
use crate::outcome::{Found, Hold};
use crate::space::{Space, lookup_options};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use undercroft_client::wire::{self, Mode, PageKey, Rank, Token};
use undercroft_client::{self as client, ClientState, ConnectOptions, SpaceHandle, TaskPool, Wait};
use undercroft_gpu_shim::cuda::CudaDevice;

/// The most threads that loads may go on.
const MOST_THREADS: usize = 64;
/// The most tasks that may wait in each direction.
const MOST_TASKS: usize = 1 << 20;

/// A connection to the daemon of this node, kept up behind the caller's back.
#[pyclass(frozen, subclass, weakref, module = "undercroft")]
pub(crate) struct Client {
    client: client::Client,
    pool: Arc<TaskPool>,
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (socket = None, *, name = None, wait = None, copy_mode = false,
                        daemon_uid = None, gpu = None, threads = 2, max_tasks = 1024))]
    #[expect(clippy::too_many_arguments, reason = "all but the first have names")]
    fn new(
        python: Python<'_>,
        socket: Option<PathBuf>,
        name: Option<String>,
        wait: Option<f64>,
        copy_mode: bool,
        daemon_uid: Option<u32>,
        gpu: Option<&Device>,
        threads: usize,
        max_tasks: usize,
    ) -> PyResult<Self> {
        between("threads", threads, MOST_THREADS)?;
        between("max_tasks", max_tasks, MOST_TASKS)?;
        let mut options = ConnectOptions::new(socket.unwrap_or_else(client::find_socket));
        options.name = name.unwrap_or_else(|| "python".to_owned());
        options.copy_mode = copy_mode;
        options.daemon_uid = daemon_uid;
        options.wait = match wait {
            None => Wait::Background,
            Some(wait) => Wait::Now(seconds("wait", wait)?),
        };
        let cuda = gpu.map(cuda_of).transpose()?;
        let connect = || match &cuda {
            Some(cuda) => client::Client::connect_with_gpu(options, cuda),
            None => client::Client::connect(options),
        };
        let client =
            python.detach(connect).map_err(|error| ConnectError::new_err(error.to_string()))?;
        Ok(Self { client, pool: Arc::new(TaskPool::new(threads, max_tasks)) })
    }

    #[getter]
    fn state(&self, python: Python<'_>) -> &'static str {
        match python.detach(|| self.client.state()) {
            ClientState::Connected { .. } => "connected",
            ClientState::Hung => "hung",
            ClientState::Forked => "forked",
            _ => "connecting",
        }
    }

    #[getter]
    fn is_connected(&self) -> bool {
        // What it takes is less than to let go of the interpreter.
        self.client.is_connected()
    }

    #[getter]
    fn failure(&self, python: Python<'_>) -> Option<String> {
        match python.detach(|| self.client.state()) {
            ClientState::Connecting { failure } => failure,
            _ => None,
        }
    }

    #[getter]
    fn mode(&self, python: Python<'_>) -> Option<&'static str> {
        match python.detach(|| self.client.state()) {
            ClientState::Connected { mode: Mode::ZeroCopy, .. } => Some("zero_copy"),
            ClientState::Connected { mode: Mode::Copy, .. } => Some("copy"),
            _ => None,
        }
    }

    fn wait_connected(&self, python: Python<'_>, deadline: f64) -> PyResult<bool> {
        let deadline = seconds("deadline", deadline)?;
        Ok(python.detach(|| self.client.wait_connected(deadline)))
    }

    #[pyo3(signature = (deadline = 1.0))]
    fn ping(&self, python: Python<'_>, deadline: f64) -> PyResult<Option<f64>> {
        let deadline = seconds("deadline", deadline)?;
        let took = python.detach(|| self.client.ping(deadline));
        Ok(took.ok().map(|took| took.as_secs_f64()))
    }

    #[pyo3(signature = (deadline = 1.0))]
    fn status<'py>(
        &self,
        python: Python<'py>,
        deadline: f64,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let deadline = seconds("deadline", deadline)?;
        let report = python.detach(|| self.client.status(deadline).ok());
        let Some(report) = report else {
            return Ok(None);
        };
        let text = serde_json::to_string(&report).map_err(value)?;
        python.import("json")?.call_method1("loads", (text,)).map(Some)
    }

    fn counters<'py>(&self, python: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = self.client.counters();
        let counts = PyDict::new(python);
        counts.set_item("changed_pages", counters.changed_pages)?;
        counts.set_item("watcher_panics", counters.watcher_panics)?;
        counts.set_item("hung_calls", counters.hung_calls)?;
        Ok(counts)
    }

    #[pyo3(signature = (family, geometry, *, rank = None, group = 0, deadline = 5.0,
                        probe = None))]
    #[expect(clippy::too_many_arguments, reason = "most have names")]
    fn open_space(
        &self,
        python: Python<'_>,
        family: &Family,
        geometry: Geometry,
        rank: Option<(u16, u16)>,
        group: u32,
        deadline: f64,
        probe: Option<&[u8]>,
    ) -> PyResult<Space> {
        let rank = rank.map_or(Rank::Shared, |(index, count)| Rank::Of { index, count });
        let (family, geometry) = (family.family.clone(), geometry.0);
        let space = wire::Space { family, rank, group, geometry };
        let deadline = seconds("deadline", deadline)?;
        let probe = probe.map(|probe| bytes("probe", probe).map(PageKey)).transpose()?;
        let handle = python.detach(|| self.client.open_probed_space(&space, probe, deadline));
        let handle = handle.map_err(|error| OpenError::new_err(error.to_string()))?;
        Ok(Space { client: self.client.clone(), handle, pool: Arc::clone(&self.pool) })
    }

    fn may_hold(&self, first: &[u8]) -> PyResult<bool> {
        let first = PageKey(bytes("first", first)?);
        Ok(self.client.may_hold(&first).unwrap_or(false))
    }

    #[pyo3(signature = (family, engine_hash, *, peek = false))]
    fn may_begin(&self, family: &Family, engine_hash: &[u8], peek: bool) -> Option<bool> {
        let first = PageKey::from_engine_hash(&family.digest, engine_hash);
        if peek { self.client.peek(&first) } else { self.client.may_hold(&first) }
    }

    #[pyo3(signature = (spaces, keys, *, hold = None, deadline = 0.05, due = None, have = 0))]
    #[expect(clippy::needless_pass_by_value, reason = "what Python hands over")]
    #[expect(clippy::too_many_arguments, reason = "most have names")]
    fn lookup(
        &self,
        python: Python<'_>,
        spaces: Vec<Py<Space>>,
        keys: Keys,
        hold: Option<f64>,
        deadline: f64,
        due: Option<f64>,
        have: u32,
    ) -> PyResult<Found> {
        let options = lookup_options(hold, deadline, due, have)?;
        let handles: Vec<&SpaceHandle> = spaces.iter().map(|space| &space.get().handle).collect();
        let found = python.detach(|| self.client.lookup_family(&handles, &keys.0, options));
        Found::new(python, found)
    }

    #[pyo3(signature = (spaces, keys, *, hold = None, deadline = 0.05, due = None, have = 0))]
    #[expect(clippy::too_many_arguments, reason = "most have names")]
    fn start_lookup(
        &self,
        python: Python<'_>,
        spaces: Vec<Py<Space>>,
        keys: Keys,
        hold: Option<f64>,
        deadline: f64,
        due: Option<f64>,
        have: u32,
    ) -> PyResult<LookupTask> {
        let options = lookup_options(hold, deadline, due, have)?;
        let handles: Vec<&SpaceHandle> = spaces.iter().map(|space| &space.get().handle).collect();
        let pending = python.detach(|| self.client.start_lookup(&handles, &keys.0, options));
        Ok(LookupTask::new(pending))
    }

    #[pyo3(signature = (token, deadline = 1.0))]
    fn take_hold(&self, python: Python<'_>, token: &[u8], deadline: f64) -> PyResult<Option<Hold>> {
        let (token, deadline) = (Token(bytes("token", token)?), seconds("deadline", deadline)?);
        Ok(python.detach(|| self.client.take_hold(token, deadline)).ok().map(Hold::new))
    }

    fn attach_gpu(&self, python: Python<'_>, device: &Device) -> PyResult<()> {
        let cuda = cuda_of(device)?;
        python.detach(|| self.client.attach_gpu(&cuda)).map_err(crate::error::device)
    }

    #[pyo3(signature = (deadline = 2.0))]
    fn close(&self, python: Python<'_>, deadline: f64) -> PyResult<bool> {
        let deadline = seconds("deadline", deadline)?;
        let until = Instant::now() + deadline;
        self.pool.close();
        Ok(python.detach(|| {
            let has_ended = self.client.close(deadline);
            // What is under way misses from now on; only copies are waited for.
            has_ended & self.pool.wait(until.saturating_duration_since(Instant::now()))
        }))
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(
        &self,
        python: Python<'_>,
        _exception: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        self.close(python, 2.0).map(drop)
    }

    fn __repr__(&self, python: Python<'_>) -> String {
        format!("Client({})", self.state(python))
    }
}

fn between(name: &str, found: usize, most: usize) -> PyResult<()> {
    if (1..=most).contains(&found) {
        return Ok(());
    }
    Err(value(format!("{name} is {found}, allowed 1 to {most}")))
}

fn cuda_of(device: &Device) -> PyResult<Arc<CudaDevice>> {
    let cuda = device.held.cuda.clone();
    cuda.ok_or_else(|| value("the device is no GPU, allowed a CudaDevice"))
}
