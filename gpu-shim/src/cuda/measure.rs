//! Which way of copying is the fastest here, and how fast the link is at all.

use super::context::Context;
use super::device::{Registered, Shared};
use super::memory::DeviceMemory;
use super::mode::CopyMode;
use super::pins::Pins;
use super::start::CudaStart;
use super::stream::{Events, Stream};
use super::{CudaError, memory};
use crate::batch::{Direction, Job};
use crate::{BlockId, DeviceError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_arena::{Memory, Span};

/// About so much is copied at once, bytes, and at most so many pages.
const SAMPLE_BYTES: usize = 16 << 20;
const SAMPLE_PAGES: usize = 64;
/// Copies that are timed, after one that is not.
const ROUNDS: usize = 3;
/// The kernel is used where it is faster by more than a tenth.
const KERNEL_WEIGHT: f64 = 0.9;
/// How much is copied to see what the link gives, bytes.
const CEILING_BYTES: usize = 256 << 20;

/// By what a device copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Modes {
    /// Loads whose layers nobody waits for one by one.
    pub load: CopyMode,
    /// Loads of the first layers first.
    pub load_by_layer: CopyMode,
    /// Stores.
    pub store: CopyMode,
}

/// What one way of copying came to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Measured {
    /// `load`, `load by layer` or `store`.
    pub what: &'static str,
    /// The way.
    pub mode: CopyMode,
    /// Bytes per second, or why it is not to be used here.
    pub outcome: Result<f64, String>,
}

/// What is measured: a direction, and whether layer by layer.
#[derive(Debug, Clone, Copy)]
struct Kind {
    what: &'static str,
    direction: Direction,
    by_layer: bool,
}

const LOAD: Kind = Kind { what: "load", direction: Direction::Load, by_layer: false };
const BY_LAYER: Kind = Kind { what: "load by layer", by_layer: true, ..LOAD };
const STORE: Kind = Kind { what: "store", direction: Direction::Store, by_layer: false };

/// Finds the fastest way for each kind of transfer that none was wished for. A way that leaves a
/// wrong byte is never used.
pub(super) fn choose(
    shared: &Arc<Shared>,
    load: Option<CopyMode>,
    store: Option<CopyMode>,
) -> Result<(Modes, Vec<Measured>), DeviceError> {
    if let (Some(load), Some(store)) = (load, store) {
        return Ok((Modes { load, load_by_layer: load, store }, Vec::new()));
    }
    let bench = match Bench::new(shared) {
        Ok(bench) => bench,
        // Without registered memory there is only one way.
        Err(DeviceError::Cuda(error)) if !error.is_sticky() => {
            let only = CopyMode::Pitched;
            let modes = Modes {
                load: load.unwrap_or(only),
                load_by_layer: load.unwrap_or(only),
                store: store.unwrap_or(only),
            };
            return Ok((modes, Vec::new()));
        }
        Err(error) => return Err(error),
    };
    let measured = bench.measure()?;
    let best = |kind: Kind| {
        let of_kind = measured.iter().filter(|measured| measured.what == kind.what);
        let speeds = of_kind.filter_map(|m| m.outcome.as_ref().ok().map(|speed| (m.mode, *speed)));
        // The kernel takes multiprocessors from the engine, a copy engine none.
        let speeds = speeds.map(|(mode, speed)| match mode {
            CopyMode::Kernel => (mode, speed * KERNEL_WEIGHT),
            CopyMode::Pitched | CopyMode::Batched => (mode, speed),
        });
        let best = speeds.max_by(|one, other| one.1.total_cmp(&other.1));
        best.map(|(mode, _)| mode).ok_or_else(|| DeviceError::Lost {
            reason: format!("no way to {} copies right", kind.what),
        })
    };
    let or_best = |wish: Option<CopyMode>, kind| wish.map_or_else(|| best(kind), Ok);
    let modes = Modes {
        load: or_best(load, LOAD)?,
        load_by_layer: or_best(load, BY_LAYER)?,
        store: or_best(store, STORE)?,
    };
    Ok((modes, measured))
}

/// Some blocks of the device, and pages to copy them from and to.
struct Bench<'a> {
    shared: &'a Arc<Shared>,
    /// What the blocks held before.
    kept: Vec<Span>,
    from: Vec<Span>,
    to: Vec<Span>,
    _registered: Registered,
}

impl<'a> Bench<'a> {
    fn new(shared: &'a Arc<Shared>) -> Result<Self, DeviceError> {
        let page_bytes = shared.layout.geometry().page_bytes() as usize;
        let most = SAMPLE_PAGES.min(shared.layout.blocks() as usize);
        let count = (SAMPLE_BYTES / page_bytes).clamp(1, most);
        // Pages begin where frames do, or a kernel would be judged by smaller units than it gets.
        let step = page_bytes.next_multiple_of(4096);
        let memory = Memory::new((3 * count * step) as u64, 1)?;
        let registered = Registered::new(shared, &memory.span(0, memory.len())?)?;
        let pages = |nth: usize| -> Result<Vec<Span>, DeviceError> {
            let at = |index: usize| ((nth * count + index) * step) as u64;
            let pages = (0..count).map(|index| memory.span(at(index), page_bytes));
            Ok(pages.collect::<Result<_, _>>()?)
        };
        let (kept, from, to) = (pages(0)?, pages(1)?, pages(2)?);
        Ok(Self { shared, kept, from, to, _registered: registered })
    }

