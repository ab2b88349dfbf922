use crate::page::{PageId, SegmentAt};
use crate::segments::Age;
use std::collections::BTreeMap;
use undercroft_wire::{DeviceId, Extent};

/// Records whose pages stand side by side.
const RUN: u32 = 32;

/// Which page each record of one segment belongs to.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// Runs of records with a page by the number of the run.
    runs: BTreeMap<u32, Box<[Option<PageId>; RUN as usize]>>,
}

impl Listed {
    /// Notes a record's page; false if it has one.
    pub(crate) fn insert(&mut self, record: u32, page: PageId) -> bool {
        let run = self.runs.entry(record / RUN).or_default();
        let entry = &mut run[(record % RUN) as usize];
        let vacant = entry.is_none();
        *entry = entry.or(Some(page));
        vacant
    }

    pub(crate) fn remove(&mut self, record: u32) {
        let run = self.runs.get_mut(&(record / RUN));
        let run = run.expect("a record that is listed is in a run");
        run[(record % RUN) as usize] = None;
        if run.iter().all(Option::is_none) {
            self.runs.remove(&(record / RUN));
        }
    }

    /// The last record before `record`, and its page.
    pub(crate) fn before(&self, record: u32) -> Option<(u32, PageId)> {
        self.runs.range(..record.div_ceil(RUN)).rev().find_map(|(run, pages)| {
            let end = (record - run * RUN).min(RUN);
            let mut before = (0..end).zip(pages.iter()).rev();
            before.find_map(|(at, page)| page.map(|page| (run * RUN + at, page)))
        })
    }

    /// The pages, last record first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = PageId> + '_ {
        self.runs.values().rev().flat_map(|run| run.iter().rev().flatten().copied())
    }
}

/// The segments in use of all devices by number: a page names its segment by that.
#[derive(Debug, Default)]
pub(crate) struct SegmentNumbers {
    list: Vec<Option<(DeviceId, Age)>>,
    free: Vec<SegmentAt>,
}

impl SegmentNumbers {
    /// Numbers a segment.
    pub(crate) fn give(&mut self, device: DeviceId, age: Age) -> SegmentAt {
        let at = self.free.pop().unwrap_or_else(|| {
            self.list.push(None);
            SegmentAt(self.list.len() as u32 - 1)
        });
        self.list[at.0 as usize] = Some((device, age));
        at
    }

    /// The segment is in use no more, and no page names it.
    pub(crate) fn take_back(&mut self, at: SegmentAt) {
        let known = self.list[at.0 as usize].take();
        assert!(known.is_some(), "a segment's number is taken back once");
        self.free.push(at);
    }

    pub(crate) fn device(&self, at: SegmentAt) -> DeviceId {
        self.get(at).0
    }

    /// Where the record of that index lies.
    pub(crate) fn extent(&self, (at, record): (SegmentAt, u32)) -> Extent {
        let (device, Age { segment_use, segment }) = self.get(at);
        Extent { device, segment, segment_use, record }
    }

    fn get(&self, at: SegmentAt) -> (DeviceId, Age) {
        self.list[at.0 as usize].expect("a page's segment is in use")
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len() - self.free.len()
    }
}
