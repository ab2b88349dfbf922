use super::driver::Setup;
use super::pairs::{Pairs, Unit};
use super::report::Row;
use crate::BenchError;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::cuda::{CudaDevice, CudaOptions, LinkCeiling, Registered, link_ceiling};
use undercroft_gpu_shim::{
    BlockId, Device, DeviceError, LoadJob, Memory, Span, StoreJob, Transfer,
};
use undercroft_wire::Geometry;

pub(super) const ROWS: [&str; 2] = ["pcie_h2d", "pcie_d2h"];

/// The GPU that is measured.
const ORDINAL: u32 = 0;
/// A page of 2 MiB in 64 fragments, as Llama 3.1 8B has them.
const LAYERS: u32 = 32;
const PARTS: u32 = 2;
const FRAGMENT_BYTES: u32 = 32 << 10;
/// Pages on either side, and of one transfer.
const PAGES: u32 = 256;
const TRANSFER_PAGES: u32 = 32;
/// Transfers under way at once: the link does not wait between them.
const IN_FLIGHT: usize = 2;

/// A GPU, and pages in registered memory.
pub(super) struct Gpu {
    device: CudaDevice,
    pages: Vec<Span>,
    /// Before the memory.
    _registered: Registered,
    _memory: Memory,
}

impl Gpu {
    /// The first GPU.
    ///
    /// # Errors
    /// There is none, in words.
    pub(super) fn find() -> Result<Self, DeviceError> {
        let geometry = Geometry::new(LAYERS, PARTS, FRAGMENT_BYTES).expect("a possible page");
        let device = CudaDevice::allocate(ORDINAL, geometry, PAGES, CudaOptions::default())?;
        let page_bytes = geometry.page_bytes() as usize;
        let memory = Memory::new(u64::from(PAGES) * page_bytes as u64, 2)?;
        let all = memory.span(0, memory.len())?;
        all.write(|bytes| fastrand::Rng::with_seed(1).fill(bytes));
        let registered = device.register(&all)?;
        let page = |index: u32| all.sub(index as usize * page_bytes, page_bytes);
        let pages = (0..PAGES).map(page).collect::<Result<_, _>>()?;
        Ok(Self { device, pages, _registered: registered, _memory: memory })
    }

    /// Starts the transfer with this number.
    fn start(&self, number: u32, loads: bool) -> Result<Transfer, DeviceError> {
        let first = number * TRANSFER_PAGES % PAGES;
        let pages = (first..first + TRANSFER_PAGES)
            .map(|index| (BlockId(index), self.pages[index as usize].clone()));
        if loads {
            self.device.load(pages.map(|(block, page)| LoadJob { page, block }).collect())
        } else {
            self.device.store(pages.map(|(block, page)| StoreJob { block, page }).collect())
        }
    }

    /// Copies pages for about as long as told. Returns bytes a second.
    fn copy(&self, loads: bool, window: Duration) -> Result<f64, BenchError> {
        let page_bytes = u64::from(self.device.geometry().page_bytes());
        let since = Instant::now();
        let mut flying = VecDeque::new();
        let mut number = 0;
        loop {
            while since.elapsed() < window && flying.len() < IN_FLIGHT {
                flying.push_back(self.start(number, loads)?);
                number += 1;
            }
            let Some(transfer) = flying.pop_front() else { break };
            transfer.wait()?;
        }
        let bytes = u64::from(number) * u64::from(TRANSFER_PAGES) * page_bytes;
        Ok(bytes as f64 / since.elapsed().as_secs_f64())
    }
}

/// Pages loaded into a GPU and stored out of it, against copies of 256 MiB each.
pub(super) fn measure(
    setup: &Setup<'_>,
    pairs: &Pairs<'_>,
    gpu: &Gpu,
) -> Result<Vec<Row>, BenchError> {
    let wanted = ROWS.into_iter().filter(|row| setup.wants(row));
    wanted
        .map(|name| {
            let loads = name == ROWS[0];
            let of = |ceiling: LinkCeiling| match loads {
                true => ceiling.load_bytes_per_s,
                false => ceiling.store_bytes_per_s,
            };
            let mut ours = |window| gpu.copy(loads, window);
            let mut limit = |_| Ok(of(link_ceiling(ORDINAL)?));
            let row = pairs.measure(name, Unit::BytesPerSecond, &mut ours, &mut limit)?;
            let modes = gpu.device.modes();
            let mode = if loads { modes.load } else { modes.store };
            let bare = format!("copies of 256 MiB of registered memory; ours by {mode}");
            Ok(Row { bare, ..row })
        })
        .collect()
}
