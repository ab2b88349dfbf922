use super::CudaError;
use super::context::Context;
use super::driver::{NOT_READY, SUCCESS};
use cudarc::driver::sys::{CUevent, CUstream};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Not ordered against the legacy default stream, which an engine's own work may be on.
const NON_BLOCKING: u32 = 1;
/// How long it is tried to find out whether a stream is through, and the pause between attempts.
const SETTLING: Duration = Duration::from_secs(10);
const SETTLING_PAUSE: Duration = Duration::from_micros(100);
/// Nobody asks when it happened, which makes recording and asking cheaper.
const DISABLE_TIMING: u32 = 2;

/// A stream of the engine's, by its handle.
#[derive(Debug, Clone, Copy)]
pub struct EngineStream(pub(super) CUstream);

/// An event of the engine's, by its handle.
#[derive(Debug, Clone, Copy)]
pub struct EngineEvent(pub(super) CUevent);

// SAFETY: handles of streams and events may be used from any thread.
unsafe impl Send for EngineStream {}
// SAFETY: as above.
unsafe impl Sync for EngineStream {}
// SAFETY: as above.
unsafe impl Send for EngineEvent {}
// SAFETY: as above.
unsafe impl Sync for EngineEvent {}

impl EngineStream {
    /// `handle` is a `CUstream`, which is also a `cudaStream_t`.
    ///
    /// # Safety
    /// It is a stream of the context that the device it is given to is in, and outlives it.
    #[must_use]
    pub unsafe fn new(handle: *mut std::ffi::c_void) -> Self {
        Self(handle.cast())
    }
}

impl EngineEvent {
    /// Whether it has happened. The context is current.
    pub(super) fn has_happened(self, context: &Context) -> Result<bool, CudaError> {
        // SAFETY: the event lives, by its owner's word.
        match unsafe { (context.driver.event_query)(self.0) } {
            SUCCESS => Ok(true),
            NOT_READY => Ok(false),
            code => context.check("cuEventQuery", code).map(|()| true),
        }
    }

    /// `handle` is a `CUevent`, which is also a `cudaEvent_t`.
    ///
    /// # Safety
    /// It is an event of the context that the device it is given to is in, recorded already, and
    /// is not destroyed before the call it is given to has returned.
    #[must_use]
    pub unsafe fn new(handle: *mut std::ffi::c_void) -> Self {
        Self(handle.cast())
    }
}

/// Fails while the engine captures a graph on a stream.
pub(super) fn check_not_capturing(context: &Context, stream: CUstream) -> Result<(), CudaError> {
    let mut status = 0;
    // SAFETY: the stream lives, by its owner's word; the pointer is to a local.
    let code = unsafe { (context.driver.stream_is_capturing)(stream, &raw mut status) };
    context.check("cuStreamIsCapturing", code)?;
    if status == 0 { Ok(()) } else { Err(CudaError::Capturing) }
}

/// A stream, ours or the engine's.
pub(super) struct Stream {
    context: Arc<Context>,
    pub(super) raw: CUstream,
    pub(super) is_ours: bool,
    /// Held while the driver is asked how it stands with the stream. It may tell of a failure once
    /// only, to whoever asks first: all copies that were on the stream then must hear of it.
    failures: Mutex<Failures>,
}

/// What the driver said to the last question that failed, and how many did.
#[derive(Debug, Default)]
struct Failures {
    count: u64,
    last: Option<CudaError>,
}

/// How often a stream had failed when somebody began to put copies on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Since(u64);

// SAFETY: a stream's handle may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("is_ours", &self.is_ours).finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(
        context: &Arc<Context>,
        engines: Option<EngineStream>,
    ) -> Result<Self, CudaError> {
        if let Some(EngineStream(raw)) = engines {
            let (context, failures) = (Arc::clone(context), Mutex::default());
            return Ok(Self { context, raw, is_ours: false, failures });
        }
        let _entered = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a local, and the context is current.
        let code = unsafe { (context.driver.stream_create)(&raw mut raw, NON_BLOCKING) };
        context.check("cuStreamCreate", code)?;
        Ok(Self { context: Arc::clone(context), raw, is_ours: true, failures: Mutex::default() })
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands now.
    pub(super) fn since(&self) -> Since {
        Since(self.failures().count)
    }

    /// Whether an event on it has happened, with nothing on it having failed since.
    pub(super) fn has_passed(&self, event: &Event, since: Since) -> Result<bool, CudaError> {
        let mut failures = self.failures();
        let happened = failures.note(event.has_happened())?;
        failures.unless_since(since).map(|()| happened)
    }

    /// What is put on it from now on happens after the event.
    pub(super) fn wait_for(&self, event: CUevent) -> Result<(), CudaError> {
        // SAFETY: stream and event live, by their owner's word where they are the engine's.
        let code = unsafe { (self.context.driver.stream_wait_event)(self.raw, event, 0) };
        self.context.check("cuStreamWaitEvent", code)
    }

    /// Waits until all that was put on it is over. Meanwhile nobody else is told how it stands.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        if !self.is_ours {
            self.check_not_capturing()?;
        }
        let mut failures = self.failures();
        // SAFETY: the stream lives.
        let code = unsafe { (self.context.driver.stream_synchronize)(self.raw) };
        failures.note(self.context.check("cuStreamSynchronize", code))
    }

    /// Waits until all that was put on it is over, also in a context that we gave up: an answer that
    /// may be about something else is not taken for its end. `false`: it could not be found out.
    pub(super) fn settle(&self, events: &Arc<Events>) -> bool {
        let until = Instant::now() + SETTLING;
        loop {
            match self.pass(events) {
                Ok(()) => return true,
                // The driver has ended all of the context's work.
                Err(error) if error.is_sticky() => return true,
                Err(_) if Instant::now() >= until => return false,
                Err(_) => std::thread::sleep(SETTLING_PAUSE),
            }
        }
    }

    /// Waits for an event behind all that is on it.
    fn pass(&self, events: &Arc<Events>) -> Result<(), CudaError> {
        let _entered = self.context.enter_to_settle()?;
        if !self.is_ours {
            self.check_not_capturing()?;
        }
        let event = events.take()?;
        event.record(self.raw)?;
        while !self.failures().note(event.has_happened())? {
            std::thread::sleep(SETTLING_PAUSE);
        }
        Ok(())
    }

    /// Fails while the engine captures a graph on it.
    pub(super) fn check_not_capturing(&self) -> Result<(), CudaError> {
        check_not_capturing(&self.context, self.raw)
    }
}

