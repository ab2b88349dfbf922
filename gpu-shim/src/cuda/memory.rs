use super::CudaError;
use super::context::Context;
use crate::batch::Direction;
use cudarc::driver::sys::CUstream;
use std::sync::Arc;
use undercroft_arena::Span;

/// Memory of the device, ours.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    context: Arc<Context>,
    pub(super) at: u64,
}

impl DeviceMemory {
    pub(super) fn new(context: &Arc<Context>, bytes: u64) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut at = 0;
        // SAFETY: the pointer is to a local, and the context is current.
        let code = unsafe { (context.driver.mem_alloc)(&raw mut at, bytes as usize) };
        context.check("cuMemAlloc", code)?;
        Ok(Self { context: Arc::clone(context), at })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _entered = self.context.enter_to_clean_up();
        // SAFETY: it was allocated here, and copies keep it: none is under way.
        let _done = unsafe { (self.context.driver.mem_free)(self.at) };
    }
}

/// Copies bytes to the device and waits.
///
/// # Safety
/// `bytes.len()` bytes at `at` are memory of this context that nothing else touches meanwhile.
pub(super) unsafe fn write(context: &Context, at: u64, bytes: &[u8]) -> Result<(), CudaError> {
    // SAFETY: the caller vouches for the device's side, the slice for the other.
    let code = unsafe { (context.driver.memcpy_htod)(at, bytes.as_ptr().cast(), bytes.len()) };
    context.check("cuMemcpyHtoD", code)
}

/// Copies bytes from the device and waits.
///
/// # Safety
/// `bytes.len()` bytes at `at` are memory of this context that nothing else writes meanwhile.
pub(super) unsafe fn read(context: &Context, at: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
    // SAFETY: the caller vouches for the device's side, the slice for the other.
    let code = unsafe { (context.driver.memcpy_dtoh)(bytes.as_mut_ptr().cast(), at, bytes.len()) };
    context.check("cuMemcpyDtoH", code)
}

/// Starts one copy of a whole span.
///
/// # Safety
/// As many bytes at `at` are memory of this context; both sides stay, and nothing else touches
/// them, until the stream has passed. The context is current.
pub(super) unsafe fn start(
    context: &Context,
    direction: Direction,
    at: u64,
    host: &Span,
    stream: CUstream,
) -> Result<(), CudaError> {
    let (driver, bytes) = (context.driver, host.len());
    match direction {
        Direction::Load => {
            // SAFETY: as the caller says.
            let code =
                unsafe { (driver.memcpy_htod_async)(at, host.as_ptr().cast(), bytes, stream) };
            context.check("cuMemcpyHtoDAsync", code)
        }
        Direction::Store => {
            // SAFETY: as the caller says.
            let code =
                unsafe { (driver.memcpy_dtoh_async)(host.as_mut_ptr().cast(), at, bytes, stream) };
            context.check("cuMemcpyDtoHAsync", code)
        }
    }
}
