use crate::FramePlace;
use crate::claims::Claim;
use crate::order::Order;
use crate::spaces::ClassId;
use std::collections::{BTreeMap, VecDeque};
use undercroft_wire::{FrameId, PartId};

/// All frames: parts of the arena, cut on demand into slabs of one frame size each.
#[derive(Debug)]
pub(crate) struct Frames {
    parts: Vec<Part>,
    frames: Vec<Frame>,
    classes: Vec<Class>,
    by_bytes: BTreeMap<u32, ClassId>,
    slab_bytes: u64,
}

#[derive(Debug)]
struct Part {
    bytes: u64,
    /// Bytes already cut, from the start.
    cut: u64,
}

#[derive(Debug)]
struct Frame {
    part: u32,
    class: ClassId,
    offset: u64,
}

/// The frames of one size.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) frame_bytes: u32,
    /// Frames cut so far.
    pub(crate) total: u32,
    pub(crate) free: Vec<FrameId>,
    pub(crate) order: Order,
    /// Jobs under way that use a frame of this size: each ends by itself, and its end may free
    /// one.
    pub(crate) busy: u32,
    /// Who waits for a frame, in order of arrival.
    pub(crate) waiting: VecDeque<Claim>,
    /// Whether the class is on the list of those to look at before the step ends.
    pub(crate) hungry: bool,
}

impl Frames {
    pub(crate) fn new(parts: &[u64], slab_bytes: u64) -> Self {
        Self {
            parts: parts.iter().map(|&bytes| Part { bytes, cut: 0 }).collect(),
            frames: Vec::new(),
            classes: Vec::new(),
            by_bytes: BTreeMap::new(),
            slab_bytes,
        }
    }

    /// The class of frames of `frame_bytes` bytes.
    pub(crate) fn class_of(&mut self, frame_bytes: u32) -> ClassId {
        let next = ClassId(self.classes.len() as u32);
        let class = *self.by_bytes.entry(frame_bytes).or_insert(next);
        if class == next {
            self.classes.push(Class {
                frame_bytes,
                total: 0,
                free: Vec::new(),
                order: Order::default(),
                busy: 0,
                waiting: VecDeque::new(),
                hungry: false,
            });
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

    pub(crate) fn place(&self, frame: FrameId) -> FramePlace {
        let Frame { part, class, offset } = self.frames[frame.0 as usize];
        let bytes = self.class(class).frame_bytes;
        FramePlace { frame, part: PartId(part), offset, bytes }
    }

    /// A frame nobody uses, cut from a part if need be.
    pub(crate) fn take(&mut self, class: ClassId) -> Option<FrameId> {
        if self.class(class).free.is_empty() {
            self.cut_slab(class);
        }
        self.class_mut(class).free.pop()
    }

    pub(crate) fn give_back(&mut self, class: ClassId, frame: FrameId) {
        self.class_mut(class).free.push(frame);
    }

    /// Frames that can be had without evicting.
    pub(crate) fn available(&self, class: ClassId) -> usize {
        let Class { frame_bytes, free, .. } = self.class(class);
        let each = u64::from(*frame_bytes);
        let uncut: u64 = self.parts.iter().map(|part| (part.bytes - part.cut) / each).sum();
        free.len() + uncut as usize
    }

    fn cut_slab(&mut self, class: ClassId) {
        let each = u64::from(self.class(class).frame_bytes);
        let Some(at) = self.parts.iter().position(|part| part.bytes - part.cut >= each) else {
            return;
        };
        let part = &mut self.parts[at];
        let wished = (self.slab_bytes / each).max(1);
        let count = wished.min((part.bytes - part.cut) / each);
        let start = part.cut;
        part.cut += count * each;
        let first = self.frames.len() as u32;
        let offsets = (0..count).map(|n| start + n * each);
        self.frames.extend(offsets.map(|offset| Frame { part: at as u32, class, offset }));
        let class = self.class_mut(class);
        class.total += count as u32;
        class.free.extend((first..first + count as u32).rev().map(FrameId));
    }

    pub(crate) fn part_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Checks that frames lie inside their parts and do not overlap; returns how many there are.
    pub(crate) fn audit(&self) -> usize {
        let mut ends = vec![0; self.parts.len()];
        for frame in &self.frames {
            let end = &mut ends[frame.part as usize];
            assert!(frame.offset >= *end, "frames do not overlap");
            *end = frame.offset + u64::from(self.class(frame.class).frame_bytes);
        }
        for (part, end) in self.parts.iter().zip(ends) {
            assert!(end <= part.cut && part.cut <= part.bytes, "frames lie inside their part");
        }
        for (id, class) in self.classes() {
            let of_class = self.frames.iter().filter(|frame| frame.class == id).count();
            assert_eq!(of_class, class.total as usize, "a class counts its frames");
        }
        self.frames.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_size_gets_every_whole_frame() {
        let mut frames = Frames::new(&[5 * 4096, 3 * 4096 + 100], 2 * 4096);
        let class = frames.class_of(4096);
        assert_eq!(frames.available(class), 8);
        let taken = std::iter::from_fn(|| frames.take(class)).count();
        assert_eq!(taken, 8);
        assert_eq!(frames.available(class), 0);
        assert_eq!(frames.audit(), 8);
    }

    #[test]
    fn sizes_share_a_part_slab_by_slab() {
        let mut frames = Frames::new(&[8 * 4096], 4 * 4096);
        let (small, large) = (frames.class_of(4096), frames.class_of(3 * 4096));
        let first = frames.take(small).expect("room for a slab");
        let second = frames.take(large).expect("room for a slab");
        assert_eq!(frames.place(first).offset, 0);
        assert_eq!(frames.place(second).offset, 4 * 4096);
        assert_eq!(frames.take(large), None);
        assert_eq!(frames.available(small), 3 + 1);
        frames.audit();
    }
}
