//! A few cuts of `cargo xtask power-cut`, which runs the same program with figures that mean
//! something.

use std::process::Command;
use undercroft_tests::{missing, program, skip};

#[test]
fn after_a_power_cut_the_daemon_starts_and_serves_nothing_wrong() {
    if let Some(reason) = missing() {
        return skip("power_cut", &reason);
    }
    // A program of its own, for it takes namespaces of its own.
    let arguments = ["--cuts", "3", "--load-ms", "2500", "--seed", "10"];
    let output = Command::new(program("power-cut")).args(arguments).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    for line in ["starts             3 of 3", "wrong_bytes        0"] {
        assert!(said.contains(line), "{said}\n{complained}");
    }
}
