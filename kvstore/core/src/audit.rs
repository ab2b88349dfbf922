use crate::Core;
use crate::claims::{Claim, Filling};
use crate::fetches::{Fetch, FetchId, Reader};
use crate::frames::Class;
use crate::jobs::{Delivery, Job};
use crate::letting::Grip;
use crate::page::{Dram, Mark, PageId};
use crate::restore::Withheld;
use crate::sessions::Slot;
use crate::timers::Timer;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use undercroft_wire::JobId;

mod devices;
mod domains;
mod lanes;
mod pinning;

impl Core {
    /// Checks the whole state against itself.
    ///
    /// # Panics
    /// Naming the first broken invariant.
    pub fn audit(&self) {
        self.audit_chains();
        self.audit_reach();
        self.audit_frames();
        self.audit_order();
        self.audit_density();
        self.audit_pins();
        self.index.audit_in_dram();
        self.audit_busy();
        self.audit_lanes();
        self.audit_devices();
        self.audit_slots();
        self.audit_leases();
        self.audit_pinning();
        self.audit_domains();
        self.audit_timers();
        self.audit_expected();
        assert!(self.ready.is_empty() && self.hungry.is_empty(), "a step ends at rest");
    }

    fn audit_chains(&self) {
        let mut children: HashMap<PageId, u32> = HashMap::new();
        let mut in_space: HashMap<u32, u64> = HashMap::new();
        let mut count = 0;
        let rising: BTreeSet<PageId> = self.waves.audit().collect();
        for (id, page) in self.index.iter() {
            count += 1;
            assert_eq!(page.is(Mark::Rising), rising.contains(&id), "who is to rise on knows");
            *in_space.entry(page.space.0).or_default() += 1;
            assert_eq!(self.index.find(page.space, &page.key), Some(id), "a page is found");
            assert!(!page.is_idle(), "a page that nothing needs is forgotten");
            if let Some(above) = page.parent {
                *children.entry(above).or_default() += 1;
                let parent = &self.index[above];
                assert_eq!(parent.space, page.space, "a chain stays in its space");
                assert_eq!(parent.depth + 1, page.depth, "a child lies one page deeper");
                let leaves_last = || self.index.order_key(id) < self.index.order_key(above);
                let covers = { parent.heat }.covers(page.heat, self.config.policy);
                let in_order = covers && leaves_last();
                assert!(
                    in_order || page.is(Mark::Rising),
                    "no page is dearer than its parent for long"
                );
            } else {
                let known = page.depth == 0 || !page.is_present();
                assert!(known, "a page in a tier knows the one before it");
            }
            assert!(
                page.heat.stamp() <= self.domains.get(self.domain_of_space(page.space)).last_stamp,
                "no page is newer than the newest request"
            );
        }
        assert_eq!(count, self.index.len(), "pages are counted");
        assert_eq!(count, self.index.audit(), "the table names every page");
        assert!(count <= self.config.limits.max_pages as usize, "the table is bounded");
        for (id, _) in self.index.iter() {
            let counted = children.get(&id).copied().unwrap_or(0);
            assert_eq!(counted, self.children_of(id).count() as u32, "a page knows its children");
        }
        for space in self.spaces.iter() {
            let counted = in_space.get(&space.id.0).copied().unwrap_or(0);
            assert_eq!(counted, space.pages, "a space counts its pages");
        }
    }

