use crate::arguments::seconds;
use crate::outcome::Found;
use pyo3::prelude::*;
use std::sync::{Mutex, PoisonError};
use undercroft_client::{self as client, MissReason, PendingLookup};

/// A lookup that was sent.
#[pyclass(frozen, module = "undercroft")]
pub(crate) struct LookupTask {
    /// The process that sent it. In another, a thread that is not there may have the lock.
    process: u32,
    /// Until its answer was given out.
    pending: Mutex<Result<PendingLookup, MissReason>>,
}

impl LookupTask {
    pub(crate) fn new(pending: Result<PendingLookup, MissReason>) -> Self {
        Self { process: std::process::id(), pending: Mutex::new(pending) }
    }

    fn answer(&self, deadline: std::time::Duration) -> client::Found {
        if self.process != std::process::id() {
            return client::Found { why: Some(MissReason::Forked), ..client::Found::default() };
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let why = match &*pending {
            Ok(lookup) => {
                let found = lookup.wait(deadline);
                if found.why == Some(MissReason::Deadline) {
                    return found;
                }
                *pending = Err(MissReason::Released);
                return found;
            }
            Err(why) => *why,
        };
        client::Found { why: Some(why), ..client::Found::default() }
    }
}

#[pymethods]
impl LookupTask {
    #[pyo3(signature = (deadline = 0.05))]
    fn result(&self, python: Python<'_>, deadline: f64) -> PyResult<Found> {
        let deadline = seconds("deadline", deadline)?;
        let found = python.detach(|| self.answer(deadline));
        Found::new(python, found)
    }
}
