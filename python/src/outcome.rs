use crate::arguments::seconds;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::sync::{Arc, Mutex, PoisonError};
use undercroft_client::{self as client, MissReason};

/// A miss's name, as Python sees it.
pub(crate) fn name_of(why: MissReason) -> &'static str {
    match why {
        MissReason::Absent => "absent",
        MissReason::Disconnected => "disconnected",
        MissReason::Deadline => "deadline",
        MissReason::Hung => "hung",
        MissReason::Changed => "changed",
        MissReason::Refused(_) => "refused",
        MissReason::NotOpen => "not_open",
        MissReason::Forked => "forked",
        MissReason::Full => "full",
        MissReason::Damaged => "damaged",
        MissReason::Invalid => "invalid",
        MissReason::Released => "released",
        MissReason::Busy => "busy",
        MissReason::TooLong => "too_long",
        MissReason::Device => "device",
        MissReason::Slower => "slower",
        _ => "other",
    }
}

/// A promise that what was found stays until it is fetched.
#[pyclass(frozen, module = "undercroft")]
pub(crate) struct Hold {
    hold: Mutex<Option<Arc<client::Hold>>>,
    #[pyo3(get)]
    pages: u32,
}

impl Hold {
    pub(crate) fn new(hold: client::Hold) -> Self {
        let pages = hold.pages();
        Self { hold: Mutex::new(Some(Arc::new(hold))), pages }
    }

    /// `None` once it was dropped.
    pub(crate) fn held(&self) -> Option<Arc<client::Hold>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[pymethods]
impl Hold {
    #[pyo3(signature = (deadline = 1.0))]
    fn give<'py>(
        &self,
        python: Python<'py>,
        deadline: f64,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let deadline = seconds("deadline", deadline)?;
        let Some(hold) = self.held() else {
            return Ok(None);
        };
        let token = python.detach(|| hold.give(deadline));
        Ok(token.ok().map(|token| PyBytes::new(python, &token.0)))
    }

    #[pyo3(name = "drop")]
    fn give_back(&self, python: Python<'_>) {
        let hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner).take();
        python.detach(|| drop(hold));
    }

    fn __repr__(&self) -> String {
        format!("Hold({} pages)", self.pages)
    }
}

/// What a lookup found.
#[pyclass(frozen, get_all, module = "undercroft")]
pub(crate) struct Found {
    pages: u32,
    dram: u32,
    ssd: u32,
    stamp: u64,
    estimate: f64,
    present: u32,
    worth: u32,
    copy: f64,
    hold: Option<Py<Hold>>,
    why: Option<&'static str>,
}

impl Found {
    pub(crate) fn new(python: Python<'_>, found: client::Found) -> PyResult<Self> {
        let hold = found.hold.map(|hold| Py::new(python, Hold::new(hold))).transpose()?;
        Ok(Self {
            pages: found.pages,
            dram: found.dram,
            ssd: found.ssd,
            stamp: found.stamp.0,
            estimate: found.estimate.as_secs_f64(),
            present: found.present,
            worth: found.worth,
            copy: found.copy.as_secs_f64(),
            hold,
            why: found.why.map(name_of),
        })
    }
}

#[pymethods]
impl Found {
    fn __repr__(&self) -> String {
        let why = self.why.map(|why| format!(", {why}")).unwrap_or_default();
        format!("Found({} pages, {} in DRAM, {} on SSD{why})", self.pages, self.dram, self.ssd)
    }
}

/// What a load brought into a device.
#[pyclass(frozen, get_all, module = "undercroft")]
#[derive(Clone, Default)]
pub(crate) struct Loaded {
    pub(crate) pages: u32,
    ssd_pages: u32,
    bytes: u64,
    why: Option<&'static str>,
    fault: Option<String>,
}

impl From<client::Loaded> for Loaded {
    fn from(loaded: client::Loaded) -> Self {
        Self {
            pages: loaded.pages,
            ssd_pages: loaded.ssd_pages,
            bytes: loaded.bytes,
            why: loaded.why.map(name_of),
            fault: loaded.fault.map(|fault| fault.to_string()),
        }
    }
}

impl Loaded {
    pub(crate) fn missed(why: MissReason) -> Self {
        Self { why: Some(name_of(why)), ..Self::default() }
    }

    pub(crate) fn failed(fault: &str) -> Self {
        Self { fault: Some(fault.to_owned()), ..Self::missed(MissReason::Device) }
    }
}

#[pymethods]
impl Loaded {
    fn __repr__(&self) -> String {
        let why = self.why.map(|why| format!(", {why}")).unwrap_or_default();
        format!("Loaded({} pages, {} from SSD{why})", self.pages, self.ssd_pages)
    }
}

/// What became of the pages of a store.
#[pyclass(frozen, module = "undercroft")]
#[derive(Clone, Default)]
pub(crate) struct Stored {
    #[pyo3(get)]
    stored: u32,
    #[pyo3(get)]
    held: u32,
    #[pyo3(get)]
    coming: u32,
    declined: client::Declined,
    #[pyo3(get)]
    failed: u32,
    #[pyo3(get)]
    unsettled: u32,
    #[pyo3(get)]
    why: Option<&'static str>,
    #[pyo3(get)]
    fault: Option<String>,
}

impl From<client::Stored> for Stored {
    fn from(stored: client::Stored) -> Self {
        Self {
            stored: stored.stored,
            held: stored.held,
            coming: stored.coming,
            declined: stored.declined,
            failed: stored.failed,
            unsettled: stored.unsettled,
            why: stored.why.map(name_of),
            fault: stored.fault.map(|fault| fault.to_string()),
        }
    }
}

impl Stored {
    pub(crate) fn missed(pages: usize, why: MissReason) -> Self {
        Self { unsettled: pages as u32, why: Some(name_of(why)), ..Self::default() }
    }

    pub(crate) fn failed(pages: usize, fault: &str) -> Self {
        Self { fault: Some(fault.to_owned()), ..Self::missed(pages, MissReason::Device) }
    }
}

#[pymethods]
impl Stored {
    #[getter]
    fn declined<'py>(&self, python: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let client::Declined { credits, parent, full, admission } = self.declined;
        let counts = PyDict::new(python);
        for (name, count) in
            [("credits", credits), ("parent", parent), ("full", full), ("admission", admission)]
        {
            counts.set_item(name, count)?;
        }
        Ok(counts)
    }

    fn __repr__(&self) -> String {
        let declined = self.declined.total();
        let why = self.why.map(|why| format!(", {why}")).unwrap_or_default();
        format!(
            "Stored({} stored, {} held, {} coming, {declined} declined, {} failed, {} unsettled{why})",
            self.stored, self.held, self.coming, self.failed, self.unsettled
        )
    }
}

/// What a prefetch set in motion.
#[pyclass(frozen, get_all, module = "undercroft")]
pub(crate) struct Prefetched {
    resident: u32,
    started: u32,
    why: Option<&'static str>,
}

impl From<Result<client::Prefetched, MissReason>> for Prefetched {
    fn from(outcome: Result<client::Prefetched, MissReason>) -> Self {
        let why = outcome.err().map(name_of);
        let client::Prefetched { resident, started } = outcome.unwrap_or_default();
        Self { resident, started, why }
    }
}

#[pymethods]
impl Prefetched {
    fn __repr__(&self) -> String {
        let why = self.why.map(|why| format!(", {why}")).unwrap_or_default();
        format!("Prefetched({} resident, {} started{why})", self.resident, self.started)
    }
}
