use anyhow::Result;
use std::time::{Duration, Instant};

/// Enough for a median that one hiccup does not move.
const FEWEST_RUNS: usize = 7;

/// How long a thing takes: the median of several runs, which together take at least `whole`. With
/// no time given it is run once.
pub(super) fn median(whole: Duration, mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let fewest = if whole.is_zero() { 1 } else { FEWEST_RUNS };
    let mut times = Vec::new();
    let since = Instant::now();
    while times.len() < fewest || since.elapsed() < whole {
        let began = Instant::now();
        run()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// 10^9 bytes a second.
pub(super) fn gb_per_s(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64().max(1e-9) / 1e9
}
