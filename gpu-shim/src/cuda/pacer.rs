use super::flight::Flight;
use crate::DeviceError;
use crossbeam_channel::{Sender, TrySendError};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Transfers that may wait for their turn.
const QUEUE: usize = 1024;

/// Puts transfers on their streams as their budget allows, so that nobody who starts one waits for
/// that. Dropping it finishes what was given to it.
#[derive(Debug)]
pub(super) struct Pacer {
    flights: Option<Sender<Arc<Flight>>>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    pub(super) fn start() -> std::io::Result<Self> {
        let (flights, given) = crossbeam_channel::bounded::<Arc<Flight>>(QUEUE);
        let thread =
            std::thread::Builder::new().name("undercroft-pace".into()).spawn(move || {
                for flight in given {
                    // Who waits for the flight hears how it failed.
                    let _told = flight.put();
                }
            })?;
        Ok(Self { flights: Some(flights), thread: Some(thread) })
    }

    pub(super) fn submit(&self, flight: &Arc<Flight>) -> Result<(), DeviceError> {
        let sent = self.flights.as_ref().map(|flights| flights.try_send(Arc::clone(flight)));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(TrySendError::Full(_))) => Err(DeviceError::Busy { limit: QUEUE }),
            Some(Err(TrySendError::Disconnected(_))) | None => {
                Err(DeviceError::Lost { reason: "the thread that paces copies ended".into() })
            }
        }
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.flights = None;
        if let Some(thread) = self.thread.take() {
            // Flights fail, they do not panic.
            let _ended = thread.join();
        }
    }
}
