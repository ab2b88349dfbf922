use crate::machine::BACKGROUND_PAGES;
use crate::order::OrderKey;
use crate::page::{Mark, OnSsd, PageId};
use crate::spaces::ClassId;
use crate::{Action, Core};
use std::collections::{BTreeSet, VecDeque};
use undercroft_wire::PartId;

/// A class gives a slab up only if at least so many of its pages, or as many as a slab has, are
/// colder than all of the class that needs it: with fewer, the two would take slabs from each other
/// in turn.
const COLDER_PAGES: usize = 32;

/// Slabs that are to become empty: those of parts that retire, and those that another class has
/// more use for. Nothing new is placed in them, and their pages leave.
#[derive(Debug, Default)]
pub(crate) struct Drains {
    /// Classes whose order is walked for pages that were evictable when their slab was closed.
    walks: VecDeque<Walk>,
    /// Pages that can leave now.
    leaving: BTreeSet<PageId>,
    /// Pages being written to SSD so that they can leave.
    writing: BTreeSet<PageId>,
}

#[derive(Debug)]
struct Walk {
    class: ClassId,
    /// How far it has come.
    after: Option<OrderKey>,
}

impl Core {
    /// Nothing new is placed in the part from here on.
    pub(crate) fn retire_part(&mut self, part: PartId) {
        let Some(classes) = self.frames.retire(part, &mut self.notes) else {
            return;
        };
        for class in classes {
            self.start_walk(class);
        }
    }

    fn start_walk(&mut self, class: ClassId) {
        self.drains.walks.push_back(Walk { class, after: None });
    }

    /// Has a slab of a class of the same domain emptied whose pages are colder than all of
    /// `class`, one at a time: sizes share an arena by use, not by who came first.
    pub(crate) fn drain_colder(&mut self, class: ClassId, actions: &mut Vec<Action>) {
        let domain = self.frames.class(class).domain;
        if self.domains.get(domain).draining.is_some() {
            return;
        }
        let own = self.frames.class(class).order.coldest();
        let others = self.frames.classes_of(domain).filter(|other| *other != class);
        let colder = others.filter_map(|other| {
            let state = self.frames.class(other);
            let coldest = state.order.coldest()?;
            // A class with nothing to evict has a right to some room whatever others have.
            let most = COLDER_PAGES.min(self.frames.frames_per_slab(other));
            let enough = own.is_none_or(|own| state.order.has_below(&self.index, own, most));
            enough.then_some((coldest, other))
        });
        let Some((coldest, other)) = colder.min() else {
            return;
        };
        let frame =
            self.index.frame_of(&self.index[coldest.page()]).expect("an ordered page has a frame");
        let Some(first) = self.frames.close_slab_of(frame, &mut self.notes) else {
            return;
        };
        self.domains.get_mut(domain).draining = Some(first);
        self.stats.drained_slabs += 1;
        self.start_walk(other);
        self.drain(BACKGROUND_PAGES, actions);
    }

    /// The page can leave DRAM from here on: it does, if its slab is to become empty.
    pub(crate) fn note_leaving(&mut self, id: PageId) {
        if self.frames.has_closed()
            && let Some(frame) = self.index.frame_of(&self.index[id])
            && self.frames.is_closed(frame)
        {
            self.drains.leaving.insert(id);
        }
    }

    /// A page was written, or could not be.
    pub(crate) fn note_written(&mut self, id: PageId) {
        self.drains.writing.remove(&id);
        self.note_leaving(id);
    }

    /// Who has answered for pages being written may do so no more.
    pub(crate) fn forget_writing(&mut self) {
        self.drains.writing.clear();
    }

    /// Whether pages can leave that no step has looked at yet.
    pub(crate) fn is_draining(&self) -> bool {
        let waits = !self.drains.walks.is_empty() || !self.drains.leaving.is_empty();
        waits && self.drains.writing.len() < self.most_writing()
    }

    /// How many pages may be on their way to SSD for this at once.
    fn most_writing(&self) -> usize {
        self.config.demote_ahead.max(1) as usize
    }

    /// Looks at no more than `limit` pages; returns at how many.
    pub(crate) fn drain(&mut self, limit: usize, actions: &mut Vec<Action>) -> usize {
        for looked in 0..limit {
            if !self.is_draining() {
                return looked;
            }
            match self.drains.leaving.pop_first() {
                Some(page) => self.leave(page, actions),
                None => self.walk_on(actions),
            }
        }
        limit
    }

    fn walk_on(&mut self, actions: &mut Vec<Action>) {
        let Some(mut walk) = self.drains.walks.pop_front() else {
            return;
        };
        if let Some(key) = self.frames.class(walk.class).order.after(&self.index, walk.after) {
            walk.after = Some(key);
            self.drains.walks.push_front(walk);
            self.leave(key.page(), actions);
        }
    }

    /// Takes the page out of DRAM if its slab is to become empty and it can go, writing it first
    /// where that is what eviction does.
    fn leave(&mut self, id: PageId, actions: &mut Vec<Action>) {
        let page = self.index.get(id).filter(|page| page.is(Mark::Ordered));
        let Some(frame) = page.and_then(|page| self.index.frame_of(page)) else {
            return;
        };
        if !self.frames.is_closed(frame) {
            return;
        }
        match self.index[id].on_ssd() {
            // It is looked at again when that is over.
            OnSsd::Writing => {}
            _ if self.is_demotable(id) && self.is_admitted(id) => {
                self.drains.writing.insert(id);
                self.demote(id, actions);
            }
            _ => self.refuse_or_evict(id),
        }
    }

    /// Says which retired parts are empty now.
    pub(crate) fn let_parts_go(&mut self, actions: &mut Vec<Action>) {
        while let Some(part) = self.frames.thinned.pop_first() {
            if self.frames.forget_if_empty(part) {
                actions.push(Action::PartEmpty { part });
            }
        }
    }
}
