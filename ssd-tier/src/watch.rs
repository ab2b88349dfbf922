//! Whether a device can be worked with: how long its transfers take, how many fail, and when it
//! is worth asking again. No I/O and no clock.

use crate::Health;
use crate::engine::{Io, Kind};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// A write may take this many times what a read may: nobody waits for it.
const WRITE_PATIENCE: u32 = 4;
/// And a flush this many times: it has much to do.
const FLUSH_PATIENCE: u32 = 20;
/// Failed transfers are counted over this time.
const ERROR_WINDOW: Duration = Duration::from_secs(60);
/// Failed writes and flushes in the window that make a device read-only.
const WRITE_ERRORS: usize = 8;
/// Failed transfers of any kind in the window that put it out.
const ERRORS: usize = 24;
/// The first probe comes this long after a device was given up, and each failed one doubles it.
const FIRST_PROBE: Duration = Duration::from_millis(100);
const LAST_PROBE: Duration = Duration::from_secs(30);
/// A device that was well for this long is probed soon again when it falters.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// Watches one device.
#[derive(Debug)]
pub(crate) struct Watch {
    stall: Duration,
    health: Health,
    /// When what is in flight must be over, and its task.
    flights: BTreeSet<(Duration, usize)>,
    /// Tasks of transfers that were late when a probe found the device well: they are waited for,
    /// and say nothing about it any more.
    forgotten: BTreeSet<usize>,
    /// When transfers failed, and whether they were to write.
    errors: VecDeque<(Duration, bool)>,
    backoff: Duration,
    well_since: Duration,
    probe_at: Duration,
    probing: bool,
}

impl Watch {
    /// A device that is well until shown otherwise, and whose reads take no longer than `stall`.
    pub(crate) fn new(stall: Duration) -> Self {
        Self {
            stall,
            health: Health::Well,
            flights: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            errors: VecDeque::new(),
            backoff: FIRST_PROBE,
            well_since: Duration::ZERO,
            probe_at: Duration::ZERO,
            probing: false,
        }
    }

    /// What can be asked of the device.
    pub(crate) fn health(&self) -> Health {
        self.health
    }

    /// Whether reads are started.
    pub(crate) fn takes_reads(&self) -> bool {
        matches!(self.health, Health::Well | Health::ReadOnly)
    }

    /// Whether writes are started.
    pub(crate) fn takes_writes(&self) -> bool {
        self.health == Health::Well
    }

