//! The device: its medium, what is in flight, and what it does wrong.

use super::engine::LyingEngine;
use super::faults::{Atlas, Fault, Region, Tally};
use super::flight::Flight;
use super::lender::Lender;
use super::medium::{Effect, Fate, Medium, SECTOR};
use super::witness::{Sight, Witness};
use fastrand::Rng;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use undercroft_arena::Span;
use undercroft_ssd_tier::Storage;

pub(super) const BLOCK: usize = 4096;

/// How a power cut treats what was not flushed.
#[derive(Debug, Clone, Copy)]
enum Cut {
    KeepsAll,
    DropsAll,
    /// Each write by itself.
    Chooses,
}

/// A device in memory that lies. Cheap to clone: all clones are one device.
#[derive(Debug, Clone)]
pub(crate) struct LyingDisk(Arc<Mutex<State>>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) medium: Medium,
    pub(super) rng: Rng,
    pub(super) atlas: Atlas,
    pub(super) tally: Tally,
    pub(super) witness: Witness,
    pub(super) lender: Lender,
    pub(super) flying: Vec<Flight>,
    /// What was in flight when the process died.
    late: Vec<Flight>,
    /// Regions that hold, or have once returned, something else than they should.
    pub(super) harmed: BTreeSet<Region>,
    /// Virtual time, microseconds.
    pub(super) now: u64,
    /// What a transfer takes at least and at most, microseconds.
    pub(super) latency: Range<u64>,
    /// What a slow one takes.
    pub(super) slowness: Range<u64>,
    /// Transfers that still succeed before the process is cut off.
    dies_after: Option<u32>,
    /// It was.
    died: bool,
    /// Transfers and flushes so far, for those who fail the n-th.
    pub(super) transfers: u64,
    /// Where the last read began.
    pub(super) last_read: u64,
    /// Which transfers fail, and how: see [`LyingDisk::sabotage`].
    pub(super) sabotage: Option<Sabotage>,
}

/// Fails transfers by their number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sabotage {
    /// The first that fails.
    pub(crate) first: u64,
    /// Whether all after it fail too.
    pub(crate) for_good: bool,
    /// How.
    pub(crate) fault: Fault,
}

