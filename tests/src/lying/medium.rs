//! What a disk should hold, and what it holds instead.

use std::collections::{BTreeMap, BTreeSet};

/// What a power cut tears between, and what a fault strikes at least, bytes.
pub(super) const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const SECTORS: usize = BLOCK / SECTOR;

type Sector = [u8; SECTOR];

/// Bytes of a disk of fixed length.
///
/// `said` is what the disk has said it holds; `lies` are the sectors that hold something else.
/// What was not flushed yet is kept in order, with what the medium had in its place before.
#[derive(Debug, Default)]
pub(super) struct Medium {
    said: Vec<Option<Box<[u8; BLOCK]>>>,
    lies: BTreeMap<usize, Sector>,
    /// What sectors held before they last changed.
    older: BTreeMap<usize, Sector>,
    unflushed: Vec<Change>,
    /// Below what was not flushed: what was said, and what was held.
    durable: BTreeMap<usize, (Sector, Sector)>,
    changes: u64,
    /// The length as of the last flush, blocks.
    durable_blocks: usize,
}

/// What a write did.
#[derive(Debug)]
struct Change {
    number: u64,
    first: usize,
    bytes: Vec<u8>,
    effect: Effect,
    /// A flush failed on it: it is in no cache any more, and will never reach the medium.
    doomed: bool,
}

/// What becomes of the bytes of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// They are there.
    Done,
    /// The disk says so, and has only these sectors of them.
    SaidOnly(Vec<bool>),
    /// They are there and should not be: they belong elsewhere.
    Intruded,
}

/// What a power cut does to a write that was not flushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Dropped,
    /// Only these sectors of it got through.
    Torn(Vec<bool>),
}

impl Medium {
    pub(super) fn len(&self) -> usize {
        self.said.len() * BLOCK
    }

    /// Gives it another length; what is new is zero.
    pub(super) fn resize(&mut self, bytes: usize) {
        let blocks = bytes.div_ceil(BLOCK);
        self.said.resize(blocks, None);
        let end = blocks * SECTORS;
        let beyond = |change: &Change| change.first + change.bytes.len() / SECTOR > end;
        self.unflushed.retain(|change| !beyond(change));
        self.lies.split_off(&end);
        self.older.split_off(&end);
        self.durable.split_off(&end);
    }

    fn said_sector(&self, sector: usize) -> Sector {
        let at = sector % SECTORS * SECTOR;
        match &self.said[sector / SECTORS] {
            Some(block) => block[at..at + SECTOR].try_into().expect("a sector of a block"),
            None => [0; SECTOR],
        }
    }

    fn held_sector(&self, sector: usize) -> Sector {
        self.lies.get(&sector).copied().unwrap_or_else(|| self.said_sector(sector))
    }

    fn set(&mut self, sector: usize, said: &Sector, held: &Sector) {
        let before = self.held_sector(sector);
        if before != *held {
            self.older.insert(sector, before);
        }
        let block = self.said[sector / SECTORS].get_or_insert_with(|| Box::new([0; BLOCK]));
        let at = sector % SECTORS * SECTOR;
        block[at..at + SECTOR].copy_from_slice(said);
        if held == said {
            self.lies.remove(&sector);
        } else {
            self.lies.insert(sector, *held);
        }
    }

    fn apply(&mut self, change: &Change, through: impl Fn(usize) -> bool) {
        for (index, bytes) in change.bytes.chunks_exact(SECTOR).enumerate() {
            let sector = change.first + index;
            if !through(index) {
                continue;
            }
            let bytes: &Sector = bytes.try_into().expect("a chunk is a sector");
            match &change.effect {
                Effect::Done => self.set(sector, bytes, bytes),
                Effect::SaidOnly(held) if !held[index] => {
                    let held = self.held_sector(sector);
                    self.set(sector, bytes, &held);
                }
                Effect::SaidOnly(_) => self.set(sector, bytes, bytes),
                Effect::Intruded => {
                    let said = self.said_sector(sector);
                    self.set(sector, &said, bytes);
                }
            }
        }
    }

