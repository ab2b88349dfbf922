//! Makes staging areas, and lets go of them, on a thread of its own: faulting one in or giving its memory
//! back takes tens of milliseconds, and the control thread has other sessions to answer.

use crate::bell::Bell;
use crossbeam_channel::{Sender, unbounded};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use undercroft_arena::Staging;
use undercroft_wire::{PageKey, RequestId, SessionId, SpaceDigest, frame_bytes};

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
    /// What the session's hash makes of the probe prefix, if it has told.
    pub(crate) probe: Option<PageKey>,
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

/// What the thread is to do, in order: what is let go of is gone before more is made.
#[derive(Debug)]
enum Work {
    Make(Wanted),
    LetGo(Box<dyn Any + Send>),
}

/// The thread. It sleeps while nothing is wanted.
#[derive(Debug)]
pub(crate) struct StagingMaker {
    work: Option<Sender<Work>>,
    /// Areas that wait to be made.
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl StagingMaker {
    /// Starts the thread; `done` is rung with every area that was wanted.
    pub(crate) fn start(done: Bell<Made>) -> std::io::Result<Self> {
        // What is let go of was made before: there is no more of it than `arena.staging_total` allows.
        let (sender, receiver) = unbounded::<Work>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let taken = Arc::clone(&waiting);
        let thread = std::thread::Builder::new().name("staging".to_owned()).spawn(move || {
            for work in receiver {
                let wanted = match work {
                    Work::LetGo(area) => {
                        drop(area);
                        continue;
                    }
                    Work::Make(wanted) => wanted,
                };
                taken.fetch_sub(1, Ordering::Relaxed);
                let staging = Staging::create(wanted.slots, frame_bytes(wanted.page_bytes));
                let staging = staging.map_err(|error| error.to_string());
                done.ring(Made { wanted, staging });
            }
        })?;
        Ok(Self { work: Some(sender), waiting, thread: Some(thread) })
    }

    /// Asks for an area; `false` when too many wait already.
    pub(crate) fn submit(&self, wanted: Wanted) -> bool {
        if self.waiting.load(Ordering::Relaxed) >= ROOM {
            return false;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.work.as_ref().is_some_and(|sender| sender.send(Work::Make(wanted)).is_ok())
    }

    /// Has an area let go of that nobody uses any more: its last owner gives its memory back.
    pub(crate) fn let_go(&self, area: impl Any + Send) {
        if let Some(work) = &self.work {
            // Without the thread the daemon is ending.
            let _ending = work.send(Work::LetGo(Box::new(area)));
        }
    }
}

impl Drop for StagingMaker {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the staging maker had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bell::bell;

    /// Tells which thread lets go of it.
    struct Area(Sender<Option<String>>);

    impl Drop for Area {
        fn drop(&mut self) {
            let name = std::thread::current().name().map(str::to_owned);
            self.0.send(name).expect("the test waits for it");
        }
    }

    #[test]
    fn memory_is_given_back_on_the_thread_that_made_it() {
        let (done, _made) = bell(1);
        let maker = StagingMaker::start(done).expect("a thread");
        let (told, by) = unbounded();
        maker.let_go(Area(told));
        assert_eq!(by.recv().expect("it is let go of").as_deref(), Some("staging"));
    }
}
