use crate::Core;
use crate::listed::{Listed, SegmentNumbers};
use crate::page::{OnSsd, Page, PageId, SegmentAt, Ssd};
use crate::stats::DeviceState;
use crate::worth::Cutoffs;
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use undercroft_wire::{DeviceId, Extent, SegmentId, SegmentUse};

/// Which pages lie in which segment of one device, oldest segment first.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// Bytes of pages with a record, frames counted whole.
    pub(crate) used_bytes: u64,
    pub(crate) pages: u64,
    by_age: BTreeMap<Age, Segment>,
    places: HashMap<SegmentId, Place>,
    /// Those found at start without any page's record in them, to be freed at once: the page log
    /// never appends to what it found, and keeps it until it is told.
    empty: BTreeSet<Age>,
    /// How many there are, the free ones included, once all records were told. The page log may
    /// use some that nobody has heard of yet.
    pub(crate) total: Option<u64>,
    /// The segment being emptied.
    pub(crate) reclaiming: Option<Reclaim>,
    /// What of it is cold.
    pub(crate) cutoffs: Cutoffs,
    /// The last of those that were looked at for one to empty, and of which too much is held.
    pub(crate) passed: Option<Age>,
    /// Its pages that are to be relocated, as soon as fewer relocations are under way.
    pub(crate) to_move: VecDeque<Move>,
    /// Records ever reported in the segments that are in use.
    pub(crate) appended: u64,
    /// What reclaim has spent without dropping anything, twice the records of the segments it
    /// went through. Appends pay it back.
    pub(crate) wasted: u64,
}

/// When a use of a segment began: of one device's segments, later uses have larger numbers,
/// whichever is reported first. Numbers of different devices cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Age {
    pub(crate) segment_use: SegmentUse,
    pub(crate) segment: SegmentId,
}

/// One use of a segment.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Its number among those of all devices.
    pub(crate) at: SegmentAt,
    /// When it was first heard of, among the segments of all devices. Only tells which of two
    /// devices' segments are older; a device's own are in the order of their [`Age`].
    pub(crate) born: u64,
    /// The pages whose record lies here.
    pub(crate) listed: Listed,
    /// How many these are.
    pub(crate) records: u32,
    /// Records ever reported here.
    pub(crate) appended: u32,
    /// Whether it was found at start.
    pub(crate) found: bool,
    /// Reads and proofs under way.
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
    /// Pages that may still be looked at below those that are dropped.
    pub(crate) looks: usize,
    /// Whether each page was looked at once.
    pub(crate) sorted: bool,
    /// Whether any record was dropped.
    pub(crate) dropped: bool,
    /// Whether the page log was asked to free it.
    pub(crate) freeing: bool,
}

impl Reclaim {
    /// Of a segment that has no record any more.
    pub(crate) fn of_empty(age: Age) -> Self {
        Self { age, budget: 0, looks: 0, sorted: true, dropped: true, freeing: false }
    }
}

/// A page to be appended anew. It may be gone, or have lost this record, when its turn comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move {
    pub(crate) page: PageId,
    pub(crate) extent: Extent,
    /// Whether reclaim's budget paid for it.
    pub(crate) paid: bool,
}

/// The latest use of a segment's position.
#[derive(Debug)]
struct Place {
    segment_use: SegmentUse,
    /// False once that use is freed.
    in_use: bool,
}

impl Age {
    /// The age of the segment a record lies in.
    pub(crate) fn of(extent: Extent) -> Self {
        Self { segment_use: extent.segment_use, segment: extent.segment }
    }
}

impl Segment {
    fn new(at: SegmentAt, born: u64) -> Self {
        Self {
            at,
            born,
            listed: Listed::default(),
            records: 0,
            appended: 0,
            found: false,
            reads: 0,
            relocating: 0,
        }
    }

    /// Whether something under way needs it to stay.
    pub(crate) fn is_busy(&self) -> bool {
        self.reads > 0 || self.relocating > 0
    }
}

impl Segments {
    pub(crate) fn get(&self, age: Age) -> Option<&Segment> {
        self.by_age.get(&age)
    }

