use crate::{CostStats, DomainLimits, Health};
use undercroft_wire::{DeviceId, DomainId, MissCause, PageKey, SpaceDigest, SpaceId};

/// What happened since start. Counters only grow; what is a gauge says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Lookups answered, those included that the board answered.
    pub lookups: u64,
    /// Lookups of one key each that clients did not send, as the board told them that nothing begins
    /// so.
    pub board_lookups: u64,
    /// Keys asked for in lookups.
    pub lookup_keys: u64,
    /// Leading pages found by lookups.
    pub prefix_pages: u64,
    /// Of these, pages that were in DRAM in every space asked about.
    pub prefix_dram_pages: u64,
    /// Lookups that did not find all their keys, by why the first of these was not there: in the
    /// order of [`MissCause::ALL`]. None where [`crate::Config::explained`] is 0.
    pub misses: [u64; MissCause::ALL.len()],
    /// Holds that were asked for and could not be given.
    pub holds_declined: u64,
    /// Holds that ended because their time was over.
    pub holds_expired: u64,
    /// Fetches begun.
    pub fetches: u64,
    /// Pages delivered from DRAM.
    pub delivered_dram_pages: u64,
    /// Pages delivered after a read from SSD.
    pub delivered_ssd_pages: u64,
    /// Fetches that ended without delivering everything.
    pub incomplete_fetches: u64,
    /// Fetches and prefetches cut short because a device with pages of theirs stopped answering.
    pub cut_fetches: u64,
    /// How often a fetch stopped because its session's leases pin as much as they may.
    pub stopped_fetches: u64,
    /// Keys offered.
    pub offered: u64,
    /// Keys that were asked for.
    pub wanted: u64,
    /// Keys already held, at offer or commit.
    pub held: u64,
    /// Keys declined because no slot was free.
    pub declined_credit: u64,
    /// Keys declined because the page before them is in no tier.
    pub declined_parent: u64,
    /// Keys declined for want of room, at offer or commit.
    pub declined_full: u64,
    /// Slots given back unfilled, or dropped with their session.
    pub returned: u64,
    /// Slots that were neither committed nor given back in time.
    pub overdue_slots: u64,
    /// Committed slots that were not assigned, or whose page left with its parent.
    pub invalid_commits: u64,
    /// Pages stored.
    pub stored: u64,
    /// Pages whose copy into a frame failed.
    pub copy_failures: u64,
    /// Pages whose copy into a staging slot failed.
    pub copy_out_failures: u64,
    /// Pages that left DRAM, whether or not they are on SSD.
    pub evicted_pages: u64,
    /// Pages that left DRAM and were in no other tier that answers although there is an SSD.
    pub lost_pages: u64,
    /// Of these, pages that were not written: not worth it, or not to be paid for.
    pub refused_pages: u64,
    /// Of these, pages that the write budget had nothing left for.
    pub over_budget_pages: u64,
    /// Pages that were forgotten because somebody said so.
    pub purged_pages: u64,
    /// Pages forgotten because they were older than their domain keeps them.
    pub expired_pages: u64,
    /// Slabs that were emptied for pages of another size.
    pub drained_slabs: u64,
    /// Prefetches begun.
    pub prefetches: u64,
    /// What was read from SSD ahead of need because a client asked for it.
    pub asked: Prefetched,
    /// And because a hint said when it would be wanted.
    pub hinted: Prefetched,
    /// Hints received.
    pub hints: u64,
    /// Requests refused because a limit was reached.
    pub refused_busy: u64,
    /// Spaces refused to a client whose hash makes another key of the probe prefix.
    pub refused_probes: u64,
    /// Pages appended to SSD on demotion.
    pub appended_pages: u64,
    /// Bytes of these, frames counted whole.
    pub appended_bytes: u64,
    /// Appends that found no room on their device. Another device may have taken the page.
    pub append_no_space: u64,
    /// Appends that failed. Another device may have taken the page.
    pub append_failures: u64,
    /// Pages read from SSD.
    pub read_pages: u64,
    /// Bytes of these, frames counted whole.
    pub read_bytes: u64,
    /// Records that did not prove themselves.
    pub corrupt_records: u64,
    /// Reads that failed.
    pub read_failures: u64,
    /// Records re-appended by reclaim.
    pub relocated_pages: u64,
    /// Bytes of these, frames counted whole.
    pub relocated_bytes: u64,
    /// Relocations that failed. Their pages are lost, unless it was the device that failed.
    pub relocate_failures: u64,
    /// Pages dropped from SSD by reclaim.
    pub ssd_dropped_pages: u64,
    /// Pages in DRAM that lost their SSD copy, to reclaim or for a copy on a device that answers.
    pub ssd_forgotten_copies: u64,
    /// Segments freed.
    pub freed_segments: u64,
    /// Records recovered at start.
    pub recovered_records: u64,
    /// Records found at start that were not taken over: no room, or at odds with another record.
    pub recovery_ignored: u64,
    /// Records found at start that were purged, or are older than their domain keeps pages.
    pub recovery_gone: u64,
    /// Records found at start whose page was known from a record at least as good, or on its way
    /// to an SSD.
    pub recovery_duplicates: u64,
    /// Pages of an earlier daemon found in memory.
    pub restored_pages: u64,
    /// Pages that were leased then, and still are until released.
    pub restored_leases: u64,
    /// Things of an earlier daemon that were left out, as they are at odds with the rest.
    pub restore_ignored: u64,
    /// Gauge: records that count in no lookup because they have not proved themselves yet.
    pub unproved_records: u64,
    /// Records of unsealed segments that proved themselves.
    pub proved_records: u64,
    /// Records of unsealed segments that did not prove themselves, or could not be read.
    pub disproved_records: u64,
    /// Completions that name no job under way.
    pub unknown_jobs: u64,
    /// What the cost model has said, and how right it was.
    pub cost: CostStats,
}

