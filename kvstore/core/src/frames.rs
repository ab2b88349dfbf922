use crate::FramePlace;
use crate::claims::Claim;
use crate::domains::DomainAt;
use crate::gaps::Gaps;
use crate::learner::Learner;
use crate::notes::{Note, Notes};
use crate::order::Order;
use crate::parts::Parts;
use crate::slabs::{Slab, Slabs};
use crate::spaces::ClassId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use undercroft_wire::{FRAME_ALIGN, FrameId, PartId};

mod audit;
mod closed;
mod restored;

/// All frames: parts of the arena, cut on demand into slabs of one frame size each. A slab that
/// nobody uses a frame of any more becomes room for any size again.
#[derive(Debug)]
pub(crate) struct Frames {
    parts: Parts,
    slabs: Slabs,
    /// What no slab takes, for each domain.
    gaps: Vec<Gaps>,
    classes: Vec<Class>,
    by_kind: BTreeMap<(DomainAt, u32), ClassId>,
    slab_bytes: u64,
    max_parts: u32,
    /// Slabs that are to become empty.
    closed: u32,
    /// Parts that retire, and that a slab has gone from since these were looked at.
    pub(crate) thinned: BTreeSet<PartId>,
    /// While an earlier daemon's frames are restored, slabs wait for the pages in them.
    keeps_unused: bool,
}

/// The frames of one domain and size.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) domain: DomainAt,
    pub(crate) frame_bytes: u32,
    /// Spaces whose pages are of this size.
    pub(crate) spaces: u32,
    /// Frames in its slabs.
    pub(crate) total: u32,
    /// Of these, frames that nobody uses.
    pub(crate) free: u32,
    /// Its slabs with free frames, by their first unit. The first of them is used first, so that
    /// others may become empty.
    open: BTreeSet<u32>,
    /// Pages in DRAM.
    pub(crate) resident: u32,
    pub(crate) order: Order,
    /// Jobs under way that use a frame of this size: each ends by itself, and its end may free
    /// one.
    pub(crate) busy: u32,
    /// Who waits for a frame, in order of arrival.
    pub(crate) waiting: VecDeque<Claim>,
    /// Whether pages were turned away for want of frames.
    pub(crate) starved: bool,
    /// Whether the class is on the list of those to look at before the step ends.
    pub(crate) hungry: bool,
    /// What it has learnt about its pages: only by density.
    pub(crate) learner: Option<Box<Learner>>,
}

impl Class {
    fn new(domain: DomainAt, frame_bytes: u32) -> Self {
        Self {
            domain,
            frame_bytes,
            spaces: 0,
            total: 0,
            free: 0,
            open: BTreeSet::new(),
            resident: 0,
            order: Order::default(),
            busy: 0,
            waiting: VecDeque::new(),
            starved: false,
            hungry: false,
            learner: None,
        }
    }

    /// Whether nobody needs it: it may become another.
    fn is_idle(&self) -> bool {
        let unused = self.spaces == 0 && self.total == 0 && self.busy == 0;
        unused && self.waiting.is_empty() && self.order.is_empty() && !self.hungry
    }

    /// Units of each frame.
    fn each(&self) -> u32 {
        self.frame_bytes / FRAME_ALIGN
    }

    /// Bytes of the frames in use.
    pub(crate) fn used_bytes(&self) -> u64 {
        u64::from(self.total - self.free) * u64::from(self.frame_bytes)
    }
}

impl Frames {
    /// No parts yet. Each domain's frames come out of its own parts.
    pub(crate) fn new(domains: usize, slab_bytes: u64, max_parts: u32) -> Self {
        Self {
            parts: Parts::default(),
            slabs: Slabs::default(),
            gaps: (0..domains).map(|_| Gaps::default()).collect(),
            classes: Vec::new(),
            by_kind: BTreeMap::new(),
            slab_bytes,
            max_parts,
            closed: 0,
            thinned: BTreeSet::new(),
            keeps_unused: false,
        }
    }

    /// Adds a part of the arena to a domain's; false if it is known or there are too many.
    pub(crate) fn add_part(&mut self, part: PartId, domain: DomainAt, bytes: u64) -> bool {
        if self.parts.len() >= self.max_parts as usize {
            return false;
        }
        let Some(part) = self.parts.add(part, domain, bytes) else {
            return false;
        };
        if part.units > 0 {
            self.gaps_mut(domain).add(part.first, part.units, (part.first, part.end()));
        }
        true
    }

    pub(crate) fn has_part(&self, part: PartId) -> bool {
        self.parts.contains(part)
    }

    fn gaps(&self, domain: DomainAt) -> &Gaps {
        &self.gaps[domain.0 as usize]
    }

