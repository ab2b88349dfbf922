use crate::density::Lengths;
use crate::heat::LAST_STAMP;
use crate::quotas::OnSsds;
use crate::spaces::ClassId;
use crate::stats::{DomainReport, TierFill};
use crate::turnover::Turnover;
use crate::{Core, DomainConfig, DomainLimits};
use std::collections::BTreeMap;
use undercroft_wire::{DomainId, PartId, SessionId, SpaceId};

/// A domain's place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DomainAt(pub(crate) u32);

/// One tenant, and what it has of everything that is bounded for it.
/// What a domain may have beyond its limits, because it had it under others.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Had {
    pub(crate) pages: u32,
    pub(crate) reads: u32,
    pub(crate) sessions: u32,
    pub(crate) leased_pages: u32,
    pub(crate) holds: u32,
    pub(crate) held_pages: u32,
    pub(crate) tokens: u32,
    pub(crate) prefetches: u32,
}

#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) config: DomainConfig,
    /// What it had when its limits were last lowered: it may keep that.
    pub(crate) had: Had,
    /// The newest stamp that its requests were given.
    pub(crate) last_stamp: u64,
    /// Bytes of its arena when the newest of them was given out.
    pub(crate) arena_bytes: u64,
    /// Holds that it ever had.
    pub(crate) last_hold: u64,
    /// Pages known.
    pub(crate) pages: u32,
    /// Sessions, those included that only hold leases.
    pub(crate) sessions: u32,
    /// Sessions and leased pages that an earlier daemon had let it have.
    pub(crate) restored_sessions: u32,
    pub(crate) restored_leased_pages: u32,
    /// Pages named by the leases of its sessions.
    pub(crate) leased_pages: u32,
    pub(crate) holds: u32,
    /// Pages in its holds.
    pub(crate) held_pages: u32,
    /// What of it lies on SSDs.
    pub(crate) ssd: OnSsds,
    /// Reads of pages for it that devices were given and that are waited for.
    pub(crate) reads: u32,
    /// Prefetches under way.
    pub(crate) prefetches: u32,
    /// Pages that left its DRAM.
    pub(crate) evicted_pages: u64,
    /// Tokens that wait to be taken.
    pub(crate) tokens: u32,
    /// The slab that one of its classes gives up for another.
    pub(crate) draining: Option<u32>,
    /// How long its newest requests are.
    pub(crate) lengths: Lengths,
    /// Turns of its conversations that are expected, and the frames of what waits for them in DRAM.
    pub(crate) expected: u32,
    pub(crate) expected_bytes: u64,
    /// How fast its DRAM fills.
    pub(crate) turnover: Turnover,
}

impl Domain {
    pub(crate) fn may_prefetch(&self) -> bool {
        self.prefetches < self.config.limits.max_prefetches
    }

    /// Whether a hold of so many pages finds room.
    pub(crate) fn may_hold(&self, pages: u64) -> bool {
        let limits = self.config.limits;
        self.holds < limits.max_holds && pages <= u64::from(limits.max_held_pages - self.held_pages)
    }
}

/// All domains; which there are is fixed at start.
#[derive(Debug)]
pub(crate) struct Domains {
    list: Vec<Domain>,
    by_id: BTreeMap<DomainId, DomainAt>,
}

impl Domains {
    pub(crate) fn new(configs: &[DomainConfig], first_stamp: u64) -> Self {
        let domain = |config: &DomainConfig| Domain {
            config: *config,
            had: Had::default(),
            last_stamp: first_stamp.min(LAST_STAMP),
            arena_bytes: 0,
            last_hold: 0,
            pages: 0,
            sessions: 0,
            restored_sessions: 0,
            restored_leased_pages: 0,
            leased_pages: 0,
            holds: 0,
            held_pages: 0,
            ssd: OnSsds::default(),
            reads: 0,
            prefetches: 0,
            evicted_pages: 0,
            tokens: 0,
            draining: None,
            lengths: Lengths::default(),
            expected: 0,
            expected_bytes: 0,
            turnover: Turnover::default(),
        };
        let numbered = configs.iter().enumerate();
        Self {
            list: configs.iter().map(domain).collect(),
            by_id: numbered.map(|(at, config)| (config.id, DomainAt(at as u32))).collect(),
        }
    }

    pub(crate) fn find(&self, id: DomainId) -> Option<DomainAt> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn get(&self, at: DomainAt) -> &Domain {
        &self.list[at.0 as usize]
    }

    pub(crate) fn get_mut(&mut self, at: DomainAt) -> &mut Domain {
        &mut self.list[at.0 as usize]
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = DomainAt> + use<> {
        (0..self.list.len() as u32).map(DomainAt)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DomainAt, &Domain)> {
        self.list.iter().enumerate().map(|(at, domain)| (DomainAt(at as u32), domain))
    }
}

impl Core {
    /// The domain of a session that is known.
    pub(crate) fn domain_of(&self, session: SessionId) -> Option<DomainAt> {
        self.sessions.get(&session).map(|session| session.domain)
    }

