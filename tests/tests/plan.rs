//! `undercroft plan` against the real daemon, and what it writes.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;
use undercroft_benches::Policy;
use undercroft_tests::{check_web_page, run, skip, traces};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The lines that one of the two commands writes about each request.
fn lines(home: &TempDir, arguments: &[&str]) -> Vec<String> {
    let csv = home.path().join("hits.csv");
    good(&run(&[arguments, &["--csv", &csv.display().to_string()]].concat()));
    let lines = std::fs::read_to_string(&csv).expect("the CSV was written");
    lines.lines().map(str::to_owned).collect()
}

/// The same traffic through a daemon and through its decisions alone.
fn both(traffic: &[&str], sizes: &[&str], policy: &str) -> (Vec<String>, Vec<String>) {
    let home = tempfile::tempdir().expect("a temporary folder");
    let shared = [traffic, sizes, &["--policy", policy]].concat();
    let daemon = ["bench", "replay", "--page-bytes", "4KiB", "--serial"];
    (
        lines(&home, &[&daemon, &shared[..]].concat()),
        lines(&home, &[&["plan"], &shared[..]].concat()),
    )
}

#[test]
fn a_daemon_hits_what_was_planned_page_for_page() {
    let traffic = ["--requests", "250", "--seed", "5"];
    for policy in Policy::NAMES {
        for dram in ["2%", "10%", "40%"] {
            let (daemon, planned) = both(&traffic, &["--dram", dram, "--ssd", "0"], policy);
            assert_eq!(daemon, planned, "{policy}, DRAM {dram}");
        }
    }
}

#[test]
fn a_daemon_with_room_on_its_ssd_finds_nearly_what_was_planned() {
    // Where nothing is reclaimed all that was seen is found. A busy machine's disk may keep DRAM
    // waiting, so that a page finds no room and is not stored; nothing makes one find more.
    let total = |line: &String| -> u32 {
        line.split(',').nth(2).and_then(|hits| hits.parse().ok()).expect("a number")
    };
    let traffic = ["--requests", "250", "--seed", "6"];
    let (daemon, planned) = both(&traffic, &["--dram", "10%", "--ssd", "100%"], "lru");
    let [daemon, planned] =
        [daemon, planned].map(|lines| lines.iter().skip(1).map(total).collect::<Vec<_>>());
    assert!(daemon.iter().zip(&planned).all(|(found, planned)| found <= planned), "{daemon:?}");
    let [daemon, planned] = [daemon, planned].map(|hits| hits.iter().sum::<u32>());
    assert!(daemon * 10 >= planned * 9, "{daemon} of {planned}");
}

#[test]
fn a_daemon_hits_what_was_planned_of_published_traces() {
    let test = "a_daemon_hits_what_was_planned_of_published_traces";
    for (name, requests) in
        [("mooncake_conversation_blk512", "800"), ("claude_code_a_blk256", "150")]
    {
        let Some(path) = traces(&format!("{name}.jsonl.zst")) else {
            skip(test, &format!("{name} is not here (UNDERCROFT_TRACES)"));
            continue;
        };
        let path = path.display().to_string();
        let traffic = ["--trace", &path, "--requests", requests];
        let (daemon, planned) = both(&traffic, &["--dram", "1%", "--ssd", "0"], "lru");
        assert_eq!(daemon, planned, "{name}");
    }
}

struct Reports {
    _home: TempDir,
    json: PathBuf,
    html: PathBuf,
    table: String,
}

fn reports(more: &[&str]) -> Reports {
    let home = tempfile::tempdir().expect("a temporary folder");
    let (json, html) = (home.path().join("plan.json"), home.path().join("plan.html"));
    let files = ["--json", &json.display().to_string(), "--html", &html.display().to_string()];
    let table = good(&run(&[&["plan", "--requests", "200"], &files[..], more].concat()));
    Reports { _home: home, json, html, table }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("the report was written")).expect("JSON")
}

