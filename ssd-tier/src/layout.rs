//! Where things lie in the file: sizes and offsets, no I/O.

use crate::format::{BLOCK, ENTRIES_PER_TABLE};
use crate::{LogConfig, OpenError};
use undercroft_wire::SegmentId;

/// Where the first segment starts. The superblocks lie before it.
pub(crate) const DATA_START: u64 = 64 << 10;
/// Bounds of the room a segment gets when the configuration names none.
const DEFAULT_ROOM: std::ops::RangeInclusive<u64> = (4 << 20)..=(256 << 20);
/// How many segments the default size aims at.
const DEFAULT_SEGMENTS: u64 = 64;
/// Bounds of a configured room.
const ROOM: std::ops::RangeInclusive<u64> = (16 << 10)..=(4 << 30);
/// Beside the room for the capacity: one segment that is being filled, one that only relocations
/// may open, and two that appends go on with while the next one is being emptied.
const SPARE_SEGMENTS: u64 = 4;
/// Pages at least this large find the whole room of a segment; smaller ones pay for their table
/// entries out of it.
const TABLE_PAGE_BYTES: u64 = 64 << 10;
const MAX_SEGMENTS: u64 = 1 << 22;

/// The shape of a store, as its superblock records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes a segment takes in the file: header, records, tables.
    pub(crate) segment_bytes: u64,
    /// Bytes of records a segment was sized for.
    pub(crate) room_bytes: u64,
    /// Number of segments.
    pub(crate) segments: u32,
}

impl Layout {
    /// The shape a new store gets.
    pub(crate) fn new(config: &LogConfig) -> Result<Self, OpenError> {
        let capacity = config.capacity_bytes;
        if capacity == 0 {
            return Err(OpenError::Config {
                field: "capacity_bytes",
                found: 0,
                allowed: "1 or more",
            });
        }
        let room_bytes = match config.segment_bytes {
            Some(found) if !ROOM.contains(&found) => {
                let allowed = "16 KiB to 4 GiB";
                return Err(OpenError::Config { field: "segment_bytes", found, allowed });
            }
            Some(room) => room,
            None => (capacity / DEFAULT_SEGMENTS)
                .next_power_of_two()
                .clamp(*DEFAULT_ROOM.start(), *DEFAULT_ROOM.end()),
        }
        .next_multiple_of(BLOCK);
        let records = (room_bytes / TABLE_PAGE_BYTES).max(1);
        let segment_bytes = BLOCK + room_bytes + table_room(records as u32);
        let segments = Self::segments_for(capacity, room_bytes)?;
        Ok(Self { segment_bytes, room_bytes, segments })
    }

    /// The same store with room for another capacity: segments are added or dropped at the end.
    pub(crate) fn resized(self, capacity: u64) -> Result<Self, OpenError> {
        Ok(Self { segments: Self::segments_for(capacity, self.room_bytes)?, ..self })
    }

    fn segments_for(capacity: u64, room: u64) -> Result<u32, OpenError> {
        let segments = capacity.div_ceil(room).saturating_add(SPARE_SEGMENTS);
        if segments > MAX_SEGMENTS {
            return Err(OpenError::Config {
                field: "capacity_bytes",
                found: capacity,
                allowed: "at most 4,194,302 segments; choose larger ones",
            });
        }
        Ok(segments as u32)
    }

    /// Whether a shape read from disk can be one.
    pub(crate) fn is_sane(&self) -> bool {
        let blocks = |bytes: u64| bytes.is_multiple_of(BLOCK) && bytes <= 2 * *ROOM.end();
        blocks(self.segment_bytes)
            && blocks(self.room_bytes)
            && self.room_bytes >= *ROOM.start()
            && self.segment_bytes >= self.room_bytes + 3 * BLOCK
            && u64::from(self.segments) <= MAX_SEGMENTS
            && self.segments > 0
    }

    /// Bytes of the whole file.
    pub(crate) fn file_bytes(&self) -> u64 {
        DATA_START + u64::from(self.segments) * self.segment_bytes
    }

    /// Where a segment starts in the file.
    pub(crate) fn segment_at(&self, segment: SegmentId) -> u64 {
        debug_assert!(segment.0 < self.segments, "{segment} of {}", self.segments);
        DATA_START + u64::from(segment.0) * self.segment_bytes
    }

    /// Where the table block `index` of a segment lies: they grow from the end backwards.
    pub(crate) fn table_at(&self, segment: SegmentId, index: u32) -> u64 {
        self.segment_at(segment) + self.segment_bytes - (u64::from(index) + 1) * BLOCK
    }

    /// Whether a record of `stored` bytes at `offset` leaves room for the tables of a segment
    /// that then has `records` records.
    pub(crate) fn fits(&self, offset: u64, stored: u64, records: u32) -> bool {
        offset + stored + table_room(records) <= self.segment_bytes
    }

    /// The most table blocks a segment can have.
    pub(crate) fn max_tables(&self) -> u32 {
        ((self.segment_bytes / BLOCK) as u32 - 1).div_ceil(ENTRIES_PER_TABLE as u32) + 1
    }
}

/// Bytes of tables for `records` records: full batches, and one block that takes first the other
/// copy of a batch that is not full yet and at last the seal.
pub(crate) fn table_room(records: u32) -> u64 {
    (u64::from(records).div_ceil(ENTRIES_PER_TABLE as u64) + 1) * BLOCK
}
