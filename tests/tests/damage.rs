//! Damage to the page log becomes misses and counters, never data.

use std::os::unix::fs::FileExt;
use undercroft_client::wire::Stamp;
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon};

fn options() -> DaemonOptions {
    DaemonOptions {
        dram: 8 * PAGE_BYTES,
        ssd: 256 * PAGE_BYTES,
        staging: 4 * PAGE_BYTES,
        ..DaemonOptions::default()
    }
}

const CONVERSATIONS: u32 = 16;
const PAGES: u32 = 10;

fn fill(daemon: &TestDaemon) {
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for conversation in 0..CONVERSATIONS {
        let keys = engine.keys(conversation, PAGES);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
    }
}

/// Flips a byte in every `stride` bytes of the store between `from` and its end.
fn flip(daemon: &TestDaemon, from: u64, stride: u64) -> u64 {
    let file =
        std::fs::OpenOptions::new().read(true).write(true).open(daemon.store()).expect("the store");
    let length = file.metadata().expect("a file").len();
    let mut at = from;
    let mut flipped = 0;
    while at < length {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("inside the file");
        byte[0] ^= 1 << (at % 8);
        file.write_all_at(&byte, at).expect("inside the file");
        flipped += 1;
        at += stride;
    }
    flipped
}

#[test]
fn flipped_bytes_in_a_running_store_are_misses_and_are_counted() {
    let daemon = TestDaemon::start(options());
    fill(&daemon);
    // Past the superblocks; every page of 16 KiB is hit twice.
    assert!(flip(&daemon, 8192 + 5, 8 << 10) > 300);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for conversation in 0..CONVERSATIONS {
        let keys = engine.keys(conversation, PAGES);
        // Wrong bytes would panic inside.
        engine.try_load(&keys);
    }
    let ssd = daemon.status().ssd.expect("there is one");
    assert!(ssd.corrupt_records >= u64::from(CONVERSATIONS) / 2, "{ssd:?}");
    for conversation in 0..CONVERSATIONS {
        let keys = engine.keys(conversation, PAGES);
        // A load ends at the first damaged page, so each round finds at most one more.
        let healed = (0..=PAGES).any(|_| {
            engine.try_store(&keys);
            engine.load(&keys).pages == PAGES
        });
        assert!(healed, "what was lost can be stored again");
    }
}

#[test]
fn flipped_bytes_at_rest_are_misses_after_a_restart() {
    let mut daemon = TestDaemon::start(options());
    fill(&daemon);
    assert!(daemon.stop().expect("it ran").success());
    assert!(flip(&daemon, 8192 + 11, 24 << 10) > 100);
    daemon.restart();
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for conversation in 0..CONVERSATIONS {
        let keys = engine.keys(conversation, PAGES);
        engine.try_load(&keys);
    }
    let ssd = daemon.status().ssd.expect("there is one");
    assert!(ssd.corrupt_records + ssd.corrupt_tables > 0, "{ssd:?}");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let mut daemon = TestDaemon::start(options());
    daemon.stop();
    let foreign = vec![0x42; 1 << 20];
    std::fs::write(daemon.store(), &foreign).expect("our folder");
    let output =
        undercroft_tests::run(&["serve", "--config", &daemon.config().display().to_string()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("pages-0.log"), "{text}");
    assert_eq!(std::fs::read(daemon.store()).expect("our folder"), foreign);
}
