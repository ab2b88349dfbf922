use crate::batch::{Batch, Direction, Job};
use crate::layout::Layout;
use crate::pace::Link;
use crate::workers::Workers;
use crate::{BlockId, Device, DeviceError, LoadJob, StoreJob, Transfer};
use std::sync::Arc;
use undercroft_arena::{Memory, Span};
use undercroft_wire::Geometry;

const MAX_THREADS: usize = 256;

/// How a [`HostDevice`] behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostOptions {
    /// Threads that copy. 0: the calling thread copies, and a transfer is done when the call
    /// returns.
    pub copy_threads: usize,
    /// Imitates a link of this speed, each direction for itself. `None`: as fast as memory goes.
    pub link_bytes_per_s: Option<u64>,
}

/// A device made of ordinary memory, laid out like an engine's.
#[derive(Debug)]
pub struct HostDevice {
    layout: Layout,
    memory: Span,
    workers: Option<Workers>,
    to_device: Option<Arc<Link>>,
    to_host: Option<Arc<Link>>,
}

impl HostDevice {
    /// A device of `blocks` blocks for pages of this shape. Its memory is zeroed and faulted in.
    ///
    /// # Errors
    /// No blocks, a link without speed, too many threads, or more memory than the machine gives.
    pub fn new(geometry: Geometry, blocks: u32, options: HostOptions) -> Result<Self, DeviceError> {
        if options.copy_threads > MAX_THREADS {
            let found = options.copy_threads as u64;
            return Err(DeviceError::Option { what: "copy_threads", found, allowed: "0 to 256" });
        }
        if options.link_bytes_per_s == Some(0) {
            let (what, allowed) = ("link_bytes_per_s", "1 or more");
            return Err(DeviceError::Option { what, found: 0, allowed });
        }
        let layout = Layout { geometry, blocks };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = Memory::new(layout.bytes(), threads)?;
        let memory = memory.span(0, memory.len())?;
        let workers = match options.copy_threads {
            0 => None,
            threads => Some(Workers::start(threads)?),
        };
        let link = || options.link_bytes_per_s.map(|speed| Arc::new(Link::new(speed)));
        Ok(Self { layout, memory, workers, to_device: link(), to_host: link() })
    }

    fn fragment(&self, block: BlockId, layer: u32, part: u32) -> Result<Span, DeviceError> {
        self.layout.check_block(block)?;
        self.layout.check_fragment(layer, part)?;
        let at = self.layout.on_device(block.0, layer, part);
        Ok(self.memory.sub(at, self.layout.fragment_bytes())?)
    }

    /// Looks at a fragment. No transfer may be writing to it.
    ///
    /// # Errors
    /// A block, layer or part that is not there.
    pub fn read_fragment<R>(
        &self,
        block: BlockId,
        layer: u32,
        part: u32,
        look: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, DeviceError> {
        Ok(self.fragment(block, layer, part)?.read(look))
    }

    /// Changes a fragment. No transfer may touch it meanwhile.
    ///
    /// # Errors
    /// A block, layer or part that is not there.
    pub fn write_fragment<R>(
        &self,
        block: BlockId,
        layer: u32,
        part: u32,
        change: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, DeviceError> {
        Ok(self.fragment(block, layer, part)?.write(change))
    }

    /// Looks at all fragments of a block in the order they have in a page. The first argument is
    /// where the fragment starts in the page, bytes.
    ///
    /// # Errors
    /// A block that is not there.
    pub fn read_block(
        &self,
        block: BlockId,
        mut look: impl FnMut(usize, &[u8]),
    ) -> Result<(), DeviceError> {
        self.each_fragment(block, |at, fragment| fragment.read(|bytes| look(at, bytes)))
    }

    /// Changes all fragments of a block in the order they have in a page. The first argument is
    /// where the fragment starts in the page, bytes.
    ///
    /// # Errors
    /// A block that is not there.
    pub fn write_block(
        &self,
        block: BlockId,
        mut change: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), DeviceError> {
        self.each_fragment(block, |at, fragment| fragment.write(|bytes| change(at, bytes)))
    }

    fn each_fragment(
        &self,
        block: BlockId,
        mut visit: impl FnMut(usize, &Span),
    ) -> Result<(), DeviceError> {
        self.layout.check_block(block)?;
        for layer in 0..self.layout.geometry.layers() {
            for part in 0..self.layout.geometry.parts() {
                let fragment = self.fragment(block, layer, part)?;
                visit(self.layout.in_page(layer, part), &fragment);
            }
        }
        Ok(())
    }

    fn start(
        &self,
        direction: Direction,
        link: Option<&Arc<Link>>,
        jobs: Vec<Job>,
    ) -> Result<Transfer, DeviceError> {
        let memory = self.memory.clone();
        let batch = Batch::new(self.layout, memory, link.cloned(), direction, jobs);
        let batch = Arc::new(batch);
        match &self.workers {
            None => batch.work_alone(),
            Some(workers) => workers.submit(Arc::clone(&batch))?,
        }
        Ok(Transfer::new(self.layout.geometry.layers(), Box::new(batch)))
    }

    fn check_jobs(&self, jobs: &[Job]) -> Result<(), DeviceError> {
        for job in jobs {
            self.layout.check_block(BlockId(job.block))?;
            self.layout.check_page(&job.page)?;
        }
        Ok(())
    }
}

/// Two pages written to one block at a time would leave a mixture.
fn check_distinct(jobs: &[Job]) -> Result<(), DeviceError> {
    let mut blocks: Vec<u32> = jobs.iter().map(|job| job.block).collect();
    blocks.sort_unstable();
    match blocks.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(DeviceError::BlockTwice { block: pair[0] }),
        None => Ok(()),
    }
}

impl Device for HostDevice {
    fn geometry(&self) -> Geometry {
        self.layout.geometry
    }

    fn blocks(&self) -> u32 {
        self.layout.blocks
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        let jobs: Vec<Job> =
            jobs.into_iter().map(|job| Job { page: job.page, block: job.block.0 }).collect();
        self.check_jobs(&jobs)?;
        check_distinct(&jobs)?;
        self.start(Direction::Load, self.to_device.as_ref(), jobs)
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        let jobs: Vec<Job> =
            jobs.into_iter().map(|job| Job { page: job.page, block: job.block.0 }).collect();
        self.check_jobs(&jobs)?;
        if let Some(job) = jobs.iter().find(|job| !job.page.is_writable()) {
            return Err(DeviceError::ReadOnly { block: job.block });
        }
        self.start(Direction::Store, self.to_host.as_ref(), jobs)
    }
}
