//! One piece of a transfer, put on a stream.

use super::CudaError;
use super::context::Context;
use super::driver::Attribute;
use super::kernel::{JOBS, Kernel};
use super::mode::CopyMode;
use super::plan::Group;
use crate::Strip;
use crate::batch::{Direction, Job};
use cudarc::driver::sys::{
    CUDA_MEMCPY2D, CUmemLocation, CUmemLocationType, CUmemcpyAttributes, CUmemcpySrcAccessOrder,
    CUmemorytype, CUstream,
};
use std::ptr;
use std::sync::Arc;

/// Fragments of one batched call.
const BATCH: usize = 1024;
/// About how much one launch of the kernel copies, bytes: its multiprocessors are the engine's again
/// after half a millisecond, if the engine has something to run there.
const LAUNCH_BYTES: u64 = 32 << 20;

/// What the device copies with.
#[derive(Debug)]
pub(super) struct Copies {
    context: Arc<Context>,
    /// The longest pitch a 2D copy takes, bytes.
    max_pitch: u64,
    kernel: Result<Kernel, CudaError>,
}

impl Copies {
    pub(super) fn new(
        context: &Arc<Context>,
        kernel: Result<Kernel, CudaError>,
    ) -> Result<Self, CudaError> {
        let max_pitch = u64::try_from(context.attribute(Attribute::MaxPitch)?).unwrap_or(0);
        Ok(Self { context: Arc::clone(context), max_pitch, kernel })
    }