    pub(crate) fn get_mut(&mut self, age: Age) -> Option<&mut Segment> {
        self.by_age.get_mut(&age)
    }

    /// All of them, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Age, &Segment)> {
        self.by_age.iter().map(|(age, segment)| (*age, segment))
    }

    /// Spreads the ages of all segments over `0..end`, in their order.
    pub(crate) fn spread_ages(&mut self, end: u64) {
        let count = self.by_age.len() as u64;
        for (segment, rank) in self.by_age.values_mut().zip(1..) {
            segment.born = (u128::from(end) * rank / u128::from(count)) as u64;
        }
    }

    pub(crate) fn newest(&self) -> Option<Age> {
        self.by_age.last_key_value().map(|(age, _)| *age)
    }

    /// How many are known.
    pub(crate) fn count(&self) -> u64 {
        self.by_age.len() as u64
    }

    /// One that can be freed as it is.
    pub(crate) fn next_empty(&self) -> Option<Age> {
        let at_rest = |age: &&Age| self.get(**age).is_some_and(|segment| !segment.is_busy());
        self.empty.iter().find(at_rest).copied()
    }

    /// The oldest that has lost all its records since it was written, and is not written to any more.
    pub(crate) fn next_emptied(&self) -> Option<Age> {
        let written = self.by_age.iter().rev().skip(1).rev();
        let mut emptied = written.filter(|(_, segment)| segment.records == 0 && !segment.is_busy());
        emptied.next().map(|(age, _)| *age)
    }

    /// Whether the segment is known as one that can be freed as it is.
    pub(crate) fn is_empty(&self, age: Age) -> bool {
        self.empty.contains(&age)
    }

    /// Makes sure that the segment a record was found in at start is known, whatever becomes of
    /// the record; false if the record cannot be there.
    pub(crate) fn note_found(
        &mut self,
        extent: Extent,
        born: &mut u64,
        numbers: &mut SegmentNumbers,
    ) -> bool {
        let age = Age::of(extent);
        let known = self.by_age.contains_key(&age);
        let noted = self.note(extent, born, numbers);
        if noted && !known {
            self.by_age.get_mut(&age).expect("just noted").found = true;
            self.empty.insert(age);
        }
        noted
    }

    /// Makes sure that the segment a record was reported in is known; false if that use of it is
    /// over.
    fn note(&mut self, extent: Extent, born: &mut u64, numbers: &mut SegmentNumbers) -> bool {
        let age = Age::of(extent);
        match self.places.get(&extent.segment) {
            Some(place) if place.in_use => {
                let freeing = |reclaim: Reclaim| reclaim.age == age && reclaim.freeing;
                return place.segment_use == age.segment_use
                    && !self.reclaiming.is_some_and(freeing);
            }
            Some(place) if age.segment_use <= place.segment_use => return false,
            _ => {}
        }
        self.places.insert(age.segment, Place { segment_use: age.segment_use, in_use: true });
        *born += 1;
        let at = numbers.give(extent.device, age);
        self.by_age.insert(age, Segment::new(at, *born));
        true
    }

    /// The page log has freed a segment. False if it was not asked to.
    pub(crate) fn freed(&mut self, age: Age, numbers: &mut SegmentNumbers) -> bool {
        let asked = |reclaim: &Reclaim| reclaim.freeing && reclaim.age == age;
        let Some(reclaim) = self.reclaiming.take_if(|reclaim| asked(reclaim)) else {
            return false;
        };
        let segment = self.by_age.remove(&age).expect("a segment is known until it is freed");
        numbers.take_back(segment.at);
        let appended = u64::from(segment.appended);
        self.wasted = if reclaim.dropped { 0 } else { self.wasted + 2 * appended };
        self.appended -= appended;
        self.empty.remove(&age);
        self.places.insert(age.segment, Place { segment_use: age.segment_use, in_use: false });
        true
    }

    /// Forgets the oldest segment, which must be empty, because its device is lost.
    pub(crate) fn forget_oldest(&mut self, numbers: &mut SegmentNumbers) {
        let forgotten = self.by_age.pop_first();
        let (age, segment) = forgotten.expect("there is a segment to forget");
        assert_eq!(segment.records, 0, "a segment's pages are forgotten before it");
        numbers.take_back(segment.at);
        self.appended -= u64::from(segment.appended);
        self.empty.remove(&age);
    }
}