    fn audit_frames(&self) {
        let total = self.frames.audit();
        let mut used = BTreeSet::new();
        let mut resident: HashMap<_, u32> = HashMap::new();
        for (id, page) in self.index.iter() {
            let holds = matches!(page.dram, Dram::Filling | Dram::Reading | Dram::Resident);
            assert_eq!(
                holds,
                self.index.frame_of(page).is_some(),
                "exactly pages in DRAM have a frame"
            );
            *resident.entry(self.class_of(id)).or_default() +=
                u32::from(page.dram == Dram::Resident);
            if let Some(frame) = self.index.frame_of(page) {
                assert!(used.insert(frame), "a frame holds one page");
                let class = self.frames.class_of_frame(frame);
                assert_eq!(class, self.class_of(id), "a frame has its page's size and domain");
            }
        }
        for job in self.jobs.values() {
            if let Job::StrayRead { frame, .. } = job {
                assert!(used.insert(*frame), "a stray read's frame is its own");
            }
        }
        for (_, frame) in &self.quarantine {
            assert!(used.insert(*frame), "a frame in quarantine holds no page");
        }
        for frame in self.withheld.keys() {
            assert!(used.insert(*frame), "a frame that is withheld holds no page");
        }
        for frame in self.frames.free_frames() {
            assert!(used.insert(frame), "a free frame holds no page");
        }
        for (id, class) in self.frames.classes() {
            let counted = resident.get(&id).copied().unwrap_or(0);
            assert_eq!(counted, class.resident, "resident pages are counted");
        }
        assert_eq!(used.len(), total, "every frame is free or in use");
    }

    fn audit_order(&self) {
        let mut ordered: HashMap<_, usize> = HashMap::new();
        for (id, page) in self.index.iter() {
            assert_eq!(
                page.is(Mark::Ordered),
                self.is_evictable(id),
                "exactly evictable pages are ordered"
            );
            *ordered.entry(self.class_of(id)).or_default() += usize::from(page.is(Mark::Ordered));
        }
        for (id, class) in self.frames.classes() {
            let counted = ordered.get(&id).copied().unwrap_or(0);
            assert_eq!(
                class.order.audit(&self.index),
                counted,
                "the order names ordered pages only"
            );
        }
    }

    fn audit_pins(&self) {
        let mut pins: HashMap<PageId, u32> = HashMap::new();
        let mut keeps: HashMap<PageId, u32> = HashMap::new();
        for fetch in self.fetches.values() {
            for page in &fetch.pages[fetch.pinned()] {
                *pins.entry(*page).or_default() += 1;
            }
            for page in &fetch.pages[fetch.issued as usize..fetch.limit as usize] {
                *keeps.entry(*page).or_default() += 1;
            }
        }
        let holds = self.holds.values().flat_map(|hold| hold.pages.iter().copied());
        for (page, pinned) in holds.chain(self.searching.held()) {
            let counts = if pinned { &mut pins } else { &mut keeps };
            *counts.entry(page).or_default() += 1;
        }
        for page in self.expected.held() {
            *pins.entry(page).or_default() += 1;
        }
        for grip in self.letting.grips() {
            match grip {
                Grip::Pin(page) => *pins.entry(page).or_default() += 1,
                Grip::Keep(page) => *keeps.entry(page).or_default() += 1,
                Grip::Offered(_) => {}
            }
        }
        for job in self.jobs.values() {
            if let Job::CopyOut(delivery) = job {
                *pins.entry(delivery.page).or_default() += 1;
            }
        }
        for (id, page) in self.index.iter() {
            assert_eq!(
                self.index.pins(page),
                pins.remove(&id).unwrap_or(0),
                "every pin has an owner"
            );
            let kept = keeps.remove(&id).unwrap_or(0);
            assert_eq!(self.index.keeps(page), kept, "every keep has an owner");
        }
        assert!(pins.is_empty() && keeps.is_empty(), "what is pinned or kept is known");
    }

