//! What both engines promise, asked of each, encrypted; and of the better one without encryption.

use super::rig::{Rig, Setting, Stored, identity, tiny};
use crate::{AppendOutcome, Completion, EngineChoice, Op, ReadOutcome, RelocateOutcome};
use std::io::Write as _;
use undercroft_wire::{Extent, Origin, SegmentId, SegmentUse};

/// One test per setting; where io_uring is refused, its tests say that they did not run.
macro_rules! contract {
    ($($name:ident,)*) => {
        mod uring {
            $(#[test] fn $name() {
                if crate::tests::contract::is_uring_refused_to(stringify!($name)) {
                    return;
                }
                super::$name(crate::EngineChoice::Uring.into());
            })*
        }
        mod threads {
            $(#[test] fn $name() { super::$name(crate::EngineChoice::Threads.into()); })*
        }
        mod plain {
            $(#[test] fn $name() {
                let engine = crate::EngineChoice::Auto;
                super::$name(crate::tests::rig::Setting { engine, encrypted: false });
            })*
        }
    };
}

pub(super) use contract;

contract!(
    pages_come_back_as_they_went,
    many_at_once_are_each_answered_once,
    another_identity_or_place_is_not_served,
    a_closed_log_opens_sealed_with_everything,
    a_killed_log_keeps_what_its_tables_name,
    a_full_log_says_so_and_goes_on_when_freed,
    relocation_has_the_last_segment,
    freed_segments_stay_freed,
    an_open_segment_is_freed_too,
    invalid_operations_fail_alone,
    memory_outside_the_arena_works,
    a_page_that_rots_in_memory_is_never_served,
);

/// Whether the kernel gives no rings; asked without the ring of ours, whose faults must show.
fn uring_is_refused() -> bool {
    io_uring::IoUring::new(2).is_err()
}

/// If so, says that a test did not run.
pub(super) fn is_uring_refused_to(test: &str) -> bool {
    let refused = uring_is_refused();
    if refused {
        // Past the harness, which would swallow it.
        let line = format!("SKIPPED {test} on io_uring: the kernel gives no rings\n");
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
    refused
}

fn name_of(setting: Setting) -> &'static str {
    match setting.engine {
        EngineChoice::Threads => "threads",
        EngineChoice::Uring => "io_uring",
        EngineChoice::Auto if uring_is_refused() => "threads",
        EngineChoice::Auto => "io_uring",
    }
}

fn pages_come_back_as_they_went(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::LogConfig {
        segment_bytes: Some(256 << 10),
        ..tiny(&dir.path().join("log"), setting)
    };
    let mut rig = Rig::open(config);
    assert_eq!(rig.log.facts().engine, name_of(setting));
    assert!(rig.recovery.created);
    let sizes = [512, 4096, 5000, 65536, 12288, 60_001];
    let stored: Vec<Stored> = (0..).zip(sizes).map(|(n, bytes)| rig.store(n, bytes)).collect();
    for stored in stored.iter().rev() {
        rig.assert_reads(stored);
    }
    let counters = rig.log.counters();
    assert_eq!((counters.written_records, counters.read_records), (6, 6));
    assert_eq!(counters.written_bytes, sizes.map(u64::from).iter().sum::<u64>());
    rig.log.close();
}

fn many_at_once_are_each_answered_once(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::LogConfig {
        capacity_bytes: 2 << 20,
        queue_depth: 8,
        ..tiny(&dir.path().join("log"), setting)
    };
    let mut rig = Rig::open(config);
    let mut stored = Vec::new();
    for round in 0..8 {
        for number in round * 32..(round + 1) * 32 {
            rig.start_append(number, 4096);
        }
        let first = rig.jobs() - 31;
        for _ in 0..32 {
            let Completion::Appended { job, outcome, .. } = rig.answer() else { panic!() };
            let AppendOutcome::Written(extent) = outcome else { panic!("{outcome:?}") };
            let number = round * 32 + (job.0 - first);
            stored.push(Stored { number, page_bytes: 4096, extent });
        }
    }
    for batch in stored.chunks(32) {
        for (index, stored) in (0..).zip(batch) {
            let (job, identity, extent) = (rig.job(), stored.identity(), stored.extent);
            let into = rig.frame(index, 4096);
            rig.submit(Op::Read { job, identity, extent, into });
        }
        for _ in batch {
            let Completion::Read { outcome, .. } = rig.answer() else { panic!() };
            assert!(matches!(outcome, ReadOutcome::Verified { .. }));
        }
    }
    stored.iter().for_each(|stored| rig.assert_reads(stored));
    rig.log.close();
}

