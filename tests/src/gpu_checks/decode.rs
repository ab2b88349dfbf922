#![expect(unsafe_code, reason = "what a kernel is given is up to who launches it")]

use super::driver::Launcher;
use anyhow::Result;
use std::ffi::CStr;
use std::time::Duration;

/// `tests/kernels/decode.cu`, compiled.
const PTX: &str = concat!(include_str!("../../kernels/decode.ptx"), "\0");
const KERNEL: &CStr = c"undercroft_decode";
/// Launches of a step, as an engine has one or more for each layer.
const LAYERS: u64 = 32;
/// What a layer of Llama-3.1-8B weighs in bf16, rounded: 16 GB over 32 layers would be 512 MB, an
/// eighth of it leaves room for blocks on the smallest GPU that is of interest.
const LAYER_BYTES: u64 = 64 << 20;
const THREADS: u32 = 256;
/// Blocks for each multiprocessor: as many as it holds of this size.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSORS: i32 = 16;
const VECTOR_BYTES: u64 = 16;

/// What a step takes where it is only imitated.
const IMITATED: Duration = Duration::from_millis(1);

/// An engine that decodes, as far as the memory of its device can tell.
#[derive(Debug)]
pub(super) struct Decoder(Steps);

#[derive(Debug)]
enum Steps {
    Computed {
        launcher: Launcher,
        /// Thread blocks of a launch.
        blocks: u32,
        weights: u64,
        sums: u64,
    },
    Slept,
}

impl Decoder {
    /// In the primary context of a device, which is the calling thread's from then on.
    ///
    /// # Errors
    /// The device has no such kernel, or not the memory.
    pub(super) fn new(ordinal: u32) -> Result<Self> {
        let ptx = CStr::from_bytes_with_nul(PTX.as_bytes())?;
        let launcher = Launcher::new(ordinal, ptx, KERNEL)?;
        let multiprocessors = launcher.attribute(ordinal, MULTIPROCESSORS)?.max(1) as u32;
        let blocks = multiprocessors * BLOCKS_PER_MULTIPROCESSOR;
        let weights = launcher.allocate(LAYERS * LAYER_BYTES)?;
        let sums = launcher.allocate(u64::from(blocks * THREADS) * 4)?;
        Ok(Self(Steps::Computed { launcher, blocks, weights, sums }))
    }

    /// One whose steps are only waited for: a device that is not one computes nothing.
    pub(super) fn imitated() -> Self {
        Self(Steps::Slept)
    }

    /// A step: each layer's weights once. Waits for it.
    pub(super) fn step(&self) -> Result<()> {
        let Steps::Computed { launcher, blocks, weights, sums } = &self.0 else {
            std::thread::sleep(IMITATED);
            return Ok(());
        };
        for layer in 0..LAYERS {
            let values = [weights + layer * LAYER_BYTES, LAYER_BYTES / VECTOR_BYTES, *sums];
            // SAFETY: these are the kernel's parameters: weights, how many vectors there are, and
            // as many floats as the launch has threads.
            unsafe { launcher.launch(*blocks, THREADS, values)? };
        }
        launcher.synchronize()
    }

    /// What a step reads, bytes.
    pub(super) fn step_bytes(&self) -> u64 {
        LAYERS * LAYER_BYTES
    }
}
