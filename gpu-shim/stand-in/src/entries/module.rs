//! Modules and kernels.

use super::{check_flags, put};
use crate::Code;
use crate::calls::Call;
use crate::handles::Handle;
use crate::kernel::{Jobs, Launch, THREADS};
use crate::module::{Function, Module};
use crate::operation::{Operation, Work};
use crate::state::answer;
use std::ffi::{CStr, c_char, c_uint, c_void};

/// Thread blocks of one launch in x, y and z (CUDA C++ Programming Guide, "Technical
/// Specifications per Compute Capability").
const MOST_BLOCKS: [u32; 3] = [0x7fff_ffff, 0xffff, 0xffff];

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut Handle, image: *const c_char) -> i32 {
    answer(Call::ModuleLoadData, |held| {
        let context = held.contexts.current(Call::ModuleLoadData)?;
        if module.is_null() || image.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller answers for a text that ends in NUL.
        let text = unsafe { CStr::from_ptr(image) }.to_str().map_err(|_| Code::INVALID_IMAGE)?;
        let found = Module::read(text, context, &held.settings)?;
        let handle = held.modules.insert(found);
        // SAFETY: the caller answers for its pointer.
        unsafe { put(module, handle) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: Handle) -> i32 {
    answer(Call::ModuleUnload, |held| {
        if held.modules.get(module).is_none() {
            let stale = held.modules.is_stale(module);
            return Err(held.no_object(Call::ModuleUnload, "module", module, stale));
        }
        let queued = |operation: &Operation| matches!(&operation.work, Work::Kernel(launch) if launch.module == module);
        if held.streams.iter().any(|(_, stream)| stream.has_queued(queued)) {
            let what = "a kernel of the module has not run yet".to_owned();
            held.violate(Call::ModuleUnload, what);
        }
        held.modules.remove(module);
        held.functions.retain(|function| function.module != module);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    function: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> i32 {
    answer(Call::ModuleGetFunction, |held| {
        let Some(found) = held.modules.get(module) else {
            let stale = held.modules.is_stale(module);
            return Err(held.no_object(Call::ModuleGetFunction, "module", module, stale));
        };
        held.contexts.check(found.context, Call::ModuleGetFunction)?;
        if function.is_null() || name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller answers for a text that ends in NUL.
        let name = unsafe { CStr::from_ptr(name) };
        let kernel = found.kernels.iter().find(|(known, _)| known.as_bytes() == name.to_bytes());
        let direction = kernel.ok_or(Code::NOT_FOUND)?.1;
        let context = found.context;
        let handle = held.functions.insert(Function { context, module, direction });
        // SAFETY: the caller answers for its pointer.
        unsafe { put(function, handle) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> i32 {
    answer(Call::LaunchKernel, |held| {
        let (context, stream) = held.busy_stream(Call::LaunchKernel, stream)?;
        let Some(found) = held.functions.get(function).copied() else {
            let stale = held.functions.is_stale(function);
            return Err(held.no_object(Call::LaunchKernel, "function", function, stale));
        };
        if found.context != context {
            return Err(Code::INVALID_HANDLE);
        }
        let grid = [grid_x, grid_y, grid_z];
        let fits = grid.iter().zip(MOST_BLOCKS).all(|(blocks, most)| (1..=most).contains(blocks));
        // The kernels are compiled for blocks of this shape, and use no shared memory.
        let shape = [block_x, block_y, block_z] == [THREADS, 1, 1];
        if !(fits && shape) || parameters.is_null() || !extra.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        check_flags(shared_bytes, 0)?;
        // SAFETY: the caller answers for the parameters that our kernels have.
        let launch = unsafe { read_launch(found, parameters) }?;
        let touches = launch.touches(held, context);
        held.counts.kernels += 1;
        let blocks = u64::from(grid_x) * u64::from(grid_y) * u64::from(grid_z);
        held.counts.most_thread_blocks = held.counts.most_thread_blocks.max(blocks);
        let operation = Operation { touches, ..Operation::new(Work::Kernel(launch)) };
        held.submit(stream, operation);
        Ok(())
    })
}

/// The six parameters of either kernel: strips, strip_count, tiles, job_count, unit, jobs.
///
/// # Safety
/// `parameters` are that many pointers to values of these types, of any alignment.
unsafe fn read_launch(
    function: Function,
    parameters: *const *const c_void,
) -> Result<Launch, Code> {
    // SAFETY: the caller answers for six pointers.
    let parameters = unsafe { std::slice::from_raw_parts(parameters, 6) };
    if parameters.iter().any(|parameter| parameter.is_null()) {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller answers for the types, and none of these values can be invalid.
    unsafe {
        Ok(Launch {
            module: function.module,
            direction: function.direction,
            strips: parameters[0].cast::<u64>().read_unaligned(),
            strip_count: parameters[1].cast::<u32>().read_unaligned(),
            tiles: parameters[2].cast::<u32>().read_unaligned(),
            job_count: parameters[3].cast::<u32>().read_unaligned(),
            unit: parameters[4].cast::<u32>().read_unaligned(),
            jobs: Box::new(parameters[5].cast::<Jobs>().read_unaligned()),
        })
    }
}
