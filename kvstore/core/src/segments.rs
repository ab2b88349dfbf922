use crate::page::{PageId, Ssd};
use crate::{Core, SsdConfig};
use hashbrown::HashMap;
use std::collections::BTreeMap;
use undercroft_wire::{DeviceId, Extent, SegmentId, SegmentUse};

/// What is known of the SSD: which pages lie in which segment, oldest segment first.
#[derive(Debug)]
pub(crate) struct SsdTier {
    /// False once the device is lost.
    pub(crate) usable: bool,
    pub(crate) capacity_bytes: u64,
    pub(crate) low_water_segments: u32,
    pub(crate) free_segments: u32,
    /// Bytes of pages with a record, frames counted whole.
    pub(crate) used_bytes: u64,
    pub(crate) pages: u64,
    pub(crate) segments: BTreeMap<Age, Segment>,
    places: HashMap<(DeviceId, SegmentId), Place>,
    /// The segment being emptied.
    pub(crate) reclaiming: Option<Reclaim>,
    /// Records ever reported in the segments that are in use.
    pub(crate) appended: u64,
    /// What reclaim has spent without dropping anything, twice the records of the segments it
    /// went through. Appends pay it back.
    pub(crate) wasted: u64,
}

/// When a use of a segment began: later uses have larger numbers, whichever is reported first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Age {
    segment_use: SegmentUse,
    device: DeviceId,
    segment: SegmentId,
}

/// One use of a segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) device: DeviceId,
    pub(crate) segment: SegmentId,
    pub(crate) segment_use: SegmentUse,
    /// The newest of its pages; each names its older neighbour.
    pub(crate) newest: Option<PageId>,
    /// Pages whose record lies here.
    pub(crate) records: u32,
    /// Records ever reported here.
    pub(crate) appended: u32,
    /// Reads under way.
    pub(crate) reads: u32,
    /// Relocations under way.
    pub(crate) relocating: u32,
}

/// The segment being emptied, and how far that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reclaim {
    pub(crate) age: Age,
    /// Records that may still be appended anew without being held by anybody.
    pub(crate) budget: u32,
    /// Whether each page was looked at once.
    pub(crate) sorted: bool,
    /// Whether any record was dropped.
    pub(crate) dropped: bool,
    /// Whether the page log was asked to free it.
    pub(crate) freeing: bool,
}

/// The latest use of a segment's position.
#[derive(Debug)]
struct Place {
    segment_use: SegmentUse,
    /// `None` once that use is freed.
    age: Option<Age>,
}

impl SsdTier {
    pub(crate) fn new(config: &SsdConfig) -> Self {
        Self {
            usable: true,
            capacity_bytes: config.capacity_bytes,
            low_water_segments: config.low_water_segments,
            free_segments: config.free_segments,
            used_bytes: 0,
            pages: 0,
            segments: BTreeMap::new(),
            places: HashMap::new(),
            reclaiming: None,
            appended: 0,
            wasted: 0,
        }
    }

    /// The age of the segment a record was reported in; `None` if that use of it is over.
    fn segment_of(&mut self, extent: Extent) -> Option<Age> {
        let at = (extent.device, extent.segment);
        if let Some(place) = self.places.get(&at) {
            match place.age {
                Some(age) if place.segment_use == extent.segment_use => {
                    let freeing = |reclaim: Reclaim| reclaim.age == age && reclaim.freeing;
                    return (!self.reclaiming.is_some_and(freeing)).then_some(age);
                }
                Some(_) => return None,
                None if extent.segment_use <= place.segment_use => return None,
                None => {}
            }
        }
        let segment_use = extent.segment_use;
        let age = Age { segment_use, device: extent.device, segment: extent.segment };
        self.places.insert(at, Place { segment_use, age: Some(age) });
        let segment = Segment {
            device: extent.device,
            segment: extent.segment,
            segment_use,
            newest: None,
            records: 0,
            appended: 0,
            reads: 0,
            relocating: 0,
        };
        self.segments.insert(age, segment);
        Some(age)
    }

