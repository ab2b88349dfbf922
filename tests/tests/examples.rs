//! The examples of the client, as a reader runs them: each twice against one daemon.

use std::process::Command;
use undercroft_tests::{DaemonOptions, TestDaemon, program};

/// Runs an example twice and gives what it said.
fn twice(name: &str) -> [String; 2] {
    let options = DaemonOptions { dram: 4 << 20, staging: 512 << 10, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    [(); 2].map(|()| {
        let mut command = Command::new(program(&format!("examples/{name}")));
        let output = command.arg(daemon.socket()).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {}: {said}{error}", output.status);
        said
    })
}

fn says(said: &str, lines: &[&str]) {
    for line in lines {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
}

#[test]
fn hello() {
    let [first, second] = twice("01_hello");
    says(&first, &["stored 1, held already 0", "found 1 page", "16384 bytes: same"]);
    says(&second, &["stored 0, held already 1"]);
}

#[test]
fn engine() {
    let [first, second] = twice("02_engine");
    says(
        &first,
        &["335 tokens: 0 pages loaded, 20 computed", "357 tokens: 20 pages loaded, 2 computed"],
    );
    says(
        &second,
        &["335 tokens: 20 pages loaded, 0 computed", "366 tokens: 22 pages loaded, 0 computed"],
    );
}

#[test]
fn layers() {
    let [first, second] = twice("03_layers");
    says(
        &first,
        &["stored 24", "layer 0: 24 pages", "layer 7: 24 pages", "24 pages, 786432 bytes"],
    );
    says(&first, &["what was computed: same"]);
    says(&second, &["held already 24", "what was computed: same"]);
}

#[test]
fn ranks() {
    let [first, _] = twice("04_ranks");
    says(
        &first,
        &[
            "rank 0 keeps 6 pages, rank 1 keeps 4",
            "found 4 pages that both have; a worker loaded 4",
        ],
    );
}

#[test]
fn blob() {
    let [first, second] = twice("05_blob");
    says(&first, &["nothing is kept yet", "stored 5 pages", "300001 bytes: same"]);
    says(&second, &["300001 bytes are kept already", "5 were there already"]);
}

/// Without a daemon the engine of the second example computes everything, and says so.
#[test]
fn engine_without_a_daemon() {
    let mut command = Command::new(program("examples/02_engine"));
    let output = command.arg("/nonexistent/undercroft.sock").output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    says(&said, &["without a daemon", "366 tokens: 0 pages loaded, 22 computed"]);
}
