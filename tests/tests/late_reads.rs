//! A daemon is killed while reads hang in its disk, and the next one refills the frames at once.

use std::process::Command;
use undercroft_tests::{missing, program, skip};

#[test]
fn reads_of_a_killed_daemon_never_land_in_a_page() {
    if let Some(reason) = missing() {
        return skip("late_reads", &reason);
    }
    // A program of its own, for it takes namespaces of its own.
    let output = Command::new(program("late-reads")).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("wrong_bytes        0"), "{said}\n{complained}");
}
