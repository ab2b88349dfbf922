use crate::error::value;
use pyo3::prelude::*;
use std::time::Duration;
use undercroft_gpu_shim::BlockId;

/// The longest wait, seconds: what is asked to be longer is this long.
const LONGEST_S: f64 = 1e9;

/// Seconds as Python has them: a float that is no negative one.
pub(crate) fn seconds(name: &str, seconds: f64) -> PyResult<Duration> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(value(format!("{name} is {seconds}, allowed 0 or more seconds")));
    }
    Ok(Duration::from_secs_f64(seconds.min(LONGEST_S)))
}

pub(crate) fn optional_seconds(name: &str, given: Option<f64>) -> PyResult<Option<Duration>> {
    given.map(|given| seconds(name, given)).transpose()
}

pub(crate) fn blocks(numbers: Vec<u32>) -> Vec<BlockId> {
    numbers.into_iter().map(BlockId).collect()
}

/// Exactly `N` bytes.
pub(crate) fn bytes<const N: usize>(name: &str, given: &[u8]) -> PyResult<[u8; N]> {
    given.try_into().map_err(|_| value(format!("{name} has {} bytes, allowed {N}", given.len())))
}
