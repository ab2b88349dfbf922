//! The few calls of the CUDA driver that the engine in little needs. What copies pages has its own
//! in `gpu-shim`; a check that shares them could not see what they do wrong.

#![expect(unsafe_code, reason = "the CUDA driver is a C library")]

use anyhow::{Context as _, Result, bail};
use libloading::{Library, Symbol};
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr;

/// A library by the names the CUDA toolkit and the driver have for it, in the order `gpu-shim`
/// tries them.
const NAMES: &[&str] = &["libcuda.so", "libcuda.so.1"];
/// Not ordered against the legacy default stream.
const NON_BLOCKING: c_uint = 1;

type Handle = *mut c_void;

/// A kernel, memory and a stream on a device's primary context, which is the calling thread's from
/// then on.
#[derive(Debug)]
pub(super) struct Launcher {
    library: Library,
    stream: Handle,
    function: Handle,
}

/// Calls a function of the driver by its name, and makes an error of its answer.
macro_rules! call {
    ($library:expr, $name:literal, $kind:ty, $($argument:expr),* $(,)?) => {{
        // SAFETY: `$kind` is the signature that `cuda.h` gives the function of this name, and the
        // arguments are pointers to locals or handles that the driver gave out.
        let code = unsafe {
            let function: Symbol<'_, $kind> = $library
                .get(concat!($name, "\0").as_bytes())
                .with_context(|| format!("the driver has no {}", $name))?;
            function($($argument),*)
        };
        if code != 0 {
            bail!("{} failed: {code}", $name);
        }
    }};
}

impl Launcher {
    /// Loads a kernel from PTX, whose text ends in a zero.
    pub(super) fn new(ordinal: u32, ptx: &CStr, kernel: &CStr) -> Result<Self> {
        let open = |name: &&str| {
            // SAFETY: loading the driver runs its constructors, as for every user of CUDA.
            unsafe { Library::new(*name) }.ok()
        };
        let library = NAMES.iter().find_map(open).context("there is no CUDA driver")?;
        call!(library, "cuInit", unsafe extern "C" fn(c_uint) -> c_int, 0);
        let (mut device, mut context) = (0, ptr::null_mut());
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        call!(library, "cuDeviceGet", Get, &raw mut device, ordinal as c_int);
        type Retain = unsafe extern "C" fn(*mut Handle, c_int) -> c_int;
        // Released with the process.
        call!(library, "cuDevicePrimaryCtxRetain", Retain, &raw mut context, device);
        type Push = unsafe extern "C" fn(Handle) -> c_int;
        call!(library, "cuCtxPushCurrent_v2", Push, context);
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        type Load = unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int;
        call!(library, "cuModuleLoadData", Load, &raw mut module, ptx.as_ptr().cast());
        type Find = unsafe extern "C" fn(*mut Handle, Handle, *const std::ffi::c_char) -> c_int;
        call!(library, "cuModuleGetFunction", Find, &raw mut function, module, kernel.as_ptr());
        let mut stream = ptr::null_mut();
        type Create = unsafe extern "C" fn(*mut Handle, c_uint) -> c_int;
        call!(library, "cuStreamCreate", Create, &raw mut stream, NON_BLOCKING);
        Ok(Self { library, stream, function })
    }

    /// Memory on the device, not set to anything. It goes with the process.
    pub(super) fn allocate(&self, bytes: u64) -> Result<u64> {
        let mut at = 0;
        type Allocate = unsafe extern "C" fn(*mut u64, usize) -> c_int;
        call!(self.library, "cuMemAlloc_v2", Allocate, &raw mut at, bytes as usize);
        Ok(at)
    }

    /// An attribute of the device, by its number in `cuda.h`.
    pub(super) fn attribute(&self, ordinal: u32, number: c_int) -> Result<i32> {
        let mut value = 0;
        type Ask = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        // The driver numbers its devices from 0: the handle of one is its number.
        let device = ordinal as c_int;
        call!(self.library, "cuDeviceGetAttribute", Ask, &raw mut value, number, device);
        Ok(value)
    }

    /// Puts the kernel on the stream, with parameters of eight bytes each.
    ///
    /// # Safety
    /// They are the kernel's parameters, and the memory they are addresses of is as long as the
    /// kernel takes it to be.
    pub(super) unsafe fn launch(
        &self,
        blocks: u32,
        threads: u32,
        mut values: [u64; 3],
    ) -> Result<()> {
        let mut parameters = values.each_mut().map(|value| ptr::from_mut(value).cast::<c_void>());
        type Launch = unsafe extern "C" fn(
            Handle,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            Handle,
            *mut Handle,
            *mut Handle,
        ) -> c_int;
        call!(
            self.library,
            "cuLaunchKernel",
            Launch,
            self.function,
            blocks,
            1,
            1,
            threads,
            1,
            1,
            0,
            self.stream,
            parameters.as_mut_ptr(),
            ptr::null_mut(),
        );
        Ok(())
    }

    /// Waits until all that was launched is over.
    pub(super) fn synchronize(&self) -> Result<()> {
        type Wait = unsafe extern "C" fn(Handle) -> c_int;
        call!(self.library, "cuStreamSynchronize", Wait, self.stream);
        Ok(())
    }
}
