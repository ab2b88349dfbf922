//! The device as a page log's engine.

use super::disk::LyingDisk;
use super::flight::Flight;
use std::io;
use std::time::Duration;
use undercroft_ssd_tier::{Done, Engine, Io};

/// Moves the bytes of a page log to and from a lying device, in any order.
#[derive(Debug)]
pub(crate) struct LyingEngine {
    disk: LyingDisk,
}

impl LyingEngine {
    pub(super) fn new(disk: LyingDisk) -> Self {
        Self { disk }
    }
}

impl Engine for LyingEngine {
    fn name(&self) -> &'static str {
        "lying"
    }

    fn start(&mut self, io: Io) {
        self.disk.state().depart(io);
    }

    /// Reports what is due; time passes elsewhere.
    fn wait(&mut self, _timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        let mut state = self.disk.state();
        let now = state.now;
        let flying = std::mem::take(&mut state.flying).into_iter();
        let (mut due, rest): (Vec<Flight>, Vec<Flight>) = flying.partition(|f| f.due <= now);
        state.flying = rest;
        due.sort_by_key(|flight| flight.due);
        for flight in due {
            let (io, result) = state.arrive(flight);
            done.push(Done { io, result });
        }
        Ok(())
    }
}