impl LyingDisk {
    /// An empty device.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            medium: Medium::default(),
            rng: Rng::with_seed(seed),
            atlas: Atlas::default(),
            tally: Tally::default(),
            witness: Witness::default(),
            lender: Lender::default(),
            flying: Vec::new(),
            late: Vec::new(),
            harmed: BTreeSet::new(),
            now: 0,
            latency: 20..300,
            slowness: 1_000..100_000,
            dies_after: None,
            died: false,
            transfers: 0,
            last_read: 0,
            sabotage: None,
        })))
    }

    /// The state; whoever panicked while holding it has found a bug, and only reports follow.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a page log works through.
    pub(crate) fn engine(&self) -> LyingEngine {
        LyingEngine::new(self.clone())
    }

    /// Which faults strike from here on.
    pub(crate) fn set_atlas(&self, atlas: Atlas) {
        self.state().atlas = atlas;
    }

    /// How long transfers take, and slow ones, microseconds.
    pub(crate) fn set_pace(&self, latency: Range<u64>, slowness: Range<u64>) {
        let mut state = self.state();
        (state.latency, state.slowness) = (latency, slowness);
    }

    /// Fails transfers by their number.
    pub(crate) fn sabotage(&self, sabotage: Sabotage) {
        self.state().sabotage = Some(sabotage);
    }

    /// Transfers so far.
    pub(crate) fn transfers(&self) -> u64 {
        self.state().transfers
    }

    /// The process that opens the store is cut off after so many more transfers.
    pub(crate) fn die_after(&self, transfers: u32) {
        self.state().dies_after = Some(transfers);
    }

    /// Ends that; whether the process was cut off.
    pub(crate) fn stop_dying(&self) -> bool {
        let mut state = self.state();
        std::mem::take(&mut state.dies_after);
        std::mem::take(&mut state.died)
    }

    /// What has gone wrong so far.
    pub(crate) fn tally(&self) -> Tally {
        self.state().tally
    }

    /// Whether a region may hold, or may have returned, something else than it should.
    pub(crate) fn has_harmed(&self, region: Region) -> bool {
        self.state().harmed.contains(&region)
    }

    /// Looks at what the device's witness knows.
    pub(crate) fn witness<R>(&self, look: impl FnOnce(&mut Witness) -> R) -> R {
        look(&mut self.state().witness)
    }

    /// Whether the device has any of this memory, or, if only that matters, may write to it.
    pub(crate) fn has_memory(&self, memory: &Span, only_written: bool) -> bool {
        self.state().lender.has(&range_of(memory), only_written)
    }

    /// It is this late, microseconds.
    pub(crate) fn tell_time(&self, now: u64) {
        self.state().now = now;
    }

    /// When the next transfer is over, those of dead processes included.
    pub(crate) fn next_due(&self) -> Option<u64> {
        let state = self.state();
        state.flying.iter().chain(&state.late).map(|flight| flight.due).min()
    }

    /// The first bytes of where the last read began, as they are on the device now.
    pub(crate) fn last_read(&self) -> [u8; SECTOR] {
        let state = self.state();
        let mut bytes = [0; SECTOR];
        state.medium.read(state.last_read as usize, &mut bytes, |_| false);
        bytes
    }

    /// Kills the process: its reads and writes land later or never. Returns when nothing of it can
    /// land any more: only then another one gets the lock.
    pub(crate) fn kill(&self) -> u64 {
        let mut state = self.state();
        let State { flying, late, rng, now, lender, .. } = &mut *state;
        for mut flight in flying.drain(..) {
            if rng.bool() {
                flight.due = flight.due.min(*now + rng.u64(..150_000));
                late.push(flight);
            } else {
                flight.loans().for_each(|memory| lender.give_back(&memory));
            }
        }
        late.iter().map(|flight| flight.due).max().unwrap_or(*now)
    }

    /// Lands what is due of dead processes.
    pub(crate) fn land_late(&self) {
        let mut state = self.state();
        let now = state.now;
        let (due, rest) = std::mem::take(&mut state.late).into_iter().partition(|f| f.due <= now);
        state.late = rest;
        let due: Vec<Flight> = due;
        for flight in due {
            state.land_late(flight);
        }
    }

    /// The process gives up on the device: reads may land later, and what becomes of writes nobody
    /// wants to know.
    pub(crate) fn abandon(&self) {
        let mut state = self.state();
        for flight in std::mem::take(&mut state.flying) {
            if !flight.is_write() {
                state.late.push(flight);
                continue;
            }
            flight.loans().for_each(|memory| state.lender.give_back(&memory));
            if state.rng.bool() {
                state.write_quietly(&flight);
            }
        }
    }

    /// Cuts the power: what is in flight is torn, what was not flushed may be gone.
    pub(crate) fn cut_power(&self) {
        let mut state = self.state();
        let flying = std::mem::take(&mut state.flying);
        let late = std::mem::take(&mut state.late);
        for flight in flying.into_iter().chain(late) {
            flight.loans().for_each(|memory| state.lender.give_back(&memory));
            // On its way: as if it had been done a moment ago and not flushed.
            if flight.is_write() {
                state.write_quietly(&flight);
            }
        }
        let State { medium, rng, tally, .. } = &mut *state;
        let cut = rng.choice([Cut::KeepsAll, Cut::DropsAll, Cut::Chooses]).expect("one of three");
        let keeps_length = rng.bool();
        let mut fate_of = |sectors: usize| match (cut, rng.u8(..3)) {
            (Cut::KeepsAll, _) | (Cut::Chooses, 0) => Fate::Kept,
            (Cut::DropsAll, _) | (Cut::Chooses, 1) => Fate::Dropped,
            _ => Fate::Torn((0..sectors).map(|_| rng.bool()).collect()),
        };
        medium.cut(keeps_length, |sectors| {
            let fate = fate_of(sectors);
            match fate {
                Fate::Kept => {}
                Fate::Dropped => tally.count(Fault::CutDropped),
                Fate::Torn(_) => tally.count(Fault::CutTorn),
            }
            fate
        });
    }

    /// Puts another, empty device in its place. What was in flight is waited for first.
    pub(crate) fn replace(&self) {
        let mut state = self.state();
        assert!(state.flying.is_empty() && state.late.is_empty(), "nothing is in flight");
        state.medium = Medium::default();
        state.harmed.clear();
        state.witness.replaced();
    }
}

