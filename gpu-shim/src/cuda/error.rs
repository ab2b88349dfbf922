use thiserror::Error;

/// What can go wrong with a CUDA device. Cheap to clone: the error that lost a device is told to
/// every later call.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No library to load.
    #[error(
        "there is no CUDA driver on this machine (libcuda.so.1 is not to be loaded); \
         use the device `host`"
    )]
    NoDriver,
    /// A driver that lacks a call every supported one has.
    #[error("the CUDA driver has no {symbol}: it is older than CUDA 12.0, or broken")]
    MissingSymbol {
        /// The call's name.
        symbol: &'static str,
    },
    /// A driver older than the oldest supported one.
    #[error(
        "the CUDA driver supports CUDA {}.{}, allowed 12.0 and later (driver 525)",
        .found / 1000, .found % 1000 / 10
    )]
    TooOld {
        /// Its version as the driver says it: 1000 × major + 10 × minor.
        found: i32,
    },
    /// A device that is not there.
    #[error("there is no cuda:{ordinal}, the driver sees {count} devices")]
    NoDevice {
        /// The one asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The engine's context was asked for, and the calling thread has none.
    #[error("the calling thread has no current CUDA context")]
    NoContext,
    /// A stream of the engine's is being captured: what is put on it would become part of a graph.
    #[error("the engine is capturing a graph on this stream; copy after it has ended")]
    Capturing,
    /// A driver does not outlive a fork.
    #[error("this process was forked from the one that made the device")]
    Forked,
    /// An address that is not what a layout says.
    #[error("{at:#x} is not memory of the device: {found}")]
    NotDeviceMemory {
        /// The address.
        at: u64,
        /// What is there instead.
        found: String,
    },
    /// A mode that this device or driver does not have.
    #[error("copies by {mode} are not possible here: {reason}")]
    NoMode {
        /// The mode asked for.
        mode: &'static str,
        /// Why not.
        reason: String,
    },
    /// A call failed.
    #[error("{call} failed: {name} ({code})")]
    Call {
        /// The call's name.
        call: &'static str,
        /// What it returned.
        code: i32,
        /// The driver's name for that.
        name: String,
    },
    /// An earlier failure took the context with it: nothing on it works any more.
    #[error("the device was lost earlier: {cause}")]
    Lost {
        /// What the first failure was.
        cause: Box<Self>,
    },
}

impl CudaError {
    /// The driver's code, where it was a call that failed.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Call { code, .. } => Some(*code),
            Self::Lost { cause } => cause.code(),
            _ => None,
        }
    }

    /// Whether it passes: somebody captures a graph just now.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Capturing => true,
            Self::Call { code, .. } => CAPTURE.contains(code),
            _ => false,
        }
    }

    /// Whether what the context holds is out of reach from now on: every later call on it fails.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Forked => true,
            Self::Call { code, .. } => STICKY.contains(code),
            _ => false,
        }
    }
}

/// Codes of calls that a capture of some stream in this process forbids.
const CAPTURE: &[i32] = &[900, 901, 902, 903, 904, 905, 906, 907, 908];

/// Codes after which a context is not to be used any more, by `cuda.h`: not initialised (in a
/// forked child) or shut down, device unavailable, a context that is gone, uncorrectable memory
/// and link errors, and what a kernel leaves behind that broke a rule.
const STICKY: &[i32] = &[
    3, 4, 46, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 722, 999,
];
