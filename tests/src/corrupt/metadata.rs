//! Damage to what describes records, found by opening the store.

use super::kind::Kind;
use super::outcome::{Outcome, Verdict};
use super::record::garble;
use super::store::{
    BLOCK, ENTRIES, ENTRY_AT, ENTRY_BYTES, Life, SECTOR, SEGMENTS_AT, Seen, Store, content,
};
use anyhow::Result;
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use undercroft_arena::checksum_bytes;
use undercroft_ssd_tier::{OpenError, Recovery};
use undercroft_wire::{Extent, PageIdentity, SegmentId};

/// Records looked at that were not hit, each time.
const OTHERS: usize = 4;
/// Where the offset lies in an entry.
const OFFSET_AT: std::ops::Range<usize> = 124..128;

/// What was done, and what follows from it.
#[derive(Debug, Default)]
struct Injury {
    /// Records that must be misses.
    lost: BTreeSet<usize>,
    /// Records that may be.
    doubtful: BTreeSet<usize>,
    /// It must be counted as a damaged table or header.
    counted: bool,
    /// Damaged superblocks that must be counted.
    superblocks: Option<u32>,
    /// The store must be refused, and so set aside.
    refused: bool,
}

/// Does one kind of damage to a store, opens it and reads what was hit and something that was not,
/// and takes everything back.
///
/// # Errors
/// The log answers something that is neither a page nor a miss.
pub(super) fn damage(kind: Kind, store: &Store, rng: &mut Rng) -> Result<Verdict> {
    store.image.begin();
    let injury = inflict(kind, store, rng);
    let verdict = judge(&injury, store, rng);
    store.image.take_back();
    verdict
}

fn judge(injury: &Injury, store: &Store, rng: &mut Rng) -> Result<Verdict> {
    let (mut life, recovery) = match store.open(rng.u64(..)) {
        Ok(opened) => opened,
        Err(OpenError::Damaged { .. } | OpenError::Foreign { .. }) if injury.refused => {
            return Ok(Verdict::from(Outcome::Miss));
        }
        Err(error) => return Ok(Verdict::wrong(format!("it does not open: {error}"))),
    };
    let counts = injury.superblocks.is_none_or(|count| count == recovery.corrupt_superblocks)
        && (!injury.counted || recovery.corrupt_tables > 0);
    if injury.refused || !counts {
        return Ok(Verdict::wrong(format!("the damage was not counted: {injury:?}")));
    }
    if let Some(what) = look(injury, store, &mut life, &recovery, rng)? {
        return Ok(Verdict::wrong(what));
    }
    let harmless = injury.lost.is_empty();
    Ok(Verdict::from(if harmless { Outcome::Harmless } else { Outcome::Miss }))
}

/// Reads what was found; what is wrong with it, if anything.
fn look(
    injury: &Injury,
    store: &Store,
    life: &mut Life,
    recovery: &Recovery,
    rng: &mut Rng,
) -> Result<Option<String>> {
    let found: BTreeMap<Extent, PageIdentity> =
        recovery.records.iter().map(|record| (record.extent, record.identity)).collect();
    for (index, record) in store.records.iter().enumerate() {
        let hit = injury.lost.contains(&index) || injury.doubtful.contains(&index);
        let here = found.get(&record.extent);
        if !hit && here != Some(&record.identity) {
            return Ok(Some(format!("record {index} was not hit and is not found: {injury:?}")));
        }
        if hit && here.is_some() {
            // By its own name. What was found there by another is looked at below.
            let seen = life.read(&record.identity, &record.extent)?;
            let must_miss = injury.lost.contains(&index);
            let may_be_right = !must_miss && !store.is_changed(index);
            if seen != Seen::Miss && !(seen == Seen::Right && may_be_right) {
                return Ok(Some(format!("record {index} is {seen:?}: {injury:?}")));
            }
        }
    }
    let known: BTreeMap<Extent, PageIdentity> =
        store.records.iter().map(|record| (record.extent, record.identity)).collect();
    for (extent, identity) in found.iter().filter(|(at, who)| known.get(*at) != Some(*who)) {
        // An earlier use, or an entry that somebody put there.
        let seen = life.read(identity, extent)?;
        let earlier = !known.contains_key(extent) && content(identity).is_some();
        if seen != Seen::Miss && !(seen == Seen::Right && earlier) {
            return Ok(Some(format!("{identity:?} at {extent:?} is {seen:?}")));
        }
    }
    for _ in 0..OTHERS {
        let other = rng.usize(..store.records.len());
        let record = &store.records[other];
        if !injury.lost.contains(&other) && !injury.doubtful.contains(&other) {
            let seen = life.read(&record.identity, &record.extent)?;
            if seen != Seen::Right {
                return Ok(Some(format!("record {other} was not hit and is {seen:?}")));
            }
        }
    }
    Ok(None)
}