impl Failures {
    /// Fails where somebody has heard of a failure since.
    fn unless_since(&self, since: Since) -> Result<(), CudaError> {
        match &self.last {
            Some(error) if Since(self.count) != since => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn note<T>(&mut self, answer: Result<T, CudaError>) -> Result<T, CudaError> {
        if let Err(error) = &answer {
            self.count += 1;
            self.last = Some(error.clone());
        }
        answer
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.is_ours {
            let Some(_entered) = self.context.enter_to_clean_up() else {
                return;
            };
            // SAFETY: it was made here and nobody has its handle any more.
            let _done = unsafe { (self.context.driver.stream_destroy)(self.raw) };
        }
    }
}

/// Events that are free, so that a transfer need not make its own.
#[derive(Debug)]
pub(super) struct Events {
    context: Arc<Context>,
    free: Mutex<Vec<RawEvent>>,
}

#[derive(Debug)]
struct RawEvent(CUevent);

// SAFETY: an event's handle may be used from any thread.
unsafe impl Send for RawEvent {}
// SAFETY: as above.
unsafe impl Sync for RawEvent {}

impl Events {
    pub(super) fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context, free: Mutex::default() })
    }

    /// An event. The context is current.
    pub(super) fn take(self: &Arc<Self>) -> Result<Event, CudaError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let raw = match free {
            Some(raw) => raw,
            None => {
                let mut raw = ptr::null_mut();
                // SAFETY: the pointer is to a local, and the context is current.
                let code =
                    unsafe { (self.context.driver.event_create)(&raw mut raw, DISABLE_TIMING) };
                self.context.check("cuEventCreate", code)?;
                RawEvent(raw)
            }
        };
        Ok(Event { raw: ManuallyDrop::new(raw), pool: Arc::clone(self) })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let Some(_entered) = self.context.enter_to_clean_up() else {
            return;
        };
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for RawEvent(raw) in free.drain(..) {
            // SAFETY: it was made here, and who took it has given it back.
            let _done = unsafe { (self.context.driver.event_destroy)(raw) };
        }
    }
}

/// An event on loan.
#[derive(Debug)]
pub(super) struct Event {
    raw: ManuallyDrop<RawEvent>,
    pool: Arc<Events>,
}

impl Event {
    pub(super) fn raw(&self) -> CUevent {
        self.raw.0
    }

    /// It happens when all that is on the stream by now is over.
    pub(super) fn record(&self, stream: CUstream) -> Result<(), CudaError> {
        // SAFETY: stream and event live.
        let code = unsafe { (self.pool.context.driver.event_record)(self.raw(), stream) };
        self.pool.context.check("cuEventRecord", code)
    }

    /// Whether it has happened.
    fn has_happened(&self) -> Result<bool, CudaError> {
        // SAFETY: the event lives.
        match unsafe { (self.pool.context.driver.event_query)(self.raw()) } {
            SUCCESS => Ok(true),
            NOT_READY => Ok(false),
            code => self.pool.context.check("cuEventQuery", code).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here.
        let raw = unsafe { ManuallyDrop::take(&mut self.raw) };
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(raw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_one_hears_of_is_everybodys_who_was_there_and_nobodys_who_came_later() {
        let mut failures = Failures::default();
        let early = Since(failures.count);
        assert_eq!(failures.unless_since(early), Ok(()));
        assert_eq!(failures.note(Err::<bool, _>(CudaError::NoContext)), Err(CudaError::NoContext));
        // The driver says that all is well when the next one asks.
        assert_eq!(failures.note(Ok(true)), Ok(true));
        assert_eq!(failures.unless_since(early), Err(CudaError::NoContext));
        assert_eq!(failures.unless_since(Since(failures.count)), Ok(()));
    }
}