    fn audit_busy(&self) {
        let mut busy: HashMap<_, u32> = HashMap::new();
        let mut named = BTreeMap::new();
        let mut relocating: HashMap<PageId, u8> = HashMap::new();
        for (id, job) in &self.jobs {
            let class = match job {
                Job::CopyIn(Filling { page, .. })
                | Job::CopyOut(Delivery { page, .. })
                | Job::Append { page, .. }
                | Job::Read { page, .. } => self.class_of(*page),
                Job::StrayRead { class, .. } => *class,
                Job::Relocate { page, .. } => {
                    *relocating.entry(*page).or_default() += 1;
                    continue;
                }
                Job::Prove { .. } => continue,
            };
            let answers = job.device().is_none_or(|device| self.devices.answers(device));
            *busy.entry(class).or_default() += u32::from(answers);
            if let Some(page) = self.audit_job(job, *id) {
                let double = named.insert(page, *id);
                assert_eq!(double, None, "a frame is written or written out by one job");
            }
        }
        for (id, class) in self.frames.classes() {
            let counted = busy.get(&id).copied().unwrap_or(0);
            assert_eq!(counted, class.busy, "a class counts the jobs that will free its frames");
            self.audit_waiting(class);
        }
        for (id, page) in self.index.iter() {
            let counted = relocating.remove(&id).unwrap_or(0);
            assert_eq!(counted, page.relocations(), "a page counts its relocations");
        }
        assert!(relocating.is_empty(), "a page that is being moved is known");
    }

    /// Checks that a job's page knows of it; names the page if nothing else may use its frame.
    fn audit_job(&self, job: &Job, id: JobId) -> Option<PageId> {
        match job {
            Job::CopyIn(Filling { page, .. }) => {
                assert_eq!(self.index[*page].dram, Dram::Filling, "filling");
                Some(*page)
            }
            Job::CopyOut(Delivery { page, .. }) => {
                assert_eq!(self.index[*page].dram, Dram::Resident, "copied");
                None
            }
            Job::Append { page, device, refused } => {
                assert_eq!(self.index[*page].written_to(), Some(*device), "writing");
                assert_eq!(self.index[*page].dram, Dram::Resident, "written");
                assert!(!refused.contains(*device), "a device is asked once");
                Some(*page)
            }
            Job::Read { page, extent, .. } => {
                assert_eq!(self.index[*page].dram, Dram::Reading, "reading");
                assert_eq!(self.index.read_job_of(&self.index[*page]), id, "a page knows its read");
                assert!(self.devices.answers(extent.device), "a read without answer is a stray");
                Some(*page)
            }
            Job::StrayRead { .. } | Job::Relocate { .. } | Job::Prove { .. } => None,
        }
    }

    fn audit_waiting(&self, class: &Class) {
        let mut seen = BTreeSet::new();
        for claim in &class.waiting {
            match claim {
                Claim::Read(fetch) => {
                    assert!(self.fetches[fetch].waits_for_frame, "who waits knows");
                    assert!(seen.insert(*fetch), "a fetch waits once");
                }
                Claim::Commit(filling) => {
                    let page = &self.index[filling.page];
                    assert_eq!(page.dram, Dram::Offered, "a waiting commit's page is offered");
                    assert!(class.busy > 0, "a commit waits only for what will end by itself");
                }
            }
        }
    }

    fn audit_slots(&self) {
        let mut offered = 0;
        let mut open: BTreeMap<_, u32> = BTreeMap::new();
        for (id, session) in &self.sessions {
            for staging in session.stagings.values() {
                let free = staging.slots.iter().filter(|slot| **slot == Slot::Free).count();
                assert_eq!(free, staging.free.len(), "free slots are listed");
                for slot in &staging.free {
                    assert_eq!(staging.slots[slot.0 as usize], Slot::Free, "listed slots are free");
                }
                for slot in &staging.slots {
                    if let Slot::Assigned { page, offer } = slot {
                        offered += 1;
                        *open.entry((*id, *offer)).or_default() += 1;
                        let dram = self.index[*page].dram;
                        assert_eq!(dram, Dram::Offered, "an assigned slot's page is offered");
                    }
                }
                for fetch in &staging.waiting {
                    assert!(self.fetches[fetch].waits_for_slot, "who waits knows");
                }
                let starving = staging.waiting.is_empty() || staging.free.is_empty();
                assert!(starving, "nobody of session {id} waits while a slot is free");
            }
        }
        let known = self.offers.iter().map(|(id, offer)| (*id, offer.slots));
        assert!(known.eq(open), "an offer counts its slots");
        for (_, class) in self.frames.classes() {
            let commits = class.waiting.iter().filter(|claim| matches!(claim, Claim::Commit(_)));
            offered += commits.count();
        }
        let leaving = self.letting.grips().filter(|grip| matches!(grip, Grip::Offered(_)));
        offered += leaving.count();
        let pages = self.index.iter().filter(|(_, page)| page.dram == Dram::Offered).count();
        assert_eq!(offered, pages, "every offered page has a slot");
    }