/// A table block: of which segment, and its number from the end.
type Block = (SegmentId, u32);

fn some_block(store: &Store, rng: &mut Rng) -> Block {
    let segment = some_segment(store, rng);
    let records = store.of_segment(segment).count() as u32;
    (segment, rng.u32(..=records.div_ceil(ENTRIES)))
}

fn some_segment(store: &Store, rng: &mut Rng) -> SegmentId {
    store.records[rng.usize(..store.records.len())].extent.segment
}

/// What follows if a table block is not what it was: the records it names are lost. Of a segment
/// that was sealed the last block is the seal, and names none; of one that was not, either of the
/// last two may be a copy of its last batch.
fn without_table(store: &Store, (segment, index): Block) -> Injury {
    let at = store.table_at(segment, index);
    if store.image.look(at, BLOCK, |now| *now == store.pristine[at..at + BLOCK]) {
        return Injury::default();
    }
    let records: Vec<usize> = store.of_segment(segment).collect();
    let batches = (records.len() as u32).div_ceil(ENTRIES);
    let of_batch = |batch: u32| {
        let first = (batch * ENTRIES) as usize;
        records.iter().copied().skip(first).take(ENTRIES as usize).collect()
    };
    let sealed = store.is_sealed(segment);
    if sealed && index == batches {
        Injury::default()
    } else if !sealed && index + 1 >= batches {
        Injury { doubtful: of_batch(batches - 1), ..Injury::default() }
    } else {
        Injury { lost: of_batch(index), ..Injury::default() }
    }
}

fn without_segment(store: &Store, segment: SegmentId) -> Injury {
    let at = store.segment_at(segment);
    if store.image.look(at, BLOCK, |now| *now == store.pristine[at..at + BLOCK]) {
        return Injury::default();
    }
    Injury { lost: store.of_segment(segment).collect(), ..Injury::default() }
}

fn inflict(kind: Kind, store: &Store, rng: &mut Rng) -> Injury {
    match kind {
        Kind::TableBit | Kind::TableSector => {
            let block = some_block(store, rng);
            let bit = kind == Kind::TableBit;
            hurt(store, store.table_at(block.0, block.1), bit, rng);
            let injury = without_table(store, block);
            let counted = bit && !injury.lost.is_empty();
            Injury { counted, ..injury }
        }
        Kind::HeaderBit | Kind::HeaderSector => {
            let segment = some_segment(store, rng);
            let bit = kind == Kind::HeaderBit;
            hurt(store, store.segment_at(segment), bit, rng);
            Injury { counted: bit, ..without_segment(store, segment) }
        }
        Kind::SuperblockBit | Kind::SuperblockSector => {
            hurt_superblocks(store, kind == Kind::SuperblockBit, rng)
        }
        Kind::TableMoved => move_table(store, rng),
        Kind::EntryMoved => move_entry(store, rng),
        Kind::OldTable => {
            let block = some_block(store, rng);
            let at = store.table_at(block.0, block.1);
            store.image.put(at, &store.old[at..at + BLOCK]);
            without_table(store, block)
        }
        Kind::OldHeader => {
            let segment = some_segment(store, rng);
            let at = store.segment_at(segment);
            store.image.put(at, &store.old[at..at + BLOCK]);
            without_segment(store, segment)
        }
        Kind::OldSegment => {
            let segment = some_segment(store, rng);
            let at = store.segment_at(segment);
            store.image.put(at, &store.old[at..at + store.segment_bytes]);
            without_segment(store, segment)
        }
        _ => cut_short(store, rng),
    }
}

/// Flips a bit of a block, or garbles a sector of it.
fn hurt(store: &Store, at: usize, bit: bool, rng: &mut Rng) {
    if bit {
        let bit = rng.usize(..BLOCK * 8);
        let byte = store.pristine[at + bit / 8] ^ (1 << (bit % 8));
        store.image.put(at + bit / 8, &[byte]);
    } else {
        garble(store, at + rng.usize(..BLOCK / SECTOR) * SECTOR, rng);
    }
}

