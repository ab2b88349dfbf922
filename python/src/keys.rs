use crate::arguments::bytes;
use crate::error::value;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySequence, PyString};
use undercroft_client::wire::PageKey;

const KEY_BYTES: usize = 32;

/// Keys as Python has them: one run of bytes, 32 for each key, or a sequence of such.
pub(crate) struct Keys(pub(crate) Vec<PageKey>);

impl<'py> FromPyObject<'_, 'py> for Keys {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(run) = given.cast::<PyBytes>() {
            return of_run(run.as_bytes());
        }
        if let Ok(buffer) = PyBuffer::<u8>::get(&given) {
            return of_run(&buffer.to_vec(given.py())?);
        }
        let sequence =
            given.cast::<PySequence>().ok().filter(|_| !given.is_instance_of::<PyString>());
        let Some(sequence) = sequence else {
            let found = given.get_type().name()?.to_string();
            return Err(value(format!("keys are bytes or a sequence of bytes, not {found}")));
        };
        let mut keys = Vec::with_capacity(sequence.len()?);
        for key in sequence.try_iter()? {
            keys.push(one(&key?)?);
        }
        Ok(Self(keys))
    }
}

fn of_run(run: &[u8]) -> PyResult<Keys> {
    let (keys, rest) = run.as_chunks::<KEY_BYTES>();
    if !rest.is_empty() {
        let found = run.len();
        return Err(value(format!("a run of keys has {found} bytes, allowed multiples of 32")));
    }
    Ok(Keys(keys.iter().map(|key| PageKey(*key)).collect()))
}

fn one(key: &Bound<'_, PyAny>) -> PyResult<PageKey> {
    match key.cast::<PyBytes>() {
        Ok(key) => bytes("a key", key.as_bytes()).map(PageKey),
        Err(_) => bytes("a key", &PyBuffer::<u8>::get(key)?.to_vec(key.py())?).map(PageKey),
    }
}

/// One run of bytes, 32 for each key.
pub(crate) fn to_bytes<'py>(python: Python<'py>, keys: &[PageKey]) -> Bound<'py, PyBytes> {
    let run: Vec<u8> = keys.iter().flat_map(|key| key.0).collect();
    PyBytes::new(python, &run)
}
