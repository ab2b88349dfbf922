use crate::page::{Dram, PageId, Ssd};
use crate::segments::{Age, Reclaim, SsdTier};
use crate::{Action, AppendOutcome, Core};
use undercroft_wire::{DeviceId, Extent, SegmentId, SegmentUse};

use crate::jobs::Job;

/// How many of the oldest segments are looked at for one that may be emptied.
const CANDIDATES: usize = 8;

impl SsdTier {
    /// Whether to empty a segment. When a whole round has dropped nothing, because everything is
    /// held or in DRAM, reclaim would only wear the SSD out: it waits for appends to pay.
    fn needs_room(&self) -> bool {
        let full = self.used_bytes > self.capacity_bytes;
        let low = self.free_segments <= self.low_water_segments;
        (full || low) && self.wasted < (2 * self.appended).max(1)
    }
}

/// Reclaim: the oldest segment is emptied and freed, one at a time. What was not used since it
/// was written is dropped; what was, and the ancestors of what stays, is appended anew.
impl Core {
    /// Takes reclaim as far as it goes now.
    pub(crate) fn reclaim(&mut self, actions: &mut Vec<Action>) {
        let Some(ssd) = self.ssd.as_ref().filter(|ssd| ssd.usable) else {
            return;
        };
        if ssd.reclaiming.is_none() {
            if !ssd.needs_room() {
                return;
            }
            let Some(age) = self.oldest_reclaimable() else {
                return;
            };
            let ssd = self.ssd_mut();
            let budget = ssd.segments[&age].appended / 2;
            ssd.reclaiming =
                Some(Reclaim { age, budget, sorted: false, dropped: false, freeing: false });
        }
        let Some(mut reclaim) = self.ssd_mut().reclaiming else {
            return;
        };
        if reclaim.freeing {
            return;
        }
        if !std::mem::replace(&mut reclaim.sorted, true) {
            self.sort_out(&mut reclaim, actions);
        }
        // Pages that were being read when they were looked at are looked at again afterwards.
        if !self.is_busy(reclaim.age) {
            self.sort_out(&mut reclaim, actions);
        }
        if !self.is_busy(reclaim.age) {
            let segment = &self.ssd_mut().segments[&reclaim.age];
            assert_eq!(segment.records, 0, "a sorted segment at rest is empty");
            let (device, segment, segment_use) =
                (segment.device, segment.segment, segment.segment_use);
            actions.push(Action::FreeSegment { device, segment, segment_use });
            reclaim.freeing = true;
        }
        self.ssd_mut().reclaiming = Some(reclaim);
    }

    fn is_busy(&self, age: Age) -> bool {
        let segment = self.ssd.as_ref().and_then(|ssd| ssd.segments.get(&age));
        segment.is_some_and(|segment| segment.reads > 0 || segment.relocating > 0)
    }

    /// The oldest segment that is not the one being written and of which emptying would win at
    /// least half: a segment full of held pages would only be copied in circles.
    fn oldest_reclaimable(&self) -> Option<Age> {
        let segments = &self.ssd.as_ref()?.segments;
        let (newest, _) = segments.last_key_value()?;
        let candidates = segments.iter().filter(|(age, _)| *age != newest).take(CANDIDATES);
        let wins_half = |age: Age, appended: u32| {
            let held = self.segment_pages(age).filter(|page| self.is_held_on_ssd(*page)).count();
            held as u32 <= appended / 2
        };
        let mut ages = candidates.map(|(age, segment)| (*age, segment.appended));
        ages.find(|(age, appended)| wins_half(*age, *appended)).map(|(age, _)| age)
    }

    fn is_held_on_ssd(&self, id: PageId) -> bool {
        let page = &self.index[id];
        page.dram != Dram::Resident && (page.keeps > 0 || page.pins > 0)
    }

