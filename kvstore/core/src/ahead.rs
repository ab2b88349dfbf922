use crate::Core;
use crate::claims::Claim;
use crate::fetches::{Fetch, FetchId, Reader};
use crate::lanes::LaneAt;
use crate::page::PageId;
use crate::spaces::ClassId;
use crate::stats::Source;
use hashbrown::HashMap;
use undercroft_wire::DeviceId;

/// Reads that nobody waits for yet: prefetches.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// For each device, prefetches whose next page lies there and waits until it has less to do.
    lulls: Vec<Vec<FetchId>>,
    /// Pages in DRAM that were brought there by prefetches alone, and that nobody has used yet, and why.
    brought: HashMap<PageId, Source>,
}

impl Ahead {
    pub(crate) fn new(devices: usize) -> Self {
        Self { lulls: vec![Vec::new(); devices], brought: HashMap::new() }
    }

    /// The prefetches that wait for a device.
    pub(crate) fn waiting_for(&self, device: DeviceId) -> &[FetchId] {
        &self.lulls[usize::from(device.0)]
    }

    pub(crate) fn brought(&self) -> impl Iterator<Item = PageId> + '_ {
        self.brought.keys().copied()
    }
}

/// Whoever waits overtakes who does not: a prefetch reads only from a device that has little else to
/// read, and stands behind all others in a line for frames.
impl Core {
    /// Whether a device has so little to read that what nobody waits for would not be in the way.
    pub(crate) fn may_read_ahead(&self, device: DeviceId) -> bool {
        let lane = self.lanes.get(LaneAt::Reads(device));
        let waits = lane.turns().next().is_some();
        !waits && lane.under_way_bytes < self.config.limits.max_ahead_bytes
    }

    /// Whether the next page of a fetch may be read now. A prefetch that may not is woken when it may.
    pub(crate) fn may_read_now(&mut self, id: FetchId, fetch: &mut Fetch, page: PageId) -> bool {
        if fetch.reader != Reader::Prefetch {
            return true;
        }
        let (at, _) = self.index[page].record().expect("a page that is read has a record");
        let device = self.segments.device(at);
        if self.may_read_ahead(device) {
            return true;
        }
        fetch.waits_for_lull = true;
        self.ahead.lulls[usize::from(device.0)].push(id);
        false
    }

    /// To be called when a device has less to read than before.
    pub(crate) fn wake_lulls(&mut self, device: DeviceId) {
        if !self.may_read_ahead(device) {
            return;
        }
        for id in std::mem::take(&mut self.ahead.lulls[usize::from(device.0)]) {
            if let Some(fetch) = self.fetches.get_mut(&id) {
                fetch.waits_for_lull = false;
                self.ready.push_back(id);
            }
        }
    }

    /// Puts somebody who waits for a frame at the end of the line, before all prefetches.
    pub(crate) fn line_up(&mut self, class: ClassId, claim: Claim) {
        let waiting = &self.frames.class(class).waiting;
        let is_ahead = |claim: &Claim| match claim {
            Claim::Read(id) => {
                self.fetches.get(id).is_some_and(|fetch| fetch.reader == Reader::Prefetch)
            }
            Claim::Commit(_) => false,
        };
        let place = waiting.iter().rposition(|claim| !is_ahead(claim)).map_or(0, |at| at + 1);
        self.frames.class_mut(class).waiting.insert(place, claim);
    }

    /// A page was read into DRAM for these.
    pub(crate) fn note_brought(&mut self, id: PageId, fetches: &[FetchId]) {
        let of = |id: &FetchId| Some((*id, self.fetches.get(id)?.reader));
        let mut readers = fetches.iter().filter_map(of);
        let Some((first, Reader::Prefetch)) = readers.next() else {
            return;
        };
        let used = !readers.all(|(_, reader)| reader == Reader::Prefetch);
        let source = self.source_of(first);
        let stats = self.stats.prefetched_for(source);
        stats.pages += 1;
        stats.used_pages += u64::from(used);
        if !used {
            self.ahead.brought.insert(id, source);
        }
    }

    /// A page in DRAM is delivered to somebody.
    pub(crate) fn note_used(&mut self, id: PageId) {
        if let Some(source) = self.no_longer_brought(id) {
            self.stats.prefetched_for(source).used_pages += 1;
        }
    }

    /// A page leaves DRAM.
    pub(crate) fn note_unused(&mut self, id: PageId) {
        if let Some(source) = self.no_longer_brought(id) {
            let bytes = self.frame_bytes(self.class_of(id));
            let stats = self.stats.prefetched_for(source);
            stats.wasted_pages += 1;
            stats.wasted_bytes += bytes;
        }
    }

    fn no_longer_brought(&mut self, id: PageId) -> Option<Source> {
        let any = !self.ahead.brought.is_empty();
        any.then(|| self.ahead.brought.remove(&id)).flatten()
    }
}
