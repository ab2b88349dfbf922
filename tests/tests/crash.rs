//! `kill -9` of the daemon: clients miss, reconnect and hit again; what was on SSD is served.

use rustix::process::Signal;
use std::time::{Duration, Instant};
use undercroft_client::wire::Stamp;
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon, WarmRestart};

fn options() -> DaemonOptions {
    DaemonOptions {
        dram: 16 * PAGE_BYTES,
        ssd: 512 * PAGE_BYTES,
        staging: 4 * PAGE_BYTES,
        ..DaemonOptions::default()
    }
}

/// Waits until the pages the daemon wrote are named in tables: they are at most 20 ms behind.
fn settle() {
    std::thread::sleep(Duration::from_millis(200));
}

#[test]
fn pages_on_ssd_are_served_after_kill_9_and_no_call_outlives_its_deadline() {
    let mut daemon = TestDaemon::start(options());
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    engine.deadline = Duration::from_secs(2);
    for conversation in 0..20 {
        let keys = engine.keys(conversation, 12);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, 12);
    }
    let mut before = 0;
    for conversation in 0..20 {
        let keys = engine.keys(conversation, 12);
        before += engine.load(&keys).pages;
    }
    assert_eq!(before, 240);
    settle();
    daemon.kill();
    let keys = engine.keys(3, 12);
    let since = Instant::now();
    assert_eq!(engine.load(&keys).pages, 0, "a miss, not an error");
    assert!(since.elapsed() < Duration::from_millis(500), "a dead daemon is noticed at once");
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 0);

    daemon.restart();
    assert!(client.wait_connected(Duration::from_secs(10)), "it comes back by itself");
    let recovered = daemon.status().ssd.expect("there is one").recovered_records;
    assert!(recovered >= 200, "{recovered} records recovered");
    let mut after = 0;
    for conversation in 0..20 {
        let keys = engine.keys(conversation, 12);
        after += engine.load(&keys).pages;
    }
    // Pages that were only in DRAM are gone, and with them what hung below them.
    assert!(after >= 150, "{after} of 240 pages are served again");
    for conversation in 0..20 {
        let keys = engine.keys(conversation, 12);
        engine.try_store(&keys);
        assert_eq!(engine.load(&keys).pages, 12);
    }
    assert!(
        engine.longest < Duration::from_secs(2) + Duration::from_millis(500),
        "{:?}",
        engine.longest
    );
}

#[test]
fn an_orderly_stop_keeps_what_is_on_ssd() {
    let mut daemon = TestDaemon::start(options());
    {
        let client = daemon.client("engine").expect("the daemon answers");
        let mut engine = Engine::new(&client, "model");
        for conversation in 0..10 {
            let keys = engine.keys(conversation, 12);
            engine.try_store(&keys);
        }
    }
    assert!(daemon.stop().expect("it ran").success());
    daemon.restart();
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(0, 12);
    assert_eq!(engine.load(&keys).pages, 12);
}

#[test]
fn a_stopped_daemon_costs_a_deadline_and_nothing_more() {
    let daemon = TestDaemon::start(options());
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(1, 8);
    engine.try_store(&keys);
    engine.deadline = Duration::from_millis(200);
    daemon.signal(Signal::STOP);
    for _ in 0..3 {
        let since = Instant::now();
        assert_eq!(engine.load(&keys).pages, 0);
        let stored = engine.store(&keys, Stamp(0));
        assert_eq!(stored.stored, 0);
        assert!(since.elapsed() < Duration::from_millis(900), "{:?}", since.elapsed());
    }
    daemon.signal(Signal::CONT);
    engine.deadline = Duration::from_secs(5);
    assert!(client.wait_connected(Duration::from_secs(10)));
    let mut tries = 0;
    while engine.load(&keys).pages < 8 {
        tries += 1;
        assert!(tries < 200, "hits do not come back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn many_kills_with_writes_in_flight_never_give_a_wrong_byte() {
    let mut daemon = TestDaemon::start(options());
    for round in 0..8 {
        let client = daemon.client("engine").expect("the daemon answers");
        let mut engine = Engine::new(&client, "model");
        // Every byte of every hit is compared inside `load`.
        for conversation in 0..12 {
            let keys = engine.keys(conversation, 10 + round);
            engine.try_load(&keys);
            engine.try_store(&keys);
        }
        daemon.kill();
        daemon.restart();
    }
    assert_eq!(daemon.status().ssd.expect("there is one").corrupt_tables, 0);
}

/// A few rounds of `cargo xtask crash`, which runs the same thing with figures that mean
/// something.
#[test]
fn rounds_of_kill_9_under_load_lose_nothing_that_was_on_ssd() {
    let lane = WarmRestart {
        rounds: 3,
        pages: 1500,
        page_bytes: PAGE_BYTES,
        chain_pages: 10,
        new_pages: 900,
        load_ms: 1300..1600,
        seed: 1,
        directory: None,
    };
    let report = lane.run(&|_, _| {}, &|| Ok(())).expect("the daemon comes up every time");
    if let Err(broken) = report.check() {
        panic!("{broken:#}\n{report}");
    }
    let cut: u64 = report.rounds.iter().map(|round| round.load.cut_pages).sum();
    assert!(cut > 0, "nothing was on its way when the daemon died:\n{report}");
    let fresh: u64 = report.rounds.iter().map(|round| round.fresh.of).sum();
    assert!(fresh > 0, "no page of the rounds themselves was looked for:\n{report}");
}
