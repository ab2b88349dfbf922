//! The seam between the log and whatever moves its bytes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use undercroft_arena::{Part, Span};

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// File to memory.
    Read,
    /// Memory to file.
    Write,
    /// What was written before reaches the medium.
    Flush,
}

/// One transfer. It owns its memory until it is over.
#[derive(Debug)]
pub struct Io {
    /// The log's number for it.
    pub task: usize,
    /// What it does.
    pub kind: Kind,
    /// Where in the file, for the whole transfer.
    pub offset: u64,
    /// The memory; none for a flush.
    pub span: Option<Span>,
    /// Bytes moved by earlier, short attempts.
    pub done: usize,
    /// Attempts that were interrupted before they moved anything.
    pub attempts: u32,
    /// When it was handed to the engine, by the log's clock.
    pub started: Duration,
}

impl Io {
    /// A transfer of a whole span.
    pub(crate) fn new(task: usize, kind: Kind, offset: u64, span: Option<Span>) -> Self {
        Self { task, kind, offset, span, done: 0, attempts: 0, started: Duration::ZERO }
    }

    /// What is left: offset in the file and memory. `None` for a flush.
    pub fn rest(&self) -> Option<(u64, Span)> {
        let span = self.span.as_ref()?;
        let rest = span.sub(self.done, span.len() - self.done);
        let rest = rest.expect("no more bytes are done than there are");
        Some((self.offset + self.done as u64, rest))
    }
}

/// A transfer the engine is done with: how many bytes this attempt moved.
#[derive(Debug)]
pub struct Done {
    /// The transfer, with its memory.
    pub io: Io,
    /// Bytes moved by this attempt.
    pub result: io::Result<usize>,
}

/// Moves bytes between file and memory. Owned by the log's thread.
pub trait Engine {
    /// What `status` calls it.
    fn name(&self) -> &'static str;
    /// Whether the arena is registered with it.
    fn registered_buffers(&self) -> bool {
        false
    }
    /// The arena has these parts now. Spans from elsewhere work too.
    fn set_memory(&mut self, _parts: &[Arc<Part>]) {}
    /// Starts a transfer. The caller keeps to the number the engine was made for.
    fn start(&mut self, io: Io);
    /// Waits until a transfer is over, the doorbell rings or the time has passed, and reports
    /// what is over. `None` waits without end.
    ///
    /// # Errors
    /// The engine is broken for good. Its transfers are not reported; their memory stays safe.
    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()>;
}

/// Wakes the log's thread out of [`Engine::wait`]. Rings only when it sleeps, so that a busy log
/// costs its callers no system call.
pub(crate) struct Doorbell {
    sleeping: AtomicBool,
    ring: Box<dyn Fn() + Send + Sync>,
}

impl Doorbell {
    /// A doorbell that wakes its engine by `ring`.
    pub(crate) fn new(ring: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { sleeping: AtomicBool::new(false), ring: Box::new(ring) })
    }

    /// To be called after something was put where the log's thread looks.
    pub(crate) fn ring(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            (self.ring)();
        }
    }

    /// The thread is about to sleep. It must look once more before it does.
    pub(crate) fn going_to_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    /// The thread is awake.
    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}
