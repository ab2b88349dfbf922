//! What outlives a daemon: pages in DRAM, leases on them, and the socket. No test here has an SSD,
//! so that nothing comes back from there.

use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};
use undercroft_client::wire::{Stamp, StartKind};
use undercroft_client::{Client, FetchFrom};
use undercroft_tests::{
    DaemonOptions, Engine, PAGE_BYTES, Restarts, RestartsReport, TestDaemon, run, skip,
};

const CHAINS: u32 = 8;
const PAGES: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(10);

fn managed() -> TestDaemon {
    let options = DaemonOptions { dram: 2 << 20, managed: true, ..DaemonOptions::default() };
    TestDaemon::start(options)
}

fn store_all(engine: &mut Engine) {
    for chain in 0..CHAINS {
        let keys = engine.keys(chain, PAGES);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
    }
}

/// Loads every chain with each byte compared; how many pages came.
fn load_all(engine: &mut Engine) -> u32 {
    (0..CHAINS).map(|chain| engine.load(&engine.keys(chain, PAGES)).pages).sum()
}

fn assert_warm(daemon: &TestDaemon, kind: StartKind) {
    let start = daemon.status().start;
    assert_eq!(start.kind, kind, "{start:?}");
    assert_eq!(start.restored_pages, u64::from(CHAINS * PAGES), "{start:?}");
}

/// Waits until the client has found the daemon that runs: it may not know yet that the last one is
/// gone.
fn connected(daemon: &TestDaemon, client: &Client) {
    let since = Instant::now();
    while client.ping(PATIENCE).is_err() {
        assert!(since.elapsed() < PATIENCE, "{:?}\n{}", client.state(), daemon.log());
        let _not_yet = client.wait_connected(PATIENCE);
    }
}

#[test]
fn dram_is_warm_after_a_restart_and_the_client_comes_back_by_itself() {
    let mut daemon = managed();
    let client = daemon.client("engine").expect("it serves");
    let mut engine = Engine::new(&client, "warm");
    store_all(&mut engine);
    daemon.stop().expect("it ran");
    daemon.restart();
    assert_warm(&daemon, StartKind::Warm);
    connected(&daemon, &client);
    assert_eq!(load_all(&mut engine), CHAINS * PAGES);
    // And it is no different from any other daemon: it stores, and it can be restarted again.
    let keys = engine.keys(100, PAGES);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
    daemon.kill();
    daemon.restart();
    connected(&daemon, &client);
    assert_eq!(engine.load(&keys).pages, PAGES);
    assert_eq!(daemon.status().start.restarts, 2);
}

#[test]
fn dram_is_warm_after_a_kill() {
    let mut daemon = managed();
    let client = daemon.client("engine").expect("it serves");
    let mut engine = Engine::new(&client, "killed");
    store_all(&mut engine);
    daemon.kill();
    daemon.restart();
    assert_warm(&daemon, StartKind::Warm);
    connected(&daemon, &client);
    assert_eq!(load_all(&mut engine), CHAINS * PAGES);
}

#[test]
fn a_client_that_never_knew_the_first_daemon_finds_its_pages() {
    let mut daemon = managed();
    {
        let client = daemon.client("first").expect("it serves");
        store_all(&mut Engine::new(&client, "shared"));
    }
    daemon.kill();
    daemon.restart();
    let client = daemon.client("second").expect("it serves");
    assert_eq!(load_all(&mut Engine::new(&client, "shared")), CHAINS * PAGES);
}

