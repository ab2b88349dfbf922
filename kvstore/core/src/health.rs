use crate::devices::Device;
use crate::fetches::{Fetch, FetchId};
use crate::jobs::Job;
use crate::letting::Grip;
use crate::page::{Dram, PageId};
use crate::stats::DeviceState;
use crate::{Core, Health};
use undercroft_wire::{DeviceId, FetchOutcome, JobId, MissCause};

/// Devices that come and go. One that does not answer holds nobody up: who waits for its pages
/// learns that they are missing, who waits for frames that it uses gets others, and its jobs keep
/// their frames until they end, whenever that is.
impl Core {
    pub(crate) fn device_health(&mut self, device: DeviceId, health: Health) {
        if self.devices.find_mut(device).is_some() {
            self.change_device(device, |device| device.health = health);
        }
    }

    /// Every record is gone, and nothing will be asked of the device again. The records count for
    /// nothing from here on; they are forgotten a few at a time, as there may be many.
    pub(crate) fn device_lost(&mut self, device: DeviceId) {
        let Some(state) = self.devices.find_mut(device) else {
            return;
        };
        if state.state == DeviceState::Lost {
            return;
        }
        self.change_device(device, |device| {
            device.state = DeviceState::Lost;
            device.segments.reclaiming = None;
            device.segments.to_move.clear();
            device.to_prove.clear();
        });
    }

    /// Changes what may be asked of a device, and follows it up.
    pub(crate) fn change_device(&mut self, id: DeviceId, change: impl FnOnce(&mut Device)) {
        let device = self.devices.get_mut(id);
        let before = (device.answers(), device.takes_appends());
        change(device);
        let after = (device.answers(), device.takes_appends());
        if before == after {
            return;
        }
        self.devices.note_answering();
        self.forget_writing();
        let classes: Vec<_> = self.frames.classes().map(|(class, _)| class).collect();
        for class in classes {
            self.frames.class_mut(class).order.revisit_all();
            self.wake(class);
        }
        match (before.0, after.0) {
            (true, false) => self.stop_waiting_for(id),
            (false, true) => self.wait_again_for(id),
            _ => {}
        }
        self.settle_kept();
    }

    /// Forgets the pages of lost devices, at most `limit` of them; returns how many.
    pub(crate) fn forget_lost(&mut self, limit: usize) -> usize {
        let mut forgotten = 0;
        while let Some(device) = self.devices.next_to_forget() {
            let segments = &mut self.devices.get_mut(device).segments;
            let oldest =
                segments.iter().next().and_then(|(_, segment)| segment.listed.iter().next());
            match oldest {
                Some(_) if forgotten == limit => break,
                Some(page) => {
                    self.lose_record(page, MissCause::DeviceLost);
                    forgotten += 1;
                }
                None => segments.forget_oldest(&mut self.segments),
            }
        }
        forgotten
    }

    /// The jobs of a device, oldest first.
    fn jobs_of(&self, device: DeviceId) -> Vec<JobId> {
        let jobs = self.jobs.iter().filter(|(_, job)| job.device() == Some(device));
        let mut ids: Vec<JobId> = jobs.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    fn stop_waiting_for(&mut self, device: DeviceId) {
        let mut strays = Vec::new();
        for id in self.jobs_of(device) {
            match self.jobs[&id] {
                Job::Append { page, .. } => {
                    self.unbusy(self.class_of(page));
                    self.settle(page);
                }
                Job::Read { page, .. } => {
                    self.part_from_read(id, page);
                    strays.push(page);
                }
                Job::StrayRead { class, .. } => self.unbusy(class),
                _ => {}
            }
        }
        self.cut_fetches();
        for page in strays {
            // The last fetch to let go of it may have forgotten it.
            if self.index.contains(page) {
                self.prune(page);
            }
        }
    }

    fn wait_again_for(&mut self, device: DeviceId) {
        for id in self.jobs_of(device) {
            match self.jobs[&id] {
                Job::Append { page, .. } => {
                    self.frames.class_mut(self.class_of(page)).busy += 1;
                    self.settle(page);
                }
                Job::StrayRead { class, .. } => self.frames.class_mut(class).busy += 1,
                _ => {}
            }
        }
    }

    /// Leaves the frame to the read, so that the page can be stored or read anew; true unless the
    /// device was not given the read yet.
    pub(crate) fn part_from_read(&mut self, job: JobId, id: PageId) -> bool {
        let page = &self.index[id];
        assert_eq!(page.dram, Dram::Reading, "a read fills its page's frame");
        let frame = self.index.take_frame(id);
        let class = self.class_of(id);
        let domain = self.frames.class(class).domain;
        self.note_presence(id);
        let Some(Job::Read { page, extent, .. }) = self.jobs.remove(&job) else {
            unreachable!("only reads are parted from")
        };
        let begun = !self.withdraw_read(extent.device, domain, job);
        if begun {
            self.read_over(domain);
            self.jobs.insert(job, Job::StrayRead { page, extent, class, frame });
        } else {
            self.end_reading(extent, self.frame_bytes(class));
            self.end_metering(extent.device, class, false);
            self.give_back(class, frame);
        }
        self.unbusy(class);
        begun
    }

    /// Ends every fetch before the first page that it can no longer get.
    fn cut_fetches(&mut self) {
        let active = self.fetches.iter().filter(|(_, fetch)| fetch.active);
        let mut ids: Vec<FetchId> = active.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            let mut fetch = self.fetches.remove(&id).expect("found above");
            if let Some(at) = self.first_out_of_reach(&fetch) {
                self.stats.cut_fetches += 1;
                self.truncate(&mut fetch, at, FetchOutcome::Missing);
                self.ready.push_back(id);
            }
            self.fetches.insert(id, fetch);
        }
    }

    fn first_out_of_reach(&self, fetch: &Fetch) -> Option<u32> {
        let gone = |id: &PageId| {
            let page = &self.index[*id];
            page.dram != Dram::Reading && !self.is_visible(*id)
        };
        // What has been copied into a slot needs its page no more.
        let from = fetch.delivered.max(fetch.copied);
        let rest = &fetch.pages[from as usize..fetch.limit as usize];
        let at = rest.iter().position(gone)?;
        Some(from + at as u32)
    }

    /// Whether a page that somebody needs to stay may leave DRAM depends on the devices.
    fn settle_kept(&mut self) {
        let mut kept: Vec<PageId> = Vec::new();
        for fetch in self.fetches.values() {
            kept.extend(&fetch.pages[fetch.issued as usize..fetch.limit as usize]);
        }
        for hold in self.holds.values() {
            kept.extend(hold.pages.iter().filter(|(_, pinned)| !pinned).map(|(page, _)| page));
        }
        kept.extend(self.letting.grips().filter_map(|grip| match grip {
            Grip::Keep(page) => Some(page),
            Grip::Pin(_) | Grip::Offered(_) => None,
        }));
        kept.extend(self.searching.held().filter(|(_, pinned)| !pinned).map(|(page, _)| page));
        for page in kept {
            self.settle(page);
        }
    }
}
