use crate::order::OrderKey;
use std::num::NonZeroU32;
use undercroft_wire::{DeviceId, Extent, FrameId, JobId, PageKey, SpaceId};

/// A page's place in the index. Taken again once the page is forgotten, so whoever keeps one
/// across steps also keeps a pin, a keep, a child or a job on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageId(NonZeroU32);

impl PageId {
    /// After all places there are.
    pub(crate) const LAST: Self = Self(NonZeroU32::MAX);

    /// The place `at` of the index, counted from 0.
    pub(crate) fn at(at: usize) -> Self {
        let number = u32::try_from(at + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("an index is smaller than numbers reach"))
    }

    /// Its place in the index, counted from 0.
    pub(crate) fn place(self) -> usize {
        self.0.get() as usize - 1
    }

    pub(crate) fn number(self) -> u32 {
        self.0.get()
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }
}

/// What DRAM has of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dram {
    /// Nothing.
    None,
    /// A staging slot is assigned; the page may come or not.
    Offered,
    /// A copy worker is filling the frame from a slot.
    Filling,
    /// The frame is being filled from SSD.
    Reading,
    /// The page.
    Resident,
}

/// What the SSD has of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ssd {
    /// Nothing.
    None,
    /// The frame is being written to this device.
    Writing(DeviceId),
    /// A record.
    On(Extent),
    /// A record that counts for nothing until it was read once and proved itself.
    Unproved(Extent),
}

/// As [`Ssd`], without where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnSsd {
    None,
    Writing,
    On,
    Unproved,
}

/// The number of a segment in use, among those of all devices ([`crate::segments`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentAt(pub(crate) u32);

/// What is true of a page or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mark {
    /// Used since its record was appended.
    Touched = 1,
    /// To be forgotten, and there only because a lease or a job uses its frame.
    Purged = 1 << 1,
    /// No SSD would take it: evicting it loses it.
    AppendRefused = 1 << 2,
    /// In a tier when that was last looked at.
    Present = 1 << 3,
    /// All its ancestors were in a tier when that was last looked at.
    Reached = 1 << 4,
    /// Waits for that to be looked at again.
    Pending = 1 << 5,
    /// Stands in its class's eviction order.
    Ordered = 1 << 6,
    /// May be newer than its parent, which waits to be looked at.
    Rising = 1 << 7,
}

/// All that is known of one page. Without any tier it stays only while it has children or
/// somebody still names it: it keeps the links of its descendants valid.
///
/// There are many, and their bytes are what the daemon's heap is. What excludes each other shares
/// its room: a page is pinned or stands in the eviction order, and it has a checksum or is being
/// read. What a lookup reads stands in front, in one cache line or two.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))]
pub(crate) struct Page {
    pub(crate) key: PageKey,
    /// The next page of its bucket in the index.
    pub(crate) chained: Option<PageId>,
    pub(crate) space: SpaceId,
    pub(crate) dram: Dram,
    ssd: OnSsd,
    marks: u8,
    /// Relocations of its records under way. One may hang on a device that does not answer while
    /// the page, stored anew, is moved on another: no more than there are devices.
    pub(crate) relocating: u8,
    /// The segment that its record lies in, or the device that it is being written to.
    segment: u32,
    /// The record's index inside the segment.
    record: u32,
    /// `None` for the first page of a chain, and for a recovered page's ancestor of which
    /// nothing but its key is known.
    pub(crate) parent: Option<PageId>,
    pub(crate) depth: u32,
    /// The newest request that used the page or a descendant of it.
    pub(crate) stamp: u64,
    /// The first of the entries whose parent this is, and this page's neighbours among its
    /// parent's.
    pub(crate) first_child: Option<PageId>,
    pub(crate) next_sibling: Option<PageId>,
    pub(crate) prev_sibling: Option<PageId>,
    /// Leases and holds that need the page to stay in some tier.
    pub(crate) keeps: u32,
    /// While it is ordered, the numbers of its neighbours in that; else the first is how many
    /// leases, holds and copies need the frame to stay.
    place: [u32; 3],
    frame: FrameId,
    /// CRC-64/NVME of the payload; in [`Dram::Reading`] the read under way.
    crc: u64,
}

/// A page's neighbours in a tree of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Links {
    pub(crate) up: Option<PageId>,
    pub(crate) left: Option<PageId>,
    pub(crate) right: Option<PageId>,
}

impl Page {
    /// A page that nobody knows anything of but its name and place in its chain.
    pub(crate) fn new(space: SpaceId, key: PageKey, depth: u32) -> Self {
        let mut page = Self {
            key,
            chained: None,
            space,
            dram: Dram::None,
            ssd: OnSsd::None,
            marks: 0,
            relocating: 0,
            segment: 0,
            record: 0,
            parent: None,
            depth,
            stamp: 0,
            first_child: None,
            next_sibling: None,
            prev_sibling: None,
            keeps: 0,
            place: [0; 3],
            frame: FrameId(0),
            crc: 0,
        };
        page.set(Mark::Reached, depth == 0);
        page
    }

