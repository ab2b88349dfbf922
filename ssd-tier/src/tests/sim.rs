//! A disk in memory that can fail, and an engine on it that finishes transfers in any order.

use super::rig::Numbers;
use crate::engine::{Done, Engine, Io, Kind};
use crate::format::BLOCK_LEN;
use crate::machine::Machine;
use crate::storage::Storage;
use crate::{LogConfig, OpenError, Recovery};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use undercroft_arena::Span;

/// How often each fault strikes, of 1000 transfers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// The transfer fails and moved a part.
    pub(super) error: u64,
    /// It moves a part, in whole blocks, and says so.
    pub(super) short: u64,
    /// A write that says it was done and was not.
    pub(super) lost: u64,
    /// A write that lands a few blocks beside its place.
    pub(super) misdirected: u64,
    /// A read that returns a flipped bit.
    pub(super) flipped: u64,
}

/// Bytes in memory.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) bytes: Mutex<Vec<u8>>,
    cache: Mutex<Cache>,
}

/// What of the bytes would outlive a power cut.
#[derive(Debug, Default)]
struct Cache {
    medium: Vec<u8>,
    writes: u64,
    /// Blocks that were written and not flushed: by which write, and whether a flush has failed on
    /// it. Then it will never reach the medium, and still reads well.
    dirty: BTreeMap<usize, (u64, bool)>,
}

impl Disk {
    /// A disk with these bytes on its medium.
    pub(super) fn holding(bytes: Vec<u8>) -> Self {
        let cache = Cache { medium: bytes.clone(), ..Cache::default() };
        Self { bytes: bytes.into(), cache: cache.into() }
    }

    /// A flush that began after that many writes is over.
    fn flushed(&self, covers: u64, ok: bool) {
        let bytes = self.bytes.lock().unwrap();
        let mut cache = self.cache.lock().unwrap();
        let Cache { medium, dirty, .. } = &mut *cache;
        medium.resize(bytes.len(), 0);
        dirty.retain(|&block, (write, doomed)| {
            let covered = *write <= covers;
            *doomed |= covered && !ok;
            if covered && !*doomed {
                let block = block * BLOCK_LEN..(block + 1) * BLOCK_LEN;
                medium[block.clone()].copy_from_slice(&bytes[block]);
                return false;
            }
            true
        });
    }

    fn writes(&self) -> u64 {
        self.cache.lock().unwrap().writes
    }

    /// The power is cut: of what was not flushed, some sectors are there and some are not.
    pub(super) fn cut(&self, numbers: &mut Numbers) {
        let mut bytes = self.bytes.lock().unwrap();
        let mut cache = self.cache.lock().unwrap();
        let mut medium = std::mem::take(&mut cache.medium);
        medium.resize(bytes.len(), 0);
        let all = numbers.below(3);
        for (block, (_, doomed)) in std::mem::take(&mut cache.dirty) {
            for sector in block * 8..block * 8 + 8 {
                if !doomed && (all == 0 || (all == 1 && numbers.below(2) == 0)) {
                    let sector = sector * 512..(sector + 1) * 512;
                    medium[sector.clone()].copy_from_slice(&bytes[sector]);
                }
            }
        }
        cache.medium = medium.clone();
        *bytes = medium;
    }
}

impl Storage for Disk {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read_at(&self, offset: u64, into: &Span) -> io::Result<usize> {
        let bytes = self.bytes.lock().unwrap();
        let rest = bytes.get(offset as usize..).unwrap_or(&[]);
        let moved = rest.len().min(into.len());
        into.write(|room| room[..moved].copy_from_slice(&rest[..moved]));
        Ok(moved)
    }

    fn write_at(&self, offset: u64, from: &Span) -> io::Result<usize> {
        let mut bytes = self.bytes.lock().unwrap();
        let (start, end) = (offset as usize, offset as usize + from.len());
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        from.copy_to_slice(&mut bytes[start..end]);
        let mut cache = self.cache.lock().unwrap();
        cache.writes += 1;
        let write = (cache.writes, false);
        let blocks = start / BLOCK_LEN..end.div_ceil(BLOCK_LEN);
        cache.dirty.extend(blocks.map(|block| (block, write)));
        Ok(from.len())
    }

    fn flush(&self) -> io::Result<()> {
        self.flushed(self.writes(), true);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().resize(bytes as usize, 0);
        Ok(())
    }
}

/// An engine on that disk.
pub(super) struct SimEngine {
    disk: Arc<Disk>,
    numbers: Numbers,
    pub(super) faults: Faults,
    /// The device finishes nothing.
    pub(super) stuck: bool,
    /// Reads of this part of the file are not finished.
    pub(super) hung: std::ops::Range<u64>,
    /// Flushes fail.
    pub(super) flushes_fail: bool,
    /// Each with how many writes were over when it began.
    flying: Vec<(Io, u64)>,
}

impl SimEngine {
    pub(super) fn new(disk: Arc<Disk>, seed: u64, faults: Faults) -> Self {
        let (numbers, flying) = (Numbers(seed), Vec::new());
        let hung = 0..0;
        Self { disk, numbers, faults, stuck: false, hung, flushes_fail: false, flying }
    }

    /// Whether only time can bring something.
    pub(super) fn is_idle(&self) -> bool {
        self.flying.iter().all(|(io, _)| io.kind == Kind::Read && self.hung.contains(&io.offset))
    }

