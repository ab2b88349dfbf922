#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::*;
use crate::ExactLru;
use std::io::Write;
use std::path::PathBuf;

fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    path
}

fn line(timestamp: u64, tokens: u32, ids: &[u64]) -> String {
    format!(
        "{{\"timestamp\": {timestamp}, \"input_length\": {tokens}, \"output_length\": 9, \
         \"hash_ids\": {ids:?}, \"kind\": \"main\"}}\n"
    )
}

#[test]
fn plain_and_compressed_traces_are_the_same_trace() {
    let dir = tempfile::tempdir().unwrap();
    let text = line(5, 1300, &[70, 71, 72]) + "\n" + &line(9, 600, &[70, 8]);
    let plain = Trace::open(&write(dir.path(), "plain", text.as_bytes())).unwrap();
    let packed = zstd::encode_all(text.as_bytes(), 3).unwrap();
    // No `.zst` in the name: the content decides.
    let packed = Trace::open(&write(dir.path(), "packed", &packed)).unwrap();
    assert_eq!(plain.digest(), packed.digest());
    assert_eq!(plain.request(1), packed.request(1));
    assert_eq!(plain.request(0).pages, [0, 1, 2]);
    assert_eq!(plain.request(1).pages, [0, 3]);
    assert_eq!(plain.names(), [70, 71, 72, 8]);
    let stats = plain.stats();
    assert_eq!((stats.requests, stats.references, stats.distinct), (2, 5, 4));
    assert_eq!((stats.longest, stats.duration_ms), (3, 4));
}

#[test]
fn a_broken_line_is_named_with_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let good = line(0, 512, &[1]);
    for (name, bad, expected) in [
        ("json", "{oops\n".to_owned(), "expected an object with timestamp"),
        ("field", "{\"timestamp\": 1}\n".to_owned(), "missing field `input_length`"),
        ("negative", good.replace("[1]", "[-1]"), "hash_ids"),
        ("time", good.replace(": 0,", ": -3,"), "allowed 0..=1e15"),
        ("prefix", line(1, 1024, &[2, 1]), "id 1 stands after 2 here and first earlier"),
        ("twice", line(1, 1024, &[3, 3]), "id 3 stands after 3 here and first earlier"),
    ] {
        let path = write(dir.path(), name, (good.clone() + &good + &bad).as_bytes());
        let error = Trace::open(&path).unwrap_err();
        assert!(error.is_start());
        let error = error.to_string();
        assert!(error.starts_with(&format!("{}:3: ", path.display())), "{error}");
        assert!(error.contains(expected) || name == "negative", "{error}");
    }
}

#[test]
fn an_unusable_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = Trace::open(&missing).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot open {}", missing.display())), "{error}");
    let empty = Trace::open(&write(dir.path(), "empty", b"\n")).unwrap_err().to_string();
    assert!(empty.contains("no requests"), "{empty}");
    let mut cut = zstd::encode_all(line(0, 1, &[1]).as_bytes(), 3).unwrap();
    cut.pop();
    let cut = Trace::open(&write(dir.path(), "cut", &cut)).unwrap_err().to_string();
    assert!(cut.contains("cannot be read"), "{cut}");
}

#[test]
fn partial_last_blocks_can_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let text = line(0, 1300, &[1, 2, 3]) + &line(1, 1024, &[1, 2]) + &line(2, 100, &[9]);
    let trace = Trace::open(&write(dir.path(), "trace", text.as_bytes())).unwrap();
    let full = trace.full_pages_only().unwrap();
    let pages: Vec<usize> = full.requests().map(|request| request.pages.len()).collect();
    assert_eq!(pages, [2, 2, 0]);
    assert_eq!(full.stats().distinct, 2);

    let text = line(0, 1300, &[1, 2]) + &line(1, 1100, &[1, 2]);
    let trace = Trace::open(&write(dir.path(), "full", text.as_bytes())).unwrap();
    assert_eq!(trace.full_pages_only().unwrap().stats().references, 4);

    let text = line(0, 1300, &[1, 2, 3]) + &line(1, 90, &[1, 2]);
    let trace = Trace::open(&write(dir.path(), "odd", text.as_bytes())).unwrap();
    assert!(trace.full_pages_only().unwrap_err().contains("no block size"));
}

/// Where the published traces lie: `UNDERCROFT_TRACES`, else beside the repository.
fn published(name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces");
    let dir = std::env::var_os("UNDERCROFT_TRACES").map_or(beside, PathBuf::from);
    let path = dir.join(format!("{name}.jsonl.zst"));
    if !path.is_file() {
        println!("SKIPPED: no {}; set UNDERCROFT_TRACES to the traces' folder", path.display());
        return None;
    }
    Some(path)
}

/// Prefix-hit ratio of the exact LRU in hundredths of a percent, as published.
fn ratio(trace: &Trace, percent: u64) -> u64 {
    let stats = trace.stats();
    let mut lru = ExactLru::new((stats.distinct * percent / 100) as usize);
    let hits: usize = trace.requests().map(|request| lru.request(request.pages)).sum();
    (hits as f64 * 10_000.0 / stats.references as f64).round() as u64
}

#[test]
fn published_conversation_trace_gives_the_published_figures() {
    let Some(path) = published("mooncake_conversation_blk512") else {
        return;
    };
    let trace = Trace::open(&path).unwrap();
    let stats = trace.stats();
    assert_eq!((stats.requests, stats.references, stats.distinct), (12_031, 288_500, 182_790));
    assert_eq!(ratio(&trace, 5), 1958);
    assert!(trace.full_pages_only().unwrap().stats().distinct < stats.distinct);
}

#[test]
fn published_synthetic_trace_gives_the_published_figures() {
    let Some(path) = published("mooncake_synthetic_blk512") else {
        return;
    };
    let trace = Trace::open(&path).unwrap();
    let stats = trace.stats();
    assert_eq!((stats.requests, stats.references, stats.distinct), (3_993, 121_877, 43_924));
    assert_eq!(ratio(&trace, 20), 3931);
}
