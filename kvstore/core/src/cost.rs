//! What loading costs: how fast devices read and engines copy, learnt from what they did.

use crate::Micros;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// What is made of what loading costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LoadPolicy {
    /// Nothing: what is there is loaded.
    Off,
    /// It is told and counted, and what is there is loaded.
    #[default]
    Advisory,
    /// What would take longer to load than to compute is not found, and fetches that fall behind
    /// are cut. Of an engine that says nothing of what computing costs nothing is refused.
    Enforced,
}

/// The name is no load policy's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is not a load policy: allowed is {}", LoadPolicy::NAMES.join(" or "))]
pub struct UnknownLoadPolicy {
    found: String,
}

impl LoadPolicy {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Off, Self::Advisory, Self::Enforced];
    /// What they are called, in the same order, in configurations and on command lines.
    pub const NAMES: [&str; 3] = ["off", "advisory", "enforced"];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl FromStr for LoadPolicy {
    type Err = UnknownLoadPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|policy| policy.name() == text);
        found.ok_or_else(|| UnknownLoadPolicy { found: text.to_owned() })
    }
}

impl fmt::Display for LoadPolicy {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

/// How much of what it was wrong by a speed makes up for with one observation.
const GAIN: f64 = 0.5;
/// The most that one observation may be believed to differ by: one that is farther off was held
/// up by something else.
const MOST_OFF: f64 = 8.0;
/// Half of what was learnt is forgotten in so long without an observation, microseconds: what is
/// believed to be too slow is asked for nothing, and could never show that it has become faster.
const HALF_LIFE_US: f64 = 15e6;

/// How long moving bytes takes: `latency + bytes × us_per_byte`. It begins with what is assumed,
/// is learnt from what was observed, and goes back to what is assumed while nothing is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speed {
    latency_us: f64,
    us_per_byte: f64,
    assumed: Pace,
    learnt: Option<Micros>,
}

/// A speed as it is believed to be at some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pace {
    pub(crate) latency_us: f64,
    pub(crate) us_per_byte: f64,
}

impl Pace {
    pub(crate) fn new(latency_us: u64, bytes_per_s: u64) -> Self {
        let us_per_byte = 1e6 / bytes_per_s.max(1) as f64;
        Self { latency_us: latency_us.max(1) as f64, us_per_byte }
    }

    pub(crate) fn us(&self, bytes: u64) -> f64 {
        self.latency_us + bytes as f64 * self.us_per_byte
    }
}

impl Speed {
    pub(crate) fn new(assumed: Pace) -> Self {
        let Pace { latency_us, us_per_byte } = assumed;
        Self { latency_us, us_per_byte, assumed, learnt: None }
    }

    pub(crate) fn at(&self, now: Micros) -> Pace {
        let (latency_us, us_per_byte) = (self.latency_us, self.us_per_byte);
        let Some(learnt) = self.learnt else {
            return Pace { latency_us, us_per_byte };
        };
        let idle_us = now.0.saturating_sub(learnt.0) as f64;
        let kept = (-idle_us / HALF_LIFE_US).exp2();
        let between = |learnt: f64, assumed: f64| assumed * (learnt / assumed).powf(kept);
        Pace {
            latency_us: between(latency_us, self.assumed.latency_us),
            us_per_byte: between(us_per_byte, self.assumed.us_per_byte),
        }
    }

