//! Events: points in streams.

use crate::Code;
use crate::calls::Call;
use crate::handles::Handle;
use crate::operation::Point;
use crate::state::State;

/// All flags of `cuEventCreate`: blocking wait, no timing, between processes.
pub(crate) const EVENT_FLAGS: u32 = 7;
/// Between processes: not offered.
pub(crate) const EVENT_INTERPROCESS: u32 = 4;

/// A point in a stream, once recorded.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) context: Handle,
    /// Where it was last recorded.
    pub(crate) recorded: Option<Point>,
}

impl State {
    /// The point an event stands for.
    pub(crate) fn event(&mut self, call: Call, handle: Handle) -> Result<Option<Point>, Code> {
        let Some(event) = self.events.get(handle) else {
            let stale = self.events.is_stale(handle);
            return Err(self.no_object(call, "event", handle, stale));
        };
        self.contexts.check(event.context, call)?;
        Ok(event.recorded)
    }

    /// What whoever waited for a point learns: the death of the context, or a failure before it.
    pub(crate) fn outcome(&mut self, point: Point) -> Result<(), Code> {
        let Some(stream) = self.streams.get_mut(point.stream) else {
            return Ok(());
        };
        let failure = stream.tell_failure(point.count);
        let context = stream.context;
        let dead = self.contexts.table.get(context).and_then(|context| context.dead);
        dead.or(failure).map_or(Ok(()), Err)
    }
}
