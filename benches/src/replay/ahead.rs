use crate::{BenchError, Trace};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A request that begins so much after its time is late: what it met was not what it would have.
const LATE: Duration = Duration::from_millis(20);

/// What the daemon is told before a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Ahead {
    /// Nothing.
    #[default]
    Nothing,
    /// The request's prompt, so long before: as long as it stands in a waiting queue.
    Queue(Duration),
    /// At the end of each turn when the conversation goes on, off by a factor that is log-normal
    /// with this deviation.
    Hints(f64),
}

impl Ahead {
    /// What is allowed, for people.
    pub const ALLOWED: &str =
        "none, queue:MS with MS of 1..=60000, or hints:PERCENT with PERCENT of 0..=300";
}

impl FromStr for Ahead {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |start, most| {
            let number: Option<u32> = text.strip_prefix(start).and_then(|n| n.parse().ok());
            number.filter(|number| *number <= most)
        };
        let queue = || number("queue:", 60_000).filter(|ms| *ms > 0);
        let hints = || number("hints:", 300);
        match text {
            "none" => Ok(Self::Nothing),
            _ => queue()
                .map(|ms| Self::Queue(Duration::from_millis(ms.into())))
                .or_else(|| hints().map(|percent| Self::Hints(f64::from(percent) / 100.0)))
                .ok_or_else(|| format!("{text:?} is not allowed: {}", Self::ALLOWED)),
        }
    }
}

impl fmt::Display for Ahead {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => to.write_str("none"),
            Self::Queue(time) => write!(to, "queue:{}", time.as_millis()),
            Self::Hints(off) => write!(to, "hints:{:.0}", 100.0 * off),
        }
    }
}

/// When each request of a replay comes, and when its conversation goes on.
#[derive(Debug)]
pub(super) struct Times {
    start: Instant,
    /// Since the start.
    due: Vec<Duration>,
    /// The next request of the same conversation, and by what factor its time is told wrong.
    next: Vec<Option<(usize, f64)>>,
}

impl Times {
    /// The trace's own times, run through `speed` times as fast. A request goes on with a
    /// conversation whose last page is in it.
    pub(super) fn new(trace: &Trace, requests: usize, speed: f64, (off, seed): (f64, u64)) -> Self {
        let first = trace.requests().next().map_or(0, |request| request.timestamp_ms);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut due = Vec::with_capacity(requests);
        let mut next = vec![None; requests];
        let mut ends = vec![None; trace.stats().distinct as usize];
        for (at, request) in trace.requests().take(requests).enumerate() {
            let since = request.timestamp_ms.saturating_sub(first) as f64;
            due.push(Duration::from_secs_f64(since / 1000.0 / speed));
            for page in request.pages {
                if let Some(before) = ends[*page as usize].take() {
                    next[before] = Some((at, (off * normal(&mut random)).exp()));
                }
            }
            if let Some(last) = request.pages.last() {
                ends[*last as usize] = Some(at);
            }
        }
        Self { start: Instant::now(), due, next }
    }

    /// Waits until so long before a request's time, or until `stop` says so; whether that is past
    /// for long.
    pub(super) fn wait(&self, request: usize, before: Duration, stop: impl Fn() -> bool) -> bool {
        let until = self.start + self.due[request].saturating_sub(before);
        while let Some(left) = until.checked_duration_since(Instant::now())
            && !left.is_zero()
            && !stop()
        {
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        until.elapsed() > LATE
    }

    /// In what time a request's conversation is told to go on, if it does.
    pub(super) fn told(&self, request: usize) -> Option<Duration> {
        let (next, off) = self.next[request]?;
        let left = (self.start + self.due[next]).saturating_duration_since(Instant::now());
        Some(left.mul_f64(off))
    }
}

/// Normally distributed, by Box and Muller.
fn normal(random: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}

/// What one worker saw of requests that come in their time.
#[derive(Debug)]
pub(super) struct Waits {
    pub(super) late: u64,
    pub(super) found_dram: u64,
    pub(super) found: u64,
    /// Nanoseconds from the lookup on.
    pub(super) first_page: Histogram<u64>,
    pub(super) all_pages: Histogram<u64>,
}

impl Default for Waits {
    fn default() -> Self {
        let times = || {
            Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("the bounds are constants")
        };
        Self { late: 0, found_dram: 0, found: 0, first_page: times(), all_pages: times() }
    }
}

impl Waits {
    pub(super) fn add(&mut self, other: Self) {
        self.late += other.late;
        self.found_dram += other.found_dram;
        self.found += other.found;
        let same = "all tallies have the same bounds";
        self.first_page.add(other.first_page).expect(same);
        self.all_pages.add(other.all_pages).expect(same);
    }
}

/// What came of requests that came in their time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AheadReport {
    /// How many times as fast as in the trace.
    pub speed: f64,
    /// What the daemon was told.
    pub ahead: String,
    /// Requests that began late because the clients were busy.
    pub late_requests: u64,
    /// Pages that lookups found in any tier.
    pub found_pages: u64,
    /// Of these, the share that was in DRAM then.
    pub in_dram_ratio: f64,
    /// From the lookup until the first page was in the device, microseconds; only where any was found.
    pub first_page_us: super::LookupTimes,
    /// And until all of them were.
    pub all_pages_us: super::LookupTimes,
    /// Pages read from SSD before anybody fetched them.
    pub prefetched_pages: u64,
    /// Of these, pages that were used before they left DRAM.
    pub used_pages: u64,
    /// And pages that were not; the rest still lay there at the end.
    pub wasted_pages: u64,
    /// Bytes wasted over bytes prefetched.
    pub wasted_ratio: f64,
}

