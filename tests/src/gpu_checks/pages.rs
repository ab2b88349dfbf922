use anyhow::{Result, ensure};
use undercroft_benches::PageContent;
use undercroft_client::wire::{DomainId, PageKey, Rank, SpaceDigest};
use undercroft_gpu_shim::cuda::CudaDevice;
use undercroft_gpu_shim::{BlockId, Device, LoadJob, Memory, Span, StoreJob, Transfer};

/// The bytes of the page that has this number.
pub(super) fn content(number: u64) -> PageContent {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.to_le_bytes());
    PageContent::new(&DomainId::named("gpu"), &SpaceDigest([0; 32]), Rank::Shared, &PageKey(key))
}

/// Pages in host memory, one after another.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) memory: Memory,
    pub(super) page_bytes: usize,
}

impl Pages {
    pub(super) fn new(count: u32, page_bytes: u32) -> Result<Self> {
        let bytes = u64::from(count) * u64::from(page_bytes);
        Ok(Self { memory: Memory::new(bytes, 4)?, page_bytes: page_bytes as usize })
    }

    pub(super) fn span(&self, page: u32) -> Span {
        let offset = u64::from(page) * self.page_bytes as u64;
        self.memory.span(offset, self.page_bytes).expect("a page of these")
    }

    /// All of it, to register.
    pub(super) fn whole(&self) -> Span {
        self.memory.span(0, self.memory.len()).expect("all of it")
    }

    pub(super) fn count(&self) -> u32 {
        (self.memory.len() / self.page_bytes) as u32
    }

    pub(super) fn fill(&self, page: u32, number: u64) {
        self.span(page).write(|bytes| content(number).fill(0, bytes));
    }

    /// How many bytes of it are not those of the page that has this number.
    pub(super) fn wrong_bytes(&self, page: u32, number: u64) -> u64 {
        self.span(page).read(|bytes| wrong_bytes(number, bytes))
    }
}

pub(super) fn wrong_bytes(number: u64, bytes: &[u8]) -> u64 {
    content(number).verify(0, bytes).err().map_or(0, |wrong| wrong.count)
}

/// How many bytes of a block are not those of the page that has this number, read by the driver's
/// plain copies.
pub(super) fn wrong_in_block(device: &CudaDevice, block: u32, number: u64) -> Result<u64> {
    let mut image = vec![0; device.geometry().page_bytes() as usize];
    device.read_block(BlockId(block), &mut image)?;
    Ok(wrong_bytes(number, &image))
}

/// Which way, and in what order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Load,
    LoadByLayer,
    Store,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Load, Self::LoadByLayer, Self::Store];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::LoadByLayer => "load by layer",
            Self::Store => "store",
        }
    }

    /// Starts to copy pages to or from blocks.
    pub(super) fn start(
        self,
        device: &CudaDevice,
        jobs: impl Iterator<Item = (Span, u32)>,
    ) -> Result<Transfer> {
        let jobs = jobs.map(|(page, block)| (page, BlockId(block)));
        let loads = |jobs: Vec<(Span, BlockId)>| {
            jobs.into_iter().map(|(page, block)| LoadJob { page, block }).collect()
        };
        let jobs: Vec<_> = jobs.collect();
        ensure!(!jobs.is_empty(), "a transfer of nothing says nothing");
        Ok(match self {
            Self::Load => device.load(loads(jobs))?,
            Self::LoadByLayer => device.load_by_layer(loads(jobs))?,
            Self::Store => {
                let stores = jobs.into_iter().map(|(page, block)| StoreJob { block, page });
                device.store(stores.collect())?
            }
        })
    }
}
