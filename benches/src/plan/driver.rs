use super::knee::{Choice, knee};
use super::options::{Checked, PlanOptions, SizePair};
use super::outcome::{Clock, Outcome, hits_without_bounds, play, without};
use super::report::{PlanHits, PlanReport, PlanRow, Speed, Traffic, Writes};
use super::text::{assumptions, notes};
use crate::interrupt::Interrupt;
use crate::replay::{Line, Output, csv_text, json_text, replay_keys};
use crate::{BenchError, Trace, progress};
use indicatif::ProgressBar;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Replays a trace through the daemon's decisions at each pair of sizes, and reckons what requests,
/// drives and tokens would be like.
///
/// # Errors
/// Options or a trace that cannot be used, files that cannot be written, Ctrl-C.
pub fn plan(options: &PlanOptions) -> Result<PlanReport, BenchError> {
    let open = |path: &Option<_>| path.as_deref().map(Output::open).transpose();
    let (csv, json, html) = (open(&options.csv)?, open(&options.json)?, open(&options.html)?);
    let trace = options.traffic()?;
    let checked = options.check(&trace)?;
    let interrupt = Interrupt::watch()?;
    let steps = checked.requests as u64 * checked.pairs.len() as u64;
    let bar = progress::bar(steps, "requests");
    let (since, cpu_before) = (Instant::now(), processor_time());
    let clock = Clock { options, checked: &checked, keys: replay_keys(&trace).into() };
    let outcomes = play_all(&trace, &clock, &bar, &interrupt)?;
    let (wall, cpu) = (since.elapsed(), processor_time() - cpu_before);
    bar.finish_and_clear();
    let mut report = report(&trace, &clock, &outcomes);
    report.wall_s = wall.as_secs_f64();
    report.cpu_s = cpu.as_secs_f64();
    if let (Some(csv), Some(outcome)) = (csv, outcomes.first()) {
        csv.write(&csv_text(&lines(&trace, outcome)))?;
    }
    if let Some(json) = json {
        json.write(&json_text(&report))?;
    }
    if let Some(html) = html {
        html.write(report.html().as_bytes())?;
    }
    Ok(report)
}

/// Of this process so far.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn lines(trace: &Trace, outcome: &Outcome) -> Vec<Line> {
    let requests = trace.requests().zip(&outcome.lines).enumerate();
    let line = |(number, (request, hits)): (usize, (crate::TraceRequest<'_>, &super::CoreHits))| {
        let pages = request.pages.len() as u32;
        Line { request: number, pages, dram_hit: hits.dram, ssd_hit: hits.ssd }
    };
    requests.map(line).collect()
}

/// Plays all size pairs, several at once; their outcomes in the pairs' order.
fn play_all(
    trace: &Trace,
    clock: &Clock<'_>,
    bar: &ProgressBar,
    interrupt: &Interrupt,
) -> Result<Vec<Outcome>, BenchError> {
    let pairs = &clock.checked.pairs;
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let look = |requests: usize| {
        bar.inc(requests as u64);
        if failed.load(Ordering::Relaxed) {
            Err(BenchError::Interrupted)
        } else {
            interrupt.check()
        }
    };
    let worker = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(pair) = pairs.get(at) else { return Ok(done) };
            match play(trace, pair, clock, look) {
                Ok(outcome) => done.push((at, outcome)),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let threads = clock.checked.threads.min(pairs.len());
    let parts: Vec<Result<Vec<(usize, Outcome)>, BenchError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    let mut all = Vec::new();
    for part in parts {
        all.extend(part?);
    }
    all.sort_unstable_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, outcome)| outcome).collect())
}

/// The traffic's own figures that rates are reckoned with.
#[derive(Debug, Clone, Copy)]
struct Amounts {
    tokens: f64,
    /// `None`: no time at all.
    seconds: Option<f64>,
}

