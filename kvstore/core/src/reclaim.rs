use crate::devices::Device;
use crate::jobs::Job;
use crate::page::{Dram, Mark, OnSsd, PageId, Ssd};
use crate::segments::{Age, Move, Reclaim, Segment};
use crate::{Action, AppendOutcome, Core};
use undercroft_wire::{DeviceId, Extent, MissCause, SegmentId, SegmentUse};

/// How many segments are looked at, at a time, for one that may be emptied.
const CANDIDATES: usize = 8;

/// Of the records of a segment at least one in so many goes, however warm, so that reclaim always
/// wins room.
const LEAST_WON: u32 = 8;

/// How many pages are looked at below one that is dropped, and below all of a segment.
const LOOKS_BELOW: usize = 1024;
const LOOKS_BELOW_ALL: usize = 1 << 16;

impl Device {
    fn needs_room(&self) -> bool {
        self.segments.used_bytes > self.config.capacity_bytes || self.is_low()
    }

    /// Whether segments of it go when another device needs room: it will need some itself soon.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let used = u128::from(self.segments.used_bytes) * 16;
        used >= u128::from(self.config.capacity_bytes) * 15 || self.is_low()
    }

    fn is_low(&self) -> bool {
        self.free_segments <= self.config.low_water_segments
    }

    /// Whether emptying a segment may win anything. When a whole round has dropped nothing, because
    /// everything is held or in DRAM, reclaim would only wear the SSD out: it waits for appends to
    /// pay.
    fn may_win_room(&self) -> bool {
        self.segments.wasted < (2 * self.segments.appended).max(1)
    }
}

/// Reclaim: the oldest segment of the tier is emptied and freed, one at a time. What was used since
/// it was written, and is not among the coldest of all, is appended anew; the rest is dropped.
impl Core {
    /// Takes reclaim as far as it goes now.
    pub(crate) fn reclaim(&mut self, actions: &mut Vec<Action>) {
        for device in self.devices.ids() {
            if self.devices.get(device).takes_appends() {
                self.reclaim_on(device, actions);
            }
        }
        while let Some((device, reclaim)) = self.next_reclaim() {
            self.devices.get_mut(device).segments.reclaiming = Some(reclaim);
            self.reclaim_on(device, actions);
        }
    }

    /// The segment to be emptied next. What is empty already costs nothing and goes at once; all
    /// else only if any device needs room: the oldest of all devices that are
    /// full or nearly so. Runs are spread over devices, and devices that kept their pages for
    /// different times would keep parts of runs whose other parts are gone. New pages go to
    /// where room was made.
    fn next_reclaim(&mut self) -> Option<(DeviceId, Reclaim)> {
        let free = |device: &Device, age| Some((device.id, Reclaim::of_empty(age)));
        let usable = || self.devices.iter().filter(|device| device.takes_appends());
        let idle = || usable().filter(|device| device.segments.reclaiming.is_none());
        let found = |device: &Device| free(device, device.segments.next_empty()?);
        if let Some(next) = idle().find_map(found) {
            return Some(next);
        }
        if !idle().any(Device::needs_room) {
            return None;
        }
        // One at a time makes room enough, unless a device has hardly a segment left to write to.
        let hurry = idle().any(Device::is_low);
        if !hurry && usable().count() > idle().count() {
            return None;
        }
        let full = || idle().filter(|device| device.is_nearly_full());
        // What domains beyond their quotas have emptied, before anything of others goes.
        let emptied = |device: &Device| free(device, device.segments.next_emptied()?);
        if let Some(next) = full().find_map(emptied) {
            return Some(next);
        }
        let full = full().filter(|device| device.may_win_room()).map(|device| device.id);
        let full: Vec<DeviceId> = full.collect();
        let oldest = full.into_iter().filter_map(|device| {
            let reclaim = self.oldest_reclaimable(device)?;
            let born = self.segment(device, reclaim.age)?.born;
            Some((born, (device, reclaim)))
        });
        oldest.min_by_key(|(born, _)| *born).map(|(_, next)| next)
    }