#[test]
fn one_command_looks_at_thirty_sizes() {
    let reports = reports(&[]);
    let report = json(&reports.json);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!((rows.len(), &report["schema"]), (30, &1.into()));
    let ratio = |row: &Value| row["hits"]["ratio"].as_f64().expect("a ratio");
    for pair in rows.chunks(6) {
        assert_eq!(pair[0]["ssd"], "0", "{}", pair[0]);
        assert!(ratio(&pair[5]) > ratio(&pair[0]), "an SSD for everything gains");
    }
    let bound = report["traffic"]["unbounded_hit_ratio"].as_f64().expect("a ratio");
    assert!((ratio(&rows[29]) - bound).abs() < 1e-9, "{bound}");
    let knee = report["knee"].as_u64().expect("an index") as usize;
    assert_eq!(report["policy"], Policy::default().name());
    assert!(reports.table.contains("knee: DRAM") && reports.table.contains("cheapest: DRAM"));
    assert!(reports.table.contains("assumed: knee: the cheapest pair"), "{}", reports.table);
    let marked = reports.table.lines().find(|line| line.ends_with("knee")).expect("a marked row");
    assert!(marked.contains(&format!("{:.2}", 100.0 * ratio(&rows[knee]))), "{marked}");
}

#[test]
fn the_page_is_whole_and_needs_nothing_from_elsewhere() {
    let reports = reports(&["--dram", "5%,20%", "--ssd", "0,10%,40%"]);
    let html = std::fs::read_to_string(&reports.html).expect("the page was written");
    check_web_page(&html);
    // Six pictures against DRAM and six against SSD.
    assert_eq!(html.matches("<svg").count(), 12);
    assert_eq!(html.matches(r#"<th scope="row">"#).count(), 6);
    for row in json(&reports.json)["rows"].as_array().expect("rows") {
        for ratio in ["ratio", "dram_ratio", "ssd_ratio"] {
            let ratio = row["hits"][ratio].as_f64().expect("a ratio");
            assert!(html.contains(&format!("<td>{:.2}</td>", 100.0 * ratio)), "{ratio}");
        }
    }
    for words in ["knee: DRAM", "cheapest: DRAM", "Drive life", "Assumptions"] {
        assert!(html.contains(words), "{words}");
    }
    check_web_page(&std::fs::read_to_string(reports_of_one().html).expect("the page was written"));
}

fn reports_of_one() -> Reports {
    reports(&[
        "--dram",
        "20%",
        "--ssd",
        "0",
        "--token-bytes",
        "1KiB",
        "--prefill-tokens-per-s",
        "5e3",
    ])
}

#[test]
fn standard_output_carries_one_report() {
    let output = run(&["plan", "--requests", "50", "--dram", "10%", "--ssd", "0", "--json", "-"]);
    let report: Value = serde_json::from_str(&good(&output)).expect("JSON and nothing else");
    assert_eq!(report["rows"].as_array().map(Vec::len), Some(1));
    assert!(text(&output.stderr).contains("knee: DRAM"));
}

#[test]
fn bad_arguments_name_the_option_and_what_is_allowed() {
    for (arguments, words) in [
        (vec!["--dram", "lots"], vec!["--dram", "lots", "KiB"]),
        (vec!["--ssd", "5%,x"], vec!["--ssd", "x", "100%"]),
        (vec!["--dram", "4096"], vec!["--dram", "no page"]),
        (vec!["--policy", "fifo"], vec!["fifo", "lru"]),
        (vec!["--model", "llama-4"], vec!["llama-4", "llama-3.1-8b"]),
        (vec!["--token-bytes", "1KiB"], vec!["--prefill-tokens-per-s"]),
        (vec!["--gpu-hour", "0"], vec!["--gpu-hour", "more than 0"]),
        (vec!["--years", "x"], vec!["--years", "x"]),
        (vec!["--trace", "/nonexistent"], vec!["/nonexistent"]),
        (vec!["--html", "/nonexistent/plan.html"], vec!["/nonexistent/plan.html"]),
        (vec!["--csv", "hits.csv"], vec!["--csv", "one size pair"]),
    ] {
        let output = run(&[&["plan", "--requests", "5"], &arguments[..]].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {said}");
    }
}
