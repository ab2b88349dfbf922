//! Purges: what was purged is in no tier from the acknowledgement on, whatever becomes of the daemon,
//! and everything else is.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;
use undercroft_client::wire::{PageKey, Stamp};
use undercroft_tests::{DaemonOptions, Engine, TestDaemon, program, run_as_ordinary_user, skip};

/// Pages of a conversation.
const PAGES: u32 = 16;
/// Conversations of each engine: three times what DRAM holds.
const CHAINS: u32 = 12;

fn purge(daemon: &TestDaemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("undercroft"));
    command.arg("purge").arg("--socket").arg(daemon.socket()).args(arguments);
    command.output().expect("the binary runs")
}

/// What a purge says that has done all of it.
fn purged(daemon: &TestDaemon, arguments: &[&str]) -> serde_json::Value {
    let output = purge(daemon, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), daemon.log());
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(found: &serde_json::Value, name: &str) -> u64 {
    found[name].as_u64().unwrap_or_else(|| panic!("{name} in {found}"))
}

/// A daemon, and two models on it.
struct Node {
    daemon: TestDaemon,
    models: [&'static str; 2],
}

impl Node {
    fn new(options: DaemonOptions) -> Self {
        let node = Self { daemon: TestDaemon::start(options), models: ["model a", "model b"] };
        for model in node.models {
            node.store(model);
        }
        node
    }

    fn engine(&self, model: &str) -> Engine {
        Engine::new(&self.daemon.client("engine").expect("it answers"), model)
    }

    fn chains(engine: &Engine) -> Vec<Vec<PageKey>> {
        (0..CHAINS).map(|chain| engine.keys(chain, PAGES)).collect()
    }

    fn store(&self, model: &str) {
        let mut engine = self.engine(model);
        for keys in Self::chains(&engine) {
            assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
        }
    }

    /// How many pages are found, each of which is loaded and compared.
    fn found(&self, model: &str) -> u32 {
        let mut engine = self.engine(model);
        let mut found = 0;
        for keys in Self::chains(&engine) {
            found += engine.lookup(&keys).pages;
            engine.try_load(&keys);
        }
        found
    }

    fn all_found(&self) -> [u32; 2] {
        self.models.map(|model| self.found(model))
    }

