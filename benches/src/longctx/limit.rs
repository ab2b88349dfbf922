use super::target::Target;
use crate::BenchError;
use crate::limits::{BareCopy, BareRing, Copies, Way, io_uring_is_allowed, written_extents};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One look at a limit.
const WINDOW: Duration = Duration::from_millis(400);
/// Reads in flight, of which the fastest number counts: the daemon finds one out, too.
const SSD_DEPTHS: [u32; 3] = [8, 16, 32];
/// How long each of them is tried.
const TRIAL: Duration = Duration::from_millis(200);
/// Memory the bare reads go into, as the daemon's go into its arena.
const SSD_MEMORY: u64 = 512 << 20;
/// Direct I/O takes whole blocks.
const BLOCK: u32 = 4096;

/// What a restore from DRAM cannot be faster than.
pub(super) enum DramLimit {
    /// Bare copies by as many threads as the device has.
    Copies { bare: BareCopy, copies: Copies, page: usize, threads: usize },
    /// What the link to the device does at best, bytes a second.
    Link(f64),
}

impl DramLimit {
    pub(super) fn of(
        target: &dyn Target,
        working_set: u64,
        page_bytes: u32,
        threads: usize,
    ) -> Result<Self, BenchError> {
        if let Some(bytes_per_s) = target.link_bytes_per_s()? {
            return Ok(Self::Link(bytes_per_s));
        }
        let page = page_bytes as usize;
        // Each thread needs a few pages of its own.
        let least = 4 * u64::from(page_bytes) * threads as u64;
        let mut bare = BareCopy::new(working_set.max(least), page_bytes.into())?;
        let copies = bare.best_once(page, threads);
        Ok(Self::Copies { bare, copies, page, threads })
    }

    /// Bytes a second.
    pub(super) fn measure(&mut self) -> f64 {
        match self {
            Self::Copies { bare, copies, page, threads } => {
                bare.run(*copies, *page, *threads, WINDOW)
            }
            Self::Link(bytes_per_s) => *bytes_per_s,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Copies { copies, threads: 1, .. } => format!("{} by 1 thread", copies.name()),
            Self::Copies { copies, threads, .. } => {
                format!("{} by {threads} threads", copies.name())
            }
            Self::Link(_) => "large copies out of pinned memory".to_owned(),
        }
    }
}

/// What reading a store cannot be faster than: bare reads of its own file.
pub(super) struct SsdLimit {
    ring: BareRing,
    offsets: Vec<u64>,
    next: usize,
    log: PathBuf,
}

impl SsdLimit {
    /// `None` where io_uring is refused.
    pub(super) fn of(store: &Path, page_bytes: u32) -> Result<Option<Self>, BenchError> {
        if !io_uring_is_allowed() {
            return Ok(None);
        }
        let log = log_file(store)?;
        let block = page_bytes.next_multiple_of(BLOCK);
        let offsets = written_extents(&log, block).map_err(BenchError::file("read", &log))?;
        let mut next = 0;
        let mut best: Option<(f64, BareRing)> = None;
        for depth in SSD_DEPTHS {
            let mut ring = BareRing::open(&log, Way::Read, depth, block, SSD_MEMORY)?;
            let speed = ring.run(&offsets, &mut next, TRIAL);
            let speed = speed.map_err(BenchError::file("read", &log))?;
            if best.as_ref().is_none_or(|(most, _)| speed > *most) {
                best = Some((speed, ring));
            }
        }
        Ok(best.map(|(_, ring)| Self { ring, offsets, next, log }))
    }

    /// Bytes a second.
    pub(super) fn measure(&mut self) -> Result<f64, BenchError> {
        let failed = BenchError::file("read", &self.log);
        self.ring.run(&self.offsets, &mut self.next, WINDOW).map_err(failed)
    }

    pub(super) fn name(&self) -> String {
        format!("{}, 8 to 32 reads of a page in flight", self.ring.name())
    }
}

/// The store's page log: its largest file.
fn log_file(store: &Path) -> Result<PathBuf, BenchError> {
    let files = store.read_dir().map_err(BenchError::file("read", store))?;
    let sized =
        files.flatten().filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.path())));
    sized.max().map(|(_, path)| path).ok_or_else(|| BenchError::Measure {
        row: "ssd",
        problem: format!("{} has no file", store.display()),
    })
}
