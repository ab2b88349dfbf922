use std::fmt;

const HUGE_BYTES: u64 = crate::mapping::HUGE_BYTES as u64;

/// Whether to look for huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// The best the machine gives: reserved huge pages, else shared memory made huge, else 4 KiB.
    #[default]
    Auto,
    /// 4 KiB pages.
    Off,
}

/// How a part is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartOptions {
    /// Whether to look for huge pages.
    pub huge: HugePages,
    /// Whether to try to lock the part in memory. A refusal is a fact, not an error.
    pub lock: bool,
    /// Threads that fault the part in before it is used; 0 leaves it to first use.
    pub prefault_threads: usize,
    /// The memory node whose pages are preferred. A refusal, and pages that lie elsewhere all the
    /// same, are facts.
    pub numa_node: Option<u32>,
}

impl Default for PartOptions {
    fn default() -> Self {
        Self { huge: HugePages::Auto, lock: true, prefault_threads: 1, numa_node: None }
    }
}

/// What kind of pages a part got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Reserved huge pages.
    Hugetlb,
    /// Shared memory made huge.
    Transparent,
    /// 4 KiB pages.
    Base,
    /// Not told yet: see [`Part::huge_bytes`](crate::Part::huge_bytes).
    Untold,
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hugetlb => "hugetlb",
            Self::Transparent => "transparent",
            Self::Base => "4k",
            Self::Untold => "not told yet",
        })
    }
}

/// What the machine gave and what it refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartFacts {
    /// What kind of pages.
    pub pages: PageKind,
    /// Bytes in huge pages.
    pub huge_bytes: u64,
    /// Whether the part is locked in memory.
    pub locked: bool,
    /// The memory node whose pages are preferred for it: `None` if that was not asked for, or refused.
    pub numa_node: Option<u32>,
    /// What was refused, one line each.
    pub refused: Vec<String>,
}

impl PartFacts {
    /// Takes in how much of a part of `len` bytes is in huge pages.
    pub fn tell(&mut self, huge_bytes: u64, len: u64) {
        self.huge_bytes = huge_bytes;
        self.pages = if huge_bytes > 0 { PageKind::Transparent } else { PageKind::Base };
        self.refused.extend(small_pages(huge_bytes, len));
    }
}

/// What there is to say of a part that is to be in huge pages and is not as a whole.
pub(crate) fn small_pages(huge_bytes: u64, len: u64) -> Option<String> {
    let possible = len / HUGE_BYTES * HUGE_BYTES;
    let is_short = huge_bytes < possible;
    is_short.then(|| format!("huge shared memory: {huge_bytes} of {possible} bytes"))
}
