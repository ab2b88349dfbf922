//! A page log that remembers identities only.

use super::Spec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use undercroft_core::{DeviceState, Health, RecoveredRecord};
use undercroft_wire::{
    DeviceId, Extent, Origin, PageIdentity, PageKey, PurgeId, PurgeScope, SegmentId, SegmentUse,
};

/// Segments of a fixed number of records. The last free segment is kept for relocations.
pub(crate) struct Log {
    pub(crate) device: DeviceId,
    pub(crate) health: Health,
    pub(crate) state: DeviceState,
    records: u32,
    free: VecDeque<SegmentId>,
    /// Uses are numbered over all segments.
    next_use: u64,
    /// The segment being written and how many records it has.
    open: Option<(SegmentId, SegmentUse, u32)>,
    by_extent: BTreeMap<Extent, PageIdentity>,
    origins: BTreeMap<Extent, Origin>,
    /// What was purged, for good.
    pub(crate) purges: Vec<(PurgeScope, PurgeId)>,
    /// Records lost without anybody being told.
    damaged: BTreeMap<Extent, PageIdentity>,
    order: Vec<Extent>,
    /// Records found at start in a segment that was open, until they have proved themselves.
    unproved: BTreeSet<Extent>,
    pub(crate) to_free: Vec<(SegmentId, SegmentUse)>,
}

impl Log {
    /// An empty log that has not told yet that it is empty.
    pub(crate) fn new(device: DeviceId, segments: u32, records: u32) -> Self {
        Self {
            device,
            health: Health::Well,
            state: DeviceState::Recovering,
            records,
            free: (0..segments).map(SegmentId).collect(),
            next_use: 1,
            open: None,
            by_extent: BTreeMap::new(),
            origins: BTreeMap::new(),
            purges: Vec::new(),
            damaged: BTreeMap::new(),
            order: Vec::new(),
            unproved: BTreeSet::new(),
            to_free: Vec::new(),
        }
    }

    pub(crate) fn answers(&self) -> bool {
        let does = matches!(self.health, Health::Well | Health::ReadOnly);
        does && self.state != DeviceState::Lost
    }

    pub(crate) fn takes_appends(&self) -> bool {
        self.health == Health::Well && self.state == DeviceState::Ready
    }

    pub(crate) fn free_segments(&self) -> u32 {
        self.free.len() as u32
    }

    pub(crate) fn record(&self, extent: Extent) -> Option<PageIdentity> {
        self.by_extent.get(&extent).copied()
    }

    /// Whether a core that knows all it was told may think that the page can be read here.
    pub(crate) fn may_seem_to_have(&self, is_it: impl Fn(&PageIdentity) -> bool) -> bool {
        let records = self.by_extent.iter().chain(&self.damaged);
        let mut counted = records.filter(|(extent, _)| !self.unproved.contains(extent));
        self.answers() && counted.any(|(_, identity)| is_it(identity))
    }

    pub(crate) fn append(
        &mut self,
        identity: PageIdentity,
        origin: Origin,
        relocates: bool,
    ) -> Option<Extent> {
        if self.open.is_none_or(|(_, _, used)| used == self.records) {
            if self.free.len() < 2 && !relocates {
                return None;
            }
            let segment = self.free.pop_front()?;
            self.open = Some((segment, SegmentUse(self.next_use), 0));
            self.next_use += 1;
        }
        let (segment, segment_use, used) = self.open.as_mut()?;
        let (device, record) = (self.device, *used);
        let extent = Extent { device, segment: *segment, segment_use: *segment_use, record };
        *used += 1;
        self.by_extent.insert(extent, identity);
        self.origins.insert(extent, origin);
        self.order.push(extent);
        Some(extent)
    }

    pub(crate) fn free(&mut self, segment: SegmentId, segment_use: SegmentUse) {
        assert!(segment_use.0 < self.next_use, "only a use that began can end");
        let open = self.open.is_some_and(|(open, _, _)| open == segment);
        assert!(!open, "the segment being written is not freed");
        let gone = |extent: &Extent| extent.segment == segment;
        self.by_extent.retain(|extent, _| !gone(extent));
        self.damaged.retain(|extent, _| !gone(extent));
        self.unproved.retain(|extent| !gone(extent));
        self.order.retain(|extent| !gone(extent));
        let free = self.free.contains(&segment);
        assert!(!free, "a segment is freed once");
        self.free.push_back(segment);
    }

