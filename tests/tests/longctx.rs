//! `undercroft bench longctx` on devices and tiers of a few pages.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use undercroft_gpu_shim::cuda;
use undercroft_stand_in::StandIn;
use undercroft_tests::{check_web_page, program, run, skip};

/// 4 layers, 2 KiB a token, 32 KiB a page.
const MODEL: &str = "custom:layers=4,kv-heads=2,head-dim=64,dtype=bf16,params=1e9,heads=8";
const TOKEN_BYTES: u64 = 2048;

fn longctx(arguments: &[&str]) -> Output {
    run(&[&["bench", "longctx", "--model", MODEL, "--repeats", "2"], arguments].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The one line of a run that could not start.
fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let line = text(&output.stderr);
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("the report was written")).expect("JSON")
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} is no number in {row}"))
}

#[test]
fn contexts_go_through_both_tiers_and_come_back_right() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let ssd = home.path().join("ssd");
    std::fs::create_dir(&ssd).expect("a folder in it");
    let (json_path, html) = (home.path().join("out.json"), home.path().join("out.html"));
    let table = good(&longctx(&[
        "--contexts",
        "1k,8k",
        "--dram",
        "4MiB",
        "--ssd",
        "64MiB",
        "--ssd-path",
        &ssd.display().to_string(),
        "--json",
        &json_path.display().to_string(),
        "--html",
        &html.display().to_string(),
    ]));
    let report = json(&json_path);
    assert_eq!((&report["schema"], &report["wrong_bytes"]), (&1.into(), &0.into()));
    let rows = report["rows"].as_array().expect("rows");
    let shape: Vec<_> = rows
        .iter()
        .map(|row| (row["context"].as_u64(), row["tier"].as_str(), row["scaled"].as_str()))
        .collect();
    // 4 MiB have room for 64 pages beside the spare ones: an eighth of the longer context.
    let (short, long) = (Some(1024), Some(8192));
    let (dram, tiers) = (Some("dram"), Some("ssd"));
    let eighth = Some("1/8");
    assert_eq!(
        shape,
        [(short, dram, None), (short, tiers, None), (long, dram, eighth), (long, tiers, eighth)]
    );
    for row in rows {
        let bytes = number(row, "bytes") as u64;
        assert_eq!(bytes, number(row, "context") as u64 * TOKEN_BYTES);
        let [first, last] = ["first_layer_ms", "last_layer_ms"].map(|field| number(row, field));
        assert!(first > 0.0 && first <= last, "{row}");
        assert!(number(row, "recompute_ms") > 0.0 && number(row, "bytes_per_s") > 0.0);
        let scale = bytes / number(row, "measured_bytes") as u64;
        assert_eq!(scale, if row["scaled"].is_null() { 1 } else { 8 });
        let measured = number(row, "measured_last_layer_ms");
        assert!((last / measured - scale as f64).abs() < 1e-6, "{row}");
        assert_eq!(number(row, "repeats"), 2.0);
        assert!(row["ratio"].is_null() || number(row, "ratio") > 0.0);
    }
    let tiers: Vec<_> = report["break_even"].as_array().expect("tiers").iter().collect();
    assert_eq!(tiers.len(), 2);
    assert!(table.contains("scaled 1/8") && table.contains("wrong bytes 0"), "{table}");
    assert!(table.contains("assumed: roofline of 1 × h100"), "{table}");
    assert_eq!(ssd.read_dir().expect("it is there").count(), 0, "files were left behind");
    check_page(&std::fs::read_to_string(&html).expect("the page was written"), rows.len());
}

