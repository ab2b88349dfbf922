use super::Frames;
use crate::notes::{Note, Notes};
use crate::restored::RestoredSlab;
use crate::slabs::Slab;
use crate::spaces::ClassId;
use undercroft_wire::{FRAME_ALIGN, FrameId, MAX_PAGE_BYTES, PartId};

/// What an earlier daemon left.
impl Frames {
    /// Slabs without pages stay from here on, until [`Frames::drop_unused`].
    pub(crate) fn keep_unused(&mut self) {
        self.keeps_unused = true;
    }

    /// Whether there may be more to come of what an earlier daemon left.
    pub(crate) fn is_restoring(&self) -> bool {
        self.keeps_unused
    }

    pub(crate) fn drop_unused(&mut self, notes: &mut Notes) {
        self.keeps_unused = false;
        let unused = self.slabs.iter().filter(|(_, slab)| slab.is_unused());
        for first in unused.map(|(first, _)| first).collect::<Vec<_>>() {
            self.drop_slab(first, notes);
        }
    }

    /// Cuts a part as it was cut; false if that cannot be.
    pub(crate) fn restore_slab(&mut self, slab: &RestoredSlab) -> bool {
        let align = u64::from(FRAME_ALIGN);
        let RestoredSlab { part, offset, bytes, frame_bytes } = *slab;
        let Some(part) = self.parts.get(part).copied() else {
            return false;
        };
        let frame = u64::from(frame_bytes);
        let sized = frame > 0 && frame.is_multiple_of(align) && frame <= MAX_PAGE_BYTES.into();
        let whole = sized && bytes > 0 && bytes.is_multiple_of(frame);
        let end = offset.checked_add(bytes).filter(|end| *end <= u64::from(part.units) * align);
        if !whole || !offset.is_multiple_of(align) || end.is_none() {
            return false;
        }
        let (first, units) = (part.first + (offset / align) as u32, (bytes / align) as u32);
        if !self.gaps_mut(part.domain).take_at(first, units) {
            return false;
        }
        let class = self.class_of(part.domain, frame_bytes);
        let frames = (bytes / frame) as u32;
        self.add_slab(first, Slab::new(class, frame_bytes / FRAME_ALIGN, frames));
        true
    }

    /// Whether a slab begins there.
    pub(crate) fn has_slab(&self, part: PartId, offset: u64) -> bool {
        self.unit(part, offset).is_some_and(|unit| self.slabs.get(unit).is_some())
    }

    fn unit(&self, part: PartId, offset: u64) -> Option<u32> {
        let part = self.parts.get(part)?;
        let unit = u32::try_from(offset / u64::from(FRAME_ALIGN)).ok()?;
        let aligned = offset.is_multiple_of(FRAME_ALIGN.into());
        (aligned && unit < part.units).then_some(part.first + unit)
    }

    /// The frame that begins there.
    pub(crate) fn find(&self, part: PartId, offset: u64) -> Option<(ClassId, FrameId)> {
        let unit = self.unit(part, offset)?;
        let (first, slab) = self.slabs.before(unit)?;
        let inside = unit < first + slab.units() && (unit - first).is_multiple_of(slab.each);
        inside.then_some((slab.class, FrameId(unit)))
    }

    /// Takes a frame that was found; false if it is taken.
    pub(crate) fn take_this(&mut self, frame: FrameId) -> bool {
        let (first, slab) = self.slabs.of_mut(frame.0);
        if !slab.take_this((frame.0 - first) / slab.each) {
            return false;
        }
        let state = &mut self.classes[slab.class.0 as usize];
        if slab.closed {
            state.total += 1;
            return true;
        }
        state.free -= 1;
        if slab.free == 0 {
            state.open.remove(&first);
        }
        true
    }

    pub(super) fn note_of(&self, first: u32) -> Note {
        let (_, slab) = self.slabs.of(first);
        let part = self.parts.of(first);
        Note::Slab {
            part: part.id,
            offset: part.offset_of(first),
            bytes: u64::from(slab.units()) * u64::from(FRAME_ALIGN),
            frame_bytes: self.class(slab.class).frame_bytes,
        }
    }

    /// Every slab, as the note of it.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = Note> + '_ {
        self.slabs.iter().map(|(first, _)| self.note_of(first))
    }
}
