//! Several SSDs: pages go to all of them, and what happens to one costs its own pages only.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use undercroft_client::Client;
use undercroft_client::wire::{DeviceCondition, SsdDeviceStatus, Stamp};
use undercroft_tests::{DaemonOptions, Engine, Gate, PAGE_BYTES, TestDaemon, Way, run, skip};

const PATIENCE: Duration = Duration::from_secs(30);
const NO_GATE: &str = "fanotify permission events take root";
/// Bytes before the first segment.
const HEAD: u64 = 64 << 10;

/// Two directories, with room for everything these tests store.
fn options() -> DaemonOptions {
    DaemonOptions {
        dram: 16 * PAGE_BYTES,
        ssd: 256 * PAGE_BYTES,
        directories: 2,
        staging: 4 * PAGE_BYTES,
        ..DaemonOptions::default()
    }
}

fn engine(daemon: &TestDaemon) -> (Client, Engine) {
    let client = daemon.client("engine").expect("the daemon answers");
    let engine = Engine::new(&client, "model");
    (client, engine)
}

/// Stores conversations of one page each: none needs another.
fn store_single_pages(engine: &mut Engine, conversations: std::ops::Range<u32>) {
    for conversation in conversations {
        let keys = engine.keys(conversation, 1);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, 1);
    }
}

/// How many of them are served, every byte compared.
fn served(engine: &mut Engine, conversations: std::ops::Range<u32>) -> u64 {
    let mut pages = 0;
    for conversation in conversations {
        let keys = engine.keys(conversation, 1);
        pages += u64::from(engine.load(&keys).pages);
    }
    pages
}

fn devices(daemon: &TestDaemon) -> Vec<SsdDeviceStatus> {
    daemon.status().ssd.expect("there is one").devices
}