    fn reclaim_on(&mut self, device: DeviceId, actions: &mut Vec<Action>) {
        let reclaim = self.devices.get(device).segments.reclaiming;
        let Some(mut reclaim) = reclaim.filter(|reclaim| !reclaim.freeing) else {
            return;
        };
        if !std::mem::replace(&mut reclaim.sorted, true) {
            self.devices.get_mut(device).segments.cutoffs = self.cutoffs(reclaim.age);
            self.sort_out(device, &mut reclaim);
        }
        self.move_on(device, &mut reclaim, actions);
        // Pages that were being read when they were looked at or when their turn came, and those
        // that a device in trouble has not moved, are looked at again afterwards.
        if !self.is_under_way(device, reclaim.age) {
            self.sort_out(device, &mut reclaim);
            self.move_on(device, &mut reclaim, actions);
        }
        if !self.is_under_way(device, reclaim.age) {
            let records = self.segment(device, reclaim.age).map(|segment| segment.records);
            assert_eq!(records, Some(0), "a sorted segment at rest is empty");
            let Age { segment, segment_use } = reclaim.age;
            actions.push(Action::FreeSegment { device, segment, segment_use });
            reclaim.freeing = true;
        }
        self.devices.get_mut(device).segments.reclaiming = Some(reclaim);
    }

    fn segment(&self, device: DeviceId, age: Age) -> Option<&Segment> {
        self.devices.get(device).segments.get(age)
    }

    /// Whether something of the segment waits for a job to end, or for the write budget.
    fn is_under_way(&self, device: DeviceId, age: Age) -> bool {
        let waits = !self.devices.get(device).segments.to_move.is_empty();
        waits || self.segment(device, age).is_some_and(Segment::is_busy)
    }

    /// The oldest segment that is not the one being written and of which emptying would win at
    /// least half: a segment full of held pages would only be copied in circles. A few are looked at
    /// a time; where all of these are held, the next ones are looked at the next time.
    fn oldest_reclaimable(&mut self, device: DeviceId) -> Option<Reclaim> {
        let segments = &self.devices.get(device).segments;
        let (newest, passed) = (segments.newest()?, segments.passed);
        let later = |age: Age| age != newest && passed.is_none_or(|passed| age > passed);
        let candidates = segments.iter().filter(|(age, _)| later(*age)).take(CANDIDATES);
        let candidates: Vec<(Age, u32)> =
            candidates.map(|(age, segment)| (age, segment.appended)).collect();
        let wins_half = |(age, appended): &&(Age, u32)| {
            let mut held =
                self.segment_pages(device, *age).filter(|page| self.is_held_on_ssd(*page));
            held.nth(*appended as usize / 2).is_none()
        };
        let found = candidates.iter().find(wins_half).copied();
        let last = candidates.get(CANDIDATES - 1).map(|(age, _)| *age);
        // After one that wins, and after the last there is, the oldest have their turn again.
        let passed = if found.is_some() { None } else { last };
        self.devices.get_mut(device).segments.passed = passed;
        let (age, appended) = found?;
        let budget = appended.saturating_sub((appended / LEAST_WON).max(1));
        let looks = LOOKS_BELOW_ALL;
        Some(Reclaim { age, budget, looks, sorted: false, dropped: false, freeing: false })
    }

    /// Decides about each page of the segment that is not being read.
    fn sort_out(&mut self, device: DeviceId, reclaim: &mut Reclaim) {
        let mut pages: Vec<PageId> = self.segment_pages(device, reclaim.age).collect();
        if pages.is_empty() {
            return;
        }
        // The deepest first: what a floor shelters is where prefixes begin.
        pages.sort_unstable_by_key(|id| (std::cmp::Reverse(self.index[*id].depth), *id));
        let cutoffs = std::mem::take(&mut self.devices.get_mut(device).segments.cutoffs);
        let mut stay = Vec::new();
        for id in pages {
            if !self.lies_in(id, reclaim.age) {
                continue;
            }
            match self.index[id].dram {
                Dram::Reading => {}
                Dram::Resident => self.forget_copy(id),
                _ if self.must_stay(id) || self.is_worth_moving(id, &cutoffs) => stay.push(id),
                _ => self.drop_record(id, reclaim),
            }
        }
        // The coldest go first: what hangs from a page is no warmer.
        stay.retain(|id| self.lies_in(*id, reclaim.age));
        stay.sort_by_cached_key(|id| self.index.order_key(*id));
        let held = stay.iter().filter(|id| self.must_stay(**id)).count();
        let may_move = self.movable(device, &stay).min(u64::from(reclaim.budget));
        let mut excess = ((stay.len() - held) as u64).saturating_sub(may_move);
        for id in stay {
            if !self.lies_in(id, reclaim.age) {
                continue;
            }
            let must_stay = self.must_stay(id);
            if !must_stay && (excess > 0 || !self.is_worth_moving(id, &cutoffs)) {
                excess = excess.saturating_sub(1);
                self.drop_record(id, reclaim);
                continue;
            }
            let paid = !must_stay;
            reclaim.budget -= u32::from(paid);
            let extent = self.record_of(&self.index[id]).expect("a page in a segment has a record");
            let to_move = &mut self.devices.get_mut(device).segments.to_move;
            to_move.push_back(Move { page: id, extent, paid });
        }
        self.devices.get_mut(device).segments.cutoffs = cutoffs;
    }

