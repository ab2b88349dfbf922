//! The driver calls by name, and what is true of each.

use crate::Code;

macro_rules! calls {
    ($($variant:ident $name:literal)*) => {
        /// A call of the driver.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Call { $($variant),* }

        impl Call {
            pub(crate) const ALL: &[(Self, &str)] = &[$((Self::$variant, $name)),*];
        }
    };
}

calls! {
    Init "cuInit"
    DriverGetVersion "cuDriverGetVersion"
    GetErrorName "cuGetErrorName"
    GetErrorString "cuGetErrorString"
    DeviceGetCount "cuDeviceGetCount"
    DeviceGet "cuDeviceGet"
    DeviceGetName "cuDeviceGetName"
    DeviceGetAttribute "cuDeviceGetAttribute"
    DeviceTotalMem "cuDeviceTotalMem_v2"
    PrimaryCtxRetain "cuDevicePrimaryCtxRetain"
    PrimaryCtxRelease "cuDevicePrimaryCtxRelease_v2"
    CtxGetCurrent "cuCtxGetCurrent"
    CtxPushCurrent "cuCtxPushCurrent_v2"
    CtxPopCurrent "cuCtxPopCurrent_v2"
    CtxGetDevice "cuCtxGetDevice"
    CtxSynchronize "cuCtxSynchronize"
    ThreadExchangeStreamCaptureMode "cuThreadExchangeStreamCaptureMode"
    StreamIsCapturing "cuStreamIsCapturing"
    PointerGetAttribute "cuPointerGetAttribute"
    MemAlloc "cuMemAlloc_v2"
    MemFree "cuMemFree_v2"
    MemHostRegister "cuMemHostRegister_v2"
    MemHostUnregister "cuMemHostUnregister"
    MemHostGetDevicePointer "cuMemHostGetDevicePointer_v2"
    MemHostAlloc "cuMemHostAlloc"
    MemFreeHost "cuMemFreeHost"
    StreamCreate "cuStreamCreate"
    StreamDestroy "cuStreamDestroy_v2"
    StreamSynchronize "cuStreamSynchronize"
    StreamWaitEvent "cuStreamWaitEvent"
    EventCreate "cuEventCreate"
    EventRecord "cuEventRecord"
    EventQuery "cuEventQuery"
    EventSynchronize "cuEventSynchronize"
    EventDestroy "cuEventDestroy_v2"
    MemcpyHtoD "cuMemcpyHtoD_v2"
    MemcpyDtoH "cuMemcpyDtoH_v2"
    MemcpyHtoDAsync "cuMemcpyHtoDAsync_v2"
    MemcpyDtoHAsync "cuMemcpyDtoHAsync_v2"
    Memcpy2DAsync "cuMemcpy2DAsync_v2"
    MemcpyBatchAsync "cuMemcpyBatchAsync"
    ModuleLoadData "cuModuleLoadData"
    ModuleUnload "cuModuleUnload"
    ModuleGetFunction "cuModuleGetFunction"
    LaunchKernel "cuLaunchKernel"
}

impl Call {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(call, _)| *call)
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Gives something back. Such calls work on a dead context too.
    pub(crate) fn destroys(self) -> bool {
        matches!(
            self,
            Self::PrimaryCtxRelease
                | Self::MemFree
                | Self::MemHostUnregister
                | Self::MemFreeHost
                | Self::StreamDestroy
                | Self::EventDestroy
                | Self::ModuleUnload
        )
    }

    /// Works on a context that has died: what destroys, and what has to be called around that.
    pub(crate) fn works_on_the_dead(self) -> bool {
        self.destroys()
            || matches!(self, Self::CtxGetCurrent | Self::CtxPushCurrent | Self::CtxPopCurrent)
    }

    /// Works before `cuInit`.
    pub(crate) fn needs_no_init(self) -> bool {
        matches!(
            self,
            Self::Init
                | Self::DriverGetVersion
                | Self::GetErrorName
                | Self::GetErrorString
                | Self::ThreadExchangeStreamCaptureMode
        )
    }

    /// Breaks a capture that is under way in this process, unless the thread's mode is relaxed.
    pub(crate) fn is_unsafe_in_a_capture(self) -> bool {
        matches!(
            self,
            Self::CtxSynchronize
                | Self::MemAlloc
                | Self::MemFree
                | Self::MemHostRegister
                | Self::MemHostUnregister
                | Self::MemHostAlloc
                | Self::MemFreeHost
                | Self::StreamSynchronize
                | Self::EventQuery
                | Self::EventSynchronize
                | Self::MemcpyHtoD
                | Self::MemcpyDtoH
                | Self::ModuleLoadData
        )
    }

    /// What the call may answer when nothing is wrong with what it was given. The calls that wait
    /// or look have none: they tell of operations, which fail by themselves.
    pub(crate) fn plausible_failures(self) -> &'static [Code] {
        match self {
            Self::GetErrorName
            | Self::GetErrorString
            | Self::ThreadExchangeStreamCaptureMode
            | Self::StreamIsCapturing
            | Self::PointerGetAttribute
            | Self::CtxPushCurrent
            | Self::CtxPopCurrent
            | Self::CtxSynchronize
            | Self::StreamSynchronize
            | Self::EventQuery
            | Self::EventSynchronize => &[],
            Self::Init => &[Code::OPERATING_SYSTEM, Code::UNKNOWN],
            Self::DriverGetVersion
            | Self::DeviceGetCount
            | Self::DeviceGet
            | Self::DeviceGetName
            | Self::DeviceGetAttribute
            | Self::DeviceTotalMem
            | Self::CtxGetCurrent
            | Self::CtxGetDevice => &[Code::DEINITIALIZED],
            Self::MemHostRegister => {
                &[Code::OUT_OF_MEMORY, Code::INVALID_VALUE, Code::OPERATING_SYSTEM]
            }
            Self::MemHostGetDevicePointer => &[Code::INVALID_VALUE],
            Self::PrimaryCtxRetain
            | Self::MemAlloc
            | Self::MemHostAlloc
            | Self::StreamCreate
            | Self::EventCreate
            | Self::ModuleLoadData
            | Self::EventRecord
            | Self::StreamWaitEvent => &[Code::OUT_OF_MEMORY],
            Self::MemcpyHtoD
            | Self::MemcpyDtoH
            | Self::MemcpyHtoDAsync
            | Self::MemcpyDtoHAsync
            | Self::Memcpy2DAsync
            | Self::MemcpyBatchAsync => &[Code::OUT_OF_MEMORY, Code::INVALID_VALUE],
            Self::ModuleGetFunction => &[Code::NOT_FOUND],
            Self::LaunchKernel => &[Code::LAUNCH_OUT_OF_RESOURCES, Code::OUT_OF_MEMORY],
            Self::PrimaryCtxRelease
            | Self::MemFree
            | Self::MemHostUnregister
            | Self::MemFreeHost
            | Self::StreamDestroy
            | Self::EventDestroy
            | Self::ModuleUnload => &[Code::DEINITIALIZED],
        }
    }
}
