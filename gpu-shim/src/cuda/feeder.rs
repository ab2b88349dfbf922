use super::CudaError;
use super::context::Context;
use super::flight::Flight;
use crate::DeviceError;
use crossbeam_channel::{Sender, TrySendError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Transfers that may wait for their turn.
const QUEUE: usize = 1024;

/// Puts transfers of one direction on their stream in a thread of its own: those that a budget
/// holds up, and those of so many calls that whoever starts them would wait for that, or for the
/// driver, whose queue is bounded. Dropping it finishes what was given to it.
#[derive(Debug)]
pub(super) struct Feeder {
    context: Arc<Context>,
    flights: Option<Sender<Arc<Flight>>>,
    /// What was given and is not on its stream.
    pending: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Feeder {
    pub(super) fn start(context: &Arc<Context>, name: &str) -> std::io::Result<Self> {
        let (flights, given) = crossbeam_channel::bounded::<Arc<Flight>>(QUEUE);
        let pending = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&pending);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            for flight in given {
                // Who waits for the flight hears how it failed. A panic is our bug, and must not
                // become a wait without end.
                if catch_unwind(AssertUnwindSafe(|| flight.put())).is_err() {
                    let reason = "putting it on its stream panicked".to_owned();
                    flight.fail(CudaError::NoMode { mode: flight.start.mode.name(), reason });
                }
                left.fetch_sub(1, Ordering::Release);
            }
        })?;
        let (context, flights) = (Arc::clone(context), Some(flights));
        Ok(Self { context, flights, pending, thread: Some(thread) })
    }

    /// Whether something was given that is not on its stream yet.
    pub(super) fn is_busy(&self) -> bool {
        self.pending.load(Ordering::Acquire) > 0
    }

    pub(super) fn submit(&self, flight: &Arc<Flight>) -> Result<(), DeviceError> {
        self.pending.fetch_add(1, Ordering::Relaxed);
        let sent = self.flights.as_ref().map(|flights| flights.try_send(Arc::clone(flight)));
        if matches!(sent, Some(Ok(()))) {
            return Ok(());
        }
        self.pending.fetch_sub(1, Ordering::Relaxed);
        match sent {
            Some(Err(TrySendError::Full(_))) => Err(DeviceError::Busy { limit: QUEUE }),
            _ => Err(DeviceError::Lost { reason: "the thread that begins copies ended".into() }),
        }
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.flights = None;
        let thread = self.thread.take();
        if self.context.is_foreign() {
            // The thread is the parent's.
            std::mem::forget(thread);
        } else if let Some(thread) = thread {
            // What panics in it is caught.
            let _ended = thread.join();
        }
    }
}