    /// Whether the page has its record in the segment still: it may have gone with the one before it.
    fn lies_in(&self, id: PageId, age: Age) -> bool {
        let extent = self.index.get(id).and_then(|page| self.record_of(page));
        extent.is_some_and(|extent| Age::of(extent) == age)
    }

    /// Starts as many of the relocations that were decided on as may be under way at once.
    fn move_on(&mut self, device: DeviceId, reclaim: &mut Reclaim, actions: &mut Vec<Action>) {
        let limit = self.config.limits.max_relocations_per_device;
        while self.segment(device, reclaim.age).is_some_and(|segment| segment.relocating < limit) {
            let Some(next) = self.devices.get_mut(device).segments.to_move.pop_front() else {
                return;
            };
            // No two records have one extent, so a page that has taken a forgotten one's place is
            // told apart.
            let page =
                self.index.get(next.page).filter(|page| self.ssd_of(page) == Ssd::On(next.extent));
            match page.map(|page| page.dram) {
                Some(Dram::None | Dram::Offered | Dram::Filling) => {
                    if self.has_budget_to_move(next.page, device, !next.paid) {
                        self.start_relocate(next.page, next.paid, actions);
                        continue;
                    }
                    if !next.paid {
                        // It waits for better times.
                        let to_move = &mut self.devices.get_mut(device).segments.to_move;
                        return to_move.push_front(next);
                    }
                    self.drop_record(next.page, reclaim);
                }
                Some(Dram::Resident) => self.forget_copy(next.page),
                // Somebody has wanted it since it was decided on.
                Some(Dram::Reading) => self.index[next.page].set(Mark::Touched, true),
                None => {}
            }
            reclaim.budget += u32::from(next.paid);
        }
    }

    /// The page is in DRAM: it will be written again when it leaves that.
    pub(crate) fn forget_copy(&mut self, id: PageId) {
        self.stats.ssd_forgotten_copies += 1;
        self.leave_ssd(id);
        let page = &self.index[id];
        if page.is(Mark::Ordered) {
            let (class, key) = (self.class_of(id), self.index.order_key(id));
            self.frames.class_mut(class).order.revisit(key);
            self.wake(class);
        }
        self.settle(id);
    }

    /// Drops a record, and where the page is in no tier then, the records of what hangs from it:
    /// nobody can find them, and they are no warmer. What is more than [`LOOKS_BELOW`] goes with its
    /// own segments.
    fn drop_record(&mut self, id: PageId, reclaim: &mut Reclaim) {
        reclaim.dropped = true;
        self.lose_to_reclaim(id);
        let mut gone = vec![id];
        let (mut at, mut looked) = (0, 0);
        while let Some(parent) = gone.get(at).copied() {
            at += 1;
            if self.index[parent].is_present() {
                continue;
            }
            let room = LOOKS_BELOW.saturating_sub(looked).min(reclaim.looks);
            let below: Vec<PageId> = self.children_of(parent).take(room).collect();
            looked += below.len();
            reclaim.looks -= below.len();
            for child in below {
                let page = &self.index[child];
                let idle = page.dram == Dram::None && page.relocations() == 0;
                if idle && page.on_ssd() == OnSsd::On && !self.must_stay(child) {
                    self.lose_to_reclaim(child);
                    gone.push(child);
                }
            }
        }
        // Who has lost what hung from it may have gone with that.
        for id in gone.into_iter().rev() {
            if self.index.contains(id) {
                self.prune(id);
            }
        }
    }

