use crate::claims::{Claim, Filling};
use crate::domains::DomainAt;
use crate::fetches::{Fetch, FetchId};
use crate::jobs::Job;
use crate::origins::Users;
use crate::page::{Dram, Mark, OnSsd, Page, PageId};
use crate::spaces::ClassId;
use crate::{Action, Core};
use std::collections::{BTreeSet, VecDeque};
use undercroft_wire::{
    CommitOutcome, FetchOutcome, HoldId, JobId, MissCause, PurgeId, PurgeScope, SpaceId,
};

/// What purges are doing.
///
/// There may be a million pages to forget, and looking at all of them at once would hold everybody
/// up. So a purge has an end: the place in the index up to which there are pages now. Pages of its
/// scope between where it is and there are *condemned*: they are found by nobody, and forgotten when
/// it comes by, some pages each step. A page that takes such a place meanwhile is condemned with
/// them, which costs a miss.
#[derive(Debug, Default)]
pub(crate) struct Purges {
    sweeps: VecDeque<Sweep>,
    /// The newest of those that are over for good.
    pub(crate) over: PurgeId,
}

impl Purges {
    /// None is under way; those up to `over` were over before.
    pub(crate) fn new(over: PurgeId) -> Self {
        Self { over, ..Self::default() }
    }
}

#[derive(Debug)]
struct Sweep {
    purge: PurgeId,
    scope: PurgeScope,
    /// Holds that may have pages of the scope, and how many pages of the first were looked at.
    holds: VecDeque<HoldId>,
    held: usize,
    /// Places of the index to look at.
    next: usize,
    end: usize,
    forgotten: Forgotten,
}

/// What left the tiers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Forgotten {
    pages: u64,
    dram_bytes: u64,
    ssd_bytes: u64,
}

/// Forgetting pages because somebody says so: from the first step on nobody finds them.
impl Core {
    pub(crate) fn purge(&mut self, purge: PurgeId, scope: PurgeScope, actions: &mut Vec<Action>) {
        let (next, end) = (0, self.index.places());
        let (holds, held, forgotten) = (VecDeque::new(), 0, Forgotten::default());
        let sweep = Sweep { purge, scope, holds, held, next, end, forgotten };
        self.purges.sweeps.push_back(sweep);
        let of_scope = |space: &crate::SpaceInfo| {
            scope.domain.is_none_or(|domain| domain == space.domain)
                && scope.space.is_none_or(|digest| digest == space.digest)
        };
        let spaces: BTreeSet<SpaceId> =
            self.spaces.iter().filter(of_scope).map(|space| space.id).collect();
        self.withdraw_commits_of(&spaces, &scope, actions);
        self.search_again_in(&spaces);
        let holds = self.end_holds_on(&spaces, &scope);
        self.purges.sweeps.back_mut().expect("pushed above").holds = holds;
        self.stop_fetches_of(&spaces, &scope, actions);
        self.part_from_reads_of(&spaces, &scope, actions);
    }

    /// Whether somebody is told to forget pages.
    pub(crate) fn is_purging(&self) -> bool {
        !self.purges.sweeps.is_empty()
    }

    /// Whether the page is to be forgotten and was not come by yet.
    pub(crate) fn is_condemned(&self, id: PageId) -> bool {
        let waits = |sweep: &Sweep| (sweep.next..sweep.end).contains(&id.place());
        let mut sweeps = self.purges.sweeps.iter();
        sweeps.any(|sweep| waits(sweep) && self.is_meant(&sweep.scope, &self.index[id]))
    }

    /// Whether a purge means the page, and it was not stored anew since.
    pub(crate) fn is_purged(&self, id: PageId) -> bool {
        self.index[id].is(Mark::Purged) || (self.is_purging() && self.is_condemned(id))
    }

    fn is_meant(&self, scope: &PurgeScope, page: &Page) -> bool {
        let space = self.spaces.get(page.space);
        scope.means(space.domain, space.digest, self.writer_of(page))
    }

