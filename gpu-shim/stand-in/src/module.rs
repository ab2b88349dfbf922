//! Modules: programs for the device, of which only our own kernels are understood.

use crate::Code;
use crate::handles::Handle;
use crate::kernel::Direction;
use crate::settings::{Setting, Settings};

/// A loaded program.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) context: Handle,
    /// The kernels that its text has entries for.
    pub(crate) kernels: Vec<(&'static str, Direction)>,
}

/// A kernel of a module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function {
    pub(crate) context: Handle,
    pub(crate) module: Handle,
    pub(crate) direction: Direction,
}

impl Module {
    /// Reads PTX as far as it has to be known.
    pub(crate) fn read(text: &str, context: Handle, settings: &Settings) -> Result<Self, Code> {
        let word = |directive: &str| {
            let mut lines = text.lines().map(str::trim_start);
            lines.find_map(|line| line.strip_prefix(directive)).map(str::trim)
        };
        let version = word(".version ").and_then(tenths).ok_or(Code::INVALID_IMAGE)?;
        let target = word(".target sm_").and_then(|it| it.split(',').next());
        let target: u64 = target.and_then(|it| it.parse().ok()).ok_or(Code::INVALID_IMAGE)?;
        if version > newest_ptx(settings.get(Setting::DriverVersion)) {
            return Err(Code::UNSUPPORTED_PTX_VERSION);
        }
        if target > settings.get(Setting::ComputeCapability) {
            return Err(Code::NO_BINARY_FOR_GPU);
        }
        let kernels: Vec<_> = Direction::KERNELS
            .into_iter()
            .filter(|(name, _)| text.contains(&format!(".entry {name}(")))
            .collect();
        if kernels.is_empty() {
            return Err(Code::INVALID_IMAGE);
        }
        Ok(Self { context, kernels })
    }
}

/// "8.0" → 80
fn tenths(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once('.')?;
    Some(major.parse::<u64>().ok()? * 10 + minor.parse::<u64>().ok()?)
}

/// The newest PTX that a driver of this version takes, in tenths (PTX ISA, "Release Notes"): 7.0
/// to 7.8 came with CUDA 11.0 to 11.8, 8.0 to 8.5 with 12.0 to 12.5, 8.7 and 8.8 with 12.8 and 12.9.
fn newest_ptx(driver_version: u64) -> u64 {
    let (major, minor) = (driver_version / 1_000, driver_version % 1_000 / 10);
    match (major, minor) {
        (..11, _) => 65,
        (11, minor) => 70 + minor,
        (12, 6 | 8 | 9) => 80 + minor - 1,
        (12, minor) => 80 + minor,
        _ => 90 + minor,
    }
}
