use crate::Core;
use crate::page::{Mark, Page, PageId};

/// How many children are looked at to tell whether one is there.
const LOOKS: usize = 32;

/// Which pages a lookup could reach: a page in a tier is unreachable while an ancestor of it is in
/// none. Their number says how much of the tiers is dead weight.
///
/// A page that enters or leaves its last tier may change that for all its descendants, and a chain
/// may be as long as a context. So each page remembers whether its ancestors were all there when
/// it was last looked at, and a change is passed on from parents to children a few pages a step.
/// The number is exact whenever nothing is left to pass on, and [`Core::next_timer`] is due until
/// then.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Pages in a tier that are not reached.
    unreachable: u64,
    /// Pages whose parent may have changed. They stay known until they are looked at.
    pending: Vec<PageId>,
}

impl Core {
    /// Pages that are in a tier, or on their way to one, while an ancestor is in none: no lookup
    /// can find them. A record counts as being in a tier whether or not it has proved itself or
    /// its device answers. While [`Core::next_timer`] is due this may lag behind.
    #[must_use]
    pub fn unreachable_pages(&self) -> u64 {
        self.reach.unreachable
    }

    /// Whether lookups can find the page, or may as soon as all is known that there is to know.
    pub(crate) fn may_be_reached(&self, page: &Page) -> bool {
        page.is(Mark::Reached) || self.is_reach_behind() || self.devices.are_recovering()
    }

    /// Whether changes wait to be passed on.
    pub(crate) fn is_reach_behind(&self) -> bool {
        !self.reach.pending.is_empty()
    }

    /// To be called after a page may have entered its first or left its last tier.
    pub(crate) fn note_presence(&mut self, id: PageId) {
        let page = &mut self.index[id];
        let present = page.is_present();
        if page.is(Mark::Present) == present {
            return;
        }
        page.set(Mark::Present, present);
        if page.is(Mark::Reached) {
            self.look_below(id);
        } else {
            self.count_unreachable(present);
        }
    }

    /// Looks whether the page is reached, now that its parent may have changed.
    pub(crate) fn note_parent(&mut self, id: PageId) {
        let page = &self.index[id];
        let reached = match page.parent {
            Some(parent) => {
                let parent = &self.index[parent];
                parent.is(Mark::Present) && parent.is(Mark::Reached)
            }
            None => page.depth == 0,
        };
        if page.is(Mark::Reached) == reached {
            return;
        }
        let present = page.is(Mark::Present);
        self.index[id].set(Mark::Reached, reached);
        if present {
            self.count_unreachable(!reached);
            self.look_below(id);
        }
    }

    fn count_unreachable(&mut self, more: bool) {
        if more {
            self.reach.unreachable += 1;
        } else {
            self.reach.unreachable -= 1;
        }
    }

    fn look_below(&mut self, id: PageId) {
        if let Some(child) = self.index[id].first_child {
            self.look_from(child);
        }
    }

    /// Has the page and the siblings behind it looked at.
    fn look_from(&mut self, id: PageId) {
        let page = &mut self.index[id];
        if !page.is(Mark::Pending) {
            page.set(Mark::Pending, true);
            self.reach.pending.push(id);
        }
    }

    /// Looks at no more than `limit` pages; returns at how many.
    pub(crate) fn pass_on_reach(&mut self, limit: usize) -> usize {
        for looked in 0..limit {
            let Some(id) = self.reach.pending.pop() else {
                return looked;
            };
            let page = &mut self.index[id];
            page.set(Mark::Pending, false);
            // Siblings wait below the page's own children: no more wait than a chain is deep.
            if let Some(sibling) = page.next_sibling {
                self.look_from(sibling);
            }
            self.note_parent(id);
            self.prune(id);
        }
        limit
    }

    /// Puts the page among its parent's children.
    pub(crate) fn join_siblings(&mut self, id: PageId, parent: PageId) {
        let next = self.index[parent].first_child.replace(id);
        if let Some(next) = next {
            self.index[next].prev_sibling = Some(id);
        }
        self.index[id].next_sibling = next;
        self.note_parent(id);
    }

    /// Takes a page that was forgotten out of its parent's children.
    pub(crate) fn leave_siblings(
        &mut self,
        parent: PageId,
        (prev, next): (Option<PageId>, Option<PageId>),
    ) {
        match prev {
            Some(prev) => self.index[prev].next_sibling = next,
            None => self.index[parent].first_child = next,
        }
        if let Some(next) = next {
            self.index[next].prev_sibling = prev;
        }
    }

    /// Checks every link and count against a walk over all pages.
    pub(crate) fn audit_reach(&self) {
        let mut unreachable = 0;
        let mut behind = self.reach.pending.clone();
        for (id, page) in self.index.iter() {
            assert_eq!(page.is(Mark::Present), page.is_present(), "presence is noted");
            assert_eq!(page.is(Mark::Pending), self.reach.pending.contains(&id), "who waits knows");
            unreachable += u64::from(page.is(Mark::Present) && !page.is(Mark::Reached));
            if let Some(next) = page.next_sibling {
                assert_eq!(self.index[next].prev_sibling, Some(id), "siblings know each other");
                assert_eq!(self.index[next].parent, page.parent, "siblings have one parent");
            }
            for child in self.children_of(id) {
                assert_eq!(self.index[child].parent, Some(id), "a child knows its parent");
            }
        }
        assert_eq!(unreachable, self.reach.unreachable, "unreachable pages are counted");
        // What a page believes is right unless it or a sibling before it waits.
        let mut waits = std::collections::BTreeSet::new();
        while let Some(id) = behind.pop() {
            waits.insert(id);
            behind.extend(self.index[id].next_sibling.filter(|next| !waits.contains(next)));
        }
        for (id, page) in self.index.iter().filter(|(id, _)| !waits.contains(id)) {
            let parent = page.parent.map(|parent| &self.index[parent]);
            let reached = parent.map_or(page.depth == 0, |parent| {
                parent.is(Mark::Present) && parent.is(Mark::Reached)
            });
            assert_eq!(page.is(Mark::Reached), reached, "page {id:?} knows whether it is reached");
        }
    }

    /// Whether any child of the page is so; of very many the last ones linked are looked at.
    pub(crate) fn has_child(&self, id: PageId, is: impl Fn(&Page) -> bool) -> bool {
        self.children_of(id).take(LOOKS).any(|child| is(&self.index[child]))
    }

    /// The children of a page, the last one linked first.
    pub(crate) fn children_of(&self, id: PageId) -> impl Iterator<Item = PageId> + '_ {
        let first = self.index[id].first_child;
        std::iter::successors(first, |child| self.index[*child].next_sibling)
    }
}
