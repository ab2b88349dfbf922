use super::Frames;
use crate::notes::Notes;
use crate::spaces::ClassId;
use std::collections::BTreeSet;
use undercroft_wire::{FRAME_ALIGN, FrameId, PartId};

/// Slabs and parts that are to become empty.
impl Frames {
    /// Places nothing new in the part; returns the classes that have slabs in it. `None` if there
    /// is no such part or it retires already.
    pub(crate) fn retire(&mut self, part: PartId, notes: &mut Notes) -> Option<BTreeSet<ClassId>> {
        let part = self.parts.retire(part)?;
        self.gaps_mut(part.domain).take_within(part.first, part.end());
        self.thinned.insert(part.id);
        let slabs: Vec<u32> = self.slabs.within(part.first, part.end()).collect();
        let mut classes = BTreeSet::new();
        for first in slabs {
            classes.insert(self.slabs.get_mut(first).class);
            self.close_slab(first, notes);
        }
        Some(classes)
    }

    /// Gives out no more frames of the slab that a frame lies in; `None` if that is so already.
    pub(crate) fn close_slab_of(&mut self, frame: FrameId, notes: &mut Notes) -> Option<u32> {
        let (first, slab) = self.slabs.of(frame.0);
        if slab.closed {
            return None;
        }
        self.close_slab(first, notes);
        Some(first)
    }

    fn close_slab(&mut self, first: u32, notes: &mut Notes) {
        let slab = self.slabs.get_mut(first);
        if !std::mem::replace(&mut slab.closed, true) {
            let (class, free, unused) = (slab.class, slab.free, slab.is_unused());
            let state = self.class_mut(class);
            state.total -= free;
            state.free -= free;
            state.open.remove(&first);
            self.closed += 1;
            if unused {
                self.drop_slab(first, notes);
            }
        }
    }

    /// Whether any slab is to become empty.
    pub(crate) fn has_closed(&self) -> bool {
        self.closed > 0
    }

    /// Whether the frame's slab is to become empty.
    pub(crate) fn is_closed(&self, frame: FrameId) -> bool {
        self.slabs.of(frame.0).1.closed
    }

    pub(crate) fn has_slab_at(&self, first: u32) -> bool {
        self.slabs.get(first).is_some()
    }

    /// How many frames of the class a slab is cut into.
    pub(crate) fn frames_per_slab(&self, class: ClassId) -> usize {
        (self.slab_bytes / u64::from(self.class(class).frame_bytes)).max(1) as usize
    }

    /// Bytes of frames of the part that somebody uses.
    pub(crate) fn used_bytes_in(&self, id: PartId) -> u64 {
        let Some(part) = self.parts.get(id) else { return 0 };
        let slabs = self.slabs.within(part.first, part.end());
        let used = |first: u32| {
            let slab = self.slabs.get(first).expect("a slab is where it is said to be");
            u64::from(slab.frames - slab.free) * u64::from(slab.each) * u64::from(FRAME_ALIGN)
        };
        slabs.map(used).sum()
    }

    /// Forgets a retired part that has no slabs any more; whether it had none.
    pub(crate) fn forget_if_empty(&mut self, id: PartId) -> bool {
        let Some(part) = self.parts.get(id).copied() else {
            return false;
        };
        let empty = self.slabs.within(part.first, part.end()).next().is_none();
        if empty {
            self.parts.remove(id);
        }
        empty
    }
}