    /// Takes in that `bytes` took `us`, with the latency or without. Each of the two is corrected by
    /// the part that it has in what was expected (normalized least mean squares on the logarithms:
    /// Nagumo and Noda, 1967), so that runs of different lengths tell them apart.
    pub(crate) fn learn(&mut self, now: Micros, bytes: u64, us: u64, with_latency: bool) {
        let mut pace = self.at(now);
        let latency_us = if with_latency { pace.latency_us } else { 0.0 };
        let moving_us = bytes as f64 * pace.us_per_byte;
        let expected = latency_us + moving_us;
        let off = (us.max(1) as f64 / expected).clamp(1.0 / MOST_OFF, MOST_OFF).ln();
        let (fixed, moving) = (latency_us / expected, moving_us / expected);
        let step = GAIN * off / (fixed * fixed + moving * moving);
        pace.latency_us = (pace.latency_us * (step * fixed).exp()).clamp(1.0, 1e8);
        pace.us_per_byte = (pace.us_per_byte * (step * moving).exp()).clamp(1e-8, 1e3);
        (self.latency_us, self.us_per_byte) = (pace.latency_us, pace.us_per_byte);
        self.learnt = Some(now);
    }

    /// As [`Self::learn`], where what is observed may have been held up by somebody else: it is never
    /// believed to be more than so many times slower than what is assumed.
    pub(crate) fn learn_no_slower(&mut self, now: Micros, bytes: u64, us: u64, times: f64) {
        self.learn(now, bytes, us, true);
        self.latency_us = self.latency_us.min(self.assumed.latency_us * times);
        self.us_per_byte = self.us_per_byte.min(self.assumed.us_per_byte * times);
    }
}

/// A device that is busy for longer than this is looked at in pieces of this length, microseconds.
const PIECE_US: u64 = 50_000;

/// The reads of one device: what is asked of it, and how fast it was. The bytes that it has read
/// are set against the time in which it had any to read, whoever wanted them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    speed: Speed,
    /// Reads asked for that have not ended, in lanes included.
    reads: u32,
    pub(crate) queued_bytes: u64,
    /// Since when what is done counts, and how much was done since.
    since: Micros,
    done_bytes: u64,
    /// Whether it had nothing to do before: then the first bytes take the device's latency.
    fresh: bool,
    /// When it last began to be busy or had something done.
    moved: Micros,
}

impl Meter {
    pub(crate) fn new(assumed: Pace) -> Self {
        let zero = Micros(0);
        Self {
            speed: Speed::new(assumed),
            reads: 0,
            queued_bytes: 0,
            since: zero,
            done_bytes: 0,
            fresh: false,
            moved: zero,
        }
    }

    pub(crate) fn begin(&mut self, now: Micros, bytes: u64) {
        if self.reads == 0 {
            (self.since, self.moved) = (now, now);
            (self.done_bytes, self.fresh) = (0, true);
        }
        self.reads += 1;
        self.queued_bytes += bytes;
    }

    /// A read has ended; `counts` unless it failed or was taken back.
    pub(crate) fn end(&mut self, now: Micros, bytes: u64, counts: bool) {
        self.reads = self.reads.checked_sub(1).expect("a read ends once");
        self.queued_bytes = self.queued_bytes.checked_sub(bytes).expect("a read ends once");
        self.moved = now;
        if !counts {
            return self.count_from(now);
        }
        self.done_bytes += bytes;
        let us = now.0 - self.since.0;
        if self.reads > 0 && us < PIECE_US {
            return;
        }
        // What is left at the end of a long stretch may have been done before, and only told now.
        if self.fresh || us >= PIECE_US {
            self.speed.learn(now, self.done_bytes, us, self.fresh);
        }
        self.count_from(now);
    }

    fn count_from(&mut self, now: Micros) {
        (self.since, self.done_bytes, self.fresh) = (now, 0, false);
    }

    /// How fast it is, whatever it has to do.
    pub(crate) fn pace(&self, now: Micros) -> Pace {
        self.speed.at(now)
    }

    /// The device as somebody finds it who asks for more: what it has to read comes first.
    pub(crate) fn queue(&self, now: Micros) -> Pace {
        let pace = self.speed.at(now);
        let queued_us = pace.us(self.queued_bytes);
        // Who has not moved for long will hardly do so at once.
        let still_us = if self.reads > 0 { now.0.saturating_sub(self.moved.0) } else { 0 };
        Pace { latency_us: queued_us.max(still_us as f64), ..pace }
    }
}

