use super::CudaError;
use super::context::Context;
use super::memory::{self, DeviceMemory};
use super::plan::{Group, Plan, STRIP_ROW_BYTES, TILE_BYTES};
use super::stream::Stream;
use crate::batch::Direction;
use cudarc::driver::sys::{CUfunction, CUmodule, CUstream};
use std::ffi::{CStr, c_void};
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// `kernels/pages.cu`, compiled: the driver compiles it on for its device.
const PTX: &str = concat!(include_str!("../../kernels/pages.ptx"), "\0");
/// Threads of one of the kernel's blocks; fixed by `kernels/pages.cu`.
const THREADS: u32 = 256;
/// Pages of one launch: what fits a kernel's parameters, 4 KiB, so that no list of pages has to be
/// kept anywhere until the kernel has run.
pub(super) const JOBS: usize = 256;

/// The pages and blocks of one launch, as `kernels/pages.cu` has it.
#[repr(C)]
struct Jobs {
    page: [u64; JOBS],
    block: [u32; JOBS],
}

const _: () = assert!(size_of::<Jobs>() == 3072, "the kernel's struct Jobs");

/// The kernels, loaded, and the table of strips they work by.
pub(super) struct Kernel {
    context: Arc<Context>,
    module: CUmodule,
    scatter: CUfunction,
    gather: CUfunction,
    table: DeviceMemory,
    unit: u32,
    /// At most so many multiprocessors are used.
    blocks: u32,
}

// SAFETY: the handles may be used from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the kernels and writes the table. `blocks` bounds how many multiprocessors they use.
    pub(super) fn new(
        context: &Arc<Context>,
        plan: &Plan,
        blocks: u32,
        stream: &Stream,
    ) -> Result<Self, CudaError> {
        let bytes = plan.table();
        let table = DeviceMemory::new(context, bytes.len() as u64)?;
        let _entered = context.enter()?;
        // SAFETY: the table was just allocated, as long as this.
        let written = unsafe { memory::write(context, stream, table.at, &bytes) };
        // Also after a failure: nothing may be under way to what is freed.
        stream.synchronize().and(written)?;
        let mut module = ptr::null_mut();
        // SAFETY: the text ends in a zero, and the pointer is to a local.
        let code =
            unsafe { (context.driver.module_load_data)(&raw mut module, PTX.as_ptr().cast()) };
        context.check("cuModuleLoadData", code)?;
        let mut kernel = Self {
            context: Arc::clone(context),
            module,
            scatter: ptr::null_mut(),
            gather: ptr::null_mut(),
            table,
            unit: plan.unit,
            blocks: blocks.max(1),
        };
        kernel.scatter = kernel.function(c"undercroft_scatter")?;
        kernel.gather = kernel.function(c"undercroft_gather")?;
        Ok(kernel)
    }

    fn function(&self, name: &CStr) -> Result<CUfunction, CudaError> {
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in a zero, the pointer is to a local.
        let code = unsafe {
            (self.context.driver.module_get_function)(&raw mut function, self.module, name.as_ptr())
        };
        self.context.check("cuModuleGetFunction", code)?;
        Ok(function)
    }

    /// Puts the copy of a group of layers of at most [`JOBS`] pages on the stream. `jobs` are the
    /// pages' addresses on the device, and their blocks. The context is current.
    ///
    /// # Safety
    /// Each address is of a whole page that is registered, to be written to where it is stored
    /// into; each block is one of the layout that the plan was made of; all of it stays until the
    /// stream has passed.
    pub(super) unsafe fn launch(
        &self,
        direction: Direction,
        group: &Group,
        jobs: &[(u64, u32)],
        stream: CUstream,
    ) -> Result<(), CudaError> {
        debug_assert!(jobs.len() <= JOBS, "{} pages in one launch", jobs.len());
        let mut list = Jobs { page: [0; JOBS], block: [0; JOBS] };
        let places = list.page.iter_mut().zip(&mut list.block);
        for ((page, block), job) in places.zip(jobs) {
            (*page, *block) = *job;
        }
        let addresses = jobs.iter().fold(u64::from(self.unit), |all, (page, _)| all | page);
        let mut strips = self.table.at + (group.first_strip * STRIP_ROW_BYTES) as u64;
        let mut strip_count = group.strips.len() as u32;
        let (mut tiles, mut count) = (group.tiles, jobs.len() as u32);
        let mut unit = 1_u32 << addresses.trailing_zeros();
        let grid = self.blocks.min(tiles.saturating_mul(count)).max(1);
        let mut parameters: [*mut c_void; 6] = [
            (&raw mut strips).cast(),
            (&raw mut strip_count).cast(),
            (&raw mut tiles).cast(),
            (&raw mut count).cast(),
            (&raw mut unit).cast(),
            (&raw mut list).cast(),
        ];
        let function = match direction {
            Direction::Load => self.scatter,
            Direction::Store => self.gather,
        };
        // SAFETY: the parameters are those of the kernel, in its order and sizes, and are copied
        // by the call; what the kernel touches is what the caller vouches for.
        let code = unsafe {
            (self.context.driver.launch_kernel)(
                function,
                grid,
                1,
                1,
                THREADS,
                1,
                1,
                0,
                stream,
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.context.check("cuLaunchKernel", code)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let Some(_entered) = self.context.enter_to_clean_up() else {
            return;
        };
        // SAFETY: it was loaded here, and nothing of it runs: whoever launches keeps the kernel.
        let _done = unsafe { (self.context.driver.module_unload)(self.module) };
    }
}

/// As `kernels/pages.cu` says it; a kernel with other tiles would leave bytes out.
const _: () = assert!(TILE_BYTES == 8192, "TILE_BYTES of kernels/pages.cu");
