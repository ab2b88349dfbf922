use std::num::NonZeroU32;

/// One thing to remember of pages by their names, in a table that never grows: of pages that share a
/// place the newest is remembered, and of the others nothing is.
#[derive(Debug)]
pub(crate) struct Names {
    /// The upper half of a name, and below it what is remembered; 0: nothing.
    entries: Vec<u64>,
}

/// What a page is called here, drawn anew at each start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name(u64);

impl Name {
    /// Of a page's number in the index.
    pub(crate) fn new(number: u64) -> Self {
        // Any of its bits depends on all of the number's.
        let name = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let name = (name ^ name >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self(name ^ name >> 32)
    }

    /// Whether it is one of those drawn where one in `2^halvings` is.
    pub(crate) fn is_drawn(self, halvings: u32) -> bool {
        // Not by the bits that say where it stands and what is left of it.
        let drawn = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        drawn & ((1 << halvings) - 1) == 0
    }
}

impl Names {
    /// Room for so many: a power of two, or 0.
    pub(crate) fn new(entries: usize) -> Self {
        assert!(entries == 0 || entries.is_power_of_two(), "places are bits of names");
        Self { entries: vec![0; entries] }
    }

    /// Places there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn remember(&mut self, name: Name, what: NonZeroU32) {
        if let Some(slot) = self.slot(name) {
            self.entries[slot] = name.0 & !u64::from(u32::MAX) | u64::from(what.get());
        }
    }

    pub(crate) fn recall(&self, name: Name) -> Option<NonZeroU32> {
        let entry = self.entries[self.slot(name)?];
        let is_it = entry >> u32::BITS == name.0 >> u32::BITS;
        NonZeroU32::new(entry as u32).filter(|_| is_it)
    }

    /// As [`Names::recall`], once.
    pub(crate) fn take(&mut self, name: Name) -> Option<NonZeroU32> {
        let found = self.recall(name)?;
        let slot = self.slot(name)?;
        self.entries[slot] = 0;
        Some(found)
    }

    fn slot(&self, name: Name) -> Option<usize> {
        let mask = self.entries.len().checked_sub(1)?;
        Some(name.0 as usize & mask)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn what(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn the_newest_in_a_place_is_remembered_and_nobody_else_is_taken_for_it() {
        let mut names = Names::new(16);
        let all: Vec<Name> = (0..64).map(Name::new).collect();
        for (number, name) in (1..).zip(&all) {
            names.remember(*name, what(number));
            assert_eq!(names.recall(*name), Some(what(number)));
        }
        let known: Vec<u32> =
            all.iter().filter_map(|name| names.recall(*name)).map(NonZeroU32::get).collect();
        assert!((8..=16).contains(&known.len()), "{known:?}");
        for (number, name) in (1..).zip(&all) {
            let found = names.recall(*name);
            assert!(found.is_none() || found == Some(what(number)), "{number}: {found:?}");
            assert_eq!(names.take(*name), found);
            assert_eq!(names.recall(*name), None, "it is told once");
        }
    }

    #[test]
    fn a_table_without_room_remembers_nothing() {
        let mut names = Names::new(0);
        names.remember(Name::new(1), what(1));
        assert_eq!((names.len(), names.recall(Name::new(1))), (0, None));
    }
}
