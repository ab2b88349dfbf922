//! Flipped bytes anywhere in the file: each is a miss and a counter, never data.

use super::rig::{Numbers, Rig, Stored, content, fill, holds, tiny};
use super::sim::{Disk, Faults, SimLog};
use crate::format::BLOCK;
use crate::layout::DATA_START;
use crate::{AppendOutcome, Completion, EngineChoice, LogConfig, Op, OpenError, ReadOutcome};
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use undercroft_arena::{Memory, Span, checksum_bytes};
use undercroft_wire::{JobId, Origin, frame_bytes};

const SIZES: [u32; 4] = [512, 4096, 5000, 8192];

fn config() -> LogConfig {
    LogConfig {
        capacity_bytes: 512 << 10,
        segment_bytes: Some(64 << 10),
        ..tiny(Path::new("simulated"), EngineChoice::Auto)
    }
}

fn run(log: &mut SimLog, op: Op) -> Completion {
    log.machine.accept(op, log.now);
    loop {
        log.turn();
        if let Some(answer) = log.machine.answers().next_back() {
            return answer;
        }
    }
}

/// A closed log with pages of several sizes, its bytes, and what is in it.
fn image(frame: &Span, config: &LogConfig) -> (Vec<u8>, Vec<Stored>) {
    let disk = Arc::new(Disk::default());
    let mut log = SimLog::open(&disk, config, 1, Faults::default()).unwrap();
    let mut stored = Vec::new();
    for number in 0..90 {
        let page_bytes = SIZES[number as usize % SIZES.len()];
        let payload = frame.sub(0, frame_bytes(page_bytes) as usize).unwrap();
        let payload_crc = fill(&payload, number, page_bytes);
        let identity = super::rig::identity(number, page_bytes);
        let job = JobId(number);
        let answer = run(
            &mut log,
            Op::Append { job, identity, origin: Origin::default(), payload, payload_crc },
        );
        let Completion::Appended { outcome: AppendOutcome::Written(extent), .. } = answer else {
            panic!("{answer:?}");
        };
        stored.push(Stored { number, page_bytes, extent });
    }
    log.close();
    let bytes = disk.bytes.lock().unwrap().clone();
    (bytes, stored)
}

/// What opening and reading a damaged image gave.
#[derive(Debug, Default)]
struct Seen {
    missed: u64,
    counted: u64,
    unopened: u64,
}

fn probe(
    bytes: Vec<u8>,
    config: &LogConfig,
    stored: &[Stored],
    frame: &Span,
    seen: &mut Seen,
) -> BTreeSet<u64> {
    let disk = Arc::new(Disk::holding(bytes));
    let mut log = match SimLog::open(&disk, config, 1, Faults::default()) {
        Ok(log) => log,
        // Both superblocks were hit.
        Err(OpenError::Damaged { .. } | OpenError::Foreign { .. }) => {
            seen.unopened += 1;
            return stored.iter().map(|stored| stored.number).collect();
        }
        Err(e) => panic!("{e}"),
    };
    let mut missing: BTreeSet<u64> = stored.iter().map(|stored| stored.number).collect();
    for found in log.recovery.records.clone() {
        let identity = found.identity;
        let into = frame.sub(0, frame_bytes(identity.page_bytes) as usize).unwrap();
        into.write(|bytes| bytes.fill(0xee));
        let job = JobId(0);
        let answer = run(&mut log, Op::Read { job, identity, extent: found.extent, into });
        let Completion::Read { outcome, into, .. } = answer else { panic!("{answer:?}") };
        if let ReadOutcome::Verified { payload_crc } = outcome {
            let original = stored.iter().find(|s| s.identity() == identity);
            let original = original.expect("only what was stored is ever served");
            assert_eq!(original.extent, found.extent);
            assert!(holds(&into, original.number, original.page_bytes), "wrong bytes");
            assert_eq!(payload_crc, checksum_bytes(&content(original.number, original.page_bytes)));
            missing.remove(&original.number);
        }
    }
    let counters = log.machine.counters();
    seen.missed += missing.len() as u64;
    seen.counted += counters.corrupt_records + counters.corrupt_tables;
    if !missing.is_empty() {
        assert!(counters.corrupt_records + counters.corrupt_tables > 0, "a miss without a count");
    }
    missing
}

#[test]
fn thousands_of_flipped_bytes_are_misses() {
    let memory = Memory::new(16 << 10, 0).unwrap();
    let frame = memory.span(0, 16 << 10).unwrap();
    let (bytes, stored) = image(&frame, &config());
    let mut numbers = Numbers(5);
    let mut seen = Seen::default();
    let mut flipped = 0;
    assert!(probe(bytes.clone(), &config(), &stored, &frame, &mut seen).is_empty());
    for round in 0..240 {
        let mut damaged = bytes.clone();
        let flips = [1, 8, 32, 128][round % 4];
        for _ in 0..flips {
            // Every second one where it hurts: superblocks, headers, tables.
            let at = if numbers.below(2) == 0 {
                numbers.below(damaged.len() as u64)
            } else {
                metadata_place(&mut numbers, damaged.len() as u64)
            };
            damaged[at as usize] ^= 1 + numbers.below(255) as u8;
            flipped += 1;
        }
        probe(damaged, &config(), &stored, &frame, &mut seen);
    }
    assert!(flipped >= 8000);
    assert!(seen.missed > 1000 && seen.counted > 1000, "{seen:?}");
    assert!(seen.unopened < 50, "{seen:?}");
}

