use crate::index::PageIndex;
use crate::page::{Dram, Links, Mark, Page, PageId};
use undercroft_wire::{FrameId, JobId};

/// What is known of a page only while it has a frame or somebody needs it: of most pages on SSD
/// there is none of it. What excludes each other shares its room: a page is pinned or stands
/// in the eviction order, and it has a checksum or is being read.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, packed(4))]
pub(crate) struct InDram {
    /// While the page is ordered, the numbers of its neighbours in that; else the first is how
    /// many leases, holds and copies need the frame to stay. In a vacant entry the first is the
    /// number of the next vacant one.
    place: [u32; 3],
    frame: u32,
    /// CRC-64/NVME of the payload; in [`Dram::Reading`] the read under way.
    crc: u64,
    /// Leases and holds that need the page to stay in some tier.
    keeps: u32,
}

/// All of these; each page names its own by a number from 1 on.
#[derive(Debug)]
pub(crate) struct InDrams {
    entries: Vec<InDram>,
    /// The number of the first vacant one, or 0.
    vacant: u32,
}

impl InDrams {
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: Vec::with_capacity(limit), vacant: 0 }
    }

    fn get(&self, number: u32) -> Option<&InDram> {
        self.entries.get((number as usize).checked_sub(1)?)
    }

    fn get_mut(&mut self, number: u32) -> &mut InDram {
        let at = (number as usize).checked_sub(1);
        &mut self.entries[at.expect("a page in DRAM has an entry for that")]
    }

    fn give(&mut self) -> u32 {
        if self.vacant == 0 {
            self.entries.push(InDram::default());
            return self.entries.len() as u32;
        }
        let number = self.vacant;
        let entry = self.get_mut(number);
        let next = entry.place[0];
        *entry = InDram::default();
        self.vacant = next;
        number
    }

    fn take_back(&mut self, number: u32) {
        let vacant = self.vacant;
        self.get_mut(number).place = [vacant, 0, 0];
        self.vacant = number;
    }
}

impl PageIndex {
    fn in_dram(&self, page: &Page) -> InDram {
        self.in_dram.get(page.in_dram).copied().unwrap_or_default()
    }

    fn in_dram_mut(&mut self, id: PageId) -> &mut InDram {
        if self[id].in_dram == 0 {
            self[id].in_dram = self.in_dram.give();
        }
        let number = self[id].in_dram;
        self.in_dram.get_mut(number)
    }

    fn needs_in_dram(&self, page: &Page) -> bool {
        page.has_frame() || self.pins(page) > 0 || self.keeps(page) > 0
    }

    /// To be called after a page may have lost its frame, its last pin or its last keep.
    fn drop_in_dram(&mut self, id: PageId) {
        let page = self[id];
        if page.in_dram != 0 && !self.needs_in_dram(&page) {
            self.in_dram.take_back(page.in_dram);
            self[id].in_dram = 0;
        }
    }

    /// The page's frame: exactly pages in DRAM, or on their way there, have one.
    pub(crate) fn frame_of(&self, page: &Page) -> Option<FrameId> {
        page.has_frame().then(|| FrameId(self.in_dram(page).frame))
    }

    pub(crate) fn set_frame(&mut self, id: PageId, frame: FrameId, dram: Dram) {
        self.in_dram_mut(id).frame = frame.0;
        self[id].dram = dram;
    }

    /// Takes the page's frame away: DRAM has nothing of it.
    pub(crate) fn take_frame(&mut self, id: PageId) -> FrameId {
        let frame = self.frame_of(&self[id]).expect("a page in DRAM has a frame");
        self[id].dram = Dram::None;
        self.drop_in_dram(id);
        frame
    }

    /// Meaningful in [`Dram::Resident`].
    pub(crate) fn crc_of(&self, page: &Page) -> u64 {
        self.in_dram(page).crc
    }

    pub(crate) fn set_crc(&mut self, id: PageId, crc: u64) {
        self.in_dram_mut(id).crc = crc;
    }

    /// Meaningful in [`Dram::Reading`].
    pub(crate) fn read_job_of(&self, page: &Page) -> JobId {
        JobId(self.in_dram(page).crc)
    }

    pub(crate) fn set_read_job(&mut self, id: PageId, job: JobId) {
        self.in_dram_mut(id).crc = job.0;
    }

    /// Leases, holds and copies that need the frame to stay.
    pub(crate) fn pins(&self, page: &Page) -> u32 {
        if page.is(Mark::Ordered) { 0 } else { self.in_dram(page).place[0] }
    }

    pub(crate) fn pin(&mut self, id: PageId) {
        let ordered = self[id].is(Mark::Ordered);
        assert!(!ordered, "a page is taken out of the order before it is pinned");
        self.in_dram_mut(id).place[0] += 1;
    }

    pub(crate) fn unpin(&mut self, id: PageId) {
        let pins = self.pins(&self[id]).checked_sub(1);
        self.in_dram_mut(id).place[0] = pins.expect("a page is unpinned as often as pinned");
        self.drop_in_dram(id);
    }

    /// Leases and holds that need the page to stay in some tier.
    pub(crate) fn keeps(&self, page: &Page) -> u32 {
        self.in_dram(page).keeps
    }

    pub(crate) fn keep(&mut self, id: PageId) {
        self.in_dram_mut(id).keeps += 1;
    }

    pub(crate) fn unkeep(&mut self, id: PageId) {
        let keeps = self.keeps(&self[id]).checked_sub(1);
        self.in_dram_mut(id).keeps = keeps.expect("a page is unkept as often as kept");
        self.drop_in_dram(id);
    }

    /// The page's neighbours in the eviction order.
    pub(crate) fn links(&self, id: PageId) -> Links {
        let [up, left, right] = self.in_dram(&self[id]).place.map(PageId::from_number);
        Links { up, left, right }
    }

    pub(crate) fn set_links(&mut self, id: PageId, links: Links) {
        let Links { up, left, right } = links;
        self.in_dram_mut(id).place = [up, left, right].map(|page| page.map_or(0, PageId::number));
    }

    /// The page stands in the eviction order from here on, or not.
    pub(crate) fn set_ordered(&mut self, id: PageId, on: bool) {
        assert_eq!(self.pins(&self[id]), 0, "a pinned page stands in no order");
        self[id].set(Mark::Ordered, on);
        self.in_dram_mut(id).place = [0; 3];
    }

    /// Checks that exactly pages with a frame, a pin or a keep have an entry for that, each its own.
    pub(crate) fn audit_in_dram(&self) {
        let mut used = std::collections::BTreeSet::new();
        for (_, page) in self.iter() {
            let needs = self.needs_in_dram(page);
            assert_eq!(needs, page.in_dram != 0, "who needs an entry has one, and no others");
            assert!(!needs || used.insert(page.in_dram), "an entry is one page's");
        }
        let next = |number: &u32| self.in_dram.get(*number).map(|entry| entry.place[0]);
        let vacant = std::iter::successors(Some(self.in_dram.vacant), next);
        let vacant = vacant.take_while(|number| *number != 0).filter(|n| used.insert(*n)).count();
        let known = used.len();
        assert_eq!(known, self.in_dram.entries.len(), "{vacant} entries are vacant, no more");
    }
}
