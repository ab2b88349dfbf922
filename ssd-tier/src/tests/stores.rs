//! Whole stores of format version 2, kept as files: what was written once is read for good, and
//! the same calls still write the same bytes.
//!
//! `cargo test -p undercroft-ssd-tier -- --ignored write_the_golden_stores` writes them anew,
//! which is right only if what a store holds has changed and the format has not.

use super::rig::{Numbers, Setting, Stored, fill, holds, identity, origin, tiny};
use super::sim::Disk;
use crate::engine::{Done, Engine, Io, Kind};
use crate::{
    AppendOutcome, Completion, EngineChoice, InspectError, Inspector, LogConfig, Machine, Op,
    ReadOutcome, Recovery, RelocateOutcome, SegmentState, SuperblockCopy, Verification,
};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use undercroft_arena::{Memory, Span};
use undercroft_wire::{Extent, JobId, SegmentId, frame_bytes};

/// Longer than a record may stay unlisted, shorter than a segment waits for its seal.
const A_LITTLE: Duration = Duration::from_millis(6);
/// The one page whose write fails has this size.
const FAILING_BYTES: u32 = 12 << 10;

/// How a golden store is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Plain,
    Encrypted,
    /// Plain in its first life, encrypted in its second.
    Turned,
    /// Plain; left open in its first life and sealed in its second, with a record that is damaged.
    MendedPlain,
    /// The same, encrypted.
    Mended,
}

/// Those in which everything is whole.
const WHOLE: [Kept; 3] = [Kept::Plain, Kept::Encrypted, Kept::Turned];
const MENDED: [Kept; 2] = [Kept::MendedPlain, Kept::Mended];
/// The record of those that is damaged.
const DAMAGED: u32 = 27;

impl Kept {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain.store.zst",
            Self::Encrypted => "encrypted.store.zst",
            Self::Turned => "turned.store.zst",
            Self::MendedPlain => "mended-plain.store.zst",
            Self::Mended => "mended.store.zst",
        }
    }

    fn image(self) -> Vec<u8> {
        let file: &[u8] = match self {
            Self::Plain => include_bytes!("golden/plain.store.zst"),
            Self::Encrypted => include_bytes!("golden/encrypted.store.zst"),
            Self::Turned => include_bytes!("golden/turned.store.zst"),
            Self::MendedPlain => include_bytes!("golden/mended-plain.store.zst"),
            Self::Mended => include_bytes!("golden/mended.store.zst"),
        };
        zstd::decode_all(file).unwrap()
    }

    fn encrypted(self, life: u32) -> bool {
        match self {
            Self::Plain | Self::MendedPlain => false,
            Self::Encrypted | Self::Mended => true,
            Self::Turned => life > 1,
        }
    }

    fn config(self, life: u32) -> LogConfig {
        let setting = Setting { engine: EngineChoice::Threads, encrypted: self.encrypted(life) };
        LogConfig {
            segment_bytes: Some(128 << 10),
            capacity_bytes: 1,
            ..tiny(Path::new("golden"), setting)
        }
    }

    /// The pages it holds, in the order they were appended.
    fn pages(self) -> Vec<(u64, u32)> {
        match self {
            Self::Plain | Self::Encrypted => {
                let first = (0..31).map(|number| (number, small(number)));
                first.chain([(34, 512), (31, 5000), (43, 700), (44, 4096)]).collect()
            }
            Self::Turned => vec![(60, 600), (61, 4096)],
            Self::MendedPlain | Self::Mended => (70..100).map(|n| (n, small(n))).collect(),
        }
    }
}

fn small(number: u64) -> u32 {
    [512, 1000, 512, 700][number as usize % 4]
}

/// Carries every transfer out at once and in order; writing one page fails.
struct InOrder {
    disk: Arc<Disk>,
    done: Vec<Done>,
}

impl Engine for InOrder {
    fn name(&self) -> &'static str {
        "in order"
    }

    fn start(&mut self, io: Io) {
        use crate::storage::Storage;
        let result = match (io.kind, io.rest()) {
            (Kind::Write, Some((_, rest))) if rest.len() == FAILING_BYTES as usize => {
                Err(io::Error::from_raw_os_error(5))
            }
            (Kind::Write, Some((offset, rest))) => self.disk.write_at(offset, &rest),
            (Kind::Read, Some((offset, rest))) => self.disk.read_at(offset, &rest),
            _ => self.disk.flush().map(|()| 0),
        };
        self.done.push(Done { io, result });
    }

    fn wait(&mut self, _timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        done.append(&mut self.done);
        Ok(())
    }
}