/// Where memory lies, for comparison only.
pub(super) fn range_of(memory: &Span) -> Range<usize> {
    let start = memory.as_ptr().addr();
    start..start + memory.len()
}

impl State {
    pub(super) fn region(&self, offset: u64) -> Region {
        self.witness.segment_of(offset)
    }

    /// Whether a fault strikes a transfer at `offset`; if so, it is counted.
    pub(super) fn strikes(&mut self, fault: Fault, offset: u64) -> bool {
        let region = self.region(offset);
        let strikes = self.atlas.strikes(&mut self.rng, fault, region);
        if strikes {
            self.tally.count(fault);
        }
        strikes
    }

    pub(super) fn harm(&mut self, offset: u64, bytes: usize) {
        let last = offset + (bytes as u64).max(1) - 1;
        let (first, last) = (self.region(offset), self.region(last));
        self.harmed.extend([first, last]);
        self.witness.forgetful = true;
    }

    /// A bit may rot somewhere, each time something is done.
    pub(super) fn rot(&mut self) {
        if self.atlas.rates.of(Fault::Rotten) == 0 || self.medium.len() == 0 {
            return;
        }
        let offset = self.rng.u64(..self.medium.len() as u64);
        if self.strikes(Fault::Rotten, offset) {
            let bit = self.rng.usize(..SECTOR * 8);
            self.medium.rot(offset as usize / SECTOR, bit);
            self.harm(offset, 1);
        }
    }