fn report(trace: &Trace, clock: &Clock<'_>, outcomes: &[Outcome]) -> PlanReport {
    let Clock { options, checked, .. } = clock;
    let traffic = traffic(trace, options, checked);
    let seconds = Some(traffic.duration_s).filter(|seconds| *seconds > 0.0);
    let amounts = Amounts { tokens: traffic.input_tokens as f64, seconds };
    let row = |(pair, outcome)| row(clock, amounts, pair, outcome);
    let rows: Vec<PlanRow> = checked.pairs.iter().zip(outcomes).map(row).collect();
    let choice = |row: &PlanRow| Choice { price: row.hardware_price, hit_ratio: row.hits.ratio };
    let knee = knee(&rows.iter().map(choice).collect::<Vec<_>>()).expect("there is a size pair");
    let total = |row: &PlanRow| row.speed.cost_per_million_tokens.map(|cost| cost.total);
    let costs = rows.iter().enumerate().filter_map(|(at, row)| Some((at, total(row)?)));
    let cheapest = costs.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at);
    let nothing = without(trace, clock);
    let has_gpu = options.prefill_tokens_per_s.is_none();
    PlanReport {
        schema: 1,
        policy: options.policy.name(),
        admission: options.admission.to_string(),
        write_budget_bytes_per_s: options.write_budget.map(|budget| budget.0),
        model: options.token_bytes.is_none().then(|| options.model.clone()),
        token_bytes: checked.token_bytes,
        page_bytes: checked.page_bytes(),
        tp: options.tp,
        gpu: has_gpu.then_some(options.gpu),
        recompute: checked.recompute.clone(),
        dram_bytes_per_s: options.dram_bytes_per_s,
        ssd_bytes_per_s: options.ssd_bytes_per_s,
        prices: options.prices,
        without: speed(clock, amounts, &nothing, (0, 0), None),
        rows,
        knee: knee.at,
        knee_is_last: knee.is_last,
        cheapest,
        assumptions: assumptions(options, checked),
        notes: notes(options, &traffic, knee.is_last),
        traffic,
        threads: checked.threads.min(checked.pairs.len()),
        wall_s: 0.0,
        cpu_s: 0.0,
    }
}

fn traffic(trace: &Trace, options: &PlanOptions, checked: &Checked) -> Traffic {
    let replayed = || trace.requests().take(checked.requests);
    let pages: u64 = replayed().map(|request| request.pages.len() as u64).sum();
    let arrivals = || replayed().map(|request| request.timestamp_ms);
    let duration_ms = arrivals().max().unwrap_or(0) - arrivals().min().unwrap_or(0);
    let hits = hits_without_bounds(trace, checked.requests);
    Traffic {
        source: match &options.trace {
            Some(path) => path.display().to_string(),
            None => format!("generated traffic, seed {}", options.seed),
        },
        requests: checked.requests as u64,
        all_requests: trace.len() as u64,
        pages,
        distinct_pages: trace.stats().distinct,
        input_tokens: replayed().map(|request| u64::from(request.input_tokens)).sum(),
        duration_s: duration_ms as f64 / 1e3,
        page_tokens: checked.page_tokens,
        full_pages_only: options.full_pages_only,
        unbounded_hit_ratio: ratio(hits, pages),
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn row(clock: &Clock<'_>, amounts: Amounts, pair: &SizePair, outcome: &Outcome) -> PlanRow {
    let prices = &clock.options.prices;
    let page_bytes = clock.checked.page_bytes();
    let [dram_bytes, ssd_bytes] =
        [pair.dram_pages, pair.ssd_pages].map(|pages| pages.saturating_mul(page_bytes));
    let written = outcome.written as f64 * page_bytes as f64;
    let bytes_per_s = amounts.seconds.map(|seconds| written / seconds);
    let wear = prices.wear(ssd_bytes, bytes_per_s.unwrap_or(0.0));
    PlanRow {
        dram: pair.dram,
        ssd: pair.ssd,
        dram_pages: pair.dram_pages,
        ssd_pages: pair.ssd_pages,
        dram_bytes,
        ssd_bytes,
        hardware_price: prices.hardware(dram_bytes, ssd_bytes),
        hits: PlanHits {
            dram_pages: outcome.dram_hits,
            ssd_pages: outcome.ssd_hits,
            ratio: ratio(outcome.hits(), outcome.pages),
            dram_ratio: ratio(outcome.dram_hits, outcome.pages),
            ssd_ratio: ratio(outcome.ssd_hits, outcome.pages),
        },
        speed: speed(clock, amounts, outcome, (dram_bytes, ssd_bytes), wear.life_years),
        writes: Writes {
            pages: outcome.written,
            rewritten_pages: outcome.rewritten,
            bytes_per_s,
            worst_minute_bytes_per_s: outcome.written_in_worst_minute as f64 * page_bytes as f64
                / 60.0,
            wear,
        },
        unreachable_pages: outcome.unreachable,
    }
}

fn speed(
    clock: &Clock<'_>,
    amounts: Amounts,
    outcome: &Outcome,
    sizes: (u64, u64),
    life_years: Option<f64>,
) -> Speed {
    let prices = &clock.options.prices;
    // One engine computes on all of its GPUs.
    let gpu_seconds = outcome.compute_s * f64::from(clock.options.tp);
    let ms = |quantile| outcome.first_token_s(quantile).unwrap_or(0.0) * 1e3;
    let cost = |seconds| prices.cost((amounts.tokens, seconds), gpu_seconds, sizes, life_years);
    Speed {
        ttft_p50_ms: ms(0.5),
        ttft_p99_ms: ms(0.99),
        load_mean_ms: outcome.load_s * 1e3 / outcome.first_tokens.len().max(1) as f64,
        prefill_gpus: amounts.seconds.map(|seconds| gpu_seconds / seconds),
        cost_per_million_tokens: amounts.seconds.filter(|_| amounts.tokens > 0.0).map(cost),
    }
}
