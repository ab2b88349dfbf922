use crate::arguments::{blocks, bytes, seconds};
use crate::device::Device;
use crate::error::value;
use crate::identity::Geometry;
use crate::keys::Keys;
use crate::outcome::{Found, Hold, Loaded, Prefetched, Stored, name_of};
use crate::task::{Load, LoadTask, Source, Store, StoreTask};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_client::wire::{HintKind, PageKey, Purge, Rank, Stamp, Token};
use undercroft_client::{Client, LookupOptions, SpaceHandle, TaskPool};

/// An open space: what lookups, loads and stores are asked of.
#[pyclass(frozen, module = "undercroft")]
pub(crate) struct Space {
    pub(crate) client: Client,
    pub(crate) handle: SpaceHandle,
    pub(crate) pool: Arc<TaskPool>,
}

#[pymethods]
impl Space {
    #[getter]
    fn is_open(&self, python: Python<'_>) -> bool {
        python.detach(|| self.handle.is_open())
    }

    #[getter]
    fn page_bytes(&self) -> u32 {
        self.handle.space().geometry.page_bytes()
    }

    #[getter]
    fn geometry(&self) -> Geometry {
        Geometry(self.handle.space().geometry)
    }

    #[getter]
    fn digest<'py>(&self, python: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(python, &self.handle.space().digest().0)
    }

    #[getter]
    fn rank(&self) -> Option<(u16, u16)> {
        match self.handle.space().rank {
            Rank::Shared => None,
            Rank::Of { index, count } => Some((index, count)),
        }
    }

    #[getter]
    fn group(&self) -> u32 {
        self.handle.space().group
    }

    fn set_recompute(&self, page: f64) -> PyResult<()> {
        self.handle.set_recompute(seconds("page", page)?);
        Ok(())
    }

    #[pyo3(signature = (keys, *, hold = None, deadline = 0.05, due = None, have = 0))]
    fn lookup(
        &self,
        python: Python<'_>,
        keys: Keys,
        hold: Option<f64>,
        deadline: f64,
        due: Option<f64>,
        have: u32,
    ) -> PyResult<Found> {
        let options = lookup_options(hold, deadline, due, have)?;
        let found = python.detach(|| self.handle.lookup(&keys.0, options));
        Found::new(python, found)
    }

    #[pyo3(signature = (device, source, blocks, *, stamp = 0, deadline = 10.0))]
    fn load(
        &self,
        python: Python<'_>,
        device: &Device,
        source: Asked,
        blocks: Vec<u32>,
        stamp: u64,
        deadline: f64,
    ) -> PyResult<Loaded> {
        let load = self.loading(device, source, blocks, stamp, deadline)?;
        Ok(python.detach(|| load.run()))
    }

    #[pyo3(signature = (device, source, blocks, *, stamp = 0, deadline = 10.0, by_layer = false))]
    #[expect(clippy::too_many_arguments, reason = "most have names")]
    fn start_load(
        &self,
        python: Python<'_>,
        device: &Device,
        source: Asked,
        blocks: Vec<u32>,
        stamp: u64,
        deadline: f64,
        by_layer: bool,
    ) -> PyResult<LoadTask> {
        let load = self.loading(device, source, blocks, stamp, deadline)?;
        Ok(python.detach(|| LoadTask::start(&self.pool, load, by_layer)))
    }

    #[pyo3(signature = (device, token, blocks, *, deadline = 10.0))]
    fn take(
        &self,
        python: Python<'_>,
        device: &Device,
        token: &[u8],
        blocks: Vec<u32>,
        deadline: f64,
    ) -> PyResult<Loaded> {
        let token = Token(bytes("token", token)?);
        let (held, blocks) = (Arc::clone(&device.held), self::blocks(blocks));
        let deadline = seconds("deadline", deadline)?;
        let take = || self.handle.take_into(&*held.device, token, &blocks, deadline);
        Ok(python.detach(take).into())
    }

    #[pyo3(signature = (device, keys, blocks, *, parent = None, first = 0, stamp = 0,
                        deadline = 10.0, wait_for_credits = false))]
    #[expect(clippy::too_many_arguments, reason = "most have names")]
    fn store(
        &self,
        python: Python<'_>,
        device: &Device,
        keys: Keys,
        blocks: Vec<u32>,
        parent: Option<&[u8]>,
        first: u32,
        stamp: u64,
        deadline: f64,
        wait_for_credits: bool,
    ) -> PyResult<Stored> {
        let chain = Chained { parent, first, stamp, deadline, wait_for_credits };
        let store = self.storing(device, keys, blocks, &chain)?;
        Ok(python.detach(|| store.run()))
    }

    #[pyo3(signature = (device, keys, blocks, *, parent = None, first = 0, stamp = 0,
                        deadline = 10.0, wait_for_credits = false))]
    #[expect(clippy::too_many_arguments, reason = "most have names")]
    fn start_store(
        &self,
        python: Python<'_>,
        device: &Device,
        keys: Keys,
        blocks: Vec<u32>,
        parent: Option<&[u8]>,
        first: u32,
        stamp: u64,
        deadline: f64,
        wait_for_credits: bool,
    ) -> PyResult<StoreTask> {
        let chain = Chained { parent, first, stamp, deadline, wait_for_credits };
        let store = self.storing(device, keys, blocks, &chain)?;
        Ok(python.detach(|| StoreTask::start(&self.pool, store)))
    }

    #[pyo3(signature = (keys, *, ttl = 10.0, deadline = 0.05))]
    fn prefetch(
        &self,
        python: Python<'_>,
        keys: Keys,
        ttl: f64,
        deadline: f64,
    ) -> PyResult<Prefetched> {
        let (ttl, deadline) = (seconds("ttl", ttl)?, seconds("deadline", deadline)?);
        Ok(python.detach(|| self.handle.prefetch(&keys.0, ttl, deadline)).into())
    }

    #[pyo3(signature = (keys, kind, seconds = None, *, deadline = 0.05))]
    fn hint(
        &self,
        python: Python<'_>,
        keys: Keys,
        kind: &str,
        seconds: Option<f64>,
        deadline: f64,
    ) -> PyResult<Option<&'static str>> {
        let kind = hint_kind(kind, seconds)?;
        let deadline = self::seconds("deadline", deadline)?;
        let heard = python.detach(|| self.handle.hint(&keys.0, kind, deadline));
        Ok(heard.err().map(name_of))
    }

    #[pyo3(signature = (deadline = 10.0))]
    fn purge(&self, python: Python<'_>, deadline: f64) -> PyResult<bool> {
        let deadline = seconds("deadline", deadline)?;
        let space = Some(self.handle.space().digest());
        let what = Purge { domain: None, space, writer: None };
        let purged = python.detach(|| self.client.purge(&what, deadline));
        Ok(purged.is_ok_and(|purged| purged.missed.is_empty()))
    }

    fn __repr__(&self) -> String {
        format!(
            "Space({}, {} byte pages)",
            self.handle.space().digest().to_hex(),
            self.page_bytes()
        )
    }
}

