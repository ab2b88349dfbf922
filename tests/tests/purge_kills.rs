//! Purges against the world: daemons that are killed in the middle, engines that go on storing, and
//! configurations that change.

use rustix::process::Signal;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::wire::{PageKey, Stamp};
use undercroft_ssd_tier::{KeptPurges, PurgeList};
use undercroft_tests::{DaemonOptions, Engine, TestDaemon, program};
use undercroft_wire::{DomainId, PurgeScope};

const PAGES: u32 = 16;
/// Three times what DRAM holds.
const CHAINS: u32 = 24;
const ALL: u32 = PAGES * CHAINS;
const PATIENCE: Duration = Duration::from_secs(20);

fn daemon(domain: &str) -> TestDaemon {
    // Plain, so that the list can be read and written here.
    let more = format!("encryption = \"off\"\n[[domain]]\nname = \"default\"\n{domain}");
    let options = DaemonOptions { dram: 0, ssd: 32 << 20, more, ..DaemonOptions::default() };
    TestDaemon::start(DaemonOptions { managed: true, ..options })
}

fn engine(daemon: &TestDaemon) -> Engine {
    Engine::new(&daemon.client("engine").expect("it answers"), "model")
}

fn chains(engine: &Engine) -> Vec<Vec<PageKey>> {
    (0..CHAINS).map(|chain| engine.keys(chain, PAGES)).collect()
}

/// How many pages were stored: some may be there yet.
fn store(daemon: &TestDaemon) -> u32 {
    let mut engine = engine(daemon);
    chains(&engine).iter().map(|keys| engine.store(keys, Stamp(0)).stored).sum()
}

/// How many pages are found, each of which is loaded and compared.
fn found(daemon: &TestDaemon) -> u32 {
    let client = daemon.client("engine").expect("it answers");
    let mut engine = Engine::new(&client, "model");
    let mut found = 0;
    for keys in chains(&engine) {
        found += engine.lookup(&keys).pages;
        engine.try_load(&keys);
    }
    // It may be killed next: pages that it has not heard are given back stay this process's.
    client.ping(PATIENCE).expect("it answers");
    found
}

fn purge(daemon: &TestDaemon) -> Child {
    let mut command = Command::new(program("undercroft"));
    command.arg("purge").arg("--socket").arg(daemon.socket()).args(["--domain", "default"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs")
}

fn purged(daemon: &TestDaemon) {
    assert!(purge(daemon).wait().expect("it ran").success(), "{}", daemon.log());
}

/// The purges beside the page log.
fn list(daemon: &TestDaemon) -> PurgeList {
    match PurgeList::load(daemon.home(), None).expect("it can be read") {
        KeptPurges::Known(list) => list,
        KeptPurges::Unknown => panic!("a list was left that nobody can read"),
    }
}

#[test]
fn killed_at_any_moment_a_purge_is_whole_as_soon_as_anything_says_so() {
    let mut daemon = daemon("dram = \"2MiB\"");
    let (mut answered, mut written) = (0, 0);
    for round in 0..10 {
        store(&daemon);
        assert!(found(&daemon) >= ALL / 2, "there is something to purge");
        let before = list(&daemon).last();
        let mut asking = purge(&daemon);
        std::thread::sleep(Duration::from_millis(round * 3));
        daemon.kill();
        let told = asking.wait().expect("it ran").success();
        let on_disk = list(&daemon).last() > before;
        (answered, written) = (answered + u32::from(told), written + u32::from(on_disk));
        assert!(on_disk || !told, "it was answered and is not on the medium");
        for _ in 0..2 {
            daemon.restart();
            let found = found(&daemon);
            assert!(!on_disk || found == 0, "{found} pages are back in round {round}");
            daemon.kill();
        }
        daemon.restart();
    }
    println!("of 10 purges {written} were on the medium and {answered} answered");
}

#[test]
fn what_dram_holds_is_purged_too_when_only_the_medium_had_the_purge() {
    let mut daemon = daemon("dram = \"8MiB\"");
    store(&daemon);
    daemon.kill();
    daemon.restart();
    assert_eq!(found(&daemon), ALL, "DRAM outlives the daemon");
    daemon.kill();
    // The daemon was killed right after it had written this.
    let mut list = list(&daemon);
    let domain = Some(DomainId::named("default"));
    let newest = list.last().0;
    list.add(PurgeScope { domain, ..PurgeScope::default() }, newest + 1);
    list.save(daemon.home(), None).expect("it is written");
    daemon.restart();
    assert_eq!(found(&daemon), 0);
    // What is stored before it is over may go with it.
    let since = Instant::now();
    while !daemon.log().contains("purged purge=") {
        assert!(since.elapsed() < PATIENCE, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(store(&daemon), ALL, "{}", daemon.log());
    daemon.kill();
    daemon.restart();
    assert_eq!(found(&daemon), ALL, "it is over, and means nothing that came later");
}

#[test]
fn while_engines_go_on_storing_nothing_of_before_is_left() {
    let mut daemon = daemon("dram = \"2MiB\"");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for at in 0..2 {
            let (daemon, stop) = (&daemon, &stop);
            scope.spawn(move || {
                let mut engine = engine(daemon);
                let chains = chains(&engine);
                for round in 0.. {
                    let keys = &chains[(at * 7 + round * 5) % chains.len()];
                    engine.try_store(keys);
                    // What is found is right, whatever is purged meanwhile.
                    engine.try_load(keys);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for _ in 0..20 {
            purged(&daemon);
        }
        stop.store(true, Ordering::Relaxed);
    });
    purged(&daemon);
    assert_eq!(found(&daemon), 0, "nobody stores any more");
    daemon.kill();
    daemon.restart();
    assert_eq!(found(&daemon), 0);
}

#[test]
fn an_age_made_shorter_by_a_reload_counts_at_once() {
    let mut daemon = daemon("dram = \"2MiB\"\nmax_age = \"1h\"");
    store(&daemon);
    assert!(found(&daemon) >= ALL / 2);
    std::thread::sleep(Duration::from_secs(3));
    daemon.reconfigure(|options| options.more = options.more.replace("\"1h\"", "1"));
    daemon.signal(Signal::HUP);
    let since = Instant::now();
    while daemon.status().reload.times == 0 {
        assert!(since.elapsed() < PATIENCE, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(daemon.status().reload.pending, Vec::<String>::new());
    assert_eq!(found(&daemon), 0);
    // Nor does a longer one bring back what is gone.
    daemon.reconfigure(|options| options.more = options.more.replace("max_age = 1", ""));
    daemon.signal(Signal::HUP);
    while daemon.status().reload.times == 1 {
        assert!(since.elapsed() < PATIENCE, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(found(&daemon), 0);
}
