use crate::claims::Filling;
use crate::devices::DeviceSet;
use crate::fetches::FetchId;
use crate::page::PageId;
use crate::spaces::ClassId;
use crate::{Action, Core, Event};
use undercroft_wire::{DeviceId, Extent, FrameId, JobId, SessionId, SlotId, SpaceId};

/// What the end of a job will be about.
#[derive(Debug)]
pub(crate) enum Job {
    CopyIn(Filling),
    CopyOut(Delivery),
    Append {
        page: PageId,
        device: DeviceId,
        /// Devices that would not take the page before.
        refused: DeviceSet,
    },
    /// A read into the page's frame, and the fetches that wait for it.
    Read {
        page: PageId,
        extent: Extent,
        fetches: Vec<FetchId>,
    },
    /// A read whose device stopped answering. Nobody waits for it; the frame is its own until it
    /// ends, and the page has gone on without it, or was forgotten.
    StrayRead {
        page: PageId,
        extent: Extent,
        class: ClassId,
        frame: FrameId,
    },
    Relocate {
        page: PageId,
        extent: Extent,
        /// Whether reclaim's budget paid for it.
        paid: bool,
    },
    /// A read that nobody wants the bytes of. The page may be forgotten before it ends.
    Prove {
        page: PageId,
        extent: Extent,
        bytes: u64,
    },
}

impl Job {
    /// The device that must answer for it to end.
    pub(crate) fn device(&self) -> Option<DeviceId> {
        match self {
            Self::CopyIn(_) | Self::CopyOut(_) => None,
            Self::Append { device, .. } => Some(*device),
            Self::Read { extent, .. }
            | Self::StrayRead { extent, .. }
            | Self::Relocate { extent, .. }
            | Self::Prove { extent, .. } => Some(extent.device),
        }
    }
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
            (
                Job::Append { page, device, refused },
                Event::Appended { outcome, free_segments, .. },
            ) => {
                self.devices.get_mut(device).free_segments = free_segments;
                self.appended(page, device, refused, outcome, actions);
            }
            (Job::Read { page, extent, fetches }, Event::ReadDone { outcome, .. }) => {
                self.read_done(page, extent, fetches, outcome);
            }
            (Job::StrayRead { page, extent, class, frame }, Event::ReadDone { outcome, .. }) => {
                self.stray_read_done(page, extent, (class, frame), outcome);
            }
            (
                Job::Relocate { page, extent, paid },
                Event::Relocated { outcome, free_segments, .. },
            ) => {
                self.devices.get_mut(extent.device).free_segments = free_segments;
                self.relocated(page, (extent, paid), outcome);
            }
            (Job::Prove { page, extent, bytes }, Event::Proved { outcome, .. }) => {
                self.proved(page, extent, bytes, outcome);
            }
            (job, _) => {
                // The job goes on: its own end is still to come.
                self.jobs.insert(id, job);
                self.stats.unknown_jobs += 1;
            }
        }
    }
}
