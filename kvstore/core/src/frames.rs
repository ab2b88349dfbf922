use crate::FramePlace;
use crate::claims::Claim;
use crate::domains::DomainAt;
use crate::gaps::Gaps;
use crate::notes::{Note, Notes};
use crate::order::Order;
use crate::parts::Parts;
use crate::restored::RestoredSlab;
use crate::slabs::{Slab, Slabs};
use crate::spaces::ClassId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use undercroft_wire::{FRAME_ALIGN, FrameId, MAX_PAGE_BYTES, PartId};

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
    /// While an earlier daemon's frames are restored, slabs wait for the pages in them.
    keeps_unused: bool,
}

/// The frames of one domain and size.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) domain: DomainAt,
    pub(crate) frame_bytes: u32,
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
}

impl Class {
    fn new(domain: DomainAt, frame_bytes: u32) -> Self {
        Self {
            domain,
            frame_bytes,
            total: 0,
            free: 0,
            open: BTreeSet::new(),
            resident: 0,
            order: Order::default(),
            busy: 0,
            waiting: VecDeque::new(),
            starved: false,
            hungry: false,
        }
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

    /// The class of a domain's frames of `frame_bytes` bytes.
    pub(crate) fn class_of(&mut self, domain: DomainAt, frame_bytes: u32) -> ClassId {
        let next = ClassId(self.classes.len() as u32);
        let class = *self.by_kind.entry((domain, frame_bytes)).or_insert(next);
        if class == next {
            self.classes.push(Class::new(domain, frame_bytes));
        }
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
        if !part.retiring {
            self.gaps_mut(domain).add(first, slab.units(), (part.first, part.end()));
        }
    }

    /// Bytes of a domain's parts.
    pub(crate) fn bytes_of(&self, domain: DomainAt) -> u64 {
        let parts = self.parts.iter().filter(|part| part.domain == domain);
        parts.map(|part| u64::from(part.units) * u64::from(FRAME_ALIGN)).sum()
    }
}

/// Slabs and parts that are to become empty.
impl Frames {
    /// Places nothing new in the part; returns the classes that have slabs in it. `None` if there
    /// is no such part or it retires already.
    pub(crate) fn retire(&mut self, part: PartId, notes: &mut Notes) -> Option<BTreeSet<ClassId>> {
        let part = self.parts.retire(part)?;
        self.gaps_mut(part.domain).take_within(part.first, part.end());
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

    /// Forgets a retired part that has no slabs any more; whether it had none.
    pub(crate) fn forget_if_empty(&mut self, id: PartId) -> bool {
        let Some(part) = self.parts.get(id).copied() else {
            return true;
        };
        let empty = self.slabs.within(part.first, part.end()).next().is_none();
        if empty {
            self.parts.remove(id);
        }
        empty
    }
}

/// What an earlier daemon left.
impl Frames {
    /// Slabs without pages stay from here on, until [`Frames::drop_unused`].
    pub(crate) fn keep_unused(&mut self) {
        self.keeps_unused = true;
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

    fn note_of(&self, first: u32) -> Note {
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
        let (small, large) = (frames.class_of(DOMAIN, 4096), frames.class_of(DOMAIN, 3 * 4096));
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
        let (small, large) = (frames.class_of(DOMAIN, 4096), frames.class_of(DOMAIN, 3 * 4096));
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