    /// Decides about each page of the segment that is not being read.
    fn sort_out(&mut self, reclaim: &mut Reclaim, actions: &mut Vec<Action>) {
        let mut pages: Vec<PageId> = self.segment_pages(reclaim.age).collect();
        // Children before parents: dropping the last child may let its parent go.
        pages.sort_unstable_by_key(|id| (std::cmp::Reverse(self.index[*id].depth), *id));
        let mut stay = Vec::new();
        for id in pages {
            let page = &self.index[id];
            match page.dram {
                Dram::Reading => {}
                Dram::Resident => self.forget_copy(id),
                _ if self.is_wanted_on_ssd(id) => stay.push(id),
                _ => {
                    reclaim.dropped = true;
                    self.drop_record(id);
                }
            }
        }
        // Dropping a page with children would leave them unreachable: leaves go first.
        stay.sort_by_key(|id| self.index[*id].children > 0);
        let held = stay.iter().filter(|id| self.is_held_on_ssd(**id)).count();
        let mut excess = (stay.len() - held).saturating_sub(reclaim.budget as usize);
        for id in stay {
            if !self.is_held_on_ssd(id) && (excess > 0 || !self.is_wanted_on_ssd(id)) {
                excess = excess.saturating_sub(1);
                reclaim.dropped = true;
                self.drop_record(id);
                continue;
            }
            if !self.is_held_on_ssd(id) {
                reclaim.budget -= 1;
            }
            self.start_relocate(id, reclaim.age, actions);
        }
    }

    fn is_wanted_on_ssd(&self, id: PageId) -> bool {
        let page = &self.index[id];
        page.touched || page.children > 0 || self.is_held_on_ssd(id)
    }

    /// The page is in DRAM: it will be written again when it leaves that.
    fn forget_copy(&mut self, id: PageId) {
        self.stats.ssd_forgotten_copies += 1;
        self.leave_ssd(id);
        let page = &self.index[id];
        if page.ordered {
            let (class, key) = (page.class, page.order_key(id));
            self.frames.class_mut(class).order.revisit(key);
            self.wake(class);
        }
        self.settle(id);
    }

    fn drop_record(&mut self, id: PageId) {
        self.stats.ssd_dropped_pages += 1;
        self.leave_ssd(id);
        self.prune(id);
    }

    fn start_relocate(&mut self, id: PageId, segment: Age, actions: &mut Vec<Action>) {
        let identity = self.identity(id);
        let page = &mut self.index[id];
        let Ssd::On(extent) = page.ssd else { unreachable!("only records are relocated") };
        page.relocating = true;
        page.touched = false;
        let state = self.ssd_mut().segments.get_mut(&segment).expect("being reclaimed");
        state.relocating += 1;
        let job = self.new_job(Job::Relocate { page: id, extent, segment });
        actions.push(Action::Relocate { job, extent, identity });
    }

    pub(crate) fn relocated(
        &mut self,
        id: PageId,
        from: Extent,
        segment: Age,
        outcome: AppendOutcome,
    ) {
        self.index[id].relocating = false;
        if let Some(segment) = self.ssd_mut().segments.get_mut(&segment) {
            segment.relocating -= 1;
        }
        let class = self.index[id].class;
        let bytes = u64::from(self.frames.class(class).frame_bytes);
        // The record may have turned out to be damaged, or its device lost, in the meantime.
        if self.index[id].ssd == Ssd::On(from) {
            self.leave_ssd(id);
            match outcome {
                AppendOutcome::Written(extent) if self.enter_ssd(id, extent) => {
                    self.stats.relocated_pages += 1;
                    self.stats.relocated_bytes += bytes;
                }
                _ => self.stats.relocate_failures += 1,
            }
        }
        self.settle(id);
        self.prune(id);
        self.wake(class);
    }

    pub(crate) fn segment_freed(
        &mut self,
        device: DeviceId,
        segment: SegmentId,
        segment_use: SegmentUse,
    ) {
        let Some(ssd) = self.ssd.as_mut() else { return };
        if ssd.freed((device, segment), segment_use) {
            self.stats.freed_segments += 1;
        }
    }

    /// Something has changed that may let reclaim drop what it could not before.
    pub(crate) fn pay_for_reclaim(&mut self) {
        if let Some(ssd) = self.ssd.as_mut() {
            ssd.wasted = ssd.wasted.saturating_sub(1);
        }
    }

    pub(crate) fn set_free_segments(&mut self, free_segments: u32) {
        if let Some(ssd) = self.ssd.as_mut() {
            ssd.free_segments = free_segments;
        }
    }
}
