//! Copies.

use super::device::MAX_PITCH;
use super::put;
use crate::Code;
use crate::calls::Call;
use crate::handles::Handle;
use crate::operation::{Copies, Operation, Point, Side, Work};
use crate::rows::Rows;
use crate::settings::Setting;
use crate::state::{Held, answer};
use std::ffi::{c_int, c_uint, c_void};

const MEMORY_TYPE_HOST: c_uint = 1;
const MEMORY_TYPE_DEVICE: c_uint = 2;
const MEMORY_TYPE_UNIFIED: c_uint = 4;

/// `CUDA_MEMCPY2D` of `cuda.h`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Memcpy2D {
    src_x_in_bytes: usize,
    src_y: usize,
    src_memory_type: c_uint,
    src_host: *const c_void,
    src_device: u64,
    src_array: *const c_void,
    src_pitch: usize,
    dst_x_in_bytes: usize,
    dst_y: usize,
    dst_memory_type: c_uint,
    dst_host: *mut c_void,
    dst_device: u64,
    dst_array: *mut c_void,
    dst_pitch: usize,
    width_in_bytes: usize,
    height: usize,
}

/// `CUmemcpyAttributes` of `cuda.h`; the hints stay unread.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct MemcpyAttributes {
    src_access_order: c_uint,
    src_location: [c_int; 2],
    dst_location: [c_int; 2],
    flags: c_uint,
}

/// The source is read before the call returns.
const ACCESS_DURING_CALL: c_uint = 2;
/// Stream order, during the call, in any order.
const ACCESS_ORDERS: std::ops::RangeInclusive<c_uint> = 1..=3;
/// Prefer to overlap with compute.
const BATCH_FLAGS: c_uint = 1;

