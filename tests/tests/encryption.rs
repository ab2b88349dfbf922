//! The store key: made once, kept, and never replaced in silence.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use undercroft_client::wire::Stamp;
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon, run};

const PAGES: u32 = 12;
const BLOCK: usize = 4096;

fn options() -> DaemonOptions {
    DaemonOptions {
        dram: 8 * PAGE_BYTES,
        ssd: 128 * PAGE_BYTES,
        directories: 2,
        staging: 4 * PAGE_BYTES,
        ..DaemonOptions::default()
    }
}

/// Stores conversations, and stops the daemon so that what left DRAM is all on SSD.
fn fill(daemon: &mut TestDaemon, conversations: std::ops::Range<u32>) {
    {
        let client = daemon.client("engine").expect("the daemon answers");
        let mut engine = Engine::new(&client, "model");
        for conversation in conversations {
            let keys = engine.keys(conversation, PAGES);
            assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
        }
    }
    assert!(daemon.stop().expect("it ran").success());
}

/// Pages of these conversations that are served, every byte compared.
fn served(daemon: &TestDaemon, conversations: std::ops::Range<u32>) -> u32 {
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    let mut pages = 0;
    for conversation in conversations {
        let keys = engine.keys(conversation, PAGES);
        pages += engine.load(&keys).pages;
    }
    pages
}