    fn strikes(&mut self, of_1000: u64) -> bool {
        self.numbers.below(1000) < of_1000
    }

    fn carry_out(&mut self, io: &Io, covers: u64) -> io::Result<usize> {
        let Some((offset, rest)) = io.rest() else {
            let fails = self.strikes(self.faults.error) || self.flushes_fail;
            self.disk.flushed(covers, !fails);
            return if fails { Err(broken()) } else { Ok(0) };
        };
        let blocks = (rest.len() / BLOCK_LEN) as u64;
        let part = self.numbers.below(blocks) as usize * BLOCK_LEN;
        let part = rest.sub(0, part).unwrap();
        if self.strikes(self.faults.error) {
            self.transfer(io.kind, offset, &part)?;
            return Err(broken());
        }
        if self.strikes(self.faults.short) && !part.is_empty() {
            return self.transfer(io.kind, offset, &part);
        }
        if io.kind == Kind::Write {
            if self.strikes(self.faults.lost) {
                return Ok(rest.len());
            }
            if self.strikes(self.faults.misdirected) {
                let beside = offset + (1 + self.numbers.below(3)) * BLOCK_LEN as u64;
                let limit = self.disk.bytes()? - rest.len() as u64;
                return self.transfer(io.kind, beside.min(limit), &rest);
            }
        }
        let moved = self.transfer(io.kind, offset, &rest)?;
        if io.kind == Kind::Read && self.strikes(self.faults.flipped) {
            let bit = self.numbers.below(moved as u64 * 8) as usize;
            rest.write(|bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        }
        Ok(moved)
    }

    fn transfer(&self, kind: Kind, offset: u64, span: &Span) -> io::Result<usize> {
        if kind == Kind::Read {
            self.disk.read_at(offset, span)
        } else {
            self.disk.write_at(offset, span)
        }
    }

    /// The process dies: of what is in flight, some is done, some is torn, some never happens.
    pub(super) fn die(&mut self) {
        for (io, _) in std::mem::take(&mut self.flying) {
            if let Some((offset, rest)) = io.rest()
                && io.kind == Kind::Write
            {
                let sectors = (rest.len() / 512) as u64 + 1;
                let torn = self.numbers.below(sectors) as usize * 512;
                let kept = match self.numbers.below(3) {
                    0 => 0,
                    1 => torn,
                    _ => rest.len(),
                };
                let kept = rest.sub(0, kept).unwrap();
                self.transfer(Kind::Write, offset, &kept).unwrap();
            }
        }
    }
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Engine for SimEngine {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn start(&mut self, io: Io) {
        self.flying.push((io, self.disk.writes()));
    }

    fn wait(&mut self, _timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        let hangs = |io: &Io| io.kind == Kind::Read && self.hung.contains(&io.offset);
        let (mut moving, hung): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flying).into_iter().partition(|(io, _)| !hangs(io));
        if moving.is_empty() || self.stuck {
            self.flying = moving.into_iter().chain(hung).collect();
            return Ok(());
        }
        let count = 1 + self.numbers.below(moving.len() as u64);
        for _ in 0..count {
            let index = self.numbers.below(moving.len() as u64) as usize;
            let (io, covers) = moving.swap_remove(index);
            let result = self.carry_out(&io, covers);
            done.push(Done { io, result });
        }
        self.flying = moving.into_iter().chain(hung).collect();
        Ok(())
    }
}

/// A log on that disk, in virtual time.
pub(super) struct SimLog {
    pub(super) machine: Machine,
    pub(super) engine: SimEngine,
    pub(super) recovery: Recovery,
    pub(super) now: Duration,
}

impl SimLog {
    pub(super) fn open(
        disk: &Arc<Disk>,
        config: &LogConfig,
        seed: u64,
        faults: Faults,
    ) -> Result<Self, OpenError> {
        let mut numbers = Numbers(seed ^ 0x5eed);
        let entropy = move |bytes: &mut [u8]| {
            bytes.iter_mut().for_each(|byte| *byte = numbers.next() as u8);
        };
        let (machine, recovery) = Machine::open(&**disk, config, Box::new(entropy))?;
        let engine = SimEngine::new(Arc::clone(disk), seed, faults);
        Ok(Self { machine, engine, recovery, now: Duration::ZERO })
    }

    /// One turn of the log's thread, after which a little time has passed.
    pub(super) fn turn(&mut self) {
        self.machine.pump(&mut self.engine, self.now);
        let work = self.machine.has_work();
        let mut done = Vec::new();
        self.engine.wait(None, &mut done).unwrap();
        self.now += Duration::from_micros(100);
        for done in done {
            self.machine.finished(done, self.now);
        }
        if work {
            self.machine.work();
        }
        // Nothing in flight: only time can bring something.
        if self.engine.is_idle()
            && !self.machine.has_work()
            && let Some(due) = self.machine.next_due()
        {
            self.now = self.now.max(due);
        }
    }

    /// Ends in good order.
    pub(super) fn close(mut self) -> Machine {
        self.machine.begin_close(self.now);
        for _ in 0..100_000 {
            self.machine.pump(&mut self.engine, self.now);
            if self.machine.is_quiet() {
                return self.machine;
            }
            self.turn();
        }
        panic!("the log does not come to rest");
    }
}
