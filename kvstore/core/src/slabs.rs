use crate::spaces::ClassId;
use std::collections::BTreeMap;

/// A run of frames of one size inside one part.
#[derive(Debug)]
pub(crate) struct Slab {
    pub(crate) class: ClassId,
    /// Units of each frame.
    pub(crate) each: u32,
    pub(crate) frames: u32,
    /// Whether it is to become empty: no frame of it is given out.
    pub(crate) closed: bool,
    /// How many of them nobody uses.
    pub(crate) free: u32,
    /// One bit a frame, set while it is free.
    bits: Vec<u64>,
    /// No word before this one has a bit set.
    from: usize,
}

/// All slabs by the number of their first unit.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    by_first: BTreeMap<u32, Slab>,
}

impl Slab {
    /// A slab none of whose frames is used.
    pub(crate) fn new(class: ClassId, each: u32, frames: u32) -> Self {
        let mut bits = vec![u64::MAX; frames.div_ceil(64) as usize];
        if let (Some(last), rest @ 1..) = (bits.last_mut(), frames % 64) {
            *last = (1 << rest) - 1;
        }
        Self { class, each, frames, closed: false, free: frames, bits, from: 0 }
    }

    pub(crate) fn units(&self) -> u32 {
        self.each * self.frames
    }

    /// The first free frame, in use from here on.
    pub(crate) fn take(&mut self) -> Option<u32> {
        while let Some(word) = self.bits.get_mut(self.from) {
            if *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                self.free -= 1;
                return Some(self.from as u32 * 64 + bit);
            }
            self.from += 1;
        }
        None
    }

    /// Takes this very frame; false if it is in use.
    pub(crate) fn take_this(&mut self, frame: u32) -> bool {
        let free = self.is_free(frame);
        self.bits[frame as usize / 64] &= !(1 << (frame % 64));
        self.free -= u32::from(free);
        free
    }

    pub(crate) fn give_back(&mut self, frame: u32) {
        let (word, bit) = (frame as usize / 64, 1 << (frame % 64));
        assert!(frame < self.frames && self.bits[word] & bit == 0, "a frame in use is given back");
        self.bits[word] |= bit;
        self.from = self.from.min(word);
        self.free += 1;
    }

    pub(crate) fn is_free(&self, frame: u32) -> bool {
        self.bits[frame as usize / 64] >> (frame % 64) & 1 == 1
    }

    pub(crate) fn is_unused(&self) -> bool {
        self.free == self.frames
    }
}

impl Slabs {
    pub(crate) fn insert(&mut self, first: u32, slab: Slab) {
        let old = self.by_first.insert(first, slab);
        assert!(old.is_none(), "no two slabs begin at one unit");
    }

    pub(crate) fn remove(&mut self, first: u32) -> Slab {
        self.by_first.remove(&first).expect("a slab is removed once")
    }

    pub(crate) fn get_mut(&mut self, first: u32) -> &mut Slab {
        self.by_first.get_mut(&first).expect("a slab is known by its first unit")
    }

    pub(crate) fn get(&self, first: u32) -> Option<&Slab> {
        self.by_first.get(&first)
    }

    /// The last slab that begins no later than there.
    pub(crate) fn before(&self, unit: u32) -> Option<(u32, &Slab)> {
        self.by_first.range(..=unit).next_back().map(|(first, slab)| (*first, slab))
    }

    /// As [`Slabs::of_mut`].
    pub(crate) fn of(&self, unit: u32) -> (u32, &Slab) {
        self.before(unit).expect("a frame lies in a slab")
    }

    /// The slab a unit lies in, and the number of its first unit.
    pub(crate) fn of_mut(&mut self, unit: u32) -> (u32, &mut Slab) {
        let before = self.by_first.range_mut(..=unit).next_back();
        let (first, slab) = before.expect("a frame lies in a slab");
        (*first, slab)
    }

    /// The first units of the slabs that begin in `start..end`.
    pub(crate) fn within(&self, start: u32, end: u32) -> impl Iterator<Item = u32> + '_ {
        self.by_first.range(start..end).map(|(first, _)| *first)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Slab)> {
        self.by_first.iter().map(|(first, slab)| (*first, slab))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_had_once_the_lowest_first() {
        for frames in [1, 63, 64, 65, 200] {
            let mut slab = Slab::new(ClassId(0), 3, frames);
            let taken: Vec<u32> = std::iter::from_fn(|| slab.take()).collect();
            assert_eq!(taken, (0..frames).collect::<Vec<_>>());
            slab.give_back(frames / 2);
            assert!(slab.is_free(frames / 2));
            assert_eq!(slab.take(), Some(frames / 2));
            for frame in 0..frames {
                slab.give_back(frame);
            }
            assert!(slab.is_unused());
        }
    }
}
