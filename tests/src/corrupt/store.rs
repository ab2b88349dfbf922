//! A store to be damaged: what is in it, where it lies, and what it answers.

use super::image::{AtOnce, Image};
use anyhow::{Context, Result, bail};
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use undercroft_arena::{Memory, Span, checksum_bytes};
use undercroft_ssd_tier::{
    AppendOutcome, Completion, Engine, LogConfig, Machine, Op, OpenError, ReadOutcome, Recovery,
    StoreKey,
};
use undercroft_wire::{
    DeviceId, DomainId, Extent, JobId, PageIdentity, PageKey, SegmentId, SpaceDigest, frame_bytes,
};

pub(super) const BLOCK: usize = 4096;
pub(super) const SECTOR: usize = 512;
/// Where the first segment lies.
pub(super) const SEGMENTS_AT: usize = 65_536;
/// Records that a table block names, where the first entry lies in it, and how long each is.
pub(super) const ENTRIES: u32 = 23;
pub(super) const ENTRY_AT: usize = 64;
pub(super) const ENTRY_BYTES: usize = 168;
/// Records a segment has room for: two batches, one of them not full.
const SEGMENT_RECORDS: u32 = 40;
/// Of the last segment, so many are used; nobody seals it.
const OPEN_RECORDS: u32 = 31;
/// Longer than a segment waits for its seal.
const A_WHILE: Duration = Duration::from_secs(2);
/// Answers come after fewer turns than this.
const TURNS: u32 = 10_000;

/// What kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) page_bytes: u32,
    pub(super) encrypted: bool,
}

/// A record that is in it.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) identity: PageIdentity,
    pub(super) extent: Extent,
    /// Where it lies in the file.
    pub(super) at: usize,
}

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The bytes of the page that was asked for.
    Right,
    /// It was called that page, and is not.
    Wrong,
    /// A miss, counted as a corrupt record.
    Miss,
    /// A miss that nobody counted.
    Uncounted,
}

/// A log in one of its lives.
#[derive(Debug)]
pub(super) struct Life {
    machine: Machine,
    engine: AtOnce,
    now: Duration,
    frame: Span,
}

/// A store, and the log that is open on it as long as nothing else is said.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) image: Image,
    pub(super) shape: Shape,
    pub(super) records: Vec<Record>,
    pub(super) segment_bytes: usize,
    /// Its bytes now, and when all of its segments were in an earlier use.
    pub(super) pristine: Vec<u8>,
    pub(super) old: Vec<u8>,
    pub(super) life: Life,
    config: LogConfig,
    memory: Memory,
}

/// The page numbered `number`, of one of three domains, each with two spaces.
fn identity(number: u64, page_bytes: u32) -> PageIdentity {
    let owner = (number % 6) as u8;
    let mut key = [7; 32];
    key[..8].copy_from_slice(&number.to_le_bytes());
    let mut parent = key;
    parent[31] = 8;
    PageIdentity {
        domain: DomainId([owner / 2; 16]),
        space: SpaceDigest([owner; 32]),
        key: PageKey(key),
        parent: (!number.is_multiple_of(3)).then_some(PageKey(parent)),
        depth: (number % 3) as u32,
        page_bytes,
    }
}

/// What that page contains; `None` if there never was such a page.
pub(super) fn content(of: &PageIdentity) -> Option<Vec<u8>> {
    let number = u64::from_le_bytes(of.key.0[..8].try_into().ok()?);
    let mut bytes = vec![0; of.page_bytes as usize];
    Rng::with_seed(number).fill(&mut bytes);
    (*of == identity(number, of.page_bytes)).then_some(bytes)
}

