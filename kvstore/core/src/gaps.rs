use std::collections::{BTreeMap, BTreeSet};

/// The runs of units of one domain's parts that belong to no slab. A unit is
/// [`undercroft_wire::FRAME_ALIGN`] bytes; units are numbered over all parts.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// Length of each by its first unit.
    by_place: BTreeMap<u32, u32>,
    /// The same as (length, first unit).
    by_size: BTreeSet<(u32, u32)>,
}

impl Gaps {
    /// Adds a run; neighbours inside the part, whose units are `start..end`, become one with it.
    pub(crate) fn add(&mut self, first: u32, units: u32, (start, end): (u32, u32)) {
        let (mut first, mut units) = (first, units);
        let before = self.by_place.range(..first).next_back().map(|(at, len)| (*at, *len));
        if let Some((at, len)) = before.filter(|(at, len)| *at >= start && at + len == first) {
            self.remove(at, len);
            (first, units) = (at, len + units);
        }
        let after = first + units;
        if let Some(&len) = self.by_place.get(&after).filter(|_| after < end) {
            self.remove(after, len);
            units += len;
        }
        self.by_place.insert(first, units);
        self.by_size.insert((units, first));
    }

    fn remove(&mut self, first: u32, units: u32) {
        let removed = self.by_place.remove(&first);
        assert_eq!(removed, Some(units), "a gap is known by its place");
        let removed = self.by_size.remove(&(units, first));
        assert!(removed, "a gap is known by its size");
    }

    /// Takes up to `wished` units out, a whole number of `each`: from the smallest run that has
    /// them all, else from the longest; of several the first, so that parts that came last are filled
    /// last. Returns the first of them and how many.
    pub(crate) fn take(&mut self, wished: u32, each: u32) -> Option<(u32, u32)> {
        let whole = wished / each * each;
        let fitting = self.by_size.range((whole, 0)..).next().copied();
        let longest = || self.by_size.range((self.by_size.last()?.0, 0)..).next().copied();
        let (len, first) = fitting.or_else(longest)?;
        let taken = whole.min(len / each * each);
        if taken == 0 {
            return None;
        }
        self.remove(first, len);
        if taken < len {
            self.by_place.insert(first + taken, len - taken);
            self.by_size.insert((len - taken, first + taken));
        }
        Some((first, taken))
    }

    /// Takes out these very units; false if not all of them are there.
    pub(crate) fn take_at(&mut self, first: u32, units: u32) -> bool {
        let before = self.by_place.range(..=first).next_back();
        let Some((start, len)) = before.map(|(start, len)| (*start, *len)) else {
            return false;
        };
        let (end, gap_end) = (u64::from(first) + u64::from(units), u64::from(start + len));
        if end > gap_end {
            return false;
        }
        self.remove(start, len);
        for (from, rest) in [(start, first - start), (end as u32, (gap_end - end) as u32)] {
            if rest > 0 {
                self.by_place.insert(from, rest);
                self.by_size.insert((rest, from));
            }
        }
        true
    }

    /// Takes out all that lies in `start..end`.
    pub(crate) fn take_within(&mut self, start: u32, end: u32) {
        while let Some((first, units)) = self.by_place.range(start..end).next() {
            let (first, units) = (*first, *units);
            self.remove(first, units);
        }
    }

    /// Whether at least `count` runs of `each` units, none of which overlap, find room.
    pub(crate) fn has(&self, count: usize, each: u32) -> bool {
        let mut found = 0;
        for (len, _) in self.by_size.iter().rev().take_while(|(len, _)| *len >= each) {
            if found >= count {
                break;
            }
            found += (len / each) as usize;
        }
        found >= count
    }

    /// First unit and length of each run, by place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        assert_eq!(self.by_place.len(), self.by_size.len(), "a gap is known by place and size");
        self.by_place.iter().map(|(first, units)| (*first, *units))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_becomes_one_with_its_neighbours() {
        let part = (0, 10);
        let mut gaps = Gaps::default();
        gaps.add(0, 10, part);
        assert_eq!(gaps.take(4, 2), Some((0, 4)));
        assert_eq!(gaps.take(4, 3), Some((4, 3)));
        assert_eq!(gaps.iter().collect::<Vec<_>>(), [(7, 3)]);
        gaps.add(0, 4, part);
        assert_eq!(gaps.iter().collect::<Vec<_>>(), [(0, 4), (7, 3)]);
        gaps.add(4, 3, part);
        assert_eq!(gaps.iter().collect::<Vec<_>>(), [(0, 10)]);
    }

    #[test]
    fn parts_that_lie_side_by_side_stay_apart() {
        let mut gaps = Gaps::default();
        gaps.add(0, 3, (0, 3));
        gaps.add(3, 3, (3, 6));
        assert_eq!(gaps.iter().collect::<Vec<_>>(), [(0, 3), (3, 3)]);
        assert!(gaps.has(2, 2) && !gaps.has(3, 2));
        assert_eq!(gaps.take(4, 4), None);
    }

    #[test]
    fn of_runs_that_are_alike_the_first_is_used_first() {
        // Shorter than what is wished for, and as long as that.
        for wished in [8, 4] {
            let mut gaps = Gaps::default();
            for part in 0..3 {
                gaps.add(4 * part, 4, (4 * part, 4 * part + 4));
            }
            let taken: Vec<_> = std::iter::from_fn(|| gaps.take(wished, 2)).collect();
            assert_eq!(taken, [(0, 4), (4, 4), (8, 4)], "wished {wished}");
        }
    }

    #[test]
    fn the_smallest_fitting_run_is_used_up_first() {
        let mut gaps = Gaps::default();
        gaps.add(0, 8, (0, 8));
        gaps.add(8, 5, (8, 13));
        assert_eq!(gaps.take(4, 2), Some((8, 4)));
        assert_eq!(gaps.take(9, 2), Some((0, 8)), "less than wished is better than nothing");
        assert_eq!(gaps.take(2, 1), Some((12, 1)));
        assert_eq!(gaps.take(1, 1), None);
    }
}
