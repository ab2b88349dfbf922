use undercroft_wire::{DomainId, SpaceDigest, SpaceId};

/// What happened since start. Counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Lookups answered.
    pub lookups: u64,
    /// Keys asked for in lookups.
    pub lookup_keys: u64,
    /// Leading pages found by lookups.
    pub prefix_pages: u64,
    /// Of these, pages that were in DRAM in every space asked about.
    pub prefix_dram_pages: u64,
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
    /// Pages that left DRAM and were in no other tier although there is an SSD.
    pub lost_pages: u64,
    /// Prefetches begun.
    pub prefetches: u64,
    /// Hints received.
    pub hints: u64,
    /// Requests refused because a limit was reached.
    pub refused_busy: u64,
    /// Pages appended to SSD on demotion.
    pub appended_pages: u64,
    /// Bytes of these, frames counted whole.
    pub appended_bytes: u64,
    /// Appends that found no room.
    pub append_no_space: u64,
    /// Appends that failed.
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
    /// Relocations that failed; their pages are lost.
    pub relocate_failures: u64,
    /// Pages dropped from SSD by reclaim.
    pub ssd_dropped_pages: u64,
    /// Pages in DRAM that lost their SSD copy to reclaim.
    pub ssd_forgotten_copies: u64,
    /// Segments freed.
    pub freed_segments: u64,
    /// Records recovered at start.
    pub recovered_records: u64,
    /// Records found at start that were not taken over: no room, or at odds with another record.
    pub recovery_ignored: u64,
    /// Completions that name no job under way.
    pub unknown_jobs: u64,
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
}

/// What is known of a session's leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionLeases {
    /// Leases.
    pub leases: u32,
    /// Pages delivered under them and not released.
    pub pages: u64,
    /// Whether the socket is closed and the leases are still held.
    pub lingering: bool,
}
