use crate::order::OrderKey;
use crate::spaces::ClassId;
use undercroft_wire::{DeviceId, Extent, FrameId, JobId, PageKey, SpaceId};

/// A page's place in the index. Taken again once the page is forgotten, so whoever keeps one
/// across steps also keeps a pin, a keep, a child or a job on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageId(pub(crate) u32);

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

/// All that is known of one page. Without any tier it stays only while it has children or
/// somebody still names it: it keeps the links of its descendants valid.
///
/// What a lookup reads stands in front, in one cache line or two.
#[derive(Debug, Clone)]
#[repr(C)]
pub(crate) struct Page {
    pub(crate) key: PageKey,
    pub(crate) space: SpaceId,
    pub(crate) dram: Dram,
    /// Used since its record was appended.
    pub(crate) touched: bool,
    /// To be forgotten, and there only because a lease or a job uses its frame.
    pub(crate) purged: bool,
    /// Relocations of its records under way. One may hang on a device that does not answer while
    /// the page, stored anew, is moved on another: no more than there are devices.
    pub(crate) relocating: u8,
    /// No SSD would take it: evicting it loses it.
    pub(crate) append_refused: bool,
    pub(crate) ssd: Ssd,
    pub(crate) class: ClassId,
    /// `None` for the first page of a chain, and for a recovered page's ancestor of which
    /// nothing but its key is known.
    pub(crate) parent: Option<PageId>,
    pub(crate) depth: u32,
    /// Entries whose parent this is, the first of them, and this page's neighbours among its
    /// parent's.
    pub(crate) children: u32,
    pub(crate) first_child: Option<PageId>,
    pub(crate) next_sibling: Option<PageId>,
    pub(crate) prev_sibling: Option<PageId>,
    /// Whether it was in a tier, and all its ancestors, when that was last looked at; and whether
    /// it waits to be looked at again.
    pub(crate) present: bool,
    pub(crate) reached: bool,
    pub(crate) pending: bool,
    /// The newest request that used the page or a descendant of it.
    pub(crate) stamp: u64,
    pub(crate) frame: Option<FrameId>,
    /// CRC-64/NVME of the payload; meaningful while the page is in DRAM.
    pub(crate) crc: u64,
    /// Leases, holds and copies that need the frame to stay.
    pub(crate) pins: u32,
    /// Leases and holds that need the page to stay in some tier.
    pub(crate) keeps: u32,
    /// Whether it stands in its class's eviction order.
    pub(crate) ordered: bool,
    /// The read under way, meaningful in [`Dram::Reading`].
    pub(crate) read_job: JobId,
    /// Neighbours in the list of pages of the segment that its record lies in.
    pub(crate) newer: Option<PageId>,
    pub(crate) older: Option<PageId>,
}

impl Page {
    /// A page that nobody knows anything of but its name and place in its chain.
    pub(crate) fn new(space: SpaceId, class: ClassId, key: PageKey, depth: u32) -> Self {
        Self {
            key,
            space,
            class,
            parent: None,
            depth,
            children: 0,
            first_child: None,
            next_sibling: None,
            prev_sibling: None,
            present: false,
            reached: depth == 0,
            pending: false,
            stamp: 0,
            dram: Dram::None,
            frame: None,
            ssd: Ssd::None,
            crc: 0,
            pins: 0,
            keeps: 0,
            touched: false,
            purged: false,
            relocating: 0,
            append_refused: false,
            ordered: false,
            read_job: JobId(0),
            newer: None,
            older: None,
        }
    }

    /// Where its record lies, whether or not that counts for anything now.
    pub(crate) fn record(&self) -> Option<Extent> {
        match self.ssd {
            Ssd::On(extent) | Ssd::Unproved(extent) => Some(extent),
            Ssd::None | Ssd::Writing(_) => None,
        }
    }

    /// Whether it is in a tier or on its way to one, even if nobody can get at it now: what a
    /// child may hang from.
    pub(crate) fn is_present(&self) -> bool {
        !self.purged && (self.dram != Dram::None || self.record().is_some())
    }

    /// Whether nothing and nobody needs the entry.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_present()
            && self.frame.is_none()
            && self.children == 0
            && self.pins == 0
            && self.keeps == 0
            && self.relocating == 0
            && !self.pending
    }

    /// Where it stands in the eviction order.
    pub(crate) fn order_key(&self, id: PageId) -> OrderKey {
        OrderKey::new(self.stamp, self.depth, id)
    }
}
