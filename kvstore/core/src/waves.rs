use crate::domains::DomainAt;
use crate::heat::Heat;
use crate::page::{Dram, LAST_ASIDE, Mark, Page, PageId};
use crate::{Core, Policy};
use std::collections::VecDeque;
use undercroft_wire::{PageKey, SpaceId};

/// Chains of one domain that wait to be cooled further. A hint beyond that reaches no further than
/// its step does.
const MAX_COOLING: usize = 64;

/// Changes of heat that are passed on along chains, from pages to those before them.
///
/// A chain may be as long as the index, and one small request touches all of it. So a step passes
/// on as much as [`crate::Config::step_pages`], and what is left goes on a few pages a step,
/// domain by domain in turn. Until it has arrived a page may be dearer than the one before it;
/// [`Core::next_timer`] is due as long.
#[derive(Debug)]
pub(crate) struct Waves {
    domains: Vec<DomainWaves>,
    /// Whose turn it is.
    turn: usize,
    /// How many entries there are over all domains.
    waiting: usize,
    /// Pages that the step under way may still do at once.
    pub(crate) left: u32,
}

#[derive(Debug, Default)]
struct DomainWaves {
    /// Pages that may be dearer than their parent. They stay known until they are looked at. The
    /// last comes first: a later wave runs into an earlier one and ends it.
    rising: Vec<PageId>,
    /// Pages that are to be cooled or laid aside if their only child is, and where to.
    cooling: VecDeque<(SpaceId, PageKey, Chill)>,
}

/// How pages are made less dear that only one conversation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chill {
    /// They are worth nothing more.
    Cooled,
    /// They leave DRAM early, and are worth to SSDs what they were ([`Page::aside`]).
    Aside(u8),
}

#[derive(Debug, Clone, Copy)]
enum Wave {
    Rising(PageId),
    Cooling(SpaceId, PageKey, Chill),
}

impl Waves {
    pub(crate) fn new(domains: usize) -> Self {
        let domains = (0..domains).map(|_| DomainWaves::default()).collect();
        Self { domains, turn: 0, waiting: 0, left: 0 }
    }

    fn of(&mut self, domain: DomainAt) -> &mut DomainWaves {
        &mut self.domains[domain.0 as usize]
    }

    fn rise(&mut self, domain: DomainAt, page: PageId) {
        self.of(domain).rising.push(page);
        self.waiting += 1;
    }

    fn cool(&mut self, domain: DomainAt, page: (SpaceId, PageKey, Chill)) {
        let cooling = &mut self.of(domain).cooling;
        if cooling.len() < MAX_COOLING {
            cooling.push_back(page);
            self.waiting += 1;
        }
    }

    fn pop(&mut self) -> Option<Wave> {
        if self.waiting == 0 {
            return None;
        }
        loop {
            self.turn = (self.turn + 1) % self.domains.len();
            let domain = &mut self.domains[self.turn];
            let rising = domain.rising.pop().map(Wave::Rising);
            let cooling = || {
                let next = domain.cooling.pop_front();
                next.map(|(space, key, chill)| Wave::Cooling(space, key, chill))
            };
            if let Some(wave) = rising.or_else(cooling) {
                self.waiting -= 1;
                return Some(wave);
            }
        }
    }

    /// Checks the count; returns the pages that may be dearer than their parents.
    pub(crate) fn audit(&self) -> impl Iterator<Item = PageId> + '_ {
        let waiting = self.domains.iter().map(|domain| domain.rising.len() + domain.cooling.len());
        assert_eq!(waiting.sum::<usize>(), self.waiting, "waves are counted");
        self.domains.iter().flat_map(|domain| &domain.rising).copied()
    }
}

/// How long a page stays, as far as it was laid aside: the more the longer.
fn stays(page: &Page) -> u8 {
    match page.aside() {
        _ if { page.heat }.is_cooled() => 0,
        0 => LAST_ASIDE + 1,
        aside => aside,
    }
}

impl Core {
    /// Whether changes of heat wait to be passed on.
    pub(crate) fn has_waves(&self) -> bool {
        self.waves.waiting > 0
    }

    /// Whether the step under way may look at one more page of a chain.
    fn may_go_on(&mut self) -> bool {
        let may = self.waves.left > 0;
        self.waves.left -= u32::from(may);
        may
    }

    /// Marks a page as used by the request `stamp`. By depth, one that was stored or used by
    /// another is granted half a capacity for that: what came back once does so again. By density
    /// it is granted what was learnt.
    pub(crate) fn touch(&mut self, page: PageId, stamp: u64) {
        if self.index[page].is_awaited() {
            self.turn_came(page, stamp);
        }
        let heat = self.index[page].heat;
        if heat.stamp() >= stamp {
            if stamp > 0 {
                self.warm(page, heat);
            }
            return;
        }
        let class = self.class_of(page);
        self.tick(self.frames.class(class).domain);
        let is_again = heat.stamp() > 0;
        // What was found on an SSD at start was stored by somebody before.
        if is_again || self.index[page].has_record() {
            self.note_used_again(page);
        }
        let credit = match self.config.policy {
            Policy::Depth if is_again => self.capacity_of(class) / 2,
            Policy::Lru | Policy::Depth => 0,
            Policy::Density => self.learnt_credit(page, stamp, is_again),
        };
        let used = Heat::new(stamp).with_credit(credit);
        self.warm(page, heat.joined(used, self.config.policy));
    }

