//! What a call answers: the numbers and names of `cuda.h`.

use std::ffi::c_char;
use std::fmt;

/// What a driver call answers, `CUresult` of `cuda.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Code(pub i32);

/// A code, its name and a sentence, both NUL-terminated.
type Row = (Code, &'static str, &'static str);

macro_rules! codes {
    ($($constant:ident = $number:literal $name:literal $text:literal)*) => {
        impl Code {
            $(
                #[doc = concat!("`", $name, "`: ", $text, ".")]
                pub const $constant: Self = Self($number);
            )*
        }
        const TABLE: &[Row] = &[
            $((Code::$constant, concat!($name, "\0"), concat!($text, "\0")),)*
        ];
    };
}

codes! {
    SUCCESS = 0 "CUDA_SUCCESS" "no error"
    INVALID_VALUE = 1 "CUDA_ERROR_INVALID_VALUE" "invalid argument"
    OUT_OF_MEMORY = 2 "CUDA_ERROR_OUT_OF_MEMORY" "out of memory"
    NOT_INITIALIZED = 3 "CUDA_ERROR_NOT_INITIALIZED" "initialization error"
    DEINITIALIZED = 4 "CUDA_ERROR_DEINITIALIZED" "driver shutting down"
    NO_DEVICE = 100 "CUDA_ERROR_NO_DEVICE" "no CUDA-capable device is detected"
    INVALID_DEVICE = 101 "CUDA_ERROR_INVALID_DEVICE" "invalid device ordinal"
    INVALID_IMAGE = 200 "CUDA_ERROR_INVALID_IMAGE" "device kernel image is invalid"
    INVALID_CONTEXT = 201 "CUDA_ERROR_INVALID_CONTEXT" "invalid device context"
    NO_BINARY_FOR_GPU = 209 "CUDA_ERROR_NO_BINARY_FOR_GPU" "no kernel image is available for execution on the device"
    ECC_UNCORRECTABLE = 214 "CUDA_ERROR_ECC_UNCORRECTABLE" "uncorrectable ECC error encountered"
    INVALID_PTX = 218 "CUDA_ERROR_INVALID_PTX" "a PTX JIT compilation failed"
    UNSUPPORTED_PTX_VERSION = 222 "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" "the provided PTX was compiled with an unsupported toolchain"
    OPERATING_SYSTEM = 304 "CUDA_ERROR_OPERATING_SYSTEM" "OS call failed or operation not supported on this OS"
    INVALID_HANDLE = 400 "CUDA_ERROR_INVALID_HANDLE" "invalid resource handle"
    NOT_FOUND = 500 "CUDA_ERROR_NOT_FOUND" "named symbol not found"
    NOT_READY = 600 "CUDA_ERROR_NOT_READY" "device not ready"
    ILLEGAL_ADDRESS = 700 "CUDA_ERROR_ILLEGAL_ADDRESS" "an illegal memory access was encountered"
    LAUNCH_OUT_OF_RESOURCES = 701 "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" "too many resources requested for launch"
    LAUNCH_TIMEOUT = 702 "CUDA_ERROR_LAUNCH_TIMEOUT" "the launch timed out and was terminated"
    CONTEXT_IS_DESTROYED = 709 "CUDA_ERROR_CONTEXT_IS_DESTROYED" "context is destroyed"
    HOST_MEMORY_ALREADY_REGISTERED = 712 "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" "part or all of the requested memory range is already mapped"
    HOST_MEMORY_NOT_REGISTERED = 713 "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED" "pointer does not correspond to a registered memory region"
    MISALIGNED_ADDRESS = 716 "CUDA_ERROR_MISALIGNED_ADDRESS" "misaligned address"
    LAUNCH_FAILED = 719 "CUDA_ERROR_LAUNCH_FAILED" "unspecified launch failure"
    NOT_PERMITTED = 800 "CUDA_ERROR_NOT_PERMITTED" "operation not permitted"
    NOT_SUPPORTED = 801 "CUDA_ERROR_NOT_SUPPORTED" "operation not supported"
    STREAM_CAPTURE_UNSUPPORTED = 900 "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" "operation not permitted when stream is capturing"
    UNKNOWN = 999 "CUDA_ERROR_UNKNOWN" "unknown error"
}

impl Code {
    fn row(self) -> Option<&'static Row> {
        TABLE.iter().find(|(code, _, _)| *code == self)
    }

    /// The name as a C string, if there is one.
    pub(crate) fn c_name(self) -> Option<*const c_char> {
        self.row().map(|(_, name, _)| name.as_ptr().cast())
    }

    /// The sentence as a C string, if there is one.
    pub(crate) fn c_text(self) -> Option<*const c_char> {
        self.row().map(|(_, _, text)| text.as_ptr().cast())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some((_, name, _)) => write!(f, "{} ({})", name.trim_end_matches('\0'), self.0),
            None => write!(f, "code {}", self.0),
        }
    }
}
