#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::*;
use crate::part_maker::MadePart;
use crate::recovery::PIECE_RECORDS;
use crate::report::report;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use undercroft_arena::{ArenaError, Memory};
use undercroft_ssd_tier::{AppendOutcome, Completion, LogConfig, Op, PageLog};
use undercroft_wire::{
    DeviceCondition, DeviceId, DomainId, JobId, PageIdentity, PageKey, SpaceDigest, SsdDeviceStatus,
};

const PAGE_BYTES: u32 = 4096;
const BYTES: u64 = 16 << 20;

/// What a daemon begins with that has no predecessor.
fn nothing() -> (Estate, StartKind) {
    (Estate::default(), StartKind::Cold)
}

fn config(home: &Path, directories: u32) -> Config {
    let home = home.display();
    let paths: Vec<String> = (0..directories).map(|n| format!("\"{home}/{n}\"")).collect();
    let text = format!(
        "[server]\nsocket = \"{home}/s\"\nmetrics = \"off\"\n[arena]\nsize = \"1MiB\"\n\
         [ssd]\nsize = {BYTES}\npath = [{}]\nencryption = \"off\"\nengine = \"threads\"",
        paths.join(", ")
    );
    Config::parse(&text, Path::new("test.toml")).unwrap()
}

/// A page log with `records` pages that do not hang together.
fn fill(directory: PathBuf, records: u64) {
    std::fs::create_dir_all(&directory).unwrap();
    let log = LogConfig { queue_depth: 64, ..LogConfig::new(directory.join("pages-0.log"), BYTES) };
    let (sender, completions) = std::sync::mpsc::channel();
    let sink = Box::new(move |completion| sender.send(completion).unwrap());
    let (log, _) = PageLog::open(log, Vec::new(), sink).unwrap();
    let memory = Memory::new(PAGE_BYTES.into(), 0).unwrap();
    for number in 0..records {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let identity = PageIdentity {
            domain: DomainId::named("default"),
            space: SpaceDigest([9; 32]),
            key: PageKey(key),
            parent: None,
            depth: 0,
            page_bytes: PAGE_BYTES,
        };
        let payload = memory.span(0, PAGE_BYTES as usize).unwrap();
        log.submit(Op::Append {
            job: JobId(number),
            identity,
            origin: undercroft_wire::Origin::default(),
            payload,
            payload_crc: 0,
        })
        .unwrap();
        let Completion::Appended { outcome, .. } = completions.recv().unwrap() else {
            panic!("one append at a time");
        };
        assert!(matches!(outcome, AppendOutcome::Written(_)), "{outcome:?}");
    }
    log.close();
}

fn devices(control: &Control) -> Vec<SsdDeviceStatus> {
    report(control).ssd.unwrap().devices
}