    fn lose_to_reclaim(&mut self, id: PageId) {
        let extent = self.record_of(&self.index[id]).expect("a page in a segment has a record");
        self.stats.ssd_dropped_pages += 1;
        self.devices.get_mut(extent.device).stats.dropped_pages += 1;
        self.leave_ssd(id);
        self.bury(id, MissCause::Reclaimed);
    }

    fn start_relocate(&mut self, id: PageId, paid: bool, actions: &mut Vec<Action>) {
        let identity = self.identity(id);
        let Ssd::On(extent) = self.ssd_of(&self.index[id]) else {
            unreachable!("only proved records are relocated")
        };
        let page = &mut self.index[id];
        page.begin_relocation();
        page.set(Mark::Touched, false);
        let bytes = self.frame_bytes(self.class_of(id));
        self.load(extent.device, bytes);
        self.spend(id, extent.device);
        let segments = &mut self.devices.get_mut(extent.device).segments;
        let segment = segments.get_mut(Age::of(extent)).expect("a record lies in a segment");
        segment.relocating += 1;
        let job = self.new_job(Job::Relocate { page: id, extent, paid });
        let origin = self.origin(&self.index[id]);
        actions.push(Action::Relocate { job, extent, identity, origin });
    }

    pub(crate) fn relocated(
        &mut self,
        id: PageId,
        (from, paid): (Extent, bool),
        outcome: AppendOutcome,
    ) {
        self.index[id].end_relocation();
        let class = self.class_of(id);
        let bytes = self.frame_bytes(class);
        self.unload(from.device, bytes);
        if outcome == AppendOutcome::NoSpace {
            self.unspend(id, from.device);
        }
        let device = self.devices.get_mut(from.device);
        if let Some(segment) = device.segments.get_mut(Age::of(from)) {
            segment.relocating -= 1;
        }
        // The record may have turned out to be damaged, or its device lost, in the meantime.
        if self.ssd_of(&self.index[id]) == Ssd::On(from) {
            self.move_record(id, (from, paid), outcome);
        }
        self.settle(id);
        self.prune(id);
        self.wake(class);
    }

    fn move_record(&mut self, id: PageId, (from, paid): (Extent, bool), outcome: AppendOutcome) {
        let bytes = self.frame_bytes(self.class_of(id));
        if let AppendOutcome::Written(extent) = outcome {
            self.leave_ssd(id);
            if self.enter_ssd(id, extent, true) {
                self.stats.relocated_pages += 1;
                self.stats.relocated_bytes += bytes;
                let of_device = &mut self.devices.get_mut(from.device).stats;
                of_device.relocated_pages += 1;
                of_device.relocated_bytes += bytes;
                return;
            }
            self.bury(id, MissCause::Reclaimed);
        } else if self.devices.get(from.device).takes_appends() {
            // The segment must go, and the record with it.
            self.leave_ssd(id);
            let failed = outcome == AppendOutcome::Failed;
            self.bury(id, if failed { MissCause::Unreadable } else { MissCause::Reclaimed });
        } else {
            // The device could not move anything: reclaim will look at the page again.
            self.index[id].set(Mark::Touched, true);
            let reclaiming = &mut self.devices.get_mut(from.device).segments.reclaiming;
            if let Some(reclaim) = reclaiming.as_mut().filter(|of| of.age == Age::of(from)) {
                reclaim.budget += u32::from(paid);
            }
        }
        self.stats.relocate_failures += 1;
        self.devices.get_mut(from.device).stats.failures += 1;
    }

    pub(crate) fn segment_freed(
        &mut self,
        device: DeviceId,
        (segment, segment_use): (SegmentId, SegmentUse),
        free_segments: u32,
    ) {
        let Some(device) = self.devices.find_mut(device) else {
            return;
        };
        device.free_segments = free_segments;
        if device.segments.freed(Age { segment_use, segment }, &mut self.segments) {
            device.stats.freed_segments += 1;
            self.stats.freed_segments += 1;
        }
    }

    /// Something has changed that may let reclaim drop what it could not before.
    pub(crate) fn pay_for_reclaim(&mut self, device: DeviceId) {
        let segments = &mut self.devices.get_mut(device).segments;
        segments.wasted = segments.wasted.saturating_sub(1);
    }
}
