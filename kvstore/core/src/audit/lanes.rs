use crate::Core;
use crate::fetches::FetchId;
use crate::jobs::Job;
use crate::lanes::LaneAt;
use crate::page::Dram;
use std::collections::{BTreeMap, BTreeSet};
use undercroft_wire::JobId;

impl Core {
    pub(super) fn audit_lanes(&self) {
        let mut reads: BTreeMap<_, u32> = BTreeMap::new();
        for device in self.devices.ids() {
            for at in [LaneAt::Reads(device), LaneAt::Writes(device)] {
                let lane = self.lanes.get(at);
                let held: BTreeSet<JobId> = lane.held().map(|(_, held)| held.job).collect();
                let mut under_way = 0;
                for (id, job) in self.jobs.iter().filter(|(_, job)| job.device() == Some(device)) {
                    let (class, waited_for) = match (at, job) {
                        (LaneAt::Reads(_), Job::Read { page, .. }) => (self.class_of(*page), true),
                        (LaneAt::Reads(_), Job::StrayRead { class, .. }) => {
                            assert!(!held.contains(id), "what nobody waits for is withdrawn");
                            (*class, false)
                        }
                        (LaneAt::Writes(_), Job::Append { page, .. }) => {
                            (self.class_of(*page), false)
                        }
                        _ => continue,
                    };
                    if !held.contains(id) {
                        under_way += self.frame_bytes(class);
                        let domain = self.frames.class(class).domain;
                        *reads.entry(domain).or_default() += u32::from(waited_for);
                    }
                }
                assert_eq!(under_way, lane.under_way_bytes, "what a device was given is counted");
                assert!(held.iter().all(|id| self.jobs.contains_key(id)), "what waits is a job");
                let waits: BTreeSet<_> = lane.held().map(|(domain, _)| domain).collect();
                assert!(waits.iter().copied().eq(sorted(lane.turns())), "who waits has a turn");
                let full = under_way >= self.lane_limit();
                let may = waits.iter().any(|domain| self.may_hand_on(at, *domain));
                assert!(full || !may, "nobody waits without need");
                let takes = self.devices.get(device).takes_appends();
                let idle = matches!(at, LaneAt::Reads(_)) && self.devices.answers(device);
                assert!(held.is_empty() || takes || idle, "nothing waits for a device in trouble");
            }
        }
        for device in self.devices.ids() {
            let waits = |id: &FetchId| {
                self.fetches.get(id).is_some_and(|fetch| fetch.active && fetch.waits_for_lull)
            };
            let any = self.ahead.waiting_for(device).iter().any(waits);
            assert!(!any || !self.may_read_ahead(device), "a prefetch waits while it may read");
        }
        for page in self.ahead.brought() {
            let in_dram = self.index.get(page).is_some_and(|page| page.dram == Dram::Resident);
            assert!(in_dram, "what was brought to DRAM is there until it is used");
        }
        for (at, domain) in self.domains.iter() {
            let counted = reads.get(&at).copied().unwrap_or(0);
            assert_eq!(counted, domain.reads, "a domain's reads are counted");
            let most = domain.config.limits.max_reads.max(domain.had.reads);
            assert!(counted <= most, "a domain's reads are bounded");
        }
    }
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items.into_iter()
}