    fn gaps_mut(&mut self, domain: DomainAt) -> &mut Gaps {
        &mut self.gaps[domain.0 as usize]
    }

    /// The class of a domain's frames of `frame_bytes` bytes. A new one takes the number of one that
    /// nobody needs any more: there are no more of them than spaces and slabs.
    pub(crate) fn class_of(&mut self, domain: DomainAt, frame_bytes: u32) -> ClassId {
        if let Some(class) = self.by_kind.get(&(domain, frame_bytes)) {
            return *class;
        }
        let at = match self.classes.iter().position(Class::is_idle) {
            Some(at) => {
                let old = std::mem::replace(&mut self.classes[at], Class::new(domain, frame_bytes));
                self.by_kind.remove(&(old.domain, old.frame_bytes));
                at
            }
            None => {
                self.classes.push(Class::new(domain, frame_bytes));
                self.classes.len() - 1
            }
        };
        let class = ClassId(at as u32);
        self.by_kind.insert((domain, frame_bytes), class);
        class
    }

    pub(crate) fn class(&self, class: ClassId) -> &Class {
        &self.classes[class.0 as usize]
    }

    pub(crate) fn class_mut(&mut self, class: ClassId) -> &mut Class {
        &mut self.classes[class.0 as usize]
    }

    pub(crate) fn classes(&self) -> impl Iterator<Item = (ClassId, &Class)> {
        self.classes.iter().enumerate().map(|(at, class)| (ClassId(at as u32), class))
    }

