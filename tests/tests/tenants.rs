//! Tenants of one daemon: what one has stored, no other ever finds, and its own always is.

use rustix::process::Signal;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
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
    assert_eq!(theirs["maybe"], 0, "nor does its board tell of it");
    let own = tenant(&daemon, a.0, a.1, &["load", "0", "8"]);
    assert_eq!((&own["found"], &own["loaded"]), (&64.into(), &64.into()));
    assert_eq!(own["maybe"], 8);
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

/// A process that stores and loads without an end, once it has begun to load.
struct Flood {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Flood {
    fn start(daemon: &TestDaemon, from: u32, to: u32) -> Self {
        let (from, to) = (from.to_string(), to.to_string());
        let mut command = process(daemon, 2002, "b", &["flood", &from, &to]);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        lines.next().expect("it says when it begins").expect("a line");
        Self { process, lines }
    }

    /// Pages that it has loaded.
    fn end(mut self) -> u64 {
        assert!(self.process.try_wait().expect("our child").is_none(), "it went on all the time");
        drop(self.process.stdin.take());
        let line = self.lines.next().expect("it says what it did").expect("a line");
        assert!(self.process.wait().expect("our child").success());
        let said: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
        said["loaded"].as_u64().expect("a number")
    }
}

#[test]
fn a_tenant_goes_on_while_another_never_stops() {
    let name = "a_tenant_goes_on_while_another_never_stops";
    let domains = format!("{DOMAINS}ssd = \"24MiB\"\n").replacen(
        "dram = \"2MiB\"\n",
        "dram = \"2MiB\"\nssd_floor = \"4MiB\"\n",
        1,
    );
    let Some(daemon) = daemon_of(name, 64 << 20, domains) else { return };
    assert_eq!(tenant(&daemon, 2001, "a", &["store", "0", "24"])["stored"], 192);
    let floods: Vec<_> =
        (0..3).map(|part| Flood::start(&daemon, part * 100, part * 100 + 100)).collect();
    let read = || {
        let ssd = daemon.status().ssd.expect("it has one");
        ssd.devices.iter().map(|device| device.read_bytes).sum::<u64>()
    };
    let before = read();
    for round in 0..4 {
        let own = tenant(&daemon, 2001, "a", &["load", "0", "24"]);
        assert_eq!((&own["found"], &own["loaded"]), (&192.into(), &192.into()), "round {round}");
        // Its own are in DRAM for a part only: most are read among those of the flood.
        assert!(daemon.status().domains[0].dram.pages <= 128);
    }
    let all = read() - before;
    let loaded: u64 = floods.into_iter().map(Flood::end).sum();
    assert!(loaded > 0, "the flood has loaded nothing");
    // Four processes take turns. What the quiet one's start and end take is the flood's.
    let own = 4 * 64 * (16 << 10);
    assert!(all < 200 * own, "{all} bytes were read until the quiet one had its {own}");
}

#[test]
fn a_tenant_uses_up_its_own_part_of_what_is_shared() {
    let name = "a_tenant_uses_up_its_own_part_of_what_is_shared";
    let domains = format!("{DOMAINS}max_sessions = 2\n");
    let Some(daemon) = daemon_of(name, 0, domains) else { return };
    let floods = [0, 100].map(|from| Flood::start(&daemon, from, from + 4));
    let output = process(&daemon, 2002, "b", &["load", "0", "1"]).output().expect("it runs");
    assert!(!output.status.success(), "a third process of b");
    assert!(daemon.says("max_sessions of domain b is reached (2)"), "{}", daemon.log());
    assert_eq!(tenant(&daemon, 2001, "a", &["store", "0", "8"])["stored"], 64);
    assert!(floods.map(Flood::end).iter().sum::<u64>() > 0);
}

#[test]
fn what_a_tenant_may_have_changes_at_a_reload() {
    let name = "what_a_tenant_may_have_changes_at_a_reload";
    let Some(mut daemon) = daemon_of(name, 16 << 20, DOMAINS.to_owned()) else { return };
    assert_eq!(tenant(&daemon, 2002, "b", &["store", "0", "80"])["stored"], 640);
    let reload = |daemon: &mut TestDaemon, more: &str| {
        let times = daemon.status().reload.times;
        daemon.reconfigure(|options| options.more = format!("{DOMAINS}{more}"));
        daemon.signal(Signal::HUP);
        while daemon.status().reload.times == times {
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = daemon.status();
        (status.reload, status.domains[1].clone())
    };
    let more = "ssd = \"1MiB\"\nweight = 3\nmax_reads_in_flight = 5\nmax_spaces = 7\n";
    let (reload_status, b) = reload(&mut daemon, more);
    assert_eq!((reload_status.refused, reload_status.pending), (None, vec![]));
    assert_eq!((b.weight, b.max_reads_in_flight, b.max_spaces), (3, 5, 7));
    assert_eq!(b.ssd.capacity_bytes, 1 << 20);
    while daemon.status().domains[1].ssd.used_bytes > 1 << 20 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(tenant(&daemon, 2002, "b", &["load", "79", "80"])["loaded"], 8);
    let (refused, b) = reload(&mut daemon, "ssd_floor = \"12MiB\"\n");
    assert!(refused.refused.expect("too large").contains("domain.ssd_floor"));
    assert_eq!(b.weight, 3, "what was refused changes nothing");
    let (kept, _) = reload(&mut daemon, "max_sessions = 3\n");
    assert!(kept.pending.contains(&"domain.max_sessions of b".to_owned()), "{kept:?}");
    // A space opened under a smaller share is refused with what there is.
    let (small, _) = reload(&mut daemon, "staging_total = \"4KiB\"\n");
    assert_eq!(small.refused, None);
    let output = process(&daemon, 2002, "b", &["load", "0", "1"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("staging_total of domain b"), "{said}");
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
