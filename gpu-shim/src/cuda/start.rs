//! How a transfer begins.

use super::CudaError;
use super::device::Shared;
use super::mode::CopyMode;
use super::stream::{EngineEvent, EngineStream, Event, check_not_capturing};
use std::sync::Arc;

/// What of the engine's must have happened before a transfer touches its blocks.
#[derive(Debug, Clone, Copy)]
pub enum After {
    /// Nothing: the engine has waited itself.
    Nothing,
    /// An event that is recorded already, outside of a capture.
    Event(EngineEvent),
    /// All that is on a stream at the time of the call.
    Stream(EngineStream),
}

impl After {
    /// An event of ours that happens then. The engine's own handles are used here and never again.
    pub(super) fn note(self, shared: &Shared) -> Result<Option<Arc<Event>>, CudaError> {
        let stream = match self {
            Self::Nothing => return Ok(None),
            Self::Event(_) => shared.relay.raw,
            Self::Stream(EngineStream(stream)) => stream,
        };
        let _entered = shared.context.enter()?;
        match self {
            // Behind what an earlier one waits for it would wait as well.
            Self::Event(event) if event.has_happened(&shared.context)? => return Ok(None),
            Self::Event(EngineEvent(event)) => shared.relay.wait_for(event)?,
            _ => check_not_capturing(&shared.context, stream)?,
        }
        let event = shared.events.take()?;
        event.record(stream)?;
        Ok(Some(Arc::new(event)))
    }
}

/// How one transfer is made.
#[derive(Debug, Clone)]
pub(super) struct CudaStart {
    pub(super) mode: CopyMode,
    pub(super) by_layer: bool,
    pub(super) after: Option<Arc<Event>>,
    /// Whether the device's budget counts.
    pub(super) paced: bool,
}
