//! A small log in a temporary directory, and pages whose bytes follow from their number.

use crate::engine::Engine;
use crate::{
    AppendOutcome, Completion, EngineChoice, LogConfig, Op, PageLog, ReadOutcome, Recovery,
    RelocateOutcome, StoreKey,
};
use crossbeam_channel::{Receiver, unbounded};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use undercroft_arena::{Part, PartOptions, Span, checksum_bytes};
use undercroft_wire::{
    DomainId, Extent, JobId, Origin, PageIdentity, PageKey, PartId, PurgeId, SegmentId, SegmentUse,
    SpaceDigest, frame_bytes,
};

/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Frames of the rig's part.
const FRAMES: u64 = 64;
const FRAME: u64 = 64 << 10;

/// Numbers without a pattern, the same each time (SplitMix64).
#[derive(Debug, Clone)]
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Where page `number` comes from: no two are the same.
pub(super) fn origin(number: u64) -> Origin {
    let number = number as u32;
    Origin { writer: 1000 + number, born: 1_700_000_000 + number, purge: PurgeId(number / 7) }
}

/// The page numbered `number`: every field of its identity follows from the number.
pub(super) fn identity(number: u64, page_bytes: u32) -> PageIdentity {
    let bytes = |salt: u64| {
        let mut numbers = Numbers(number.wrapping_mul(31) ^ salt);
        let mut bytes = [0; 32];
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&numbers.next().to_le_bytes()));
        bytes
    };
    let parent = number.checked_sub(1).filter(|_| !number.is_multiple_of(5));
    PageIdentity {
        domain: DomainId([7; 16]),
        space: SpaceDigest(bytes(1 << 40)),
        key: PageKey(bytes(0)),
        parent: parent.map(|_| PageKey(bytes(2 << 40))),
        depth: (number % 5) as u32,
        page_bytes,
    }
}

/// The bytes of that page: no two blocks of any two pages are alike.
pub(super) fn content(number: u64, page_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0; page_bytes as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Puts a page into a frame and returns its checksum.
pub(super) fn fill(frame: &Span, number: u64, page_bytes: u32) -> u64 {
    let bytes = content(number, page_bytes);
    frame.write(|room| room[..bytes.len()].copy_from_slice(&bytes));
    checksum_bytes(&bytes)
}

/// Whether a frame holds that page.
pub(super) fn holds(frame: &Span, number: u64, page_bytes: u32) -> bool {
    frame.read(|room| room[..page_bytes as usize] == content(number, page_bytes))
}

/// A page in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) number: u64,
    pub(super) page_bytes: u32,
    pub(super) extent: Extent,
}

impl Stored {
    pub(super) fn identity(&self) -> PageIdentity {
        identity(self.number, self.page_bytes)
    }
}

/// What a contract is asked of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) engine: EngineChoice,
    pub(super) encrypted: bool,
}

impl From<EngineChoice> for Setting {
    fn from(engine: EngineChoice) -> Self {
        Self { engine, encrypted: true }
    }
}

/// The key of all test logs.
pub(super) fn key() -> StoreKey {
    StoreKey::from([0x5a; 32])
}

/// Six segments with room for four pages of 4 KiB each, two transfers at once.
pub(super) fn tiny(path: &Path, setting: impl Into<Setting>) -> LogConfig {
    let Setting { engine, encrypted } = setting.into();
    LogConfig {
        key: encrypted.then(key),
        segment_bytes: Some(16 << 10),
        queue_depth: 2,
        table_flush_ms: 5,
        engine,
        ..LogConfig::new(path, 64 << 10)
    }
}

/// An open log and its answers.
pub(super) struct Rig {
    pub(super) log: PageLog,
    pub(super) recovery: Recovery,
    answers: Receiver<Completion>,
    part: Arc<Part>,
    jobs: u64,
}

impl Rig {
    pub(super) fn open(config: LogConfig) -> Self {
        Self::open_through(config, |engine| engine)
    }

    /// A log with something between it and its engine.
    pub(super) fn open_through(
        config: LogConfig,
        wrap: impl FnOnce(Box<dyn Engine>) -> Box<dyn Engine> + Send + 'static,
    ) -> Self {
        let options = PartOptions::default();
        let (part, _facts) = Part::create(PartId(0), FRAMES * FRAME, &options).unwrap();
        let part = Arc::new(part);
        let (sender, answers) = unbounded();
        let sink = Box::new(move |answer| drop(sender.send(answer)));
        let memory = vec![Arc::clone(&part)];
        let prepared = PageLog::prepare(config).unwrap();
        let (log, recovery) = prepared.start_through(memory, sink, wrap).unwrap();
        Self { log, recovery, answers, part, jobs: 0 }
    }

    pub(super) fn frame(&self, index: u64, page_bytes: u32) -> Span {
        self.part.span(index % FRAMES * FRAME, frame_bytes(page_bytes) as usize).unwrap()
    }

