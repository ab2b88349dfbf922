//! Every record reads and proves itself, offline.

use super::{InspectError, Inspector, RecordFacts, SegmentContents, SegmentState, SuperblockCopy};
use crate::format::{BLOCK, Position};
use crate::proof::{Proof, Subject};
use crate::storage::{block_memory, read_padded};
use undercroft_arena::Span;
use undercroft_wire::{SegmentId, SegmentUse, frame_bytes};

/// Damaged records that are kept by name; the others are counted.
const NAMED: usize = 1000;

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Its bytes do not agree with its proof.
    Corrupt,
    /// Its table puts it outside its segment.
    Outside,
    /// It cannot be read.
    Unreadable,
}

/// A record that did not prove itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedRecord {
    /// Its segment.
    pub segment: SegmentId,
    /// Which use of it.
    pub segment_use: SegmentUse,
    /// Whether the seal of that use speaks for it: any other may have been lost by a power cut.
    pub sealed: bool,
    /// Its number.
    pub record: u32,
    /// What is wrong.
    pub damage: Damage,
}

/// What a whole store proved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verification {
    /// Segments looked at.
    pub segments: u64,
    /// Records that are their pages.
    pub records: u64,
    /// Bytes of those pages.
    pub page_bytes: u64,
    /// Records that are not.
    pub damaged_records: u64,
    /// The first 1000 of them, in the order of the file.
    pub damaged: Vec<DamagedRecord>,
    /// Table blocks that do not prove themselves; what they named is lost.
    pub damaged_tables: u64,
    /// Segment headers that do not prove themselves; what was in those segments is lost.
    pub damaged_headers: u64,
    /// Segments whose header or tables cannot be read.
    pub unreadable_segments: u64,
    /// Copies of the superblock that are not whole, of two.
    pub damaged_superblocks: u64,
    /// Bytes missing at the end of the file.
    pub missing_bytes: u64,
    /// Encrypted segments that no key was given for: nothing is known of their records.
    pub locked_segments: u64,
}

impl Verification {
    /// Whether everything proved itself.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let Self { segments, records, page_bytes, .. } = *self;
        *self == Self { segments, records, page_bytes, ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.segments += other.segments;
        self.records += other.records;
        self.page_bytes += other.page_bytes;
        self.damaged_records += other.damaged_records;
        let room = NAMED - self.damaged.len();
        self.damaged.extend(other.damaged.into_iter().take(room));
        self.damaged_tables += other.damaged_tables;
        self.damaged_headers += other.damaged_headers;
        self.unreadable_segments += other.unreadable_segments;
        self.locked_segments += other.locked_segments;
    }
}

impl Inspector {
    /// Reads every record and lets it prove itself, several segments at a time; after each
    /// segment, `progress` is called. Hold the [lock](Inspector::lock) meanwhile, or what a
    /// daemon does looks like damage.
    ///
    /// # Errors
    /// No memory.
    pub fn verify(&self, progress: impl Fn() + Sync) -> Result<Verification, InspectError> {
        let parts = self.each_segment(|segment, chunk| {
            let part = self.verify_segment(segment, chunk);
            progress();
            part
        })?;
        let mut sum = Verification::default();
        for part in parts {
            sum.add(part?);
        }
        let whole = |copy: &&SuperblockCopy| matches!(copy, SuperblockCopy::Valid { .. });
        let facts = self.facts();
        sum.damaged_superblocks = 2 - facts.superblocks.iter().filter(whole).count() as u64;
        sum.missing_bytes = facts.expected_bytes.saturating_sub(facts.file_bytes);
        Ok(sum)
    }

    /// Reads one record of a segment and lets it prove itself; what is wrong with it, if anything.
    ///
    /// # Errors
    /// No memory.
    pub fn verify_record(
        &self,
        contents: &SegmentContents,
        record: &RecordFacts,
    ) -> Result<Option<Damage>, InspectError> {
        self.prove(contents, record, &mut None)
    }

    fn verify_segment(
        &self,
        segment: SegmentId,
        chunk: &Span,
    ) -> Result<Verification, InspectError> {
        let contents = self.read_segment(segment, chunk);
        let facts = contents.facts;
        let mut sum = Verification {
            segments: 1,
            damaged_tables: facts.damaged_tables,
            damaged_headers: u64::from(facts.state == SegmentState::Damaged),
            unreadable_segments: u64::from(facts.state == SegmentState::Unreadable),
            locked_segments: u64::from(facts.page_bytes.is_none()),
            ..Verification::default()
        };
        let mut memory = None;
        for record in contents.records.iter().filter(|record| !record.void) {
            match self.prove(&contents, record, &mut memory)? {
                None => {
                    sum.records += 1;
                    sum.page_bytes += u64::from(record.identity.page_bytes);
                }
                Some(damage) => {
                    sum.damaged_records += 1;
                    if sum.damaged.len() < NAMED {
                        sum.damaged.push(DamagedRecord {
                            segment,
                            segment_use: facts.segment_use.unwrap_or_default(),
                            sealed: record.sealed,
                            record: record.record,
                            damage,
                        });
                    }
                }
            }
        }
        Ok(sum)
    }

    fn prove(
        &self,
        contents: &SegmentContents,
        record: &RecordFacts,
        memory: &mut Option<Span>,
    ) -> Result<Option<Damage>, InspectError> {
        if !record.inside {
            return Ok(Some(Damage::Outside));
        }
        let identity = &record.identity;
        let bytes = frame_bytes(identity.page_bytes) as usize;
        let room = match memory.take().filter(|room| room.len() >= bytes) {
            Some(room) => room,
            None => block_memory(bytes as u64 / BLOCK)?,
        };
        let room = memory.insert(room);
        let frame = room.sub(0, bytes)?;
        if read_padded(&self.medium, record.offset, &frame).is_err() {
            return Ok(Some(Damage::Unreadable));
        }
        let facts = &contents.facts;
        let position = Position {
            store: self.head.store,
            segment: facts.segment,
            segment_use: facts.segment_use.unwrap_or_default(),
            record: record.record,
        };
        let subject = Subject { identity, position, payload_crc: record.payload_crc };
        let page = frame.sub(0, identity.page_bytes as usize)?;
        let proved =
            page.write(|bytes| subject.open(contents.cipher.as_ref(), &Proof(record.proof), bytes));
        Ok((!proved).then_some(Damage::Corrupt))
    }
}
