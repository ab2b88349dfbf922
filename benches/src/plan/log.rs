use std::collections::VecDeque;
use undercroft_wire::{DeviceId, Extent, JobId, SegmentId, SegmentUse};

/// Reclaim starts when no more than this many segments are free, as in a daemon: the one being
/// filled, the one kept for relocations, and one to go on with meanwhile.
pub(super) const LOW_WATER_SEGMENTS: u32 = 3;

/// Segments beside those that the size asked for is cut into, as in a daemon.
const SPARE_SEGMENTS: u32 = 4;
/// Appends that may wait for a segment at once, as in a daemon.
const MAX_WAITING: usize = 4096;

/// The page log of an SSD, as far as anybody decides by it: which segments are free, and how many
/// records the one being written has room for.
#[derive(Debug)]
pub(super) struct Log {
    device: DeviceId,
    records: u32,
    free: VecDeque<SegmentId>,
    open: Extent,
    waiting: VecDeque<JobId>,
}

/// What becomes of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    At(Extent),
    /// It waits until a segment is freed.
    Waits,
    NoSpace,
}

impl Log {
    /// With room for so many pages in about so many segments, and four more.
    pub(super) fn new(device: DeviceId, pages: u64, segments: u64) -> Self {
        let records = pages.div_ceil(segments.max(1)).clamp(1, u64::from(u32::MAX));
        let segments = (pages.div_ceil(records) as u32).saturating_add(SPARE_SEGMENTS);
        let records = records as u32;
        let (segment, segment_use) = (SegmentId(0), SegmentUse(0));
        // As if the one before the first were full.
        let open = Extent { device, segment, segment_use, record: records };
        let free = (0..segments).map(SegmentId).collect();
        Self { device, records, free, open, waiting: VecDeque::new() }
    }

    pub(super) fn free_segments(&self) -> u32 {
        self.free.len() as u32
    }

    /// Finds room for a page, after those that wait already.
    pub(super) fn append(&mut self, job: JobId) -> Place {
        if self.waiting.is_empty()
            && let Some(extent) = self.place(1)
        {
            return Place::At(extent);
        }
        if self.waiting.len() >= MAX_WAITING {
            return Place::NoSpace;
        }
        self.waiting.push_back(job);
        Place::Waits
    }

    /// Finds room for a page that moves so that its segment can be freed: the last free segment is
    /// kept for these.
    pub(super) fn relocate(&mut self) -> Option<Extent> {
        self.place(0)
    }

    /// The next append that has waited and finds room now.
    pub(super) fn resume(&mut self) -> Option<(JobId, Extent)> {
        self.waiting.front()?;
        let extent = self.place(1)?;
        Some((self.waiting.pop_front()?, extent))
    }

    /// The append that has waited longest, waiting no more.
    pub(super) fn give_up(&mut self) -> Option<JobId> {
        self.waiting.pop_front()
    }

    pub(super) fn free(&mut self, segment: SegmentId) {
        self.free.push_back(segment);
    }

    fn place(&mut self, keep: usize) -> Option<Extent> {
        let is_open = self.open.record < self.records;
        // While the last free segment is in use only relocations are written.
        if self.free.len() < keep + usize::from(!is_open) {
            return None;
        }
        if !is_open {
            let segment = self.free.pop_front()?;
            let segment_use = SegmentUse(self.open.segment_use.0 + 1);
            self.open = Extent { device: self.device, segment, segment_use, record: 0 };
        }
        let extent = self.open;
        self.open.record += 1;
        Some(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(segment: u32, segment_use: u64, record: u32) -> Extent {
        let (device, segment) = (DeviceId(0), SegmentId(segment));
        Extent { device, segment, segment_use: SegmentUse(segment_use), record }
    }

    #[test]
    fn the_last_free_segment_is_for_what_frees_others() {
        // Two pages in one segment, and four more.
        let mut log = Log::new(DeviceId(0), 2, 1);
        assert_eq!(log.free_segments(), 5);
        for job in 0..8 {
            assert!(matches!(log.append(JobId(job)), Place::At(_)), "{job}");
        }
        assert_eq!((log.free_segments(), log.append(JobId(8))), (1, Place::Waits));
        assert_eq!(log.append(JobId(9)), Place::Waits);
        assert_eq!((log.relocate(), log.relocate()), (Some(at(4, 5, 0)), Some(at(4, 5, 1))));
        assert_eq!((log.relocate(), log.resume()), (None, None));
        log.free(SegmentId(1));
        assert_eq!(log.resume(), None, "it is the last again");
        log.free(SegmentId(0));
        assert_eq!(log.resume(), Some((JobId(8), at(1, 6, 0))));
        assert_eq!(log.resume(), Some((JobId(9), at(1, 6, 1))));
        assert_eq!((log.resume(), log.give_up()), (None, None));
    }

    #[test]
    fn what_waits_in_vain_is_given_up() {
        let mut log = Log::new(DeviceId(0), 1, 1);
        while let Place::At(_) = log.append(JobId(1)) {}
        assert_eq!(log.give_up(), Some(JobId(1)));
        assert_eq!(log.give_up(), None);
    }
}
