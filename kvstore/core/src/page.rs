use crate::heat::Heat;
use std::num::NonZeroU32;
use undercroft_wire::{DeviceId, Extent, PageKey, SpaceId};

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
#[repr(u8)]
pub(crate) enum OnSsd {
    None,
    Writing,
    On,
    Unproved,
}

/// Bits of a segment's number. A record's index has 20: a segment of 1 GiB, the largest there is,
/// has 2^18 records of the smallest size, and all SSDs together have fewer segments in use than
/// there are pages.
const SEGMENT_BITS: u32 = 28;
const SEGMENT_MASK: u32 = (1 << SEGMENT_BITS) - 1;

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

/// Beside what an SSD has of a page: a turn that would go on from it is expected.
const AWAITED: u8 = 1 << 2;
/// Above that, how soon it leaves DRAM if it was laid aside; 0: it was not.
const ASIDE_SHIFT: u32 = 3;
/// Bits of what an SSD has.
const SSD_MASK: u8 = AWAITED - 1;
/// The last of what was laid aside to leave.
pub(crate) const LAST_ASIDE: u8 = u8::MAX >> ASIDE_SHIFT;

/// Beside the number of a page's relocations: it was used by more requests than one.
const USED_AGAIN: u8 = 1 << 7;

/// All that is known of one page. Without any tier it stays only while it has children or
/// somebody still names it: it keeps the links of its descendants valid.
///
/// There are many, and their bytes are what the daemon's heap is. What a lookup reads stands in
/// front, in one cache line or two.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))]
pub(crate) struct Page {
    pub(crate) key: PageKey,
    /// The next page of its bucket in the index.
    pub(crate) chained: Option<PageId>,
    pub(crate) space: SpaceId,
    pub(crate) dram: Dram,
    /// What the SSD has of it, and above that [`AWAITED`] and [`ASIDE_SHIFT`].
    ssd: u8,
    marks: u8,
    /// Relocations of its records under way. One may hang on a device that does not answer while
    /// the page, stored anew, is moved on another: no more than there are devices. Above that, whether
    /// it was used again.
    relocating: u8,
    /// The number of the user whose process stored it ([`crate::origins`]).
    pub(crate) writer: u16,
    /// The low bits of the record's index inside the segment.
    record_low: u16,
    /// The segment that its record lies in, and above that the rest of the record's index; or the
    /// device that it is being written to.
    segment: u32,
    /// When it was stored, seconds since 1970; 0: nobody knows.
    pub(crate) born: u32,
    /// `None` for the first page of a chain, and for a recovered page's ancestor of which
    /// nothing but its key is known.
    pub(crate) parent: Option<PageId>,
    pub(crate) depth: u32,
    pub(crate) heat: Heat,
    /// The first of the entries whose parent this is, and this page's neighbours among its
    /// parent's.
    pub(crate) first_child: Option<PageId>,
    pub(crate) next_sibling: Option<PageId>,
    pub(crate) prev_sibling: Option<PageId>,
    /// The number of what is known of it in DRAM ([`crate::in_dram`]), or 0.
    pub(crate) in_dram: u32,
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
            ssd: OnSsd::None as u8,
            marks: 0,
            relocating: 0,
            writer: 0,
            record_low: 0,
            segment: 0,
            born: 0,
            parent: None,
            depth,
            heat: Heat::default(),
            first_child: None,
            next_sibling: None,
            prev_sibling: None,
            in_dram: 0,
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
        const ALL: [OnSsd; 4] = [OnSsd::None, OnSsd::Writing, OnSsd::On, OnSsd::Unproved];
        ALL[usize::from(self.ssd & SSD_MASK)]
    }

    fn set_ssd(&mut self, ssd: OnSsd) {
        self.ssd = self.ssd & !SSD_MASK | ssd as u8;
    }

    /// Whether a turn is expected that goes on from it ([`crate::expected`]).
    pub(crate) fn is_awaited(&self) -> bool {
        self.ssd & AWAITED != 0
    }

    pub(crate) fn set_awaited(&mut self, on: bool) {
        self.ssd = if on { self.ssd | AWAITED } else { self.ssd & !AWAITED };
    }

    /// When it leaves DRAM among what was laid aside, from 1 on, first those of a lower number; 0:
    /// it was not.
    pub(crate) fn aside(&self) -> u8 {
        self.ssd >> ASIDE_SHIFT
    }

    pub(crate) fn set_aside(&mut self, place: u8) {
        assert!(place <= LAST_ASIDE, "places aside are few");
        self.ssd = self.ssd & (AWAITED | SSD_MASK) | place << ASIDE_SHIFT;
    }

    pub(crate) fn has_record(&self) -> bool {
        matches!(self.on_ssd(), OnSsd::On | OnSsd::Unproved)
    }

    /// Where its record lies, whether or not that counts for anything now.
    pub(crate) fn record(&self) -> Option<(SegmentAt, u32)> {
        let record = self.segment >> SEGMENT_BITS << u16::BITS | u32::from(self.record_low);
        self.has_record().then_some((SegmentAt(self.segment & SEGMENT_MASK), record))
    }

    /// The device that it is being written to.
    pub(crate) fn written_to(&self) -> Option<DeviceId> {
        (self.on_ssd() == OnSsd::Writing).then_some(DeviceId(self.segment as u8))
    }

    pub(crate) fn set_record(&mut self, (segment, record): (SegmentAt, u32), proved: bool) {
        self.set_ssd(if proved { OnSsd::On } else { OnSsd::Unproved });
        let above = record >> u16::BITS;
        let fits = segment.0 <= SEGMENT_MASK && above <= u32::MAX >> SEGMENT_BITS;
        assert!(fits, "segments, and records of each, are fewer than numbers reach");
        self.segment = above << SEGMENT_BITS | segment.0;
        self.record_low = record as u16;
    }

    pub(crate) fn set_proved(&mut self) {
        assert_eq!(self.on_ssd(), OnSsd::Unproved, "a record proves itself once");
        self.set_ssd(OnSsd::On);
    }

    pub(crate) fn set_writing(&mut self, device: DeviceId) {
        self.set_ssd(OnSsd::Writing);
        self.segment = u32::from(device.0);
    }

    /// It is neither on an SSD nor being written.
    pub(crate) fn clear_ssd(&mut self) {
        self.set_ssd(OnSsd::None);
    }

    /// Whether it has a frame: in DRAM, or on its way there from a slot or SSD.
    pub(crate) fn has_frame(&self) -> bool {
        matches!(self.dram, Dram::Filling | Dram::Reading | Dram::Resident)
    }

    /// Whether it is in a tier or on its way to one, even if nobody can get at it now: what a
    /// child may hang from.
    pub(crate) fn is_present(&self) -> bool {
        !self.is(Mark::Purged) && (self.dram != Dram::None || self.has_record())
    }

    /// Relocations of its records under way.
    pub(crate) fn relocations(&self) -> u8 {
        self.relocating & !USED_AGAIN
    }

    pub(crate) fn begin_relocation(&mut self) {
        assert!(self.relocations() + 1 < USED_AGAIN, "a device moves a page once at a time");
        self.relocating += 1;
    }

    pub(crate) fn end_relocation(&mut self) {
        assert!(self.relocations() > 0, "a relocation ends once");
        self.relocating -= 1;
    }

    /// Whether a request used it after the one that stored it.
    pub(crate) fn was_used_again(&self) -> bool {
        self.relocating & USED_AGAIN != 0
    }

    pub(crate) fn set_used_again(&mut self) {
        self.relocating |= USED_AGAIN;
    }

    /// Whether nothing and nobody needs the entry.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_present()
            && self.first_child.is_none()
            && self.in_dram == 0
            && self.relocations() == 0
            && !self.is(Mark::Pending)
            && !self.is(Mark::Rising)
    }
}
