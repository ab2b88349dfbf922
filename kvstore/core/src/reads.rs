use crate::devices::DeviceSet;
use crate::fetches::FetchId;
use crate::jobs::Job;
use crate::lanes::LaneAt;
use crate::page::{Dram, Mark, PageId, Ssd};
use crate::spaces::ClassId;
use crate::{Action, AppendOutcome, Core, ReadOutcome};
use undercroft_wire::{DeviceId, Extent, FetchOutcome, FrameId, MissCause};

/// Pages between DRAM and SSD.
impl Core {
    pub(crate) fn start_read(
        &mut self,
        id: PageId,
        frame: FrameId,
        fetch: FetchId,
        actions: &mut Vec<Action>,
    ) {
        let identity = self.identity(id);
        let class = self.class_of(id);
        let Ssd::On(extent) = self.ssd_of(&self.index[id]) else {
            unreachable!("only pages on SSD are read")
        };
        assert_eq!(self.index[id].dram, Dram::None, "a page is read into one frame");
        self.index.set_frame(id, frame, Dram::Reading);
        self.note_filling(class, frame);
        self.frames.class_mut(class).busy += 1;
        self.begin_reading(extent, self.frame_bytes(class));
        self.begin_metering(extent.device, class);
        let fetches = vec![fetch];
        let job = self.new_job(Job::Read { page: id, extent, fetches });
        self.index.set_read_job(id, job);
        let frame = self.frames.place(class, frame);
        let (lane, domain) = (LaneAt::Reads(extent.device), self.frames.class(class).domain);
        let action = Action::Read { job, extent, identity, frame };
        self.hand_in(lane, domain, (job, self.frame_bytes(class)), action, actions);
    }

    /// Lets a fetch wait for a read that is under way.
    pub(crate) fn join_read(&mut self, id: PageId, fetch: FetchId) {
        let job = self.index.read_job_of(&self.index[id]);
        let Some(Job::Read { fetches, .. }) = self.jobs.get_mut(&job) else {
            unreachable!("a page being read names its job")
        };
        if fetches.last() != Some(&fetch) {
            fetches.push(fetch);
        }
    }

    pub(crate) fn read_done(
        &mut self,
        id: PageId,
        extent: Extent,
        fetches: Vec<FetchId>,
        outcome: ReadOutcome,
    ) {
        assert_eq!(self.index[id].dram, Dram::Reading, "a read fills its page's frame");
        let class = self.class_of(id);
        self.end_reading(extent, self.frame_bytes(class));
        self.end_metering(extent.device, class, outcome != ReadOutcome::Failed);
        self.lane_done(LaneAt::Reads(extent.device), self.frame_bytes(class));
        self.read_over(self.frames.class(class).domain);
        self.count_read(extent.device, class, outcome);
        if let ReadOutcome::Ok(crc) = outcome {
            self.become_resident(id, crc);
            self.note_brought(id, &fetches);
        }
        self.unbusy(class);
        if !matches!(outcome, ReadOutcome::Ok(_)) {
            self.drop_frame(id);
            // The record may have been appended anew since: then that one counts.
            if self.ssd_of(&self.index[id]) == Ssd::On(extent) {
                self.leave_ssd(id);
                self.bury(id, outcome.miss_cause());
            }
            for &fetch in &fetches {
                self.damage(fetch, id);
            }
            // The last fetch to let go of it may have forgotten it.
            if self.index.contains(id) {
                self.prune(id);
            }
        }
        self.ready.extend(fetches);
    }

    /// The end of a read that nobody waits for. Its bytes are taken if the page still lies where
    /// it was read from and has no other frame.
    pub(crate) fn stray_read_done(
        &mut self,
        id: PageId,
        extent: Extent,
        (class, frame): (ClassId, FrameId),
        outcome: ReadOutcome,
    ) {
        self.end_reading(extent, self.frame_bytes(class));
        self.end_metering(extent.device, class, outcome != ReadOutcome::Failed);
        self.lane_done(LaneAt::Reads(extent.device), self.frame_bytes(class));
        self.count_read(extent.device, class, outcome);
        let answers = self.devices.answers(extent.device);
        if answers {
            self.unbusy(class);
        }
        // No two records have one extent: a page that has taken a forgotten one's place is told
        // apart.
        let page = self.index.get(id).filter(|page| self.ssd_of(page) == Ssd::On(extent));
        match (outcome, page.map(|page| page.dram)) {
            (ReadOutcome::Ok(crc), Some(Dram::None)) => {
                self.index.set_frame(id, frame, Dram::Reading);
                return self.become_resident(id, crc);
            }
            (ReadOutcome::Corrupt, Some(_)) => self.lose_record(id, MissCause::Damaged),
            // A device that does not answer says nothing of its records.
            (ReadOutcome::Failed, Some(_)) if answers => {
                self.lose_record(id, MissCause::Unreadable);
            }
            _ => {}
        }
        self.give_back(class, frame);
    }

