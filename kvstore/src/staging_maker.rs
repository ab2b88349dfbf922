//! Makes staging areas on a thread of its own: faulting one in takes tens of milliseconds, and the
//! control thread has other sessions to answer.

use crate::bell::Bell;
use crossbeam_channel::{Sender, bounded};
use std::thread::JoinHandle;
use undercroft_arena::Staging;
use undercroft_wire::{RequestId, SessionId, SpaceDigest, frame_bytes};

/// Areas waiting to be made. A request beyond that is refused as `Busy`.
const ROOM: usize = 256;

/// An area that a session waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) session: SessionId,
    pub(crate) request: RequestId,
    pub(crate) digest: SpaceDigest,
    pub(crate) page_bytes: u32,
    pub(crate) slots: u32,
}

impl Wanted {
    /// What the area takes, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.slots) * u64::from(frame_bytes(self.page_bytes))
    }
}

/// An area that was made, or why it was not.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) wanted: Wanted,
    pub(crate) staging: Result<Staging, String>,
}

/// The thread. It sleeps while nothing is wanted.
#[derive(Debug)]
pub(crate) struct StagingMaker {
    wanted: Option<Sender<Wanted>>,
    thread: Option<JoinHandle<()>>,
}

impl StagingMaker {
    /// Starts the thread; `done` is rung with every area that was wanted.
    pub(crate) fn start(done: Bell<Made>) -> std::io::Result<Self> {
        let (sender, receiver) = bounded::<Wanted>(ROOM);
        let thread = std::thread::Builder::new().name("staging".to_owned()).spawn(move || {
            for wanted in receiver {
                let staging = Staging::create(wanted.slots, frame_bytes(wanted.page_bytes));
                let staging = staging.map_err(|error| error.to_string());
                done.ring(Made { wanted, staging });
            }
        })?;
        Ok(Self { wanted: Some(sender), thread: Some(thread) })
    }

    /// Asks for an area; `false` when too many wait already.
    pub(crate) fn submit(&self, wanted: Wanted) -> bool {
        self.wanted.as_ref().is_some_and(|sender| sender.try_send(wanted).is_ok())
    }
}

impl Drop for StagingMaker {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the staging maker had panicked");
        }
    }
}