/// One opening of a store, in virtual time.
struct Life {
    machine: Machine,
    recovery: Recovery,
    engine: InOrder,
    now: Duration,
    memory: Memory,
}

impl Life {
    fn begin(disk: &Arc<Disk>, kept: Kept, life: u32) -> Self {
        let mut numbers = Numbers(u64::from(life));
        let entropy = move |bytes: &mut [u8]| {
            bytes.iter_mut().for_each(|byte| *byte = numbers.next() as u8);
        };
        let config = kept.config(life);
        let (machine, recovery) = Machine::open(&**disk, &config, Box::new(entropy)).unwrap();
        let engine = InOrder { disk: Arc::clone(disk), done: Vec::new() };
        let memory = Memory::new(64 << 10, 0).unwrap();
        Self { machine, recovery, engine, now: Duration::ZERO, memory }
    }

    /// Does what can be done at this time.
    fn settle(&mut self) {
        loop {
            self.machine.pump(&mut self.engine, self.now);
            let mut done = Vec::new();
            self.engine.wait(None, &mut done).unwrap();
            if done.is_empty() && !self.machine.has_work() {
                return;
            }
            for done in done {
                self.machine.finished(done, self.now);
            }
            self.machine.work();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn ask(&mut self, op: Op) -> Completion {
        self.machine.accept(op, self.now);
        self.settle();
        let answers: Vec<_> = self.machine.answers().collect();
        let [answer] = <[_; 1]>::try_from(answers).unwrap();
        answer
    }

    fn frame(&self, page_bytes: u32) -> Span {
        self.memory.span(0, frame_bytes(page_bytes) as usize).unwrap()
    }

    fn append(&mut self, number: u64, page_bytes: u32) -> AppendOutcome {
        let payload = self.frame(page_bytes);
        // What lies behind a page in its frame is written too, if it is not encrypted.
        payload.write(|bytes| bytes.fill(0xee));
        let payload_crc = fill(&payload, number, page_bytes);
        let (job, identity, origin) = (JobId(number), identity(number, page_bytes), origin(number));
        match self.ask(Op::Append { job, identity, origin, payload, payload_crc }) {
            Completion::Appended { outcome, .. } => outcome,
            other => panic!("an append was answered with {other:?}"),
        }
    }

    fn store(&mut self, number: u64, page_bytes: u32) -> Stored {
        match self.append(number, page_bytes) {
            AppendOutcome::Written(extent) => Stored { number, page_bytes, extent },
            other => panic!("page {number} was not written: {other:?}"),
        }
    }

    fn relocate(&mut self, stored: &Stored) {
        let (job, identity, extent) = (JobId(0), stored.identity(), stored.extent);
        let origin = origin(stored.number);
        match self.ask(Op::Relocate { job, identity, origin, extent }) {
            Completion::Relocated { outcome: RelocateOutcome::Written(_), .. } => {}
            other => panic!("a relocation was answered with {other:?}"),
        }
    }

    fn free(&mut self, extent: Extent) {
        let Extent { segment, segment_use, .. } = extent;
        match self.ask(Op::FreeSegment { segment, segment_use }) {
            Completion::SegmentFreed { .. } => {}
            other => panic!("a freed segment was answered with {other:?}"),
        }
    }

    fn assert_reads(&mut self, stored: &Stored) {
        let into = self.frame(stored.page_bytes);
        let (job, identity, extent) = (JobId(0), stored.identity(), stored.extent);
        match self.ask(Op::Read { job, identity, extent, into }) {
            Completion::Read { outcome: ReadOutcome::Verified { .. }, into, .. } => {
                assert!(holds(&into, stored.number, stored.page_bytes), "wrong bytes: {stored:?}");
            }
            other => panic!("{stored:?} was answered with {other:?}"),
        }
    }

    fn close(mut self) {
        self.machine.begin_close(self.now);
        while !self.machine.is_quiet() {
            self.pass(A_LITTLE);
        }
    }
}

/// Everything the format knows: segments full, sealed, freed, used again and never closed;
/// batches that are full and that are not, with both their copies; a write that failed, a
/// relocation, a record that no table names.
fn write(kept: Kept) -> Vec<u8> {
    let disk = Arc::new(Disk::default());
    let mut life = Life::begin(&disk, kept, 1);
    if kept == Kept::Turned {
        // Two segments: the second life takes the first of those it gives up.
        life.store(50, 512);
        assert_eq!(life.append(51, FAILING_BYTES), AppendOutcome::Failed);
        life.store(52, 512);
        life.store(53, 4096);
        life.close();
        let mut life = Life::begin(&disk, kept, 2);
        life.store(60, 600);
        life.store(61, 4096);
        life.close();
        return disk.bytes.lock().unwrap().clone();
    }
    for number in 0..31 {
        life.store(number, small(number));
        if number % 4 == 3 {
            life.pass(A_LITTLE);
        }
    }
    let moved = life.store(31, 5000);
    life.store(32, 8192);
    assert_eq!(life.append(33, FAILING_BYTES), AppendOutcome::Failed);
    life.store(34, 512);
    life.relocate(&moved);
    assert_eq!(life.append(35, FAILING_BYTES), AppendOutcome::Failed);
    life.close();

    let mut life = Life::begin(&disk, kept, 2);
    assert_eq!(life.recovery.records.len(), 35);
    let given_up = life.store(40, 512);
    life.free(moved.extent);
    life.free(given_up.extent);
    let given_up = life.store(41, 512);
    life.free(given_up.extent);
    life.store(43, 700);
    life.pass(A_LITTLE);
    life.store(44, 4096);
    life.pass(A_LITTLE);
    life.store(45, 512);
    // And here the process dies.
    disk.bytes.lock().unwrap().clone()
}

/// Two batches, the last of them in the place of the seal that never came; a record is damaged, and
/// the next life has all others prove themselves and seals them.
fn write_mended(kept: Kept) -> Vec<u8> {
    let disk = Arc::new(Disk::default());
    let mut life = Life::begin(&disk, kept, 1);
    for (number, page_bytes) in kept.pages() {
        let stored = life.store(number, page_bytes);
        if stored.extent.record % 3 == 2 {
            life.pass(A_LITTLE);
        }
    }
    // And here it dies. Each record has one block, behind the header's.
    disk.bytes.lock().unwrap()[(64 << 10) + (1 + DAMAGED as usize) * 4096 + 100] ^= 0x10;
    let mut life = Life::begin(&disk, kept, 2);
    assert!(life.recovery.records.iter().all(|record| !record.sealed));
    life.pass(A_LITTLE);
    life.pass(Duration::from_secs(1));
    assert_eq!(life.machine.counters().sealed_segments, 1);
    disk.bytes.lock().unwrap().clone()
}

fn inspect(kept: Kept, directory: &Path, image: &[u8]) -> Inspector {
    let path = directory.join(kept.name());
    fs::write(&path, image).unwrap();
    let mut inspector = Inspector::open(&path).unwrap();
    if kept.encrypted(2) {
        let key = directory.join("store.key");
        fs::write(&key, [0x5a; 32]).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&key, mode).unwrap();
        assert!(inspector.use_key_file(&key).unwrap());
    }
    inspector
}

#[test]
fn the_same_calls_write_the_same_bytes() {
    let mended = MENDED.into_iter().map(|kept| (kept, write_mended(kept)));
    for (kept, now) in WHOLE.into_iter().map(|kept| (kept, write(kept))).chain(mended) {
        let golden = kept.image();
        let differs = now.iter().zip(&golden).position(|(now, golden)| now != golden);
        assert!(now == golden, "{kept:?} differs, first at {differs:?}");
    }
}

#[test]
#[ignore = "writes files into the source tree"]
fn write_the_golden_stores() {
    let mended = MENDED.into_iter().map(|kept| (kept, write_mended(kept)));
    for (kept, image) in WHOLE.into_iter().map(|kept| (kept, write(kept))).chain(mended) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/golden");
        let small = zstd::encode_all(&image[..], 19).unwrap();
        fs::write(directory.join(kept.name()), small).unwrap();
    }
}

