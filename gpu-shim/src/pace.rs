use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Waits shorter than this are left out: a thread cannot sleep so briefly, and the time is made
/// good by the next wait.
const SHORTEST_SLEEP: Duration = Duration::from_micros(100);

/// Imitates a link of limited speed: bytes are booked one after another, and a copy counts as
/// done when the last byte booked for it would have arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    bytes_per_s: u64,
    free_at_ns: u64,
}

impl Schedule {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, free_at_ns: 0 }
    }

    /// Books `bytes` at `now_ns` and returns when they have arrived, in the same clock.
    pub(crate) fn book(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let took = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        self.free_at_ns = self.free_at_ns.max(now_ns).saturating_add(took);
        self.free_at_ns
    }
}

/// One direction of the imitated link, shared by all copy threads.
#[derive(Debug)]
pub(crate) struct Link {
    started: Instant,
    schedule: Mutex<Schedule>,
}

impl Link {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self { started: Instant::now(), schedule: Mutex::new(Schedule::new(bytes_per_s)) }
    }

    /// Books `bytes` and returns when they have arrived.
    pub(crate) fn book(&self, bytes: u64) -> Instant {
        let now_ns = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        self.started + Duration::from_nanos(schedule.book(now_ns, bytes))
    }
}

/// Sleeps until about `arrival`.
pub(crate) fn sleep_until(arrival: Instant) {
    let left = arrival.saturating_duration_since(Instant::now());
    if left >= SHORTEST_SLEEP {
        std::thread::sleep(left);
    }
}
