#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::*;
use crate::{
    BenchError, ByteSize, ExactLru, GeneratorOptions, TierSize, Trace, generate, replay_keys,
};
use std::path::Path;
use undercroft_core::{Admission, Micros, Policy};

fn tiers(policy: Policy, dram_pages: u64, ssd_pages: u64) -> CoreTiers {
    CoreTiers {
        policy,
        admission: Admission::Demote,
        write_millipages_per_s: None,
        dram_pages,
        ssd_pages,
        ssd_segments: 64,
    }
}

fn play(trace: &Trace, tiers: &CoreTiers) -> Vec<CoreHits> {
    let mut replay = CoreReplay::new(tiers, replay_keys(trace).into()).unwrap();
    let at = |timestamp_ms: u64| Micros(timestamp_ms * 1000);
    let play =
        |request: crate::TraceRequest<'_>| replay.request(at(request.timestamp_ms), request.pages);
    let hits = trace.requests().map(play).collect();
    replay.audit();
    hits
}

#[test]
fn lru_is_the_exact_lru_page_for_page() {
    for seed in 1..6 {
        let trace = generate(&GeneratorOptions { requests: 200, seed });
        for capacity in [1, 3, 40, 300, 2000] {
            let found = play(&trace, &tiers(Policy::Lru, capacity, 0));
            let mut exact = ExactLru::new(capacity as usize);
            for (number, (request, hits)) in trace.requests().zip(found).enumerate() {
                let expected = CoreHits { dram: exact.request(request.pages) as u32, ssd: 0 };
                assert_eq!(hits, expected, "seed {seed}, {capacity} pages, request {number}");
            }
        }
    }
}

#[test]
fn with_room_for_everything_all_that_was_seen_is_found() {
    let trace = generate(&GeneratorOptions { requests: 300, seed: 4 });
    let distinct = trace.stats().distinct;
    let total = |hits: &[CoreHits]| -> u64 {
        hits.iter().map(|hits| u64::from(hits.dram + hits.ssd)).sum()
    };
    let most = outcome::hits_without_bounds(&trace, trace.len());
    assert_eq!(total(&play(&trace, &tiers(Policy::default(), distinct, 0))), most);
    for policy in Policy::ALL {
        let found = play(&trace, &tiers(policy, distinct / 10, distinct));
        assert_eq!(total(&found), most, "{}", policy.name());
        assert!(found.iter().any(|hits| hits.ssd > 0), "DRAM alone has no room for that");
    }
}

#[test]
fn an_ssd_smaller_than_what_there_is_helps_and_is_written_to() {
    let trace = generate(&GeneratorOptions { requests: 400, seed: 2 });
    let distinct = trace.stats().distinct;
    let hits = |ssd: u64| -> u64 {
        let found = play(&trace, &tiers(Policy::Lru, distinct / 20, ssd));
        found.iter().map(|hits| u64::from(hits.dram + hits.ssd)).sum()
    };
    let (none, some, more) = (hits(0), hits(distinct / 5), hits(distinct / 2));
    assert!(none < some && some < more, "{none} {some} {more}");
}

fn options() -> PlanOptions {
    PlanOptions {
        trace: None,
        requests: Some(200),
        seed: 42,
        full_pages_only: false,
        page_tokens: None,
        policy: Policy::default(),
        admission: Admission::Demote,
        write_budget: None,
        dram: vec![TierSize::Share(50_000), TierSize::Share(200_000)],
        ssd: vec![TierSize::Share(0), TierSize::Share(500_000)],
        ssd_segments: 64,
        model: "llama-3.1-8b".parse().unwrap(),
        token_bytes: None,
        tp: 1,
        gpu: "h100".parse().unwrap(),
        utilisation: 0.5,
        prefill_tokens_per_s: Some(10_000.0),
        dram_bytes_per_s: 25e9,
        ssd_bytes_per_s: 5e9,
        prices: Prices {
            dram_per_gib: 5.0,
            ssd_per_gib: 0.1,
            gpu_hour: 2.5,
            years: 4.0,
            drive_writes_per_day: 1.0,
        },
        threads: Some(2),
        csv: None,
        json: None,
        html: None,
    }
}

fn refusal(change: impl FnOnce(&mut PlanOptions)) -> String {
    let mut options = options();
    change(&mut options);
    let error = plan(&options).unwrap_err();
    assert!(error.is_start());
    error.to_string()
}

#[test]
fn rows_are_what_their_sizes_give_alone() {
    let report = plan(&options()).unwrap();
    let trace = generate(&GeneratorOptions { requests: 200, seed: 42 });
    assert_eq!(report.rows.len(), 4);
    for row in &report.rows {
        let found = play(&trace, &tiers(Policy::default(), row.dram_pages, row.ssd_pages));
        let sum =
            |of: fn(&CoreHits) -> u32| found.iter().map(|hits| u64::from(of(hits))).sum::<u64>();
        assert_eq!(row.hits.dram_pages, sum(|hits| hits.dram), "{}", row.dram);
        assert_eq!(row.hits.ssd_pages, sum(|hits| hits.ssd), "{}", row.ssd);
        assert_eq!(row.dram_bytes, row.dram_pages * 512 * (128 << 10));
        assert!((row.writes.pages > 0) == (row.ssd_pages > 0));
        assert!(row.speed.ttft_p50_ms <= row.speed.ttft_p99_ms);
        assert!(row.speed.ttft_p50_ms < report.without.ttft_p50_ms);
    }
    assert_eq!(report.traffic.page_tokens, 512);
}

