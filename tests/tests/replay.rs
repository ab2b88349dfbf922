//! `undercroft bench replay` against an independent, naive, exact tail-first LRU.

use std::collections::HashMap;
use std::path::Path;
use std::process::Output;
use undercroft_benches::{GeneratorOptions, Trace, generate};
use undercroft_tests::{DaemonOptions, TestDaemon, run, skip, traces};

/// The counting rules in their plainest form: a list of pages, most recent first. A request's
/// hits are its leading resident pages; then all its pages move to the front, tail first; then
/// the list is cut.
fn naive(trace: &Trace, requests: usize, capacity: usize) -> Vec<usize> {
    let mut stamps: HashMap<u32, (u64, std::cmp::Reverse<usize>)> = HashMap::new();
    let mut hits = Vec::new();
    for (clock, request) in trace.requests().take(requests).enumerate() {
        hits.push(request.pages.iter().take_while(|p| stamps.contains_key(p)).count());
        for (depth, page) in request.pages.iter().enumerate() {
            stamps.insert(*page, (clock as u64, std::cmp::Reverse(depth)));
        }
        if stamps.len() > capacity {
            let mut order: Vec<_> = stamps.iter().map(|(p, s)| (*s, *p)).collect();
            let cut = order.len() - capacity;
            order.select_nth_unstable(cut - 1);
            for (_, page) in &order[..cut] {
                stamps.remove(page);
            }
        }
    }
    hits
}

fn csv_hits(path: &Path) -> Vec<usize> {
    let text = std::fs::read_to_string(path).expect("the CSV was written");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("request,pages,prefix_hit,dram_hit,ssd_hit"));
    lines.map(|l| l.split(',').nth(2).and_then(|f| f.parse().ok()).expect("a number")).collect()
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("the report was written")).expect("JSON")
}

#[test]
fn generated_traffic_hits_exactly_like_the_naive_lru() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let csv = home.path().join("hits.csv");
    let trace = generate(&GeneratorOptions { requests: 120, seed: 7 });
    for capacity in [3usize, 40, 300] {
        let dram = (capacity * 64 * 1024).to_string();
        let output = run(&[
            "bench",
            "replay",
            "--requests",
            "120",
            "--seed",
            "7",
            "--page-bytes",
            "64KiB",
            "--dram",
            &dram,
            "--ssd",
            "0",
            "--policy",
            "lru",
            "--serial",
            "--csv",
            &csv.display().to_string(),
        ]);
        good(&output);
        assert_eq!(csv_hits(&csv), naive(&trace, 120, capacity), "capacity {capacity}");
    }
}

/// Bytes that a daemon wrote to SSD for the same traffic, and for how long it did at most, seconds.
fn written(more: &[&str]) -> (u64, f64) {
    let home = tempfile::tempdir().expect("a temporary folder");
    let report = home.path().join("report.json");
    let path = report.display().to_string();
    let args = "bench replay --requests 120 --seed 7 --page-bytes 64KiB --dram 4MiB --ssd 1GiB \
                --policy lru --admission demote --json";
    let start = std::time::Instant::now();
    good(&run(&[&args.split_whitespace().collect::<Vec<_>>()[..], &[&path], more].concat()));
    let bytes = json(&report)["ssd_bytes_written"].as_u64().expect("a number");
    (bytes, start.elapsed().as_secs_f64())
}

#[test]
fn no_more_is_written_than_the_budget_allows() {
    let (all, _) = written(&[]);
    let (some, seconds) = written(&["--write-budget", "256KiB/s"]);
    // It begins with a minute that is used up. Slots of time are kept whole, so a second more.
    let most = (256 << 10) as f64 * (seconds + 1.0);
    assert!(some as f64 <= most, "{some} bytes in {seconds} s");
    assert!(some < all, "{some} of {all} bytes");
}

#[test]
fn staging_smaller_than_a_request_changes_nothing() {
    let (pages, page_bytes) = (50u64, 16u64 << 10);
    let home = tempfile::tempdir().expect("a temporary folder");
    let csv = home.path().join("hits.csv");
    let trace = generate(&GeneratorOptions { requests: 60, seed: 3 });
    for slots in [1, 3] {
        let daemon = TestDaemon::start(DaemonOptions {
            dram: pages * page_bytes,
            staging: slots * page_bytes,
            ..DaemonOptions::default()
        });
        let output = run(&[
            "bench",
            "replay",
            "--requests",
            "60",
            "--seed",
            "3",
            "--page-bytes",
            "16KiB",
            "--serial",
            "--socket",
            &daemon.socket().display().to_string(),
            "--csv",
            &csv.display().to_string(),
        ]);
        good(&output);
        assert_eq!(csv_hits(&csv), naive(&trace, 60, pages as usize), "{slots} slots");
    }
}

