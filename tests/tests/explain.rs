//! `undercroft explain`: a miss is told as what it is, by the daemon that missed.

use serde_json::{Value, json};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;
use undercroft_client::wire::{PageKey, Stamp};
use undercroft_client::{Client, ConnectOptions, Wait};
use undercroft_tests::{
    DaemonOptions, Engine, PAGE_BYTES, TestDaemon, program, run, run_as_ordinary_user, skip,
};

const PATIENCE: Duration = Duration::from_secs(10);

fn explain(daemon: &TestDaemon, arguments: &[&str]) -> Output {
    let socket = daemon.socket().display().to_string();
    run(&[&["explain", "--socket", &socket], arguments].concat())
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is told of the last lookups, oldest first.
fn told(daemon: &TestDaemon, arguments: &[&str]) -> Vec<Value> {
    let text = text(&explain(daemon, &[arguments, &["--json"]].concat()));
    let all: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(all["schema"], 1);
    all["lookups"].as_array().expect("a list").clone()
}

/// What is told of the last one.
fn last(daemon: &TestDaemon) -> Value {
    told(daemon, &["--last", "1"]).pop().expect("something was looked up")
}

/// A client that has no board: all it looks up comes to the daemon.
fn client(daemon: &TestDaemon) -> Client {
    let mut options = ConnectOptions::new(daemon.socket());
    options.name = "engine".to_owned();
    options.copy_mode = true;
    options.wait = Wait::Now(PATIENCE);
    Client::connect(options).expect("the daemon answers")
}

fn count(daemon: &TestDaemon, cause: &str) -> u64 {
    let misses = daemon.status().hits.misses;
    let counted = misses.iter().find(|miss| miss.cause.name() == cause);
    counted.unwrap_or_else(|| panic!("{cause} is in {misses:?}")).lookups
}

fn head(key: &PageKey) -> String {
    key.0[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_was_found_and_what_was_never_stored() {
    let daemon = TestDaemon::start(DaemonOptions { dram: 4 << 20, ..DaemonOptions::default() });
    assert_eq!(text(&explain(&daemon, &[])), "no lookups are remembered\n");
    let mut engine = Engine::new(&client(&daemon), "model");
    let keys = engine.keys(1, 20);
    assert_eq!(engine.store(&keys[..16], Stamp(0)).stored, 16);
    assert_eq!(engine.lookup(&keys[..16]).pages, 16);
    assert_eq!(engine.lookup(&keys).pages, 16);
    let told = told(&daemon, &[]);
    let [all, some] = &told[..] else { panic!("{told:?}") };
    assert_eq!(
        (&all["dram_pages"], &all["keys"], &all["miss"]),
        (&json!(16), &json!(16), &json!(null))
    );
    assert_eq!((&some["name"], &some["pid"]), (&json!("engine"), &json!(std::process::id())));
    assert_eq!(some["space"], engine.digest().to_hex());
    let miss = json!({
        "page": 16, "key": head(&keys[16]), "cause": "never-stored", "left_unix_s": null,
        "held_in": null,
    });
    assert_eq!(some["miss"], miss);
    assert_eq!(count(&daemon, "never-stored"), 1);
    let words = text(&explain(&daemon, &["--last", "1"]));
    assert!(words.contains("16 of 20 pages, 16 in DRAM, 0 on SSD"), "{words}");
    assert!(
        words.contains("never stored, or gone for so long that nothing remembers it"),
        "{words}"
    );
    let status = run(&["status", "--socket", &daemon.socket().display().to_string()]);
    let status = text(&status);
    assert!(status.contains("lookups that missed a page: never-stored 1\n"), "{status}");
}

#[test]
fn what_left_dram_was_evicted_and_when() {
    // Room for 64 pages and no SSD.
    let daemon = TestDaemon::start(DaemonOptions::default());
    let mut engine = Engine::new(&client(&daemon), "model");
    let chains = [1, 2].map(|chain| engine.keys(chain, 48));
    for keys in &chains {
        assert_eq!(engine.store(keys, Stamp(0)).stored, 48);
    }
    let found = engine.lookup(&chains[0]).pages;
    assert!(found < 48, "{found}");
    let miss = &last(&daemon)["miss"];
    assert_eq!((&miss["cause"], &miss["page"]), (&json!("evicted"), &json!(found)));
    let left = miss["left_unix_s"].as_u64().expect("it is known when");
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    assert!((now - 60..=now + 1).contains(&left), "{left} is not right before {now}");
    assert_eq!(count(&daemon, "evicted"), 1);
}

#[test]
fn what_was_purged_is_told_so() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let mut engine = Engine::new(&client(&daemon), "model");
    let keys = engine.keys(1, 4);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 4);
    assert!(engine.space().is_open());
    let socket = daemon.socket().display().to_string();
    let purge = run(&["purge", "--socket", &socket, "--space", &engine.digest().to_hex()]);
    assert!(text(&purge).starts_with("4 pages"), "{purge:?}");
    assert_eq!(engine.lookup(&keys).pages, 0);
    assert_eq!(last(&daemon)["miss"]["cause"], "purged");
}

#[test]
fn a_record_that_failed_its_check_is_told_so() {
    let daemon = TestDaemon::start(DaemonOptions {
        dram: 8 * PAGE_BYTES,
        ssd: 256 * PAGE_BYTES,
        staging: 4 * PAGE_BYTES,
        ..DaemonOptions::default()
    });
    let mut engine = Engine::new(&client(&daemon), "model");
    let chains: Vec<_> = (0..16).map(|chain| engine.keys(chain, 10)).collect();
    for keys in &chains {
        assert_eq!(engine.store(keys, Stamp(0)).stored, 10);
    }
    let store = std::fs::OpenOptions::new().read(true).write(true).open(daemon.store());
    let store = store.expect("the store");
    // Past the superblocks; every page of 16 KiB is hit twice.
    for at in (8192 + 5..store.metadata().expect("a file").len()).step_by(8 << 10) {
        let mut byte = [0];
        store.read_exact_at(&mut byte, at).expect("inside the file");
        store.write_all_at(&[byte[0] ^ 4], at).expect("inside the file");
    }
    assert!(engine.lookup(&chains[0]).pages > 0, "nothing is known of it yet");
    let loaded = engine.load(&chains[0]).pages;
    assert_eq!(engine.lookup(&chains[0]).pages, loaded);
    assert_eq!(last(&daemon)["miss"]["cause"], "damaged");
}

#[test]
fn a_prompt_under_another_space_is_told_with_that_space() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let client = client(&daemon);
    let mut engine = Engine::new(&client, "model");
    let mut other = Engine::new(&client, "model of another name");
    let keys = engine.keys(1, 4);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 4);
    assert_eq!(other.lookup(&keys).pages, 0);
    let miss = &last(&daemon)["miss"];
    assert_eq!(miss["cause"], "other-space");
    assert_eq!(miss["held_in"], engine.digest().to_hex());
}