#[test]
fn a_lease_holds_its_pages_over_a_restart_until_it_is_released() {
    let frames = 4 * PAGES;
    let dram = u64::from(frames) * PAGE_BYTES;
    let mut daemon =
        TestDaemon::start(DaemonOptions { dram, managed: true, ..DaemonOptions::default() });
    let client = daemon.client("reader").expect("it serves");
    let mut engine = Engine::new(&client, "leased");
    let keys = engine.keys(0, PAGES);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
    let mut fetch = engine.space().fetch(FetchFrom::Keys(&keys), Stamp(0), PATIENCE);
    let mut pages = Vec::new();
    while let Some(run) = fetch.next_ready() {
        pages.extend(run.pages);
    }
    assert_eq!(pages.len() as u32, PAGES);
    let read = |pages: &[undercroft_tests::Span]| -> Vec<Vec<u8>> {
        pages.iter().map(|page| page.read(<[u8]>::to_vec)).collect()
    };
    let before = read(&pages);

    daemon.kill();
    daemon.restart();
    let writer = daemon.client("writer").expect("it serves");
    let mut other = Engine::new(&writer, "other");
    // Far more than there is room for: whatever can be evicted is.
    for chain in 0..8 {
        other.try_store(&other.keys(chain, PAGES));
    }
    assert_eq!(daemon.status().dram.pages, u64::from(frames));
    assert_eq!(read(&pages), before, "a leased frame was used for something else");
    let leased = |daemon: &TestDaemon| -> u64 {
        daemon.status().sessions.iter().map(|session| session.leased_pages).sum()
    };
    assert_eq!(leased(&daemon), u64::from(PAGES));

    connected(&daemon, &client);
    drop((pages, fetch));
    let since = Instant::now();
    while leased(&daemon) > 0 {
        assert!(since.elapsed() < PATIENCE, "the lease was not released: {:?}", daemon.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_planned_restart_without_a_service_manager_keeps_everything() {
    let options = DaemonOptions { dram: 2 << 20, ..DaemonOptions::default() };
    let mut daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("it serves");
    let mut engine = Engine::new(&client, "taken over");
    store_all(&mut engine);
    daemon.take_over();
    assert_warm(&daemon, StartKind::Takeover);
    connected(&daemon, &client);
    assert_eq!(load_all(&mut engine), CHAINS * PAGES);
}

#[test]
fn an_arena_is_gone_on_with_wherever_it_lies() {
    let test = "an_arena_is_gone_on_with_wherever_it_lies";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "only root can make mounts");
    }
    let on = |backing: &str| format!("part = 2097152\nbacking = \"{backing}\"\n");
    for (first, then) in [("memfd", "mount"), ("mount", "memfd")] {
        let (dram, arena) = (2 << 20, on(first));
        let options = DaemonOptions { dram, arena, managed: true, ..DaemonOptions::default() };
        let mut daemon = TestDaemon::start(options);
        let client = daemon.client("engine").expect("it serves");
        let mut engine = Engine::new(&client, "moved");
        store_all(&mut engine);
        daemon.kill();
        daemon.reconfigure(|options| (options.dram, options.arena) = (4 << 20, on(then)));
        daemon.restart();
        assert_warm(&daemon, StartKind::Warm);
        connected(&daemon, &client);
        assert_eq!(load_all(&mut engine), CHAINS * PAGES);
        // What it grows by lies where it is told to.
        let since = Instant::now();
        while daemon.status().arena.backing != "mixed" {
            assert!(since.elapsed() < PATIENCE, "{:?}", daemon.status().arena);
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon.kill();
        daemon.restart();
        assert_warm(&daemon, StartKind::Warm);
        connected(&daemon, &client);
        assert_eq!(load_all(&mut engine), CHAINS * PAGES);
        assert_kept_once(&daemon);
    }
}

/// Runs a daemon that is to take over by this configuration, and cannot: what it says, in one line.
fn cannot_take_over(config: &Path) -> String {
    let output = run(&["serve", "--takeover", "--config", &config.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said.lines().find(|line| line.starts_with("undercroft: ")).unwrap_or_default().to_owned()
}

#[test]
fn a_configuration_that_cannot_be_had_leaves_the_old_daemon_serving() {
    let options = DaemonOptions { dram: 2 << 20, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("it serves");
    let mut engine = Engine::new(&client, "not taken over");
    store_all(&mut engine);
    let (pid, home) = (daemon.pid(), daemon.home().display().to_string());
    let good = std::fs::read_to_string(daemon.config()).expect("its own folder");
    let ssd =
        |more: &str| good.replace("[ssd]\nsize = 0", &format!("[ssd]\nsize = 1048576\n{more}"));
    let bad = daemon.home().join("bad.toml");
    let foreign = daemon.home().join("foreign");
    std::fs::create_dir(&foreign).expect("its own folder");
    let of_others = vec![1; 1 << 20];
    std::fs::write(foreign.join("pages-0.log"), &of_others).expect("its own folder");
    for (text, words) in [
        (ssd(&format!("key_file = \"{home}/none\"")), "there is no store key"),
        (
            ssd("").replace(&format!("[\"{home}\"]"), "[\"/proc/none\"]"),
            "store directory /proc/none",
        ),
        (good.replace("[arena]", "[arena]\nparts = 1"), "unknown field"),
        (ssd("").replace("size = 1048576", "size = \"900000GiB\""), "available"),
        (
            ssd("").replace(&format!("[\"{home}\"]"), &format!("[\"{home}/foreign\"]")),
            "not an undercroft page log",
        ),
    ] {
        assert_ne!(text, good);
        std::fs::write(&bad, text).expect("its own folder");
        let line = cannot_take_over(&bad);
        assert!(line.contains(words), "{line}");
        assert_eq!(daemon.status().pid, pid);
        assert_eq!(load_all(&mut engine), CHAINS * PAGES);
    }
    assert_eq!(std::fs::read(foreign.join("pages-0.log")).expect("it is there"), of_others);
}

#[test]
fn a_store_of_another_key_leaves_the_old_daemon_serving() {
    let options = DaemonOptions { dram: 2 << 20, ssd: 8 << 20, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    let (pid, home) = (daemon.pid(), daemon.home());
    let other = home.join("other.key");
    std::fs::write(&other, [7; 32]).expect("its own folder");
    std::fs::set_permissions(&other, PermissionsExt::from_mode(0o600)).expect("ours");
    let good = std::fs::read_to_string(daemon.config()).expect("its own folder");
    let text = good.replace("[ssd]", &format!("[ssd]\nkey_file = {other:?}"));
    let bad = home.join("bad.toml");
    std::fs::write(&bad, text).expect("its own folder");
    let line = cannot_take_over(&bad);
    assert!(line.contains("another store key"), "{line}");
    assert_eq!(daemon.status().pid, pid);
}

#[test]
fn a_daemon_that_is_stopped_is_not_asked_to_hand_over() {
    let options = DaemonOptions { dram: 2 << 20, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    daemon.signal(Signal::STOP);
    let line = cannot_take_over(&daemon.config());
    daemon.signal(Signal::CONT);
    assert!(line.contains("does not answer"), "{line}");
    let client = daemon.client("engine").expect("it serves on");
    let mut engine = Engine::new(&client, "not handed over");
    store_all(&mut engine);
    assert_eq!(load_all(&mut engine), CHAINS * PAGES);
}

#[test]
fn a_daemon_whose_socket_is_a_units_is_not_taken_over() {
    let options = DaemonOptions { dram: 2 << 20, managed: true, ..DaemonOptions::default() };
    let mut daemon = TestDaemon::prepare(options).expect("a folder of its own");
    // As systemd opens it, under the name of the unit.
    let socket = UnixListener::bind(daemon.socket()).expect("its own folder");
    let manager = daemon.manager().expect("it has one");
    manager.keep("undercroft.socket", socket.into()).expect("it hears");
    daemon.restart();
    let client = daemon.client("engine").expect("it serves");
    let mut engine = Engine::new(&client, "managed");
    store_all(&mut engine);
    let line = cannot_take_over(&daemon.config());
    assert!(line.contains("systemctl restart"), "{line}");
    assert_eq!(daemon.status().pid, daemon.pid());
    assert_eq!(load_all(&mut engine), CHAINS * PAGES);
}

#[test]
fn an_arena_that_the_service_manager_has_no_room_for_is_told() {
    let start = |keeps| {
        let arena = "part = 1048576\n".to_owned();
        let options = DaemonOptions { dram: 4 << 20, arena, managed: true, ..Default::default() };
        TestDaemon::start(DaemonOptions { keeps: Some(keeps), ..options })
    };
    let words = "FileDescriptorStoreMax= is 9";
    let daemon = start(9);
    let since = Instant::now();
    while daemon.status().arena.parts < 4 {
        assert!(since.elapsed() < PATIENCE, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(2));
    }
    let refused = daemon.status().refused;
    assert!(refused.iter().any(|line| line.contains(words)), "{refused:?}");
    assert!(daemon.says(words), "{}", daemon.log());
    assert_eq!(daemon.log().lines().filter(|line| line.contains(words)).count(), 1, "told once");
    let refused = start(100).status().refused;
    assert!(!refused.iter().any(|line| line.contains("FileDescriptorStoreMax")), "{refused:?}");
}

#[test]
fn without_its_state_an_arena_is_dropped_and_all_begins_anew() {
    for lost in ["undercroft-state", "undercroft-part"] {
        let mut daemon = managed();
        let client = daemon.client("engine").expect("it serves");
        let mut engine = Engine::new(&client, "lost");
        store_all(&mut engine);
        daemon.kill();
        daemon.manager().expect("it has one").forget(lost).expect("it hears");
        daemon.restart();
        let start = daemon.status().start;
        assert_eq!(start.kind, StartKind::Cold, "{start:?}");
        assert!(start.dropped.is_some(), "{start:?}");
        connected(&daemon, &client);
        assert_eq!(load_all(&mut engine), 0);
        store_all(&mut engine);
        assert_eq!(load_all(&mut engine), CHAINS * PAGES);
        // Nothing of the old arena is kept beside the new one.
        let kept = daemon.manager().expect("it has one").kept().expect("it hears");
        assert_eq!(kept.iter().filter(|name| name.starts_with("undercroft-part")).count(), 1);
    }
}

/// How often each name is kept.
fn assert_kept_once(daemon: &TestDaemon) {
    let mut kept = daemon.manager().expect("it has one").kept().expect("it hears");
    kept.sort();
    let all = kept.len();
    kept.dedup();
    assert_eq!(kept.len(), all, "{kept:?}");
    assert!(!kept.iter().any(|name| name.contains("ledger")), "{kept:?}");
}

#[test]
fn an_arena_that_cannot_be_gone_on_with_costs_one_cold_start_and_no_more() {
    let nothing = || OwnedFd::from(std::fs::File::open("/dev/null").expect("it is there"));
    for spoilt in ["undercroft-state", "undercroft-part-0"] {
        let mut daemon = managed();
        let client = daemon.client("engine").expect("it serves");
        let mut engine = Engine::new(&client, "spoilt");
        store_all(&mut engine);
        daemon.kill();
        let manager = daemon.manager().expect("it has one");
        // As another build left it, with something that this one does not know.
        manager.forget(spoilt).expect("it hears");
        manager.keep(spoilt, nothing()).expect("it hears");
        manager.keep("undercroft-ledger-3", nothing()).expect("it hears");
        daemon.restart();
        let start = daemon.status().start;
        assert_eq!(start.kind, StartKind::Cold, "{start:?}");
        assert_kept_once(&daemon);
        connected(&daemon, &client);
        store_all(&mut engine);
        daemon.kill();
        daemon.restart();
        assert_warm(&daemon, StartKind::Warm);
        assert_kept_once(&daemon);
        connected(&daemon, &client);
        assert_eq!(load_all(&mut engine), CHAINS * PAGES);
    }
}

#[test]
fn of_an_arena_that_was_kept_twice_nothing_is_believed() {
    let mut daemon = managed();
    store_all(&mut Engine::new(&daemon.client("engine").expect("it serves"), "twice"));
    daemon.kill();
    let manager = daemon.manager().expect("it has one");
    let other = std::fs::File::open("/dev/zero").expect("it is there");
    manager.keep("undercroft-state", other.into()).expect("it hears");
    daemon.restart();
    let start = daemon.status().start;
    assert_eq!(start.kind, StartKind::Cold, "{start:?}");
    assert!(start.dropped.is_some_and(|why| why.contains("twice")), "it says why");
    assert_kept_once(&daemon);
}

#[test]
fn whoever_connects_while_nobody_serves_waits_and_is_served() {
    let mut daemon = managed();
    daemon.stop().expect("it ran");
    let socket = daemon.socket();
    let waiting =
        std::thread::spawn(move || std::os::unix::net::UnixStream::connect(socket).map(drop));
    let connected = waiting.join().expect("it does not panic");
    connected.expect("the socket still listens");
    daemon.restart();
    assert!(daemon.client("after").is_some());
}

/// A few rounds of `cargo xtask restarts`.
fn restarts(on_ssd: u64) -> RestartsReport {
    let restarts = Restarts {
        rounds: 3,
        pages: 600,
        new_pages: 60,
        page_bytes: PAGE_BYTES,
        chain_pages: PAGES,
        load_ms: 150,
        on_ssd,
        seed: 1,
    };
    restarts.run(&|_| (), &|| Ok(())).expect("every daemon starts")
}

#[test]
fn under_load_pages_leases_and_clients_outlive_every_kind_of_end() {
    let report = restarts(1);
    let bounds = report.check();
    assert!(bounds.is_ok(), "{bounds:?}\n{report}");
}

/// How much of so little a kill may take that had just left DRAM depends on the moment: that is
/// for the lane.
#[test]
fn with_reads_from_ssd_under_way_nothing_is_wrong_and_nobody_is_lost() {
    let report = restarts(2);
    let fine = report.restarts.iter().all(|one| one.wrong.bytes == 0 && one.lost_clients == 0);
    assert!(fine, "{report}");
}
