use crate::index::PageIndex;
use crate::learner::{Kind, Learner};
use crate::offers::Tip;
use crate::order::OrderKey;
use crate::page::PageId;
use crate::spaces::ClassId;
use crate::{Core, Policy};
use std::collections::VecDeque;
use undercroft_wire::{PageKey, SessionId};

/// Requests of one domain whose length is remembered.
const MOST_LENGTHS: usize = 1024;

/// How many pages the newest requests of a domain have, by stamp: a page that is used says
/// only how many lie before it.
#[derive(Debug, Default)]
pub(crate) struct Lengths(VecDeque<(u64, u32)>);

impl Lengths {
    fn note(&mut self, stamp: u64, pages: u32) {
        match self.0.binary_search_by_key(&stamp, |length| length.0) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(pages),
            Err(at) => {
                self.0.insert(at, (stamp, pages));
                if self.0.len() > MOST_LENGTHS {
                    self.0.pop_front();
                }
            }
        }
    }

    /// 0 if it is not known.
    fn of(&self, stamp: u64) -> u32 {
        let newest = self.0.back().filter(|length| length.0 == stamp);
        let found = || self.0.binary_search_by_key(&stamp, |length| length.0).ok();
        newest.or_else(|| self.0.get(found()?)).map_or(0, |length| length.1)
    }

    pub(crate) fn audit(&self, clock: u64) {
        assert!(self.0.len() <= MOST_LENGTHS, "lengths are bounded");
        assert!(self.0.iter().is_sorted_by(|a, b| a.0 < b.0), "a request has one length");
        assert!(self.0.back().is_none_or(|length| length.0 <= clock), "no request is to come");
    }
}

/// Eviction by density: a page is kept as long as pages of its kind are worth it.
impl Core {
    /// A request of the session has so many pages, or more.
    pub(crate) fn note_length(&mut self, session: SessionId, stamp: u64, pages: usize) {
        if self.config.policy != Policy::Density {
            return;
        }
        if let Some(at) = self.domain_of(session) {
            let pages = u32::try_from(pages).unwrap_or(u32::MAX);
            self.domains.get_mut(at).lengths.note(stamp, pages);
        }
    }

    /// What a page that is used is granted: what pages of its kind were learnt to be worth. One that is
    /// not in DRAM must find room there that nobody was promised.
    pub(crate) fn learnt_credit(&mut self, id: PageId, stamp: u64, is_again: bool) -> u64 {
        let page = &self.index[id];
        let (depth, stays) = (page.depth, page.has_frame());
        let (class, hash) = (self.class_of(id), PageIndex::hash_of(page.space, &page.key));
        let kind = self.kind_of(class, stamp, (is_again, depth));
        self.observe(class, hash, stamp, kind);
        let learner = self.frames.class(class).learner.as_ref();
        match learner.and_then(|learner| learner.credit(kind)) {
            Some(credit) if stays || self.has_unpromised(class) => credit,
            Some(_) => 0,
            None if is_again => self.capacity_of(class) / 2,
            None => 0,
        }
    }

    /// A page was not stored for want of room. What is not kept counts as much as what is.
    pub(crate) fn note_declined(&mut self, tip: &Tip, key: &PageKey) {
        if self.config.policy == Policy::Density {
            let class = self.spaces.get(tip.space).class;
            let kind = self.kind_of(class, tip.stamp, (false, tip.depth));
            let hash = PageIndex::hash_of(tip.space, key);
            self.tick(self.frames.class(class).domain);
            self.observe(class, hash, tip.stamp, kind);
        }
    }

    fn kind_of(&self, class: ClassId, stamp: u64, (is_again, depth): (bool, u32)) -> Kind {
        let lengths = &self.domains.get(self.frames.class(class).domain).lengths;
        Kind::new(is_again, lengths.of(stamp).saturating_sub(depth).saturating_sub(1))
    }

    fn observe(&mut self, class: ClassId, hash: u64, stamp: u64, kind: Kind) {
        let room = self.capacity_of(class);
        let state = self.frames.class_mut(class);
        let clock = self.domains.get(state.domain).last_stamp;
        if room == 0 {
            return;
        }
        if !state.learner.as_ref().is_some_and(|learner| learner.fits(room)) {
            state.learner = Some(Box::new(Learner::new(room, clock)));
        }
        let learner = state.learner.as_mut().expect("it was made above");
        learner.observe(hash, stamp, kind);
        if learner.is_due(room, clock) {
            let room = self.frames.room_of(class).clamp(1, room);
            let learner = self.frames.class_mut(class).learner.as_mut();
            learner.expect("it was made above").learn(room, clock);
        }
    }

    fn has_learnt(&self, class: ClassId) -> bool {
        let learner = self.frames.class(class).learner.as_ref();
        learner.is_some_and(|learner| learner.has_learnt())
    }

    /// Whether there is room in DRAM, or a page that was kept for as long as it is worth.
    fn has_unpromised(&self, class: ClassId) -> bool {
        let state = self.frames.class(class);
        let clock = self.domains.get(state.domain).last_stamp;
        let over = state.order.coldest().is_some_and(|coldest| coldest.rank() < clock);
        over || self.frames.has_available(class, 1)
    }

    /// Where a page to be stored stands at most: what was promised to others is not taken from
    /// them. `None`: nothing was.
    pub(crate) fn bar(&self, class: ClassId) -> Option<OrderKey> {
        let promised = self.config.policy == Policy::Density && self.has_learnt(class);
        let clock = self.domains.get(self.frames.class(class).domain).last_stamp;
        promised.then(|| OrderKey::new(clock, u32::MAX, PageId::at(0)))
    }

    /// The most that a page may have been granted.
    pub(crate) fn most_credit(&self, class: ClassId) -> u64 {
        let room = self.capacity_of(class);
        if self.config.policy == Policy::Density { Learner::most_credit(room) } else { room / 2 }
    }

    pub(crate) fn audit_density(&self) {
        for (_, domain) in self.domains.iter() {
            domain.lengths.audit(domain.last_stamp);
        }
        for (_, class) in self.frames.classes() {
            let clock = self.domains.get(class.domain).last_stamp;
            class.learner.iter().for_each(|learner| learner.audit(clock));
        }
    }
}
