use super::layouts::Kept;
use super::pages::{Pages, Way, wrong_in_block};
use super::rate::{gb_per_s, median};
use super::{Findings, GpuChecks};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::{Duration, Instant};
use undercroft_gpu_shim::DeviceError;
use undercroft_gpu_shim::cuda::{
    CopyMode, CudaDevice, CudaError, CudaOptions, LinkCeiling, link_ceiling,
};

/// What a transfer moves, bytes; enough that its beginning and end do not count.
const TRANSFER_BYTES: u32 = 256 << 20;
/// Blocks that are read back by plain copies, piece by piece; the rest is seen by storing it.
const LOOKED_AT: u32 = 4;
/// `CUDA_ERROR_NOT_SUPPORTED`.
const NOT_SUPPORTED: i32 = 801;
const LONG_ENOUGH: Duration = Duration::from_millis(250);

/// Moves pages of every layout by every mode in every direction, and compares every byte.
pub(super) fn run(on: &GpuChecks) -> Result<Findings> {
    let columns = [
        "layout",
        "piece",
        "mode",
        "direction",
        "GB/s",
        "of link",
        "first layer ms",
        "wrong bytes",
    ];
    let mut findings = Findings::with_columns(&columns);
    let ceiling = link_ceiling(on.ordinal)?;
    for kept in Kept::ALL {
        let modes = [None].into_iter().chain(CopyMode::ALL.map(Some));
        for mode in modes {
            let rig = Rig::new(on, kept, mode);
            match rig.and_then(|rig| rig.measure(on, &ceiling, &mut findings)) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => {
                    findings.note(format!("{}: {error}", kept.name()));
                }
                Err(error) => return Err(error).with_context(|| kept.name()),
            }
        }
    }
    Ok(findings)
}

/// Whether a mode is not there, which is no fault of anybody's.
pub(super) fn is_absent(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<DeviceError>() {
        Some(DeviceError::Cuda(CudaError::NoMode { .. })) => true,
        // A driver may have the call, and a device not what it takes.
        Some(DeviceError::Cuda(error)) => error.code() == Some(NOT_SUPPORTED),
        _ => false,
    }
}

/// A device of one layout that copies by one mode, and pages for all its blocks, twice.
struct Rig {
    kept: Kept,
    /// `None`: what the device found fastest.
    mode: Option<CopyMode>,
    device: CudaDevice,
    source: Pages,
    target: Pages,
}

impl Rig {
    fn new(on: &GpuChecks, kept: Kept, mode: Option<CopyMode>) -> Result<Self> {
        let page_bytes = kept.geometry().page_bytes();
        let blocks = if on.quick { 3 } else { TRANSFER_BYTES / page_bytes };
        let options = CudaOptions { load: mode, store: mode, ..CudaOptions::default() };
        let layout = kept.layout(blocks)?;
        let device = CudaDevice::allocate_layout(on.ordinal, &layout, options)?;
        let (source, target) = (Pages::new(blocks, page_bytes)?, Pages::new(blocks, page_bytes)?);
        Ok(Self { kept, mode, device, source, target })
    }

    fn measure(
        &self,
        on: &GpuChecks,
        ceiling: &LinkCeiling,
        findings: &mut Findings,
    ) -> Result<()> {
        let _pinned = [&self.source, &self.target]
            .map(|pages| self.device.register(&pages.whole()))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        for page in 0..self.source.count() {
            self.source.fill(page, u64::from(page));
        }
        for way in Way::ALL {
            let long_enough = if on.quick { Duration::ZERO } else { LONG_ENOUGH };
            let (took, first_layer) = self.time(way, long_enough)?;
            let wrong = self.wrong_bytes(way)?;
            let bytes = u64::from(self.source.count()) * self.source.page_bytes as u64;
            let (gb, link) = (gb_per_s(bytes, took), ceiling_of(way, ceiling) / 1e9);
            self.judge(on, way, gb / link, wrong, findings);
            findings.row([
                json!(self.kept.name()),
                json!(size(self.kept.piece_bytes())),
                json!(self.mode_name(way)),
                json!(way.name()),
                json!(gb),
                json!(gb / link),
                first_layer.map_or(json!(null), |first| json!(first.as_secs_f64() * 1e3)),
                json!(wrong),
            ]);
        }
        Ok(())
    }

    fn mode_name(&self, way: Way) -> String {
        match self.mode {
            Some(mode) => mode.to_string(),
            None => {
                let modes = self.device.modes();
                let chosen = match way {
                    Way::Load => modes.load,
                    Way::LoadByLayer => modes.load_by_layer,
                    Way::Store => modes.store,
                };
                format!("auto ({chosen})")
            }
        }
    }

    fn judge(&self, on: &GpuChecks, way: Way, share: f64, wrong: u64, findings: &mut Findings) {
        let what = format!("{} by {} of {}", way.name(), self.mode_name(way), self.kept.name());
        if wrong > 0 {
            findings.wrong(format!("{what}: {wrong} wrong bytes"));
        }
        let is_stand_in = self.device.name().is_ok_and(|name| GpuChecks::is_stand_in(&name));
        let (Some((load, store)), None) = (self.kept.goals(), self.mode) else {
            return;
        };
        let goal = match way {
            Way::Load => load,
            Way::Store => store,
            Way::LoadByLayer => return,
        };
        if share < goal && !on.quick && !is_stand_in {
            findings.wrong(format!("{what}: {share:.3} of the link, wanted {goal}"));
        }
    }

    /// Another block for each page than its own, so that nothing that was there before is right.
    fn block_of(&self, page: u32, way: Way) -> u32 {
        let turn = match way {
            Way::Load => 1,
            Way::LoadByLayer | Way::Store => 2,
        };
        (page + turn) % self.source.count()
    }

    /// What a transfer takes, and the time to its first layer where that is what it is about.
    fn time(&self, way: Way, long_enough: Duration) -> Result<(Duration, Option<Duration>)> {
        let mut first = None;
        let pages = if way == Way::Store { &self.target } else { &self.source };
        let took = median(long_enough, || {
            let began = Instant::now();
            let jobs = (0..pages.count()).map(|page| (pages.span(page), self.block_of(page, way)));
            let transfer = way.start(&self.device, jobs)?;
            if way == Way::LoadByLayer {
                transfer.wait_layer(0, None)?;
                first = Some(began.elapsed());
            }
            Ok(transfer.wait()?)
        })?;
        Ok((took, first))
    }

    fn wrong_bytes(&self, way: Way) -> Result<u64> {
        let mut wrong = 0;
        match way {
            Way::Store => {
                // The blocks hold what was loaded by layer.
                for page in 0..self.target.count() {
                    wrong += self.target.wrong_bytes(page, u64::from(page));
                }
            }
            Way::Load | Way::LoadByLayer => {
                let step = (self.source.count() / LOOKED_AT).max(1);
                for page in (0..self.source.count()).step_by(step as usize) {
                    let block = self.block_of(page, way);
                    wrong += wrong_in_block(&self.device, block, u64::from(page))?;
                }
            }
        }
        Ok(wrong)
    }
}

fn ceiling_of(way: Way, ceiling: &LinkCeiling) -> f64 {
    match way {
        Way::Load | Way::LoadByLayer => ceiling.load_bytes_per_s,
        Way::Store => ceiling.store_bytes_per_s,
    }
}

fn size(bytes: u32) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}
