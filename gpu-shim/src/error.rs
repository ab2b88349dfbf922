use crate::LayoutError;
use crate::cuda::CudaError;
use thiserror::Error;
use undercroft_arena::ArenaError;

/// What can go wrong with a device or a copy.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A block that the device does not have.
    #[error("block {found} is outside a device of {blocks} blocks")]
    Block {
        /// The block asked for.
        found: u32,
        /// How many there are.
        blocks: u32,
    },
    /// One call loads two pages into one block.
    #[error("block {block} is loaded twice in one call")]
    BlockTwice {
        /// The block.
        block: u32,
    },
    /// A layer or part that the geometry does not have.
    #[error("{what} {found} is outside a geometry with {count}")]
    Fragment {
        /// `layer` or `part`.
        what: &'static str,
        /// The one asked for.
        found: u32,
        /// How many there are.
        count: u32,
    },
    /// Host memory that does not fit a page.
    #[error("a page of {found} bytes was given, allowed {page_bytes} to {frame_bytes} bytes")]
    PageBytes {
        /// Bytes given.
        found: usize,
        /// Bytes of a page of this device.
        page_bytes: u32,
        /// Bytes of a frame for such a page.
        frame_bytes: u32,
    },
    /// A store into memory that this process may only read.
    #[error("block {block} cannot be stored into read-only memory")]
    ReadOnly {
        /// The block that was to be stored.
        block: u32,
    },
    /// More transfers are under way than the device takes.
    #[error("{limit} transfers are under way already")]
    Busy {
        /// The limit.
        limit: usize,
    },
    /// The deadline passed. The copy goes on.
    #[error("the deadline passed before layer {layer} was copied")]
    Expired {
        /// The layer waited for.
        layer: u32,
    },
    /// The device failed; what was copied is not to be believed.
    #[error("the device failed: {reason}")]
    Lost {
        /// What it said.
        reason: String,
    },
    /// The GPU's driver failed, or there is none.
    #[error("{0}")]
    Cuda(#[from] CudaError),
    /// A device that cannot be.
    #[error("{what} is {found}, allowed {allowed}")]
    Option {
        /// Which setting.
        what: &'static str,
        /// What was asked for.
        found: u64,
        /// What is allowed, for people.
        allowed: &'static str,
    },
    /// A layout that cannot be.
    #[error("layout: {0}")]
    Layout(#[from] LayoutError),
    /// No memory for the device.
    #[error("device memory: {0}")]
    Memory(#[from] ArenaError),
    /// No thread for the device.
    #[error("cannot start a copy thread: {0}")]
    Thread(#[source] std::io::Error),
}