#[test]
fn a_late_seal_is_believed_but_for_the_record_that_it_does_not_speak_for() {
    let directory = tempfile::tempdir().unwrap();
    for kept in MENDED {
        let disk = Arc::new(Disk::holding(kept.image()));
        let mut life = Life::begin(&disk, kept, 3);
        let records = life.recovery.records.clone();
        assert_eq!(life.recovery.corrupt_tables, 0);
        assert_eq!(records.len(), 30);
        for (record, (number, page_bytes)) in records.iter().zip(kept.pages()) {
            assert_eq!(record.sealed, record.extent.record != DAMAGED);
            if record.sealed {
                life.assert_reads(&Stored { number, page_bytes, extent: record.extent });
            }
        }
        let inspector = inspect(kept, directory.path(), &kept.image());
        let contents = inspector.segment(SegmentId(0)).unwrap();
        assert_eq!(contents.facts.state, SegmentState::Sealed);
        let doubted = contents.records.iter().filter(|record| !record.sealed);
        assert_eq!(doubted.map(|record| record.record).collect::<Vec<_>>(), [DAMAGED]);
        let verified = inspector.verify(|| {}).unwrap();
        let [damaged] = verified.damaged[..] else { panic!("{verified:?}") };
        assert_eq!((damaged.record, damaged.sealed), (DAMAGED, false));
        assert_eq!((verified.records, verified.damaged_tables), (29, 0));
    }
}

