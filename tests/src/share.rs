use std::fmt;

/// Some of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub of: u64,
    /// How many of them.
    pub some: u64,
}

impl Share {
    /// Adds a chain's pages.
    pub fn count(&mut self, of: u32, some: u32) {
        self.add(Self { of: u64::from(of), some: u64::from(some) });
    }

    /// Adds another share.
    pub fn add(&mut self, other: Self) {
        self.of += other.of;
        self.some += other.some;
    }

    /// Whether it is at least so many thousandths.
    #[must_use]
    pub fn reaches(&self, per_mille: u64) -> bool {
        self.some * 1000 >= self.of * per_mille
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of {
            0 => f.pad("none"),
            of => f.pad(&format!("{:.3} %", 100.0 * self.some as f64 / of as f64)),
        }
    }
}