/// What is asked for: keys, a hold, or `(hold, first, count)`.
#[derive(FromPyObject)]
enum Asked {
    Hold(Py<Hold>),
    Part(Py<Hold>, u32, u32),
    Keys(Keys),
}

/// Where a run of keys hangs, and how it is stored.
struct Chained<'a> {
    parent: Option<&'a [u8]>,
    first: u32,
    stamp: u64,
    deadline: f64,
    wait_for_credits: bool,
}

impl Space {
    fn loading(
        &self,
        device: &Device,
        source: Asked,
        numbers: Vec<u32>,
        stamp: u64,
        deadline: f64,
    ) -> PyResult<Load> {
        let held = |hold: &Py<Hold>| {
            hold.get().held().ok_or_else(|| value("the hold was given back already"))
        };
        let source = match source {
            Asked::Keys(keys) => Source::Keys(keys.0),
            Asked::Hold(hold) => {
                let hold = held(&hold)?;
                let pages = hold.pages();
                Source::Hold(hold, 0, pages)
            }
            Asked::Part(hold, first, count) => Source::Hold(held(&hold)?, first, count),
        };
        Ok(Load {
            space: self.handle.clone(),
            held: Arc::clone(&device.held),
            source,
            blocks: blocks(numbers),
            stamp: Stamp(stamp),
            until: from_now(deadline)?,
        })
    }

    fn storing(
        &self,
        device: &Device,
        keys: Keys,
        numbers: Vec<u32>,
        chain: &Chained<'_>,
    ) -> PyResult<Store> {
        let parent = chain.parent.map(|parent| bytes("parent", parent).map(PageKey));
        Ok(Store {
            space: self.handle.clone(),
            held: Arc::clone(&device.held),
            keys: keys.0,
            blocks: blocks(numbers),
            parent: parent.transpose()?,
            first: chain.first,
            stamp: Stamp(chain.stamp),
            until: from_now(chain.deadline)?,
            wait_for_credits: chain.wait_for_credits,
        })
    }
}

fn from_now(deadline: f64) -> PyResult<Instant> {
    Ok(Instant::now() + seconds("deadline", deadline)?)
}

pub(crate) fn lookup_options(
    hold: Option<f64>,
    deadline: f64,
    due: Option<f64>,
    have: u32,
) -> PyResult<LookupOptions> {
    let hold = hold.map(|hold| seconds("hold", hold)).transpose()?;
    let due = due.map(|due| seconds("due", due)).transpose()?;
    Ok(LookupOptions { hold, deadline: seconds("deadline", deadline)?, due, have })
}

fn hint_kind(kind: &str, given: Option<f64>) -> PyResult<HintKind> {
    let allowed = "active, paused, ended, expected (seconds), pin (seconds), demote";
    let ms = |given: Duration| u32::try_from(given.as_millis()).unwrap_or(u32::MAX);
    let given = given.map(|given| seconds("seconds", given)).transpose()?.map(ms);
    match (kind, given) {
        ("active", None) => Ok(HintKind::Active),
        ("paused", None) => Ok(HintKind::Paused),
        ("ended", None) => Ok(HintKind::Ended),
        ("demote", None) => Ok(HintKind::Demote),
        ("expected", Some(ms)) => Ok(HintKind::ExpectedInMs(ms)),
        ("pin", Some(ms)) => Ok(HintKind::PinMs(ms)),
        (kind, seconds) => {
            let with = if seconds.is_some() { "with" } else { "without" };
            Err(value(format!("kind is {kind:?} {with} seconds, allowed {allowed}")))
        }
    }
}