#[test]
fn every_page_of_the_golden_stores_reads() {
    for kept in WHOLE {
        let disk = Arc::new(Disk::default());
        *disk.bytes.lock().unwrap() = kept.image();
        let mut life = Life::begin(&disk, kept, 2);
        let recovery = &life.recovery;
        assert!(!recovery.created && recovery.corrupt_tables == 0, "{recovery:?}");
        assert_eq!(recovery.other_protection, u64::from(kept == Kept::Turned));
        let records = recovery.records.clone();
        let pages = kept.pages();
        assert_eq!(records.len(), pages.len(), "{records:?}");
        for (record, (number, page_bytes)) in records.iter().zip(pages) {
            assert_eq!(record.identity, identity(number, page_bytes), "page {number}");
            assert_eq!(record.origin, origin(number), "page {number}");
            life.assert_reads(&Stored { number, page_bytes, extent: record.extent });
        }
    }
}

#[test]
fn an_inspector_proves_every_record_of_the_golden_stores() {
    let directory = tempfile::tempdir().unwrap();
    for kept in WHOLE {
        let inspector = inspect(kept, directory.path(), &kept.image());
        let facts = inspector.facts();
        assert_eq!(facts.expected_bytes, facts.file_bytes);
        assert_eq!(facts.key_check.is_some(), kept != Kept::Plain);
        let generations = [2, 1].map(|generation| SuperblockCopy::Valid { generation });
        assert_eq!(facts.superblocks, generations);
        let mut pages = kept.pages();
        if kept == Kept::Turned {
            // A daemon gives the plain segment up; who looks at it from outside sees it.
            pages.splice(0..0, [(52, 512), (53, 4096)]);
        }
        let (mut found, mut void) = (Vec::new(), 0);
        for facts in inspector.segments().unwrap() {
            let contents = inspector.segment(facts.segment).unwrap();
            assert_eq!(contents.facts, facts);
            let whole: Vec<_> = contents.records.iter().filter(|record| !record.void).collect();
            assert_eq!(facts.records, whole.len() as u64);
            assert_eq!(facts.void_records, (contents.records.len() - whole.len()) as u64);
            void += facts.void_records;
            for record in whole {
                assert_eq!(inspector.verify_record(&contents, record).unwrap(), None);
                assert_eq!(record.encrypted, facts.encrypted);
                found.push((facts.segment_use, record.record, record.identity));
            }
        }
        found.sort_by_key(|(segment_use, record, _)| (*segment_use, *record));
        let found: Vec<_> = found.into_iter().map(|(_, _, identity)| identity).collect();
        let expected: Vec<_> =
            pages.iter().map(|(number, bytes)| identity(*number, *bytes)).collect();
        assert_eq!(found, expected);
        assert_eq!(void, u64::from(kept != Kept::Turned));
        let verified = inspector.verify(|| {}).unwrap();
        assert!(verified.is_good(), "{verified:?}");
        assert_eq!(verified.records, pages.len() as u64);
        let bytes: u32 = pages.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(verified.page_bytes, u64::from(bytes));
    }
}