/// That it needs nothing from elsewhere, is well-formed, and has all rows and both pictures.
fn check_page(page: &str, rows: usize) {
    check_web_page(page);
    assert_eq!(page.matches("<svg").count(), 4, "two pictures, each for two widths");
    assert_eq!(page.matches(r#"<tr><th scope="row">"#).count(), rows);
    assert!(page.contains("scaled 1/8"));
}

#[test]
fn several_contexts_at_once_of_shared_latents_without_an_ssd() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let path = home.path().join("out.json");
    let table = good(&run(&[
        "bench",
        "longctx",
        "--model",
        "custom:layers=3,latent=72,dtype=bf16",
        "--tp",
        "4",
        "--concurrency",
        "3",
        "--contexts",
        "1000",
        "--prefill-tokens-per-s",
        "100000",
        "--dram",
        "8MiB",
        "--ssd",
        "0",
        "--repeats",
        "1",
        "--json",
        &path.display().to_string(),
    ]));
    let report = json(&path);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!((rows.len(), &rows[0]["tier"]), (1, &"dram".into()));
    // 63 pages of 16 tokens; a latent is no smaller on one of four ranks.
    assert_eq!(number(&rows[0], "bytes"), 63.0 * 16.0 * 3.0 * 72.0 * 2.0);
    assert!((number(&rows[0], "recompute_ms") - 10.0).abs() < 1e-9);
    assert_eq!(report["wrong_bytes"], 0);
    assert!(table.contains("3 contexts at once") && table.contains("one of 4 ranks"), "{table}");
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() {
    let line = refusal(&longctx(&["--contexts", "8m", "--dram", "4MiB"]));
    assert!(line.contains("--contexts: 8m of custom") && line.contains("524288 pages"), "{line}");
    let line = refusal(&longctx(&["--dram", "900000GiB"]));
    assert!(line.contains("--dram: 900000GiB and a device as large"), "{line}");
    let line = refusal(&longctx(&["--tp", "3"]));
    assert!(line.contains("--tp: ") && line.contains("3 ranks"), "{line}");
    let line =
        refusal(&run(&["bench", "longctx", "--model", "custom:layers=2,latent=8,dtype=bf16"]));
    assert!(line.contains("--model: has no params= and heads="), "{line}");
    let output = longctx(&["--gpu", "b300"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("allowed are h100"), "{}", text(&output.stderr));
}

#[test]
fn a_gpu_that_is_not_there_is_told_in_one_line() {
    if cuda::is_present() {
        skip("a_gpu_that_is_not_there_is_told_in_one_line", "this machine has a CUDA driver");
        return;
    }
    let line = refusal(&longctx(&["--contexts", "1k", "--dram", "4MiB", "--device", "cuda:0"]));
    assert!(line.contains("--device: cuda:0 cannot be used: there is no CUDA driver"), "{line}");
}

/// `undercroft bench` with the stand-in as its driver, and what that one has to say at the end.
fn on_stand_in(driver: &str, arguments: &[&str]) -> (Output, String) {
    let home = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(StandIn::path().expect("it is built"), home.path().join("libcuda.so"))
        .expect("a folder of our own");
    let left = home.path().join("left");
    let mut command = Command::new(program("undercroft"));
    command.env("LD_LIBRARY_PATH", home.path()).env("UNDERCROFT_STAND_IN", driver);
    command.env("UNDERCROFT_STAND_IN_REPORT", &left);
    let output = command.arg("bench").args(arguments).output().expect("the binary runs");
    (output, std::fs::read_to_string(left).unwrap_or_default())
}

#[test]
fn contexts_go_to_a_gpu_and_back_and_nothing_stays_there() {
    for (driver, arena) in [("", "by a GPU that reads it"), ("read_only_registration=0", "copied")]
    {
        let home = tempfile::tempdir().expect("a temporary folder");
        let path = home.path().join("out.json");
        let (output, left) = on_stand_in(
            driver,
            &[
                &["longctx", "--model", MODEL, "--device", "cuda:0", "--contexts", "1k"][..],
                &["--dram", "4MiB", "--ssd", "64MiB", "--repeats", "1"],
                &["--json", &path.display().to_string()],
            ]
            .concat(),
        );
        let table = good(&output);
        let report = json(&path);
        assert_eq!(report["wrong_bytes"], 0);
        let rows = report["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 2, "{arena}: {table}");
        assert!(rows[0]["limit"].as_str().is_some_and(|limit| limit.contains("pinned")), "{table}");
        assert!(table.contains("device cuda:0 ("), "{table}");
        assert!(left.contains("registrations: 0") && !left.contains("violation: "), "{left}");
        assert!(!left.contains("still there: "), "{left}");
    }
}

#[test]
fn a_gpu_too_small_for_a_context_is_told() {
    let (output, _) = on_stand_in(
        "device_bytes=1000000",
        &["longctx", "--model", MODEL, "--device", "cuda:0", "--contexts", "1k", "--ssd", "0"],
    );
    let line = refusal(&output);
    assert!(line.contains("--device: cuda:0 cannot be used: cuMemAlloc"), "{line}");
}

#[test]
fn the_links_rows_are_there_where_a_gpu_is() {
    let (output, left) = on_stand_in("", &["limits", "--only", "pcie_h2d", "--json", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let row = &report["rows"][0];
    assert_eq!((&row["name"], &row["unit"]), (&"pcie_h2d".into(), &"B/s".into()));
    assert!(number(row, "ours") > 0.0 && number(row, "limit") > 0.0, "{row}");
    assert!(!left.contains("violation: ") && !left.contains("still there: "), "{left}");
    if cuda::is_present() {
        skip("the_links_rows_are_there_where_a_gpu_is", "this machine has a CUDA driver");
        return;
    }
    let line = refusal(&run(&["bench", "limits", "--only", "pcie"]));
    assert!(line.contains("the rows pcie_* need a GPU: there is no CUDA driver"), "{line}");
}
