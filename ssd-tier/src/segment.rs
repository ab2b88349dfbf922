use crate::cipher::{Cipher, SALT_BYTES};
use crate::format::BLOCK;
use crate::proof::Proof;
use crate::records::Records;
use crate::seal::{LateSeal, LeftOpen};
use undercroft_wire::{SegmentUse, frame_bytes};

/// What is kept in memory of a record: enough to read it and to check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Record {
    /// Where it starts in its segment, in blocks.
    pub(crate) offset_blocks: u32,
    /// Length of the page, bytes; 0 for a record that cannot be read: its write has not
    /// completed or has failed, or its table entry is lost.
    pub(crate) page_bytes: u32,
    /// CRC-64/NVME of the page.
    pub(crate) payload_crc: u64,
    /// Its proof.
    pub(crate) proof: Proof,
}

impl Record {
    /// Whether it can be read.
    pub(crate) fn is_live(&self) -> bool {
        self.page_bytes != 0
    }

    /// Whether it lies behind the header and inside a segment of that size.
    pub(crate) fn is_inside(&self, segment_bytes: u64) -> bool {
        let start = u64::from(self.offset_blocks) * BLOCK;
        start >= BLOCK && start + u64::from(frame_bytes(self.page_bytes)) <= segment_bytes
    }
}

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// May be opened.
    Free,
    /// Is being overwritten with zeros before its first use.
    Zeroing,
    /// Takes records, or its last records and tables are on their way.
    Filling,
    /// Everything is written; waits for the next flush.
    Drained,
    /// Found open at start: it is read and written once more, to be sealed.
    Mending,
    /// Flushed; its seal is on its way.
    Sealing,
    /// Nothing more is written to it: sealed, found at start and not mended yet, or given up after
    /// a failed write.
    Closed,
    /// The header that ends its use is on its way.
    Freeing,
}

/// A segment in memory.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Where it is in its life.
    pub(crate) phase: Phase,
    /// Its present or last use.
    pub(crate) segment_use: SegmentUse,
    /// The keys of that use, and the salt they derive from; `None` where nothing is encrypted.
    pub(crate) cipher: Option<(Cipher, [u8; SALT_BYTES])>,
    /// Table blocks written in that use.
    pub(crate) table_writes: u32,
    /// Its records by number.
    pub(crate) records: Records,
    /// Where its tables lie, if it was found open at start and was not mended yet.
    pub(crate) left_open: Option<LeftOpen>,
    /// The seal it gets, if another process filled it.
    pub(crate) late: Option<LateSeal>,
    /// Nothing was ever written to it, as far as is known.
    pub(crate) untouched: bool,
    /// To be freed as soon as nothing is being written to it.
    pub(crate) free_requested: bool,
}

impl Segment {
    /// A segment without records.
    pub(crate) fn free() -> Self {
        Self {
            phase: Phase::Free,
            segment_use: SegmentUse(0),
            cipher: None,
            table_writes: 0,
            records: Records::default(),
            left_open: None,
            late: None,
            untouched: false,
            free_requested: false,
        }
    }

    /// A segment that has never been used.
    pub(crate) fn untouched() -> Self {
        Self { untouched: true, ..Self::free() }
    }

    /// A segment found at start.
    pub(crate) fn recovered(
        segment_use: SegmentUse,
        cipher: Option<(Cipher, [u8; SALT_BYTES])>,
        records: Records,
        left_open: Option<LeftOpen>,
    ) -> Self {
        Self { phase: Phase::Closed, segment_use, cipher, records, left_open, ..Self::free() }
    }

    /// The keys of its present use, if it is encrypted.
    pub(crate) fn cipher(&self) -> Option<&Cipher> {
        self.cipher.as_ref().map(|(cipher, _)| cipher)
    }

    /// The salt of its present use, if it is encrypted.
    pub(crate) fn salt(&self) -> Option<[u8; SALT_BYTES]> {
        self.cipher.as_ref().map(|(_, salt)| *salt)
    }

    /// The number of the next table block.
    pub(crate) fn next_table_write(&mut self) -> u32 {
        let write = self.table_writes;
        self.table_writes += 1;
        write
    }

    /// Whether any record can be read.
    pub(crate) fn has_live(&self) -> bool {
        self.records.iter().any(Record::is_live)
    }
}