#[test]
fn published_traces_hit_exactly_like_the_naive_lru() {
    let test = "published_traces_hit_exactly_like_the_naive_lru";
    // Whole in an optimised build, the first thousand requests where every step is checked twice.
    let requests = if cfg!(debug_assertions) { 1000 } else { usize::MAX };
    for (name, percent) in [("mooncake_conversation_blk512", 5), ("mooncake_synthetic_blk512", 20)]
    {
        let Some(path) = traces(&format!("{name}.jsonl.zst")) else {
            skip(test, &format!("{name} is not here (UNDERCROFT_TRACES)"));
            continue;
        };
        let trace = Trace::open(&path).expect("a published trace");
        let requests = requests.min(trace.len());
        let capacity = trace.stats().distinct as usize * percent / 100;
        let home = tempfile::tempdir().expect("a temporary folder");
        let csv = home.path().join("hits.csv");
        let output = run(&[
            "bench",
            "replay",
            "--trace",
            &path.display().to_string(),
            "--page-bytes",
            "4KiB",
            "--requests",
            &requests.to_string(),
            "--dram",
            &format!("{percent}%"),
            "--ssd",
            "0",
            "--policy",
            "lru",
            "--serial",
            "--csv",
            &csv.display().to_string(),
        ]);
        good(&output);
        assert_eq!(csv_hits(&csv), naive(&trace, requests, capacity), "{name}");
    }
}

#[test]
fn the_default_replay_hits_in_both_tiers_and_cleans_up() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let report = home.path().join("report.json");
    let output = std::process::Command::new(undercroft_tests::program("undercroft"))
        .args(["bench", "replay", "--requests", "150", "--dram", "32MiB", "--ssd", "128MiB"])
        .args(["--json", &report.display().to_string()])
        .env("TMPDIR", home.path())
        .output()
        .expect("the binary runs");
    good(&output);
    let report = json(&report);
    assert_eq!(report["schema"], 1);
    assert_eq!(report["wrong_bytes"], 0);
    assert!(report["hits"]["dram"].as_u64() > Some(0), "{report}");
    assert!(report["hits"]["ssd"].as_u64() > Some(0), "{report}");
    let left = std::fs::read_dir(home.path()).expect("our folder").count();
    assert_eq!(left, 1, "only the report is left");
}

#[test]
fn several_clients_get_right_bytes_too() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let report = home.path().join("report.json");
    let output = run(&[
        "bench",
        "replay",
        "--requests",
        "150",
        "--clients",
        "3",
        "--page-bytes",
        "64KiB",
        "--dram",
        "8MiB",
        "--ssd",
        "32MiB",
        "--json",
        &report.display().to_string(),
    ]);
    good(&output);
    let report = json(&report);
    assert_eq!((&report["wrong_bytes"], &report["clients"]), (&0.into(), &3.into()));
    assert!(report["prefix_hits"].as_u64() > Some(0), "{report}");
}

/// Several processes with one trace; what they report.
fn fleet(more: &[&str]) -> serde_json::Value {
    let home = tempfile::tempdir().expect("a temporary folder");
    let report = home.path().join("report.json");
    let path = report.display().to_string();
    let shape = ["bench", "replay", "--page-bytes", "16KiB", "--ssd", "0", "--json", &path];
    good(&run(&[&shape[..], more].concat()));
    json(&report)
}

#[test]
fn engines_in_step_hit_what_one_alone_hits() {
    // As much DRAM as a fifth of the pages: what leaves must be the same as with one alone, too.
    let more =
        ["--requests", "80", "--processes", "4", "--barrier", "--dram", "20%", "--policy", "lru"];
    let report = fleet(&more);
    assert_eq!(report["wrong_bytes"], 0);
    assert!(report["alone_hits"].as_u64() > Some(0), "{report}");
    assert_eq!(report["committed_pages"], report["alone_committed_pages"], "{report}");
    let processes = report["processes"].as_array().expect("one each");
    assert_eq!(processes.len(), 4);
    for process in processes {
        assert_eq!(process["hits"], report["alone_hits"], "{report}");
        assert_eq!(
            (&process["requests_above"], &process["requests_below"]),
            (&0.into(), &0.into())
        );
    }
}