/// The next word of a search for records.
fn next(doors: &Doors) -> Found {
    for _ in 0..10_000 {
        if let Some(found) = doors.found.take() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no word within ten seconds");
}

#[test]
fn records_come_in_pieces_small_enough_to_be_taken_in_between_requests() {
    const RECORDS: u64 = 3 * PIECE_RECORDS as u64 + 1;
    let home = tempfile::tempdir().unwrap();
    fill(home.path().join("0"), RECORDS);
    let config = config(home.path(), 1);
    let prepared = store::prepare(config.ssd.as_ref().unwrap(), false).unwrap();
    let (mut control, doors) = assemble(config, prepared, nothing(), &Ground::default()).unwrap();
    let mut known = 0;
    loop {
        let found = next(&doors);
        if let Found::Records { records, .. } = &found {
            assert!(records.len() <= PIECE_RECORDS);
            known += records.len() as u64;
        }
        control.found(found);
        // Whoever asks now is told of what is known so far.
        let device = devices(&control).swap_remove(0);
        assert_eq!(device.tier.pages, known);
        if device.recovery_ms.is_some() {
            assert_eq!(device.condition, DeviceCondition::Well);
            break;
        }
        assert_eq!(device.condition, DeviceCondition::Recovering);
    }
    assert_eq!(known, RECORDS);
    assert!(doors.found.take().is_none());
    drop(doors);
    control.shut(Vec::new());
}

#[test]
fn a_disk_that_fails_at_the_start_costs_only_its_own_pages() {
    let home = tempfile::tempdir().unwrap();
    let config = config(home.path(), 2);
    let mut prepared = store::prepare(config.ssd.as_ref().unwrap(), false).unwrap();
    prepared[0].log = Opening::Failed("it is a test".to_owned());
    let (mut control, doors) = assemble(config, prepared, nothing(), &Ground::default()).unwrap();
    while devices(&control)[1].recovery_ms.is_none() {
        control.found(next(&doors));
    }
    let conditions: Vec<_> = devices(&control).iter().map(|device| device.condition).collect();
    assert_eq!(conditions, [DeviceCondition::Lost, DeviceCondition::Well]);
    let ssd = report(&control).ssd.unwrap();
    assert_eq!(ssd.tier.capacity_bytes, BYTES, "room on what is left");
    drop(doors);
    control.shut(Vec::new());
}

#[test]
fn a_search_that_is_not_over_does_not_keep_the_daemon_from_stopping_in_order() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path().join("0"), 2000);
    let config = config(home.path(), 1);
    let prepared = store::prepare(config.ssd.as_ref().unwrap(), false).unwrap();
    let again = config.clone();
    let (mut control, doors) = assemble(config, prepared, nothing(), &Ground::default()).unwrap();
    let mut opened = next(&doors);
    while let Found::Purges(_) = opened {
        opened = next(&doors);
    }
    assert!(matches!(opened, Found::Opened { device: DeviceId(0), .. }));
    drop(doors);
    control.shut(vec![opened]);
    // Closed, so that its lock is free and nothing of it is lost.
    let prepared = store::prepare(again.ssd.as_ref().unwrap(), false).unwrap();
    let (mut control, doors) = assemble(again, prepared, nothing(), &Ground::default()).unwrap();
    while devices(&control)[0].recovery_ms.is_none() {
        control.found(next(&doors));
    }
    assert_eq!(devices(&control)[0].tier.pages, 2000);
    drop(doors);
    control.shut(Vec::new());
}

#[test]
fn a_part_that_cannot_be_had_ends_a_daemon_only_as_long_as_it_serves_nobody() {
    let home = tempfile::tempdir().unwrap();
    let text = "[server]\nmetrics = \"off\"\n[arena]\nsize = \"192KiB\"\npart = \"64KiB\"\n\
                [ssd]\nsize = 0\n";
    for served in [false, true] {
        let config = Config::parse(text, &home.path().join("test.toml")).unwrap();
        let (mut control, doors) =
            assemble(config, Vec::new(), nothing(), &Ground::default()).unwrap();
        while !control.fitting.is_whole() {
            control.fit();
            let Some(parted) = doors.parted.take() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let Parted::Made(MadePart { wanted, made }) = parted else {
                panic!("nothing was taken over: {parted:?}")
            };
            let give = served && !control.fitting.is_open();
            let made = if give { made } else { Err(ArenaError::Mount { what: "it is a test" }) };
            control.parted(Parted::Made(MadePart { wanted, made }));
            control.fit();
            if !served {
                break;
            }
        }
        let failure = control.fitting.take_failure();
        assert_eq!(failure.is_some(), !served, "{failure:?}");
        drop(doors);
        control.shut(Vec::new());
    }
}

/// A large arena takes many seconds to be made, and no engine waits so long for a space.
#[test]
fn requests_are_served_once_every_domain_has_a_part() {
    let home = tempfile::tempdir().unwrap();
    let text = "[server]\nmetrics = \"off\"\n[arena]\npart = \"64KiB\"\n[ssd]\nsize = 0\n\
                [[domain]]\nname = \"a\"\nuid = [1]\ndram = \"192KiB\"\n\
                [[domain]]\nname = \"b\"\ndram = \"128KiB\"\n";
    let config = Config::parse(text, &home.path().join("test.toml")).unwrap();
    let (mut control, doors) = assemble(config, Vec::new(), nothing(), &Ground::default()).unwrap();
    let mut parts = HashMap::new();
    while !control.fitting.is_whole() {
        let some = parts.len() == 2;
        assert_eq!(control.fitting.is_open(), some, "with parts in {} domains", parts.len());
        assert!(report(&control).start.opening);
        control.fit();
        let Some(parted) = doors.parted.take() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let Parted::Made(made) = &parted else { panic!("nothing was taken over: {parted:?}") };
        *parts.entry(made.wanted.domain).or_insert(0) += 1;
        control.parted(parted);
        control.fit();
    }
    assert!(parts.values().sum::<u32>() == 5 && !report(&control).start.opening, "{parts:?}");
    drop(doors);
    control.shut(Vec::new());
}