    /// Has a page be as dear as that. Those before it are used with it, so a page is never dearer
    /// than the one before it: raising stops where that holds already.
    pub(crate) fn warm(&mut self, page: PageId, heat: Heat) {
        let entry = &self.index[page];
        if { entry.heat }.covers(heat, self.config.policy) && entry.aside() == 0 {
            return;
        }
        self.raise(page, heat, 0);
        let mut id = page;
        while let Some((parent, heat, aside)) = self.colder_parent(id) {
            if !self.may_go_on() {
                return self.raise_later(id);
            }
            self.raise(parent, heat, aside);
            id = parent;
        }
    }

    /// Has a page be no less dear than one of that heat, laid aside so or not at all.
    fn raise(&mut self, id: PageId, heat: Heat, aside: u8) {
        self.index[id].set(Mark::Touched, true);
        let page = &self.index[id];
        let aside = if page.aside() == 0 || aside == 0 { 0 } else { page.aside().max(aside) };
        let heat = { page.heat }.joined(heat, self.config.policy);
        self.set_heat(id, heat, aside);
    }

    /// Somebody uses the page who did not store it.
    fn note_used_again(&mut self, id: PageId) {
        let page = &mut self.index[id];
        if page.was_used_again() {
            return;
        }
        page.set_used_again();
        if page.has_record() && matches!(page.dram, Dram::None | Dram::Reading) {
            self.note_back(id);
        }
    }

    /// The page's parent, if that is less dear, and what the page has.
    fn colder_parent(&self, id: PageId) -> Option<(PageId, Heat, u8)> {
        let (page, policy) = (&self.index[id], self.config.policy);
        let covers = |parent: &Page| {
            { parent.heat }.covers(page.heat, policy) && stays(parent) >= stays(page)
        };
        let parent = page.parent.filter(|parent| !covers(&self.index[*parent]));
        parent.map(|parent| (parent, page.heat, page.aside()))
    }

    fn raise_later(&mut self, id: PageId) {
        if self.index[id].is(Mark::Rising) {
            return;
        }
        self.index[id].set(Mark::Rising, true);
        let domain = self.domain_of_space(self.index[id].space);
        self.waves.rise(domain, id);
    }

    /// Makes a leaf, and the ancestors that have no other descendants, less dear than all others.
    pub(crate) fn chill(&mut self, leaf: PageId, chill: Chill) {
        if self.index[leaf].first_child.is_none() {
            self.chill_one(leaf, chill);
            self.chill_above(leaf, chill);
        }
    }

    fn chill_one(&mut self, id: PageId, chill: Chill) {
        let (heat, aside) = ({ self.index[id].heat }, self.index[id].aside());
        match chill {
            Chill::Cooled => {
                self.set_heat(id, Heat::default(), 0);
                self.index[id].set(Mark::Touched, false);
            }
            // What was laid further aside stays there.
            Chill::Aside(place) if aside == 0 || aside > place => self.set_heat(id, heat, place),
            Chill::Aside(_) => {}
        }
    }

    fn chill_above(&mut self, chilled: PageId, chill: Chill) {
        let mut id = chilled;
        while let Some(parent) = self.index[id].parent.filter(|id| self.may_chill(*id, chill)) {
            if !self.may_go_on() {
                let page = &self.index[parent];
                let (space, key) = (page.space, page.key);
                let domain = self.domain_of_space(space);
                return self.waves.cool(domain, (space, key, chill));
            }
            self.chill_one(parent, chill);
            id = parent;
        }
    }

    /// Whether the page has one child, and that is as cold as it is to be.
    fn may_chill(&self, id: PageId, chill: Chill) -> bool {
        let child = self.index[id].first_child.map(|child| &self.index[child]);
        child.is_some_and(|child| {
            let is_chilled = match chill {
                Chill::Cooled => Heat::is_cooled(child.heat),
                Chill::Aside(place) => stays(child) <= place,
            };
            child.next_sibling.is_none() && is_chilled
        })
    }

    /// Goes on with no more than `limit` pages; returns with how many.
    pub(crate) fn pass_on_waves(&mut self, limit: usize) -> usize {
        for passed in 0..limit {
            match self.waves.pop() {
                None => return passed,
                Some(Wave::Rising(id)) => self.rise_on(id),
                Some(Wave::Cooling(space, key, chill)) => {
                    let known = self.index.find(space, &key);
                    if let Some(id) = known.filter(|id| self.may_chill(*id, chill)) {
                        self.waves.left = 0;
                        self.chill_one(id, chill);
                        self.chill_above(id, chill);
                    }
                }
            }
        }
        limit
    }

    fn rise_on(&mut self, id: PageId) {
        self.index[id].set(Mark::Rising, false);
        if let Some((parent, heat, aside)) = self.colder_parent(id) {
            self.raise(parent, heat, aside);
            if self.colder_parent(parent).is_some() {
                self.raise_later(parent);
            }
        }
        self.prune(id);
    }
}