#[test]
fn what_the_board_answered_is_counted() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(1, 4);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 4);
    for chain in 2..12 {
        assert_eq!(client.may_hold(&engine.keys(chain, 1)[0]), Some(false));
    }
    // What the client has to say anyway takes it along.
    assert_eq!(engine.lookup(&keys).pages, 4);
    let told = told(&daemon, &[]);
    let [board, looked] = &told[..] else { panic!("{told:?}") };
    assert_eq!((&board["board_lookups"], &looked["dram_pages"]), (&json!(10), &json!(4)));
    let words = text(&explain(&daemon, &[]));
    assert!(words.contains("10 lookup(s) answered by the board"), "{words}");
    assert!(words.contains("11 lookups: 10 answered by the board, 1 found all"), "{words}");
}

#[test]
fn of_one_session_only_its_own_is_told_and_as_much_as_is_asked_for() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let clients = [client(&daemon), client(&daemon)];
    let mut engines = clients.each_ref().map(|client| Engine::new(client, "model"));
    let keys = engines[0].keys(1, 1);
    for _ in 0..3 {
        engines.iter_mut().for_each(|engine| assert_eq!(engine.lookup(&keys).pages, 0));
    }
    assert_eq!(told(&daemon, &[]).len(), 6);
    assert_eq!(told(&daemon, &["--last", "4"]).len(), 4);
    let session = last(&daemon)["session"].as_u64().expect("a number");
    let own = told(&daemon, &["--session", &session.to_string()]);
    assert_eq!(own.len(), 3);
    assert!(own.iter().all(|one| one["session"] == session), "{own:?}");
    assert_eq!(told(&daemon, &["--session", "999"]), Vec::<Value>::new());
    for bad in ["0", "1025", "all"] {
        let output = explain(&daemon, &["--last", bad]);
        assert_eq!(output.status.code(), Some(2), "--last {bad}");
    }
    let nobody = daemon.home().join("nobody").display().to_string();
    assert_eq!(run(&["explain", "--socket", &nobody]).status.code(), Some(1));
}

