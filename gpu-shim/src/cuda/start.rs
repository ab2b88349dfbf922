//! How a transfer begins.

use super::CudaError;
use super::device::Shared;
use super::mode::CopyMode;
use super::stream::{EngineEvent, EngineStream, Stream};

/// What of the engine's must have happened before a transfer touches its blocks.
#[derive(Debug, Clone, Copy)]
pub enum After {
    /// Nothing: the engine has waited itself.
    Nothing,
    /// An event that is recorded already.
    Event(EngineEvent),
    /// All that is on a stream at the time of the call.
    Stream(EngineStream),
}

impl After {
    /// Has the stream wait. The context is current.
    pub(super) fn put(self, shared: &Shared, stream: &Stream) -> Result<(), CudaError> {
        match self {
            Self::Nothing => Ok(()),
            Self::Event(EngineEvent(event)) => stream.wait_for(event),
            Self::Stream(EngineStream(engines)) => {
                let event = shared.events.take()?;
                event.record(engines)?;
                // Waiting refers to this record, whatever the event is used for later.
                stream.wait_for(event.raw())
            }
        }
    }
}

/// How one transfer is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct CudaStart {
    pub(super) mode: CopyMode,
    pub(super) by_layer: bool,
    pub(super) after: After,
    /// Whether the device's budget counts.
    pub(super) paced: bool,
}