#[test]
fn an_inspector_without_the_key_counts_and_reads_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, Kept::Encrypted.image()).unwrap();
    let locked = Inspector::open(&path).unwrap();
    let open = inspect(Kept::Encrypted, directory.path(), &Kept::Encrypted.image());
    for (locked, open) in locked.segments().unwrap().into_iter().zip(open.segments().unwrap()) {
        let taken = matches!(open.state, SegmentState::Sealed | SegmentState::Unsealed);
        assert_eq!(locked.page_bytes.is_none(), taken);
        assert_eq!((locked.state, locked.segment_use), (open.state, open.segment_use));
        // Whether a write failed is under the lock.
        assert_eq!(locked.records, open.records + open.void_records);
    }
    let verified = locked.verify(|| {}).unwrap();
    assert!(!verified.is_good() && verified.locked_segments > 0, "{verified:?}");
    assert_eq!(verified.records, 0);
}

#[test]
fn an_inspector_finds_exactly_what_was_damaged() {
    let directory = tempfile::tempdir().unwrap();
    for kept in [Kept::Plain, Kept::Encrypted] {
        let whole = inspect(kept, directory.path(), &kept.image());
        let contents = whole.segment(SegmentId(0)).unwrap();
        let hit = [3, 17, 30].map(|number: usize| contents.records[number]);
        let mut image = kept.image();
        for (bit, record) in hit.iter().enumerate() {
            image[record.offset as usize + record.identity.page_bytes as usize - 1] ^= 1 << bit;
            // Padding proves nothing.
            image[record.offset as usize + 4095] ^= 1;
        }
        let inspector = inspect(kept, directory.path(), &image);
        let verified = inspector.verify(|| {}).unwrap();
        let found: Vec<_> = verified.damaged.iter().map(|d| (d.segment.0, d.record)).collect();
        assert_eq!(found, [(0, 3), (0, 17), (0, 30)]);
        assert_eq!(verified.damaged_records, 3);
        let rest = Verification { damaged_records: 0, damaged: Vec::new(), ..verified };
        assert!(rest.is_good(), "{rest:?}");
        assert_eq!(rest.records, kept.pages().len() as u64 - 3);

        // A superblock, a header and a table; and the end of the file is gone.
        let mut image = kept.image();
        let facts = inspector.facts();
        let second = (64 << 10) + facts.segment_bytes as usize;
        for at in [100, second + 9, second - 4096 + 77] {
            image[at] ^= 4;
        }
        image.truncate(image.len() - 8192);
        let verified = inspect(kept, directory.path(), &image).verify(|| {}).unwrap();
        assert_eq!(verified.damaged_superblocks, 1);
        assert_eq!((verified.damaged_headers, verified.damaged_tables), (1, 1));
        assert_eq!(verified.missing_bytes, 8192);
        assert!(!verified.is_good());
    }
}

#[test]
fn files_an_inspector_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Inspector::open(&path).unwrap_err()
    };
    assert!(matches!(open(&[]), InspectError::Empty { .. }));
    assert!(matches!(open(&[0; 8192]), InspectError::Empty { .. }));
    let mut torn = [0; 4096];
    torn[4090] = 1;
    assert!(matches!(open(&torn), InspectError::Empty { .. }));
    assert!(matches!(open(&[7; 1 << 17]), InspectError::Foreign { .. }));
    let mut image = Kept::Plain.image();
    image[50] ^= 1;
    image[4096 + 50] ^= 1;
    assert!(matches!(open(&image), InspectError::Damaged { .. }));
    let mut image = Kept::Plain.image();
    image[8] = 9;
    let sum = undercroft_arena::checksum_bytes(&image[..4088]);
    (&mut image[4088..4096]).write_all(&sum.to_le_bytes()).unwrap();
    assert!(matches!(open(&image), InspectError::Version { found: 9, .. }));
    let missing = Inspector::open(&directory.path().join("none")).unwrap_err();
    assert!(matches!(missing, InspectError::Open { .. }));
    let refused = Inspector::open(directory.path()).unwrap_err();
    assert!(matches!(refused, InspectError::NotAFile { .. }));
    for error in [open(&image), missing, refused] {
        assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
    }
}

#[test]
fn a_key_that_is_another_stores_opens_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut inspector = inspect(Kept::Encrypted, directory.path(), &Kept::Encrypted.image());
    let other = directory.path().join("other.key");
    crate::StoreKey::load_or_create(&other).unwrap();
    assert!(!inspector.use_key_file(&other).unwrap());
    assert!(inspector.verify(|| {}).unwrap().locked_segments > 0);
}
