//! Pages through the real daemon: stored, found, fetched, evicted, demoted, all bytes checked.

use std::time::Duration;
use undercroft_client::LookupOptions;
use undercroft_client::wire::{HintKind, Mode, Stamp};
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon};

#[test]
fn what_was_stored_is_found_and_every_byte_is_right() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(1, 20);
    assert_eq!(engine.lookup(&keys).pages, 0);
    let stored = engine.store(&keys, Stamp(0));
    assert_eq!((stored.stored, stored.failed), (20, 0), "{stored:?}");
    let loaded = engine.load(&keys);
    assert_eq!((loaded.pages, loaded.ssd_pages), (20, 0), "{loaded:?}");
    let again = engine.store(&keys, Stamp(0));
    assert_eq!((again.stored, again.held), (0, 20), "{again:?}");
    let mut branch = engine.keys(1, 10);
    branch.extend(engine.keys(2, 5));
    assert_eq!(engine.lookup(&branch).pages, 10, "the leading run, not what lies about");
    let status = daemon.status();
    assert_eq!((status.stores.stored, status.hits.dram_pages), (20, 20));
}

#[test]
fn copy_mode_delivers_the_same_bytes() {
    let more = "[copy]\nmode = \"copy\"".to_owned();
    let options = DaemonOptions { more, staging: 4 * PAGE_BYTES, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(1, 20);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 20);
    assert_eq!(engine.load(&keys).pages, 20);
    let sessions = daemon.status().sessions;
    assert!(sessions.iter().all(|s| s.mode == Mode::Copy), "{sessions:?}");
}

#[test]
fn two_models_never_share_a_page() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    let client = daemon.client("engine").expect("the daemon answers");
    let mut one = Engine::new(&client, "one");
    let mut two = Engine::new(&client, "two");
    let keys = one.keys(1, 4);
    assert_eq!(one.store(&keys, Stamp(0)).stored, 4);
    assert_eq!(one.lookup(&keys).pages, 4);
    assert_eq!(two.lookup(&keys).pages, 0, "the very same keys in another space");
    let own = two.keys(1, 4);
    assert_ne!(own, keys);
    assert_eq!(two.store(&own, Stamp(0)).stored, 4);
    assert_eq!((one.load(&keys).pages, two.load(&own).pages), (4, 4));
}

#[test]
fn what_leaves_dram_comes_back_from_ssd() {
    let options = DaemonOptions {
        dram: 8 * PAGE_BYTES,
        ssd: 256 * PAGE_BYTES,
        staging: 2 * PAGE_BYTES,
        ..DaemonOptions::default()
    };
    let daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for conversation in 0..10 {
        let keys = engine.keys(conversation, 6);
        let stored = engine.store(&keys, Stamp(0));
        assert_eq!(stored.stored, 6, "{stored:?}");
    }
    let mut from_ssd = 0;
    for conversation in 0..10 {
        let keys = engine.keys(conversation, 6);
        let loaded = engine.load(&keys);
        assert_eq!(loaded.pages, 6, "conversation {conversation}: {loaded:?}");
        from_ssd += loaded.ssd_pages;
    }
    assert!(from_ssd >= 50, "{from_ssd} pages came from SSD");
    let ssd = daemon.status().ssd.expect("there is one");
    assert_eq!((ssd.corrupt_records, ssd.io_errors), (0, 0));
}

#[test]
fn a_context_larger_than_dram_streams_through_it() {
    let options = DaemonOptions {
        dram: 8 * PAGE_BYTES,
        ssd: 256 * PAGE_BYTES,
        staging: 4 * PAGE_BYTES,
        ..DaemonOptions::default()
    };
    let daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(1, 40);
    let stored = engine.store(&keys, Stamp(0));
    assert_eq!(stored.stored, 40, "{stored:?}");
    let loaded = engine.load(&keys);
    assert_eq!(loaded.pages, 40, "{loaded:?}");
    assert!(loaded.ssd_pages >= 30, "{loaded:?}");
}

