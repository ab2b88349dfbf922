//! Purges, and what must never be found again because of them.

use super::report::Count;
use super::world::{World, note};
use std::collections::{BTreeMap, HashMap};
use undercroft_core::Event;
use undercroft_ssd_tier::PurgeList;
use undercroft_wire::{PageIdentity, PurgeId, PurgeScope};

/// What there is of purges outside the core.
#[derive(Debug, Default)]
pub(super) struct Purges {
    /// As the daemon has it.
    pub(super) list: PurgeList,
    /// As it lies beside the page logs.
    written: PurgeList,
    /// Not over yet: whether the pages are gone.
    under_way: BTreeMap<PurgeId, bool>,
    /// When the list is on the medium, if it is on its way there.
    pub(super) written_at: Option<u64>,
    /// Pages that were purged and not stored since, and by which purge.
    gone: HashMap<PageIdentity, PurgeId>,
}

impl World {
    /// Somebody purges a domain, a space, or what a writer has in a domain.
    pub(super) fn purge(&mut self) {
        let spec = self.book.spaces[self.rng.usize(..self.book.spaces.len())];
        let all = PurgeScope { domain: Some(spec.domain), ..PurgeScope::default() };
        let scope = match self.rng.u8(..4) {
            0 => all,
            1 => PurgeScope { writer: Some(self.rng.u32(..3)), ..all },
            _ => PurgeScope { space: Some(spec.digest), ..all },
        };
        let unix_s = (self.now / 1_000_000) as u32;
        let purge = self.purges.list.add(scope, unix_s);
        note!(self, "purge {purge}: {scope:?}");
        self.purges.under_way.insert(purge, false);
        let due = self.now + self.rng.u64(..5_000);
        self.purges.written_at.get_or_insert(due);
        // Of what a writer has stored nobody here keeps a book.
        if scope.writer.is_none() {
            let book = std::rc::Rc::clone(&self.book);
            for spec in book.spaces.iter().filter(|spec| scope.means(spec.domain, spec.digest, 0)) {
                for chain in 0..book.chains {
                    for key in book.chain(chain) {
                        self.purges.gone.entry(book.identity(spec, key)).or_insert(purge);
                    }
                }
            }
        }
        self.step(Event::Purge { purge, scope });
    }

    /// The pages of a purge are gone.
    pub(super) fn swept(&mut self, purge: PurgeId) {
        let swept = self.purges.under_way.get_mut(&purge).expect("a purge that was asked for");
        assert!(!std::mem::replace(swept, true), "a purge ends once");
    }

    /// The list is on the medium: what is gone from the tiers too is over for good.
    pub(super) fn write_purges(&mut self) {
        self.purges.written_at = None;
        self.purges.written = self.purges.list.clone();
        self.end_purges();
    }

    fn end_purges(&mut self) {
        let over = self.purges.under_way.values().all(|swept| *swept);
        if over && self.purges.written_at.is_none() {
            self.report.more(Count::Purges, self.purges.under_way.len() as u64);
            self.purges.under_way.clear();
            let purge = self.purges.list.last();
            self.step(Event::PurgeOver { purge });
        } else if self.purges.written_at.is_none() {
            // Not all pages are gone: it is looked at again.
            self.purges.written_at = Some(self.now + 500);
        }
    }

    /// The daemon is gone. Purges that were not acknowledged may have come as far as the medium.
    pub(super) fn cut_purges(&mut self) {
        let Purges { list, written, under_way, written_at, gone } = &mut self.purges;
        if written_at.take().is_some() && self.rng.bool() {
            *written = list.clone();
        }
        gone.retain(|_, purge| !under_way.contains_key(purge));
        under_way.clear();
        *list = written.clone();
    }

    /// A page is stored: whatever was purged before does not mean it.
    pub(super) fn stored(&mut self, page: &PageIdentity) {
        self.purges.gone.remove(page);
    }

    /// Checks that a page that is found or delivered was not purged.
    ///
    /// # Panics
    /// It was.
    pub(super) fn check_there(&self, page: &PageIdentity) {
        let by = self.purges.gone.get(page);
        assert!(by.is_none(), "{page:?} is back, which purge {by:?} took");
    }
}
