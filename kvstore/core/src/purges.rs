use crate::fetches::FetchId;
use crate::jobs::Job;
use crate::page::{Dram, Mark, OnSsd, PageId};
use crate::{Action, Core};
use std::collections::BTreeSet;
use undercroft_wire::{DomainId, FetchOutcome, HoldId, JobId, SpaceDigest, SpaceId};

/// Which pages are purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PurgeScope {
    /// All of a domain.
    Domain(DomainId),
    /// Those of one of its spaces.
    Space(DomainId, SpaceDigest),
}

/// Forgetting pages because somebody says so. All of it is done in one step: no lookup finds any
/// of them afterwards.
impl Core {
    pub(crate) fn purge(&mut self, scope: PurgeScope, actions: &mut Vec<Action>) {
        let of_scope = |space: &crate::SpaceInfo| match scope {
            PurgeScope::Domain(domain) => space.domain == domain,
            PurgeScope::Space(domain, digest) => (space.domain, space.digest) == (domain, digest),
        };
        let spaces: BTreeSet<SpaceId> =
            self.spaces.iter().filter(of_scope).map(|space| space.id).collect();
        self.end_holds_on(&spaces);
        self.stop_fetches_of(&spaces, actions);
        self.part_from_reads_of(&spaces);
        let pages = self.index.iter().filter(|(_, page)| spaces.contains(&page.space));
        let mut pages: Vec<(u32, PageId)> = pages.map(|(id, page)| (page.depth, id)).collect();
        // Children first: what nothing hangs from is forgotten with its last tier.
        pages.sort_unstable_by(|a, b| b.cmp(a));
        for (_, id) in pages {
            if self.index.contains(id) {
                self.purge_page(id);
            }
        }
    }

    fn end_holds_on(&mut self, spaces: &BTreeSet<SpaceId>) {
        let holds = self.holds.iter();
        let touched = holds.filter(|(_, hold)| hold.spaces.iter().any(|id| spaces.contains(id)));
        for hold in touched.map(|(id, _)| *id).collect::<Vec<HoldId>>() {
            self.end_hold(hold);
        }
    }

    fn stop_fetches_of(&mut self, spaces: &BTreeSet<SpaceId>, actions: &mut Vec<Action>) {
        let of_scope = self.fetches.iter().filter(|(_, fetch)| spaces.contains(&fetch.space));
        let mut fetches: Vec<FetchId> =
            of_scope.filter(|(_, fetch)| fetch.active).map(|(id, _)| *id).collect();
        fetches.sort_unstable();
        for fetch in fetches {
            self.stop_fetch(fetch, FetchOutcome::Missing, actions);
        }
    }

    /// Nobody waits for what is being read: its frames are free when the reads end.
    fn part_from_reads_of(&mut self, spaces: &BTreeSet<SpaceId>) {
        let read = |job: &Job| match job {
            Job::Read { page, .. } if spaces.contains(&self.index[*page].space) => Some(*page),
            _ => None,
        };
        let jobs = self.jobs.iter();
        let mut reads: Vec<(JobId, PageId)> =
            jobs.filter_map(|(id, job)| Some((*id, read(job)?))).collect();
        reads.sort_unstable();
        for (job, page) in reads {
            let class = self.class_of(page);
            if self.part_from_read(job, page) {
                // Its device answers, so its end may free the frame.
                self.frames.class_mut(class).busy += 1;
            }
        }
    }

    fn purge_page(&mut self, id: PageId) {
        let page = &self.index[id];
        if page.is(Mark::Purged) {
            return;
        }
        self.stats.purged_pages += u64::from(page.is_present() && page.dram != Dram::Offered);
        if page.has_record() {
            self.leave_ssd(id);
        }
        // What is offered is not there yet: if it comes, it is a store after the purge.
        if matches!(self.index[id].dram, Dram::Filling | Dram::Resident) {
            self.index[id].set(Mark::Purged, true);
            self.note_presence(id);
        }
        self.settle(id);
        self.drop_purged(id);
        self.prune(id);
    }

    /// Takes the frame of a purged page back once nobody uses it.
    pub(crate) fn drop_purged(&mut self, id: PageId) {
        let page = &self.index[id];
        let used = self.index.pins(page) > 0 || page.on_ssd() == OnSsd::Writing;
        if page.is(Mark::Purged) && page.dram == Dram::Resident && !used {
            let class = self.class_of(id);
            self.frames.class_mut(class).resident -= 1;
            self.drop_frame(id);
        }
    }
}