impl Store {
    /// Fills a store, empties it and fills it again with other pages; the last segment stays open.
    ///
    /// # Errors
    /// The log does not do as it should, before anything was damaged.
    pub(super) fn build(shape: Shape, device: u8, seed: u64) -> Result<Self> {
        let frame = u64::from(frame_bytes(shape.page_bytes));
        let room = (frame * u64::from(SEGMENT_RECORDS)).max(16 << 10);
        let config = LogConfig {
            device: DeviceId(device),
            segment_bytes: Some(room),
            queue_depth: 2,
            table_flush_ms: 5,
            key: shape.encrypted.then(|| StoreKey::from([0x77; 32])),
            ..LogConfig::new("damaged", room)
        };
        // No two devices have a page in common: nobody could tell one copy from the other.
        let first = u64::from(device) << 32;
        let (image, memory) = (Image::default(), Memory::new(frame, 1)?);
        let open = |life: u64| open(&image, &config, &memory, seed ^ (life << 8));
        // Twice, for one segment is kept free: then each of them has seen a use.
        let mut before = Vec::new();
        for round in 0..2 {
            let (mut life, _) = open(round)?;
            before = life.fill_anew(&before, shape, first + round * 1000, u32::MAX)?;
            life.close()?;
        }
        let old = image.copy();
        let (mut life, _) = open(2)?;
        let used = segments_of(&before) as u32;
        let records = life.fill_anew(&before, shape, first + 2000, used)?;
        let bytes: [u8; 8] = image.look(40, 8, |bytes| bytes.try_into())?;
        let segment_bytes = u64::from_le_bytes(bytes) as usize;
        let record = |(identity, extent): (PageIdentity, Extent)| {
            let slot = BLOCK + extent.record as usize * frame as usize;
            let at = SEGMENTS_AT + extent.segment.0 as usize * segment_bytes + slot;
            Record { identity, extent, at }
        };
        let records: Vec<Record> = records.into_iter().map(record).collect();
        life.pass(Duration::from_millis(10))?;
        life.pass(A_WHILE)?;
        drop(life);
        // The log that answers from here on finds the last segment open.
        let (mut life, recovery) = open(3)?;
        life.settle()?;
        if recovery.records.len() != records.len() {
            bail!("{} of {} records were found", recovery.records.len(), records.len());
        }
        let pristine = image.copy();
        Ok(Self { image, shape, records, segment_bytes, pristine, old, life, config, memory })
    }

    /// Opens it as it is now, in another life.
    pub(super) fn open(&self, seed: u64) -> Result<(Life, Recovery), OpenError> {
        open(&self.image, &self.config, &self.memory, seed)
    }

    /// Where a segment lies in the file.
    pub(super) fn segment_at(&self, segment: SegmentId) -> usize {
        SEGMENTS_AT + segment.0 as usize * self.segment_bytes
    }

    /// Where its table block `index` lies.
    pub(super) fn table_at(&self, segment: SegmentId, index: u32) -> usize {
        self.segment_at(segment) + self.segment_bytes - (index as usize + 1) * BLOCK
    }

    /// Bytes a record takes.
    pub(super) fn frame_bytes(&self) -> usize {
        frame_bytes(self.shape.page_bytes) as usize
    }

    /// The records of a segment.
    pub(super) fn of_segment(&self, segment: SegmentId) -> impl Iterator<Item = usize> + '_ {
        let records = self.records.iter().enumerate();
        records.filter(move |(_, record)| record.extent.segment == segment).map(|(index, _)| index)
    }

    /// Whether a segment was sealed by the process that filled it.
    pub(super) fn is_sealed(&self, segment: SegmentId) -> bool {
        self.records.last().is_some_and(|record| record.extent.segment != segment)
    }

    /// Whether what is stored of a record's page is not what was written.
    pub(super) fn is_changed(&self, record: usize) -> bool {
        let (at, bytes) = (self.records[record].at, self.shape.page_bytes as usize);
        self.image.look(at, bytes, |now| now != &self.pristine[at..at + bytes])
    }

    /// Reads a record in the log that is open all the time.
    ///
    /// # Errors
    /// The log answers something that is neither a page nor a miss.
    pub(super) fn read(&mut self, record: usize) -> Result<Seen> {
        let Record { identity, extent, .. } = &self.records[record];
        self.life.read(identity, extent)
    }
}

fn segments_of(records: &[(PageIdentity, Extent)]) -> usize {
    records.iter().map(|(_, extent)| extent.segment).collect::<BTreeSet<_>>().len()
}

fn open(
    image: &Image,
    config: &LogConfig,
    memory: &Memory,
    seed: u64,
) -> Result<(Life, Recovery), OpenError> {
    let mut rng = Rng::with_seed(seed ^ 0x5a17);
    let entropy = Box::new(move |bytes: &mut [u8]| rng.fill(bytes));
    let (machine, recovery) = Machine::open(image, config, entropy)?;
    let frame = memory.span(0, memory.len())?;
    Ok((Life { machine, engine: AtOnce::on(image), now: Duration::ZERO, frame }, recovery))
}