    pub(super) fn job(&mut self) -> JobId {
        self.jobs += 1;
        JobId(self.jobs)
    }

    /// The number of the newest job.
    pub(super) fn jobs(&self) -> u64 {
        self.jobs
    }

    pub(super) fn submit(&self, op: Op) {
        let mut op = op;
        while let Err(refused) = self.log.submit(op) {
            op = refused;
            std::thread::yield_now();
        }
    }

    /// The next answer to an operation.
    pub(super) fn answer(&self) -> Completion {
        loop {
            match self.answers.recv_timeout(PATIENCE).expect("an answer comes in time") {
                Completion::Health { .. } => {}
                answer => return answer,
            }
        }
    }

    pub(super) fn start_append(&mut self, number: u64, page_bytes: u32) {
        let payload = self.frame(number, page_bytes);
        let payload_crc = fill(&payload, number, page_bytes);
        let (job, identity, origin) = (self.job(), identity(number, page_bytes), origin(number));
        self.submit(Op::Append { job, identity, origin, payload, payload_crc });
    }

    pub(super) fn append(&mut self, number: u64, page_bytes: u32) -> AppendOutcome {
        self.start_append(number, page_bytes);
        match self.answer() {
            Completion::Appended { outcome, .. } => outcome,
            other => panic!("an append was answered with {other:?}"),
        }
    }

    pub(super) fn store(&mut self, number: u64, page_bytes: u32) -> Stored {
        match self.append(number, page_bytes) {
            AppendOutcome::Written(extent) => Stored { number, page_bytes, extent },
            other => panic!("page {number} was not written: {other:?}"),
        }
    }

    pub(super) fn read_as(
        &mut self,
        identity: PageIdentity,
        extent: Extent,
    ) -> (ReadOutcome, Span) {
        let into = self.frame(self.jobs, identity.page_bytes);
        into.write(|bytes| bytes.fill(0xee));
        let job = self.job();
        self.submit(Op::Read { job, identity, extent, into });
        match self.answer() {
            Completion::Read { outcome, into, .. } => (outcome, into),
            other => panic!("a read was answered with {other:?}"),
        }
    }

    /// Reads a page and checks that what is called verified is it.
    pub(super) fn read(&mut self, stored: &Stored) -> ReadOutcome {
        let (outcome, into) = self.read_as(stored.identity(), stored.extent);
        if let ReadOutcome::Verified { payload_crc } = outcome {
            assert!(holds(&into, stored.number, stored.page_bytes), "wrong bytes for {stored:?}");
            assert_eq!(payload_crc, checksum_bytes(&content(stored.number, stored.page_bytes)));
        }
        outcome
    }

    pub(super) fn assert_reads(&mut self, stored: &Stored) {
        let outcome = self.read(stored);
        assert!(matches!(outcome, ReadOutcome::Verified { .. }), "{stored:?} is {outcome:?}");
    }

    pub(super) fn relocate(&mut self, stored: &Stored) -> RelocateOutcome {
        let (job, identity, extent) = (self.job(), stored.identity(), stored.extent);
        let origin = origin(stored.number);
        self.submit(Op::Relocate { job, identity, origin, extent });
        match self.answer() {
            Completion::Relocated { outcome, .. } => outcome,
            other => panic!("a relocation was answered with {other:?}"),
        }
    }

    pub(super) fn prove(&mut self, stored: &Stored) -> ReadOutcome {
        let (job, identity, extent) = (self.job(), stored.identity(), stored.extent);
        self.submit(Op::Prove { job, identity, extent });
        match self.answer() {
            Completion::Proved { outcome, .. } => outcome,
            other => panic!("a proof was answered with {other:?}"),
        }
    }

    pub(super) fn free(&mut self, segment: SegmentId, segment_use: SegmentUse) -> u32 {
        self.submit(Op::FreeSegment { segment, segment_use });
        match self.answer() {
            Completion::SegmentFreed { free_segments, .. } => free_segments,
            other => panic!("a freed segment was answered with {other:?}"),
        }
    }

    /// Waits until every record written so far is in a table.
    pub(super) fn wait_for_tables(&self) {
        let mut before = self.log.counters().table_writes;
        loop {
            std::thread::sleep(Duration::from_millis(60));
            let now = self.log.counters().table_writes;
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// The numbers of the recovered pages among `known`, in order of appending.
    pub(super) fn recovered(&self, known: &[Stored]) -> Vec<u64> {
        let find = |record: &crate::RecoveredRecord| {
            let stored = known.iter().find(|stored| stored.extent == record.extent).unwrap();
            assert_eq!(record.identity, stored.identity());
            assert_eq!(record.origin, origin(stored.number));
            let crc = checksum_bytes(&content(stored.number, stored.page_bytes));
            assert_eq!(record.payload_crc, crc);
            stored.number
        };
        self.recovery.records.iter().map(find).collect()
    }
}
