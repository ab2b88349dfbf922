//! `docs/disk-format.md` is enough to write a reader from: the one in `tests/reader`, written from
//! it in Python, and `undercroft inspect` say the same of every store, whole or damaged.

use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use undercroft_client::wire::Stamp;
use undercroft_tests::{
    DaemonOptions, Engine, PAGE_BYTES, TestDaemon, golden_store, python, python_with_packages,
    read_store, run, skip,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A store, and the Python it takes to read it.
struct Subject {
    python: PathBuf,
    log: PathBuf,
    key: Option<PathBuf>,
}

impl Subject {
    /// A store whose key, if it has one, lies beside it. `None`, said by name, where there is no
    /// Python for it.
    fn new(test: &str, log: PathBuf) -> Option<Self> {
        let key = Some(log.with_file_name("store.key")).filter(|key| key.exists());
        let found = if key.is_some() { python_with_packages() } else { python() };
        match found {
            Ok(python) => Some(Self { python, log, key }),
            Err(reason) => {
                skip(test, &reason);
                None
            }
        }
    }

    /// What the second reader says, and its exit code.
    fn read(&self) -> (Value, i32) {
        let output = read_store(&self.python, &self.log, self.key.as_deref());
        let text = String::from_utf8_lossy(&output.stderr);
        let found = serde_json::from_slice(&output.stdout);
        let code = output.status.code().expect("it ends by itself");
        (found.unwrap_or_else(|error| panic!("{error}: {text}")), code)
    }

    fn inspect(&self, more: &[&str]) -> (Value, i32) {
        let path = self.log.display().to_string();
        let output = run(&[&["inspect", &path, "--json"], more].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        let found = serde_json::from_slice(&output.stdout);
        let code = output.status.code().expect("it ends by itself");
        (found.unwrap_or_else(|error| panic!("{error}: {text}")), code)
    }

    /// Waits until what `undercroft inspect` shows is so.
    fn wait_until(&self, what: &str, so: impl Fn(&Value) -> bool) {
        let since = Instant::now();
        while !so(&self.inspect(&[]).0) {
            assert!(since.elapsed() < PATIENCE, "in vain: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Every record as `undercroft inspect` lists it, in the order they were appended.
    fn inspected_records(&self) -> Vec<Value> {
        let (store, _) = self.inspect(&[]);
        let mut all = Vec::new();
        for segment in array(&store["segment_list"]).iter().filter(|segment| is_used(segment)) {
            let number = segment["segment"].to_string();
            let (found, _) = self.inspect(&["--segment", &number]);
            all.extend(array(&found["segment"]["record_list"]).iter().cloned());
        }
        all.sort_by_key(|record| (record["use"].as_u64(), record["record"].as_u64()));
        all
    }

    /// Holds the two readers against each other; the records that both call damaged.
    fn compare(&self) -> Vec<(u64, u64)> {
        let (read, read_code) = self.read();
        let (inspected, inspect_code) = self.inspect(&["--verify"]);
        for name in ["store", "generation"] {
            assert_eq!(read[name], inspected[name]);
        }
        let segments = array(&inspected["segment_list"]).iter();
        let used: Vec<_> = segments.filter(|segment| is_used(segment)).collect();
        assert_eq!(array(&read["segments"]).len(), used.len());
        for (read, used) in array(&read["segments"]).iter().zip(used) {
            for name in ["segment", "use", "state", "encrypted", "damaged_tables"] {
                assert_eq!(read[name], used[name], "{name} of {used}");
            }
        }
        let listed = self.inspected_records();
        assert_eq!(array(&read["records"]).len(), listed.len());
        for (read, listed) in array(&read["records"]).iter().zip(&listed) {
            for (name, value) in listed.as_object().expect("a record") {
                assert_eq!(read[name], *value, "{name} of {listed}");
            }
        }
        let verified = &inspected["verified"];
        for name in ["records", "tables", "headers", "superblocks"] {
            let name = format!("damaged_{name}");
            assert_eq!(read[&name], verified[&name], "{name}");
        }
        let records = array(&read["records"]).iter();
        let damaged = records.filter(|record| record["damage"].is_string()).map(place);
        let mut by_reader: Vec<_> = damaged.collect();
        by_reader.sort_unstable();
        let by_inspect: Vec<_> = array(&verified["damaged"]).iter().map(place).collect();
        assert_eq!(by_reader, by_inspect);
        assert_eq!(read_code, inspect_code);
        assert_eq!(verified["good"].as_bool(), Some(read_code == 0));
        by_reader
    }

    fn flip(&self, offset: u64, bit: u8) {
        let file = std::fs::File::options().read(true).write(true).open(&self.log);
        let (file, mut byte) = (file.expect("our store"), [0]);
        file.read_exact_at(&mut byte, offset).expect("inside the file");
        file.write_all_at(&[byte[0] ^ 1 << bit], offset).expect("inside the file");
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_used(segment: &Value) -> bool {
    ["sealed", "unsealed"].contains(&text(&segment["state"]))
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

fn place(record: &Value) -> (u64, u64) {
    (number(&record["segment"]), number(&record["record"]))
}

/// Flips a bit in every seventh record, first and last bytes included; exactly those fail.
fn damage_records(subject: &Subject) {
    let mut hit = Vec::new();
    let records = subject.inspected_records();
    for (index, record) in records.iter().filter(|record| record["void"] == false).enumerate() {
        if index % 7 == 3 {
            let bytes = number(&record["page_bytes"]);
            let at = [0, bytes - 1, bytes / 2][hit.len() % 3];
            subject.flip(number(&record["offset"]) + at, (index % 8) as u8);
            hit.push(place(record));
        }
    }
    assert!(hit.len() >= 4, "{} records are too few", records.len());
    hit.sort_unstable();
    assert_eq!(subject.compare(), hit);
}

/// Flips a bit in a table, a header and a superblock: both miss the same.
fn damage_metadata(subject: &Subject) {
    let (store, _) = subject.inspect(&[]);
    let bytes = number(&store["segment_bytes"]);
    let used = array(&store["segment_list"])
        .iter()
        .filter(|segment| number(&segment["records"]) > 0)
        .map(|segment| 65536 + number(&segment["segment"]) * bytes);
    let used: Vec<_> = used.collect();
    subject.flip(used[0] + bytes - 4096 + 100, 5);
    subject.compare();
    subject.flip(used[1] + 44, 0);
    subject.flip(33, 1);
    subject.compare();
    let (read, code) = subject.read();
    let damaged = ["damaged_tables", "damaged_headers", "damaged_superblocks"];
    assert_eq!(damaged.map(|name| number(&read[name])), [1, 1, 1]);
    assert_eq!(code, 1);
}

fn golden(name: &str) {
    let test = format!("reader_golden_{name}");
    let home = tempfile::tempdir().expect("a temporary folder");
    let log = golden_store(name, home.path());
    let Some(subject) = Subject::new(&test, log) else { return };
    assert_eq!(subject.compare(), []);
    let (read, code) = subject.read();
    assert_eq!((number(&read["locked_segments"]), code), (0, 0));
    assert!(array(&read["records"]).len() >= 4);
    if name != "turned" {
        damage_records(&subject);
        damage_metadata(&subject);
    }
}

#[test]
fn the_golden_plain_store() {
    golden("plain");
}

#[test]
fn the_golden_encrypted_store() {
    golden("encrypted");
}

#[test]
fn the_golden_store_that_was_plain_first() {
    golden("turned");
}

/// What a later process sealed, and the one record that it did not.
#[test]
fn the_golden_stores_that_were_left_open() {
    for name in ["mended", "mended-plain"] {
        let home = tempfile::tempdir().expect("a temporary folder");
        let log = golden_store(name, home.path());
        let Some(subject) = Subject::new(&format!("reader_golden_{name}"), log) else { continue };
        assert_eq!(subject.compare(), [(0, 27)]);
        let (read, _) = subject.read();
        let records = array(&read["records"]).iter();
        let doubted = records.filter(|record| record["sealed"] == false).map(place);
        assert_eq!(doubted.collect::<Vec<_>>(), [(0, 27)]);
        assert_eq!(read["segments"][0]["state"], "sealed");
    }
}

#[test]
fn without_the_key_nothing_of_a_record_is_known() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let log = golden_store("encrypted", home.path());
    std::fs::remove_file(home.path().join("store.key")).expect("our folder");
    // Python alone will do: nothing is decrypted.
    let Some(subject) = Subject::new("reader_without_the_key", log) else { return };
    let (read, code) = subject.read();
    assert_eq!(array(&read["records"]).len(), 0);
    assert_eq!(code, 1);
    let (inspected, code) = subject.inspect(&[]);
    assert_eq!(code, 0);
    let locked = array(&inspected["segment_list"]).iter();
    let locked = locked.filter(|segment| segment["page_bytes"].is_null()).count();
    assert_eq!(number(&read["locked_segments"]), locked as u64);
}

/// A store as the daemon leaves it: closed in good order, or killed.
fn by_a_daemon(test: &str, more: &str, killed: bool) {
    let options = DaemonOptions {
        dram: 8 * PAGE_BYTES,
        ssd: 256 * PAGE_BYTES,
        staging: 4 * PAGE_BYTES,
        more: more.to_owned(),
        ..DaemonOptions::default()
    };
    let mut daemon = TestDaemon::start(options);
    let client = daemon.client("engine").expect("the daemon answers");
    let mut engine = Engine::new(&client, "model");
    for conversation in 0..7 {
        let keys = engine.keys(conversation, 8);
        assert_eq!(engine.store(&keys, Stamp(0)).stored, 8);
    }
    drop(engine);
    let Some(subject) = Subject::new(test, daemon.store()) else { return };
    subject.wait_until("most pages are written and in a table", |store| {
        let segments = array(&store["segment_list"]).iter();
        segments.map(|segment| number(&segment["records"])).sum::<u64>() >= 32
    });
    if killed {
        daemon.kill();
    } else {
        assert!(daemon.stop().expect("it ran").success());
    }
    // What a killed daemon had under way still lands; its lock says when that is over.
    subject.wait_until("a dead daemon lets go", |store| store["in_use"] == false);
    assert_eq!(subject.key.is_some(), more.is_empty(), "encrypted unless it is turned off");
    assert_eq!(subject.compare(), [], "what a killed daemon had listed is whole");
    let (read, _) = subject.read();
    assert!(array(&read["records"]).len() >= 32, "{read}");
    damage_records(&subject);
}

#[test]
fn a_store_that_a_daemon_closed() {
    by_a_daemon("reader_of_a_closed_store", "", false);
    by_a_daemon("reader_of_a_closed_plain_store", "encryption = \"off\"", false);
}

#[test]
fn a_store_whose_daemon_was_killed() {
    by_a_daemon("reader_of_a_killed_store", "", true);
}

#[test]
fn the_reader_refuses_what_it_cannot_read_in_one_line() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip("reader_refusals", &reason),
    };
    let log = golden_store("encrypted", home.path());
    let (noise, empty) = (home.path().join("noise"), home.path().join("empty"));
    std::fs::write(&noise, [7; 100_000]).expect("our folder");
    std::fs::write(&empty, []).expect("our folder");
    let refused = |log: &Path, key: Option<&Path>| {
        let output = read_store(&python, log, key);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    };
    refused(&noise, None);
    refused(&empty, None);
    refused(&home.path().join("nothing"), None);
    refused(&log, Some(&noise));
    std::fs::write(home.path().join("other"), [1; 32]).expect("our folder");
    refused(&log, Some(&home.path().join("other")));
}
