//! candle's KV cache as a device: its tensors are reached by calls, not by addresses, so it copies itself.

use anyhow::Result;
use candle_core::{Device as Place, Tensor};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use undercroft_client::wire::Geometry;
use undercroft_gpu_shim::{
    BlockId, Completion, Device, DeviceError, LoadJob, Span, StoreJob, Transfer,
};

/// K and V of every layer, each `[tokens, heads, elements]` of 32-bit floats one after another: a page's fragment lies in
/// one piece.
pub struct KvPages {
    geometry: Geometry,
    pages: usize,
    fragments: Mutex<Vec<Vec<u8>>>,
}

impl KvPages {
    /// Room for so many pages.
    pub fn empty(geometry: Geometry, pages: usize) -> Self {
        let fragment = geometry.part_bytes()[0] as usize;
        let count = (geometry.layers() * geometry.parts()) as usize;
        let fragments = Mutex::new(vec![vec![0; pages * fragment]; count]);
        Self { geometry, pages, fragments }
    }

    /// The first pages of a cache.
    pub fn of(geometry: Geometry, pages: usize, kvs: &[&(Tensor, Tensor)]) -> Result<Self> {
        let bytes = pages * geometry.part_bytes()[0] as usize;
        let mut fragments = Vec::new();
        for tensor in kvs.iter().flat_map(|(k, v)| [k, v]) {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            let mut raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            raw.truncate(bytes);
            fragments.push(raw);
        }
        Ok(Self { geometry, pages, fragments: Mutex::new(fragments) })
    }

    /// A cache of its first pages.
    pub fn tensors(
        &self,
        pages: usize,
        (heads, elements): (usize, usize),
    ) -> Result<Vec<Option<(Tensor, Tensor)>>> {
        let bytes = pages * self.geometry.part_bytes()[0] as usize;
        let tokens = bytes / (heads * elements * size_of::<f32>());
        let tensor = |raw: &Vec<u8>| {
            let values = raw[..bytes]
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
            Tensor::from_vec(values.collect::<Vec<_>>(), (1, tokens, heads, elements), &Place::Cpu)
        };
        let fragments = self.lock();
        let layers = fragments.chunks_exact(2);
        layers.map(|kv| Ok(Some((tensor(&kv[0])?, tensor(&kv[1])?)))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.fragments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the fragments of a page and where they lie in the cache, in the order of the page.
    fn each(
        &self,
        block: BlockId,
        page: &Span,
        mut visit: impl FnMut(&Span, &mut [u8]),
    ) -> Result<(), DeviceError> {
        if block.0 as usize >= self.pages {
            return Err(DeviceError::Block { found: block.0, blocks: self.pages as u32 });
        }
        let bytes = self.geometry.part_bytes()[0] as usize;
        let at = block.0 as usize * bytes;
        for (index, fragment) in self.lock().iter_mut().enumerate() {
            visit(&page.sub(index * bytes, bytes)?, &mut fragment[at..at + bytes]);
        }
        Ok(())
    }

    fn over(&self) -> Transfer {
        let layers = self.geometry.layers();
        Transfer::new(layers, Box::new(Over { layers }))
    }
}

impl Device for KvPages {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn blocks(&self) -> u32 {
        self.pages as u32
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        for LoadJob { page, block } in &jobs {
            self.each(*block, page, |page, cache| page.copy_to_slice(cache))?;
        }
        Ok(self.over())
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        for StoreJob { block, page } in &jobs {
            self.each(*block, page, |page, cache| page.copy_from_slice(cache))?;
        }
        Ok(self.over())
    }
}

/// Copied before the call returned.
struct Over {
    layers: u32,
}

impl Completion for Over {
    fn wait_layers(&self, _: u32, _: Option<Instant>) -> Result<bool, DeviceError> {
        Ok(true)
    }

    fn layers_done(&self) -> u32 {
        self.layers
    }
}
