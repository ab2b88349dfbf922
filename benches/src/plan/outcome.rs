use super::core_replay::{CoreHits, CoreReplay, CoreTiers};
use super::options::{Checked, PlanOptions, SizePair};
use crate::{BenchError, Trace, TraceRequest};
use std::sync::Arc;
use undercroft_core::Micros;
use undercroft_wire::PageKey;

/// How often somebody looks at how far it is.
const LOOK_EVERY: usize = 64;
const MS_PER_MINUTE: u64 = 60_000;

/// How long requests take, in a model of one engine with nothing else to do.
#[derive(Debug, Clone)]
pub(super) struct Clock<'a> {
    pub(super) options: &'a PlanOptions,
    pub(super) checked: &'a Checked,
    /// Of the trace's pages.
    pub(super) keys: Arc<[PageKey]>,
}

/// What a request costs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Took {
    pub(super) load_s: f64,
    pub(super) compute_s: f64,
}

impl Took {
    pub(super) fn first_token_s(self) -> f64 {
        self.load_s + self.compute_s
    }
}

impl Clock<'_> {
    /// The pages found are loaded, each tier's at its bandwidth; then the tokens that were not found
    /// are computed, the last one of the prompt always.
    pub(super) fn took(&self, request: TraceRequest<'_>, hits: CoreHits) -> Took {
        let Self { options, checked, .. } = self;
        let page_bytes = checked.page_bytes() as f64;
        let load_s = f64::from(hits.dram) * page_bytes / options.dram_bytes_per_s
            + f64::from(hits.ssd) * page_bytes / options.ssd_bytes_per_s;
        let tokens = f64::from(request.input_tokens);
        let found = f64::from(hits.dram + hits.ssd) * f64::from(checked.page_tokens);
        let found = found.min(tokens - 1.0).max(0.0);
        let recompute = &checked.recompute;
        Took { load_s, compute_s: recompute.seconds(tokens) - recompute.seconds(found) }
    }
}

/// What a size pair does with the traffic.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub(super) pages: u64,
    pub(super) dram_hits: u64,
    pub(super) ssd_hits: u64,
    /// Of each request, seconds; sorted.
    pub(super) first_tokens: Vec<f32>,
    pub(super) load_s: f64,
    pub(super) compute_s: f64,
    /// Pages written to SSD, those included that reclaim wrote again.
    pub(super) written: u64,
    /// Of these, pages that reclaim wrote again.
    pub(super) rewritten: u64,
    /// Most pages written to SSD in one minute of the trace.
    pub(super) written_in_worst_minute: u64,
    pub(super) unreachable: u64,
    /// Of each request, if they are wanted.
    pub(super) lines: Vec<CoreHits>,
}

impl Outcome {
    pub(super) fn hits(&self) -> u64 {
        self.dram_hits + self.ssd_hits
    }

    /// `None` if there is no request.
    pub(super) fn first_token_s(&self, quantile: f64) -> Option<f64> {
        let last = self.first_tokens.len().checked_sub(1)?;
        let at = (quantile * self.first_tokens.len() as f64).ceil() as usize;
        Some(self.first_tokens[at.saturating_sub(1).min(last)].into())
    }

    fn add(&mut self, request: TraceRequest<'_>, hits: CoreHits, took: Took) {
        self.pages += request.pages.len() as u64;
        self.dram_hits += u64::from(hits.dram);
        self.ssd_hits += u64::from(hits.ssd);
        self.first_tokens.push(took.first_token_s() as f32);
        self.load_s += took.load_s;
        self.compute_s += took.compute_s;
    }
}

/// Without any cache.
pub(super) fn without(trace: &Trace, clock: &Clock<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    for request in trace.requests().take(clock.checked.requests) {
        let hits = CoreHits::default();
        outcome.add(request, hits, clock.took(request, hits));
    }
    outcome.first_tokens.sort_unstable_by(f32::total_cmp);
    outcome
}

