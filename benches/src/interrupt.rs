use crate::BenchError;
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Remembers Ctrl-C, a request to terminate and a terminal that went away, so that a run can end
/// in order and remove what it made. A second one ends the process at once.
#[derive(Debug)]
pub struct Interrupt {
    seen: Arc<AtomicBool>,
    handlers: Vec<SigId>,
}

impl Interrupt {
    /// Watches from now on, until it is dropped.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch() -> Result<Self, BenchError> {
        let seen = Arc::new(AtomicBool::new(false));
        let mut handlers = Vec::new();
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let failed = BenchError::system("watch for signals");
            // In this order: the first signal only sets the flag that the second one looks at.
            let second =
                signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&seen));
            let first = second
                .and_then(|id| Ok([id, signal_hook::flag::register(signal, Arc::clone(&seen))?]));
            handlers.extend(first.map_err(failed)?);
        }
        Ok(Self { seen, handlers })
    }

    /// Whether one came.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`BenchError::Interrupted`] if one came.
    pub fn check(&self) -> Result<(), BenchError> {
        if self.is_set() { Err(BenchError::Interrupted) } else { Ok(()) }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            signal_hook::low_level::unregister(handler);
        }
    }
}
