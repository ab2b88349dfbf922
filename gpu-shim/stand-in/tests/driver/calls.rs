#![expect(unsafe_code, reason = "calls a C library")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use undercroft_stand_in::{Code, StandIn};

pub(crate) const NON_BLOCKING: u32 = 1;
pub(crate) const NO_TIMING: u32 = 2;
pub(crate) const READ_ONLY: u32 = 8;
pub(crate) const HOST: u32 = 1;
pub(crate) const DEVICE: u32 = 2;

/// The driver's calls. What they are given is checked by the library, as far as it can be: the
/// tests here answer for the rest.
pub(crate) struct Driver {
    pub(crate) stand_in: StandIn,
}

macro_rules! plain {
    ($($method:ident $name:literal ($($argument:ident: $kind:ty),*);)*) => {
        impl Driver {
            $(pub(crate) fn $method(&self, $($argument: $kind),*) -> Result<(), Code> {
                type Call = unsafe extern "C" fn($($kind),*) -> i32;
                // SAFETY: this is the function's type, and its arguments are numbers or live here.
                answered(unsafe { self.stand_in.function::<Call>($name)($($argument),*) })
            })*
        }
    };
}

/// The last thing such a call does is to answer through its first argument.
macro_rules! giving {
    ($($method:ident $name:literal ($($argument:ident: $kind:ty),*) $given:ty;)*) => {
        impl Driver {
            $(pub(crate) fn $method(&self, $($argument: $kind),*) -> Result<$given, Code> {
                type Call = unsafe extern "C" fn(*mut $given, $($kind),*) -> i32;
                let mut given = <$given>::default();
                // SAFETY: as above, and what is given has a place.
                answered(unsafe {
                    self.stand_in.function::<Call>($name)(&raw mut given, $($argument),*)
                })?;
                Ok(given)
            })*
        }
    };
}

plain! {
    init "cuInit" (flags: u32);
    release "cuDevicePrimaryCtxRelease_v2" (device: c_int);
    push "cuCtxPushCurrent_v2" (context: u64);
    synchronize "cuCtxSynchronize" ();
    free "cuMemFree_v2" (address: u64);
    register_raw "cuMemHostRegister_v2" (address: *const c_void, bytes: usize, flags: u32);
    unregister_raw "cuMemHostUnregister" (address: *const c_void);
    free_host "cuMemFreeHost" (address: usize);
    destroy_stream "cuStreamDestroy_v2" (stream: u64);
    synchronize_stream "cuStreamSynchronize" (stream: u64);
    wait_event "cuStreamWaitEvent" (stream: u64, event: u64, flags: u32);
    record "cuEventRecord" (event: u64, stream: u64);
    query "cuEventQuery" (event: u64);
    synchronize_event "cuEventSynchronize" (event: u64);
    destroy_event "cuEventDestroy_v2" (event: u64);
    unload "cuModuleUnload" (module: u64);
}

giving! {
    version "cuDriverGetVersion" () c_int;
    device_count "cuDeviceGetCount" () c_int;
    device "cuDeviceGet" (ordinal: c_int) c_int;
    attribute "cuDeviceGetAttribute" (attribute: c_int, device: c_int) c_int;
    total_memory "cuDeviceTotalMem_v2" (device: c_int) usize;
    retain "cuDevicePrimaryCtxRetain" (device: c_int) u64;
    current "cuCtxGetCurrent" () u64;
    pop "cuCtxPopCurrent_v2" () u64;
    current_device "cuCtxGetDevice" () c_int;
    alloc "cuMemAlloc_v2" (bytes: usize) u64;
    alloc_host "cuMemHostAlloc" (bytes: usize, flags: u32) usize;
    device_pointer "cuMemHostGetDevicePointer_v2" (host: *const c_void, flags: u32) u64;
    stream "cuStreamCreate" (flags: u32) u64;
    event "cuEventCreate" (flags: u32) u64;
    load_module_raw "cuModuleLoadData" (image: *const c_char) u64;
    function_raw "cuModuleGetFunction" (module: u64, name: *const c_char) u64;
}

fn answered(code: i32) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(Code(code)) }
}

