#![expect(unsafe_code, reason = "plays an engine that uses the driver itself")]

use std::ffi::c_void;
use std::ptr;
use undercroft_arena::Span;
use undercroft_stand_in::StandIn;

/// An engine: a context that is current in its thread, and a stream of its own.
pub(super) struct Engine {
    context: *mut c_void,
    pub(super) stream: *mut c_void,
    calls: Calls,
}

/// The driver's calls that it makes.
struct Calls {
    release: unsafe extern "C" fn(i32) -> i32,
    pop: unsafe extern "C" fn(*mut *mut c_void) -> i32,
    destroy: unsafe extern "C" fn(*mut c_void) -> i32,
    to_device: unsafe extern "C" fn(u64, *const c_void, usize, *mut c_void) -> i32,
}

type Retain = unsafe extern "C" fn(*mut *mut c_void, i32) -> i32;
type Push = unsafe extern "C" fn(*mut c_void) -> i32;
type Create = unsafe extern "C" fn(*mut *mut c_void, u32) -> i32;

impl Engine {
    pub(super) fn new(stand_in: &StandIn) -> Self {
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the types are those of the driver's calls; the pointers are to locals, and what
        // is made is ended with the engine.
        unsafe {
            let retain = stand_in.function::<Retain>("cuDevicePrimaryCtxRetain");
            assert_eq!(retain(&raw mut context, 0), 0);
            assert_eq!(stand_in.function::<Push>("cuCtxPushCurrent_v2")(context), 0);
            assert_eq!(stand_in.function::<Create>("cuStreamCreate")(&raw mut stream, 1), 0);
            let calls = Calls {
                release: stand_in.function("cuDevicePrimaryCtxRelease_v2"),
                pop: stand_in.function("cuCtxPopCurrent_v2"),
                destroy: stand_in.function("cuStreamDestroy_v2"),
                to_device: stand_in.function("cuMemcpyHtoDAsync_v2"),
            };
            Self { context, stream, calls }
        }
    }

    /// Writes bytes to the device, on its stream. They stay until that has happened.
    pub(super) fn copy(&self, at: u64, from: &Span) {
        let bytes = from.as_ptr().cast();
        // SAFETY: the test keeps both sides until the stream is through.
        let put = unsafe { (self.calls.to_device)(at, bytes, from.len(), self.stream) };
        assert_eq!(put, 0);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        // SAFETY: the stream and the context are the engine's, and nothing uses them any more.
        unsafe {
            assert_eq!((self.calls.destroy)(self.stream), 0);
            assert_eq!(((self.calls.pop)(&raw mut popped), popped), (0, self.context));
            assert_eq!((self.calls.release)(0), 0);
        }
    }
}