fn another_identity_or_place_is_not_served(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(tiny(&dir.path().join("log"), setting));
    let a = rig.store(1, 4096);
    let b = rig.store(2, 4096);
    let mut wrong = a.identity();
    wrong.depth += 1;
    assert_eq!(rig.read_as(wrong, a.extent).0, ReadOutcome::Corrupt);
    let mut orphan = b.identity();
    orphan.parent = None;
    assert_eq!(rig.read_as(orphan, b.extent).0, ReadOutcome::Corrupt);
    assert_eq!(rig.read_as(a.identity(), b.extent).0, ReadOutcome::Corrupt);
    assert_eq!(rig.read_as(identity(1, 5000), a.extent).0, ReadOutcome::Corrupt);
    let places = [
        Extent { record: 9, ..a.extent },
        Extent { segment: SegmentId(77), ..a.extent },
        Extent { segment_use: SegmentUse(a.extent.segment_use.0 + 1), ..a.extent },
    ];
    for place in places {
        assert_eq!(rig.read_as(a.identity(), place).0, ReadOutcome::Corrupt);
    }
    assert_eq!(rig.log.counters().corrupt_records, 7);
    rig.assert_reads(&a);
    rig.log.close();
}

fn a_closed_log_opens_sealed_with_everything(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&dir.path().join("log"), setting);
    let mut rig = Rig::open(config.clone());
    let stored: Vec<Stored> = (0..14).map(|n| rig.store(n, 4096)).collect();
    rig.log.close();
    let mut rig = Rig::open(config);
    assert_eq!(rig.recovered(&stored), (0..14).collect::<Vec<_>>());
    assert!(rig.recovery.records.iter().all(|record| record.sealed));
    assert_eq!((rig.recovery.corrupt_tables, rig.recovery.corrupt_superblocks), (0, 0));
    assert_eq!(rig.log.counters().recovered_records, 14);
    stored.iter().for_each(|stored| rig.assert_reads(stored));
    // What was open is not appended to.
    let next = rig.store(99, 4096);
    assert!(stored.iter().all(|stored| stored.extent.segment != next.extent.segment));
    assert!(stored.iter().all(|stored| stored.extent.segment_use < next.extent.segment_use));
    rig.log.close();
}

fn a_killed_log_keeps_what_its_tables_name(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&dir.path().join("log"), setting);
    let mut rig = Rig::open(config.clone());
    let mut stored: Vec<Stored> = (0..6).map(|n| rig.store(n, 4096)).collect();
    rig.wait_for_tables();
    stored.push(rig.store(6, 4096));
    drop(rig);
    let mut rig = Rig::open(config);
    let found = rig.recovered(&stored);
    assert!(found == (0..6).collect::<Vec<_>>() || found == (0..7).collect::<Vec<_>>());
    stored[..6].iter().for_each(|stored| rig.assert_reads(stored));
    rig.log.close();
}

fn a_full_log_says_so_and_goes_on_when_freed(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(tiny(&dir.path().join("log"), setting));
    let mut stored = Vec::new();
    let refused = loop {
        match rig.append(stored.len() as u64, 4096) {
            AppendOutcome::Written(extent) => {
                let number = stored.len() as u64;
                stored.push(Stored { number, page_bytes: 4096, extent });
            }
            other => break other,
        }
    };
    assert_eq!(refused, AppendOutcome::NoSpace);
    assert!(stored.len() * 4096 >= 64 << 10, "the capacity was reached: {}", stored.len());
    stored.iter().for_each(|stored| rig.assert_reads(stored));
    // An append that waits gets the room of a segment freed meanwhile.
    rig.start_append(500, 4096);
    let oldest = stored[0].extent;
    rig.submit(Op::FreeSegment { segment: oldest.segment, segment_use: oldest.segment_use });
    let mut answers = [rig.answer(), rig.answer()];
    answers.sort_by_key(|answer| matches!(answer, Completion::Appended { .. }));
    assert!(matches!(answers[0], Completion::SegmentFreed { .. }), "{answers:?}");
    let Completion::Appended { outcome, .. } = answers[1] else { panic!("{answers:?}") };
    assert!(matches!(outcome, AppendOutcome::Written(_)), "{outcome:?}");
    assert_eq!(rig.read(&stored[0]), ReadOutcome::Corrupt);
    rig.log.close();
}

fn relocation_has_the_last_segment(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&dir.path().join("log"), setting);
    let mut rig = Rig::open(config.clone());
    let mut stored = Vec::new();
    while let AppendOutcome::Written(extent) = rig.append(stored.len() as u64, 4096) {
        stored.push(Stored { number: stored.len() as u64, page_bytes: 4096, extent });
    }
    for victim in 0..3 {
        let oldest = stored.iter().map(|stored| stored.extent).min_by_key(|e| e.segment_use);
        let oldest = oldest.unwrap();
        let (leaving, mut staying): (Vec<Stored>, Vec<Stored>) =
            stored.iter().partition(|stored| stored.extent.segment == oldest.segment);
        for moved in leaving.iter().take(leaving.len() / 2) {
            let outcome = rig.relocate(moved);
            let RelocateOutcome::Written(extent) = outcome else { panic!("{outcome:?}") };
            rig.assert_reads(moved);
            staying.push(Stored { extent, ..*moved });
        }
        assert!(rig.free(oldest.segment, oldest.segment_use) >= 1);
        leaving.iter().for_each(|gone| assert_eq!(rig.read(gone), ReadOutcome::Corrupt));
        stored = staying;
        let number = 900 + victim;
        stored.push(rig.store(number, 4096));
        stored.iter().for_each(|stored| rig.assert_reads(stored));
    }
    assert!(rig.log.counters().relocated_records >= 5);
    rig.log.close();
    let mut rig = Rig::open(config);
    let mut found = rig.recovered(&stored);
    found.sort_unstable();
    let mut expected: Vec<u64> = stored.iter().map(|stored| stored.number).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    stored.iter().for_each(|stored| rig.assert_reads(stored));
    rig.log.close();
}

