use crate::names::{Name, Names};
use crate::page::{OnSsd, PageId};
use crate::{Admission, Core};
use std::num::NonZeroU32;
use undercroft_wire::{PageKey, SpaceId};

/// Of one in so many of an SSD's pages it is taken for granted, before anything is known, that they
/// come back twice as often as is asked for.
const FIRST_SHARE: u64 = 16;

/// Pages that left DRAM and were not written, as if they stood in line on an SSD: who comes back for
/// one in time would have found it there.
///
/// There are as many as one in [`Ghosts::PAGES_EACH`] pages that may be known, and a newer one takes
/// an older one's place. Where an SSD has room for more than a half of these, pages stand for others:
/// one in so many by its name.
#[derive(Debug)]
pub(crate) struct Ghosts {
    /// When pages left DRAM, by their space's clock.
    names: Names,
}

impl Ghosts {
    /// Bytes: one for each page that may be known.
    const PAGES_EACH: usize = 8;

    pub(crate) fn new(admission: Admission, max_pages: u32) -> Self {
        let wanted = matches!(admission, Admission::Auto(_));
        let size = (max_pages as usize / Self::PAGES_EACH).next_power_of_two().max(1024);
        Self { names: Names::new(if wanted { size } else { 0 }) }
    }

    /// In how many halvings of all names those are that are counted, where an SSD takes `room` pages.
    fn halvings(&self, room: u64) -> u32 {
        let fit = self.names.len() as u64 / 2;
        (0..u64::BITS).find(|halvings| room >> halvings <= fit).unwrap_or(0)
    }
}

/// How often a space's pages come back that were used once when they left DRAM, whether or not
/// they were written. Halved as an SSD's worth of them has left.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    left: u64,
    back: u64,
    /// Pages that left DRAM for the first time, of those that are counted.
    clock: u32,
}

impl Returns {
    /// Whether at least one in `price` comes back.
    fn are_worth(&self, price: u32, room: u64) -> bool {
        let first = (room / FIRST_SHARE).max(1);
        (self.back * u64::from(price)).saturating_add(2 * first) >= self.left + first
    }

    fn leave(&mut self, room: u64) {
        self.clock = self.clock.wrapping_add(1).max(1);
        self.left += 1;
        if self.left > room.max(1) {
            (self.left, self.back) = (self.left / 2, self.back / 2);
        }
    }
}

/// What of the pages that leave DRAM is written to SSD.
///
/// A page that others on an SSD hang from always is, so what lies there can be found: what is
/// refused is the end of a chain. Only where the write budget is used up that one is lost, too; what
/// hangs from it is found again once it has come back.
impl Core {
    /// Whether a page that would be written now is worth it, and can be paid for.
    pub(crate) fn is_admitted(&self, id: PageId) -> bool {
        self.is_worth_writing(id) && self.has_budget(id)
    }

    pub(crate) fn is_worth_writing(&self, id: PageId) -> bool {
        let Admission::Auto(price) = self.config.admission else {
            return true;
        };
        let page = &self.index[id];
        let returns = &self.spaces.get(page.space).returns;
        page.was_used_again()
            || self.index.keeps(page) > 0
            || self.has_half_left(id)
            || returns.are_worth(price, self.counted_room(id))
            || self.leads_on(id)
    }

    /// Whether anything on an SSD hangs from it. What does in DRAM is worth less, and leaves first.
    pub(crate) fn leads_on(&self, id: PageId) -> bool {
        self.has_child(id, |child| child.on_ssd() != OnSsd::None)
    }

    /// Whether so little was written that more of anything drives out nothing for long.
    fn has_half_left(&self, id: PageId) -> bool {
        let domain = self.domains.get(self.domain_of_space(self.index[id].space));
        let all = self.ssd().unwrap_or_default();
        let quota = domain.config.limits.ssd_bytes.min(all.capacity_bytes);
        domain.ssd.bytes < quota / 2 && all.used_bytes < all.capacity_bytes / 2
    }

    /// To be called when a page leaves DRAM for an SSD, or is refused.
    pub(crate) fn note_left(&mut self, id: PageId, written: bool) {
        if !written {
            let over_budget = self.is_worth_writing(id);
            assert!(
                over_budget || !self.leads_on(id),
                "what lies on an SSD keeps what leads to it"
            );
            self.stats.refused_pages += 1;
            self.stats.over_budget_pages += u64::from(over_budget);
        }
        let page = &self.index[id];
        let (space, key) = (page.space, page.key);
        let Some(name) = self.ghost_name(space, &key).filter(|_| !page.was_used_again()) else {
            return;
        };
        let room = self.counted_room(id);
        let returns = &mut self.spaces.get_mut(space).returns;
        returns.leave(room);
        if !written {
            let clock = NonZeroU32::new(returns.clock).expect("it is 1 or more once one has left");
            self.ghosts.names.remember(name, clock);
        }
    }

    /// A page on SSD that had been used once is used again.
    pub(crate) fn note_back(&mut self, id: PageId) {
        let page = &self.index[id];
        let space = page.space;
        if self.ghost_name(space, &page.key).is_some() {
            self.spaces.get_mut(space).returns.back += 1;
        }
    }

    /// Whether a page that is stored anew left no longer ago than pages stay on an SSD.
    pub(crate) fn is_back(&mut self, id: PageId) -> bool {
        let page = &self.index[id];
        let space = page.space;
        let name = self.ghost_name(space, &page.key);
        let Some(left) = name.and_then(|name| self.ghosts.names.take(name)) else {
            return false;
        };
        let room = self.counted_room(id);
        let returns = &mut self.spaces.get_mut(space).returns;
        let in_time = u64::from(returns.clock.wrapping_sub(left.get())) <= room;
        returns.back += u64::from(in_time);
        in_time
    }

    /// How many pages like this one SSDs have room for, of those that are counted.
    fn counted_room(&self, id: PageId) -> u64 {
        let room = self.ssd_room(self.class_of(id));
        room >> self.ghosts.halvings(room)
    }

    /// What a ghost of the page is called; `None` where it is not counted.
    fn ghost_name(&self, space: SpaceId, key: &PageKey) -> Option<Name> {
        if self.ghosts.names.len() == 0 || self.devices.is_empty() {
            return None;
        }
        let name = self.index.name(space, key);
        let room = self.ssd_room(self.spaces.get(space).class);
        Some(name).filter(|name| name.is_drawn(self.ghosts.halvings(room)))
    }
}
