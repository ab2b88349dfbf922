use std::fmt;

/// A point on the daemon's monotonic clock, microseconds. The core never reads a clock: every
/// step is told what time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Micros(pub u64);

impl Micros {
    /// The point `ms` milliseconds later; saturates at the end of time.
    #[must_use]
    pub fn after_ms(self, ms: u32) -> Self {
        Self(self.0.saturating_add(u64::from(ms) * 1000))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us", self.0)
    }
}