/// How fast engines copy pages out of DRAM until some have: a round trip, and a PCIe link or a few
/// channels of memory.
pub(crate) fn assumed_copying() -> Pace {
    Pace::new(200, 4 << 30)
}

#[cfg(test)]
mod tests {
    use super::{LoadPolicy, Meter, Pace, Speed};
    use crate::Micros;

    fn close(found: f64, wanted: f64) -> bool {
        (found / wanted).ln().abs() < 0.15
    }

    #[test]
    fn runs_of_two_lengths_tell_latency_and_rate_apart() {
        let mut speed = Speed::new(Pace::new(200, 1 << 30));
        for round in 0..200 {
            let bytes = if round % 2 == 0 { 4096 } else { 64 << 20 };
            let us = 3_000 + bytes / 50;
            speed.learn(Micros(round * 1000), bytes, us, true);
        }
        let pace = speed.at(Micros(200_000));
        assert!(close(pace.latency_us, 3_000.0) && close(pace.us_per_byte, 0.02), "{pace:?}");
    }

    #[test]
    fn what_is_a_hundred_times_slower_is_known_after_a_few_runs() {
        let assumed = Pace::new(200, 1 << 30);
        let mut speed = Speed::new(assumed);
        let bytes = 64 << 20;
        let us = (assumed.us(bytes) * 100.0) as u64;
        for round in 0..12 {
            speed.learn(Micros(round), bytes, us, true);
        }
        assert!(close(speed.at(Micros(12)).us(bytes), us as f64));
        let later = speed.at(Micros(3_600_000_000)).us(bytes);
        assert!(close(later, assumed.us(bytes)), "an hour later it is asked again: {later}");
    }

    #[test]
    fn a_device_is_measured_while_it_is_busy_and_not_while_it_is_idle() {
        let mut meter = Meter::new(Pace::new(200, 1 << 30));
        let mut now = 0;
        for _ in 0..100 {
            // Eight reads side by side, 1 ms after another, then a second of nothing.
            (0..8).for_each(|_| meter.begin(Micros(now), 1 << 20));
            assert_eq!(meter.queued_bytes, 8 << 20);
            for _ in 0..8 {
                now += 1000;
                meter.end(Micros(now), 1 << 20, true);
            }
            now += 1_000_000;
        }
        let found = meter.queue(Micros(now));
        assert!(close(found.us(8 << 20), 8_000.0), "{found:?}");
    }

    #[test]
    fn reads_that_end_in_bunches_do_not_make_a_device_fast() {
        let mut meter = Meter::new(Pace::new(200, 1 << 30));
        let mut now = 0;
        for _ in 0..20 {
            (0..60).for_each(|_| meter.begin(Micros(now), 1 << 20));
            for _ in 0..5 {
                // Twelve at once, each 100 ms.
                now += 100_000;
                (0..12).for_each(|_| meter.end(Micros(now), 1 << 20, true));
            }
            now += 1_000_000;
        }
        let found = meter.queue(Micros(now)).us(60 << 20);
        assert!((300_000.0..800_000.0).contains(&found), "{found}");
    }

    #[test]
    fn a_device_that_does_not_move_is_expected_to_take_as_long_again() {
        let mut meter = Meter::new(Pace::new(200, 1 << 30));
        meter.begin(Micros(0), 4096);
        assert!(meter.queue(Micros(0)).us(0) < 300.0);
        assert!(close(meter.queue(Micros(400_000)).us(0), 400_000.0));
    }

    #[test]
    fn load_policies_are_known_by_their_names() {
        for policy in LoadPolicy::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
        }
        let error = "on".parse::<LoadPolicy>().map_err(|error| error.to_string());
        let wanted = "\"on\" is not a load policy: allowed is off or advisory or enforced";
        assert_eq!(error, Err(wanted.to_owned()));
    }
}
