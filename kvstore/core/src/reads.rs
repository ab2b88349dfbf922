use crate::fetches::FetchId;
use crate::jobs::Job;
use crate::page::{Dram, PageId, Ssd};
use crate::segments::Age;
use crate::{Action, AppendOutcome, Core, ReadOutcome};
use undercroft_wire::{Extent, FetchOutcome, FrameId};

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
        let page = &mut self.index[id];
        let Ssd::On(extent) = page.ssd else { unreachable!("only pages on SSD are read") };
        assert_eq!(page.dram, Dram::None, "a page is read into one frame");
        page.dram = Dram::Reading;
        page.frame = Some(frame);
        let (class, segment) = (page.class, page.segment);
        self.frames.class_mut(class).busy += 1;
        self.ssd_mut().segments.get_mut(&segment).expect("a record lies in a segment").reads += 1;
        let fetches = vec![fetch];
        let job = self.new_job(Job::Read { page: id, extent, segment, fetches });
        self.index[id].read_job = job;
        let frame = self.frames.place(frame);
        actions.push(Action::Read { job, extent, identity, frame });
    }

    /// Lets a fetch wait for a read that is under way.
    pub(crate) fn join_read(&mut self, id: PageId, fetch: FetchId) {
        let job = self.index[id].read_job;
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
        from: (Extent, Age),
        fetches: Vec<FetchId>,
        outcome: ReadOutcome,
    ) {
        assert_eq!(self.index[id].dram, Dram::Reading, "a read fills its page's frame");
        let class = self.index[id].class;
        let bytes = u64::from(self.frames.class(class).frame_bytes);
        let (extent, segment) = from;
        match outcome {
            ReadOutcome::Ok(crc) => {
                self.stats.read_pages += 1;
                self.stats.read_bytes += bytes;
                self.become_resident(id, crc);
            }
            ReadOutcome::Corrupt => self.stats.corrupt_records += 1,
            ReadOutcome::Failed => self.stats.read_failures += 1,
        }
        self.unbusy(class);
        // The segment waits for its reads, unless its device is lost.
        if let Some(segment) = self.ssd_mut().segments.get_mut(&segment) {
            segment.reads -= 1;
        }
        if !matches!(outcome, ReadOutcome::Ok(_)) {
            self.drop_frame(id);
            // The record may have been appended anew since: then that one counts.
            if self.index[id].ssd == Ssd::On(extent) {
                self.leave_ssd(id);
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

    pub(crate) fn appended(&mut self, id: PageId, outcome: AppendOutcome) {
        let class = self.index[id].class;
        let bytes = u64::from(self.frames.class(class).frame_bytes);
        assert_eq!(self.index[id].ssd, Ssd::Writing, "an append ends once");
        self.index[id].ssd = Ssd::None;
        match outcome {
            AppendOutcome::Written(extent) if self.enter_ssd(id, extent) => {
                self.stats.appended_pages += 1;
                self.stats.appended_bytes += bytes;
                self.index[id].touched = false;
                self.pay_for_reclaim();
            }
            AppendOutcome::NoSpace => {
                self.stats.append_no_space += 1;
                self.index[id].append_refused = true;
            }
            AppendOutcome::Written(_) | AppendOutcome::Failed => {
                self.stats.append_failures += 1;
                self.index[id].append_refused = true;
            }
        }
        self.settle(id);
        self.unbusy(class);
    }
}