#[test]
fn an_engine_that_names_prompts_otherwise_is_refused_and_everybody_is_told() {
    let options = DaemonOptions { managed: true, ..DaemonOptions::default() };
    let mut daemon = TestDaemon::start(options);
    let mut engine = Engine::new(&client(&daemon), "model");
    let space = engine.space().space().clone();
    let open = |daemon: &TestDaemon, probe: u8| {
        let probe = Some(PageKey([probe; 32]));
        let client = client(daemon);
        let opened = client.open_probed_space(&space, probe, PATIENCE);
        opened.map(|handle| (client, handle)).map_err(|error| error.to_string())
    };
    // Who does not tell is no reason to refuse anybody.
    let first = open(&daemon, 1).expect("nobody has told yet");
    assert!(open(&daemon, 1).is_ok());
    let refused = open(&daemon, 2).expect_err("its hash is another");
    for words in ["0202020202020202", "0101010101010101", "PYTHONHASHSEED"] {
        assert!(refused.contains(words), "{words} is not in {refused}");
    }
    assert!(daemon.says("a space is refused"), "{}", daemon.log());
    let told = &last(&daemon)["refused"];
    assert_eq!(told["space"], engine.digest().to_hex());
    assert_eq!(
        (&told["known_probe"], &told["told_probe"]),
        (&json!("01".repeat(8)), &json!("02".repeat(8)))
    );
    let status = daemon.status();
    assert_eq!(status.refused_probes, 1);
    assert_eq!(status.spaces[0].probe.as_deref(), Some("0101010101010101"));
    // What is stored keeps the probe, over a restart too.
    assert_eq!(engine.store(&engine.keys(1, 4), Stamp(0)).stored, 4);
    drop((first, engine));
    daemon.kill();
    daemon.restart();
    assert!(open(&daemon, 2).is_err(), "DRAM is warm, and its pages were named otherwise");
    let socket = daemon.socket().display().to_string();
    let purge = run(&["purge", "--socket", &socket, "--space", &space.digest().to_hex()]);
    assert!(text(&purge).starts_with("4 pages"), "{purge:?}");
    assert!(open(&daemon, 2).is_ok());
}

#[test]
fn a_tenant_is_told_of_its_own_lookups() {
    if !rustix::process::geteuid().is_root() {
        let test = "a_tenant_is_told_of_its_own_lookups";
        return skip(test, "processes of other users can only be started by root");
    }
    // The first is the ordinary user's own.
    let more = "[[domain]]\nname = \"own\"\nuid = [65534]\ndram = \"2MiB\"\n\
                [[domain]]\nname = \"b\"\ndram = \"2MiB\"\n";
    let more = more.to_owned();
    let daemon = TestDaemon::start(DaemonOptions { dram: 0, more, ..DaemonOptions::default() });
    let mut tenant = Command::new(program("tenant"));
    tenant.arg("--socket").arg(daemon.socket()).args(["--domain", "b", "store", "0", "8"]);
    let tenant = tenant.gid(2002).output().expect("the program runs");
    assert!(tenant.status.success(), "{}", String::from_utf8_lossy(&tenant.stderr));
    let mut load = Command::new(program("tenant"));
    load.arg("--socket").arg(daemon.socket()).args(["--domain", "b", "load", "0", "8"]);
    assert!(load.gid(2002).output().expect("the program runs").status.success());
    let told = told(&daemon, &[]);
    assert!(!told.is_empty() && told.iter().all(|one| one["domain"] == "b"), "{told:?}");
    daemon.open_to_all();
    let binary = daemon.home().join("program");
    // By another process: what somebody may write to cannot be run, and a process that a test beside
    // this begins meanwhile would inherit our open copy.
    let copied = Command::new("cp").arg(program("undercroft")).arg(&binary).status();
    assert!(copied.expect("cp is there").success());
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).expect("ours");
    let mut command = run_as_ordinary_user(&binary);
    let output = command.arg("explain").arg("--socket").arg(daemon.socket()).output();
    assert_eq!(text(&output.expect("the binary runs")), "no lookups are remembered\n");
}
