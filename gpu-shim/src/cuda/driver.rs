//! The driver's calls, each looked up before it is used.
//!
//! cudarc loads the library and knows its types. Its own functions panic where a symbol is missing
//! and give results as an enum, which a newer driver's code would make undefined: so the calls are
//! looked up here, and codes are numbers.

use super::CudaError;
use cudarc::driver::sys::{
    CUDA_MEMCPY2D, CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmemcpyAttributes,
    CUmodule, CUstream,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

/// The oldest driver that is supported, as it says its version: CUDA 12.0, driver 525. The kernels'
/// PTX is made for it, too.
pub(super) const OLDEST: i32 = 12_000;

pub(super) const SUCCESS: i32 = 0;
pub(super) const NOT_READY: i32 = 600;

/// What `cuDeviceGetAttribute` is asked, by `cuda.h`.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub(super) enum Attribute {
    MaxPitch = 11,
    MultiprocessorCount = 16,
    ReadOnlyHostRegister = 113,
}

macro_rules! calls {
    (
        required { $($field:ident: $symbol:literal ($($argument:ty),* $(,)?);)* }
        optional { $($extra:ident: $extra_symbol:literal ($($extra_argument:ty),* $(,)?);)* }
    ) => {
        /// The driver's calls.
        #[derive(Debug)]
        pub(super) struct Driver {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> c_int,)*
            $(pub(super) $extra: Option<unsafe extern "C" fn($($extra_argument),*) -> c_int>,)*
        }

        impl Driver {
            /// Looks every call up. `find` gives a symbol's address.
            ///
            /// # Safety
            /// What `find` gives is the function of that name in a CUDA driver, or a null pointer,
            /// and stays loaded.
            unsafe fn look_up(find: impl Fn(&CStr) -> *mut c_void) -> Result<Self, CudaError> {
                Ok(Self {
                    $($field: {
                        let found = find(symbol($symbol));
                        if found.is_null() {
                            return Err(CudaError::MissingSymbol { symbol: name($symbol) });
                        }
                        // SAFETY: the caller vouches that this is the function of that name, and
                        // the signature is the one `cuda.h` gives it.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> c_int>(found) }
                    },)*
                    $($extra: {
                        let found = find(symbol($extra_symbol));
                        // SAFETY: as above; a null pointer is `None`.
                        unsafe { std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($extra_argument),*) -> c_int>>(found) }
                    },)*
                })
            }
        }
    };
}

calls! {
    required {
        init: "cuInit\0"(c_uint);
        driver_get_version: "cuDriverGetVersion\0"(*mut c_int);
        get_error_name: "cuGetErrorName\0"(c_int, *mut *const c_char);
        device_get_count: "cuDeviceGetCount\0"(*mut c_int);
        device_get: "cuDeviceGet\0"(*mut CUdevice, c_int);
        device_get_name: "cuDeviceGetName\0"(*mut c_char, c_int, CUdevice);
        device_get_attribute: "cuDeviceGetAttribute\0"(*mut c_int, c_int, CUdevice);
        primary_ctx_retain: "cuDevicePrimaryCtxRetain\0"(*mut CUcontext, CUdevice);
        primary_ctx_release: "cuDevicePrimaryCtxRelease_v2\0"(CUdevice);
        ctx_get_current: "cuCtxGetCurrent\0"(*mut CUcontext);
        ctx_push_current: "cuCtxPushCurrent_v2\0"(CUcontext);
        ctx_pop_current: "cuCtxPopCurrent_v2\0"(*mut CUcontext);
        exchange_capture_mode: "cuThreadExchangeStreamCaptureMode\0"(*mut c_int);
        stream_is_capturing: "cuStreamIsCapturing\0"(CUstream, *mut c_int);
        ctx_get_device: "cuCtxGetDevice\0"(*mut CUdevice);
        pointer_get_attribute: "cuPointerGetAttribute\0"(*mut c_void, c_int, CUdeviceptr);
        mem_alloc: "cuMemAlloc_v2\0"(*mut CUdeviceptr, usize);
        mem_free: "cuMemFree_v2\0"(CUdeviceptr);
        mem_host_register: "cuMemHostRegister_v2\0"(*mut c_void, usize, c_uint);
        mem_host_unregister: "cuMemHostUnregister\0"(*mut c_void);
        mem_host_get_device_pointer:
            "cuMemHostGetDevicePointer_v2\0"(*mut CUdeviceptr, *mut c_void, c_uint);
        stream_create: "cuStreamCreate\0"(*mut CUstream, c_uint);
        stream_destroy: "cuStreamDestroy_v2\0"(CUstream);
        stream_synchronize: "cuStreamSynchronize\0"(CUstream);
        stream_wait_event: "cuStreamWaitEvent\0"(CUstream, CUevent, c_uint);
        event_create: "cuEventCreate\0"(*mut CUevent, c_uint);
        event_record: "cuEventRecord\0"(CUevent, CUstream);
        event_query: "cuEventQuery\0"(CUevent);
        event_destroy: "cuEventDestroy_v2\0"(CUevent);
        memcpy_htod_async: "cuMemcpyHtoDAsync_v2\0"(CUdeviceptr, *const c_void, usize, CUstream);
        memcpy_dtoh_async: "cuMemcpyDtoHAsync_v2\0"(*mut c_void, CUdeviceptr, usize, CUstream);
        memcpy_2d_async: "cuMemcpy2DAsync_v2\0"(*const CUDA_MEMCPY2D, CUstream);
        module_load_data: "cuModuleLoadData\0"(*mut CUmodule, *const c_void);
        module_unload: "cuModuleUnload\0"(CUmodule);
        module_get_function: "cuModuleGetFunction\0"(*mut CUfunction, CUmodule, *const c_char);
        launch_kernel: "cuLaunchKernel\0"(
            CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream,
            *mut *mut c_void, *mut *mut c_void,
        );
    }
    optional {
        memcpy_batch_async: "cuMemcpyBatchAsync\0"(
            *mut CUdeviceptr, *mut CUdeviceptr, *mut usize, usize, *mut CUmemcpyAttributes,
            *mut usize, usize, *mut usize, CUstream,
        );
    }
}

