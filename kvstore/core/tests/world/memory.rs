//! The arena of the world: parts, and which page lies where in them.

use super::Content;
use std::collections::BTreeMap;
use undercroft_core::FramePlace;
use undercroft_wire::{DomainId, PartId};

/// Where a frame begins: part and offset.
pub(crate) type Place = (PartId, u64);

/// Parts and what was put into them. A frame is there from when it is about to be filled until
/// another takes its bytes.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) parts: BTreeMap<PartId, Part>,
    frames: BTreeMap<Place, Frame>,
}

pub(crate) struct Part {
    pub(crate) domain: DomainId,
    pub(crate) bytes: u64,
    /// Whether it was told to retire.
    pub(crate) retired: bool,
}

#[derive(Clone, Copy)]
struct Frame {
    bytes: u64,
    held: Option<Content>,
}

pub(crate) fn place(frame: &FramePlace) -> Place {
    (frame.part, frame.offset)
}

/// Whether a frame shares bytes with another place of so many bytes.
pub(crate) fn overlaps(frame: &FramePlace, (part, offset): Place, bytes: u64) -> bool {
    let end = frame.offset + u64::from(frame.bytes);
    frame.part == part && offset < end && frame.offset < offset + bytes
}

impl Memory {
    /// The frame's bytes mean nothing from here on, nor do those of frames that it overlaps.
    pub(crate) fn clear(&mut self, frame: &FramePlace, domain: DomainId) {
        let part = &self.parts[&frame.part];
        let inside = frame.offset + u64::from(frame.bytes) <= part.bytes;
        assert!(inside, "a frame lies inside its part");
        assert_eq!(part.domain, domain, "a frame lies in its domain's memory");
        self.frames.retain(|at, held| !overlaps(frame, *at, held.bytes));
        let bytes = u64::from(frame.bytes);
        self.frames.insert(place(frame), Frame { bytes, held: None });
    }

    /// A frame of the part is given to somebody: what is read into it may be asked for later.
    pub(crate) fn check_placed(&self, part: PartId) {
        assert!(!self.parts[&part].retired, "nothing is placed in a part that retires");
    }

    /// The part is no more.
    pub(crate) fn remove(&mut self, part: PartId) {
        let part_of = self.parts.remove(&part).expect("a part that is there");
        assert!(part_of.retired, "only parts that retire become empty");
        self.frames.retain(|at, _| at.0 != part);
    }

    pub(crate) fn fill(&mut self, frame: &FramePlace, page: Content) {
        let filled = self.frames.get_mut(&place(frame)).expect("a frame that was cleared");
        filled.held = Some(page);
    }

    /// The page that lies there, whole.
    pub(crate) fn held(&self, at: Place) -> Option<Content> {
        self.frames.get(&at).and_then(|frame| frame.held)
    }

    pub(crate) fn has(&self, page: Content) -> bool {
        self.frames.values().any(|frame| frame.held == Some(page))
    }
}