    /// Writes whole sectors inside the disk.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8], effect: Effect) {
        assert!(at.is_multiple_of(SECTOR) && bytes.len().is_multiple_of(SECTOR), "whole sectors");
        assert!(at + bytes.len() <= self.len(), "a write lies inside the disk");
        let first = at / SECTOR;
        for sector in first..first + bytes.len() / SECTOR {
            let now = (self.said_sector(sector), self.held_sector(sector));
            self.durable.entry(sector).or_insert(now);
        }
        self.changes += 1;
        let number = self.changes;
        let change = Change { number, first, bytes: bytes.to_vec(), effect, doomed: false };
        self.apply(&change, |_| true);
        self.unflushed.push(change);
    }

    /// Reads whole sectors, `stale` ones as they were before they last changed. Returns whether
    /// the bytes are what was said to be there.
    pub(super) fn read(
        &self,
        at: usize,
        into: &mut [u8],
        mut stale: impl FnMut(usize) -> bool,
    ) -> bool {
        let mut truthful = true;
        for (index, bytes) in into.chunks_exact_mut(SECTOR).enumerate() {
            let sector = at / SECTOR + index;
            let older = self.older.get(&sector).filter(|_| stale(index));
            let held = older.copied().unwrap_or_else(|| self.held_sector(sector));
            truthful &= held == self.said_sector(sector);
            bytes.copy_from_slice(&held);
        }
        truthful
    }

    /// A bit flips in what a sector holds, on the medium.
    pub(super) fn rot(&mut self, sector: usize, bit: usize) {
        let (said, mut held) = (self.said_sector(sector), self.held_sector(sector));
        held[bit / 8] ^= 1 << (bit % 8);
        self.set(sector, &said, &held);
        if let Some((_, held)) = self.durable.get_mut(&sector) {
            held[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// What a flush that begins now covers.
    pub(super) fn begin_flush(&self) -> u64 {
        self.changes
    }

    /// A flush is over: what it covers is on the medium.
    pub(super) fn end_flush(&mut self, covers: u64) {
        self.durable_blocks = self.said.len();
        let (covered, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.unflushed)
            .into_iter()
            .partition(|change| change.number <= covers && !change.doomed);
        self.unflushed = rest;
        for change in covered {
            for (index, bytes) in change.bytes.chunks_exact(SECTOR).enumerate() {
                let sector = change.first + index;
                let (said, held) = self.durable.get_mut(&sector).expect("noted by the write");
                let bytes: Sector = bytes.try_into().expect("a chunk is a sector");
                match &change.effect {
                    Effect::Intruded => *held = bytes,
                    Effect::SaidOnly(through) if !through[index] => *said = bytes,
                    _ => (*said, *held) = (bytes, bytes),
                }
            }
        }
        let sectors = |change: &Change| change.first..change.first + change.bytes.len() / SECTOR;
        let open: BTreeSet<usize> = self.unflushed.iter().flat_map(sectors).collect();
        self.durable.retain(|sector, _| open.contains(sector));
    }

    /// A flush has failed: of what it covered, the changes chosen are given up.
    pub(super) fn fail_flush(&mut self, covers: u64, mut gives_up: impl FnMut() -> bool) {
        for change in self.unflushed.iter_mut().filter(|change| change.number <= covers) {
            change.doomed |= gives_up();
        }
    }

    /// The power is gone: what was not flushed meets its fate, and what is left is on the medium.
    pub(super) fn cut(&mut self, keeps_length: bool, mut fate: impl FnMut(usize) -> Fate) {
        for (sector, (said, held)) in std::mem::take(&mut self.durable) {
            self.set(sector, &said, &held);
        }
        for change in std::mem::take(&mut self.unflushed) {
            let sectors = change.bytes.len() / SECTOR;
            match fate(sectors) {
                _ if change.doomed => {}
                Fate::Kept => self.apply(&change, |_| true),
                Fate::Dropped => {}
                Fate::Torn(through) => self.apply(&change, |index| through[index]),
            }
        }
        if !keeps_length && self.durable_blocks < self.said.len() {
            self.resize(self.durable_blocks * BLOCK);
        }
        self.durable_blocks = self.said.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Medium {
        let mut medium = Medium::default();
        medium.resize(2 * BLOCK);
        medium.end_flush(0);
        medium
    }

    fn read(medium: &Medium, at: usize) -> (u8, bool) {
        let mut bytes = [0; SECTOR];
        let truthful = medium.read(at, &mut bytes, |_| false);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a sector is whole");
        (bytes[0], truthful)
    }

    #[test]
    fn lies_are_known_until_they_are_overwritten() {
        let mut medium = disk();
        medium.write(0, &[1; BLOCK], Effect::Done);
        medium.write(0, &[2; BLOCK], Effect::SaidOnly(vec![false; SECTORS]));
        medium.write(BLOCK, &[3; SECTOR], Effect::Intruded);
        assert_eq!(read(&medium, 0), (1, false));
        assert_eq!(read(&medium, BLOCK), (3, false));
        assert_eq!(read(&medium, BLOCK + SECTOR), (0, true));
        medium.rot(9, 0);
        let mut bytes = [0; SECTOR];
        assert!(!medium.read(BLOCK + SECTOR, &mut bytes, |_| false));
        assert_eq!(bytes[0], 1);
        medium.write(0, &[4; BLOCK], Effect::Done);
        assert_eq!(read(&medium, 0), (4, true));
        let mut bytes = [0; SECTOR];
        assert!(!medium.read(0, &mut bytes, |_| true));
        assert_eq!(bytes, [1; SECTOR], "a stale read sees what was held before");
    }

    #[test]
    fn a_cut_takes_what_was_not_flushed_and_nothing_else() {
        for fate in [Fate::Kept, Fate::Dropped, Fate::Torn(vec![true, false])] {
            let mut medium = disk();
            medium.write(0, &[1; 2 * SECTOR], Effect::Done);
            let covers = medium.begin_flush();
            medium.write(0, &[2; 2 * SECTOR], Effect::Done);
            medium.end_flush(covers);
            medium.cut(true, |_| fate.clone());
            let expected = match fate {
                Fate::Kept => (2, 2),
                Fate::Dropped => (1, 1),
                Fate::Torn(_) => (2, 1),
            };
            assert_eq!((read(&medium, 0).0, read(&medium, SECTOR).0), expected);
            assert!(read(&medium, 0).1, "what a cut takes is no lie");
        }
    }

    #[test]
    fn what_a_failed_flush_gave_up_is_gone_after_a_cut() {
        let mut medium = disk();
        medium.write(0, &[1; SECTOR], Effect::Done);
        medium.fail_flush(medium.begin_flush(), || true);
        medium.end_flush(medium.begin_flush());
        assert_eq!(read(&medium, 0).0, 1, "it is in the cache still");
        medium.cut(true, |_| Fate::Kept);
        assert_eq!(read(&medium, 0).0, 0);
    }

    #[test]
    fn a_cut_may_take_the_length() {
        let mut medium = disk();
        medium.resize(4 * BLOCK);
        medium.write(3 * BLOCK, &[1; SECTOR], Effect::Done);
        medium.cut(false, |_| Fate::Kept);
        assert_eq!(medium.len(), 2 * BLOCK);
        medium.resize(4 * BLOCK);
        assert_eq!(read(&medium, 3 * BLOCK), (0, true));
    }
}
