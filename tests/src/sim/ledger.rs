//! What must be on a device: every record the log has said it wrote.

use std::collections::{BTreeMap, HashMap};
use undercroft_wire::{Extent, PageIdentity, SegmentId, SegmentUse};

/// A record that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) identity: PageIdentity,
    /// Whether it must prove itself, unless the device was at fault.
    pub(super) whole: bool,
    /// Whether it was found at start, and so is named by a table.
    pub(super) found: bool,
    /// Whether its segment is encrypted.
    pub(super) encrypted: bool,
    /// Whether it has outlived a power cut, and so is on the medium.
    pub(super) durable: bool,
    /// Whether its segment was sealed when it was found.
    pub(super) sealed: bool,
}

/// The records of one store.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    records: BTreeMap<Extent, Entry>,
    /// Whatever was ever written at a place.
    written: HashMap<Extent, Vec<PageIdentity>>,
}

impl Ledger {
    /// The log says that it wrote a record, which is `kept` unless its segment was given up
    /// meanwhile.
    ///
    /// # Panics
    /// There is one at this place.
    pub(super) fn write(
        &mut self,
        extent: Extent,
        identity: PageIdentity,
        encrypted: bool,
        kept: bool,
    ) {
        self.written.entry(extent).or_default().push(identity);
        if kept {
            let entry = Entry {
                identity,
                whole: true,
                found: false,
                encrypted,
                durable: false,
                sealed: false,
            };
            let before = self.records.insert(extent, entry);
            assert_eq!(before, None, "two records have one place: {extent:?}");
        }
    }

    pub(super) fn get(&self, extent: &Extent) -> Option<Entry> {
        self.records.get(extent).copied()
    }

    pub(super) fn get_mut(&mut self, extent: &Extent) -> Option<&mut Entry> {
        self.records.get_mut(extent)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Extent, Entry)> {
        self.records.iter().map(|(extent, entry)| (*extent, *entry))
    }

    /// A segment is given up.
    pub(super) fn free(&mut self, segment: SegmentId, segment_use: SegmentUse) {
        let kept = |extent: &Extent| (extent.segment, extent.segment_use) != (segment, segment_use);
        self.records.retain(|extent, _| kept(extent));
    }

    /// Whether a record was ever written there with this identity.
    pub(super) fn was_written(&self, extent: &Extent, identity: &PageIdentity) -> bool {
        self.written.get(extent).is_some_and(|written| written.contains(identity))
    }

    /// What was found at start takes the place of what was there before.
    pub(super) fn start_over(&mut self, found: BTreeMap<Extent, Entry>) {
        self.records = found;
    }
}
