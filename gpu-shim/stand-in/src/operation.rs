//! What is queued on a stream.

use crate::handles::Handle;
use crate::kernel::Launch;
use crate::memory::{Memory, Place};
use crate::rows::Rows;
use crate::{Code, state::State};

/// A point in a stream: after its first so many operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) stream: Handle,
    pub(crate) count: u64,
}

/// Memory that an operation touches, as it was when the call was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Touch {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) writes: bool,
    place: Place,
}

impl Touch {
    /// Whether any of these bytes are in it.
    pub(crate) fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start < end && start < self.start + self.bytes
    }

    /// Whether the same memory is still there, pinned if it was.
    pub(crate) fn holds(&self, memory: &Memory) -> bool {
        self.place == Place::Pageable || memory.place(self.start, self.bytes) == Some(self.place)
    }
}

/// What an operation does.
#[derive(Debug)]
pub(crate) enum Work {
    Copies(Vec<Rows>),
    Kernel(Launch),
    /// Nothing: an event, or a wait for one.
    Nothing,
}

/// An operation on its way.
#[derive(Debug)]
pub(crate) struct Operation {
    /// What must be over before it starts, beside what is before it on its stream.
    pub(crate) after: Vec<Point>,
    pub(crate) work: Work,
    pub(crate) touches: Vec<Touch>,
    /// It has waited its `delay_us`.
    pub(crate) delayed: bool,
}

impl Operation {
    pub(crate) fn new(work: Work) -> Self {
        Self { after: Vec::new(), work, touches: Vec::new(), delayed: false }
    }

    pub(crate) fn touches(&self, start: u64, end: u64) -> bool {
        self.touches.iter().any(|touch| touch.overlaps(start, end))
    }

    pub(crate) fn writes(&self, start: u64, end: u64) -> bool {
        self.touches.iter().any(|touch| touch.writes && touch.overlaps(start, end))
    }
}

/// What one side of a copy may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Device,
    /// Its address tells.
    Unified,
}

/// Copies that were judged, to be queued.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    pub(crate) rows: Vec<Rows>,
    pub(crate) touches: Vec<Touch>,
    /// How many of them have a side in ordinary memory.
    pub(crate) pageable: u64,
}

impl Copies {
    /// Takes a copy, if both of its sides are what they should be, for a stream of this context.
    pub(crate) fn add(
        &mut self,
        state: &State,
        context: Handle,
        rows: Rows,
        from: Side,
        to: Side,
    ) -> Result<(), Code> {
        if rows.is_empty() {
            return Ok(());
        }
        let source = judge(&state.memory, context, rows.from, rows.read_span(), from)?;
        let target = judge(&state.memory, context, rows.to, rows.written_span(), to)?;
        let target = Touch { writes: true, ..target };
        if matches!(target.place, Place::Pinned { read_only: true, .. }) {
            return Err(Code::INVALID_VALUE);
        }
        self.pageable += u64::from([source, target].iter().any(|it| it.place == Place::Pageable));
        self.touches.extend([source, target]);
        self.rows.push(rows);
        Ok(())
    }
}

fn judge(
    memory: &Memory,
    context: Handle,
    start: u64,
    bytes: Option<u64>,
    side: Side,
) -> Result<Touch, Code> {
    let bytes = bytes.filter(|_| start != 0).ok_or(Code::INVALID_VALUE)?;
    let place = memory.place(start, bytes).ok_or(Code::INVALID_VALUE)?;
    let fits = match (side, place) {
        (Side::Host, Place::Device { .. }) => false,
        (Side::Device | Side::Unified, Place::Device { context: owner, .. }) => owner == context,
        (Side::Device, _) => false,
        (Side::Host | Side::Unified, _) => true,
    };
    fits.then_some(Touch { start, bytes, writes: false, place }).ok_or(Code::INVALID_VALUE)
}

/// Memory that a kernel touches: the device's or pinned. `None`: it cannot reach it.
pub(crate) fn reachable(
    memory: &Memory,
    context: Handle,
    start: u64,
    bytes: u64,
    writes: bool,
) -> Option<Touch> {
    let place = memory.place(start, bytes)?;
    let reaches = match place {
        Place::Device { context: owner, .. } => owner == context,
        Place::Pinned { read_only, .. } => !(writes && read_only),
        Place::Pageable => false,
    };
    reaches.then_some(Touch { start, bytes, writes, place })
}

/// As few touches that say as much to whoever gives memory back: that is always the whole of an
/// allocation or a pinned range.
pub(crate) fn merge(touches: Vec<Touch>) -> Vec<Touch> {
    let mut merged: Vec<Touch> = Vec::new();
    for touch in touches {
        let same = |known: &&mut Touch| known.place == touch.place && known.writes == touch.writes;
        match merged.iter_mut().find(same) {
            Some(known) => {
                let end = (known.start + known.bytes).max(touch.start + touch.bytes);
                known.start = known.start.min(touch.start);
                known.bytes = end - known.start;
            }
            None => merged.push(touch),
        }
    }
    merged
}