/// No copy in particular.
const NO_INDEX: usize = usize::MAX;

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> i32 {
    answer(Call::MemcpyHtoD, |held| {
        let rows = Rows::one(from.expose_provenance() as u64, to, bytes as u64);
        held.copy_1d(Call::MemcpyHtoD, Handle::NULL, rows, [Side::Host, Side::Device], true)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> i32 {
    answer(Call::MemcpyDtoH, |held| {
        let rows = Rows::one(from, to.expose_provenance() as u64, bytes as u64);
        held.copy_1d(Call::MemcpyDtoH, Handle::NULL, rows, [Side::Device, Side::Host], true)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: Handle,
) -> i32 {
    answer(Call::MemcpyHtoDAsync, |held| {
        let rows = Rows::one(from.expose_provenance() as u64, to, bytes as u64);
        held.copy_1d(Call::MemcpyHtoDAsync, stream, rows, [Side::Host, Side::Device], false)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: Handle,
) -> i32 {
    answer(Call::MemcpyDtoHAsync, |held| {
        let rows = Rows::one(from, to.expose_provenance() as u64, bytes as u64);
        held.copy_1d(Call::MemcpyDtoHAsync, stream, rows, [Side::Device, Side::Host], false)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpy2DAsync_v2(copy: *const Memcpy2D, stream: Handle) -> i32 {
    answer(Call::Memcpy2DAsync, |held| {
        let (context, stream) = held.busy_stream(Call::Memcpy2DAsync, stream)?;
        if copy.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller answers for its pointer.
        let copy = unsafe { copy.read() };
        let mut copies = Copies::default();
        let (rows, sides) = copy.rows()?;
        copies.add(held, context, rows, sides[0], sides[1])?;
        held.counts.copies_2d += 1;
        held.queue(context, stream, copies, false)
    })
}

impl Memcpy2D {
    fn rows(&self) -> Result<(Rows, [Side; 2]), Code> {
        let (from_side, from) = side(self.src_memory_type, self.src_host, self.src_device)?;
        let (to_side, to) = side(self.dst_memory_type, self.dst_host, self.dst_device)?;
        let width = self.width_in_bytes as u64;
        let start = |at: u64, x: usize, y: usize, pitch: usize| {
            let (x, y, pitch) = (x as u64, y as u64, pitch as u64);
            let fits = x.checked_add(width).is_some_and(|end| end <= pitch) && pitch <= MAX_PITCH;
            // One row needs no pitch.
            let free = self.height <= 1 && y == 0 && pitch == 0;
            let start = at.checked_add(x).zip(y.checked_mul(pitch));
            start
                .and_then(|(at, rows)| at.checked_add(rows))
                .filter(|_| fits || free)
                .ok_or(Code::INVALID_VALUE)
        };
        let rows = Rows {
            from: start(from, self.src_x_in_bytes, self.src_y, self.src_pitch)?,
            from_pitch: self.src_pitch as u64,
            to: start(to, self.dst_x_in_bytes, self.dst_y, self.dst_pitch)?,
            to_pitch: self.dst_pitch as u64,
            width,
            count: self.height as u64,
        };
        Ok((rows, [from_side, to_side]))
    }
}

/// One side of a 2D copy. Arrays are not offered.
fn side(kind: c_uint, host: *const c_void, device: u64) -> Result<(Side, u64), Code> {
    match kind {
        MEMORY_TYPE_HOST => Ok((Side::Host, host.expose_provenance() as u64)),
        MEMORY_TYPE_DEVICE => Ok((Side::Device, device)),
        MEMORY_TYPE_UNIFIED => Ok((Side::Unified, device)),
        _ => Err(Code::INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyBatchAsync(
    targets: *const u64,
    sources: *const u64,
    sizes: *const usize,
    count: usize,
    attributes: *const MemcpyAttributes,
    attribute_indices: *const usize,
    attribute_count: usize,
    failed_index: *mut usize,
    stream: Handle,
) -> i32 {
    answer(Call::MemcpyBatchAsync, |held| {
        // SAFETY: the caller answers for its pointer.
        unsafe { put(failed_index, NO_INDEX)? };
        if !held.settings.is_on(Setting::Batch) {
            return Err(Code::NOT_SUPPORTED);
        }
        if stream.0 <= 1 {
            return Err(Code::INVALID_HANDLE);
        }
        let (context, stream) = held.busy_stream(Call::MemcpyBatchAsync, stream)?;
        // SAFETY: the caller answers for `count` and `attribute_count` elements of its arrays.
        let batch = unsafe {
            (
                array(targets, count)?,
                array(sources, count)?,
                array(sizes, count)?,
                array(attributes, attribute_count)?,
                array(attribute_indices, attribute_count)?,
            )
        };
        let (targets, sources, sizes, attributes, indices) = batch;
        let during_call = check_attributes(attributes, indices, count)?;
        let mut copies = Copies::default();
        // Last first: the copies of a batch are in no order.
        for index in (0..count).rev() {
            let rows = Rows::one(sources[index], targets[index], sizes[index] as u64);
            if let Err(code) = copies.add(held, context, rows, Side::Unified, Side::Unified) {
                // SAFETY: the caller answers for its pointer.
                unsafe { put(failed_index, index)? };
                return Err(code);
            }
        }
        held.counts.batches += 1;
        held.counts.batched_copies += count as u64;
        held.queue(context, stream, copies, during_call)
    })
}

/// An array that is not empty.
///
/// # Safety
/// `at` is null or the start of `count` elements that nobody writes meanwhile.
unsafe fn array<'a, T>(at: *const T, count: usize) -> Result<&'a [T], Code> {
    if at.is_null() || count == 0 {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller answers for these elements.
    Ok(unsafe { std::slice::from_raw_parts(at, count) })
}

/// Attributes hold from the copy of their index on, the first of them from the first copy.
/// Whether some source has to be read during the call.
fn check_attributes(
    attributes: &[MemcpyAttributes],
    indices: &[usize],
    count: usize,
) -> Result<bool, Code> {
    let ordered = indices.windows(2).all(|pair| pair[0] < pair[1]);
    let known = attributes
        .iter()
        .all(|it| ACCESS_ORDERS.contains(&it.src_access_order) && it.flags & !BATCH_FLAGS == 0);
    let starts = indices.first() == Some(&0) && indices.last().is_some_and(|last| *last < count);
    let during_call = attributes.iter().any(|it| it.src_access_order == ACCESS_DURING_CALL);
    (ordered && known && starts).then_some(during_call).ok_or(Code::INVALID_VALUE)
}

impl Held {
    fn copy_1d(
        &mut self,
        call: Call,
        stream: Handle,
        rows: Rows,
        sides: [Side; 2],
        wait: bool,
    ) -> Result<(), Code> {
        let (context, stream) = self.busy_stream(call, stream)?;
        let mut copies = Copies::default();
        copies.add(self, context, rows, sides[0], sides[1])?;
        if wait {
            // Such a call waits for its bytes wherever they lie.
            copies.pageable = 0;
        }
        self.counts.copies_1d += 1;
        self.queue(context, stream, copies, wait)
    }

    /// Queues copies. With ordinary memory on one side they are made before the call returns.
    fn queue(
        &mut self,
        context: Handle,
        stream: Handle,
        copies: Copies,
        wait: bool,
    ) -> Result<(), Code> {
        self.counts.pageable_copies += copies.pageable;
        if copies.rows.is_empty() {
            return Ok(());
        }
        let touches = copies.touches;
        let operation = Operation { touches, ..Operation::new(Work::Copies(copies.rows)) };
        let point = self.submit(stream, operation);
        if wait || copies.pageable > 0 {
            self.finish(context, point)?;
        }
        Ok(())
    }

    fn finish(&mut self, context: Handle, point: Point) -> Result<(), Code> {
        self.wait_for(point);
        self.contexts.check(context, Call::MemcpyHtoD)?;
        self.outcome(point)
    }
}
