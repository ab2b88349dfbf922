//! Tenants of one daemon: what one has stored, no other ever finds, and its own always is.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use undercroft_tests::{DaemonOptions, TestDaemon, program, skip};

const DOMAINS: &str = "[[domain]]\nname = \"a\"\ngid = [2001]\ndram = \"2MiB\"\n\
                       [[domain]]\nname = \"b\"\ngid = [2002]\ndram = \"2MiB\"\n";

/// A daemon with two tenants told apart by their group; `None` where the test may not change its
/// own.
fn daemon(test: &str, ssd: u64) -> Option<TestDaemon> {
    daemon_of(test, ssd, DOMAINS.to_owned())
}

/// As [`daemon`], with these domains.
fn daemon_of(test: &str, ssd: u64, domains: String) -> Option<TestDaemon> {
    if !rustix::process::geteuid().is_root() {
        skip(test, "processes of other groups can only be started by root");
        return None;
    }
    let options = DaemonOptions { dram: 0, ssd, more: domains, ..DaemonOptions::default() };
    Some(TestDaemon::start(options))
}

/// One tenant's process.
fn process(daemon: &TestDaemon, gid: u32, domain: &str, task: &[&str]) -> Command {
    let mut command = Command::new(program("tenant"));
    command.arg("--socket").arg(daemon.socket()).args(["--domain", domain]).args(task);
    command.gid(gid);
    command
}

/// What one tenant's process says.
fn tenant(daemon: &TestDaemon, gid: u32, domain: &str, task: &[&str]) -> serde_json::Value {
    let output = process(daemon, gid, domain, task).output().expect("the program runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}\n{}", daemon.log());
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}

#[test]
fn what_one_tenant_has_stored_no_other_finds_in_dram() {
    let Some(daemon) = daemon("what_one_tenant_has_stored_no_other_finds_in_dram", 0) else {
        return;
    };
    let (a, b) = ((2001, "a"), (2002, "b"));
    let stored = tenant(&daemon, a.0, a.1, &["store", "0", "8"]);
    assert_eq!(stored["stored"], 64);
    // The same model, the same tokens.
    let theirs = tenant(&daemon, b.0, b.1, &["load", "0", "8"]);
    assert_eq!((&theirs["found"], &theirs["loaded"]), (&0.into(), &0.into()));
    let own = tenant(&daemon, a.0, a.1, &["load", "0", "8"]);
    assert_eq!((&own["found"], &own["loaded"]), (&64.into(), &64.into()));
    // What the other stores under the very same keys is its own: each byte of it differs.
    assert_eq!(tenant(&daemon, b.0, b.1, &["store", "0", "8"])["stored"], 64);
    for (gid, domain) in [a, b] {
        assert_eq!(tenant(&daemon, gid, domain, &["load", "0", "8"])["loaded"], 64);
    }
    let status = daemon.status();
    let names: Vec<_> = status.domains.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(status.domains.iter().all(|domain| domain.dram.pages == 64), "{:?}", status.domains);
}

#[test]
fn what_one_tenant_has_stored_no_other_finds_on_ssd() {
    let Some(mut daemon) = daemon("what_one_tenant_has_stored_no_other_finds_on_ssd", 16 << 20)
    else {
        return;
    };
    // Three times what its DRAM holds.
    assert_eq!(tenant(&daemon, 2001, "a", &["store", "0", "48"])["stored"], 384);
    for _ in 0..2 {
        let theirs = tenant(&daemon, 2002, "b", &["load", "0", "48"]);
        assert_eq!((&theirs["found"], &theirs["loaded"]), (&0.into(), &0.into()));
        let own = tenant(&daemon, 2001, "a", &["load", "0", "48"]);
        assert!(own["found"].as_u64() >= Some(350), "{own}");
        // And so it stays when records are found again.
        daemon.stop().expect("it ran");
        daemon.restart();
    }
}

#[test]
fn one_tenant_can_fill_its_own_arena_only() {
    let Some(daemon) = daemon("one_tenant_can_fill_its_own_arena_only", 0) else { return };
    assert_eq!(tenant(&daemon, 2001, "a", &["store", "0", "8"])["stored"], 64);
    assert!(tenant(&daemon, 2002, "b", &["store", "0", "64"])["stored"].as_u64() > Some(128));
    assert_eq!(tenant(&daemon, 2001, "a", &["load", "0", "8"])["loaded"], 64);
}

