//! A segment that a process left open: the next one has it sealed, or leaves it as it is.

use super::rig::{Numbers, Setting, Stored, fill, holds, identity, tiny};
use super::sim::{Disk, Faults, SimLog};
use crate::format::{BLOCK_LEN, FIRST_LATE_WRITE};
use crate::layout::DATA_START;
use crate::storage::Storage;
use crate::{
    AppendOutcome, Completion, EngineChoice, Health, LogConfig, LogCounters, Machine, Op,
    OpenError, ReadOutcome, RelocateOutcome,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use undercroft_arena::{Memory, Span};
use undercroft_wire::{Extent, JobId, Origin, frame_bytes};

const SIZES: [u32; 4] = [512, 4096, 700, 5000];
/// Longer than a segment waits for its seal.
const A_WHILE: Duration = Duration::from_secs(3);

fn config(encrypted: bool) -> LogConfig {
    LogConfig {
        segment_bytes: Some(256 << 10),
        capacity_bytes: 1 << 20,
        ..tiny(Path::new("simulated"), Setting { engine: EngineChoice::Auto, encrypted })
    }
}

/// A store through the lives of its processes.
struct Store {
    disk: Arc<Disk>,
    encrypted: bool,
    lives: u64,
    stored: Vec<Stored>,
    memory: Memory,
}

impl Store {
    fn new(encrypted: bool) -> Self {
        let memory = Memory::new(64 << 10, 0).unwrap();
        Self { disk: Arc::default(), encrypted, lives: 0, stored: Vec::new(), memory }
    }

    /// The same store as it is now, to be gone on with in another way.
    fn fork(&self) -> Self {
        let disk = Disk::holding(self.disk.bytes.lock().unwrap().clone());
        let (encrypted, lives, stored) = (self.encrypted, self.lives, self.stored.clone());
        let memory = Memory::new(64 << 10, 0).unwrap();
        Self { disk: Arc::new(disk), encrypted, lives, stored, memory }
    }

    fn open(&mut self) -> SimLog {
        self.lives += 1;
        let config = config(self.encrypted);
        SimLog::open(&self.disk, &config, self.lives, Faults::default()).unwrap()
    }

    fn frame(&self, page_bytes: u32) -> Span {
        self.memory.span(0, frame_bytes(page_bytes) as usize).unwrap()
    }

    /// Appends so many pages; those of one turn share a table block. False if there is no room.
    fn append(&mut self, log: &mut SimLog, pages: u64) -> bool {
        for _ in 0..pages {
            let number = self.stored.len() as u64;
            let page_bytes = SIZES[number as usize % SIZES.len()];
            let payload = self.frame(page_bytes);
            let payload_crc = fill(&payload, number, page_bytes);
            let (job, identity) = (JobId(number), identity(number, page_bytes));
            let op = Op::Append { job, identity, origin: Origin::default(), payload, payload_crc };
            match ask(log, op) {
                Completion::Appended { outcome: AppendOutcome::Written(extent), .. } => {
                    self.stored.push(Stored { number, page_bytes, extent });
                }
                Completion::Appended { outcome: AppendOutcome::NoSpace, .. } => return false,
                other => panic!("an append was answered with {other:?}"),
            }
        }
        pass(log, Duration::from_millis(20));
        true
    }

    /// A store whose only process was killed after so many pages, in batches of that many.
    fn killed(encrypted: bool, pages: &[u64]) -> Self {
        let mut store = Self::new(encrypted);
        let mut log = store.open();
        assert!(pages.iter().all(|pages| store.append(&mut log, *pages)));
        log.engine.die();
        store
    }

    fn outcome(&self, log: &mut SimLog, stored: &Stored) -> ReadOutcome {
        let into = self.frame(stored.page_bytes);
        let (job, identity, extent) = (JobId(0), stored.identity(), stored.extent);
        match ask(log, Op::Read { job, identity, extent, into }) {
            Completion::Read { outcome, into, .. } => {
                if let ReadOutcome::Verified { .. } = outcome {
                    assert!(holds(&into, stored.number, stored.page_bytes), "wrong bytes");
                }
                outcome
            }
            other => panic!("a read was answered with {other:?}"),
        }
    }

    fn reads(&self, log: &mut SimLog, stored: &Stored) -> bool {
        matches!(self.outcome(log, stored), ReadOutcome::Verified { .. })
    }

    /// Opens the store; what is believed there must be there. Returns which records were found,
    /// and whether each is believed.
    fn look(&mut self) -> (SimLog, BTreeMap<u64, bool>) {
        let mut log = self.open();
        let mut found = BTreeMap::new();
        for record in log.recovery.records.clone() {
            let is_it = |stored: &&Stored| stored.extent == record.extent;
            let stored = *self.stored.iter().find(is_it).unwrap();
            assert_eq!(record.identity, stored.identity());
            let reads = self.reads(&mut log, &stored);
            assert!(reads || !record.sealed, "{stored:?} is believed and is not there");
            found.insert(stored.number, record.sealed);
        }
        (log, found)
    }

    /// As [`Store::look`], where all were found; those that are not believed.
    fn doubted(&mut self) -> Vec<u64> {
        let (mut log, found) = self.look();
        let all: BTreeSet<u64> = self.stored.iter().map(|stored| stored.number).collect();
        assert_eq!(found.len(), all.len(), "nothing is lost");
        log.engine.die();
        found.into_iter().filter(|(_, sealed)| !sealed).map(|(number, _)| number).collect()
    }

    /// One life in which nothing is asked of the log, and what it did.
    fn rest(&mut self) -> LogCounters {
        let mut log = self.open();
        pass(&mut log, A_WHILE);
        let counters = log.machine.counters();
        log.engine.die();
        counters
    }

    /// Flips a bit of what lies there.
    fn flip(&self, extent: &Extent, at: impl Fn(&Layout) -> usize) {
        let bytes = &mut *self.disk.bytes.lock().unwrap();
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let segment_bytes = number(40) as usize;
        let start = DATA_START as usize + extent.segment.0 as usize * segment_bytes;
        let layout = Layout { start, end: start + segment_bytes };
        bytes[at(&layout)] ^= 4;
    }

    /// One turn of a log that always has something to do.
    fn keep_busy(&self, log: &mut SimLog, asked: &mut u64) {
        while log.machine.wants_ops() {
            let stored = self.stored[*asked as usize % self.stored.len()];
            let (job, identity, extent) = (JobId(*asked), stored.identity(), stored.extent);
            log.machine.accept(Op::Prove { job, identity, extent }, log.now);
            *asked += 1;
        }
        log.turn();
        log.machine.answers().for_each(drop);
    }

    /// The blocks of late seals.
    fn late_seals(&self) -> Vec<Vec<u8>> {
        let bytes = self.disk.bytes.lock().unwrap();
        let blocks = bytes.chunks_exact(BLOCK_LEN);
        let late = blocks.filter(|block| block.starts_with(b"UCROFTTB") && block[12] == 3);
        late.map(<[u8]>::to_vec).collect()
    }
}

/// Where a segment lies in the file.
struct Layout {
    start: usize,
    end: usize,
}

fn ask(log: &mut SimLog, op: Op) -> Completion {
    log.machine.accept(op, log.now);
    loop {
        log.turn();
        if let Some(answer) = log.machine.answers().next() {
            return answer;
        }
    }
}

fn pass(log: &mut SimLog, time: Duration) {
    let end = log.now + time;
    while log.now < end {
        log.turn();
    }
}

/// Turns until that is so.
fn until(log: &mut SimLog, so: impl Fn(&Machine) -> bool) {
    for _ in 0..100_000 {
        if so(&log.machine) {
            return;
        }
        log.turn();
    }
    panic!("it never comes to that: {:?}", log.machine.counters());
}

const BOTH: [bool; 2] = [false, true];
/// Segments that are left open: with one batch in either of its places, with several batches, with
/// a full one at the end; and a full segment that waits for its seal besides.
const SHAPES: [&[u64]; 7] = [&[3], &[3, 4], &[3, 4, 5], &[23], &[30, 2], &[40], &[70]];

#[test]
fn what_was_left_open_is_sealed_and_believed_from_then_on() {
    for encrypted in BOTH {
        for shape in SHAPES {
            let mut store = Store::killed(encrypted, shape);
            let all: Vec<u64> = (0..store.stored.len() as u64).collect();
            assert_eq!(store.doubted(), all, "{shape:?}");
            let counters = store.rest();
            assert_eq!(counters.mended_records, all.len() as u64, "{shape:?}");
            assert!(counters.sealed_segments > 0 && counters.corrupt_records == 0);
            assert_eq!(store.doubted(), [], "{shape:?}");
            let counters = store.rest();
            assert_eq!((counters.mended_records, counters.table_writes), (0, 0));
        }
    }
}

#[test]
fn records_that_await_their_proof_do_not_pile_up_over_kills() {
    for encrypted in BOTH {
        let mut store = Store::new(encrypted);
        for life in 0..12 {
            let (mut log, found) = store.look();
            let doubted = found.values().filter(|sealed| !**sealed).count();
            assert!(doubted <= 7, "{doubted} records of seven a life, in life {life}");
            assert_eq!(found.len() as u64, 7 * life.min(4));
            if life >= 4 {
                // Four segments are in use, and the oldest goes.
                let Extent { segment, segment_use, .. } = store.stored[0].extent;
                let freed = ask(&mut log, Op::FreeSegment { segment, segment_use });
                assert!(matches!(freed, Completion::SegmentFreed { .. }), "{freed:?}");
                store.stored.retain(|stored| stored.extent.segment_use != segment_use);
            }
            pass(&mut log, A_WHILE);
            let first = 1000 * (life + 1);
            for number in first..first + 7 {
                let payload = store.frame(700);
                let payload_crc = fill(&payload, number, 700);
                let identity = identity(number, 700);
                let op = Op::Append {
                    job: JobId(0),
                    identity,
                    origin: Origin::default(),
                    payload,
                    payload_crc,
                };
                let Completion::Appended { outcome: AppendOutcome::Written(extent), .. } =
                    ask(&mut log, op)
                else {
                    panic!("an append failed in life {life}")
                };
                store.stored.push(Stored { number, page_bytes: 700, extent });
            }
            pass(&mut log, Duration::from_millis(20));
            log.engine.die();
        }
    }
}

/// A kill, and a power cut, between any two steps of the log; and in the life after it another one.
#[test]
fn it_may_end_at_any_moment() {
    let mut sealed = 0;
    for (encrypted, shape) in [(true, SHAPES[2]), (true, SHAPES[5]), (false, SHAPES[1])] {
        let killed = Store::killed(encrypted, shape);
        let mut steps = 0;
        loop {
            let mut numbers = Numbers(steps);
            let mut store = killed.fork();
            let mut log = store.open();
            for _ in 0..steps {
                log.turn();
            }
            let over = log.machine.counters().sealed_segments > 0;
            log.engine.die();
            if steps.is_multiple_of(2) {
                store.disk.cut(&mut numbers);
            }
            let doubted = store.doubted();
            assert!(doubted.is_empty() || doubted.len() == store.stored.len(), "{doubted:?}");
            sealed += u64::from(doubted.is_empty());
            store.rest();
            assert_eq!(store.doubted(), [], "after {steps} steps, and a life in peace");
            if over {
                break;
            }
            steps += 1;
            assert!(steps < 2000, "it is never sealed");
        }
        assert!(steps > 10, "{steps} steps are too few to be all");
    }
    assert!(sealed > 0);
}

/// The process that wrote it was told that a flush had failed, and died. It reads well, and never
/// was on the medium.
#[test]
fn what_a_failed_flush_gave_up_is_written_again_before_it_is_sealed() {
    for encrypted in BOTH {
        let mut store = Store::new(encrypted);
        let mut log = store.open();
        // One segment is complete and waits for its flush, another is being filled.
        assert!(store.append(&mut log, 70));
        log.engine.faults.error = 1000;
        until(&mut log, |log| log.counters().io_errors > 0);
        log.engine.die();
        assert_eq!(store.doubted().len(), 70);
        store.rest();
        store.disk.flush().unwrap();
        store.disk.cut(&mut Numbers(2));
        assert_eq!(store.doubted(), []);
    }
}

#[test]
fn a_failed_flush_seals_nothing() {
    for encrypted in BOTH {
        let mut store = Store::killed(encrypted, &[30, 5]);
        let mut log = store.open();
        // Everything was written again, and the flush is what comes next.
        until(&mut log, |log| log.counters().mended_records >= 35);
        pass(&mut log, Duration::from_millis(500));
        log.engine.faults.error = 1000;
        until(&mut log, |log| log.counters().io_errors > 0);
        log.engine.faults.error = 0;
        pass(&mut log, A_WHILE);
        assert_eq!(log.machine.counters().sealed_segments, 0);
        log.machine.begin_close(log.now);
        pass(&mut log, A_WHILE);
        log.engine.die();
        assert!(store.late_seals().is_empty());
        assert_eq!(store.doubted().len(), 35);
        store.rest();
        assert_eq!(store.doubted(), []);
    }
}

/// A flush that fails while a segment is being mended: what was written again before that is as
/// doubtful as it was.
#[test]
fn a_flush_that_fails_in_between_seals_nothing() {
    let killed = Store::killed(true, &[30]);
    for mended in [1, 15, 29] {
        let mut store = killed.fork();
        let mut log = store.open();
        until(&mut log, |log| log.counters().mended_records >= mended);
        // The device stalls, and the flush of the probe that follows fails.
        log.engine.stuck = true;
        until(&mut log, |log| log.health() != Health::Well);
        (log.engine.stuck, log.engine.flushes_fail) = (false, true);
        until(&mut log, |log| log.counters().io_errors > 0);
        log.engine.flushes_fail = false;
        pass(&mut log, A_WHILE);
        assert_eq!(log.machine.health(), Health::Well);
        assert!(log.machine.counters().mended_records <= mended + 1);
        assert_eq!(log.machine.counters().sealed_segments, 0);
        log.engine.die();
        assert_eq!(store.doubted().len(), 30);
        store.rest();
        assert_eq!(store.doubted(), []);
    }
}

#[test]
fn a_record_that_does_not_prove_itself_is_not_believed_and_costs_no_other() {
    for encrypted in BOTH {
        let mut store = Store::killed(encrypted, &[40]);
        for bad in [0, 17, 39] {
            let Stored { extent, .. } = store.stored[bad];
            let before: usize = store.stored[..bad]
                .iter()
                .map(|stored| frame_bytes(stored.page_bytes) as usize)
                .sum();
            store.flip(&extent, |segment| segment.start + BLOCK_LEN + before + 300);
        }
        let counters = store.rest();
        assert_eq!((counters.mended_records, counters.sealed_segments), (37, 1));
        assert_eq!(store.doubted(), [0, 17, 39]);
        // And it stays so: nobody reads all of them at each start.
        assert_eq!(store.rest().mended_records, 0);
        assert_eq!(store.doubted(), [0, 17, 39]);
    }
}

#[test]
fn damaged_tables_cost_what_they_named_and_no_seal() {
    for encrypted in BOTH {
        let whole = Store::killed(encrypted, &[45]);
        // The first batch; and both copies of the second, one of which makes room for the seal.
        for (tables, left) in [(&[0][..], 22), (&[1, 2], 23)] {
            let mut store = whole.fork();
            let extent = store.stored[0].extent;
            assert_eq!(store.stored[44].extent.segment, extent.segment, "one segment");
            for table in tables {
                store.flip(&extent, |segment| segment.end - (table + 1) * BLOCK_LEN + 100);
            }
            assert_eq!(store.rest().mended_records, left);
            let (mut log, found) = store.look();
            assert_eq!(log.recovery.corrupt_tables, 1);
            assert_eq!(found.len() as u64, left);
            assert!(found.values().all(|sealed| *sealed));
            log.engine.die();
        }
    }
}

#[test]
fn a_table_that_rots_meanwhile_seals_nothing() {
    let mut store = Store::killed(true, &[45]);
    let mut log = store.open();
    until(&mut log, |log| log.counters().mended_records >= 3);
    let extent = store.stored[0].extent;
    for table in 1..3 {
        store.flip(&extent, |segment| segment.end - (table + 1) * BLOCK_LEN + 100);
    }
    pass(&mut log, A_WHILE);
    assert_eq!(log.machine.counters().sealed_segments, 0);
}

#[test]
fn a_device_that_fails_meanwhile_seals_nothing_and_loses_nothing() {
    for seed in 0..20 {
        let mut store = Store::killed(true, &[30]);
        let mut log = store.open();
        until(&mut log, |log| log.counters().mended_records >= seed);
        // One transfer fails, whichever it is.
        log.engine.faults.error = 1000;
        until(&mut log, |log| log.counters().io_errors > 0);
        log.engine.faults.error = 0;
        pass(&mut log, A_WHILE);
        assert_eq!(log.machine.counters().sealed_segments, 0);
        log.engine.die();
        assert_eq!(store.doubted().len(), 30);
    }
}

/// The owner frees the segment that is being mended: it is answered once, and what is written
/// there from then on is not written over.
#[test]
fn a_segment_that_is_mended_can_be_freed_at_any_moment() {
    for encrypted in BOTH {
        let killed = Store::killed(encrypted, &[40]);
        for steps in (0..120).step_by(5) {
            let mut store = killed.fork();
            let mut log = store.open();
            for _ in 0..steps {
                log.turn();
            }
            let Extent { segment, segment_use, .. } = store.stored[0].extent;
            log.machine.accept(Op::FreeSegment { segment, segment_use }, log.now);
            let mut freed = 0;
            for _ in 0..50 {
                log.turn();
                freed += log
                    .machine
                    .answers()
                    .filter(|answer| matches!(answer, Completion::SegmentFreed { .. }))
                    .count();
            }
            assert_eq!(freed, 1, "after {steps} steps");
            let gone = std::mem::take(&mut store.stored);
            // The others are used first, and the last one is for relocations.
            while store.append(&mut log, 20) {}
            let mut moved = 0;
            for stored in store.stored.clone() {
                let (job, identity, extent) = (JobId(0), stored.identity(), stored.extent);
                let op = Op::Relocate { job, identity, origin: Origin::default(), extent };
                if let Completion::Relocated { outcome: RelocateOutcome::Written(extent), .. } =
                    ask(&mut log, op)
                {
                    moved += u64::from(extent.segment == segment);
                    store.stored.push(Stored { extent, ..stored });
                }
            }
            assert!(moved > 20, "{moved} records lie there now");
            for stored in &store.stored {
                assert!(store.reads(&mut log, stored), "{stored:?} after {steps} steps");
            }
            assert_eq!(store.outcome(&mut log, &gone[0]), ReadOutcome::Corrupt);
            log.close();
            assert_eq!(store.doubted(), []);
        }
    }
}

/// Whoever waits for the segment has nothing else to ask: the log wakes by itself until it is
/// freed.
#[test]
fn a_segment_that_is_freed_while_it_is_mended_keeps_the_log_awake() {
    for encrypted in BOTH {
        let killed = Store::killed(encrypted, &[40]);
        for steps in 0..120 {
            let mut store = killed.fork();
            let mut log = store.open();
            for _ in 0..steps {
                log.turn();
            }
            let Extent { segment, segment_use, .. } = store.stored[0].extent;
            log.machine.accept(Op::FreeSegment { segment, segment_use }, log.now);
            // After what has come back in a turn there is always another one.
            let mut asleep = 0;
            loop {
                log.turn();
                if log.machine.counters().freed_segments > 0 {
                    break;
                }
                let moves = !log.engine.is_idle() || log.machine.has_work();
                let awake = moves || log.machine.next_due().is_some();
                asleep = if awake { 0 } else { asleep + 1 };
                assert!(asleep < 2, "nothing wakes the log, freed after {steps} steps");
            }
        }
    }
}

/// A device that always has something else to do: it takes longer, and comes to an end.
#[test]
fn a_busy_device_is_mended_too() {
    let mut store = Store::killed(true, &[40]);
    let mut log = store.open();
    let end = log.now + Duration::from_secs(20);
    let mut asked = 0;
    while log.now < end && log.machine.counters().sealed_segments == 0 {
        store.keep_busy(&mut log, &mut asked);
    }
    assert_eq!(log.machine.counters().sealed_segments, 1);
    log.engine.die();
    assert_eq!(store.doubted(), []);
}

#[test]
fn a_log_that_closes_does_not_wait_for_it() {
    let mut store = Store::killed(true, &[40]);
    let mut log = store.open();
    log.turn();
    let since = log.now;
    let machine = log.close();
    assert!(machine.counters().mended_records < 2, "{since:?}");
    assert_eq!(store.doubted().len(), 40);
}

/// Each late seal has a nonce that no table block of its use has, and that is drawn anew.
#[test]
fn late_seals_have_nonces_of_their_own() {
    let killed = Store::killed(true, &[30]);
    let mut nonces = BTreeSet::new();
    for lives in 0..8 {
        let mut store = killed.fork();
        store.lives += lives;
        store.rest();
        let seals = store.late_seals();
        let [seal] = &seals[..] else { panic!("{} late seals", seals.len()) };
        let write = u32::from_le_bytes(seal[48..52].try_into().unwrap());
        assert!(write >= FIRST_LATE_WRITE);
        assert!(nonces.insert(seal[48..60].to_vec()), "a nonce came twice");
    }
}

#[test]
fn another_key_seals_nothing() {
    let store = Store::killed(true, &[5]);
    let other = LogConfig { key: Some(crate::StoreKey::from([1; 32])), ..config(true) };
    let before = store.disk.bytes.lock().unwrap().clone();
    let opened = SimLog::open(&store.disk, &other, 9, Faults::default());
    assert!(matches!(opened, Err(OpenError::OtherKey { .. })));
    assert!(*store.disk.bytes.lock().unwrap() == before);
}