/// What came of pages that were read from SSD before anybody fetched them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefetched {
    /// Pages read.
    pub pages: u64,
    /// Of these, pages that somebody used before they left DRAM.
    pub used_pages: u64,
    /// And pages that nobody did.
    pub wasted_pages: u64,
    /// Bytes of these, frames counted whole.
    pub wasted_bytes: u64,
}

/// Why pages are read before anybody fetches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Asked,
    Hinted,
}

impl Stats {
    /// What was read ahead of need, for whatever reason.
    #[must_use]
    pub fn prefetched(&self) -> Prefetched {
        [self.asked, self.hinted].iter().fold(Prefetched::default(), |sum, of| Prefetched {
            pages: sum.pages + of.pages,
            used_pages: sum.used_pages + of.used_pages,
            wasted_pages: sum.wasted_pages + of.wasted_pages,
            wasted_bytes: sum.wasted_bytes + of.wasted_bytes,
        })
    }

    pub(crate) fn prefetched_for(&mut self, source: Source) -> &mut Prefetched {
        match source {
            Source::Asked => &mut self.asked,
            Source::Hinted => &mut self.hinted,
        }
    }
}

/// How full a tier is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierFill {
    /// Capacity, bytes.
    pub capacity_bytes: u64,
    /// Bytes of the pages in it, frames counted whole.
    pub used_bytes: u64,
    /// Pages in it.
    pub pages: u64,
}

/// What is known of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DomainReport {
    /// Which.
    pub domain: DomainId,
    /// How full its parts of the arena are; frames being filled count as used.
    pub dram: TierFill,
    /// Pages known in any tier, missing ancestors of known pages included.
    pub known_pages: u32,
    /// Spaces known.
    pub spaces: u32,
    /// Sessions, those included that only hold leases.
    pub sessions: u32,
    /// Pages named by its leases.
    pub leased_pages: u32,
    /// Holds.
    pub holds: u32,
    /// Pages in its holds.
    pub held_pages: u32,
    /// What it may have.
    pub limits: DomainLimits,
    /// What of it lies on SSDs; the capacity is its quota.
    pub ssd: TierFill,
    /// Records that were forgotten because there were more than its quota lets it have.
    pub forgotten_records: u64,
    /// Pages being read for it.
    pub reads: u32,
    /// Prefetches under way.
    pub prefetches: u32,
    /// Pages that left its DRAM, whether or not they are on SSD.
    pub evicted_pages: u64,
}

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceState {
    /// Its records are still being found: what was found is read, nothing is written.
    Recovering,
    /// All its records are known.
    Ready,
    /// Gone for good.
    Lost,
}

/// What is known of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceReport {
    /// Which.
    pub device: DeviceId,
    /// How far it is.
    pub state: DeviceState,
    /// How it does.
    pub health: Health,
    /// How full it is; records that have not proved themselves are in it.
    pub fill: TierFill,
    /// Segments free, as the page log last said.
    pub free_segments: u32,
    /// Records in it that have not proved themselves yet.
    pub unproved_records: u64,
    /// Bytes written to it in the last day, or since start, as of the last step: frames counted
    /// whole, and what the write budget says that a record takes beside.
    pub written_in_a_day_bytes: u64,
    /// How fast it reads, bytes per second, as measured, or else as assumed.
    pub read_bytes_per_s: u64,
    /// What a read takes before its first byte, microseconds.
    pub read_latency_us: u64,
    /// What happened to it.
    pub stats: DeviceStats,
}

/// What happened to one device since start. Counters only grow. All bytes count frames whole.
///
/// Write amplification is `(appended_bytes + relocated_bytes) / appended_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceStats {
    /// Pages appended on demotion.
    pub appended_pages: u64,
    /// Bytes of these.
    pub appended_bytes: u64,
    /// Records re-appended by reclaim.
    pub relocated_pages: u64,
    /// Bytes of these.
    pub relocated_bytes: u64,
    /// Pages read.
    pub read_pages: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Pages dropped by reclaim.
    pub dropped_pages: u64,
    /// Segments freed.
    pub freed_segments: u64,
    /// Reads, appends, relocations and proofs that failed, and records that did not prove
    /// themselves.
    pub failures: u64,
}

/// What is known of a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Its number.
    pub id: SpaceId,
    /// Whose it is.
    pub domain: DomainId,
    /// Its identity.
    pub digest: SpaceDigest,
    /// Size of its pages, bytes.
    pub page_bytes: u32,
    /// Pages known in any tier or on their way.
    pub pages: u64,
    /// What its clients' hash makes of the probe prefix, if any has told.
    pub probe: Option<PageKey>,
}

/// What is known of a session's leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionLeases {
    /// Leases.
    pub leases: u32,
    /// Pages delivered under them and not released.
    pub pages: u64,
    /// Bytes of the frames of these pages.
    pub bytes: u64,
    /// Frames that an earlier daemon told it of and whose pages could not be taken over: they stay
    /// as they are while its process lives.
    pub withheld: u64,
    /// Whether the socket is closed and the leases are still held.
    pub lingering: bool,
}
