//! The checks that need a GPU, without one: on the stand-in driver, and with no driver at all.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;
use undercroft_gpu_shim::cuda;
use undercroft_stand_in::StandIn;
use undercroft_tests::{program, skip};

/// Those that need no more than the programs at hand.
const OURS: &str = "facts,link,registration,copies,disturbance,random,killed";

/// Runs the checks on a driver that is told to be so.
fn checks(folder: &Path, driver: &str, arguments: &[&str]) -> Output {
    fs::copy(StandIn::path().unwrap(), folder.join("libcuda.so")).unwrap();
    let mut command = Command::new(program("gpu-checks"));
    command.env("LD_LIBRARY_PATH", folder).env("UNDERCROFT_STAND_IN", driver);
    command.args(["--quick", "--minutes", "0.01", "--results"]).arg(folder.join("results"));
    command.args(arguments).output().unwrap()
}

fn results(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("results/results.json")).unwrap()).unwrap()
}

fn check<'a>(results: &'a Value, name: &str) -> &'a Value {
    let checks = results["checks"].as_array().unwrap();
    checks.iter().find(|check| check["check"] == name).unwrap()
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn every_check_runs_to_its_end_and_finds_no_wrong_byte() {
    let folder = TempDir::new().unwrap();
    let output = checks(folder.path(), "", &["--only", OURS]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = results(folder.path());
    assert_eq!(results["stand_in"], true);
    for name in OURS.split(',') {
        let found = check(&results, name);
        let expected = if name == "disturbance" { "could not run" } else { "passed" };
        assert_eq!(found["outcome"], expected, "{found}");
        assert!(!found["rows"].as_array().unwrap().is_empty(), "{found}");
        for row in found["rows"].as_array().unwrap() {
            assert!(row.get("wrong bytes").is_none_or(|wrong| wrong == 0), "{name}: {row}");
        }
    }
    // Each of five layouts by three modes and by the one found fastest, three ways each.
    assert_eq!(check(&results, "copies")["rows"].as_array().unwrap().len(), 5 * 4 * 3);
    let text = fs::read_to_string(folder.path().join("results/results.txt")).unwrap();
    assert!(text.contains("6 passed, 0 failed, 1 could not run"), "{text}");
    assert!(text.contains("whose speeds mean nothing"), "{text}");
}

#[test]
fn what_a_driver_lacks_is_named_and_fails_nothing() {
    let folder = TempDir::new().unwrap();
    let driver = "batch=0,read_only_registration=0,driver_version=12000";
    let output = checks(folder.path(), driver, &["--only", "registration,copies"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = results(folder.path());
    let registration = check(&results, "registration");
    let parts =
        registration["rows"].as_array().unwrap().iter().filter(|row| row["memory"] == "part");
    for row in parts {
        assert!(row["answer"].as_str().unwrap().contains("cuMemHostRegister failed"), "{row}");
    }
    let copies = check(&results, "copies");
    assert_eq!(copies["rows"].as_array().unwrap().len(), 5 * 3 * 3);
    assert!(copies["notes"].to_string().contains("cuMemcpyBatchAsync"), "{copies}");
}

#[test]
fn a_check_that_fails_stops_no_other_and_decides_how_it_ends() {
    let folder = TempDir::new().unwrap();
    // Room for a device and its link to be measured, and not for the blocks of a layout.
    let output = checks(folder.path(), "pinned_bytes=4096", &["--only", "link,facts"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let results = results(folder.path());
    assert_eq!(check(&results, "link")["outcome"], "failed");
    assert!(check(&results, "link")["why"][0].as_str().unwrap().contains("OUT_OF_MEMORY"));
    assert_eq!(check(&results, "facts")["outcome"], "passed");
}

#[test]
fn without_a_driver_one_line_says_so() {
    if cuda::is_present() {
        skip("without_a_driver_one_line_says_so", "this machine has a CUDA driver");
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(program("gpu-checks"));
    let output = command.arg("--results").arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let said = said(&output);
    assert!(said.contains("there is no CUDA driver on this machine"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