    fn patience(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Read => self.stall,
            Kind::Write => self.stall * WRITE_PATIENCE,
            Kind::Flush => self.stall * FLUSH_PATIENCE,
        }
    }

    fn flight(&self, io: &Io) -> (Duration, usize) {
        (io.started + self.patience(io.kind), io.task)
    }

    /// A transfer was handed to the engine.
    pub(crate) fn began(&mut self, io: &Io) {
        self.flights.insert(self.flight(io));
    }

    /// A transfer came back, well or not.
    pub(crate) fn ended(&mut self, io: &Io, failed: bool, now: Duration) {
        if !self.flights.remove(&self.flight(io)) {
            self.forgotten.remove(&io.task);
        }
        if failed {
            self.errors.push_back((now, io.kind != Kind::Read));
            // More than that many are too many in any case.
            if self.errors.len() > ERRORS {
                self.errors.pop_front();
            }
        }
    }

    /// Tasks of transfers that are late, or were when they were forgotten.
    pub(crate) fn late(&self, now: Duration) -> impl Iterator<Item = usize> + '_ {
        let late = self.flights.iter().take_while(move |(due, _)| *due <= now);
        late.map(|(_, task)| *task).chain(self.forgotten.iter().copied())
    }

    /// Looks at the device; its health if that has changed for the worse. A device that is
    /// `clogged` has as many late transfers as it may have in flight: it can be asked nothing.
    pub(crate) fn check(&mut self, clogged: bool, now: Duration) -> Option<Health> {
        let oldest = now.saturating_sub(ERROR_WINDOW);
        while self.errors.front().is_some_and(|(at, _)| *at < oldest) {
            self.errors.pop_front();
        }
        let writes = self.errors.iter().filter(|(_, write)| *write).count();
        let late = self.flights.first().is_some_and(|(due, _)| *due <= now);
        let found = match self.health {
            Health::Out => return None,
            _ if self.errors.len() >= ERRORS => Health::Out,
            Health::Stalled => return None,
            _ if late || clogged => Health::Stalled,
            _ if writes >= WRITE_ERRORS => Health::ReadOnly,
            _ => return None,
        };
        if found == self.health {
            return None;
        }
        if self.health == Health::Well {
            if now >= self.well_since + FORGIVEN_AFTER {
                self.backoff = FIRST_PROBE;
            }
            self.probe_at = now + self.backoff;
        }
        self.health = found;
        Some(found)
    }

    /// When something must be looked at, if nothing happens before.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let late = self.flights.first().filter(|_| self.takes_reads()).map(|(due, _)| *due);
        let probe = (self.health != Health::Well && !self.probing).then_some(self.probe_at);
        late.into_iter().chain(probe).min()
    }

    /// Whether to probe the device now. The caller does, and says [`Watch::probed`].
    pub(crate) fn begin_probe(&mut self, now: Duration) -> bool {
        let due = self.health != Health::Well && !self.probing && self.probe_at <= now;
        self.probing |= due;
        due
    }

    /// A probe is over: it came `back` in good order and in good time, or not. True if the device
    /// is well again.
    pub(crate) fn probed(&mut self, back: bool, now: Duration) -> bool {
        self.probing = false;
        self.backoff = (self.backoff * 2).min(LAST_PROBE);
        if !back {
            self.probe_at = now + self.backoff;
            return false;
        }
        while self.flights.first().is_some_and(|(due, _)| *due <= now) {
            self.forgotten.extend(self.flights.pop_first().map(|(_, task)| task));
        }
        self.errors.clear();
        self.health = Health::Well;
        self.well_since = now;
        true
    }

    /// Whether a step of a probe took no longer than a transfer of its kind may.
    pub(crate) fn was_in_time(&self, io: &Io, now: Duration) -> bool {
        now < io.started + self.patience(io.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_millis(500);

    fn io(task: usize, kind: Kind, started: Duration) -> Io {
        Io { task, kind, offset: 0, span: None, done: 0, attempts: 0, started }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_late_read_is_a_stall_and_a_good_probe_ends_it() {
        let mut watch = Watch::new(STALL);
        watch.began(&io(1, Kind::Read, ms(0)));
        watch.began(&io(2, Kind::Write, ms(0)));
        assert_eq!(watch.next_due(), Some(STALL));
        assert_eq!(watch.check(false, ms(499)), None);
        assert_eq!(watch.check(false, ms(500)), Some(Health::Stalled));
        assert_eq!(watch.check(false, ms(501)), None);
        assert!(!watch.takes_reads() && !watch.takes_writes());
        assert!(!watch.begin_probe(ms(599)));
        assert!(watch.begin_probe(ms(600)) && !watch.begin_probe(ms(600)));
        assert!(!watch.probed(false, ms(1200)));
        assert_eq!(watch.next_due(), Some(ms(1400)));
        assert!(watch.begin_probe(ms(1400)));
        assert!(watch.probed(true, ms(1401)));
        // The read that is late still does not stall it again; the write may yet.
        assert_eq!(watch.check(false, ms(1402)), None);
        assert_eq!(watch.next_due(), Some(ms(2000)));
        assert_eq!(watch.late(ms(1402)).collect::<Vec<_>>(), [1]);
        watch.ended(&io(1, Kind::Read, ms(0)), false, ms(1500));
        assert_eq!(watch.late(ms(1500)).count(), 0);
        assert_eq!(watch.check(false, ms(2000)), Some(Health::Stalled));
    }

    #[test]
    fn what_ends_in_time_is_no_stall() {
        let mut watch = Watch::new(STALL);
        for n in 0..100 {
            watch.began(&io(n, Kind::Read, ms(0)));
        }
        for n in 0..100 {
            watch.ended(&io(n, Kind::Read, ms(0)), false, ms(400));
        }
        assert_eq!((watch.check(false, ms(5000)), watch.next_due()), (None, None));
    }

    #[test]
    fn failed_writes_make_it_read_only_and_more_put_it_out() {
        let mut watch = Watch::new(STALL);
        let fail = |watch: &mut Watch, kind, at| watch.ended(&io(1, kind, at), true, at);
        for n in 0..7 {
            fail(&mut watch, Kind::Write, ms(n));
        }
        assert_eq!(watch.check(false, ms(10)), None);
        fail(&mut watch, Kind::Flush, ms(10));
        assert_eq!(watch.check(false, ms(10)), Some(Health::ReadOnly));
        assert!(watch.takes_reads() && !watch.takes_writes());
        for n in 0..15 {
            fail(&mut watch, Kind::Read, ms(20 + n));
            assert_eq!(watch.check(false, ms(40)), None);
        }
        fail(&mut watch, Kind::Read, ms(41));
        assert_eq!(watch.check(false, ms(41)), Some(Health::Out));
        assert!(!watch.takes_reads());
    }

    #[test]
    fn errors_are_forgotten_after_a_while_and_probes_come_more_rarely() {
        let mut watch = Watch::new(STALL);
        for n in 0..200 {
            let at = Duration::from_secs(10 * n);
            watch.ended(&io(1, Kind::Write, at), true, at);
            assert_eq!(watch.check(false, at), None, "six in a minute are borne");
        }
        let mut now = Duration::from_secs(3000);
        for _ in 0..ERRORS {
            watch.ended(&io(1, Kind::Read, now), true, now);
        }
        assert_eq!(watch.check(false, now), Some(Health::Out));
        let mut waits = Vec::new();
        for _ in 0..12 {
            let at = watch.next_due().expect("a probe is due some time");
            waits.push(at - now);
            now = at;
            assert!(watch.begin_probe(now) && !watch.probed(false, now));
        }
        assert!(waits.is_sorted() && waits[0] == FIRST_PROBE && waits[11] == LAST_PROBE);
        assert!(watch.next_due().is_some());
    }
}