    /// Writes as the atlas has it. Returns what the writer is told.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.rot();
        if self.strikes(Fault::Interrupted, offset) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let room = self.medium.len().saturating_sub(offset as usize);
        if room < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.strikes(Fault::WriteError, offset) {
            let effect = Effect::SaidOnly(self.some(bytes.len()));
            self.harm(offset, bytes.len());
            self.medium.write(offset as usize, bytes, effect);
            return Err(broken());
        }
        let mut moved = bytes.len();
        if bytes.len() > BLOCK && self.strikes(Fault::Short, offset) {
            moved = self.rng.usize(1..bytes.len() / BLOCK) * BLOCK;
        }
        let bytes = &bytes[..moved];
        if self.strikes(Fault::Misdirected, offset)
            && let Some(place) = self.place_beside(offset, moved)
        {
            self.harm(place, moved);
            self.medium.write(place as usize, bytes, Effect::Intruded);
            self.lose(offset, bytes, vec![false; moved / SECTOR]);
        } else if self.strikes(Fault::Lost, offset) {
            self.lose(offset, bytes, vec![false; moved / SECTOR]);
        } else if self.strikes(Fault::Torn, offset) {
            let through = self.some(moved);
            self.lose(offset, bytes, through);
        } else {
            self.medium.write(offset as usize, bytes, Effect::Done);
        }
        Ok(moved)
    }

    fn lose(&mut self, offset: u64, bytes: &[u8], through: Vec<bool>) {
        self.harm(offset, bytes.len());
        self.medium.write(offset as usize, bytes, Effect::SaidOnly(through));
    }

    /// Some sectors of so many bytes.
    fn some(&mut self, bytes: usize) -> Vec<bool> {
        (0..bytes / SECTOR).map(|_| self.rng.bool()).collect()
    }

    /// A place for a write that misses its own; none where the atlas allows none.
    fn place_beside(&mut self, offset: u64, bytes: usize) -> Option<u64> {
        let blocks = (self.medium.len().checked_sub(bytes)? / BLOCK) as u64;
        let near = offset / BLOCK as u64 + self.rng.u64(1..4);
        let anywhere = self.rng.u64(..=blocks);
        let place = if self.rng.bool() { near.min(blocks) } else { anywhere } * BLOCK as u64;
        let last = place + bytes as u64 - 1;
        let allowed = |at| self.atlas.covers(self.region(at));
        (place != offset && allowed(place) && allowed(last)).then_some(place)
    }

    /// Reads as the atlas has it, into memory of its own.
    pub(super) fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.rot();
        if self.strikes(Fault::Interrupted, offset) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.strikes(Fault::ReadError, offset) {
            self.harm(offset, bytes.len());
            return Err(broken());
        }
        let room = self.medium.len().saturating_sub(offset as usize);
        let mut moved = bytes.len().min(room);
        if moved > BLOCK && self.strikes(Fault::Short, offset) {
            moved = self.rng.usize(1..moved / BLOCK) * BLOCK;
        }
        let bytes = &mut bytes[..moved];
        let stale = self.strikes(Fault::Stale, offset);
        let old: Vec<bool> = if stale { self.some(moved) } else { Vec::new() };
        let mut truthful = self.medium.read(offset as usize, bytes, |sector| stale && old[sector]);
        if moved > 0 && self.strikes(Fault::FlippedOnRead, offset) {
            let bit = self.rng.usize(..moved * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            truthful = false;
        }
        if !truthful {
            self.harm(offset, moved);
        }
        Ok(moved)
    }

    /// Ends a flush that covers the first `covers` changes.
    pub(super) fn flush(&mut self, covers: u64) -> io::Result<()> {
        let Self { atlas, rng, medium, tally, .. } = self;
        // Flushes are of no region: only a device that may lie anywhere lies about them.
        if atlas.strikes(rng, Fault::FlushIgnored, None) {
            tally.count(Fault::FlushIgnored);
            let everything = self.medium.len();
            (0..everything).step_by(BLOCK).for_each(|at| self.harm(at as u64, 1));
            return Ok(());
        }
        if atlas.rates.of(Fault::FlushError) > 0
            && rng.u16(..10_000) < atlas.rates.of(Fault::FlushError)
        {
            tally.count(Fault::FlushError);
            medium.fail_flush(covers, || rng.bool());
            return Err(broken());
        }
        medium.end_flush(covers);
        Ok(())
    }

    /// Fails if the process that opens the store is cut off before this transfer.
    fn survives(&mut self) -> io::Result<()> {
        match &mut self.dies_after {
            Some(0) => {
                self.died = true;
                Err(broken())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What [`LyingDisk::sabotage`] wants of this transfer.
    pub(super) fn sabotaged(&mut self) -> Option<Fault> {
        let number = self.transfers;
        self.transfers += 1;
        let strikes = |sabotage: &Sabotage| {
            number == sabotage.first || (sabotage.for_good && number > sabotage.first)
        };
        let fault = self.sabotage.filter(strikes).map(|sabotage| sabotage.fault);
        fault.inspect(|fault| self.tally.count(*fault))
    }
}

fn failure(fault: Fault) -> io::Error {
    match fault {
        Fault::Interrupted => io::ErrorKind::Interrupted.into(),
        Fault::NoSpace => io::ErrorKind::StorageFull.into(),
        _ => broken(),
    }
}

pub(super) fn broken() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

/// What opening goes through: one transfer after the other.
impl Storage for LyingDisk {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.state().medium.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &Span) -> io::Result<usize> {
        let mut state = self.state();
        state.survives()?;
        if let Some(fault) = state.sabotaged() {
            state.harm(offset, into.len());
            // Short beyond measure: nothing at all.
            return if fault == Fault::Short { Ok(0) } else { Err(failure(fault)) };
        }
        into.write(|bytes| state.read(offset, bytes))
    }

    fn write_at(&self, offset: u64, from: &Span) -> io::Result<usize> {
        let mut state = self.state();
        state.survives()?;
        if let Some(fault) = state.sabotaged() {
            state.harm(offset, from.len());
            return if fault == Fault::Short { Ok(0) } else { Err(failure(fault)) };
        }
        from.read(|bytes| {
            // The superblocks come before the length.
            let end = offset as usize + bytes.len();
            if state.medium.len() < end {
                state.medium.resize(end);
            }
            let sight = state.witness.begins(offset, bytes, true);
            assert_eq!(sight, Sight::Other, "opening writes superblocks only");
            state.write(offset, bytes)
        })
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        state.survives()?;
        if state.sabotaged().is_some() {
            return Err(broken());
        }
        let covers = state.medium.begin_flush();
        state.flush(covers)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.survives()?;
        let longer = bytes as usize > state.medium.len();
        if longer && (state.strikes(Fault::NoSpace, 0) || state.sabotaged().is_some()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.medium.resize(bytes as usize);
        Ok(())
    }
}
