//! How many bytes may be copied in one step of the engine's, so that its decoding is not disturbed.

use crate::DeviceError;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A bound on what is copied while the engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes of both directions together in one step.
    pub bytes_per_step: u64,
    /// How long a step takes: a new one begins by itself after it, so that an engine with nothing
    /// to compute does not wait for ever for its pages.
    pub step: Duration,
}

/// A step that takes longer is none.
const LONGEST_STEP: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Budget {
    pace: Pace,
    standing: Mutex<Standing>,
    changed: Condvar,
}

#[derive(Debug)]
struct Standing {
    /// What is left of this step. Less than nothing after a piece that was more than a step's.
    left: i64,
    began: Instant,
    /// Nobody begins steps any more: what is left is copied as fast as it goes.
    lifted: bool,
}

impl Budget {
    /// # Errors
    /// A pace by which nothing would ever be copied.
    pub(super) fn new(pace: Pace) -> Result<Self, DeviceError> {
        if pace.bytes_per_step == 0 {
            let (what, allowed) = ("pace.bytes_per_step", "1 or more");
            return Err(DeviceError::Option { what, found: 0, allowed });
        }
        if pace.step > LONGEST_STEP {
            let (what, found) = ("pace.step, seconds,", pace.step.as_secs());
            return Err(DeviceError::Option { what, found, allowed: "up to 3600" });
        }
        let standing = Standing { left: full(pace), began: Instant::now(), lifted: false };
        Ok(Self { pace, standing: Mutex::new(standing), changed: Condvar::new() })
    }

    /// The device goes.
    pub(super) fn lift(&self) {
        self.lock().lifted = true;
        self.changed.notify_all();
    }

    /// The engine begins its next step.
    pub(super) fn begin_step(&self) {
        let mut standing = self.lock();
        standing.renew(self.pace, Instant::now());
        self.changed.notify_all();
    }

    /// Has whoever waits look again whether to go on.
    pub(super) fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Takes bytes, as soon as there is anything left of a step, or not at all if it is to stop. What
    /// is more than a step's is owed by the steps after it.
    pub(super) fn take(&self, bytes: u64, stop: impl Fn() -> bool) {
        let mut standing = self.lock();
        loop {
            let now = Instant::now();
            let ends = standing.began + self.pace.step;
            if now >= ends {
                standing.renew(self.pace, now);
            }
            if stop() {
                return;
            }
            if standing.left > 0 || standing.lifted {
                standing.left = standing.left.saturating_sub_unsigned(bytes);
                return;
            }
            let wait = ends.saturating_duration_since(now);
            let woken = self.changed.wait_timeout(standing, wait);
            standing = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How much is worth taking at once.
    pub(super) fn piece(&self) -> u64 {
        self.pace.bytes_per_step
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn renew(&mut self, pace: Pace, now: Instant) {
        self.left = self.left.saturating_add(full(pace)).min(full(pace));
        self.began = now;
    }
}

fn full(pace: Pace) -> i64 {
    i64::try_from(pace.bytes_per_step).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_pace_by_which_nothing_is_ever_copied_is_refused() {
        let pace = |bytes_per_step, secs| Pace { bytes_per_step, step: Duration::from_secs(secs) };
        assert!(Budget::new(pace(0, 1)).is_err());
        let error = Budget::new(pace(1, u64::MAX)).unwrap_err().to_string();
        assert!(error.contains("pace.step") && error.contains("3600"), "{error}");
        let budget = Budget::new(pace(1, 3600)).unwrap();
        budget.take(10, || false);
        budget.lift();
        budget.take(10, || false);
    }

    #[test]
    fn what_is_more_than_a_step_is_owed_by_those_after_it() {
        let pace = Pace { bytes_per_step: 100, step: Duration::from_secs(3600) };
        let budget = Budget::new(pace).unwrap();
        budget.take(60, || false);
        budget.take(250, || false);
        assert_eq!(budget.lock().left, -210);
        budget.begin_step();
        budget.begin_step();
        assert_eq!(budget.lock().left, -10);
        budget.begin_step();
        assert_eq!(budget.lock().left, 90);
        budget.begin_step();
        assert_eq!(budget.lock().left, 100);
    }

    #[test]
    fn an_engine_that_takes_no_steps_gets_its_pages_all_the_same() {
        let pace = Pace { bytes_per_step: 1, step: Duration::from_millis(1) };
        let budget = Budget::new(pace).unwrap();
        for _ in 0..5 {
            budget.take(1, || false);
        }
    }
}