fn symbol(with_end: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(with_end.as_bytes()).expect("the table's names end in a zero")
}

fn name(with_end: &'static str) -> &'static str {
    with_end.trim_end_matches('\0')
}

/// The driver, initialised.
///
/// # Errors
/// None to be loaded, one that is too old or lacks a call, or one that does not start.
pub(super) fn driver() -> Result<&'static Driver, CudaError> {
    let driver = loaded()?;
    let mut version = 0;
    // SAFETY: the pointer is to a local, and this call needs no initialisation.
    let code = unsafe { (driver.driver_get_version)(&raw mut version) };
    driver.check("cuDriverGetVersion", code)?;
    if version < OLDEST {
        return Err(CudaError::TooOld { found: version });
    }
    // SAFETY: it takes no pointers. Further calls of it do nothing.
    driver.check("cuInit", unsafe { (driver.init)(0) })?;
    Ok(driver)
}

/// The driver, as it is loaded: nothing of it was called, so that a process may still fork.
pub(super) fn loaded() -> Result<&'static Driver, CudaError> {
    static LOADED: OnceLock<Result<Driver, CudaError>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Driver, CudaError> {
    // SAFETY: loading the driver runs its constructors, as for every program that uses CUDA.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    // SAFETY: it is present, so that this does not panic; the library stays loaded for good.
    let library = unsafe { cudarc::driver::sys::culib() };
    let find = |symbol: &CStr| {
        // SAFETY: the address is only kept, as one of a pointer's size.
        let found = unsafe { library.get::<*mut c_void>(symbol.to_bytes_with_nul()) };
        found.map_or(ptr::null_mut(), |found| *found)
    };
    // SAFETY: the symbols are those of the CUDA driver by their names, and it stays loaded.
    unsafe { Driver::look_up(find) }
}

impl Driver {
    /// What a call returned, as a result.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        if code == SUCCESS { Ok(()) } else { Err(self.error(call, code)) }
    }

    pub(super) fn error(&self, call: &'static str, code: c_int) -> CudaError {
        let mut text = ptr::null();
        // SAFETY: it writes a pointer to a text that lives as long as the driver, or null.
        let known = unsafe { (self.get_error_name)(code, &raw mut text) } == SUCCESS;
        let name = if known && !text.is_null() {
            // SAFETY: the driver says that it is a text, and it ends in a zero.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        } else {
            "a code the driver has no name for".to_owned()
        };
        CudaError::Call { call, code, name }
    }

    /// The device of this number.
    pub(super) fn device(&self, ordinal: u32) -> Result<CUdevice, CudaError> {
        let count = self.device_count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let mut device = 0;
        // SAFETY: the pointer is to a local.
        let code = unsafe { (self.device_get)(&raw mut device, ordinal as c_int) };
        self.check("cuDeviceGet", code)?;
        Ok(device)
    }

    fn device_count(&self) -> Result<u32, CudaError> {
        let mut count = 0;
        // SAFETY: the pointer is to a local.
        let code = unsafe { (self.device_get_count)(&raw mut count) };
        self.check("cuDeviceGetCount", code)?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    pub(super) fn device_name(&self, device: CUdevice) -> Result<String, CudaError> {
        let mut text = [0 as c_char; 256];
        // SAFETY: the driver writes no more than it is told, its final zero included.
        let code = unsafe { (self.device_get_name)(text.as_mut_ptr(), 255, device) };
        self.check("cuDeviceGetName", code)?;
        // SAFETY: the last of 256 bytes is not the driver's to write, and is a zero.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    }

    pub(super) fn attribute(&self, what: Attribute, device: CUdevice) -> Result<i32, CudaError> {
        let mut value = 0;
        // SAFETY: the pointer is to a local.
        let code = unsafe { (self.device_get_attribute)(&raw mut value, what as c_int, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn anything() -> c_int {
        0
    }

    #[test]
    fn a_driver_without_a_call_is_refused_by_the_calls_name_and_an_optional_one_is_not_missed() {
        let without = |missing: &'static CStr| {
            let find = move |name: &CStr| {
                if name == missing { ptr::null_mut() } else { anything as *mut c_void }
            };
            // SAFETY: nothing of it is called.
            unsafe { Driver::look_up(find) }
        };
        let refused = without(c"cuMemHostRegister_v2").err();
        assert_eq!(refused, Some(CudaError::MissingSymbol { symbol: "cuMemHostRegister_v2" }));
        let taken = without(c"cuMemcpyBatchAsync").expect("it is optional");
        assert!(taken.memcpy_batch_async.is_none());
        assert!(without(c"cuNoSuchCall").expect("all are there").memcpy_batch_async.is_some());
    }
}
