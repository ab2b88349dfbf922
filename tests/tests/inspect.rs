//! `undercroft inspect`: what it shows, what it refuses, and that it changes nothing.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Output;
use undercroft_client::wire::Stamp;
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon, golden_store, run};

fn inspect(path: &Path, more: &[&str]) -> Output {
    let path = path.display().to_string();
    run(&[&["inspect", &path], more].concat())
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it says when it ends with this code, held to one line.
fn refused(path: &Path, more: &[&str], code: i32) -> String {
    let output = inspect(path, more);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    assert!(output.stdout.is_empty());
    line
}

#[test]
fn a_store_its_segments_and_a_record() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let log = golden_store("encrypted", home.path());
    let before = fs::read(&log).expect("our store");
    // By its directory or by its name.
    let listing = inspect(home.path(), &[]);
    assert!(listing.status.success());
    assert_eq!(out(&listing), out(&inspect(&log, &[])));
    let listing = out(&listing);
    for part in ["format version 2, opened 2 times", "5: 2 sealed, 1 unsealed, 2 freed", "1 void"] {
        assert!(listing.contains(part), "no {part:?} in\n{listing}");
    }
    let segment = inspect(home.path(), &["--segment", "0"]);
    assert!(segment.status.success());
    assert!(out(&segment).contains("31"), "{}", out(&segment));
    assert_eq!(out(&segment).matches("0707070707070707").count(), 31);
    let record = inspect(home.path(), &["--segment", "0", "--record", "30"]);
    assert!(record.status.success());
    for part in ["30 of segment 0 in its use 1:0, sealed", "verdict  whole", "proof    aes-256-gcm"]
    {
        assert!(out(&record).contains(part), "no {part:?} in\n{}", out(&record));
    }
    let verified = inspect(home.path(), &["--verify"]);
    assert!(verified.status.success());
    assert!(out(&verified).contains("whole, 0 damaged"), "{}", out(&verified));
    assert_eq!(fs::read(&log).expect("our store"), before, "nothing was written");
}

#[test]
fn a_damaged_store() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let log = golden_store("plain", home.path());
    let file = fs::File::options().write(true).open(&log).expect("our store");
    // The third record of the first segment.
    file.write_all_at(&[0x55; 9], 65536 + 3 * 4096 + 17).expect("inside the file");
    let verified = inspect(&log, &["--verify"]);
    assert_eq!(verified.status.code(), Some(1));
    let text = out(&verified);
    assert!(text.contains("segment 0 record 2: damaged"), "{text}");
    assert!(text.contains("1 damaged\n"), "{text}");
    let record = inspect(&log, &["--segment", "0", "--record", "2"]);
    assert_eq!(record.status.code(), Some(1));
    assert!(out(&record).contains("do not agree with its proof"), "{}", out(&record));
    let sound = inspect(&log, &["--segment", "0", "--record", "3"]);
    assert!(sound.status.success());

    file.write_all_at(&[1], 4096 + 100).expect("inside the file");
    assert!(out(&inspect(&log, &[])).contains("damaged at 4096"));
    file.write_all_at(&[1], 100).expect("inside the file");
    assert!(refused(&log, &[], 1).contains("both superblocks"));
}

#[test]
fn a_store_whose_key_is_not_at_hand() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let log = golden_store("encrypted", home.path());
    let (key, elsewhere) = (log.with_file_name("store.key"), home.path().join("elsewhere"));
    fs::rename(&key, &elsewhere).expect("our folder");
    let listing = inspect(home.path(), &[]);
    assert!(listing.status.success());
    assert!(out(&listing).contains("key      not found at"), "{}", out(&listing));
    assert!(out(&listing).contains("2 sealed, 1 unsealed"), "{}", out(&listing));
    assert!(refused(home.path(), &["--verify"], 2).contains("--key"));
    assert!(refused(home.path(), &["--segment", "0", "--record", "1"], 2).contains("--key"));
    let elsewhere = elsewhere.display().to_string();
    assert!(inspect(home.path(), &["--verify", "--key", &elsewhere]).status.success());

    // Another store's key is taken for none where it was only found, and refused where it was named.
    fs::write(&key, [9; 32]).expect("our folder");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("our folder");
    let listing = inspect(home.path(), &[]);
    assert!(out(&listing).contains("is not the key of"), "{}", out(&listing));
    assert!(refused(home.path(), &["--verify"], 2).contains("is not the key of"));
    let key = key.display().to_string();
    assert!(refused(home.path(), &["--key", &key], 2).contains("is not the key of"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("our folder");
    assert!(refused(home.path(), &["--key", &key], 2).contains("chmod 600"));
}

#[test]
fn what_is_no_store() {
    let home = tempfile::tempdir().expect("a temporary folder");
    assert!(refused(home.path(), &[], 2).contains("pages-0.log"), "an empty directory");
    assert!(refused(&home.path().join("nothing"), &[], 2).contains("nothing"));
    assert!(refused(Path::new("/dev/zero"), &[], 2).contains("not a regular file"));
    let noise = home.path().join("noise");
    fs::write(&noise, [7; 100_000]).expect("our folder");
    assert!(refused(&noise, &[], 2).contains("is not an undercroft page log"));
    fs::write(&noise, []).expect("our folder");
    assert!(refused(&noise, &[], 2).contains("empty"));
    let log = golden_store("plain", home.path());
    assert!(refused(&log, &["--segment", "5"], 2).contains("allowed 0..=4"));
    assert!(refused(&log, &["--segment", "0", "--record", "31"], 2).contains("allowed 0..=30"));
    assert!(refused(&log, &["--segment", "1", "--record", "0"], 2).contains("no records"));
    for more in [&["--record", "1"][..], &["--verify", "--segment", "1"], &["--segment", "-1"]] {
        assert_eq!(inspect(&log, more).status.code(), Some(2), "{more:?}");
    }
}

#[test]
fn beside_a_daemon() {
    let options = DaemonOptions {
        dram: 8 * PAGE_BYTES,
        ssd: 64 * PAGE_BYTES,
        staging: 4 * PAGE_BYTES,
        ..DaemonOptions::default()
    };
    let mut daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for conversation in 0..6 {
        let keys = engine.keys(conversation, 8);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, 8);
    }
    let listing = inspect(daemon.home(), &[]);
    assert!(listing.status.success());
    assert!(out(&listing).contains("a daemon has it open"), "{}", out(&listing));
    assert!(refused(daemon.home(), &["--verify"], 2).contains("in use by a daemon"));
    // The daemon did not notice.
    let keys = engine.keys(7, 4);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, 4);
    assert_eq!(engine.load(&keys).pages, 4);
    drop((engine, client));
    assert!(daemon.stop().expect("it ran").success());
    let verified = inspect(daemon.home(), &["--verify"]);
    assert!(verified.status.success(), "{}", out(&verified));
    assert!(!out(&verified).contains("a daemon"), "{}", out(&verified));
    daemon.restart();
}