    pub(crate) fn domain_of_space(&self, space: SpaceId) -> DomainAt {
        self.frames.class(self.spaces.get(space).class).domain
    }

    /// Has every class of the domain looked at that somebody waits for a frame of: room has
    /// turned up that any of them may take.
    pub(crate) fn wake_domain(&mut self, domain: DomainAt) {
        let classes: Vec<ClassId> = self.frames.classes_of(domain).collect();
        for class in classes {
            if !self.frames.class(class).waiting.is_empty() {
                self.wake(class);
            }
        }
    }

    /// A domain may have more or less from now on.
    pub(crate) fn limit_domain(&mut self, id: DomainId, limits: DomainLimits) {
        let Some(at) = self.domains.find(id).filter(|_| limits.validate().is_ok()) else {
            return;
        };
        let domain = self.domains.get_mut(at);
        domain.config.limits = limits;
        domain.had = Had {
            pages: domain.pages,
            reads: domain.reads,
            sessions: domain.sessions,
            leased_pages: domain.leased_pages,
            holds: domain.holds,
            held_pages: domain.held_pages,
            tokens: domain.tokens,
            prefetches: domain.prefetches,
        };
        self.look_again_at(at);
        self.wake_leases_of(at);
    }

    /// What is known of each domain, in the order of the configuration.
    pub fn domains(&self) -> impl Iterator<Item = DomainReport> + '_ {
        self.domains.iter().map(|(at, domain)| DomainReport {
            domain: domain.config.id,
            dram: self.domain_dram(at),
            known_pages: domain.pages,
            spaces: self.spaces.count_of(domain.config.id) as u32,
            sessions: domain.sessions,
            leased_pages: domain.leased_pages,
            holds: domain.holds,
            held_pages: domain.held_pages,
            ssd: TierFill {
                capacity_bytes: domain.config.limits.ssd_bytes,
                used_bytes: domain.ssd.bytes,
                pages: domain.ssd.pages,
            },
            limits: domain.config.limits,
            forgotten_records: domain.ssd.forgotten,
            reads: domain.reads,
            prefetches: domain.prefetches,
            evicted_pages: domain.evicted_pages,
        })
    }

    /// How many pages of a class would fill its domain's DRAM.
    pub(crate) fn capacity_of(&self, class: ClassId) -> u64 {
        let domain = self.domains.get(self.frames.class(class).domain);
        domain.arena_bytes / self.frame_bytes(class)
    }

    /// How many pages of the class all SSDs have room for, or the domain has of them.
    pub(crate) fn ssd_room(&self, class: ClassId) -> u64 {
        let domain = self.domains.get(self.frames.class(class).domain);
        let devices = self.devices.iter().filter(|device| device.takes_appends());
        let bytes: u64 = devices.map(|device| device.config.capacity_bytes).sum();
        bytes.min(domain.config.limits.ssd_bytes) / self.frame_bytes(class)
    }

    fn domain_dram(&self, at: DomainAt) -> TierFill {
        let mut fill =
            TierFill { capacity_bytes: self.frames.bytes_of(at), used_bytes: 0, pages: 0 };
        for class in self.frames.classes_of(at).map(|class| self.frames.class(class)) {
            fill.used_bytes += class.used_bytes();
            fill.pages += u64::from(class.resident);
        }
        fill
    }

    /// How full DRAM is, over all domains; frames being filled count as used.
    #[must_use]
    pub fn dram(&self) -> TierFill {
        let fills = self.domains.iter().map(|(at, _)| self.domain_dram(at));
        fills.fold(TierFill::default(), |sum, fill| TierFill {
            capacity_bytes: sum.capacity_bytes + fill.capacity_bytes,
            used_bytes: sum.used_bytes + fill.used_bytes,
            pages: sum.pages + fill.pages,
        })
    }
}

impl Core {
    pub(crate) fn part_added(&mut self, part: PartId, domain: DomainId, bytes: u64) {
        if let Some(domain) = self.domains.find(domain)
            && self.frames.add_part(part, domain, bytes)
        {
            self.domains.get_mut(domain).arena_bytes = self.frames.bytes_of(domain);
            self.wake_domain(domain);
        }
    }

    /// Whether the part was taken in.
    #[must_use]
    pub fn has_part(&self, part: PartId) -> bool {
        self.frames.has_part(part)
    }

    /// Bytes of a part's frames that hold pages or are about to: 0 of one that is not known.
    #[must_use]
    pub fn part_used_bytes(&self, part: PartId) -> u64 {
        self.frames.used_bytes_in(part)
    }
}