    pub(crate) fn is(&self, mark: Mark) -> bool {
        self.marks & mark as u8 != 0
    }

    pub(crate) fn set(&mut self, mark: Mark, on: bool) {
        let others = self.marks & !(mark as u8);
        self.marks = if on { others | mark as u8 } else { others };
    }

    /// What the SSD has of it; [`crate::Core::ssd_of`] says where.
    pub(crate) fn on_ssd(&self) -> OnSsd {
        self.ssd
    }

    pub(crate) fn has_record(&self) -> bool {
        matches!(self.ssd, OnSsd::On | OnSsd::Unproved)
    }

    /// Where its record lies, whether or not that counts for anything now.
    pub(crate) fn record(&self) -> Option<(SegmentAt, u32)> {
        self.has_record().then_some((SegmentAt(self.segment), self.record))
    }

    /// The device that it is being written to.
    pub(crate) fn written_to(&self) -> Option<DeviceId> {
        (self.ssd == OnSsd::Writing).then_some(DeviceId(self.segment as u8))
    }

    pub(crate) fn set_record(&mut self, (segment, record): (SegmentAt, u32), proved: bool) {
        self.ssd = if proved { OnSsd::On } else { OnSsd::Unproved };
        (self.segment, self.record) = (segment.0, record);
    }

    pub(crate) fn set_proved(&mut self) {
        assert_eq!(self.ssd, OnSsd::Unproved, "a record proves itself once");
        self.ssd = OnSsd::On;
    }

    pub(crate) fn set_writing(&mut self, device: DeviceId) {
        (self.ssd, self.segment) = (OnSsd::Writing, u32::from(device.0));
    }

    /// It is neither on an SSD nor being written.
    pub(crate) fn clear_ssd(&mut self) {
        self.ssd = OnSsd::None;
    }

    /// Its frame: exactly pages in DRAM, or on their way from a slot or SSD, have one.
    pub(crate) fn frame(&self) -> Option<FrameId> {
        let has = matches!(self.dram, Dram::Filling | Dram::Reading | Dram::Resident);
        has.then_some(self.frame)
    }

    pub(crate) fn set_frame(&mut self, frame: FrameId, dram: Dram) {
        (self.frame, self.dram) = (frame, dram);
    }

    /// Takes its frame away: DRAM has nothing of it.
    pub(crate) fn take_frame(&mut self) -> FrameId {
        let frame = self.frame().expect("a page in DRAM has a frame");
        self.dram = Dram::None;
        frame
    }

    /// Meaningful in [`Dram::Resident`].
    pub(crate) fn crc(&self) -> u64 {
        self.crc
    }

    pub(crate) fn set_crc(&mut self, crc: u64) {
        self.crc = crc;
    }

    /// Meaningful in [`Dram::Reading`].
    pub(crate) fn read_job(&self) -> JobId {
        JobId(self.crc)
    }

    pub(crate) fn set_read_job(&mut self, job: JobId) {
        self.crc = job.0;
    }

    /// Leases, holds and copies that need the frame to stay.
    pub(crate) fn pins(&self) -> u32 {
        if self.is(Mark::Ordered) { 0 } else { self.place[0] }
    }

    pub(crate) fn pin(&mut self) {
        assert!(!self.is(Mark::Ordered), "a page is taken out of the order before it is pinned");
        self.place[0] += 1;
    }

    pub(crate) fn unpin(&mut self) {
        let pins = self.pins().checked_sub(1);
        self.place[0] = pins.expect("a page is unpinned as often as pinned");
    }

    pub(crate) fn unkeep(&mut self) {
        self.keeps = self.keeps.checked_sub(1).expect("a page is unkept as often as kept");
    }

    /// Its neighbours in the eviction order.
    pub(crate) fn links(&self) -> Links {
        let [up, left, right] = self.place.map(PageId::from_number);
        Links { up, left, right }
    }

    pub(crate) fn set_links(&mut self, links: Links) {
        let Links { up, left, right } = links;
        self.place = [up, left, right].map(|page| page.map_or(0, PageId::number));
    }

    /// It stands in the eviction order from here on, or not.
    pub(crate) fn set_ordered(&mut self, on: bool) {
        assert_eq!(self.pins(), 0, "a pinned page stands in no order");
        self.set(Mark::Ordered, on);
        self.place = [0; 3];
    }

    /// Whether it is in a tier or on its way to one, even if nobody can get at it now: what a
    /// child may hang from.
    pub(crate) fn is_present(&self) -> bool {
        !self.is(Mark::Purged) && (self.dram != Dram::None || self.has_record())
    }

    /// Whether nothing and nobody needs the entry.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_present()
            && self.frame().is_none()
            && self.first_child.is_none()
            && self.pins() == 0
            && self.keeps == 0
            && self.relocating == 0
            && !self.is(Mark::Pending)
            && !self.is(Mark::Rising)
    }

    /// Where it stands in the eviction order.
    pub(crate) fn order_key(&self, id: PageId) -> OrderKey {
        OrderKey::new(self.stamp, self.depth, id)
    }
}