/// One superblock is as good as two; without any the store is refused.
fn hurt_superblocks(store: &Store, bit: bool, rng: &mut Rng) -> Injury {
    let first = rng.usize(..2);
    let both = rng.u8(..8) == 0;
    let copies = if both { vec![0, 1] } else { vec![first] };
    for &copy in &copies {
        hurt(store, copy * BLOCK, bit, rng);
    }
    let hit = |copy: &usize| {
        let at = copy * BLOCK;
        store.image.look(at, BLOCK, |now| *now != store.pristine[at..at + BLOCK])
    };
    let hits = copies.iter().filter(|copy| hit(copy)).count();
    if hits == 2 {
        let lost = (0..store.records.len()).collect();
        return Injury { lost, refused: true, ..Injury::default() };
    }
    Injury { superblocks: Some(hits as u32), ..Injury::default() }
}

/// A table block and its records are copied over others, in the same segment or in another.
fn move_table(store: &Store, rng: &mut Rng) -> Injury {
    let (from, to) = loop {
        let (from, to) = (some_block(store, rng), some_block(store, rng));
        if from != to {
            break (from, to);
        }
    };
    let at = store.table_at(from.0, from.1);
    store.image.put(store.table_at(to.0, to.1), &store.pristine[at..at + BLOCK]);
    let batch = |(segment, index): Block| {
        let skipped = store.of_segment(segment).skip((index * ENTRIES) as usize);
        skipped.take(ENTRIES as usize).collect::<Vec<_>>()
    };
    let mut injury = without_table(store, to);
    for (from, to) in batch(from).into_iter().zip(batch(to)) {
        let (from, bytes) = (store.records[from].at, store.frame_bytes());
        store.image.put(store.records[to].at, &store.pristine[from..from + bytes]);
        injury.lost.insert(to);
    }
    injury
}

/// A record's bytes and its table entry are copied over another's; the entry says where the bytes
/// lie now, and the block has a good CRC. Where the entries are encrypted, the block is damaged by
/// that.
fn move_entry(store: &Store, rng: &mut Rng) -> Injury {
    let sealed = |record: usize| store.is_sealed(store.records[record].extent.segment);
    let (from, to) = loop {
        let some = |rng: &mut Rng| rng.usize(..store.records.len());
        let (from, to) = (some(rng), some(rng));
        if from != to && sealed(to) {
            break (from, to);
        }
    };
    let entry = |record: usize| {
        let extent = store.records[record].extent;
        let block = (extent.segment, extent.record / ENTRIES);
        let slot = ENTRY_AT + (extent.record % ENTRIES) as usize * ENTRY_BYTES;
        (block, store.table_at(block.0, block.1), slot)
    };
    let ((_, source, from_slot), (block, at, slot)) = (entry(from), entry(to));
    let mut table = store.pristine[at..at + BLOCK].to_vec();
    let moved = source + from_slot;
    let offset = table[slot..slot + ENTRY_BYTES][OFFSET_AT].to_vec();
    table[slot..slot + ENTRY_BYTES].copy_from_slice(&store.pristine[moved..moved + ENTRY_BYTES]);
    if !store.shape.encrypted {
        table[slot..slot + ENTRY_BYTES][OFFSET_AT].copy_from_slice(&offset);
    }
    let sum = checksum_bytes(&table[..BLOCK - 8]);
    table[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
    store.image.put(at, &table);
    let (payload, bytes) = (store.records[from].at, store.frame_bytes());
    store.image.put(store.records[to].at, &store.pristine[payload..payload + bytes]);
    if store.shape.encrypted {
        Injury { counted: true, ..without_table(store, block) }
    } else {
        Injury { lost: BTreeSet::from([to]), ..Injury::default() }
    }
}

/// The end of the file is gone.
fn cut_short(store: &Store, rng: &mut Rng) -> Injury {
    let blocks = (store.pristine.len() - SEGMENTS_AT) / BLOCK;
    let end = SEGMENTS_AT + rng.usize(..blocks) * BLOCK;
    store.image.resize(end);
    let mut injury = Injury::default();
    for (index, record) in store.records.iter().enumerate() {
        let segment = record.extent.segment;
        let first_table = store.table_at(segment, 0);
        if end >= first_table + BLOCK {
            continue;
        }
        // Its first table lies last.
        let named_first = record.extent.record < ENTRIES;
        let gone = record.at + store.frame_bytes() > end || store.segment_at(segment) >= end;
        if named_first || gone { &mut injury.lost } else { &mut injury.doubtful }.insert(index);
    }
    injury
}