/// Of pages asked for, how many were asked for before as part of the same prefix: what a cache
/// without bounds hits.
pub(super) fn hits_without_bounds(trace: &Trace, requests: usize) -> u64 {
    let mut seen = vec![false; trace.stats().distinct as usize];
    let mut hits = 0;
    for request in trace.requests().take(requests) {
        for page in request.pages {
            hits += u64::from(std::mem::replace(&mut seen[*page as usize], true));
        }
    }
    hits
}

/// Minutes of the trace, and what was written in them.
#[derive(Debug, Default)]
struct Minutes {
    minute: u64,
    written_before: u64,
    worst: u64,
}

impl Minutes {
    fn at(&mut self, timestamp_ms: u64, written: u64) {
        let minute = timestamp_ms / MS_PER_MINUTE;
        if minute != self.minute {
            self.worst = self.worst.max(written - self.written_before);
            (self.minute, self.written_before) = (minute, written);
        }
    }

    fn worst(mut self, written: u64) -> u64 {
        self.at(u64::MAX, written);
        self.worst
    }
}

/// Replays the trace through a core with these tiers. `look` is told of so many more requests and
/// says whether to go on.
pub(super) fn play(
    trace: &Trace,
    pair: &SizePair,
    clock: &Clock<'_>,
    mut look: impl FnMut(usize) -> Result<(), BenchError>,
) -> Result<Outcome, BenchError> {
    let mut replay = core(pair, clock)?;
    let mut outcome = Outcome::default();
    let mut minutes = Minutes::default();
    let written = |replay: &CoreReplay| {
        let stats = replay.stats();
        stats.appended_pages + stats.relocated_pages
    };
    let keeps_lines = clock.options.csv.is_some();
    for (number, request) in trace.requests().take(clock.checked.requests).enumerate() {
        minutes.at(request.timestamp_ms, written(&replay));
        let now = Micros(request.timestamp_ms * 1000);
        let hits = replay.request(now, request.pages);
        outcome.add(request, hits, clock.took(request, hits));
        if keeps_lines {
            outcome.lines.push(hits);
        }
        if number % LOOK_EVERY == LOOK_EVERY - 1 {
            look(LOOK_EVERY)?;
        }
    }
    look(clock.checked.requests % LOOK_EVERY)?;
    outcome.first_tokens.sort_unstable_by(f32::total_cmp);
    outcome.written = written(&replay);
    outcome.rewritten = replay.stats().relocated_pages;
    outcome.written_in_worst_minute = minutes.worst(outcome.written);
    outcome.unreachable = replay.unreachable_pages();
    Ok(outcome)
}

fn core(pair: &SizePair, clock: &Clock<'_>) -> Result<CoreReplay, BenchError> {
    let tiers = CoreTiers {
        policy: clock.options.policy,
        admission: clock.options.admission,
        write_millipages_per_s: clock.options.write_budget.map(|budget| {
            (u128::from(budget.0) * 1000 / u128::from(clock.checked.page_bytes())) as u64
        }),
        dram_pages: pair.dram_pages,
        ssd_pages: pair.ssd_pages,
        ssd_segments: clock.options.ssd_segments,
    };
    CoreReplay::new(&tiers, Arc::clone(&clock.keys))
        .map_err(|error| BenchError::Option { option: "--trace", problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_minute_is_found_also_if_it_is_the_last() {
        let mut minutes = Minutes::default();
        for (timestamp_ms, written) in [(0, 0), (59_999, 10), (60_000, 15), (200_000, 20)] {
            minutes.at(timestamp_ms, written);
        }
        assert_eq!(minutes.worst(28), 15);
        let mut minutes = Minutes::default();
        minutes.at(60_000, 5);
        assert_eq!(minutes.worst(28), 23);
    }

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times: Vec<f32> = (1..=200).map(|time| time as f32).collect();
        let outcome = Outcome { first_tokens: times, ..Outcome::default() };
        assert_eq!(outcome.first_token_s(0.5), Some(100.0));
        assert_eq!(outcome.first_token_s(0.99), Some(198.0));
        assert_eq!(Outcome::default().first_token_s(0.5), None);
    }
}
