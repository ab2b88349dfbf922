//! How a thread's calls stand to captures that are under way.

use std::cell::Cell;

/// As `CUstreamCaptureMode` numbers them: global, thread-local, relaxed.
const RELAXED: i32 = 2;

thread_local! {
    static MODE: Cell<i32> = const { Cell::new(0) };
}

/// Changes the thread's mode and says what it was; `None` for a mode that is none.
pub(crate) fn exchange(mode: i32) -> Option<i32> {
    (0..=RELAXED).contains(&mode).then(|| MODE.replace(mode))
}

/// Whether what this thread does breaks nobody's capture.
pub(crate) fn is_relaxed() -> bool {
    MODE.get() == RELAXED
}
