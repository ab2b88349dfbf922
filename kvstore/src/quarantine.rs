//! When nothing of an earlier daemon is under way any more.

use std::collections::HashSet;
use std::time::{Duration, Instant};
use undercroft_wire::DeviceId;

/// Where the earlier daemon had no device, nothing it had under way lasts so long.
const NO_DEVICE: Duration = Duration::from_secs(10);
/// Where a device of the earlier daemon cannot be asked: longer than the system goes on with a
/// transfer whose process is gone, retries of the driver included.
const UNKNOWN_DEVICE: Duration = Duration::from_secs(300);

/// What the state file names for devices until nothing of an earlier daemon's is under way: no devices
/// have this name. A daemon that is stopped before knows as little of what is under way as this one.
pub(crate) const MIXED: u64 = 2;

/// Frames that an earlier daemon's reads may yet land in, and what says that they no longer may.
///
/// A page log's lock is one of those signs: the system lets go of it when the last transfer of the
/// killed daemon has ended. Where there is no lock to be had, only time says so.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    bytes: u64,
    unlocked: HashSet<DeviceId>,
    until: Option<Instant>,
}

/// What is known of an earlier daemon's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Devices {
    /// Ours whose page logs are not locked by us.
    pub(crate) unlocked: HashSet<DeviceId>,
    /// Whether ours are all that it had.
    pub(crate) are_the_same: bool,
    /// Whether we have any.
    pub(crate) any: bool,
}

impl Quarantine {
    /// Of `bytes` of frames that were being filled when the earlier daemon ended.
    pub(crate) fn new(bytes: u64, devices: Devices, now: Instant) -> Self {
        let Devices { unlocked, are_the_same, any } = devices;
        let until = match (are_the_same, any) {
            (true, true) => None,
            (true, false) => Some(now + NO_DEVICE),
            (false, _) => Some(now + UNKNOWN_DEVICE),
        };
        Self { bytes, unlocked, until }
    }

    /// Bytes of frames in it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A device is ours: nothing else writes to its file, or from it to memory.
    pub(crate) fn locked(&mut self, device: DeviceId) {
        self.unlocked.remove(&device);
    }

    /// A device will not be ours: nobody can ask it.
    pub(crate) fn failed(&mut self, device: DeviceId, now: Instant) {
        if self.unlocked.remove(&device) {
            self.until = self.until.max(Some(now + UNKNOWN_DEVICE));
        }
    }

    /// When to look again, if time alone decides.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.until.filter(|_| self.bytes > 0 && self.unlocked.is_empty())
    }

    /// Whether nothing of the earlier daemon is under way any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.bytes == 0 || (self.unlocked.is_empty() && self.until.is_none_or(|until| now >= until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(unlocked: &[u8], are_the_same: bool, any: bool) -> Devices {
        let unlocked = unlocked.iter().map(|number| DeviceId(*number)).collect();
        Devices { unlocked, are_the_same, any }
    }

    #[test]
    fn locks_end_it_where_every_device_can_be_locked() {
        let now = Instant::now();
        assert!(Quarantine::new(0, devices(&[1], true, true), now).is_over(now), "nothing in it");
        assert!(Quarantine::new(1, devices(&[], true, true), now).is_over(now));
        let mut quarantine = Quarantine::new(1, devices(&[0, 1], true, true), now);
        quarantine.locked(DeviceId(0));
        quarantine.locked(DeviceId(7));
        assert!(!quarantine.is_over(now + UNKNOWN_DEVICE), "time does not stand in for a lock");
        quarantine.locked(DeviceId(1));
        assert!(quarantine.is_over(now));
    }

    #[test]
    fn time_ends_it_where_a_device_cannot_be_asked() {
        let now = Instant::now();
        let without = Quarantine::new(1, devices(&[], true, false), now);
        assert!(!without.is_over(now) && without.is_over(now + NO_DEVICE));
        assert_eq!(without.wakes_at(), Some(now + NO_DEVICE));

        let mut other = Quarantine::new(1, devices(&[3], false, true), now);
        assert_eq!(other.wakes_at(), None, "its lock first");
        assert!(!other.is_over(now + UNKNOWN_DEVICE));
        other.locked(DeviceId(3));
        assert!(!other.is_over(now) && other.is_over(now + UNKNOWN_DEVICE));

        let later = now + Duration::from_secs(5);
        let mut failed = Quarantine::new(1, devices(&[3], true, true), now);
        failed.failed(DeviceId(4), later);
        assert_eq!(failed.wakes_at(), None, "another one");
        failed.failed(DeviceId(3), later);
        assert_eq!(failed.wakes_at(), Some(later + UNKNOWN_DEVICE));
        assert!(!failed.is_over(now + UNKNOWN_DEVICE) && failed.is_over(later + UNKNOWN_DEVICE));
    }
}
