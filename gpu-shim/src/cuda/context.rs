use super::CudaError;
use super::driver::{Attribute, Driver, SUCCESS, driver};
use cudarc::driver::sys::{CUcontext, CUdevice};
use std::fmt;
use std::ptr;
use std::sync::{Arc, OnceLock};

/// As `CUstreamCaptureMode` numbers it.
const RELAXED: i32 = 2;
/// How often it is tried to enter a context in order to give something back.
const CLEAN_UP_ATTEMPTS: usize = 3;

/// A CUDA context: the engine's own, or the device's primary one.
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    pub(super) device: CUdevice,
    raw: CUcontext,
    /// Whether it is to be released.
    retained: bool,
    /// The process it was made in: a driver does not outlive a fork.
    process: u32,
    /// The first failure that took it along.
    lost: OnceLock<CudaError>,
}

// SAFETY: a context's handle may be used from any thread; the driver has locks of its own.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Context {
    /// The primary context of a device, which PyTorch and all that use the runtime API use too.
    pub(super) fn primary(ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let driver = driver()?;
        let device = driver.device(ordinal)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a local; the release is in `drop`.
        let code = unsafe { (driver.primary_ctx_retain)(&raw mut raw, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(Self {
            driver,
            device,
            raw,
            retained: true,
            process: std::process::id(),
            lost: OnceLock::new(),
        }))
    }

    /// The calling thread's. It is the engine's to keep.
    pub(super) fn current() -> Result<Arc<Self>, CudaError> {
        let driver = driver()?;
        let (mut raw, mut device) = (ptr::null_mut(), 0);
        // SAFETY: the pointer is to a local.
        let code = unsafe { (driver.ctx_get_current)(&raw mut raw) };
        driver.check("cuCtxGetCurrent", code)?;
        if raw.is_null() {
            return Err(CudaError::NoContext);
        }
        // SAFETY: the pointer is to a local, and there is a current context.
        let code = unsafe { (driver.ctx_get_device)(&raw mut device) };
        driver.check("cuCtxGetDevice", code)?;
        Ok(Arc::new(Self {
            driver,
            device,
            raw,
            retained: false,
            process: std::process::id(),
            lost: OnceLock::new(),
        }))
    }

    /// Makes it the calling thread's until the guard goes, whatever the thread had before.
    pub(super) fn enter(&self) -> Result<Entered<'_>, CudaError> {
        self.alive()?;
        self.push()
    }

    /// As [`Context::enter`], also where it was lost: what it has is still to be given back. What
    /// fails for a passing reason is tried again, as nobody comes back for it later.
    /// `None` where nothing can be given back: what was there is left to the end of the process.
    pub(super) fn enter_to_clean_up(&self) -> Option<Entered<'_>> {
        if self.is_foreign() {
            return None;
        }
        (0..CLEAN_UP_ATTEMPTS).find_map(|_| self.push().ok())
    }

    /// As [`Context::enter`], also where we gave the context up: only the driver can say that what
    /// is on its streams has ended.
    pub(super) fn enter_to_settle(&self) -> Result<Entered<'_>, CudaError> {
        if self.is_foreign() { Err(CudaError::Forked) } else { self.push() }
    }

    fn push(&self) -> Result<Entered<'_>, CudaError> {
        // SAFETY: the handle is of a context that is retained, or that the engine keeps.
        let code = unsafe { (self.driver.ctx_push_current)(self.raw) };
        self.check("cuCtxPushCurrent", code)?;
        // An engine may be capturing a graph in another thread, and most captures are broken by
        // whatever any other thread waits for, asks or allocates, unless that one says that it has
        // nothing to do with them.
        let mut mode = RELAXED;
        // SAFETY: the pointer is to a local.
        let code = unsafe { (self.driver.exchange_capture_mode)(&raw mut mode) };
        let entered = Entered { context: self, mode: (code == SUCCESS).then_some(mode) };
        self.check("cuThreadExchangeStreamCaptureMode", code)?;
        Ok(entered)
    }

    /// Whether this process was forked from the one that made it.
    pub(super) fn is_foreign(&self) -> bool {
        std::process::id() != self.process
    }

    /// What a call on this context returned. A failure that loses the context is remembered.
    pub(super) fn check(&self, call: &'static str, code: i32) -> Result<(), CudaError> {
        self.driver.check(call, code).map_err(|error| self.failed(error))
    }

    pub(super) fn failed(&self, error: CudaError) -> CudaError {
        if error.is_sticky() {
            // The first one tells the reason.
            let _earlier = self.lost.set(error.clone());
        }
        error
    }

    /// Nothing is to be begun on it any more.
    pub(super) fn lose(&self, cause: CudaError) {
        let _earlier = self.lost.set(cause);
    }

    /// Fails where the context was lost.
    pub(super) fn alive(&self) -> Result<(), CudaError> {
        if self.is_foreign() {
            return Err(CudaError::Forked);
        }
        match self.lost.get() {
            None => Ok(()),
            Some(cause) => Err(CudaError::Lost { cause: Box::new(cause.clone()) }),
        }
    }

    pub(super) fn attribute(&self, what: Attribute) -> Result<i32, CudaError> {
        self.driver.attribute(what, self.device)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.retained && !self.is_foreign() {
            // SAFETY: it was retained once. What it answers changes nothing.
            let _done = unsafe { (self.driver.primary_ctx_release)(self.device) };
        }
    }
}

/// The calling thread is in the context.
pub(super) struct Entered<'a> {
    context: &'a Context,
    /// The thread's capture mode before.
    mode: Option<i32>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(mut mode) = self.mode {
            // SAFETY: the pointer is to a local.
            let _done = unsafe { (self.context.driver.exchange_capture_mode)(&raw mut mode) };
        }
        let mut popped = ptr::null_mut();
        // SAFETY: the pointer is to a local; what is popped is what was pushed, as guards go in
        // the opposite order they came.
        let _done = unsafe { (self.context.driver.ctx_pop_current)(&raw mut popped) };
    }
}
