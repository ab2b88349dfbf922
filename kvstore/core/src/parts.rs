use crate::domains::DomainAt;
use std::collections::BTreeMap;
use undercroft_wire::{FRAME_ALIGN, FrameId, PartId};

/// One piece of the arena, numbered in units of [`FRAME_ALIGN`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) id: PartId,
    pub(crate) domain: DomainAt,
    /// The number of its first unit. A frame has the number of its own first unit.
    pub(crate) first: u32,
    pub(crate) units: u32,
    /// Whether nothing new is placed in it.
    pub(crate) retiring: bool,
}

/// All parts, by number and by their units.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Those with any units, in their order.
    list: Vec<Part>,
    by_id: BTreeMap<PartId, Part>,
}

impl Part {
    /// The number after its last unit.
    pub(crate) fn end(&self) -> u32 {
        self.first + self.units
    }

    pub(crate) fn offset_of(&self, unit: u32) -> u64 {
        u64::from(unit - self.first) * u64::from(FRAME_ALIGN)
    }
}

impl Parts {
    /// Numbers the whole units of a new part. `None` if the part is known already, or as many
    /// units are numbered as can be.
    pub(crate) fn add(&mut self, id: PartId, domain: DomainAt, bytes: u64) -> Option<Part> {
        let units = u32::try_from(bytes / u64::from(FRAME_ALIGN)).ok()?;
        if self.by_id.contains_key(&id) {
            return None;
        }
        let (place, first) = self.room(units)?;
        let part = Part { id, domain, first, units, retiring: false };
        if units > 0 {
            self.list.insert(place, part);
        }
        self.by_id.insert(id, part);
        Some(part)
    }

    /// Nothing new is placed in the part from here on. `None` if there is none or that is so.
    pub(crate) fn retire(&mut self, id: PartId) -> Option<Part> {
        let part = self.by_id.get_mut(&id).filter(|part| !part.retiring)?;
        part.retiring = true;
        let retired = *part;
        if let Some(listed) = self.list.iter_mut().find(|part| part.id == id) {
            listed.retiring = true;
        }
        Some(retired)
    }

    pub(crate) fn remove(&mut self, id: PartId) {
        self.by_id.remove(&id);
        self.list.retain(|part| part.id != id);
    }

    pub(crate) fn contains(&self, id: PartId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(crate) fn get(&self, id: PartId) -> Option<&Part> {
        self.by_id.get(&id)
    }

    /// The first run of `units` numbers that no part has, and its place in the list.
    fn room(&self, units: u32) -> Option<(usize, u32)> {
        let mut free = 0;
        for (place, part) in self.list.iter().enumerate() {
            if part.first - free >= units {
                return Some((place, free));
            }
            free = part.end();
        }
        free.checked_add(units).map(|_| (self.list.len(), free))
    }

    /// The part a unit lies in.
    pub(crate) fn of(&self, unit: u32) -> &Part {
        let after = self.list.partition_point(|part| part.first <= unit);
        let part = &self.list[after.checked_sub(1).expect("a unit lies in a part")];
        debug_assert!(unit < part.end(), "a unit lies in a part");
        part
    }

    /// Where a frame begins.
    pub(crate) fn place(&self, frame: FrameId) -> (PartId, u64) {
        let part = self.of(frame.0);
        (part.id, part.offset_of(frame.0))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Part> {
        self.list.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIGN: u64 = FRAME_ALIGN as u64;

    #[test]
    fn a_frame_is_found_in_its_part() {
        let mut parts = Parts::default();
        let domain = DomainAt(0);
        assert!(parts.add(PartId(7), domain, 3 * ALIGN + 1).is_some());
        assert!(parts.add(PartId(2), domain, 2 * ALIGN).is_some());
        assert_eq!(parts.add(PartId(7), domain, ALIGN), None, "a part is added once");
        assert_eq!(parts.place(FrameId(2)), (PartId(7), 2 * ALIGN));
        assert_eq!(parts.place(FrameId(3)), (PartId(2), 0));
    }

    #[test]
    fn no_more_units_are_numbered_than_numbers_there_are() {
        let mut parts = Parts::default();
        let domain = DomainAt(0);
        assert!(parts.add(PartId(0), domain, u64::from(u32::MAX) * ALIGN).is_some());
        assert_eq!(parts.add(PartId(1), domain, ALIGN), None);
        assert_eq!(parts.add(PartId(2), domain, u64::MAX), None);
    }
}