/// `CUDA_MEMCPY2D`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Copy2D {
    pub(crate) from_x: usize,
    pub(crate) from_y: usize,
    pub(crate) from_kind: u32,
    pub(crate) from_host: usize,
    pub(crate) from_device: u64,
    pub(crate) from_array: usize,
    pub(crate) from_pitch: usize,
    pub(crate) to_x: usize,
    pub(crate) to_y: usize,
    pub(crate) to_kind: u32,
    pub(crate) to_host: usize,
    pub(crate) to_device: u64,
    pub(crate) to_array: usize,
    pub(crate) to_pitch: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Copy2D {
    /// From rows on the host to rows on the device.
    pub(crate) fn to_device(
        from: &[u8],
        from_pitch: usize,
        to: u64,
        to_pitch: usize,
        width: usize,
        height: usize,
    ) -> Self {
        Self {
            from_x: 0,
            from_y: 0,
            from_kind: HOST,
            from_host: from.as_ptr().expose_provenance(),
            from_device: 0,
            from_array: 0,
            from_pitch,
            to_x: 0,
            to_y: 0,
            to_kind: DEVICE,
            to_host: 0,
            to_device: to,
            to_array: 0,
            to_pitch,
            width,
            height,
        }
    }
}

/// `CUmemcpyAttributes`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Attributes {
    pub(crate) order: u32,
    pub(crate) hints: [i32; 4],
    pub(crate) flags: u32,
}

pub(crate) const STREAM_ORDER: Attributes = Attributes { order: 1, hints: [0; 4], flags: 0 };

/// Copies of a batch: to, from, bytes.
pub(crate) type BatchedCopy = (u64, u64, usize);

impl Driver {
    /// Loaded, initialised, with nothing in it.
    pub(crate) fn new() -> Self {
        let stand_in = StandIn::load().unwrap();
        let this = Self { stand_in };
        this.init(0).unwrap();
        this
    }

    /// As [`Driver::new`], with the first device's context current.
    pub(crate) fn with_context() -> Self {
        let this = Self::new();
        let context = this.retain(0).unwrap();
        this.push(context).unwrap();
        this
    }

    /// Gives the context back and holds that nothing is left.
    pub(crate) fn end(&self) {
        self.pop().unwrap();
        self.release(0).unwrap();
        self.stand_in.assert_clean();
    }

    /// Gives the context back and holds that exactly this was wrong, each part of a text.
    pub(crate) fn end_with(&self, violations: &[&str]) {
        self.pop().unwrap();
        self.release(0).unwrap();
        self.violations(violations);
        assert!(self.stand_in.report().leaks().is_empty());
    }