/// The one line of a daemon that does not start.
fn refusal(daemon: &TestDaemon) -> String {
    let output = run(&["serve", "--config", &daemon.config().display().to_string()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("undercroft: ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].to_owned()
}

fn is_encrypted(daemon: &TestDaemon) -> bool {
    daemon.status().ssd.expect("there is one").devices.iter().all(|device| device.encrypted)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}

#[test]
fn a_key_is_made_once_beside_the_pages_and_serves_all_directories() {
    let mut daemon = TestDaemon::start(options());
    let directories = daemon.stores();
    let path = directories[0].join("store.key");
    let key = std::fs::read(&path).expect("a key was made");
    assert_eq!((mode(&path), key.len()), (0o600, 65), "32 bytes in hexadecimal, and a line's end");
    assert!(!directories[1].join("store.key").exists());
    assert!(is_encrypted(&daemon));
    fill(&mut daemon, 0..10);
    daemon.restart();
    assert!(served(&daemon, 0..10) >= 60);
    assert_eq!(std::fs::read(&path).expect("the key"), key);
    assert_eq!(mode(&path), 0o600);
    assert!(!daemon.log().contains(String::from_utf8_lossy(&key).trim()), "it is in the log");
}

#[test]
fn another_key_opens_nothing_and_changes_nothing() {
    let mut daemon = TestDaemon::start(options());
    fill(&mut daemon, 0..10);
    let path = daemon.stores()[0].join("store.key");
    let key = std::fs::read(&path).expect("a key was made");
    let logs: Vec<_> = daemon.stores().iter().map(|d| d.join("pages-0.log")).collect();
    let before: Vec<_> = logs.iter().map(|log| std::fs::read(log).expect("a log")).collect();
    std::fs::write(&path, [b'0'; 64]).expect("our folder");
    let line = refusal(&daemon);
    assert!(line.contains("another store key") && line.contains("ssd.key_file"), "{line}");
    // A key that is lost is not made anew while another directory has a store of the old one.
    std::fs::remove_file(&path).expect("our folder");
    let line = refusal(&daemon);
    assert!(line.contains("another store key") && line.contains("ssd.key_file"), "{line}");
    for (log, before) in logs.iter().zip(before) {
        assert!(std::fs::read(log).expect("a log") == before, "{} changed", log.display());
    }
    std::fs::write(&path, &key).expect("our folder");
    daemon.restart();
    assert!(served(&daemon, 0..10) >= 60);
}

#[test]
fn a_key_may_be_named_or_given_as_a_credential() {
    let mut daemon = TestDaemon::start(options());
    fill(&mut daemon, 0..10);
    let beside = daemon.stores()[0].join("store.key");
    let elsewhere = daemon.home().join("elsewhere.key");
    std::fs::rename(&beside, &elsewhere).expect("our folder");
    let more = format!("key_file = {elsewhere:?}");
    daemon.reconfigure(|options| options.more = more);
    daemon.restart();
    assert!(served(&daemon, 0..10) >= 60);
    assert!(daemon.stop().expect("it ran").success());
    std::fs::set_permissions(&elsewhere, PermissionsExt::from_mode(0o644)).expect("our file");
    let line = refusal(&daemon);
    assert!(line.contains("elsewhere.key") && line.contains("ssd.key_file"), "{line}");
    std::fs::set_permissions(&elsewhere, PermissionsExt::from_mode(0o600)).expect("our file");

    let credentials = daemon.home().join("credentials");
    std::fs::create_dir(&credentials).expect("our folder");
    std::fs::rename(&elsewhere, credentials.join("undercroft.store-key")).expect("our folder");
    daemon.reconfigure(|options| {
        options.more = String::new();
        options.credentials = Some(credentials);
    });
    daemon.restart();
    assert!(served(&daemon, 0..10) >= 60);
    assert!(!beside.exists(), "no key is made beside one that is given");
}

#[test]
fn encryption_can_be_turned_off_and_on_again() {
    let mut daemon = TestDaemon::start(options());
    fill(&mut daemon, 0..10);
    let path = daemon.stores()[0].join("store.key");
    let key = std::fs::read(&path).expect("a key was made");
    daemon.reconfigure(|options| options.more = "encryption = \"off\"".to_owned());
    daemon.restart();
    assert!(!is_encrypted(&daemon));
    assert_eq!(served(&daemon, 0..10), 0, "pages of the other way are not used");
    assert!(daemon.says("ssd.encryption was changed"), "{}", daemon.log());
    fill(&mut daemon, 10..20);
    daemon.restart();
    assert!(served(&daemon, 10..20) >= 60, "what is written without is found without");
    assert!(daemon.stop().expect("it ran").success());

    daemon.reconfigure(|options| options.more = String::new());
    daemon.restart();
    assert!(is_encrypted(&daemon));
    assert_eq!(served(&daemon, 10..20), 0);
    // Those from before are there again, as far as nothing was written over them.
    served(&daemon, 0..10);
    fill(&mut daemon, 20..30);
    daemon.restart();
    assert!(served(&daemon, 20..30) >= 60);
    assert_eq!(std::fs::read(&path).expect("the key"), key);
}

#[test]
fn a_store_of_another_version_is_set_aside_and_said_so() {
    let mut daemon = TestDaemon::start(options());
    fill(&mut daemon, 0..10);
    let log = daemon.stores()[1].join("pages-0.log");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&log).expect("the log");
    for copy in 0..2 {
        let mut block = [0; BLOCK];
        let at = copy * BLOCK as u64;
        file.read_exact_at(&mut block, at).expect("a superblock");
        block[8..12].copy_from_slice(&77_u32.to_le_bytes());
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &block[..BLOCK - 8]);
        block[BLOCK - 8..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&block, at).expect("a superblock");
    }
    drop(file);
    let before = std::fs::read(&log).expect("the log");
    daemon.restart();
    let devices = daemon.status().ssd.expect("there is one").devices;
    assert_eq!(devices[0].set_aside, None);
    let aside = devices[1].set_aside.clone().expect("it was set aside");
    assert!(std::fs::read(&aside).expect("the log, set aside") == before, "{aside} changed");
    assert!(daemon.says(&aside) && daemon.says("set aside"), "{}", daemon.log());
    assert!(devices[0].recovered_records > 0 && devices[1].recovered_records == 0, "{devices:?}");
    fill(&mut daemon, 20..30);
    daemon.restart();
    assert!(served(&daemon, 20..30) >= 60);
}