    fn measure(&self) -> Result<Vec<Measured>, DeviceError> {
        self.copy(CopyMode::Pitched, STORE, &self.kept)?;
        let mut measured = Vec::new();
        let mut seed = 0;
        let mut fatal = None;
        for mode in CopyMode::ALL {
            for kind in [LOAD, BY_LAYER, STORE] {
                seed += 1;
                let outcome = match self.try_mode(mode, kind, seed) {
                    Ok(speed) => Ok(speed),
                    Err(DeviceError::Cuda(error)) if error.is_sticky() => {
                        fatal.get_or_insert(DeviceError::Cuda(error.clone()));
                        Err(error.to_string())
                    }
                    Err(error) => Err(error.to_string()),
                };
                measured.push(Measured { what: kind.what, mode, outcome });
            }
        }
        let restored = self.copy(CopyMode::Pitched, LOAD, &self.kept);
        match fatal {
            Some(error) => Err(error),
            None => restored.map(|_| measured),
        }
    }

    /// How fast a way is, bytes per second; an error where it fails or copies wrongly.
    fn try_mode(&self, mode: CopyMode, kind: Kind, seed: u64) -> Result<f64, DeviceError> {
        self.shared.copies.check(mode)?;
        fill(&self.from, seed);
        fill(&self.to, !seed);
        // What is not under trial goes the plainest way.
        let (tried, plain) = match kind.direction {
            Direction::Load => (&self.from, STORE),
            Direction::Store => {
                self.copy(CopyMode::Pitched, LOAD, &self.from)?;
                (&self.to, LOAD)
            }
        };
        self.copy(mode, kind, tried)?;
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            best = best.min(self.copy(mode, kind, tried)?);
        }
        if kind.direction == Direction::Load {
            self.copy(CopyMode::Pitched, plain, &self.to)?;
        }
        let wrong = self.from.iter().zip(&self.to).filter(|(from, to)| !same(from, to)).count();
        if wrong > 0 {
            let pages = self.from.len();
            let reason = format!("{wrong} of {pages} pages were copied wrongly by {mode}");
            return Err(DeviceError::Lost { reason });
        }
        let bytes: usize = tried.iter().map(Span::len).sum();
        Ok(bytes as f64 / best.as_secs_f64().max(1e-9))
    }

    /// Copies the pages once and says how long it took.
    fn copy(&self, mode: CopyMode, kind: Kind, pages: &[Span]) -> Result<Duration, DeviceError> {
        let jobs = pages.iter().zip(0..);
        let jobs = jobs.map(|(page, block)| Job { page: page.clone(), block: BlockId(block) });
        let Kind { direction, by_layer, .. } = kind;
        let start = CudaStart { mode, by_layer, after: None, paced: false };
        let began = Instant::now();
        let flight = self.shared.fly(direction, jobs.collect(), start)?;
        flight.put()?;
        // Without the pauses of a wait that asks again and again.
        let over = self.shared.lane(direction).stream.synchronize();
        let took = began.elapsed();
        flight.wait()?;
        over?;
        Ok(took)
    }
}

fn fill(pages: &[Span], seed: u64) {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for page in pages {
        page.write(|bytes| {
            for chunk in bytes.chunks_mut(8) {
                word = word.rotate_left(5).wrapping_mul(0x2545_f491_4f6c_dd1d) ^ seed;
                chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            }
        });
    }
}

fn same(one: &Span, other: &Span) -> bool {
    one.read(|one| other.read(|other| one == other))
}

/// What the link between host and device gives to large copies of registered memory.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LinkCeiling {
    /// Host to device, bytes per second: the middle one of seven copies.
    pub load_bytes_per_s: f64,
    /// Device to host, likewise.
    pub store_bytes_per_s: f64,
}

/// Measures the link of `cuda:ordinal` with copies of 256 MiB.
///
/// # Errors
/// No driver, no such device, too little memory, a call that failed.
pub fn link_ceiling(ordinal: u32) -> Result<LinkCeiling, DeviceError> {
    let context = Context::primary(ordinal)?;
    let device = DeviceMemory::new(&context, CEILING_BYTES as u64)?;
    let stream = Stream::new(&context, None)?;
    let host = Memory::new(CEILING_BYTES as u64, 2)?;
    let host = host.span(0, CEILING_BYTES)?;
    let pins = Pins::new(Arc::clone(&context)).map_err(DeviceError::Thread)?;
    pins.register(&host)?;
    let time = |direction| -> Result<f64, CudaError> {
        let mut times = Vec::new();
        for _ in 0..8 {
            let began = Instant::now();
            {
                let _entered = context.enter()?;
                // SAFETY: both sides are as long, ours alone, and waited for before they go.
                unsafe { memory::start(&context, direction, device.at, &host, stream.raw)? };
            }
            stream.synchronize()?;
            times.push(began.elapsed().as_secs_f64());
        }
        // The first one wakes the link up.
        let mut times = times.split_off(1);
        times.sort_by(f64::total_cmp);
        Ok(CEILING_BYTES as f64 / times[times.len() / 2])
    };
    let measured = time(Direction::Load).and_then(|load_bytes_per_s| {
        Ok(LinkCeiling { load_bytes_per_s, store_bytes_per_s: time(Direction::Store)? })
    });
    // Also after a failure: nothing may be under way when the memory goes.
    stream.settle(&Events::new(Arc::clone(&context)));
    pins.unlist(&host);
    Ok(measured?)
}
