//! Which memory there is: the devices', and what of the host's is pinned.

use crate::Code;
use crate::handles::Handle;
use crate::heap::Block;
use crate::ranges::{Found, Ranges};

/// Flag of `cuMemHostRegister`: the device only reads.
pub(crate) const REGISTER_READ_ONLY: u32 = 8;
/// All flags of `cuMemHostRegister`: portable, device map, I/O memory, read-only.
pub(crate) const REGISTER_FLAGS: u32 = 0xf;
/// All flags of `cuMemHostAlloc`: portable, device map, write combined.
pub(crate) const HOST_ALLOC_FLAGS: u32 = 7;

/// Alignment of what `cuMemAlloc` gives out.
const DEVICE_ALIGN: usize = 512;
/// Alignment of what `cuMemHostAlloc` gives out.
const HOST_ALIGN: usize = 4_096;

/// Memory of a device.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) context: Handle,
    /// Told from a later allocation at the same address by this.
    pub(crate) id: u64,
    /// Freed with it.
    _block: Block,
}

/// Pinned memory of the host.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) context: Handle,
    pub(crate) id: u64,
    pub(crate) read_only: bool,
    /// Set if `cuMemHostAlloc` made it; none if it was registered.
    pub(crate) block: Option<Block>,
}

/// Where a range of addresses lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In one allocation of a device.
    Device { context: Handle, id: u64 },
    /// In one pinned range of the host.
    Pinned { id: u64, read_only: bool },
    /// In ordinary memory, as far as can be known.
    Pageable,
}

/// All memory the driver knows.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) device: Ranges<Allocation>,
    pub(crate) pinned: Ranges<Pinned>,
    next: u64,
}

impl Memory {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Allocates on the device, where `room` bytes are in all.
    pub(crate) fn allocate(&mut self, context: Handle, bytes: u64, room: u64) -> Result<u64, Code> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        if bytes > room.saturating_sub(self.device.bytes()) {
            return Err(Code::OUT_OF_MEMORY);
        }
        let block = Block::new(bytes, DEVICE_ALIGN).ok_or(Code::OUT_OF_MEMORY)?;
        let (at, id) = (block.address(), self.id());
        self.device.insert(at, bytes, Allocation { context, id, _block: block });
        Ok(at)
    }

    /// Allocates pinned memory.
    pub(crate) fn allocate_host(&mut self, context: Handle, bytes: u64) -> Result<u64, Code> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let block = Block::new(bytes, HOST_ALIGN).ok_or(Code::OUT_OF_MEMORY)?;
        let (at, id) = (block.address(), self.id());
        let block = Some(block);
        self.pinned.insert(at, bytes, Pinned { context, id, read_only: false, block });
        Ok(at)
    }

    /// Pins what is there.
    pub(crate) fn register(
        &mut self,
        context: Handle,
        at: u64,
        bytes: u64,
        read_only: bool,
    ) -> Result<(), Code> {
        if self.pinned.find(at, bytes) != Found::Outside {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        let id = self.id();
        self.pinned.insert(at, bytes, Pinned { context, id, read_only, block: None });
        Ok(())
    }

    /// Where these bytes lie. `None`: partly here and partly there.
    pub(crate) fn place(&self, start: u64, bytes: u64) -> Option<Place> {
        match (self.device.find(start, bytes), self.pinned.find(start, bytes)) {
            (Found::Inside(at), _) => self
                .device
                .at(at)
                .map(|found| Place::Device { context: found.context, id: found.id }),
            (Found::Outside, Found::Inside(at)) => self
                .pinned
                .at(at)
                .map(|found| Place::Pinned { id: found.id, read_only: found.read_only }),
            (Found::Outside, Found::Outside) => Some(Place::Pageable),
            _ => None,
        }
    }
}
