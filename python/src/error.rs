use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::{PyErr, create_exception};
use std::fmt::Display;

create_exception!(undercroft, UndercroftError, PyException, "What could not be made or opened.");
create_exception!(undercroft, ConnectError, UndercroftError, "No client could be made.");
create_exception!(undercroft, OpenError, UndercroftError, "A space could not be opened.");
create_exception!(undercroft, DeviceError, UndercroftError, "A device could not be made.");

pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let python = module.py();
    module.add("UndercroftError", python.get_type::<UndercroftError>())?;
    module.add("ConnectError", python.get_type::<ConnectError>())?;
    module.add("OpenError", python.get_type::<OpenError>())?;
    module.add("DeviceError", python.get_type::<DeviceError>())
}

pub(crate) fn value(what: impl Display) -> PyErr {
    PyValueError::new_err(what.to_string())
}

pub(crate) fn device(what: impl Display) -> PyErr {
    DeviceError::new_err(what.to_string())
}