#[test]
fn ssd_traffic_far_beyond_its_capacity_stays_right() {
    let options = DaemonOptions {
        dram: 16 * PAGE_BYTES,
        ssd: 64 * PAGE_BYTES,
        staging: 4 * PAGE_BYTES,
        more: format!("segment = {}", 8 * PAGE_BYTES),
        ..DaemonOptions::default()
    };
    let daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for round in 0..80 {
        // Every other request is for one of two conversations that stay within the SSD's reach.
        let conversation = if round % 2 == 0 { 10 + round } else { round / 2 % 2 };
        let keys = engine.keys(conversation, 12);
        let loaded = engine.load(&keys);
        assert!(loaded.why.is_none() || loaded.pages < 12, "{loaded:?}");
        engine.try_store(&keys);
    }
    // Reclaim runs behind the appends that made it necessary.
    let mut tries = 0;
    let (status, ssd) = loop {
        let status = daemon.status();
        let ssd = status.ssd.clone().expect("there is one");
        if ssd.tier.used_bytes <= ssd.tier.capacity_bytes {
            break (status, ssd);
        }
        tries += 1;
        assert!(tries < 200, "over its capacity at rest: {ssd:?}");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(ssd.written_bytes > 2 * ssd.tier.capacity_bytes, "{ssd:?}");
    assert!(status.hits.ssd_pages > 0, "{:?}", status.hits);
}

#[test]
fn a_hold_keeps_what_was_found() {
    let options = DaemonOptions { dram: 8 * PAGE_BYTES, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let kept = engine.keys(1, 4);
    assert_eq!(engine.store(&kept, Stamp(0)).stored, 4);
    let options = LookupOptions { hold: Some(Duration::from_secs(30)), ..LookupOptions::default() };
    let found = engine.space().lookup(&kept, options);
    assert_eq!(found.pages, 4);
    let hold = found.hold.expect("a hold was asked for");
    for other in 2..8 {
        let keys = engine.keys(other, 4);
        engine.try_store(&keys);
    }
    assert_eq!(engine.load(&kept).pages, 4, "held through six times its size");
    drop(hold);
    for other in 8..12 {
        let keys = engine.keys(other, 8);
        engine.try_store(&keys);
    }
    assert_eq!(engine.lookup(&kept).pages, 0, "no longer held, long evicted");
}

#[test]
fn prefetch_and_hints_are_answered() {
    let options =
        DaemonOptions { dram: 8 * PAGE_BYTES, ssd: 128 * PAGE_BYTES, ..DaemonOptions::default() };
    let daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let keys = engine.keys(1, 6);
    engine.try_store(&keys);
    let other = engine.keys(2, 8);
    engine.try_store(&other);
    let before = engine.lookup(&keys);
    assert!(before.ssd > 0, "{before:?}");
    let second = Duration::from_secs(1);
    let lifted = engine.space().prefetch(&keys, second, second).expect("an answer");
    assert!(lifted.started > 0, "{lifted:?}");
    let mut tries = 0;
    while engine.lookup(&keys).dram < 6 {
        tries += 1;
        assert!(tries < 500, "never lifted: {:?}", engine.lookup(&keys));
        std::thread::sleep(Duration::from_millis(5));
    }
    engine.space().hint(&keys, HintKind::Ended, second).expect("an answer");
}

#[test]
fn a_dead_clients_frames_come_back() {
    let daemon = TestDaemon::start(DaemonOptions::default());
    {
        let client = daemon.client("short").expect("the daemon answers");
        let mut engine = Engine::new(&client, "model");
        let keys = engine.keys(1, 8);
        engine.try_store(&keys);
    }
    let status = daemon.status();
    assert!(status.sessions.iter().all(|s| s.name != "short"), "{:?}", status.sessions);
}

#[test]
fn bursts_of_demotions_lose_nothing_that_the_ssd_has_room_for() {
    // Few pages to a segment: a run is several segments long.
    let options = DaemonOptions {
        dram: 64 * PAGE_BYTES,
        ssd: 512 * PAGE_BYTES,
        staging: 16 * PAGE_BYTES,
        more: format!("segment = {}", 8 * PAGE_BYTES),
        ..DaemonOptions::default()
    };
    let daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for conversation in 0..40 {
        let keys = engine.keys(conversation, 48);
        let stored = engine.store(&keys, Stamp(0));
        assert_eq!(stored.stored, 48, "{stored:?}");
    }
    // 64 pages in DRAM and 512 on SSD hold the last eleven runs; one is left for the segments
    // that are being emptied.
    for conversation in 30..40 {
        let keys = engine.keys(conversation, 48);
        assert_eq!(engine.lookup(&keys).pages, 48, "conversation {conversation}");
    }
    assert_eq!(daemon.status().ssd.expect("there is one").io_errors, 0);
}
