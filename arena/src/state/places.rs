//! From a place in the arena to the row of its frame.

use super::layout::{FRAME_WORDS, Layout, UNIT_BYTES};
use super::rows::{PartRow, SlabRow};
use undercroft_wire::PartId;

/// All parts and their slabs. A frame is found for each page that is filled, touched or leased, so
/// its slab is guessed by where it lies, and looked for only where the guess was wrong.
#[derive(Debug, Default)]
pub(super) struct Places {
    parts: Vec<PartPlace>,
}

#[derive(Debug)]
pub(super) struct PartPlace {
    pub(super) part: PartId,
    /// Its row in the table of parts, which is also its place among the frame rows.
    pub(super) row: u32,
    bytes: u64,
    /// Slabs in the order of where they start: units, and which of `slabs` it is.
    starts: Vec<(u32, u32)>,
    /// In no order; those that are not in `starts` are free.
    slabs: Vec<SlabPlace>,
    free: Vec<u32>,
    /// For each stretch of the part, which of `slabs` lay over its start last.
    guesses: Vec<u32>,
}

/// Units of a stretch that has one guess: no more than a slab of the usual size has.
const STRETCH_UNITS: u32 = 4096;

/// The frame rows of one slab. They lie one after the other from where the slab starts, so that
/// they take no more memory than they must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlabPlace {
    pub(super) part: PartId,
    /// Its row in the table of slabs.
    pub(super) row: u32,
    pub(super) cut: u32,
    /// Word of its first frame's row.
    pub(super) at: usize,
    start: u32,
    units: u32,
    frame_units: u32,
}

/// The row of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FramePlace {
    pub(super) at: usize,
    pub(super) cut: u32,
}

impl SlabPlace {
    fn is_over(&self, unit: u32) -> bool {
        unit.wrapping_sub(self.start) < self.units
    }

    pub(super) fn slab(&self) -> SlabRow {
        SlabRow {
            part: self.part,
            offset: u64::from(self.start) * UNIT_BYTES,
            bytes: u64::from(self.units) * UNIT_BYTES,
            frame_bytes: self.frame_bytes(),
        }
    }

    pub(super) fn frames(&self) -> usize {
        (self.units / self.frame_units) as usize
    }

    pub(super) fn frame_bytes(&self) -> u32 {
        self.frame_units * UNIT_BYTES as u32
    }

    /// Words of its frames' rows.
    pub(super) fn words(&self) -> std::ops::Range<usize> {
        self.at..self.at + self.frames() * FRAME_WORDS
    }

    /// Where the frame whose row starts at the word `at` starts in its part, bytes.
    pub(super) fn offset(&self, at: usize) -> u64 {
        let frame = (at - self.at) / FRAME_WORDS;
        u64::from(self.start) * UNIT_BYTES + frame as u64 * u64::from(self.frame_bytes())
    }
}

impl Places {
    fn position(&self, part: PartId) -> Result<usize, usize> {
        self.parts.binary_search_by_key(&part, |place| place.part)
    }

    pub(super) fn part(&self, part: PartId) -> Option<&PartPlace> {
        self.position(part).ok().map(|at| &self.parts[at])
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &PartPlace> {
        self.parts.iter()
    }

    pub(super) fn slabs(&self) -> impl Iterator<Item = &SlabPlace> {
        self.parts.iter().flat_map(PartPlace::slabs)
    }

    /// `false` if there is one of that number already.
    pub(super) fn add_part(&mut self, part: &PartRow, row: u32) -> bool {
        let Err(at) = self.position(part.part) else { return false };
        let units = part.bytes.div_ceil(UNIT_BYTES) as u32;
        let place = PartPlace {
            part: part.part,
            row,
            bytes: part.bytes,
            starts: Vec::new(),
            slabs: Vec::new(),
            free: Vec::new(),
            guesses: vec![0; units.div_ceil(STRETCH_UNITS) as usize],
        };
        self.parts.insert(at, place);
        true
    }

    pub(super) fn remove_part(&mut self, part: PartId) -> Option<PartPlace> {
        self.position(part).ok().map(|at| self.parts.remove(at))
    }

    /// Whether the slab lies inside its part and over no other.
    pub(super) fn fits(&self, slab: &SlabRow) -> Result<(), &'static str> {
        let Some(part) = self.part(slab.part) else { return Err("its part is not known") };
        let each = u64::from(slab.frame_bytes);
        if each == 0 || !each.is_multiple_of(UNIT_BYTES) {
            return Err("its frames are no multiples of 4096 bytes");
        }
        if slab.bytes == 0 || !slab.bytes.is_multiple_of(each) {
            return Err("it is no multiple of its frames");
        }
        let end = slab.offset.checked_add(slab.bytes);
        if !slab.offset.is_multiple_of(UNIT_BYTES) || end.is_none_or(|end| end > part.bytes) {
            return Err("it is not inside its part");
        }
        let (start, units) = in_units(slab);
        let after = part.starts.partition_point(|s| s.0 < start);
        let next = part.starts.get(after).is_none_or(|next| start + units <= next.0);
        let before = after.checked_sub(1).map(|before| part.nth(before));
        let free = before.is_none_or(|before| before.start + before.units <= start);
        if next && free { Ok(()) } else { Err("it lies over another") }
    }

