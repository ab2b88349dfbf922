use super::{Class, Frames};
use crate::domains::DomainAt;
use crate::spaces::ClassId;
use std::collections::{BTreeMap, BTreeSet};
use undercroft_wire::FrameId;

/// Checks of all frames against each other.
impl Frames {
    /// The class of the slab that a frame lies in.
    pub(crate) fn class_of_frame(&self, frame: FrameId) -> ClassId {
        let (first, slab) = self.slabs.of(frame.0);
        assert_eq!((frame.0 - first) % slab.each, 0, "a frame begins where its slab says");
        slab.class
    }

    /// Every free frame.
    pub(crate) fn free_frames(&self) -> impl Iterator<Item = FrameId> + '_ {
        self.slabs.iter().flat_map(|(first, slab)| {
            let open = if slab.closed { 0 } else { slab.frames };
            let free = (0..open).filter(|frame| slab.is_free(*frame));
            free.map(move |frame| FrameId(first + frame * slab.each))
        })
    }

    /// Checks that slabs and gaps fill the parts of each domain exactly, and that all counts are
    /// right; returns how many frames there are.
    pub(crate) fn audit(&self) -> usize {
        let mut runs = BTreeMap::new();
        let closed = self.slabs.iter().filter(|(_, slab)| slab.closed).count();
        assert_eq!(closed, self.closed as usize, "closed slabs are counted");
        for (first, slab) in self.slabs.iter() {
            let used = !slab.is_unused() || self.keeps_unused;
            assert!(used, "a slab that nobody uses is given back");
            let domain = self.class(slab.class).domain;
            runs.insert(first, (slab.units(), domain));
        }
        for (domain, gaps) in (0..).map(DomainAt).zip(&self.gaps) {
            for (first, units) in gaps.iter() {
                let old = runs.insert(first, (units, domain));
                assert_eq!(old, None, "a gap begins where no slab does");
            }
        }
        let mut runs = runs.into_iter().peekable();
        for part in self.parts.iter() {
            let mut unit = part.first;
            while let Some((first, (units, domain))) = runs.next_if(|(at, _)| *at < part.end()) {
                let beside = first == unit || (part.retiring && first > unit);
                assert!(beside, "slabs and gaps lie side by side");
                assert_eq!(domain, part.domain, "a part is its domain's");
                unit = first + units;
            }
            let full = unit == part.end() || part.retiring;
            assert!(full, "slabs and gaps fill their part");
        }
        assert_eq!(runs.next(), None, "slabs and gaps lie in parts");
        for part in self.parts.iter().filter(|part| part.retiring) {
            let slabs = self.slabs.within(part.first, part.end()).count();
            assert!(slabs > 0, "a part that retires is let go when it is empty");
        }
        self.classes().map(|(id, class)| self.audit_class(id, class)).sum()
    }

    fn audit_class(&self, id: ClassId, class: &Class) -> usize {
        let (mut total, mut free, mut open) = (0, 0, BTreeSet::new());
        for (first, slab) in self.slabs.iter().filter(|(_, slab)| slab.class == id) {
            let counted = (0..slab.frames).filter(|frame| slab.is_free(*frame)).count();
            assert_eq!(counted, slab.free as usize, "a slab counts its free frames");
            assert_eq!(slab.each, class.each(), "a slab has frames of its class's size");
            if slab.closed {
                total += slab.frames - slab.free;
                continue;
            }
            assert!(!self.parts.of(first).retiring, "nothing is placed in a part that retires");
            total += slab.frames;
            free += slab.free;
            open.extend((slab.free > 0).then_some(first));
        }
        assert_eq!((total, free), (class.total, class.free), "a class counts its frames");
        assert_eq!(open, class.open, "a class knows its slabs with free frames");
        total as usize
    }
}