    pub(crate) fn classes_of(&self, domain: DomainAt) -> impl Iterator<Item = ClassId> + '_ {
        self.by_kind.range((domain, 0)..=(domain, u32::MAX)).map(|(_, class)| *class)
    }

    /// Where a frame of the class lies.
    pub(crate) fn place(&self, class: ClassId, frame: FrameId) -> FramePlace {
        let (part, offset) = self.parts.place(frame);
        FramePlace { frame, part, offset, bytes: self.class(class).frame_bytes }
    }

    /// A frame nobody uses, cut from a part if need be.
    pub(crate) fn take(&mut self, class: ClassId, notes: &mut Notes) -> Option<FrameId> {
        if self.class(class).open.is_empty() {
            self.cut_slab(class, notes);
        }
        let state = &mut self.classes[class.0 as usize];
        let first = *state.open.first()?;
        let slab = self.slabs.get_mut(first);
        let frame = slab.take().expect("an open slab has a free frame");
        if slab.free == 0 {
            state.open.remove(&first);
        }
        state.free -= 1;
        Some(FrameId(first + frame * slab.each))
    }

    /// Takes back a frame; true if its slab has become room for others.
    pub(crate) fn give_back(&mut self, class: ClassId, frame: FrameId, notes: &mut Notes) -> bool {
        let (first, slab) = self.slabs.of_mut(frame.0);
        assert_eq!(slab.class, class, "a frame is of its slab's class");
        slab.give_back((frame.0 - first) / slab.each);
        let unused = slab.is_unused() && !self.keeps_unused;
        let state = &mut self.classes[class.0 as usize];
        if slab.closed {
            state.total -= 1;
        } else {
            state.free += 1;
            state.open.insert(first);
        }
        if unused {
            self.drop_slab(first, notes);
        }
        unused
    }

    /// Whether at least `count` frames can be had without evicting.
    pub(crate) fn has_available(&self, class: ClassId, count: usize) -> bool {
        let state = self.class(class);
        let more = count.saturating_sub(state.free as usize);
        more == 0 || self.gaps(state.domain).has(more, state.each())
    }

    /// How many frames the class may have besides what others of its domain have taken.
    pub(crate) fn room_of(&self, class: ClassId) -> u64 {
        let state = self.class(class);
        let others = self.classes_of(state.domain).filter(|other| *other != class);
        let taken = others
            .map(|other| self.class(other))
            .map(|other| u64::from(other.total) * u64::from(other.frame_bytes));
        let bytes = self.bytes_of(state.domain).saturating_sub(taken.sum());
        bytes / u64::from(state.frame_bytes)
    }

    fn cut_slab(&mut self, class: ClassId, notes: &mut Notes) {
        let (domain, each) = (self.class(class).domain, self.class(class).each());
        let wished = u32::try_from(self.slab_bytes / u64::from(FRAME_ALIGN)).unwrap_or(u32::MAX);
        let Some((first, units)) = self.gaps_mut(domain).take(wished.max(each), each) else {
            return;
        };
        self.add_slab(first, Slab::new(class, each, units / each));
        notes.add(|| self.note_of(first));
    }

    fn add_slab(&mut self, first: u32, slab: Slab) {
        let state = self.class_mut(slab.class);
        state.total += slab.frames;
        state.free += slab.frames;
        state.open.insert(first);
        self.slabs.insert(first, slab);
    }

    /// Makes a slab that nobody uses a frame of room for any size.
    fn drop_slab(&mut self, first: u32, notes: &mut Notes) {
        let slab = self.slabs.remove(first);
        let state = self.class_mut(slab.class);
        let domain = state.domain;
        if !slab.closed {
            state.total -= slab.frames;
            state.free -= slab.frames;
            state.open.remove(&first);
        }
        self.closed -= u32::from(slab.closed);
        let part = *self.parts.of(first);
        notes.add(|| Note::SlabGone { part: part.id, offset: part.offset_of(first) });
        if part.retiring {
            self.thinned.insert(part.id);
        } else {
            self.gaps_mut(domain).add(first, slab.units(), (part.first, part.end()));
        }
    }

    /// Bytes of a domain's parts.
    pub(crate) fn bytes_of(&self, domain: DomainAt) -> u64 {
        let parts = self.parts.iter().filter(|part| part.domain == domain);
        parts.map(|part| u64::from(part.units) * u64::from(FRAME_ALIGN)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: DomainAt = DomainAt(0);

    fn frames(parts: &[u64], slab_bytes: u64) -> Frames {
        let mut frames = Frames::new(2, slab_bytes, 8);
        for (part, bytes) in (0..).zip(parts) {
            assert!(frames.add_part(PartId(part), DOMAIN, *bytes));
        }
        frames
    }

    /// The class of a space's frames.
    fn of_space(frames: &mut Frames, frame_bytes: u32) -> ClassId {
        let class = frames.class_of(DOMAIN, frame_bytes);
        frames.class_mut(class).spaces += 1;
        class
    }

    fn drain(frames: &mut Frames, class: ClassId) -> Vec<FrameId> {
        std::iter::from_fn(|| frames.take(class, &mut Notes::default())).collect()
    }

    #[test]
    fn one_page_size_gets_every_whole_frame() {
        let mut frames = frames(&[5 * 4096, 3 * 4096 + 100], 2 * 4096);
        let class = frames.class_of(DOMAIN, 4096);
        assert!(frames.has_available(class, 8) && !frames.has_available(class, 9));
        assert_eq!(drain(&mut frames, class).len(), 8);
        assert!(!frames.has_available(class, 1));
        assert_eq!(frames.audit(), 8);
    }

    #[test]
    fn sizes_share_a_part_slab_by_slab() {
        let mut frames = frames(&[8 * 4096], 4 * 4096);
        let (small, large) = (of_space(&mut frames, 4096), of_space(&mut frames, 3 * 4096));
        let first = frames.take(small, &mut Notes::default()).expect("room for a slab");
        let second = frames.take(large, &mut Notes::default()).expect("room for a slab");
        assert_eq!(frames.place(small, first).offset, 0);
        assert_eq!(frames.place(large, second).offset, 4 * 4096);
        assert_eq!(frames.take(large, &mut Notes::default()), None);
        assert!(frames.has_available(small, 3 + 1) && !frames.has_available(small, 5));
        frames.audit();
    }

    #[test]
    fn a_slab_given_back_is_room_for_another_size_and_nothing_is_lost() {
        let mut frames = frames(&[9 * 4096], 4 * 4096);
        let (small, large) = (of_space(&mut frames, 4096), of_space(&mut frames, 3 * 4096));
        let taken = drain(&mut frames, small);
        assert_eq!((taken.len(), frames.take(large, &mut Notes::default())), (9, None));
        let given_back: Vec<bool> = taken[..4]
            .iter()
            .map(|frame| frames.give_back(small, *frame, &mut Notes::default()))
            .collect();
        assert_eq!(given_back, [false, false, false, true]);
        assert_eq!(drain(&mut frames, large).len(), 1);
        frames.audit();
        for frame in &taken[4..] {
            frames.give_back(small, *frame, &mut Notes::default());
        }
        assert_eq!(drain(&mut frames, large).len(), 2, "all but one frame, side by side");
        frames.audit();
    }

    #[test]
    fn domains_have_parts_of_their_own() {
        let mut frames = frames(&[2 * 4096], 4096);
        let other = frames.class_of(DomainAt(1), 4096);
        assert_eq!(frames.take(other, &mut Notes::default()), None);
        assert!(frames.add_part(PartId(9), DomainAt(1), 4096));
        let frame = frames.take(other, &mut Notes::default()).expect("its own part has room");
        assert_eq!(frames.place(other, frame).part, PartId(9));
        assert_eq!(frames.take(other, &mut Notes::default()), None);
        assert_eq!((frames.bytes_of(DOMAIN), frames.bytes_of(DomainAt(1))), (8192, 4096));
        frames.audit();
    }
}
