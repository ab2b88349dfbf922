//! The unit files and the daemon under a real systemd, and what systemd thinks of the units. `cargo
//! xtask systemd` runs the same program and shows its figures.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use undercroft_tests::{program, skip, unbootable};

/// As `systemd-analyze security --threshold=` counts it, in tenths.
const MOST_EXPOSURE: &str = "--threshold=16";

#[test]
fn pages_leases_and_clients_outlive_whatever_systemd_does_to_the_daemon() {
    if let Some(reason) = unbootable() {
        return skip("systemd", &reason);
    }
    // A program of its own, for it takes namespaces of its own.
    let output = Command::new(program("systemd")).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    if let Some(reason) = said.lines().find_map(|line| line.strip_prefix("SKIPPED systemd: ")) {
        return skip("systemd", reason);
    }
    for line in ["restarts           5 in", "wrong_bytes        0", "arena           on mount"] {
        assert!(said.contains(line), "{said}");
    }
}

/// `None`, and it is said, where systemd-analyze is missing or too old for `arguments`.
fn analyze(test: &str, arguments: &[&str], units: &[PathBuf]) -> Option<Output> {
    let help = Command::new("systemd-analyze").arg("--help").output();
    let known = help.is_ok_and(|help| {
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        text.contains("--threshold") && text.contains("verify")
    });
    if !known {
        skip(test, "there is no systemd-analyze, or an old one");
        return None;
    }
    let mut command = Command::new("systemd-analyze");
    Some(command.args(arguments).args(units).output().expect("it was there a moment ago"))
}

/// The units with a program that exists: the daemon is installed nowhere here.
fn units(folder: &Path) -> [PathBuf; 2] {
    ["undercroft.service", "undercroft.socket"].map(|name| {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name);
        let text = std::fs::read_to_string(from).expect("a unit of ours");
        let unit = folder.join(name);
        let text = text.replace("/usr/bin/undercroft", "/bin/true");
        std::fs::write(&unit, text).expect("a folder of its own");
        unit
    })
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let folder = tempfile::tempdir().expect("a folder");
    let verified = analyze("systemd_verify", &["verify", "--man=no"], &units(folder.path()));
    let Some(output) = verified else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_service_is_hardly_exposed() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = &units(folder.path())[..1];
    let arguments = ["security", "--offline=true", MOST_EXPOSURE];
    let Some(output) = analyze("systemd_security", &arguments, service) else { return };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}