fn metadata_place(numbers: &mut Numbers, bytes: u64) -> u64 {
    let segment_bytes = crate::layout::Layout::new(&config()).unwrap().segment_bytes;
    let segment = numbers.below((bytes - DATA_START) / segment_bytes);
    let start = DATA_START + segment * segment_bytes;
    let within = numbers.below(BLOCK);
    match numbers.below(64) {
        0 => numbers.below(2 * BLOCK),
        1..16 => start + within,
        _ => start + segment_bytes - (1 + numbers.below(3)) * BLOCK + within,
    }
}

/// One byte of a payload costs exactly that page.
#[test]
fn a_flipped_payload_byte_costs_one_page() {
    let memory = Memory::new(16 << 10, 0).unwrap();
    let frame = memory.span(0, 16 << 10).unwrap();
    // In the clear, so that it can be found.
    let (bytes, stored) = image(&frame, &LogConfig { key: None, ..config() });
    let mut numbers = Numbers(6);
    for stored_page in stored.iter().step_by(3) {
        let needle = content(stored_page.number, stored_page.page_bytes);
        let start = bytes.windows(64).position(|window| window == &needle[..64]).unwrap();
        let mut damaged = bytes.clone();
        damaged[start + numbers.below(u64::from(stored_page.page_bytes)) as usize] ^= 0x40;
        let config = LogConfig { key: None, ..config() };
        let missing = probe(damaged, &config, &stored, &frame, &mut Seen::default());
        assert_eq!(missing.into_iter().collect::<Vec<_>>(), [stored_page.number]);
    }
}

/// Blocks that changed places, as a misdirected write leaves them.
#[test]
fn blocks_that_changed_places_are_misses() {
    let memory = Memory::new(16 << 10, 0).unwrap();
    let frame = memory.span(0, 16 << 10).unwrap();
    let (bytes, stored) = image(&frame, &config());
    let mut numbers = Numbers(7);
    let blocks = (bytes.len() / BLOCK as usize) as u64;
    let first = DATA_START / BLOCK;
    for _ in 0..150 {
        let mut damaged = bytes.clone();
        for _ in 0..8 {
            let mut place = || (first + numbers.below(blocks - first)) as usize * BLOCK as usize;
            let (from, to) = (place(), place());
            damaged.copy_within(from..from + BLOCK as usize, to);
        }
        let disk = Arc::new(Disk::holding(damaged));
        let mut log = SimLog::open(&disk, &config(), 1, Faults::default()).unwrap();
        for found in log.recovery.records.clone() {
            let (job, identity, extent) = (JobId(0), found.identity, found.extent);
            let into = frame.sub(0, frame_bytes(identity.page_bytes) as usize).unwrap();
            let answer = run(&mut log, Op::Read { job, identity, extent, into });
            let Completion::Read { outcome, into, .. } = answer else { panic!("{answer:?}") };
            if let ReadOutcome::Verified { .. } = outcome {
                let original = stored.iter().find(|s| s.identity() == identity).unwrap();
                assert!(holds(&into, original.number, original.page_bytes), "wrong bytes");
            }
        }
    }
}

/// The same through a real file and both engines.
#[test]
fn a_damaged_file_gives_misses_on_both_engines() {
    let dir = tempfile::tempdir().unwrap();
    for engine in [EngineChoice::Auto, EngineChoice::Threads] {
        let path = dir.path().join("log");
        let config = LogConfig { engine, path: path.clone(), ..config() };
        let mut rig = Rig::open(config.clone());
        let stored: Vec<Stored> =
            (0..90).map(|n| rig.store(n, SIZES[n as usize % SIZES.len()])).collect();
        rig.log.close();
        let bytes = std::fs::read(&path).unwrap();
        let mut numbers = Numbers(8);
        for _ in 0..8 {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            for _ in 0..100 {
                let at = DATA_START + numbers.below(bytes.len() as u64 - DATA_START);
                file.write_all_at(&[numbers.next() as u8], at).unwrap();
            }
            let mut rig = Rig::open(config.clone());
            let found: BTreeSet<u64> = rig.recovered(&stored).into_iter().collect();
            let known = stored.iter().filter(|stored| found.contains(&stored.number));
            let verified = known.filter(|s| matches!(rig.read(s), ReadOutcome::Verified { .. }));
            let missed = 90 - verified.count() as u64;
            let counters = rig.log.counters();
            assert!(missed == 0 || counters.corrupt_records + counters.corrupt_tables > 0);
            rig.log.close();
        }
        std::fs::remove_file(&path).unwrap();
    }
}