    fn begin_metering(&mut self, device: DeviceId, class: ClassId) {
        let (now, bytes) = (self.now, self.frame_bytes(class));
        self.devices.get_mut(device).reading.begin(now, bytes);
    }

    /// A read has ended; it tells how fast the device is unless it failed or was taken back.
    pub(crate) fn end_metering(&mut self, device: DeviceId, class: ClassId, counts: bool) {
        let (now, bytes) = (self.now, self.frame_bytes(class));
        self.devices.get_mut(device).reading.end(now, bytes, counts);
    }

    fn count_read(&mut self, device: DeviceId, class: ClassId, outcome: ReadOutcome) {
        let bytes = self.frame_bytes(class);
        let of_device = &mut self.devices.get_mut(device).stats;
        match outcome {
            ReadOutcome::Ok(_) => {
                self.stats.read_pages += 1;
                self.stats.read_bytes += bytes;
                of_device.read_pages += 1;
                of_device.read_bytes += bytes;
            }
            ReadOutcome::Corrupt => {
                self.stats.corrupt_records += 1;
                of_device.failures += 1;
            }
            ReadOutcome::Failed => {
                self.stats.read_failures += 1;
                of_device.failures += 1;
            }
        }
    }

    /// Ends a fetch before a page that could not be read.
    fn damage(&mut self, id: FetchId, page: PageId) {
        let Some(mut fetch) = self.fetches.remove(&id) else {
            return;
        };
        let undelivered = fetch.delivered as usize..fetch.issued as usize;
        let at = fetch.pages[undelivered.clone()].iter().position(|other| *other == page);
        if let (true, Some(at)) = (fetch.active, at) {
            let limit = (undelivered.start + at) as u32;
            self.truncate(&mut fetch, limit, FetchOutcome::Damaged);
        }
        self.fetches.insert(id, fetch);
    }

    pub(crate) fn appended(
        &mut self,
        id: PageId,
        device: DeviceId,
        refused: DeviceSet,
        outcome: AppendOutcome,
        actions: &mut Vec<Action>,
    ) {
        self.lane_done(LaneAt::Writes(device), self.frame_bytes(self.class_of(id)));
        self.append_over(id, (device, refused), Some(outcome), actions);
    }

    /// An append has ended, or was never given to its device.
    pub(crate) fn append_over(
        &mut self,
        id: PageId,
        (device, refused): (DeviceId, DeviceSet),
        outcome: Option<AppendOutcome>,
        actions: &mut Vec<Action>,
    ) {
        let class = self.class_of(id);
        assert_eq!(self.index[id].written_to(), Some(device), "an append ends once");
        self.index[id].clear_ssd();
        self.unload(device, self.frame_bytes(class));
        let entered = match outcome {
            Some(AppendOutcome::Written(extent)) => self.enter_ssd(id, extent, true),
            _ => false,
        };
        if outcome.is_none_or(|outcome| outcome == AppendOutcome::NoSpace) {
            self.unspend(id, device);
        }
        if let Some(outcome) = outcome {
            self.count_append(id, device, (outcome, entered));
        }
        if self.devices.answers(device) {
            self.unbusy(class);
        } else {
            self.wake(class);
        }
        if self.index[id].is(Mark::Purged) {
            return self.purged_was_written(id, entered);
        }
        if !entered {
            self.append_elsewhere(id, device, refused.with(device), actions);
        }
        self.settle(id);
        self.note_written(id);
    }

    fn count_append(
        &mut self,
        id: PageId,
        device: DeviceId,
        (outcome, entered): (AppendOutcome, bool),
    ) {
        let bytes = self.frame_bytes(self.class_of(id));
        let of_device = &mut self.devices.get_mut(device).stats;
        if entered {
            self.stats.appended_pages += 1;
            self.stats.appended_bytes += bytes;
            of_device.appended_pages += 1;
            of_device.appended_bytes += bytes;
            self.index[id].set(Mark::Touched, false);
            self.pay_for_reclaim(device);
        } else if outcome == AppendOutcome::NoSpace {
            self.stats.append_no_space += 1;
        } else {
            self.stats.append_failures += 1;
            of_device.failures += 1;
        }
    }

    /// The page was to be forgotten meanwhile.
    fn purged_was_written(&mut self, id: PageId, entered: bool) {
        if entered {
            self.leave_ssd(id);
        }
        self.note_written(id);
        self.drop_purged(id);
        self.prune(id);
    }

    /// A device would not take the page: tries the next one.
    fn append_elsewhere(
        &mut self,
        id: PageId,
        device: DeviceId,
        refused: DeviceSet,
        actions: &mut Vec<Action>,
    ) {
        let refused = refused.or(self.spent_devices(id));
        if let Some(next) = self.devices.to_append_to(refused) {
            self.start_append(id, next, refused, actions);
        } else if self.devices.get(device).takes_appends() {
            // A device that takes none just now says nothing of the page.
            self.index[id].set(Mark::AppendRefused, true);
        }
    }
}