    /// The page log has freed a segment.
    pub(crate) fn freed(&mut self, at: (DeviceId, SegmentId), segment_use: SegmentUse) -> bool {
        let Some(reclaim) = self.reclaiming.filter(|reclaim| reclaim.freeing) else {
            return false;
        };
        let segment = &self.segments[&reclaim.age];
        if (segment.device, segment.segment) != at || segment.segment_use != segment_use {
            return false;
        }
        let appended = u64::from(segment.appended);
        self.wasted = if reclaim.dropped { 0 } else { self.wasted + 2 * appended };
        self.appended -= appended;
        self.segments.remove(&reclaim.age);
        self.places.insert(at, Place { segment_use, age: None });
        self.reclaiming = None;
        true
    }
}

impl Core {
    pub(crate) fn ssd_mut(&mut self) -> &mut SsdTier {
        self.ssd.as_mut().expect("SSD jobs are started only where there is an SSD")
    }

    /// Notes the page's record. False if the record lies in a segment that is being freed.
    pub(crate) fn enter_ssd(&mut self, id: PageId, extent: Extent) -> bool {
        let bytes = u64::from(self.frames.class(self.index[id].class).frame_bytes);
        let ssd = self.ssd_mut();
        if !ssd.usable {
            return false;
        }
        let Some(age) = ssd.segment_of(extent) else {
            return false;
        };
        ssd.used_bytes += bytes;
        ssd.pages += 1;
        let segment = ssd.segments.get_mut(&age).expect("just named");
        segment.records += 1;
        segment.appended += 1;
        ssd.appended += 1;
        let older = segment.newest.replace(id);
        if let Some(older) = older {
            self.index[older].newer = Some(id);
        }
        let page = &mut self.index[id];
        assert_eq!(page.ssd, Ssd::None, "a page has one record");
        page.ssd = Ssd::On(extent);
        page.segment = age;
        page.older = older;
        page.newer = None;
        true
    }

    /// Forgets the page's record. The caller settles what becomes of the page.
    pub(crate) fn leave_ssd(&mut self, id: PageId) {
        let page = &mut self.index[id];
        assert!(page.on_ssd(), "only a page with a record can lose it");
        page.ssd = Ssd::None;
        let (older, newer) = (page.older.take(), page.newer.take());
        let (age, class) = (page.segment, page.class);
        if let Some(older) = older {
            self.index[older].newer = newer;
        }
        if let Some(newer) = newer {
            self.index[newer].older = older;
        }
        let bytes = u64::from(self.frames.class(class).frame_bytes);
        let ssd = self.ssd_mut();
        ssd.used_bytes -= bytes;
        ssd.pages -= 1;
        let segment = ssd.segments.get_mut(&age).expect("a record lies in a segment");
        segment.records -= 1;
        if newer.is_none() {
            segment.newest = older;
        }
    }

    /// The pages of a segment, newest first.
    pub(crate) fn segment_pages(&self, age: Age) -> impl Iterator<Item = PageId> + '_ {
        let segment = self.ssd.as_ref().and_then(|ssd| ssd.segments.get(&age));
        let newest = segment.and_then(|segment| segment.newest);
        std::iter::successors(newest, |id| self.index[*id].older)
    }

    /// Every record is gone. Jobs under way report their end and find nothing.
    pub(crate) fn device_lost(&mut self) {
        let Some(ssd) = self.ssd.as_mut() else { return };
        ssd.usable = false;
        let ids: Vec<PageId> = self.index.iter().map(|(id, _)| id).collect();
        for &id in &ids {
            if self.index[id].on_ssd() {
                self.leave_ssd(id);
            }
        }
        let ssd = self.ssd_mut();
        ssd.segments.clear();
        ssd.appended = 0;
        ssd.reclaiming = None;
        for id in ids {
            // Forgetting one page may forget its ancestors with it.
            if self.index.contains(id) {
                self.settle(id);
                self.prune(id);
            }
        }
        let mut waiting: Vec<_> = self.fetches.keys().copied().collect();
        waiting.sort_unstable();
        self.ready.extend(waiting);
        let classes: Vec<_> = self.frames.classes().map(|(class, _)| class).collect();
        for class in classes {
            self.wake(class);
        }
    }
}