    fn audit_leases(&self) {
        let mut leases = 0;
        for session in self.sessions.values() {
            leases += session.leases.len();
            let pages = |id| self.fetches[id].pages.len();
            let leased: usize = session.leases.values().map(pages).sum();
            assert_eq!(leased, session.leased_pages as usize, "leased pages are counted");
            let told = session.restored && !self.has_restored;
            let busy = session.open || told || !session.leases.is_empty() || session.withheld > 0;
            assert!(busy, "a finished session is forgotten");
            assert!(session.open || session.stagings.is_empty(), "a closed session has no slots");
        }
        let withheld: u64 = self.sessions.values().map(|session| session.withheld).sum();
        let readers = self.withheld.values().map(Withheld::readers).sum::<usize>();
        assert_eq!(withheld, readers as u64, "frames withheld for sessions are counted");
        let of = |fetch: &&Fetch| matches!(fetch.reader, Reader::Prefetch);
        let prefetches = self.fetches.values().filter(of).count();
        assert_eq!(self.fetches.len() - leases, prefetches, "a fetch is leased or a prefetch");
        for fetch in self.fetches.values() {
            audit_fetch(fetch);
            let coming = fetch.delivered.max(fetch.copied)..fetch.issued;
            for page in &fetch.pages[coming.start as usize..coming.end as usize] {
                let comes = matches!(self.index[*page].dram, Dram::Resident | Dram::Reading);
                assert!(comes, "a fetch waits only for pages that are on their way");
            }
        }
        let limit = self.config.limits.max_sessions as usize;
        assert!(self.sessions.len() <= limit, "sessions are bounded");
    }

    fn audit_timers(&self) {
        let active = self.fetches.iter().filter(|(_, fetch)| fetch.active && !fetch.late);
        let fetches = active.map(|(id, fetch)| (fetch.deadline, Timer::Fetch(*id)));
        let race = |(id, fetch): (&FetchId, &Fetch)| {
            let due = fetch.race.as_ref().and_then(|race| race.due)?;
            Some((due, Timer::Race(*id)))
        };
        let races = self.fetches.iter().filter_map(race);
        let holds = self.holds.iter().map(|(id, hold)| (hold.expires, Timer::Hold(*id)));
        let tokens = self.tokens.iter().map(|(id, given)| (given.expires, Timer::Token(id)));
        let offers = self.offers.iter().map(|(id, offer)| (offer.due, Timer::Offer(*id)));
        let expected = fetches.chain(races).chain(holds).chain(tokens).chain(offers);
        let expected: BTreeSet<_> = expected.chain(self.expected.timers()).collect();
        assert_eq!(expected, self.timers, "exactly what ends by itself has a timer");
    }
}

fn audit_fetch(fetch: &Fetch) {
    let Fetch { released, delivered, copied, issued, limit, .. } = *fetch;
    let ordered = released <= delivered && delivered <= issued && issued <= limit;
    assert!(ordered && limit as usize <= fetch.pages.len(), "a fetch advances in order");
    assert_eq!(fetch.reads.len() as u32, issued - delivered, "each issued page is noted");
    if fetch.is_copy() {
        assert!(delivered <= copied && copied <= issued, "a page is copied before delivery");
        assert_eq!(fetch.slots.len() as u32, copied - released, "each copied page has a slot");
    }
    if !fetch.active {
        assert_eq!(delivered, limit, "a fetch that has ended wants nothing");
        assert!(released < delivered, "a lease on nothing is forgotten");
        assert!(matches!(fetch.reader, Reader::Lease { .. }), "a prefetch leaves no lease");
        assert!(!fetch.waits_for_frame && !fetch.waits_for_slot, "who has ended does not wait");
    }
}
