//! The frame table: one row for each frame that is not free.

use super::State;
use super::error::Unkept;
use super::layout::FRAME_WORDS;
use super::places::{FramePlace, PartPlace, SlabPlace};
use super::rows::{FrameRow, PageRow, TableId, bytes_of, check, halves, pair, words_of};
use super::words::{EMPTY, Words};
use std::ops::Range;
use undercroft_wire::{PageKey, PartId, SpaceId};

/// Lower half of the state word; the upper half is the cut of the slab.
const FILLING: u32 = 1;
const FILLED: u32 = 2;
/// The word that changes whenever a page is used: beside the state, and not under the checksum.
const HEAT: usize = 1;
const GENERATION: usize = 12;
const HAS_PARENT: u32 = 1;
const PURGED: u32 = 2;

type Words16 = [u64; FRAME_WORDS];

fn encode(page: &PageRow, place: FramePlace) -> Words16 {
    let mut words = [0; FRAME_WORDS];
    words[0] = pair(FILLED, place.cut);
    words[HEAT] = page.heat;
    words[2..6].copy_from_slice(&words_of::<4>(&page.key.0));
    if let Some(parent) = page.parent {
        words[6..10].copy_from_slice(&words_of::<4>(&parent.0));
    }
    words[10] = pair(page.space.0, page.depth);
    words[11] = page.crc;
    words[GENERATION] = pair(page.generation, page.born);
    let has_parent = if page.parent.is_some() { HAS_PARENT } else { 0 };
    words[13] = pair(page.writer, has_parent | if page.purged { PURGED } else { 0 });
    words[15] = frame_check(&words, place.at);
    words
}

fn decode(words: &Words16, at: usize) -> Option<PageRow> {
    if words[15] != frame_check(words, at) {
        return None;
    }
    let (space, depth) = halves(words[10]);
    let (generation, born) = halves(words[GENERATION]);
    let (writer, flags) = halves(words[13]);
    let key = |words: &[u64]| PageKey(bytes_of(words));
    Some(PageRow {
        space: SpaceId(space),
        key: key(&words[2..6]),
        parent: (flags & HAS_PARENT != 0).then(|| key(&words[6..10])),
        depth,
        crc: words[11],
        heat: words[HEAT],
        generation,
        writer,
        born,
        purged: flags & PURGED != 0,
    })
}

/// Covers all of the page but its heat, and in place of heat and state where the row is and of
/// which cut.
fn frame_check(words: &Words16, at: usize) -> u64 {
    let mut covered = *words;
    covered[0] = pair(TableId::Frames as u32, halves(words[0]).1);
    covered[HEAT] = at as u64;
    covered[FRAME_WORDS - 1] = 0;
    check(covered)
}

/// What is in the frame whose row starts at the word `at`. Of a page that does not prove itself the
/// frame is left: nobody may be given it before it is certain that nobody uses it.
fn frame_row(words: &Words, slab: &SlabPlace, at: usize) -> Option<FrameRow> {
    let found = words.read_row::<FRAME_WORDS>(at);
    let (state, cut) = halves(found[0]);
    let page = match state {
        // An earlier slab's.
        _ if cut != slab.cut => return None,
        FILLED => decode(&found, at),
        FILLING => None,
        _ => return None,
    };
    let (part, frame_bytes) = (slab.part, slab.frame_bytes());
    Some(FrameRow { part, offset: slab.offset(at), frame_bytes, page })
}

impl State {
    fn frame(&self, part: PartId, offset: u64) -> Result<FramePlace, Unkept> {
        self.places.frame(part, offset).ok_or(Unkept::Unknown { what: "frame" })
    }

    /// From here on the frame's bytes mean nothing.
    ///
    /// # Errors
    /// No slab has such a frame.
    pub fn filling(&mut self, part: PartId, offset: u64) -> Result<(), Unkept> {
        let place = self.frame(part, offset)?;
        self.words.store(place.at, pair(FILLING, place.cut));
        Ok(())
    }

    /// The frame holds a page.
    ///
    /// # Errors
    /// No slab has such a frame.
    pub fn filled(&mut self, part: PartId, offset: u64, page: &PageRow) -> Result<(), Unkept> {
        let place = self.frame(part, offset)?;
        let meanwhile = pair(FILLING, place.cut);
        self.words.write_row(place.at, meanwhile, &encode(page, place));
        Ok(())
    }

    /// The frame's page was purged, and somebody uses the frame yet.
    ///
    /// # Errors
    /// No slab has such a frame.
    pub fn purged(&mut self, part: PartId, offset: u64) -> Result<(), Unkept> {
        let place = self.frame(part, offset)?;
        let found = self.words.read_row::<FRAME_WORDS>(place.at);
        let page = (found[0] == pair(FILLED, place.cut)).then(|| decode(&found, place.at));
        match page.flatten() {
            Some(page) => self.filled(part, offset, &PageRow { purged: true, ..page }),
            // Nobody would find it.
            None => Ok(()),
        }
    }

    /// The frame's page was used.
    ///
    /// # Errors
    /// No slab has such a frame.
    pub fn touched(&mut self, part: PartId, offset: u64, heat: u64) -> Result<(), Unkept> {
        let place = self.frame(part, offset)?;
        self.words.store(place.at + HEAT, heat);
        Ok(())
    }

    /// The frame is free.
    ///
    /// # Errors
    /// No slab has such a frame.
    pub fn gone(&mut self, part: PartId, offset: u64) -> Result<(), Unkept> {
        let place = self.frame(part, offset)?;
        self.words.store(place.at, EMPTY);
        Ok(())
    }

    /// The generation of the page in a frame, if there is one.
    pub(super) fn page_generation(&self, part: PartId, offset: u64) -> Option<u32> {
        let place = self.places.frame(part, offset)?;
        let filled = self.words.load(place.at) == pair(FILLED, place.cut);
        filled.then(|| halves(self.words.load(place.at + GENERATION)).0)
    }

    /// Every frame that is not free, by part and offset.
    pub fn frames(&self) -> impl Iterator<Item = FrameRow> + '_ {
        self.places.slabs().flat_map(|slab| self.frames_of_slab(slab))
    }

    /// Those of one part: several can be read at once, by a thread each.
    pub fn frames_of(&self, part: PartId) -> impl Iterator<Item = FrameRow> + '_ {
        let slabs = self.places.part(part).into_iter().flat_map(PartPlace::slabs);
        slabs.flat_map(|slab| self.frames_of_slab(slab))
    }

    fn frames_of_slab<'a>(&'a self, slab: &'a SlabPlace) -> impl Iterator<Item = FrameRow> + 'a {
        Present { words: &self.words, left: slab.words() }.flat_map(|run| {
            self.words.populate(&run);
            let first = run.start - (run.start - slab.at) % FRAME_WORDS;
            let rows = (first..run.end).step_by(FRAME_WORDS);
            rows.filter_map(|at| frame_row(&self.words, slab, at))
        })
    }
}

/// The runs of pages of a range of words that are in memory.
struct Present<'a> {
    words: &'a Words,
    left: Range<usize>,
}

impl Iterator for Present<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let run = self.words.present(self.left.clone())?;
        self.left.start = run.end;
        Some(run)
    }
}
