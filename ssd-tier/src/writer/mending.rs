//! Segments that were found open at start: what of them is written once more, and their seal.
//!
//! A process that died may have been told that a flush failed, and nobody knows any more. So what
//! it wrote is not sealed as it lies there, however well it reads: header, records and tables are
//! written again, byte for byte as they are, and the flush that precedes the seal covers that.

use super::{ChoreJob, Writer};
use crate::format::{Block, Decoded, FIRST_LATE_WRITE, Late, SegmentHeader, Table, TableEntry};
use crate::proof::Subject;
use crate::seal::{LateSeal, Unproved};
use crate::segment::{Phase, Record};
use std::time::Duration;
use undercroft_wire::{Extent, PageIdentity, SegmentId, SegmentUse};

/// A segment that is being mended.
#[derive(Debug)]
pub(crate) struct Patient {
    pub(crate) segment: SegmentId,
    pub(crate) segment_use: SegmentUse,
    /// Its header, and where that goes in the file.
    pub(crate) header: (u64, Block),
    /// Where its table blocks lie in the file, in the order of their batches.
    pub(crate) tables: Vec<u64>,
}

impl Writer {
    /// A segment that was found open, to be mended: the newest of them, as it will stay the
    /// longest. The caller says [`Writer::end_mending`].
    pub(crate) fn begin_mending(&mut self) -> Option<Patient> {
        debug_assert!(self.mending.is_none(), "one segment is mended at a time");
        while let Some(id) = self.left_open.pop() {
            let segment = &mut self.segments[id.0 as usize];
            if segment.phase != Phase::Closed {
                continue;
            }
            let Some(left_open) = &segment.left_open else { continue };
            let tables = left_open.tables.iter().map(|at| self.layout.table_at(id, *at)).collect();
            segment.phase = Phase::Mending;
            let (segment_use, salt) = (segment.segment_use, segment.salt());
            let header = SegmentHeader { segment: id, segment_use, freed: false, salt };
            let header = (self.layout.segment_at(id), header.encode(self.store));
            self.mending = Some((id, true));
            return Some(Patient { segment: id, segment_use, header, tables });
        }
        None
    }

    /// Whether there may be a segment to be mended.
    pub(crate) fn has_to_mend(&self) -> bool {
        !self.left_open.is_empty()
    }

    /// Whether the segment that is being mended may still be sealed.
    pub(crate) fn goes_on_mending(&self) -> bool {
        let freed = |id: SegmentId| self.segments[id.0 as usize].free_requested;
        self.mending.is_some_and(|(id, sound)| sound && !freed(id))
    }

    /// The segment that is being mended will not be sealed: a flush has failed, and what was written
    /// again before it is as doubtful as what was there; or the seal could not say what it must.
    pub(crate) fn give_up_mending(&mut self) {
        if let Some((_, sound)) = &mut self.mending {
            *sound = false;
        }
    }

    /// The entries of a table block as it was read from batch number `batch` of the segment that is
    /// being mended, each with its record and its number; `None` if it is not what was found at
    /// start.
    pub(crate) fn entries_to_mend(
        &self,
        patient: &Patient,
        batch: usize,
        block: &Block,
    ) -> Option<Vec<(Extent, TableEntry, Record)>> {
        let (segment, segment_use) = (patient.segment, patient.segment_use);
        let decoded = Table::decode(block, self.store, segment, segment_use, self.cipher(segment));
        let Decoded::Valid(table) = decoded else { return None };
        let state = &self.segments[segment.0 as usize];
        let place = state.left_open.as_ref()?.tables.get(batch)?;
        if table.sealed || !table.may_lie_at(*place) {
            return None;
        }
        let first = table.batch * crate::format::ENTRIES_PER_TABLE as u32;
        let mut live = Vec::new();
        for (record, entry) in (first..).zip(table.entries) {
            let known = *state.records.get(record)?;
            if !known.is_live() {
                continue;
            }
            let named = Record {
                offset_blocks: entry.offset_blocks,
                page_bytes: entry.identity.page_bytes,
                payload_crc: entry.payload_crc,
                proof: entry.proof,
            };
            if named != known {
                return None;
            }
            let extent = Extent { device: self.device, segment, segment_use, record };
            live.push((extent, entry, known));
        }
        Some(live)
    }

    /// Has the stored bytes of a record prove themselves. If they do, they are the stored bytes
    /// afterwards, made anew where they are encrypted.
    pub(crate) fn mend(
        &self,
        identity: &PageIdentity,
        extent: &Extent,
        record: &Record,
        bytes: &mut [u8],
    ) -> bool {
        let (position, payload_crc) = (self.position(extent), record.payload_crc);
        let subject = Subject { identity, position, payload_crc };
        let cipher = self.cipher(extent.segment);
        subject.open(cipher, &record.proof, bytes)
            // The same page under the same key and nonce: the same bytes, or they are not written.
            && cipher.is_none_or(|cipher| subject.seal_in_place(cipher, bytes) == record.proof)
    }

    /// The segment is mended: once it was flushed it is sealed, but for the records that did not
    /// prove themselves. Or it could not be (`None`), and stays as it is.
    pub(crate) fn end_mending(&mut self, unproved: Option<Unproved>, now: Duration) {
        let goes_on = self.goes_on_mending();
        let (id, _) = self.mending.take().expect("a segment is being mended");
        let segment = &mut self.segments[id.0 as usize];
        let left_open = segment.left_open.take().expect("only such are mended");
        segment.phase = Phase::Closed;
        if segment.free_requested {
            return self.end_use(id);
        }
        if let Some(unproved) = unproved.filter(|_| goes_on) {
            segment.late = Some(LateSeal { at: left_open.seal_at, unproved });
            segment.phase = Phase::Drained;
            self.drain(id, now);
        }
    }

    /// The seal of a segment that another process filled.
    pub(super) fn late_seal(&mut self, id: SegmentId, late: LateSeal) -> ChoreJob {
        let segment_use = self.segments[id.0 as usize].segment_use;
        let mut nonce = [0; 12];
        match &mut self.ciphers {
            Some(ciphers) => nonce = ciphers.late_nonce(),
            None => nonce[..4].copy_from_slice(&((self.next_use.0 >> 32) as u32).to_le_bytes()),
        }
        let [a, b, c, d, nonce @ ..] = nonce;
        let write = u32::from_le_bytes([a, b, c, d]) | FIRST_LATE_WRITE;
        let LateSeal { at: batch, unproved } = late;
        let late = Some(Late { nonce, unproved });
        let entries = Vec::new();
        let table = Table { segment: id, segment_use, batch, write, sealed: true, entries, late };
        let job = crate::draft::TableJob { index: batch, table };
        ChoreJob { chore: super::Chore::Seal(id), write: self.table_block(&job) }
    }
}
