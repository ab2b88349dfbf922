use crate::claims::Filling;
use crate::fetches::FetchId;
use crate::page::PageId;
use crate::segments::Age;
use crate::{Action, Core, Event};
use undercroft_wire::{Extent, JobId, SessionId, SlotId, SpaceId};

/// What the end of a job will be about.
#[derive(Debug)]
pub(crate) enum Job {
    CopyIn(Filling),
    CopyOut(Delivery),
    Append(PageId),
    /// A read into the page's frame, and the fetches that wait for it.
    Read {
        page: PageId,
        extent: Extent,
        segment: Age,
        fetches: Vec<FetchId>,
    },
    Relocate {
        page: PageId,
        extent: Extent,
        segment: Age,
    },
}

/// A page on its way into a staging slot. It holds a pin of its own on the page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery {
    pub(crate) page: PageId,
    pub(crate) fetch: FetchId,
    /// Index in the fetch.
    pub(crate) at: u32,
    pub(crate) session: SessionId,
    pub(crate) space: SpaceId,
    pub(crate) slot: SlotId,
}

impl Core {
    pub(crate) fn new_job(&mut self, job: Job) -> JobId {
        self.last_job += 1;
        let id = JobId(self.last_job);
        self.jobs.insert(id, job);
        id
    }

    /// Takes in the end of a job. One that nobody started changes nothing but a counter.
    pub(crate) fn job_ended(&mut self, id: JobId, event: Event<'_>, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.remove(&id) else {
            self.stats.unknown_jobs += 1;
            return;
        };
        match (job, event) {
            (Job::CopyIn(filling), Event::CopiedIn { outcome, .. }) => {
                self.copied_in(filling, outcome, actions);
            }
            (Job::CopyOut(delivery), Event::CopiedOut { ok, .. }) => {
                self.copied_out(delivery, ok);
            }
            (Job::Append(page), Event::Appended { outcome, .. }) => {
                self.appended(page, outcome);
            }
            (Job::Read { page, extent, segment, fetches }, Event::ReadDone { outcome, .. }) => {
                self.read_done(page, (extent, segment), fetches, outcome);
            }
            (Job::Relocate { page, extent, segment }, Event::Relocated { outcome, .. }) => {
                self.relocated(page, extent, segment, outcome);
            }
            (job, _) => {
                // The job goes on: its own end is still to come.
                self.jobs.insert(id, job);
                self.stats.unknown_jobs += 1;
            }
        }
    }
}