    /// Loses a record without anybody being told.
    pub(crate) fn damage(&mut self, extent: Extent) {
        if let Some(identity) = self.by_extent.remove(&extent) {
            self.damaged.insert(extent, identity);
        }
    }

    /// None of what lies here was ever sealed.
    pub(crate) fn unseal(&mut self) {
        self.unproved.extend(&self.order);
    }

    /// These were never sealed.
    pub(crate) fn doubt(&mut self, extents: impl Iterator<Item = Extent>) {
        self.unproved.extend(extents);
    }

    /// Takes records for written that nobody wrote.
    pub(crate) fn believe(&mut self, records: &[RecoveredRecord]) {
        for record in records {
            self.by_extent.insert(record.extent, record.identity);
            self.order.push(record.extent);
            self.free.retain(|segment| *segment != record.extent.segment);
            self.next_use = self.next_use.max(record.extent.segment_use.0 + 1);
        }
    }

    /// Forgets that records were damaged: they are as good as never written.
    pub(crate) fn mend(&mut self) {
        self.damaged.clear();
    }

    /// Whether a record was purged after it was written.
    fn is_purged(&self, extent: &Extent, page: &PageIdentity) -> bool {
        let origin = self.origins.get(extent).copied().unwrap_or_default();
        self.purges.iter().any(|(scope, id)| {
            origin.purge < *id && scope.means(page.domain, page.space, origin.writer)
        })
    }

    pub(crate) fn has(&self, space: &Spec, key: &PageKey) -> bool {
        self.is_among(&self.by_extent, space, key)
    }

    pub(crate) fn is_torn(&self, space: &Spec, key: &PageKey) -> bool {
        self.is_among(&self.damaged, space, key)
    }

    fn is_among(
        &self,
        records: &BTreeMap<Extent, PageIdentity>,
        space: &Spec,
        key: &PageKey,
    ) -> bool {
        records.iter().any(|(extent, page)| {
            space.is_of(page) && page.key == *key && !self.is_purged(extent, page)
        })
    }

    /// Reads a record; whatever comes of it, it is proved or disproved then.
    pub(crate) fn prove(&mut self, extent: Extent) -> Option<PageIdentity> {
        self.unproved.remove(&extent);
        self.record(extent)
    }

    /// The records that can be read, in the order of appending.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        self.order.iter().filter(|extent| self.by_extent.contains_key(extent)).copied().collect()
    }

    /// The same log after a crash: what was damaged is found too, as tables tell of it. The
    /// segment that was being written is not written to again, and those of its records that
    /// `torn` names never reached the medium.
    pub(crate) fn crash(mut self, torn: impl Fn(u32) -> bool) -> Self {
        let open = self.open.take();
        let was_open = |extent: &&Extent| open.is_some_and(|open| open.1 == extent.segment_use);
        self.unproved.extend(self.order.iter().filter(was_open));
        for extent in self.unproved.clone() {
            if torn(extent.record) {
                self.damage(extent);
            }
        }
        self.to_free.clear();
        self.health = Health::Well;
        self.state = DeviceState::Recovering;
        self
    }

    /// What a scan at start finds, in the order of appending.
    pub(crate) fn recover(&self) -> Vec<RecoveredRecord> {
        let found = self.order.iter().filter_map(|extent| {
            let identity = self.by_extent.get(extent).or_else(|| self.damaged.get(extent))?;
            let (extent, sealed) = (*extent, !self.unproved.contains(extent));
            let origin = self.origins.get(&extent).copied().unwrap_or_default();
            let purged = self.is_purged(&extent, identity);
            let identity = *identity;
            Some(RecoveredRecord { identity, origin, extent, payload_crc: 0, sealed, purged })
        });
        found.collect()
    }
}