/// Pages that a quiet tenant loads of 192 it has stored, after another has stored, and while that
/// loads, 40 MiB through an SSD of 16 MiB; `more` is said of the quiet one.
fn loaded_in_a_flood(test: &str, more: &str) -> Option<u64> {
    let domains = format!(
        "[[domain]]\nname = \"a\"\ngid = [2001]\ndram = \"2MiB\"\n{more}\
         [[domain]]\nname = \"b\"\ngid = [2002]\ndram = \"2MiB\"\nmax_reads_in_flight = 16\n"
    );
    let daemon = daemon_of(test, 16 << 20, domains)?;
    assert_eq!(tenant(&daemon, 2001, "a", &["store", "0", "24"])["stored"], 192);
    tenant(&daemon, 2002, "b", &["store", "0", "320"]);
    let flood = |_| {
        let mut flood = process(&daemon, 2002, "b", &["load", "0", "320"]);
        flood.stdout(Stdio::null()).spawn().expect("the program runs")
    };
    let flood: Vec<_> = (0..3).map(flood).collect();
    let own = tenant(&daemon, 2001, "a", &["load", "0", "24"]);
    for mut process in flood {
        assert!(process.wait().expect("it ran").success());
    }
    let status = daemon.status();
    let (a, b) = (&status.domains[0], &status.domains[1]);
    assert!(b.dram.pages <= 128 && b.max_reads_in_flight == 16, "{b:?}");
    assert!(a.ssd.pages <= 192 && a.known_pages >= a.ssd.pages as u32, "{a:?}");
    own["loaded"].as_u64()
}

#[test]
fn a_flood_takes_neither_the_floor_of_a_quiet_tenant_nor_its_reads() {
    let name = "a_flood_takes_neither_the_floor_of_a_quiet_tenant_nor_its_reads";
    let Some(without) = loaded_in_a_flood(name, "") else { return };
    let with = loaded_in_a_flood(name, "ssd_floor = \"4MiB\"\n");
    assert!(without < 192, "what has no floor is washed away: {without}");
    assert_eq!(with, Some(192));
}

#[test]
fn a_tenant_beyond_its_quota_loses_pages_of_its_own() {
    let name = "a_tenant_beyond_its_quota_loses_pages_of_its_own";
    let domains = format!("{DOMAINS}ssd = \"4MiB\"\nmax_spaces = 1\n");
    let Some(daemon) = daemon_of(name, 16 << 20, domains) else { return };
    assert_eq!(tenant(&daemon, 2001, "a", &["store", "0", "24"])["stored"], 192);
    tenant(&daemon, 2002, "b", &["store", "0", "160"]);
    let b = &daemon.status().domains[1];
    assert_eq!((b.ssd.capacity_bytes, b.max_spaces, b.spaces), (4 << 20, 1, 1));
    assert!(b.ssd.used_bytes <= 4 << 20 && b.ssd.evicted_pages > 0, "{b:?}");
    assert_eq!(tenant(&daemon, 2001, "a", &["load", "0", "24"])["loaded"], 192);
    assert_eq!(tenant(&daemon, 2002, "b", &["load", "159", "160"])["loaded"], 8);
}

#[test]
fn who_belongs_to_no_domain_is_turned_away_and_root_may_look() {
    let Some(daemon) = daemon("who_belongs_to_no_domain_is_turned_away_and_root_may_look", 0)
    else {
        return;
    };
    // Root of another group is an operator: it may ask for the status, and for no page.
    let mut command = Command::new(program("tenant"));
    command.arg("--socket").arg(daemon.socket()).args(["--domain", "c", "load", "0", "1"]);
    let output = command.gid(3003).output().expect("the program runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no domain is for"), "{output:?}");
    let status = Command::new(program("undercroft"))
        .args(["status", "--json", "--socket"])
        .arg(daemon.socket())
        .gid(3003)
        .output()
        .expect("the binary runs");
    assert!(status.status.success(), "{status:?}");
}
