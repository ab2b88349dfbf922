//! Zeroing segments ahead of their first use, while the device has nothing better to do.

use super::{Machine, Task};
use crate::engine::{Engine, Io, Kind};
use crate::format::BLOCK;
use crate::storage::block_memory;
use std::ops::Range;
use std::time::Duration;

/// Bytes zeroed by one transfer.
const ZERO_BYTES: u64 = 1 << 20;

/// What is left to be zeroed of a segment: a range of the file.
pub(super) type Zeroing = Range<u64>;

impl Machine {
    /// Zeroes a piece of the segment that is opened next, if nothing waits for the device and it
    /// is not busy. One piece is under way at a time.
    pub(super) fn zero_ahead(&mut self, engine: &mut dyn Engine, now: Duration) {
        let busy = self.pages_in_flight > self.depth.now() / 2 || !self.writes.is_empty();
        if !self.zeroes || busy || self.zeros_in_flight || !self.watch.takes_writes() {
            return;
        }
        if self.zeroing.is_none() {
            self.zeroing = self.writer.begin_zeroing();
        }
        let Some(rest) = self.zeroing.take() else { return };
        // An append that waits for a segment gets this one as it is.
        if self.closing || rest.is_empty() || !self.waiting.is_empty() {
            return self.writer.end_zeroing(rest.is_empty());
        }
        let zeros = match self.zeros.take() {
            Some(zeros) => Ok(zeros),
            None => block_memory(ZERO_BYTES / BLOCK),
        };
        let Ok(zeros) = zeros else {
            return self.writer.end_zeroing(false);
        };
        let bytes = (rest.end - rest.start).min(ZERO_BYTES);
        let piece = zeros.sub(0, bytes as usize).expect("a piece is no longer than the zeros");
        self.zeros = Some(zeros);
        self.zeros_in_flight = true;
        let task = self.tasks.insert(Task::Zero(rest.start + bytes..rest.end));
        self.launch(Io::new(task, Kind::Write, rest.start, Some(piece)), engine, now);
    }

    /// A piece was zeroed, or could not be.
    pub(super) fn zeroed(&mut self, rest: Zeroing, io: &Io, ok: bool) {
        self.zeros_in_flight = false;
        if ok {
            self.counters.zeroed_bytes += io.span.as_ref().map_or(0, |span| span.len() as u64);
            self.zeroing = Some(rest);
        } else {
            self.writer.end_zeroing(false);
        }
    }
}
