use crate::BenchError;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// How long calls took, nanoseconds to three digits, up to a minute.
#[derive(Debug, Clone)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Self {
        let bounds = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Self(bounds.expect("the bounds are constants"))
    }

    /// Makes one call after another for as long as told.
    pub(super) fn of(
        window: Duration,
        mut call: impl FnMut() -> Result<(), BenchError>,
    ) -> Result<Self, BenchError> {
        let mut all = Self::new();
        let since = Instant::now();
        while since.elapsed() < window {
            let began = Instant::now();
            call()?;
            all.0.saturating_record(began.elapsed().as_nanos() as u64);
        }
        Ok(all)
    }

    pub(super) fn calls(&self) -> u64 {
        self.0.len()
    }

    /// Microseconds that this share of the calls stayed within.
    pub(super) fn us(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1e3
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// Nanoseconds and how many calls took them, for another process.
    pub(super) fn counted(&self) -> Vec<(u64, u64)> {
        self.0.iter_recorded().map(|at| (at.value_iterated_to(), at.count_at_value())).collect()
    }

    /// What another process counted.
    pub(super) fn from_counted(counted: &[(u64, u64)]) -> Self {
        let mut all = Self::new();
        for (ns, calls) in counted {
            all.0.saturating_record_n(*ns, *calls);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_counted_is_the_same() {
        let mut all = Latencies::new();
        for ns in 1..=100_000 {
            all.0.saturating_record(ns);
        }
        let told = Latencies::from_counted(&all.counted());
        assert_eq!(told.calls(), 100_000);
        assert!((told.us(0.5) - 50.0).abs() < 0.1, "{}", told.us(0.5));
        assert!((told.us(0.99) - 99.0).abs() < 0.1, "{}", told.us(0.99));
    }
}