fn freed_segments_stay_freed(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(&dir.path().join("log"), setting);
    let mut rig = Rig::open(config.clone());
    let stored: Vec<Stored> = (0..9).map(|n| rig.store(n, 4096)).collect();
    let first = stored[0].extent;
    let (gone, staying): (Vec<Stored>, Vec<Stored>) =
        stored.iter().partition(|stored| stored.extent.segment == first.segment);
    let before = rig.free(first.segment, first.segment_use);
    // Once more, and for segments that never were: answered, without effect.
    assert_eq!(rig.free(first.segment, first.segment_use), before);
    assert_eq!(rig.free(SegmentId(1000), SegmentUse(1)), before);
    drop(rig);
    let mut rig = Rig::open(config);
    rig.wait_for_tables();
    let found = rig.recovered(&staying);
    assert!(gone.iter().all(|gone| !found.contains(&gone.number)));
    gone.iter().for_each(|gone| assert_eq!(rig.read(gone), ReadOutcome::Corrupt));
    rig.log.close();
}

fn an_open_segment_is_freed_too(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(tiny(&dir.path().join("log"), setting));
    let all = rig.log.facts().segments;
    let stored = rig.store(1, 4096);
    assert_eq!(rig.free(stored.extent.segment, stored.extent.segment_use), all);
    assert_eq!(rig.read(&stored), ReadOutcome::Corrupt);
    let again = rig.store(2, 4096);
    rig.assert_reads(&again);
    rig.log.close();
}

fn invalid_operations_fail_alone(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(tiny(&dir.path().join("log"), setting));
    let stored = rig.store(1, 4096);
    // Larger than a segment, a frame of another size, an unaligned frame.
    assert_eq!(rig.append(2, 40_000), AppendOutcome::Failed);
    let (job, into) = (rig.job(), rig.frame(0, 8192));
    let read = Op::Read { job, identity: stored.identity(), extent: stored.extent, into };
    rig.submit(read);
    let answer = rig.answer();
    assert!(matches!(answer, Completion::Read { outcome: ReadOutcome::Failed, .. }));
    let payload = rig.frame(0, 8192).sub(512, 4096).unwrap();
    let (job, identity) = (rig.job(), identity(3, 4096));
    rig.submit(Op::Append { job, identity, origin: Origin::default(), payload, payload_crc: 0 });
    let answer = rig.answer();
    let failed = matches!(answer, Completion::Appended { outcome: AppendOutcome::Failed, .. });
    assert!(failed, "{answer:?}");
    assert_eq!(rig.log.counters().invalid_ops, 3);
    rig.assert_reads(&stored);
    rig.log.close();
}

fn memory_outside_the_arena_works(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(tiny(&dir.path().join("log"), setting));
    let memory = undercroft_arena::Memory::new(8192, 0).unwrap();
    let payload = memory.span(4096, 4096).unwrap();
    let payload_crc = super::rig::fill(&payload, 5, 4096);
    let (job, identity) = (rig.job(), identity(5, 4096));
    rig.submit(Op::Append { job, identity, origin: Origin::default(), payload, payload_crc });
    let Completion::Appended { outcome, .. } = rig.answer() else { panic!() };
    let AppendOutcome::Written(extent) = outcome else { panic!("{outcome:?}") };
    rig.assert_reads(&Stored { number: 5, page_bytes: 4096, extent });
    rig.log.close();
}

fn a_page_that_rots_in_memory_is_never_served(setting: Setting) {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(tiny(&dir.path().join("log"), setting));
    let payload = rig.frame(1, 4096);
    let payload_crc = super::rig::fill(&payload, 1, 4096);
    payload.write(|bytes| bytes[77] ^= 4);
    let (job, rotten) = (rig.job(), identity(1, 4096));
    rig.submit(Op::Append {
        job,
        identity: rotten,
        origin: Origin::default(),
        payload,
        payload_crc,
    });
    let Completion::Appended { outcome, .. } = rig.answer() else { panic!() };
    match outcome {
        // A tag would vouch for it, so it gets none.
        AppendOutcome::Failed => assert!(setting.encrypted),
        AppendOutcome::Written(extent) => {
            assert!(!setting.encrypted);
            assert_eq!(rig.read_as(rotten, extent).0, ReadOutcome::Corrupt);
        }
        AppendOutcome::NoSpace => panic!("there is room"),
    }
    assert_eq!(rig.log.counters().corrupt_records, 1);
    let stored = rig.store(2, 4096);
    rig.assert_reads(&stored);
    rig.log.close();
}