impl Core {
    /// What the SSD has of a page, and where.
    pub(crate) fn ssd_of(&self, page: &Page) -> Ssd {
        let extent = || page.record().map(|record| self.segments.extent(record));
        match page.on_ssd() {
            OnSsd::None => Ssd::None,
            OnSsd::Writing => page.written_to().map_or(Ssd::None, Ssd::Writing),
            OnSsd::On => extent().map_or(Ssd::None, Ssd::On),
            OnSsd::Unproved => extent().map_or(Ssd::None, Ssd::Unproved),
        }
    }

    /// Where the page's record lies, whether or not that counts for anything now.
    pub(crate) fn record_of(&self, page: &Page) -> Option<Extent> {
        page.record().map(|record| self.segments.extent(record))
    }

    /// Notes the page's record. False if the record lies in a segment that is being freed, or on
    /// a device that is not there, or is another page's.
    pub(crate) fn enter_ssd(&mut self, id: PageId, extent: Extent, proved: bool) -> bool {
        let bytes = self.frame_bytes(self.class_of(id));
        let device = self.devices.find_mut(extent.device);
        let Some(device) = device.filter(|device| device.state != DeviceState::Lost) else {
            return false;
        };
        let segments = &mut device.segments;
        if !segments.note(extent, &mut self.last_segment, &mut self.segments) {
            return false;
        }
        let segment = segments.get_mut(Age::of(extent)).expect("just noted");
        if !segment.listed.insert(extent.record, id) {
            return false;
        }
        segment.records += 1;
        segment.appended += 1;
        let at = segment.at;
        device.unproved += u64::from(!proved);
        self.stats.unproved_records += u64::from(!proved);
        segments.used_bytes += bytes;
        segments.pages += 1;
        segments.appended += 1;
        segments.empty.remove(&Age::of(extent));
        let page = &mut self.index[id];
        assert_eq!(page.on_ssd(), OnSsd::None, "a page has one record");
        page.set_record((at, extent.record), proved);
        let domain = self.domain_of_space(self.index[id].space);
        let own = &mut self.domains.get_mut(domain).ssd;
        own.bytes += bytes;
        own.pages += 1;
        self.look_again_at(domain);
        self.note_presence(id);
        true
    }

    /// Forgets the page's record. The caller settles what becomes of the page.
    pub(crate) fn leave_ssd(&mut self, id: PageId) {
        let extent = self.record_of(&self.index[id]);
        let extent = extent.expect("only a page with a record can lose it");
        let unproved = self.index[id].on_ssd() == OnSsd::Unproved;
        self.index[id].clear_ssd();
        let bytes = self.frame_bytes(self.class_of(id));
        let domain = self.domain_of_space(self.index[id].space);
        let own = &mut self.domains.get_mut(domain).ssd;
        own.bytes -= bytes;
        own.pages -= 1;
        let device = self.devices.get_mut(extent.device);
        device.unproved -= u64::from(unproved);
        self.stats.unproved_records -= u64::from(unproved);
        let segments = &mut device.segments;
        segments.used_bytes -= bytes;
        segments.pages -= 1;
        let segment = segments.get_mut(Age::of(extent)).expect("a record lies in a segment");
        segment.records -= 1;
        segment.listed.remove(extent.record);
        if segment.found && segment.records == 0 {
            segments.empty.insert(Age::of(extent));
        }
        self.note_presence(id);
    }

    /// The pages of a segment, last record first.
    pub(crate) fn segment_pages(
        &self,
        device: DeviceId,
        age: Age,
    ) -> impl Iterator<Item = PageId> + '_ {
        let segment = self.devices.get(device).segments.get(age);
        segment.into_iter().flat_map(|segment| segment.listed.iter())
    }
}
