use crate::Core;
use crate::page::Page;
use undercroft_wire::{DomainId, PageKey};

/// Room that is kept for what a step says of first pages.
const KEPT: usize = 4096;

/// A page that chains begin with, of depth 0, is known from here on or not any more. Known are also
/// those that are in no tier yet, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstPage {
    /// Whose it is.
    pub domain: DomainId,
    /// Its key. Each space of the domain that it is known in counts.
    pub key: PageKey,
    /// Whether it came.
    pub came: bool,
}

/// First pages that came and went, where somebody wants to hear of them.
#[derive(Debug)]
pub(crate) struct Firsts {
    wanted: bool,
    list: Vec<FirstPage>,
}

impl Firsts {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, list: Vec::new() }
    }

    /// Gives back the room that only a rare step needs.
    pub(crate) fn trim(&mut self) {
        if self.list.is_empty() {
            self.list.shrink_to(KEPT);
        }
    }
}

impl Core {
    /// The first pages that came and went in the steps since the last call, in order. To be called
    /// after every step where [`crate::Config::firsts`] is set: until then they pile up.
    pub fn drain_firsts(&mut self) -> impl Iterator<Item = FirstPage> + '_ {
        self.firsts.list.drain(..)
    }

    /// All first pages that are known, as if they had just come.
    pub fn first_pages(&self) -> impl Iterator<Item = FirstPage> + '_ {
        let firsts = self.index.iter().filter(|(_, page)| page.depth == 0);
        firsts.map(|(_, page)| self.first_page(page, true))
    }

    /// A page was taken into the index or taken out of it. Its depth never changes.
    pub(crate) fn note_first(&mut self, page: &Page, came: bool) {
        if self.firsts.wanted && page.depth == 0 {
            let first = self.first_page(page, came);
            self.firsts.list.push(first);
        }
    }

    fn first_page(&self, page: &Page, came: bool) -> FirstPage {
        FirstPage { domain: self.spaces.get(page.space).domain, key: page.key, came }
    }
}
