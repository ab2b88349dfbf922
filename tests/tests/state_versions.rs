//! State files and boards of other builds: gone on with or dropped as a whole, and either way served
//! from at once. Their layout is in `docs/state-format.md`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use undercroft_arena::checksum_bytes;
use undercroft_client::wire::{Stamp, StartKind};
use undercroft_tests::{DaemonOptions, Engine, PAGE_BYTES, TestDaemon};

const PAGES: u32 = 12;
const STATE: &str = "undercroft-state";

/// The head of a state file: words of which the second is the layout's version, and the eighth the
/// checksum of those before it and zeros up to the sixteenth.
struct Head([u64; 8]);

impl Head {
    fn read(file: &File) -> Self {
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, 0).expect("a state file has a head");
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        Self(words)
    }

    fn bytes(&self, words: usize) -> Vec<u8> {
        self.0[..words].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn write(mut self, file: &File) {
        let mut covered = self.bytes(7);
        covered.resize(128, 0);
        self.0[7] = checksum_bytes(&covered);
        file.write_all_at(&self.bytes(8), 0).expect("it can be written");
    }
}

/// Kills a daemon that holds pages, has what it left changed, and starts the next one on that.
fn restart_on(name: &str, change: impl Fn(&File)) -> TestDaemon {
    let dram = 2 * u64::from(PAGES) * PAGE_BYTES;
    let options = DaemonOptions { dram, managed: true, ..DaemonOptions::default() };
    let mut daemon = TestDaemon::start(options);
    let client = daemon.client("before").expect("it serves");
    let engine = &mut Engine::new(&client, "versions");
    let keys = engine.keys(0, PAGES);
    assert_eq!(engine.store(&keys, Stamp(0)).stored, PAGES);
    drop(client);
    daemon.kill();
    let manager = daemon.manager().expect("it has one");
    let names = manager.kept().expect("it hears");
    let name = names.iter().find(|kept| kept.starts_with(name)).expect("it is kept");
    change(&manager.copy(name).expect("it is kept").into());
    daemon.restart();
    daemon
}

/// It serves what was there or has dropped it, stores as any other, and its own successor is warm.
fn goes_on(mut daemon: TestDaemon, must_drop: bool) {
    let start = daemon.status().start;
    let client = daemon.client("after").expect("it serves");
    let engine = &mut Engine::new(&client, "versions");
    let keys = engine.keys(0, PAGES);
    let came = engine.load(&keys).pages;
    match start.kind {
        StartKind::Cold => {
            assert_eq!(came, 0, "{start:?}");
            assert!(start.dropped.is_some(), "it does not say why: {start:?}");
        }
        _ => assert!(!must_drop && came == PAGES, "{came} pages after {start:?}"),
    }
    let more = engine.keys(1, PAGES);
    assert_eq!(engine.store(&more, Stamp(0)).stored, PAGES);
    drop(client);
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.status().start.kind, StartKind::Warm);
    let client = daemon.client("at last").expect("it serves");
    assert_eq!(Engine::new(&client, "versions").load(&more).pages, PAGES);
}

fn state_of_version(other: impl Fn(u64) -> u64) -> TestDaemon {
    restart_on(STATE, |file| {
        let mut head = Head::read(file);
        head.0[1] = other(head.0[1]);
        head.write(file);
    })
}

#[test]
fn what_is_not_changed_is_gone_on_with() {
    let daemon = restart_on(STATE, |file| Head::read(file).write(file));
    assert_eq!(daemon.status().start.restored_pages, u64::from(PAGES));
}

#[test]
fn a_state_file_of_the_build_before_is_gone_on_with_or_dropped() {
    goes_on(state_of_version(|own| own - 1), false);
}

#[test]
fn a_state_file_of_a_newer_build_is_dropped() {
    for ahead in [1, 1000] {
        goes_on(state_of_version(|own| own + ahead), true);
    }
}

#[test]
fn a_state_file_with_rows_of_another_size_is_dropped() {
    let daemon = restart_on(STATE, |file| {
        let mut head = Head::read(file);
        // Half as long as this build's.
        head.0[6] = (head.0[6] & 0xffff_ffff) | (8 << 32);
        head.write(file);
    });
    goes_on(daemon, true);
}

#[test]
fn a_board_of_a_newer_build_is_dropped_with_its_arena() {
    let daemon = restart_on("undercroft-board", |file| {
        let mut head = [0; 40];
        file.read_exact_at(&mut head, 0).expect("a board has a head");
        head[8] += 1;
        let sum = checksum_bytes(&head[..32]);
        head[32..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&head, 0).expect("it can be written");
    });
    goes_on(daemon, true);
}