impl AheadReport {
    pub(super) fn summary(&self) -> String {
        format!(
            "in time      {} times as fast, told {}; {} requests late\n\
             in dram      {:.2} % of {} pages found, when asked for\n\
             first page   p50 {:.1} us, p99 {:.1} us\n\
             all pages    p50 {:.1} us, p99 {:.1} us\n\
             prefetched   {} pages: {} used, {} wasted ({:.1} %)\n",
            self.speed,
            self.ahead,
            self.late_requests,
            100.0 * self.in_dram_ratio,
            self.found_pages,
            self.first_page_us.p50,
            self.first_page_us.p99,
            self.all_pages_us.p50,
            self.all_pages_us.p99,
            self.prefetched_pages,
            self.used_pages,
            self.wasted_pages,
            100.0 * self.wasted_ratio,
        )
    }
}

/// A speed that is none.
pub(super) fn check_speed(speed: f64) -> Result<(), BenchError> {
    if (0.01..=10_000.0).contains(&speed) {
        return Ok(());
    }
    let problem = format!("is {speed}, allowed 0.01..=10000");
    Err(BenchError::Option { option: "--speed", problem })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use crate::RawRequest;
    use crate::trace::TraceBuilder;

    fn times(speed: f64, off: f64) -> Times {
        let mut builder = TraceBuilder::default();
        for (timestamp, ids) in
            [(5000.0, &[1, 2][..]), (6000.0, &[1, 7]), (7000.0, &[1, 2, 3]), (9000.0, &[1, 7, 8])]
        {
            let (input_length, output_length) = (1, 1);
            let hash_ids = ids.to_vec();
            builder.push(&RawRequest { timestamp, input_length, output_length, hash_ids }).unwrap();
        }
        let trace = builder.finish();
        Times::new(&trace, 4, speed, (off, 1))
    }

    #[test]
    fn requests_come_at_their_time_and_know_who_goes_on() {
        let times = times(2.0, 0.0);
        let ms = Duration::from_millis;
        assert_eq!(times.due, [ms(0), ms(500), ms(1000), ms(2000)]);
        assert_eq!(times.next, [Some((2, 1.0)), Some((3, 1.0)), None, None]);
        let told = times.told(1).unwrap();
        assert!(told <= ms(2000) && told > ms(1000), "{told:?}");
    }

    #[test]
    fn what_is_told_is_off_both_ways() {
        let mut random = fastrand::Rng::with_seed(3);
        let drawn: Vec<f64> = (0..10_000).map(|_| normal(&mut random)).collect();
        let mean = drawn.iter().sum::<f64>() / 1e4;
        let deviation = drawn.iter().map(|x| x * x).sum::<f64>() / 1e4;
        assert!(mean.abs() < 0.05 && (deviation - 1.0).abs() < 0.05, "{mean} {deviation}");
        let factors = times(1.0, 0.5).next;
        assert!(factors.iter().flatten().all(|(_, off)| *off > 0.0 && (*off - 1.0).abs() > 1e-9));
    }

    #[test]
    fn only_what_is_allowed_is_taken() {
        for text in ["none", "queue:100", "hints:0", "hints:30"] {
            assert_eq!(text.parse::<Ahead>().unwrap().to_string(), text);
        }
        for text in ["", "queue", "queue:0", "queue:60001", "hints:301", "hints:-1", "guess"] {
            assert!(text.parse::<Ahead>().is_err(), "{text}");
        }
        assert!(check_speed(30.0).is_ok() && check_speed(f64::NAN).is_err());
    }
}