    /// Adds a slab that [`Places::fits`].
    pub(super) fn add_slab(&mut self, layout: &Layout, slab: &SlabRow, row: u32, cut: u32) {
        let at = self.position(slab.part).expect("the part of a slab that fits is known");
        let part = &mut self.parts[at];
        let (start, units) = in_units(slab);
        let frames_at = layout.frames_at + part.row as usize * layout.part_words;
        let place = SlabPlace {
            part: slab.part,
            row,
            cut,
            at: frames_at + start as usize * FRAME_WORDS,
            start,
            units,
            frame_units: slab.frame_bytes / UNIT_BYTES as u32,
        };
        part.add(place);
    }

    pub(super) fn remove_slab(&mut self, part: PartId, offset: u64) -> Option<SlabPlace> {
        let at = self.position(part).ok()?;
        self.parts[at].remove(offset)
    }

    /// The row of the frame that starts at `offset` in `part`.
    #[inline]
    pub(super) fn frame(&self, part: PartId, offset: u64) -> Option<FramePlace> {
        let part = self.part(part)?;
        if offset >= part.bytes || !offset.is_multiple_of(UNIT_BYTES) {
            return None;
        }
        let unit = (offset / UNIT_BYTES) as u32;
        let slab = part.over(unit)?;
        let within = unit - slab.start;
        if !within.is_multiple_of(slab.frame_units) {
            return None;
        }
        let frame = (within / slab.frame_units) as usize;
        Some(FramePlace { at: slab.at + frame * FRAME_WORDS, cut: slab.cut })
    }
}

impl PartPlace {
    /// In the order of where they start.
    pub(super) fn slabs(&self) -> impl Iterator<Item = &SlabPlace> {
        self.starts.iter().map(|(_, slab)| &self.slabs[*slab as usize])
    }

    fn nth(&self, at: usize) -> &SlabPlace {
        &self.slabs[self.starts[at].1 as usize]
    }

    /// The slab that lies over `unit`, which is inside the part.
    #[inline]
    fn over(&self, unit: u32) -> Option<&SlabPlace> {
        let guess = self.guesses[(unit / STRETCH_UNITS) as usize];
        match self.slabs.get(guess as usize) {
            Some(slab) if slab.is_over(unit) => Some(slab),
            _ => {
                let after = self.starts.partition_point(|(start, _)| *start <= unit);
                Some(self.nth(after.checked_sub(1)?)).filter(|slab| slab.is_over(unit))
            }
        }
    }

    fn add(&mut self, slab: SlabPlace) {
        let index = self.free.pop().unwrap_or(self.slabs.len() as u32);
        match self.slabs.get_mut(index as usize) {
            Some(free) => *free = slab,
            None => self.slabs.push(slab),
        }
        let at = self.starts.partition_point(|(start, _)| *start < slab.start);
        self.starts.insert(at, (slab.start, index));
        let first = slab.start / STRETCH_UNITS;
        let last = (slab.start + slab.units - 1) / STRETCH_UNITS;
        self.guesses[first as usize..=last as usize].fill(index);
    }

    fn remove(&mut self, offset: u64) -> Option<SlabPlace> {
        let starts_there = |(start, _): &(u32, u32)| u64::from(*start) * UNIT_BYTES == offset;
        let at = self.starts.iter().position(starts_there)?;
        let (_, index) = self.starts.remove(at);
        self.free.push(index);
        let slab = &mut self.slabs[index as usize];
        let removed = *slab;
        // Nobody's guess is right about it.
        slab.units = 0;
        Some(removed)
    }
}

/// Start and size of a slab inside its part, which has no more than 2^31 units.
fn in_units(slab: &SlabRow) -> (u32, u32) {
    ((slab.offset / UNIT_BYTES) as u32, (slab.bytes / UNIT_BYTES) as u32)
}
