use crate::Core;
use crate::names::{Name, Names};
use crate::page::PageId;
use std::num::NonZeroU32;
use undercroft_wire::{MissCause, PageKey, SpaceId};

/// Bits of the second in which a page left: four years.
const SECOND_BITS: u32 = 27;

/// Why pages left their last tier, and in which second: of as many of the last ones as find room.
///
/// It is there for people who ask why a lookup missed. Nothing is decided by it.
#[derive(Debug)]
pub(crate) struct Obituaries(Names);

impl Obituaries {
    /// One byte for each page that may be known, at most.
    const PAGES_EACH: u32 = 8;

    /// `wanted` is false where nobody asks.
    pub(crate) fn new(wanted: bool, max_pages: u32) -> Self {
        let places = 1 << (max_pages / Self::PAGES_EACH).max(1024).ilog2();
        Self(Names::new(if wanted { places } else { 0 }))
    }

    fn note(&mut self, name: Name, cause: MissCause, second: u32) {
        let entry = (cause as u32 + 1) << SECOND_BITS | second.min((1 << SECOND_BITS) - 1);
        self.0.remember(name, NonZeroU32::new(entry).expect("a cause's number is more than 0"));
    }

    fn recall(&self, name: Name) -> Option<(MissCause, u32)> {
        let entry = self.0.recall(name)?.get();
        let cause = MissCause::ALL.get((entry >> SECOND_BITS) as usize - 1)?;
        Some((*cause, entry & ((1 << SECOND_BITS) - 1)))
    }
}

const _: () = assert!(
    (MissCause::ALL.len() as u32) < 1 << (u32::BITS - SECOND_BITS),
    "a cause and a second share a word"
);

impl Core {
    /// The page may have left its last tier just now. To be called before it is forgotten.
    pub(crate) fn bury(&mut self, id: PageId, cause: MissCause) {
        let page = &self.index[id];
        if !page.is_present() {
            let (space, key) = (page.space, page.key);
            self.bury_key(space, &key, cause);
        }
    }

    /// As [`Core::bury`], for a page that is in no tier and may not be known.
    pub(crate) fn bury_key(&mut self, space: SpaceId, key: &PageKey, cause: MissCause) {
        if self.obituaries.0.len() > 0 {
            let second = (self.now.0 / 1_000_000) as u32;
            self.obituaries.note(self.index.name(space, key), cause, second);
        }
    }

    /// Why the page left last, and when, seconds since 1970.
    pub(crate) fn obituary(&self, space: SpaceId, key: &PageKey) -> Option<(MissCause, u32)> {
        let (cause, second) = self.obituaries.recall(self.index.name(space, key))?;
        Some((cause, self.config.unix_s.saturating_add(second)))
    }
}
