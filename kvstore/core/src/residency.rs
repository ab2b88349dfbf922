use crate::Core;
use crate::heat::Heat;
use crate::page::{Dram, Mark, OnSsd, Page, PageId};
use crate::spaces::ClassId;
use undercroft_wire::{FrameId, MissCause};

/// What happens to one page, whoever asks: touching, pinning, leaving a tier, being forgotten.
impl Core {
    /// How dear a page is from here on, and whether it is laid aside ([`crate::page::Page::aside`]).
    pub(crate) fn set_heat(&mut self, id: PageId, heat: Heat, aside: u8) {
        self.unorder(id);
        let page = &mut self.index[id];
        page.heat = heat;
        page.set_aside(aside);
        page.set(Mark::AppendRefused, false);
        self.settle(id);
        self.note_touched(id);
    }

    fn unorder(&mut self, id: PageId) {
        if self.index[id].is(Mark::Ordered) {
            let class = self.class_of(id);
            self.frames.class_mut(class).order.remove(&mut self.index, id);
        }
    }

    /// Whether the page's record can be had: it has proved itself and its device answers.
    pub(crate) fn counts_on_ssd(&self, page: &Page) -> bool {
        match (page.on_ssd(), page.record()) {
            (OnSsd::On, Some((at, _))) => self.devices.answers(self.segments.device(at)),
            _ => false,
        }
    }

    /// Whether a lookup may report the page.
    pub(crate) fn is_visible(&self, id: PageId) -> bool {
        let page = &self.index[id];
        let there = match page.dram {
            Dram::Resident => !page.is(Mark::Purged),
            Dram::None | Dram::Reading => self.counts_on_ssd(page),
            // It has no frame to be read into, or that is being filled otherwise.
            Dram::Offered | Dram::Filling => false,
        };
        there && !self.is_gone(id)
    }

    /// Whether a page in DRAM could be written to SSD now, and is not there already.
    pub(crate) fn is_demotable(&self, id: PageId) -> bool {
        let page = &self.index[id];
        let there = page.on_ssd() == OnSsd::Writing || self.counts_on_ssd(page);
        !there && !page.is(Mark::AppendRefused) && self.devices.take_appends()
    }

    /// Whether the page may be taken from DRAM, at once or after it was written to SSD.
    pub(crate) fn is_evictable(&self, id: PageId) -> bool {
        let page = &self.index[id];
        if page.dram != Dram::Resident || self.index.pins(page) > 0 || page.is(Mark::Purged) {
            return false;
        }
        if self.frames.is_restoring() {
            // It may prove to be leased. They are put in order all at once.
            return false;
        }
        match page.written_to() {
            // Nobody knows when the device is done with the frame.
            Some(device) => self.devices.answers(device),
            None => {
                self.index.keeps(page) == 0 || self.counts_on_ssd(page) || self.is_demotable(id)
            }
        }
    }

    /// Puts the page into its class's order, or takes it out, after anything it depends on has
    /// changed.
    pub(crate) fn settle(&mut self, id: PageId) {
        let evictable = self.is_evictable(id);
        let ordered = self.index[id].is(Mark::Ordered);
        if evictable == ordered {
            return;
        }
        if ordered {
            self.unorder(id);
        } else {
            let class = self.class_of(id);
            let class_state = self.frames.class_mut(class);
            class_state.order.insert(&mut self.index, id);
            if !class_state.waiting.is_empty() {
                self.wake(class);
            }
            self.note_leaving(id);
        }
    }

    pub(crate) fn pin(&mut self, id: PageId) {
        self.unorder(id);
        self.index.pin(id);
    }

    pub(crate) fn unpin(&mut self, id: PageId) {
        self.index.unpin(id);
        self.look_again_at(self.domain_of_space(self.index[id].space));
        self.settle(id);
        self.drop_purged(id);
        self.prune(id);
    }

    pub(crate) fn keep(&mut self, id: PageId) {
        self.index.keep(id);
        self.settle(id);
    }

    pub(crate) fn unkeep(&mut self, id: PageId) {
        self.index.unkeep(id);
        self.look_again_at(self.domain_of_space(self.index[id].space));
        self.settle(id);
        self.prune(id);
    }

    /// Turns a keep into a pin: the page is about to be delivered.
    pub(crate) fn keep_to_pin(&mut self, id: PageId) {
        self.unorder(id);
        self.index.pin(id);
        self.index.unkeep(id);
    }

    /// Takes the page's frame away. The caller settles what becomes of the page.
    pub(crate) fn drop_frame(&mut self, id: PageId) {
        self.unorder(id);
        self.note_unused(id);
        let frame = self.index.take_frame(id);
        self.index[id].set(Mark::Purged, false);
        let class = self.class_of(id);
        self.note_presence(id);
        self.give_back(class, frame);
    }

    /// Gives back a frame that nobody uses any more.
    pub(crate) fn give_back(&mut self, class: ClassId, frame: FrameId) {
        self.note_gone(class, frame);
        if self.frames.give_back(class, frame, &mut self.notes) {
            let at = self.frames.class(class).domain;
            let domain = self.domains.get_mut(at);
            domain.draining = domain.draining.filter(|first| self.frames.has_slab_at(*first));
            self.wake_domain(at);
        }
        self.wake(class);
    }

