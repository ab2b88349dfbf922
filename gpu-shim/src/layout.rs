use crate::{BlockId, DeviceError};
use undercroft_arena::Span;
use undercroft_wire::{Geometry, frame_bytes};

/// Where the fragments of a block lie: for every layer and part one array over all blocks, the
/// arrays one after another, as an engine allocates them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) geometry: Geometry,
    pub(crate) blocks: u32,
}

impl Layout {
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.geometry.page_bytes()) * u64::from(self.blocks)
    }

    /// Bytes of one fragment, which is also the stride from one block to the next.
    pub(crate) fn fragment_bytes(&self) -> usize {
        self.geometry.fragment_bytes() as usize
    }

    /// Offset of a fragment in device memory.
    pub(crate) fn on_device(&self, block: u32, layer: u32, part: u32) -> usize {
        let array = self.array(layer, part);
        (array * self.blocks as usize + block as usize) * self.fragment_bytes()
    }

    /// Offset of a fragment in its page.
    pub(crate) fn in_page(&self, layer: u32, part: u32) -> usize {
        self.array(layer, part) * self.fragment_bytes()
    }

    fn array(&self, layer: u32, part: u32) -> usize {
        layer as usize * self.geometry.parts() as usize + part as usize
    }

    pub(crate) fn check_block(&self, block: BlockId) -> Result<(), DeviceError> {
        if block.0 < self.blocks {
            Ok(())
        } else {
            Err(DeviceError::Block { found: block.0, blocks: self.blocks })
        }
    }

    pub(crate) fn check_fragment(&self, layer: u32, part: u32) -> Result<(), DeviceError> {
        for (what, found, count) in
            [("layer", layer, self.geometry.layers()), ("part", part, self.geometry.parts())]
        {
            if found >= count {
                return Err(DeviceError::Fragment { what, found, count });
            }
        }
        Ok(())
    }

    pub(crate) fn check_page(&self, page: &Span) -> Result<(), DeviceError> {
        let page_bytes = self.geometry.page_bytes();
        let frame_bytes = frame_bytes(page_bytes);
        if (page_bytes as usize..=frame_bytes as usize).contains(&page.len()) {
            Ok(())
        } else {
            Err(DeviceError::PageBytes { found: page.len(), page_bytes, frame_bytes })
        }
    }
}