#[test]
fn engines_at_their_own_pace_lose_no_hit_to_each_other() {
    let report = fleet(&["--requests", "80", "--processes", "4", "--dram", "100%"]);
    assert_eq!(report["wrong_bytes"], 0);
    assert_eq!(report["committed_pages"], report["alone_committed_pages"], "{report}");
    for process in report["processes"].as_array().expect("one each") {
        assert!(process["hits"].as_u64() >= report["alone_hits"].as_u64(), "{report}");
        assert_eq!(process["requests_below"], 0, "what they stored they find: {report}");
    }
}

#[test]
fn kill_9_in_the_middle_of_a_replay() {
    let mut daemon = TestDaemon::start(DaemonOptions {
        dram: 4 << 20,
        ssd: 64 << 20,
        staging: 1 << 20,
        ..DaemonOptions::default()
    });
    let home = tempfile::tempdir().expect("a temporary folder");
    let path = home.path().join("report.json");
    let child = std::process::Command::new(undercroft_tests::program("undercroft"))
        .args(["bench", "replay", "--requests", "1500", "--page-bytes", "16KiB"])
        .arg("--socket")
        .arg(daemon.socket())
        .arg("--json")
        .arg(&path)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let stored = |daemon: &TestDaemon| daemon.status().stores.stored;
    while stored(&daemon) < 500 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    daemon.kill();
    std::thread::sleep(std::time::Duration::from_millis(100));
    daemon.restart();
    let output = child.wait_with_output().expect("our child");
    good(&output);
    let report = json(&path);
    assert_eq!(report["wrong_bytes"], 0);
    assert_eq!(report["overdue_calls"], 0, "{report}");
    assert_eq!(report["requests"], 1500);
    let status = daemon.status();
    let ssd = status.ssd.expect("there is one");
    assert!(ssd.recovered_records > 0, "{ssd:?}");
    assert!(status.hits.dram_pages > 0 && status.hits.ssd_pages > 0, "{:?}", status.hits);
}

#[test]
fn where_io_uring_is_refused_the_same_replay_passes() {
    let daemon = TestDaemon::start(DaemonOptions {
        dram: 4 << 20,
        ssd: 64 << 20,
        refuse: vec!["io-uring"],
        ..DaemonOptions::default()
    });
    let engine = |daemon: &TestDaemon| {
        daemon.status().ssd.expect("there is one").devices.swap_remove(0).engine
    };
    assert_eq!(engine(&daemon), "threads");
    let output = run(&[
        "bench",
        "replay",
        "--requests",
        "200",
        "--page-bytes",
        "16KiB",
        "--socket",
        &daemon.socket().display().to_string(),
    ]);
    good(&output);
    let status = daemon.status();
    assert!(status.hits.ssd_pages > 0, "{:?}", status.hits);
    let asked = DaemonOptions {
        ssd: 4 << 20,
        more: "engine = \"threads\"".to_owned(),
        ..DaemonOptions::default()
    };
    assert_eq!(engine(&TestDaemon::start(asked)), "threads");
}

#[test]
fn bad_arguments_name_the_option_and_what_is_allowed() {
    for (arguments, words) in [
        (vec!["--page-bytes", "7"], vec!["--page-bytes"]),
        (vec!["--dram", "lots"], vec!["--dram", "lots", "KiB"]),
        (vec!["--clients", "0"], vec!["--clients", "1..=64"]),
        (vec!["--processes", "0"], vec!["--processes", "1..=32"]),
        (vec!["--barrier"], vec!["--processes"]),
        (vec!["--trace", "/nonexistent"], vec!["/nonexistent"]),
        (vec!["--policy", "fifo"], vec!["fifo", "lru"]),
        (vec!["--dram", "1MiB", "--socket", "/nonexistent"], vec!["--dram", "--socket"]),
    ] {
        let output = run(&[&["bench", "replay"], &arguments[..]].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(words.iter().all(|w| text.contains(w)), "{arguments:?}: {text}");
    }
}
