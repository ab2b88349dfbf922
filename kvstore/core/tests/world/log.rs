//! A page log that remembers identities only.

use std::collections::{BTreeMap, VecDeque};
use undercroft_core::RecoveredRecord;
use undercroft_wire::{DeviceId, Extent, PageIdentity, SegmentId, SegmentUse};

pub(crate) const DEVICE: DeviceId = DeviceId(0);

/// Segments of a fixed number of records. The last free segment is kept for relocations.
pub(crate) struct Log {
    records: u32,
    free: VecDeque<SegmentId>,
    /// Uses are numbered over all segments.
    next_use: u64,
    /// The segment being written and how many records it has.
    open: Option<(SegmentId, SegmentUse, u32)>,
    by_extent: BTreeMap<Extent, PageIdentity>,
    order: Vec<Extent>,
    pub(crate) to_free: Vec<(SegmentId, SegmentUse)>,
}

impl Log {
    pub(crate) fn new(segments: u32, records: u32) -> Self {
        Self {
            records,
            free: (0..segments).map(SegmentId).collect(),
            next_use: 1,
            open: None,
            by_extent: BTreeMap::new(),
            order: Vec::new(),
            to_free: Vec::new(),
        }
    }

    pub(crate) fn free_segments(&self) -> u32 {
        self.free.len() as u32
    }

    pub(crate) fn record(&self, extent: Extent) -> Option<PageIdentity> {
        self.by_extent.get(&extent).copied()
    }

    pub(crate) fn append(&mut self, identity: PageIdentity, relocates: bool) -> Option<Extent> {
        if self.open.is_none_or(|(_, _, used)| used == self.records) {
            if self.free.len() < 2 && !relocates {
                return None;
            }
            let segment = self.free.pop_front()?;
            self.open = Some((segment, SegmentUse(self.next_use), 0));
            self.next_use += 1;
        }
        let (segment, segment_use, used) = self.open.as_mut()?;
        let (device, record) = (DEVICE, *used);
        let extent = Extent { device, segment: *segment, segment_use: *segment_use, record };
        *used += 1;
        self.by_extent.insert(extent, identity);
        self.order.push(extent);
        Some(extent)
    }

    pub(crate) fn free(&mut self, segment: SegmentId, segment_use: SegmentUse) {
        assert!(segment_use.0 < self.next_use, "only a use that began can end");
        let open = self.open.is_some_and(|(open, _, _)| open == segment);
        assert!(!open, "the segment being written is not freed");
        let gone = |extent: &Extent| extent.segment == segment;
        self.by_extent.retain(|extent, _| !gone(extent));
        self.order.retain(|extent| !gone(extent));
        let free = self.free.contains(&segment);
        assert!(!free, "a segment is freed once");
        self.free.push_back(segment);
    }

    /// Loses a record without anybody being told.
    pub(crate) fn damage(&mut self, extent: Extent) {
        self.by_extent.remove(&extent);
        self.order.retain(|other| *other != extent);
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        &self.order
    }

    /// What a scan at start finds, in the order of appending.
    pub(crate) fn recover(&self) -> Vec<RecoveredRecord> {
        let found = self.order.iter().map(|extent| RecoveredRecord {
            identity: self.by_extent[extent],
            extent: *extent,
            payload_crc: 0,
            sealed: true,
        });
        found.collect()
    }
}