    pub(crate) fn violations(&self, wanted: &[&str]) {
        let found = self.stand_in.violations();
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.contains(wanted), "{found} is not about {wanted}");
        }
        assert_eq!(self.stand_in.report().violations, wanted.len() as u64);
    }

    pub(crate) fn register(&self, bytes: &[u8], flags: u32) -> Result<(), Code> {
        self.register_raw(bytes.as_ptr().cast(), bytes.len(), flags)
    }

    pub(crate) fn unregister(&self, bytes: &[u8]) -> Result<(), Code> {
        self.unregister_raw(bytes.as_ptr().cast())
    }

    pub(crate) fn write(&self, to: u64, from: &[u8]) -> Result<(), Code> {
        type Call = unsafe extern "C" fn(u64, *const u8, usize) -> i32;
        // SAFETY: this is the function's type; it is over when it returns.
        answered(unsafe {
            self.stand_in.function::<Call>("cuMemcpyHtoD_v2")(to, from.as_ptr(), from.len())
        })
    }

    pub(crate) fn read(&self, to: &mut [u8], from: u64) -> Result<(), Code> {
        type Call = unsafe extern "C" fn(*mut u8, u64, usize) -> i32;
        // SAFETY: this is the function's type; it is over when it returns.
        answered(unsafe {
            self.stand_in.function::<Call>("cuMemcpyDtoH_v2")(to.as_mut_ptr(), from, to.len())
        })
    }

    /// The bytes must stay until the copy is over.
    pub(crate) fn write_async(&self, to: u64, from: &[u8], stream: u64) -> Result<(), Code> {
        type Call = unsafe extern "C" fn(u64, *const u8, usize, u64) -> i32;
        let call = "cuMemcpyHtoDAsync_v2";
        // SAFETY: this is the function's type; the tests keep the bytes.
        answered(unsafe {
            self.stand_in.function::<Call>(call)(to, from.as_ptr(), from.len(), stream)
        })
    }

    /// The bytes must stay until the copy is over.
    pub(crate) fn read_async(&self, to: &mut [u8], from: u64, stream: u64) -> Result<(), Code> {
        type Call = unsafe extern "C" fn(*mut u8, u64, usize, u64) -> i32;
        let call = "cuMemcpyDtoHAsync_v2";
        // SAFETY: this is the function's type; the tests keep the bytes.
        answered(unsafe {
            self.stand_in.function::<Call>(call)(to.as_mut_ptr(), from, to.len(), stream)
        })
    }

    pub(crate) fn copy_2d(&self, copy: &Copy2D, stream: u64) -> Result<(), Code> {
        type Call = unsafe extern "C" fn(*const Copy2D, u64) -> i32;
        // SAFETY: this is the function's type; the tests keep the bytes.
        answered(unsafe { self.stand_in.function::<Call>("cuMemcpy2DAsync_v2")(copy, stream) })
    }

    /// The answer, and the index of the copy that was refused.
    pub(crate) fn batch(
        &self,
        copies: &[BatchedCopy],
        attributes: &[(usize, Attributes)],
        stream: u64,
    ) -> (Result<(), Code>, usize) {
        type Call = unsafe extern "C" fn(
            *const u64,
            *const u64,
            *const usize,
            usize,
            *const Attributes,
            *const usize,
            usize,
            *mut usize,
            u64,
        ) -> i32;
        let targets: Vec<u64> = copies.iter().map(|copy| copy.0).collect();
        let sources: Vec<u64> = copies.iter().map(|copy| copy.1).collect();
        let sizes: Vec<usize> = copies.iter().map(|copy| copy.2).collect();
        let indices: Vec<usize> = attributes.iter().map(|(index, _)| *index).collect();
        let attributes: Vec<Attributes> = attributes.iter().map(|(_, it)| *it).collect();
        let mut failed = 0;
        // SAFETY: this is the function's type, and the arrays are as long as is said.
        let code = unsafe {
            self.stand_in.function::<Call>("cuMemcpyBatchAsync")(
                targets.as_ptr(),
                sources.as_ptr(),
                sizes.as_ptr(),
                copies.len(),
                attributes.as_ptr(),
                indices.as_ptr(),
                attributes.len(),
                &raw mut failed,
                stream,
            )
        };
        (answered(code), failed)
    }

    pub(crate) fn load_module(&self, text: &str) -> Result<u64, Code> {
        let text = CString::new(text).unwrap();
        self.load_module_raw(text.as_ptr())
    }

    pub(crate) fn function(&self, module: u64, name: &str) -> Result<u64, Code> {
        let name = CString::new(name).unwrap();
        self.function_raw(module, name.as_ptr())
    }

    /// A launch with the six parameters of our kernels, with `grid` blocks of `threads`.
    pub(crate) fn launch(
        &self,
        function: u64,
        (grid, threads): (u32, u32),
        stream: u64,
        numbers: (u64, [u32; 4]),
        jobs: &[u8; 3_072],
    ) -> Result<(), Code> {
        type Call = unsafe extern "C" fn(
            u64,
            u32,
            u32,
            u32,
            u32,
            u32,
            u32,
            u32,
            u64,
            *const *const c_void,
            *const *const c_void,
        ) -> i32;
        let (strips, rest) = numbers;
        let parameters: [*const c_void; 6] = [
            (&raw const strips).cast(),
            (&raw const rest[0]).cast(),
            (&raw const rest[1]).cast(),
            (&raw const rest[2]).cast(),
            (&raw const rest[3]).cast(),
            jobs.as_ptr().cast(),
        ];
        // SAFETY: this is the function's type, and these are the kernels' parameters.
        answered(unsafe {
            self.stand_in.function::<Call>("cuLaunchKernel")(
                function,
                grid,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream,
                parameters.as_ptr(),
                null(),
            )
        })
    }

    pub(crate) fn name_of(&self, code: Code) -> Result<String, Code> {
        type Call = unsafe extern "C" fn(c_int, *mut *const c_char) -> i32;
        let mut text = null();
        // SAFETY: this is the function's type.
        let code =
            unsafe { self.stand_in.function::<Call>("cuGetErrorName")(code.0, &raw mut text) };
        answered(code)?;
        // SAFETY: it answered with a text that it keeps.
        Ok(unsafe { std::ffi::CStr::from_ptr(text) }.to_str().unwrap().to_owned())
    }

    pub(crate) fn device_name(&self, len: usize) -> String {
        type Call = unsafe extern "C" fn(*mut u8, c_int, c_int) -> i32;
        let mut name = vec![0xff; len];
        // SAFETY: this is the function's type, and the buffer is that long.
        let code = unsafe {
            self.stand_in.function::<Call>("cuDeviceGetName")(name.as_mut_ptr(), len as c_int, 0)
        };
        answered(code).unwrap();
        let end = name.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(name[..end].to_vec()).unwrap()
    }

    /// Pops without a place for the answer.
    pub(crate) fn pop_into_nothing(&self) -> Result<(), Code> {
        type Call = unsafe extern "C" fn(*mut u64) -> i32;
        // SAFETY: this is the function's type, and null is allowed.
        answered(unsafe { self.stand_in.function::<Call>("cuCtxPopCurrent_v2")(null_mut()) })
    }
}
