use crate::batch::{Batch, Direction, Job, check_jobs};
use crate::pace::Link;
use crate::workers::Workers;
use crate::{BlockId, Device, DeviceError, KvLayout, LoadJob, Run, StoreJob, Tensor, Transfer};
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

impl HostOptions {
    fn check(&self) -> Result<(), DeviceError> {
        if self.copy_threads > MAX_THREADS {
            let found = self.copy_threads as u64;
            return Err(DeviceError::Option { what: "copy_threads", found, allowed: "0 to 256" });
        }
        if self.link_bytes_per_s == Some(0) {
            let (what, allowed) = ("link_bytes_per_s", "1 or more");
            return Err(DeviceError::Option { what, found: 0, allowed });
        }
        Ok(())
    }
}

/// A device made of ordinary memory, laid out like an engine's: memory of its own, or an engine's
/// own KV cache where it lies in host memory.
#[derive(Debug)]
pub struct HostDevice {
    layout: Arc<KvLayout>,
    /// The layout's, one by one.
    tensors: Arc<[Span]>,
    /// What they lie in, where it is the device's own.
    own: Option<Span>,
    workers: Option<Workers>,
    to_device: Option<Arc<Link>>,
    to_host: Option<Arc<Link>>,
}

impl HostDevice {
    /// A device of `blocks` blocks for pages of this shape, each fragment in an array of its own.
    /// Its memory is zeroed and faulted in.
    ///
    /// # Errors
    /// No blocks, a link without speed, too many threads, or more memory than the machine gives.
    pub fn new(geometry: Geometry, blocks: u32, options: HostOptions) -> Result<Self, DeviceError> {
        Self::with_layout(KvLayout::packed(geometry, blocks)?, options)
    }

    /// A device laid out like an engine's; the layout's addresses are offsets into its memory,
    /// which ends where the layout does.
    ///
    /// # Errors
    /// A link without speed, too many threads, or more memory than the machine gives.
    pub fn with_layout(layout: KvLayout, options: HostOptions) -> Result<Self, DeviceError> {
        options.check()?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = Memory::new(layout.end(), threads)?;
        let tensors = layout.tensors().iter();
        let tensors = tensors.map(|tensor| memory.span(tensor.base, tensor.bytes as usize));
        let tensors = tensors.collect::<Result<_, _>>()?;
        let own = memory.span(0, memory.len())?;
        Self::over(layout, tensors, Some(own), options)
    }

    /// A device over an engine's own KV cache in host memory; the layout's addresses are those of
    /// this process.
    ///
    /// # Errors
    /// As [`HostDevice::with_layout`], or an address that no process has.
    ///
    /// # Safety
    /// The layout's tensors are memory of this process that can be read and written, and outlive
    /// the device and all its transfers. Nothing else touches the blocks of a transfer while it is
    /// under way.
    #[expect(unsafe_code, reason = "only the caller knows what lies at the layout's addresses")]
    pub unsafe fn attach(layout: KvLayout, options: HostOptions) -> Result<Self, DeviceError> {
        options.check()?;
        let span = |tensor: &Tensor| {
            // SAFETY: the caller vouches for every tensor, for as long as transfers have spans of
            // it, and for its blocks while they do.
            let memory = unsafe { Memory::lent(tensor.base, tensor.bytes, true)? };
            memory.span(0, memory.len())
        };
        let tensors = layout.tensors().iter().map(span).collect::<Result<_, _>>()?;
        Self::over(layout, tensors, None, options)
    }

    fn over(
        layout: KvLayout,
        tensors: Arc<[Span]>,
        own: Option<Span>,
        options: HostOptions,
    ) -> Result<Self, DeviceError> {
        let workers = match options.copy_threads {
            0 => None,
            threads => Some(Workers::start(threads)?),
        };
        let link = || options.link_bytes_per_s.map(|speed| Arc::new(Link::new(speed)));
        let layout = Arc::new(layout);
        Ok(Self { layout, tensors, own, workers, to_device: link(), to_host: link() })
    }

    /// Looks at a block piece by piece in the order of its page. The first argument is where the
    /// piece starts in the page, bytes. No transfer may be writing to the block.
    ///
    /// # Errors
    /// A block that is not there.
    pub fn read_block(
        &self,
        block: BlockId,
        mut look: impl FnMut(usize, &[u8]),
    ) -> Result<(), DeviceError> {
        self.each_run(block, |at, bytes| bytes.read(|bytes| look(at, bytes)))
    }

    /// Changes a block piece by piece in the order of its page. The first argument is where the
    /// piece starts in the page, bytes. No transfer may touch the block meanwhile.
    ///
    /// # Errors
    /// A block that is not there.
    pub fn write_block(
        &self,
        block: BlockId,
        mut change: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), DeviceError> {
        self.each_run(block, |at, bytes| bytes.write(|bytes| change(at, bytes)))
    }

    /// All of the device's own memory, whatever of it belongs to a block: what an engine's own
    /// kernels would read and write. No transfer may touch it meanwhile. `None` where the memory is
    /// an engine's.
    #[must_use]
    pub fn memory(&self) -> Option<&Span> {
        self.own.as_ref()
    }

    fn each_run(
        &self,
        block: BlockId,
        mut visit: impl FnMut(usize, &Span),
    ) -> Result<(), DeviceError> {
        self.check_block(block)?;
        let layers = 0..self.geometry().layers();
        for Run { tensor, at, in_page, bytes } in self.layout.runs(block, layers) {
            let in_tensor = (at - self.layout.tensors()[tensor].base) as usize;
            visit(in_page, &self.tensors[tensor].sub(in_tensor, bytes)?);
        }
        Ok(())
    }

    fn start(
        &self,
        direction: Direction,
        link: Option<&Arc<Link>>,
        jobs: Vec<Job>,
    ) -> Result<Transfer, DeviceError> {
        let tensors = Arc::clone(&self.tensors);
        let batch = Batch::new(Arc::clone(&self.layout), tensors, link.cloned(), direction, jobs);
        let batch = Arc::new(batch);
        match &self.workers {
            None => batch.work_alone(),
            Some(workers) => workers.submit(Arc::clone(&batch))?,
        }
        Ok(Transfer::new(self.geometry().layers(), Box::new(batch)))
    }

    fn check_block(&self, block: BlockId) -> Result<(), DeviceError> {
        if self.layout.has_block(block) {
            Ok(())
        } else {
            Err(DeviceError::Block { found: block.0, blocks: self.layout.blocks() })
        }
    }
}

impl Device for HostDevice {
    fn geometry(&self) -> Geometry {
        self.layout.geometry()
    }

    fn blocks(&self) -> u32 {
        self.layout.blocks()
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        let jobs: Vec<Job> = jobs.into_iter().map(Job::from).collect();
        check_jobs(&self.layout, Direction::Load, &jobs)?;
        self.start(Direction::Load, self.to_device.as_ref(), jobs)
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        let jobs: Vec<Job> = jobs.into_iter().map(Job::from).collect();
        check_jobs(&self.layout, Direction::Store, &jobs)?;
        self.start(Direction::Store, self.to_host.as_ref(), jobs)
    }
}