impl Life {
    fn turn(&mut self) -> Result<bool> {
        self.machine.pump(&mut self.engine, self.now);
        let mut done = Vec::new();
        self.engine.wait(None, &mut done)?;
        let quiet = done.is_empty() && !self.machine.has_work();
        for done in done {
            self.machine.finished(done, self.now);
        }
        self.machine.work();
        Ok(quiet)
    }

    /// Does what can be done at this time.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..TURNS {
            if self.turn()? {
                return Ok(());
            }
        }
        bail!("the log does not come to rest")
    }

    fn pass(&mut self, time: Duration) -> Result<()> {
        self.now += time;
        self.settle()
    }

    fn ask(&mut self, op: Op) -> Result<Completion> {
        self.machine.accept(op, self.now);
        for _ in 0..TURNS {
            if let Some(answer) = self.machine.answers().next() {
                return Ok(answer);
            }
            self.turn()?;
        }
        bail!("the log does not answer")
    }

    /// Appends a page; `None` if there is no room.
    fn append(&mut self, identity: &PageIdentity) -> Result<Option<Extent>> {
        let bytes = content(identity).context("it is a page")?;
        let (payload, identity) = (self.frame.clone(), *identity);
        payload.write(|room| room[..bytes.len()].copy_from_slice(&bytes));
        let payload_crc = checksum_bytes(&bytes);
        match self.ask(Op::Append {
            job: JobId(0),
            identity,
            origin: undercroft_wire::Origin::default(),
            payload,
            payload_crc,
        }) {
            Ok(Completion::Appended { outcome: AppendOutcome::Written(extent), .. }) => {
                Ok(Some(extent))
            }
            // It waits for a segment until its time is up.
            Err(_) => {
                self.pass(Duration::from_secs(5))?;
                self.machine.answers().for_each(drop);
                Ok(None)
            }
            Ok(other) => bail!("an append was answered with {other:?}"),
        }
    }

    /// Frees what is there and fills other segments: as many as there are free, or `segments`, of
    /// which the last stays open.
    fn fill_anew(
        &mut self,
        before: &[(PageIdentity, Extent)],
        shape: Shape,
        first: u64,
        segments: u32,
    ) -> Result<Vec<(PageIdentity, Extent)>> {
        let uses: BTreeMap<_, _> = before.iter().map(|(_, at)| (at.segment_use, *at)).collect();
        for extent in uses.values() {
            self.free(extent)?;
        }
        let mut records = Vec::new();
        for number in first.. {
            let identity = identity(number, shape.page_bytes);
            let Some(extent) = self.append(&identity)? else { break };
            records.push((identity, extent));
            let last = segments_of(&records) as u32 == segments;
            if last && extent.record + 1 == OPEN_RECORDS {
                break;
            }
        }
        Ok(records)
    }

    fn free(&mut self, extent: &Extent) -> Result<()> {
        let Extent { segment, segment_use, .. } = *extent;
        match self.ask(Op::FreeSegment { segment, segment_use })? {
            Completion::SegmentFreed { .. } => Ok(()),
            other => bail!("a freed segment was answered with {other:?}"),
        }
    }

    fn close(mut self) -> Result<()> {
        self.machine.begin_close(self.now);
        self.pass(A_WHILE)
    }

    /// Asks for a page where a record lies.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub(super) fn read(&mut self, identity: &PageIdentity, extent: &Extent) -> Result<Seen> {
        let into = self.frame.sub(0, frame_bytes(identity.page_bytes) as usize)?;
        // Not what the read before left there.
        into.write(|bytes| bytes[..SECTOR].fill(0xee));
        let before = self.machine.counters().corrupt_records;
        let op = Op::Read { job: JobId(0), identity: *identity, extent: *extent, into };
        let Completion::Read { outcome, into, .. } = self.ask(op)? else {
            bail!("a read was answered with something else")
        };
        let counted = self.machine.counters().corrupt_records == before + 1;
        Ok(match outcome {
            ReadOutcome::Verified { payload_crc } => {
                let right = content(identity).is_some_and(|bytes| {
                    let same = into.read(|read| read[..bytes.len()] == bytes);
                    same && payload_crc == checksum_bytes(&bytes)
                });
                if right { Seen::Right } else { Seen::Wrong }
            }
            ReadOutcome::Corrupt if counted => Seen::Miss,
            ReadOutcome::Corrupt => Seen::Uncounted,
            ReadOutcome::Failed => bail!("a read failed on a medium that never fails"),
        })
    }
}