    /// Looks at no more than `limit` pages; returns at how many.
    pub(crate) fn sweep(&mut self, limit: usize, actions: &mut Vec<Action>) -> usize {
        let at_holds = self.sweep_holds(limit);
        let Some(mut sweep) = self.purges.sweeps.pop_front() else {
            return 0;
        };
        let until = sweep.end.min(sweep.next + limit - at_holds);
        let looked = at_holds + until - sweep.next;
        for place in sweep.next..until {
            let id = PageId::at(place);
            if self.index.get(id).is_some_and(|page| self.is_meant(&sweep.scope, page)) {
                self.forget(id, MissCause::Purged, &mut sweep.forgotten);
            }
        }
        sweep.next = until;
        if sweep.next < sweep.end || !sweep.holds.is_empty() {
            self.purges.sweeps.push_front(sweep);
        } else {
            let Forgotten { pages, dram_bytes, ssd_bytes } = sweep.forgotten;
            self.stats.purged_pages += pages;
            let purge = sweep.purge;
            actions.push(Action::Purged { purge, pages, dram_bytes, ssd_bytes });
        }
        looked
    }

    /// What was committed before and waits for a frame is a page of before. What is only offered is
    /// a page of after, should it come.
    fn withdraw_commits_of(
        &mut self,
        spaces: &BTreeSet<SpaceId>,
        scope: &PurgeScope,
        actions: &mut Vec<Action>,
    ) {
        let meant = |users: &Users, domain: DomainAt, filling: &Filling| {
            let writes = |uid| users.uid(domain, filling.writer) == uid;
            spaces.contains(&filling.space) && scope.writer.is_none_or(writes)
        };
        let classes: Vec<ClassId> = self.frames.classes().map(|(class, _)| class).collect();
        for class in classes {
            let domain = self.frames.class(class).domain;
            let waiting = std::mem::take(&mut self.frames.class_mut(class).waiting);
            let (gone, stay): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(
                |claim| matches!(claim, Claim::Commit(filling) if meant(&self.users, domain, filling)),
            );
            self.frames.class_mut(class).waiting = stay;
            for claim in gone {
                if let Claim::Commit(filling) = claim {
                    let key = self.index[filling.page].key;
                    self.drop_offered(filling.page);
                    self.bury_key(filling.space, &key, MissCause::Purged);
                    self.settle_slot(filling, CommitOutcome::Invalid, actions);
                }
            }
            self.wake(class);
        }
    }

    /// Ends the holds on spaces that are meant whole; returns those of which some pages may be.
    fn end_holds_on(&mut self, spaces: &BTreeSet<SpaceId>, scope: &PurgeScope) -> VecDeque<HoldId> {
        let holds = self.holds.iter();
        let touched = holds.filter(|(_, hold)| hold.spaces.iter().any(|id| spaces.contains(id)));
        let touched: VecDeque<HoldId> = touched.map(|(id, _)| *id).collect();
        if scope.writer.is_some() {
            return touched;
        }
        touched.into_iter().for_each(|hold| self.end_hold(hold));
        VecDeque::new()
    }

    /// Ends holds with pages of the scope, before these are forgotten. Looks at no more than `limit`
    /// of them and of their pages; returns at how many.
    fn sweep_holds(&mut self, limit: usize) -> usize {
        let mut looked = 0;
        while looked < limit
            && let Some(sweep) = self.purges.sweeps.front()
            && let Some(&id) = sweep.holds.front()
        {
            let pages = self.holds.get(&id).map_or(&[][..], |hold| &hold.pages[sweep.held..]);
            let turn = &pages[..pages.len().min(limit - looked)];
            let meant =
                |(page, _): &(PageId, bool)| self.is_meant(&sweep.scope, &self.index[*page]);
            let (is_meant, turn, is_last) =
                (turn.iter().any(meant), turn.len(), turn.len() == pages.len());
            looked += turn.max(1);
            if let Some(sweep) = self.purges.sweeps.front_mut() {
                sweep.held += turn;
                if is_meant || is_last {
                    sweep.holds.pop_front();
                    sweep.held = 0;
                }
            }
            if is_meant {
                self.end_hold(id);
            }
        }
        looked
    }