    /// Takes an evictable page out of DRAM; `cause` is why it is in no other tier, if it is in none.
    pub(crate) fn evict(&mut self, id: PageId, cause: MissCause) {
        assert!(self.index[id].is(Mark::Ordered), "only pages in the eviction order are evicted");
        let class = self.class_of(id);
        self.frames.class_mut(class).resident -= 1;
        self.stats.evicted_pages += 1;
        self.domains.get_mut(self.frames.class(class).domain).evicted_pages += 1;
        if !self.devices.is_empty() && !self.counts_on_ssd(&self.index[id]) {
            self.stats.lost_pages += 1;
        }
        self.drop_frame(id);
        self.bury(id, cause);
        self.prune(id);
    }

    /// The frame is filled: from here on lookups see the page.
    pub(crate) fn become_resident(&mut self, id: PageId, crc: u64) {
        let page = &mut self.index[id];
        assert!(page.has_frame(), "a filled page has a frame");
        page.dram = Dram::Resident;
        self.index.set_crc(id, crc);
        let class = self.class_of(id);
        self.frames.class_mut(class).resident += 1;
        let (bytes, now) = (self.frame_bytes(class), self.now);
        let domain = self.domains.get_mut(self.frames.class(class).domain);
        domain.turnover.enter(bytes, domain.arena_bytes, now);
        self.settle(id);
        self.note_filled(id);
    }

    /// Forgets a record that is worth nothing.
    pub(crate) fn lose_record(&mut self, id: PageId, cause: MissCause) {
        self.leave_ssd(id);
        self.bury(id, cause);
        self.settle(id);
        self.prune(id);
    }

    /// Drops an offered page that will not come.
    pub(crate) fn drop_offered(&mut self, id: PageId) {
        let page = &mut self.index[id];
        assert_eq!(page.dram, Dram::Offered, "an assigned slot's page is offered");
        page.dram = Dram::None;
        self.note_presence(id);
        self.bury(id, MissCause::NotTaken);
        self.prune(id);
    }

    /// Takes in a page that is not known yet; `None` where as many are known as may be, in all or
    /// of its domain.
    pub(crate) fn know(&mut self, page: Page) -> Option<PageId> {
        let domain = self.domain_of_space(page.space);
        let domain = self.domains.get_mut(domain);
        if domain.pages >= domain.config.limits.max_pages {
            return None;
        }
        let (space, id) = (page.space, self.index.insert(page)?);
        domain.pages += 1;
        self.spaces.get_mut(space).pages += 1;
        self.note_first(&page, true);
        Some(id)
    }

    /// Forgets a page that nothing needs any more, and its ancestors that only it needed.
    pub(crate) fn prune(&mut self, id: PageId) {
        let mut next = Some(id);
        while let Some(id) = next {
            if !self.index[id].is_idle() {
                break;
            }
            let page = self.index.remove(id);
            self.note_first(&page, false);
            let domain = self.domain_of_space(page.space);
            self.domains.get_mut(domain).pages -= 1;
            self.spaces.get_mut(page.space).pages -= 1;
            next = page.parent;
            if let Some(parent) = next {
                self.leave_siblings(parent, (page.prev_sibling, page.next_sibling));
            }
        }
    }

    /// Hangs a page on the one before it. Nothing may be dearer than its parent.
    pub(crate) fn link(&mut self, child: PageId, parent: PageId) {
        assert_eq!(
            self.index[parent].depth + 1,
            self.index[child].depth,
            "a child lies one page deeper than its parent"
        );
        self.index[child].parent = Some(parent);
        self.join_siblings(child, parent);
        let heat = self.index[child].heat;
        self.warm(parent, heat);
    }

    /// Whether the page before this one is in a tier or on its way, or there is none.
    pub(crate) fn is_parent_alive(&self, id: PageId) -> bool {
        let page = &self.index[id];
        match page.parent {
            Some(parent) => self.index[parent].is_present(),
            None => page.depth == 0,
        }
    }

    /// The class of a page's frames.
    pub(crate) fn class_of(&self, id: PageId) -> ClassId {
        self.spaces.get(self.index[id].space).class
    }

    /// What a page of the class takes in any tier, bytes.
    pub(crate) fn frame_bytes(&self, class: ClassId) -> u64 {
        u64::from(self.frames.class(class).frame_bytes)
    }

    /// Has the class looked at before the step ends: a frame or a victim may have turned up.
    pub(crate) fn wake(&mut self, class: ClassId) {
        let state = self.frames.class_mut(class);
        if !state.hungry {
            state.hungry = true;
            self.hungry.push(class);
        }
    }

    /// A job that used a frame of the class has ended.
    pub(crate) fn unbusy(&mut self, class: ClassId) {
        let state = self.frames.class_mut(class);
        state.busy = state.busy.checked_sub(1).expect("a job ends once");
        self.wake(class);
    }
}
