use super::CudaError;
use super::context::Context;
use super::stream::Stream;
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
        let Some(_entered) = self.context.enter_to_clean_up() else {
            return;
        };
        // SAFETY: it was allocated here, and copies keep it: none is under way.
        let _done = unsafe { (self.context.driver.mem_free)(self.at) };
    }
}

/// Begins to copy bytes to the device. They are the caller's again when this returns; on the device
/// they are when the stream is through. The context is current.
///
/// Never through the legacy stream: ours are not ordered behind it, and a capture of the engine's
/// forbids it.
///
/// # Safety
/// `bytes.len()` bytes at `at` are memory of this context that nothing else touches until then.
pub(super) unsafe fn write(
    context: &Context,
    stream: &Stream,
    at: u64,
    bytes: &[u8],
) -> Result<(), CudaError> {
    let (from, len) = (bytes.as_ptr().cast(), bytes.len());
    // SAFETY: the caller vouches for the device's side, the slice for the other: memory that is not
    // registered is copied out of before the call returns.
    let code = unsafe { (context.driver.memcpy_htod_async)(at, from, len, stream.raw) };
    context.check("cuMemcpyHtoDAsync", code)
}

/// Begins to copy bytes from the device. They are there when the stream is through, and must stay
/// until then. The context is current.
///
/// # Safety
/// `bytes.len()` bytes at `at` are memory of this context that nothing else writes until then, and
/// the caller waits for the stream before `bytes` go.
pub(super) unsafe fn read(
    context: &Context,
    stream: &Stream,
    at: u64,
    bytes: &mut [u8],
) -> Result<(), CudaError> {
    let (to, len) = (bytes.as_mut_ptr().cast(), bytes.len());
    // SAFETY: the caller vouches for both sides.
    let code = unsafe { (context.driver.memcpy_dtoh_async)(to, at, len, stream.raw) };
    context.check("cuMemcpyDtoHAsync", code)
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