/// Two requests of one conversation, a second apart: 2 and then 3 pages of 100 tokens.
fn short_trace(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("short.jsonl");
    let line = |at: u32, tokens: u32, ids: &[u64]| {
        format!(
            "{{\"timestamp\": {at}, \"input_length\": {tokens}, \"output_length\": 1, \
             \"hash_ids\": {ids:?}}}\n"
        )
    };
    let text = line(500, 200, &[1, 2]) + &line(1500, 300, &[1, 2, 3]);
    std::fs::write(&path, text).unwrap();
    path
}

/// By hand: 1000 bytes a token and pages of 100 tokens; 1000 tokens a second are computed, and a
/// million bytes a second come from DRAM. The first request computes 200 tokens; the second loads
/// 200,000 bytes in 0.2 s and computes 100 tokens in 0.1 s.
#[test]
fn figures_are_what_one_computes_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options();
    options.trace = Some(short_trace(folder.path()));
    options.requests = None;
    options.page_tokens = Some(100);
    options.token_bytes = Some(ByteSize(1000));
    options.prefill_tokens_per_s = Some(1000.0);
    options.dram_bytes_per_s = 1e6;
    options.tp = 2;
    options.dram = vec![TierSize::Share(1_000_000)];
    options.ssd = vec![TierSize::Bytes(0)];
    let report = plan(&options).unwrap();
    let [row] = &report.rows[..] else { panic!("one pair") };
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-3, "{found}");
    near(row.hits.ratio, 2.0 / 5.0);
    near(row.speed.ttft_p50_ms, 200.0);
    near(row.speed.ttft_p99_ms, 300.0);
    near(row.speed.load_mean_ms, 100.0);
    near(report.without.ttft_p99_ms, 300.0);
    // 0.3 s of two GPUs in a second, and 0.5 s of them without a cache.
    near(row.speed.prefill_gpus.unwrap(), 0.6);
    near(report.without.prefill_gpus.unwrap(), 1.0);
    let cost = row.speed.cost_per_million_tokens.unwrap();
    near(cost.gpu, 0.6 / 3600.0 * 2.5 / 500e-6);
    assert_eq!((report.traffic.input_tokens, report.knee, report.cheapest), (500, 0, Some(0)));
    assert!(report.knee_is_last);
}

#[test]
fn a_trace_that_takes_no_time_has_no_rates() {
    let mut options = options();
    options.requests = Some(1);
    let report = plan(&options).unwrap();
    assert_eq!(report.rows[1].writes.bytes_per_s, None);
    assert_eq!((report.cheapest, report.without.prefill_gpus), (None, None));
    assert!(report.notes.iter().any(|note| note.contains("takes no time")), "{:?}", report.notes);
    assert!(!report.table().contains("NaN") && !report.table().contains("inf"));
}

#[test]
fn what_cannot_be_is_refused_by_the_options_name() {
    let size = |bytes| vec![TierSize::Bytes(bytes)];
    assert!(refusal(|o| o.requests = Some(0)).starts_with("--requests: is 0"));
    assert!(refusal(|o| o.dram = Vec::new()).starts_with("--dram: has 0 sizes"));
    assert!(refusal(|o| o.dram = size(5)).starts_with("--dram: 5 is room for no page of"));
    assert!(refusal(|o| o.ssd = size(5)).starts_with("--ssd: 5 is room for no page of"));
    assert!(refusal(|o| o.ssd_segments = 0).starts_with("--ssd-segments: is 0"));
    assert!(refusal(|o| o.tp = 0).starts_with("--tp: is 0, allowed 1..=1024"));
    assert!(refusal(|o| o.threads = Some(0)).starts_with("--threads: is 0"));
    assert!(refusal(|o| o.prices.years = 0.0).starts_with("--years: is 0, allowed more than 0"));
    assert!(refusal(|o| o.ssd_bytes_per_s = f64::NAN).starts_with("--ssd-bytes-per-s: is NaN"));
    assert!(
        refusal(|o| o.page_tokens = Some(1 << 20)).starts_with("--page-tokens: 1048576 tokens")
    );
    assert!(refusal(|o| o.csv = Some("-".into())).starts_with("--csv: is of one size pair"));
    let gone = refusal(|o| o.trace = Some("/nonexistent".into()));
    assert!(gone.contains("/nonexistent"), "{gone}");
    let bare = |o: &mut PlanOptions| {
        o.model = "custom:layers=2,kv-heads=1,head-dim=64,dtype=bf16".parse().unwrap();
        o.prefill_tokens_per_s = None;
    };
    assert!(refusal(bare).starts_with("--model: has no params"));
}

#[test]
fn a_part_of_a_trace_is_called_a_sample_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options();
    options.trace = Some(short_trace(folder.path()));
    options.requests = Some(1);
    options.page_tokens = Some(100);
    options.dram = vec![TierSize::Share(1_000_000)];
    let report = plan(&options).unwrap();
    assert!(report.table().contains("a sample, the first of 2"), "{}", report.table());
    assert!(report.html().contains("A sample: only the first 1 of 2 requests."));
    assert!(report.notes.iter().any(|note| note.contains("only the first 1")));
    assert_eq!((report.traffic.requests, report.traffic.all_requests), (1, 2));
}

#[test]
fn a_line_that_is_no_request_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = short_trace(folder.path());
    let text = std::fs::read_to_string(&path).unwrap() + "{}\n";
    std::fs::write(&path, text).unwrap();
    let mut options = options();
    options.trace = Some(path);
    let error = plan(&options).unwrap_err();
    assert!(matches!(error, BenchError::TraceLine { line: 3, .. }), "{error}");
}