    fn digest(&self, model: &str) -> String {
        self.engine(model).digest().0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

const ALL: u32 = PAGES * CHAINS;

/// Purges one model, has the daemon die at once, and looks for what comes back.
fn is_gone_for_good(options: DaemonOptions) {
    let mut node = Node::new(options);
    let before = node.all_found();
    assert!(before.iter().all(|found| *found >= ALL * 9 / 10), "{before:?} of {ALL}");
    let digest = node.digest("model a");
    let told = purged(&node.daemon, &["--space", &digest]);
    // As soon as it is acknowledged.
    node.daemon.kill();
    assert!(number(&told, "pages") >= u64::from(before[0]), "{told}");
    assert!(number(&told, "ssd_bytes") > 0, "{told}");
    for _ in 0..2 {
        node.daemon.restart();
        let [gone, there] = node.all_found();
        assert_eq!(gone, 0, "purged pages are back");
        // DRAM may be lost with the daemon, and with it what was nowhere else.
        assert!(there >= ALL / 2, "{there} of {ALL} others are left");
        node.daemon.kill();
    }
    // What is stored afterwards is no page that was purged.
    node.daemon.restart();
    node.store("model a");
    node.daemon.stop().expect("it ran");
    node.daemon.restart();
    assert!(node.found("model a") >= ALL / 2, "what was stored after the purge is gone");
}

#[test]
fn a_space_is_gone_from_ssd_for_good() {
    is_gone_for_good(DaemonOptions { ssd: 32 << 20, ..DaemonOptions::default() });
}

#[test]
fn a_space_is_gone_from_several_ssds_and_from_dram_that_outlives_the_daemon() {
    let options = DaemonOptions { ssd: 16 << 20, directories: 2, ..DaemonOptions::default() };
    is_gone_for_good(DaemonOptions { managed: true, ..options });
}

#[test]
fn without_encryption_it_is_gone_as_well() {
    let more = "encryption = \"off\"".to_owned();
    is_gone_for_good(DaemonOptions { ssd: 32 << 20, more, ..DaemonOptions::default() });
}

#[test]
fn a_writer_is_told_from_others() {
    let node = Node::new(DaemonOptions { ssd: 32 << 20, ..DaemonOptions::default() });
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(number(&purged(&node.daemon, &["--writer", &(own + 1).to_string()]), "pages"), 0);
    assert!(node.all_found().iter().all(|found| *found >= ALL * 9 / 10));
    let told = purged(&node.daemon, &["--writer", &own.to_string(), "--domain", "default"]);
    assert!(number(&told, "pages") >= u64::from(ALL * 2 * 9 / 10), "{told}");
    assert_eq!(node.all_found(), [0, 0]);
}

#[test]
fn an_ssd_that_cannot_write_it_down_is_named() {
    let options = DaemonOptions { ssd: 16 << 20, directories: 2, ..DaemonOptions::default() };
    let node = Node::new(options);
    let sick = node.daemon.stores()[1].clone();
    // Nothing can be written under the name of a folder.
    std::fs::create_dir(sick.join("purges.new")).expect("our folder");
    let output = purge(&node.daemon, &["--domain", "default", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["missed"], serde_json::json!([sick.display().to_string()]));
    assert!(text(&output.stderr).contains("could not write it down"), "{output:?}");
    assert_eq!(node.all_found(), [0, 0], "it is invisible all the same");
    std::fs::remove_dir(sick.join("purges.new")).expect("our folder");
    assert_eq!(purged(&node.daemon, &["--domain", "default"])["missed"], serde_json::json!([]));
}

#[test]
fn nothing_named_and_nobody_there_are_told_apart_from_a_purge() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    for arguments in [&[][..], &["--space", "12"], &["--writer", "root"]] {
        assert_eq!(purge(&daemon, arguments).status.code(), Some(2), "{arguments:?}");
    }
    let unknown = purge(&daemon, &["--domain", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    let told = text(&unknown.stderr);
    assert!(
        told.contains("no domain is called \"nobody\"") && told.contains("(default)"),
        "{told}"
    );
    let digits = purge(&daemon, &["--space", "12"]);
    assert!(text(&digits.stderr).contains("allowed are 64 hexadecimal digits"), "{digits:?}");
    let name = purge(&daemon, &["--writer", "root"]);
    assert!(text(&name.stderr).contains("allowed are user numbers"), "{name:?}");
    // Whoever purges twice finds nothing, and that is no mistake.
    let none = "0".repeat(64);
    assert!(purge(&daemon, &["--space", &none, "--writer", "4000000000"]).status.success());
    let output = Command::new(program("undercroft"))
        .args(["purge", "--domain", "default", "--socket"])
        .arg(daemon.home().join("nobody"))
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

const DOMAINS: &str = "[[domain]]\nname = \"a\"\ngid = [2001]\ndram = \"2MiB\"\n\
                       [[domain]]\nname = \"b\"\ngid = [2002]\ndram = \"2MiB\"\n";

fn tenants(test: &str, domains: &str) -> Option<TestDaemon> {
    if !rustix::process::geteuid().is_root() {
        skip(test, "processes of other groups can only be started by root");
        return None;
    }
    let (ssd, more) = (32 << 20, domains.to_owned());
    let options = DaemonOptions { dram: 0, ssd, more, managed: true, ..DaemonOptions::default() };
    Some(TestDaemon::start(options))
}

/// What one tenant's process says.
fn tenant(daemon: &TestDaemon, domain: &str, task: &str, chains: u32) -> serde_json::Value {
    let gid = if domain == "a" { 2001 } else { 2002 };
    let mut command = Command::new(program("tenant"));
    command.arg("--socket").arg(daemon.socket()).args(["--domain", domain, task, "0"]);
    let output = command.arg(chains.to_string()).gid(gid).output().expect("the program runs");
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), daemon.log());
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}

#[test]
fn one_tenant_is_purged_and_the_other_keeps_everything() {
    let test = "one_tenant_is_purged_and_the_other_keeps_everything";
    let Some(mut daemon) = tenants(test, DOMAINS) else { return };
    for domain in ["a", "b"] {
        assert_eq!(tenant(&daemon, domain, "store", 48)["stored"], 384);
    }
    let other = number(&tenant(&daemon, "b", "load", 48), "found");
    assert!(other >= 350, "{other}");
    let told = purged(&daemon, &["--domain", "a"]);
    daemon.kill();
    assert!(number(&told, "pages") >= 350, "{told}");
    daemon.restart();
    assert_eq!(tenant(&daemon, "a", "load", 48)["found"], 0, "the same keys as the other's");
    assert!(number(&tenant(&daemon, "b", "load", 48), "found") >= other * 99 / 100);
}

#[test]
fn a_tenant_purges_its_own_and_nobody_elses() {
    let test = "a_tenant_purges_its_own_and_nobody_elses";
    // The first is the ordinary user's own.
    let domains = "[[domain]]\nname = \"own\"\nuid = [65534]\ndram = \"2MiB\"\n\
                   [[domain]]\nname = \"b\"\ndram = \"2MiB\"\n";
    let Some(daemon) = tenants(test, domains) else { return };
    assert_eq!(tenant(&daemon, "b", "store", 8)["stored"], 64);
    let open = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(daemon.home(), open(0o777)).expect("ours");
    std::fs::set_permissions(daemon.socket(), open(0o666)).expect("ours");
    let binary = daemon.home().join("program");
    // By another process: one that a test beside this begins meanwhile would inherit our open copy,
    // and what somebody may write to cannot be run.
    let copied = Command::new("cp").arg(program("undercroft")).arg(&binary).status();
    assert!(copied.expect("cp is there").success());
    let try_to = |what: &[&str]| {
        let mut command = run_as_ordinary_user(&binary);
        command.arg("purge").arg("--socket").arg(daemon.socket()).args(what);
        command.output().expect("the binary runs")
    };
    let refused = try_to(&["--domain", "b"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(text(&refused.stderr).contains("not the session's own domain"), "{refused:?}");
    // Without a name it is the own domain: others' pages of that writer stay.
    assert!(try_to(&["--writer", "0"]).status.success());
    assert!(try_to(&["--domain", "own"]).status.success());
    assert_eq!(tenant(&daemon, "b", "load", 8)["found"], 64);
}

#[test]
fn pages_older_than_their_domain_keeps_them_are_served_no_more() {
    let test = "pages_older_than_their_domain_keeps_them_are_served_no_more";
    let domains = DOMAINS.replacen("dram = \"2MiB\"", "dram = \"2MiB\"\nmax_age = \"15s\"", 1);
    let Some(mut daemon) = tenants(test, &domains) else { return };
    for domain in ["a", "b"] {
        assert_eq!(tenant(&daemon, domain, "store", 24)["stored"], 192);
    }
    std::thread::sleep(Duration::from_secs(17));
    let found = |daemon: &TestDaemon| {
        ["a", "b"].map(|domain| number(&tenant(daemon, domain, "load", 24), "found"))
    };
    let [gone, there] = found(&daemon);
    assert!(gone == 0 && there >= 170, "{gone} of a, {there} of b");
    daemon.kill();
    daemon.restart();
    let [gone, there] = found(&daemon);
    assert!(gone == 0 && there >= 170, "{gone} of a, {there} of b");
    assert_eq!(tenant(&daemon, "a", "store", 24)["stored"], 192, "it may be stored again");
}