    /// Whether a mode is there at all.
    pub(super) fn check(&self, mode: CopyMode) -> Result<(), CudaError> {
        let no_mode = |reason| Err(CudaError::NoMode { mode: mode.name(), reason });
        match (mode, &self.kernel) {
            (CopyMode::Batched, _) if self.context.driver.memcpy_batch_async.is_none() => {
                no_mode("the driver has no cuMemcpyBatchAsync, as of CUDA 12.8".into())
            }
            (CopyMode::Kernel, Err(error)) => no_mode(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Puts the copy of a group of layers of some pages on the stream. The context is current. With
    /// each page comes where the device sees it; a kernel takes no page without, and [`JOBS`] pages
    /// at most.
    ///
    /// # Safety
    /// Every page is as long as the layout's pages, and writable where it is stored into; every
    /// block is one of the layout's, whose addresses are memory of this context; all of it stays,
    /// and is nobody else's, until the stream has passed.
    pub(super) unsafe fn put(
        &self,
        mode: CopyMode,
        direction: Direction,
        group: &Group,
        jobs: &[(&Job, Option<u64>)],
        stream: CUstream,
    ) -> Result<(), CudaError> {
        match (mode, &self.kernel) {
            (CopyMode::Kernel, Ok(kernel)) => {
                let jobs: Option<Vec<(u64, u32)>> =
                    jobs.iter().map(|(job, seen)| Some(((*seen)?, job.block.0))).collect();
                let Some(jobs) = jobs else {
                    let reason = "a page is not registered".to_owned();
                    return Err(CudaError::NoMode { mode: mode.name(), reason });
                };
                // SAFETY: as the caller says.
                unsafe { kernel.launch(direction, group, &jobs, stream) }
            }
            (CopyMode::Batched, _) => {
                // SAFETY: as the caller says.
                unsafe { self.batched(direction, group, jobs, stream) }
            }
            _ => jobs.iter().try_for_each(|(job, _)| {
                let mut strips = group.strips.iter();
                // SAFETY: as the caller says.
                strips.try_for_each(|strip| unsafe { self.strip(direction, strip, job, stream) })
            }),
        }
    }

    /// How many pages one piece may have.
    pub(super) fn most_jobs(mode: CopyMode, page_bytes: u64) -> usize {
        match mode {
            CopyMode::Kernel => (LAUNCH_BYTES / page_bytes.max(1)).clamp(1, JOBS as u64) as usize,
            CopyMode::Pitched | CopyMode::Batched => usize::MAX,
        }
    }

    unsafe fn strip(
        &self,
        direction: Direction,
        strip: &Strip,
        job: &Job,
        stream: CUstream,
    ) -> Result<(), CudaError> {
        let block = job.block.0;
        if strip.rows > 1 && strip.pitch <= self.max_pitch {
            // SAFETY: as the caller says.
            return unsafe { self.rows(direction, strip, job, stream) };
        }
        (0..strip.rows).try_for_each(|row| {
            let (at, in_page) = (strip.row_at(block, row), strip.in_page + row * strip.row_bytes);
            // SAFETY: the row lies inside the page and the block, both of which stay.
            let (call, code) = unsafe {
                let host = job.page.as_ptr().add(in_page);
                let driver = self.context.driver;
                match direction {
                    Direction::Load => (
                        "cuMemcpyHtoDAsync",
                        (driver.memcpy_htod_async)(at, host.cast(), strip.row_bytes, stream),
                    ),
                    Direction::Store => (
                        "cuMemcpyDtoHAsync",
                        (driver.memcpy_dtoh_async)(
                            host.cast_mut().cast(),
                            at,
                            strip.row_bytes,
                            stream,
                        ),
                    ),
                }
            };
            self.context.check(call, code)
        })
    }

    unsafe fn rows(
        &self,
        direction: Direction,
        strip: &Strip,
        job: &Job,
        stream: CUstream,
    ) -> Result<(), CudaError> {
        let at = strip.row_at(job.block.0, 0);
        // SAFETY: the strip lies inside the page.
        let host = unsafe { job.page.as_ptr().add(strip.in_page) };
        let (row_bytes, pitch) = (strip.row_bytes, strip.pitch as usize);
        let (on_host, on_device) =
            (CUmemorytype::CU_MEMORYTYPE_HOST, CUmemorytype::CU_MEMORYTYPE_DEVICE);
        let mut copy = CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: on_host,
            srcHost: host.cast(),
            srcDevice: 0,
            srcArray: ptr::null_mut(),
            srcPitch: row_bytes,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: on_device,
            dstHost: ptr::null_mut(),
            dstDevice: at,
            dstArray: ptr::null_mut(),
            dstPitch: pitch,
            WidthInBytes: row_bytes,
            Height: strip.rows,
        };
        if direction == Direction::Store {
            (copy.srcMemoryType, copy.dstMemoryType) = (on_device, on_host);
            (copy.srcHost, copy.srcDevice, copy.srcPitch) = (ptr::null(), at, pitch);
            (copy.dstHost, copy.dstDevice, copy.dstPitch) = (host.cast_mut().cast(), 0, row_bytes);
        }
        // SAFETY: every row lies inside the page and the block, both of which stay; the
        // description is read by the call.
        let code = unsafe { (self.context.driver.memcpy_2d_async)(&raw const copy, stream) };
        self.context.check("cuMemcpy2DAsync", code)
    }

    unsafe fn batched(
        &self,
        direction: Direction,
        group: &Group,
        jobs: &[(&Job, Option<u64>)],
        stream: CUstream,
    ) -> Result<(), CudaError> {
        let mut list = List::default();
        for (job, _) in jobs {
            for strip in &group.strips {
                for row in 0..strip.rows {
                    let at = strip.row_at(job.block.0, row);
                    let in_page = strip.in_page + row * strip.row_bytes;
                    let host = job.page.as_ptr() as u64 + in_page as u64;
                    list.add(direction, at, host, strip.row_bytes);
                    if list.sizes.len() == BATCH {
                        // SAFETY: every row lies inside its page and block, which stay.
                        unsafe { self.flush(&mut list, stream)? };
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.flush(&mut list, stream) }
    }

    unsafe fn flush(&self, list: &mut List, stream: CUstream) -> Result<(), CudaError> {
        let (Some(batch), false) = (self.context.driver.memcpy_batch_async, list.sizes.is_empty())
        else {
            return Ok(());
        };
        let nowhere =
            CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
        let mut attributes = CUmemcpyAttributes {
            srcAccessOrder: CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: nowhere,
            dstLocHint: nowhere,
            flags: 0,
        };
        let (mut first, mut failed) = (0_usize, 0_usize);
        // SAFETY: three lists of one length, one set of attributes for all from the first on; the
        // call reads all of it. What it copies stays, as the caller says.
        let code = unsafe {
            batch(
                list.to.as_mut_ptr(),
                list.from.as_mut_ptr(),
                list.sizes.as_mut_ptr(),
                list.sizes.len(),
                &raw mut attributes,
                &raw mut first,
                1,
                &raw mut failed,
                stream,
            )
        };
        *list = List::default();
        self.context.check("cuMemcpyBatchAsync", code)
    }
}

#[derive(Debug, Default)]
struct List {
    to: Vec<u64>,
    from: Vec<u64>,
    sizes: Vec<usize>,
}

impl List {
    fn add(&mut self, direction: Direction, device: u64, host: u64, bytes: usize) {
        let (to, from) = match direction {
            Direction::Load => (device, host),
            Direction::Store => (host, device),
        };
        self.to.push(to);
        self.from.push(from);
        self.sizes.push(bytes);
    }
}
