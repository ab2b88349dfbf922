use crate::connection::{Connection, locked};
use std::sync::Mutex;
use undercroft_gpu_shim::cuda::{CudaDevice, CudaError, Pins};
use undercroft_wire::{GpuReport, MAX_GPU_TEXT_BYTES, Request};

/// The GPU a client copies with, and what its daemon knows of it.
#[derive(Debug, Default)]
pub(crate) struct Gpu(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    pins: Pins,
    /// Without the figures.
    report: GpuReport,
    /// What was said last, in the connection of this generation.
    told: Option<(u64, GpuReport)>,
}

impl Gpu {
    /// Goes by this device from now on.
    pub(crate) fn attach(&self, device: &CudaDevice) -> Result<(), CudaError> {
        let modes = device.modes();
        let mut name = device.name()?;
        name.truncate(name.floor_char_boundary(MAX_GPU_TEXT_BYTES));
        let report = GpuReport {
            name,
            load: modes.load.to_string(),
            load_by_layer: modes.load_by_layer.to_string(),
            store: modes.store.to_string(),
            ..GpuReport::default()
        };
        *locked(&self.0) = Some(Known { pins: device.pins().clone(), report, told: None });
        Ok(())
    }

    /// Tells the daemon what it does not know. Says whether there will soon be more to tell.
    pub(crate) fn tell(&self, connection: &Connection) -> bool {
        let mut gpu = locked(&self.0);
        let Some(known) = &mut *gpu else {
            return false;
        };
        let facts = known.pins.facts();
        let report = GpuReport {
            pinned_bytes: facts.pinned_bytes,
            waiting_bytes: facts.waiting_bytes,
            refused_bytes: facts.refused_bytes,
            ..known.report.clone()
        };
        let now = (connection.generation, report);
        if known.told.as_ref() != Some(&now) {
            let told = connection.tell(&Request::Gpu(now.1.clone()));
            known.told = told.ok().map(|()| now);
        }
        facts.waiting_bytes > 0
    }

    /// The client ends: what was registered for it is let go with whoever else has it.
    pub(crate) fn end(&self) {
        *locked(&self.0) = None;
    }
}
