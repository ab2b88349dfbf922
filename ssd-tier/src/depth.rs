//! How many transfers a device is given at once.

use std::time::Duration;

/// Depth before anything was measured.
const FIRST: usize = 16;
/// No device is asked for less at once than this, or than the most that is allowed.
const LEAST: usize = 4;
/// Transfers that a decision is made on.
const WINDOW: u32 = 32;
/// A transfer should take no longer than this on the average, or the next one that matters waits
/// too long behind those already given away.
const TARGET: Duration = Duration::from_millis(30);

/// Adapts the number of transfers in flight to the device: as many as are of use, as long as none
/// of them takes too long. A fast SSD gets as many as are allowed, a slow disk or one that others
/// are busy with gets few.
#[derive(Debug)]
pub(crate) struct Depth {
    most: usize,
    now: usize,
    transfers: u32,
    taken: Duration,
    /// More could have been started in this window had the depth allowed it.
    wanted_more: bool,
}

impl Depth {
    /// Up to `most` at once.
    pub(crate) fn new(most: usize) -> Self {
        let now = most.min(FIRST);
        Self { most, now, transfers: 0, taken: Duration::ZERO, wanted_more: false }
    }

    /// How many now.
    pub(crate) fn now(&self) -> usize {
        self.now
    }

    /// Work had to wait because so many are in flight.
    pub(crate) fn was_reached(&mut self) {
        self.wanted_more = true;
    }

    /// A transfer is over.
    pub(crate) fn ended(&mut self, took: Duration) {
        self.transfers += 1;
        self.taken += took;
        if self.transfers < WINDOW {
            return;
        }
        let mean = self.taken / self.transfers;
        if mean > TARGET {
            let least = LEAST.min(self.most);
            self.now = (self.now - self.now.div_ceil(8)).max(least);
        } else if mean < TARGET / 2 && self.wanted_more {
            self.now = (self.now + self.now.div_ceil(8)).min(self.most);
        }
        (self.transfers, self.taken, self.wanted_more) = (0, Duration::ZERO, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that serves so many at once, each in that time, kept busy for a while.
    fn settle(most: usize, at_once: usize, each: Duration) -> Depth {
        let mut depth = Depth::new(most);
        for _ in 0..10_000 {
            depth.was_reached();
            let rounds = depth.now().div_ceil(at_once) as u32;
            depth.ended(each * rounds);
        }
        depth
    }

    #[test]
    fn a_fast_device_gets_all_and_a_slow_one_little() {
        assert_eq!(settle(64, 32, Duration::from_micros(100)).now(), 64);
        assert_eq!(settle(64, 1, Duration::from_millis(40)).now(), LEAST);
        let middle = settle(64, 1, Duration::from_millis(2)).now();
        assert!((7..=15).contains(&middle), "{middle} of 2 ms each in about 30 ms");
    }

    #[test]
    fn bounds_hold() {
        for most in [1, 2, 3, 5, 200] {
            for each in [1, 100_000] {
                let depth = settle(most, 1, Duration::from_micros(each)).now();
                assert!((LEAST.min(most)..=most).contains(&depth), "{depth} of {most}");
            }
        }
    }

    #[test]
    fn a_queue_that_is_never_full_is_not_deepened() {
        let mut depth = Depth::new(64);
        (0..1000).for_each(|_| depth.ended(Duration::from_micros(50)));
        assert_eq!(depth.now(), FIRST);
    }
}