    fn stop_fetches_of(
        &mut self,
        spaces: &BTreeSet<SpaceId>,
        scope: &PurgeScope,
        actions: &mut Vec<Action>,
    ) {
        let of_scope = self.fetches.iter().filter(|(_, fetch)| {
            let is_meant = |fetch| scope.writer.is_none() || self.comes_to(scope, fetch);
            fetch.active && spaces.contains(&fetch.space) && is_meant(fetch)
        });
        let mut fetches: Vec<FetchId> = of_scope.map(|(id, _)| *id).collect();
        fetches.sort_unstable();
        for fetch in fetches {
            self.stop_fetch(fetch, FetchOutcome::Missing, actions);
        }
    }

    /// Whether the next page of the fetch is of the scope, or might be. Of those after it a fetch finds
    /// out when it gets there.
    fn comes_to(&self, scope: &PurgeScope, fetch: &Fetch) -> bool {
        let next = [fetch.delivered, fetch.issued].into_iter().filter(|at| *at < fetch.limit);
        let mut pages = next.map(|at| &self.index[fetch.pages[at as usize]]);
        // Of what it is handed over or has copied it would not find out: a copied page may be forgotten.
        let blind = fetch.handed_over || fetch.copied > fetch.delivered;
        blind || pages.any(|page| self.is_meant(scope, page))
    }

    /// Nobody waits for what is being read: its frames are free when the reads end.
    fn part_from_reads_of(
        &mut self,
        spaces: &BTreeSet<SpaceId>,
        scope: &PurgeScope,
        actions: &mut Vec<Action>,
    ) {
        let read = |job: &Job| match job {
            Job::Read { page, .. } => {
                let (id, page) = (*page, &self.index[*page]);
                (spaces.contains(&page.space) && self.is_meant(scope, page)).then_some(id)
            }
            _ => None,
        };
        let jobs = self.jobs.iter();
        let mut reads: Vec<(JobId, PageId)> =
            jobs.filter_map(|(id, job)| Some((*id, read(job)?))).collect();
        reads.sort_unstable();
        for (job, page) in reads {
            let Some(Job::Read { fetches, .. }) = self.jobs.get_mut(&job) else {
                unreachable!("a read ends by itself or here")
            };
            for fetch in std::mem::take(fetches) {
                self.stop_fetch(fetch, FetchOutcome::Missing, actions);
            }
            let class = self.class_of(page);
            if self.part_from_read(job, page) {
                // Its device answers, so its end may free the frame.
                self.frames.class_mut(class).busy += 1;
            }
        }
    }

    /// Takes a page out of all tiers. What uses its frame keeps it, and then it goes.
    pub(crate) fn forget(&mut self, id: PageId, cause: MissCause, forgotten: &mut Forgotten) {
        let page = &self.index[id];
        assert!(page.dram != Dram::Reading, "nobody finds a page that is to be forgotten");
        if page.is(Mark::Purged) {
            return;
        }
        let bytes = self.frame_bytes(self.class_of(id));
        let in_dram = matches!(page.dram, Dram::Filling | Dram::Resident);
        let on_ssd = page.has_record();
        forgotten.pages += u64::from(in_dram || on_ssd);
        forgotten.dram_bytes += if in_dram { bytes } else { 0 };
        forgotten.ssd_bytes += if on_ssd { bytes } else { 0 };
        if on_ssd {
            self.leave_ssd(id);
        }
        // What is offered is not there yet: if it comes, it is a store after the purge.
        if in_dram {
            self.index[id].set(Mark::Purged, true);
            self.note_presence(id);
        }
        if in_dram || on_ssd {
            self.bury(id, cause);
        }
        self.settle(id);
        self.drop_purged(id);
        self.note_purged(id);
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
