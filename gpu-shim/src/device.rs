use crate::{DeviceError, Transfer};
use std::fmt;
use undercroft_arena::Span;
use undercroft_wire::Geometry;

/// A block of device memory, as the engine numbers it: room for one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A page to be scattered into a block. The page's span is as long as a page, or as the frame or
/// slot that holds one.
#[derive(Debug, Clone)]
pub struct LoadJob {
    /// Where the page lies on the host.
    pub page: Span,
    /// Where it goes.
    pub block: BlockId,
}

/// A block to be gathered into a page. The page's span is as for [`LoadJob`], and writable.
#[derive(Debug, Clone)]
pub struct StoreJob {
    /// Where the page lies on the device.
    pub block: BlockId,
    /// Where it goes.
    pub page: Span,
}

/// A device that holds pages in blocks. A call checks all its jobs before the first byte moves,
/// and either refuses all of them or starts all of them.
pub trait Device: Send + Sync {
    /// The shape of this device's pages.
    fn geometry(&self) -> Geometry;

    /// Number of blocks.
    fn blocks(&self) -> u32;

    /// Starts to scatter pages into blocks. Until the transfer is done the pages must not change
    /// and the blocks are its alone. It may block while earlier transfers take up the device.
    ///
    /// # Errors
    /// A job that does not fit the device, a block given twice, too many transfers under way.
    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError>;

    /// As [`Device::load`], but the first layers of all pages are copied first, so that an engine
    /// can begin on them. In whole it may take longer.
    ///
    /// # Errors
    /// As [`Device::load`].
    fn load_by_layer(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        self.load(jobs)
    }

    /// Starts to gather blocks into pages. Until the transfer is done the blocks must not change
    /// and the pages are its alone. It may block, as [`Device::load`].
    ///
    /// # Errors
    /// A job that does not fit the device, a read-only page, too many transfers under way.
    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError>;
}
