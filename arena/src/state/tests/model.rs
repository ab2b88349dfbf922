//! Random sequences against a model made of maps.

use super::*;

impl Snapshot {
    /// The slab that has a frame at `unit`, if any.
    fn frame(&self, part: u32, unit: u64) -> Option<&SlabRow> {
        let offset = unit * 4096;
        let mut slabs = self.slabs.range((part, 0)..=(part, offset));
        let (_, slab) = slabs.next_back()?;
        let within = offset - slab.offset;
        (within < slab.bytes && within.is_multiple_of(slab.frame_bytes.into())).then_some(slab)
    }

    /// What `op` makes of it, or `None` where it is refused.
    pub(super) fn after(&self, op: Op) -> Option<Self> {
        let mut next = self.clone();
        next.apply(op).then_some(next)
    }

    fn apply(&mut self, op: Op) -> bool {
        match op {
            Op::Part { part, units } => {
                let room = self.parts.len() < TINY.max_parts as usize;
                let fits = units > 0 && units * 4096 <= TINY.max_part_bytes;
                room && fits && insert(&mut self.parts, part, part_row(part, units))
            }
            Op::Retiring { part } => {
                self.parts.get_mut(&part).map(|row| row.retiring = true).is_some()
            }
            Op::PartGone { part } => {
                self.parts.remove(&part);
                self.slabs.retain(|key, _| key.0 != part);
                self.frames.retain(|key, _| key.0 != part);
                true
            }
            Op::Space { space } => {
                let room = self.spaces.len() < TINY.max_spaces as usize;
                room && insert(&mut self.spaces, space, space_row(space))
            }
            Op::SpaceProbed { space, probe } => {
                let known = self.spaces.get_mut(&space);
                known.map(|row| row.probe = Some(PageKey([probe; 32]))).is_some()
            }
            Op::SpaceGone { space } => {
                self.spaces.remove(&space);
                true
            }
            Op::Slab { part, unit, frames, frame_units } => {
                self.cut(&slab_row(part, unit, frames, frame_units))
            }
            Op::SlabGone { part, unit } => {
                if let Some(slab) = self.slabs.remove(&(part, unit * 4096)) {
                    let inside = slab.offset..slab.offset + slab.bytes;
                    self.frames.retain(|key, _| key.0 != part || !inside.contains(&key.1));
                }
                true
            }
            Op::Filling { part, unit } => self.fill(part, unit, None),
            Op::Filled { part, unit, page: number } => self.fill(part, unit, Some(page(number))),
            Op::Gone { part, unit } => {
                self.frames.remove(&(part, unit * 4096));
                self.frame(part, unit).is_some()
            }
            Op::Touched { part, unit, heat } => {
                let page = self.frames.get_mut(&(part, unit * 4096));
                if let Some(page) = page.and_then(|row| row.page.as_mut()) {
                    page.heat = heat;
                }
                self.frame(part, unit).is_some()
            }
            Op::Session { session } => {
                let room = self.sessions.len() < TINY.max_sessions as usize;
                room && insert(&mut self.sessions, session, session_row(session))
            }
            Op::SessionGone { session } => {
                self.sessions.remove(&session);
                self.leases.retain(|key, _| key.0 != session);
                true
            }
            Op::Leased { session, lease, index, part, unit } => {
                self.lease((session, lease, index), part, unit)
            }
            Op::Released { session, lease, upto } => {
                self.leases.retain(|key, _| {
                    (key.0, key.1) != (session, lease) || (key.2 >= upto && upto != u32::MAX)
                });
                true
            }
        }
    }

    fn cut(&mut self, slab: &SlabRow) -> bool {
        let end = slab.offset + slab.bytes;
        let apart = |other: &SlabRow| {
            other.part != slab.part
                || other.offset >= end
                || other.offset + other.bytes <= slab.offset
        };
        let inside = self.parts.get(&slab.part.0).is_some_and(|part| end <= part.bytes);
        let room = self.slabs.len() < TINY.max_slabs as usize;
        let good = slab.bytes > 0 && inside && room && self.slabs.values().all(apart);
        good && insert(&mut self.slabs, (slab.part.0, slab.offset), *slab)
    }

    fn fill(&mut self, part: u32, unit: u64, page: Option<PageRow>) -> bool {
        let Some(slab) = self.frame(part, unit) else { return false };
        let (offset, frame_bytes) = (unit * 4096, slab.frame_bytes);
        let row = FrameRow { part: PartId(part), offset, frame_bytes, page };
        self.frames.insert((part, offset), row);
        true
    }

    fn lease(&mut self, key: (u64, u64, u32), part: u32, unit: u64) -> bool {
        let page = self.frames.get(&(part, unit * 4096)).and_then(|frame| frame.page);
        let room = self.leases.len() < TINY.max_leased_pages as usize;
        let (Some(page), true, true) = (page, room, self.sessions.contains_key(&key.0)) else {
            return false;
        };
        let row = LeaseRow {
            session: SessionId(key.0),
            lease: LeaseId(key.1),
            index: key.2,
            part: PartId(part),
            offset: unit * 4096,
            generation: page.generation,
        };
        insert(&mut self.leases, key, row)
    }
}

fn insert<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    let free = !map.contains_key(&key);
    if free {
        map.insert(key, value);
    }
    free
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn it_says_what_the_model_says(
        sequence in proptest::collection::vec((ops(), 0..12u32), 1..200),
    ) {
        let (mut state, mut model) = (tiny(), Snapshot::default());
        let settled = SETTLED.map(|op| (op, 1));
        for (op, restart) in settled.into_iter().chain(sequence) {
            let kept = apply(&mut state, op);
            let next = model.after(op);
            prop_assert_eq!(kept.is_ok(), next.is_some(), "{:?}: {:?}", op, kept);
            model = next.unwrap_or(model);
            if restart == 0 {
                state = again(state);
                prop_assert_eq!(state.odd(), 0);
            }
            prop_assert_eq!(&Snapshot::of(&state), &model, "after {:?}", op);
        }
    }
}