fn wait_for(daemon: &TestDaemon, device: usize, condition: DeviceCondition) {
    let client = daemon.client("watch").expect("the daemon answers");
    let since = Instant::now();
    loop {
        let report = client.status(PATIENCE).expect("the daemon answers");
        let now = report.ssd.expect("there is one").devices.swap_remove(device);
        if now.condition == condition {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "never {condition:?}: {now:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the pages the daemon wrote are named in tables: they are at most 20 ms behind.
fn settle() {
    std::thread::sleep(Duration::from_millis(200));
}

/// Starts the daemon again with a gate before a page log: the kernel only asks about files that
/// are opened after the gate is there. `None` where there can be none.
fn restart_behind_gate(daemon: &mut TestDaemon, log: &Path) -> Option<Gate> {
    assert!(daemon.stop().expect("it ran").success());
    let gate = Gate::before(log, Way::Open)?;
    daemon.restart();
    Some(gate)
}

/// Overwrites everything in a page log but its head.
fn wipe(directory: &Path) {
    let path = directory.join("pages-0.log");
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("the page log");
    let bytes = file.metadata().expect("a file").len();
    let zeros = vec![0; (bytes - HEAD) as usize];
    file.write_all_at(&zeros, HEAD).expect("inside the file");
}

#[test]
fn pages_are_spread_over_both_and_served_after_kill_9() {
    let mut daemon = TestDaemon::start(options());
    let (_client, mut own) = engine(&daemon);
    for conversation in 0..20 {
        let keys = own.keys(conversation, 12);
        assert_eq!(own.store(&keys, Stamp(0)).stored, 12);
    }
    settle();
    let before = devices(&daemon);
    assert_eq!(before.len(), 2);
    for (device, directory) in before.iter().zip(daemon.stores()) {
        assert_eq!(Path::new(&device.path), directory);
        assert!(device.tier.pages >= 60, "{before:?}");
        assert!(device.encrypted && device.condition == DeviceCondition::Well, "{device:?}");
    }
    daemon.kill();
    daemon.restart();
    let (_client, mut own) = engine(&daemon);
    let mut after = 0;
    for conversation in 0..20 {
        let keys = own.keys(conversation, 12);
        after += own.load(&keys).pages;
    }
    // Pages that were only in DRAM are gone, and with them what hung below them.
    assert!(after >= 150, "{after} of 240 pages are served again");
    let status = daemon.status().ssd.expect("there is one");
    let sum = |count: fn(&SsdDeviceStatus) -> u64| status.devices.iter().map(count).sum::<u64>();
    for device in &status.devices {
        assert!(device.recovered_records >= 60 && device.read_bytes > 0, "{device:?}");
    }
    assert_eq!(status.recovered_records, sum(|device| device.recovered_records));
    assert_eq!(status.tier.pages, sum(|device| device.tier.pages));
    assert_eq!(status.io_errors + status.corrupt_records, 0, "{status:?}");
}

#[test]
fn the_loss_of_what_is_on_one_leaves_the_other() {
    let more = format!("segment = {}", 16 * PAGE_BYTES);
    let mut daemon = TestDaemon::start(DaemonOptions { more, ..options() });
    let (_client, mut own) = engine(&daemon);
    store_single_pages(&mut own, 0..200);
    settle();
    let pages = devices(&daemon)[0].tier.pages;
    assert!(pages >= 40, "{pages}");
    wipe(&daemon.stores()[1]);
    let left = served(&mut own, 0..200);
    assert!((pages..200).contains(&left), "{left} are left where {pages} are on the other");
    let after = devices(&daemon);
    assert_eq!((after[0].corrupt_records, after[0].io_errors), (0, 0), "{after:?}");
    assert!(after[1].corrupt_records > 0, "{after:?}");
    // What was lost can be stored again, on both.
    store_single_pages(&mut own, 200..400);
    assert!(daemon.stop().expect("it ran").success());
    daemon.restart();
    let (_client, mut own) = engine(&daemon);
    // A segment that was open has lost its header: what is in it is not found again.
    assert!(served(&mut own, 200..400) >= 140, "{:?}", devices(&daemon));
    assert!(devices(&daemon)[1].read_bytes > 0);
}

#[test]
fn one_that_holds_nothing_but_copies_is_free_again_after_a_restart() {
    let more = format!("segment = {}", 16 * PAGE_BYTES);
    let mut daemon = TestDaemon::start(DaemonOptions { more, directories: 2, ..options() });
    let total = devices(&daemon)[0].free_segments;
    let (client, mut own) = engine(&daemon);
    store_single_pages(&mut own, 0..200);
    settle();
    drop((client, own));
    assert!(daemon.stop().expect("it ran").success());
    let [first, second] = [0, 1].map(|at| daemon.stores()[at].join("pages-0.log"));
    std::fs::copy(first, second).expect("a copy of the page log");
    daemon.restart();
    let since = Instant::now();
    loop {
        let after = devices(&daemon);
        // Which of the two was believed depends on who was first.
        if after.iter().map(|device| device.free_segments).max() == Some(total) {
            assert!(after.iter().all(|device| device.recovered_records >= 40), "{after:?}");
            assert!(after.iter().any(|device| device.tier.pages >= 40), "{after:?}");
            break;
        }
        assert!(since.elapsed() < PATIENCE, "segments are in use for nothing: {after:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (_client, mut own) = engine(&daemon);
    assert!(served(&mut own, 0..200) >= 40, "{:?}", devices(&daemon));
}

#[test]
fn one_that_fails_to_read_is_given_up_and_taken_back() {
    let test = "one_that_fails_to_read_is_given_up_and_taken_back";
    let mut daemon = TestDaemon::start(options());
    let log = daemon.stores()[1].join("pages-0.log");
    let Some(gate) = restart_behind_gate(&mut daemon, &log) else {
        return skip(test, NO_GATE);
    };
    let (_client, mut own) = engine(&daemon);
    store_single_pages(&mut own, 0..200);
    gate.set(Way::Refuse);
    let on_the_other = devices(&daemon)[0].tier.pages;
    // Failing costs a miss each, until the device is out; then nothing is asked of it.
    let left = served(&mut own, 0..200);
    assert!(left >= on_the_other, "{left} are left where {on_the_other} are on the other");
    wait_for(&daemon, 1, DeviceCondition::Out);
    let out = devices(&daemon);
    assert_eq!((out[0].io_errors, out[0].condition), (0, DeviceCondition::Well), "{out:?}");
    assert!(out[1].io_errors > 0, "{out:?}");
    store_single_pages(&mut own, 200..240);
    assert_eq!(served(&mut own, 200..240), 40, "there is room without it");
    gate.set(Way::Open);
    wait_for(&daemon, 1, DeviceCondition::Well);
    assert!(served(&mut own, 0..200) > left, "its pages are there again");
    for words in ["an SSD fails", "an SSD is well again", "ssd-1"] {
        assert!(daemon.says(words), "{words} is not in\n{}", daemon.log());
    }
}

#[test]
fn one_that_stalls_holds_up_neither_dram_nor_the_other_nor_the_end() {
    let test = "one_that_stalls_holds_up_neither_dram_nor_the_other_nor_the_end";
    let more = "engine = \"threads\"\nstall_ms = 50".to_owned();
    let mut daemon = TestDaemon::start(DaemonOptions { more, ..options() });
    let log = daemon.stores()[1].join("pages-0.log");
    let Some(gate) = restart_behind_gate(&mut daemon, &log) else {
        return skip(test, NO_GATE);
    };
    let (_client, mut own) = engine(&daemon);
    store_single_pages(&mut own, 0..200);
    gate.set(Way::Shut);
    let on_the_other = devices(&daemon)[0].tier.pages;
    own.deadline = Duration::from_secs(5);
    let left = served(&mut own, 0..200);
    assert!(left >= on_the_other, "{left} are left where {on_the_other} are on the other");
    gate.wait_until_held();
    wait_for(&daemon, 1, DeviceCondition::Stalled);
    store_single_pages(&mut own, 300..308);
    let hits = daemon.status().hits.dram_pages;
    assert_eq!(served(&mut own, 300..308), 8);
    assert_eq!(daemon.status().hits.dram_pages, hits + 8);
    assert!(devices(&daemon)[1].stalls > 0);
    assert!(daemon.stop().expect("it ran").success(), "an orderly stop is a success");
}

#[test]
fn dram_is_served_while_records_are_looked_for() {
    let test = "dram_is_served_while_records_are_looked_for";
    // A thousand segments, each of which is asked for its records.
    let mut daemon = TestDaemon::start(DaemonOptions {
        ssd: 4096 * PAGE_BYTES,
        directories: 0,
        more: format!("segment = {}", 4 * PAGE_BYTES),
        ..options()
    });
    let (client, mut own) = engine(&daemon);
    store_single_pages(&mut own, 0..200);
    settle();
    daemon.kill();
    drop((client, own));
    // Slowly enough that the search is not over before the gate is shut.
    let Some(gate) = Gate::before(&daemon.store(), Way::Drip(Duration::from_millis(20))) else {
        return skip(test, NO_GATE);
    };
    let recovering = |daemon: &TestDaemon| {
        let device = devices(daemon).swap_remove(0);
        assert_eq!(device.condition, DeviceCondition::Recovering, "{device:?}");
        assert_eq!(device.recovery_ms, None, "{device:?}");
    };
    daemon.try_restart().expect("ready before its records are known");
    gate.set(Way::Shut);
    gate.wait_until_held();
    recovering(&daemon);
    let (_client, mut own) = engine(&daemon);
    assert_eq!(served(&mut own, 0..200), 0, "nothing is known yet");
    store_single_pages(&mut own, 300..308);
    assert_eq!(served(&mut own, 300..308), 8);
    recovering(&daemon);
    assert!(daemon.stop().expect("it ran").success(), "it need not be over to be stopped");

    gate.set(Way::Drip(Duration::from_millis(20)));
    daemon.try_restart().expect("ready before its records are known");
    recovering(&daemon);
    gate.set(Way::Open);
    daemon.wait_recovered().expect("the end of the search");
    let (_client, mut own) = engine(&daemon);
    assert!(served(&mut own, 0..200) >= 150, "{:?}", devices(&daemon));
}

#[test]
fn what_cannot_be_is_one_line_before_anything_is_served() {
    let home = tempfile::tempdir().expect("a temporary folder");
    for (ssd, words) in [
        ("path = [\"HOME/a\", \"HOME/a\"]", vec!["ssd.path", "in the list already", "1..=64"]),
        ("path = [\"HOME/a\", \"HOME/b\"]\nsize = [\"1MiB\"]", vec!["ssd.size", "a list of 2"]),
        ("path = [\"HOME/a\", \"HOME/s/b\"]", vec!["ssd.path", "s/b"]),
        ("path = \"HOME/c\"\nkey_file = \"HOME/no.key\"", vec!["no.key", "ssd.key_file"]),
        ("path = \"HOME/c\"\nkey_file = \"HOME/config.toml\"", vec!["config.toml", "ssd.key_file"]),
    ] {
        let text = format!(
            "[server]\nmetrics = \"off\"\nsocket = \"HOME/s\"\n[arena]\nsize = \"1MiB\"\n[ssd]\n{ssd}\n"
        );
        let text = text.replace("HOME", &home.path().display().to_string());
        let config = home.path().join("config.toml");
        std::fs::write(&config, text).expect("a configuration");
        let output = run(&["serve", "--config", &config.display().to_string()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{ssd}: {said}");
        let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("undercroft: ")).collect();
        assert_eq!(lines.len(), 1, "{ssd}: {said}");
        assert!(words.iter().all(|word| lines[0].contains(word)), "{ssd}: {said}");
    }
}
