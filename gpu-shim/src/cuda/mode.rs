use std::fmt;
use std::str::FromStr;

/// By what a device moves a page between the host and its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyMode {
    /// The copy engine, with one call for as many evenly spaced fragments as there are.
    Pitched,
    /// The copy engine, with one call for thousands of fragments (CUDA 12.8).
    Batched,
    /// A kernel of ours, on few multiprocessors: for fragments too small for a copy engine.
    Kernel,
}

impl CopyMode {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Pitched, Self::Batched, Self::Kernel];

    /// What it is called in options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pitched => "2d",
            Self::Batched => "batch",
            Self::Kernel => "kernel",
        }
    }
}

impl fmt::Display for CopyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CopyMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("{text:?} is no copy mode, allowed: 2d, batch, kernel"))
    }
}
