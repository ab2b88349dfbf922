//! What the core is told of its bounds, from the configuration.

use crate::config::{Config, DomainConfig, MAX_SPACES, SsdConfig};
use crate::purge_book;
use crate::succession::leased_pages_per_domain;
use undercroft_core::{DeviceConfig, DomainLimits, Limits, Policy};
use undercroft_wire::{PurgeId, Stamp};

/// Parts of all arenas together.
pub(crate) const MAX_PARTS: u32 = 4096;
/// Sessions that only hold leases are counted, too: one each for as many as may be connected.
const SESSIONS_PER_CONNECTION: u32 = 2;
/// Pages that one step of the control thread looks at for one request: some 200 microseconds.
const STEP_PAGES: u32 = 1024;

pub(crate) fn limits(config: &Config) -> Limits {
    let ssd_bytes = config.ssd.as_ref().map_or(0, SsdConfig::bytes);
    let total = config.arena_bytes().saturating_add(ssd_bytes);
    Limits {
        // Enough for pages of 16 KiB; smaller pages meet the bound before they fill the tiers.
        max_pages: (total / (16 << 10)).clamp(1 << 16, 1 << 26) as u32,
        max_sessions: config.max_sessions * SESSIONS_PER_CONNECTION,
        max_hold_ms: config.max_hold_ms,
        max_offer_ms: config.max_offer_ms,
        max_spaces: MAX_SPACES,
        max_parts: MAX_PARTS,
        ..Limits::default()
    }
}

/// As many of the pages that can be known as the domain has of all DRAM.
fn share_of_pages(config: &Config, limits: &Limits, domain: &DomainConfig) -> u32 {
    let pages = u128::from(limits.max_pages) * u128::from(domain.dram_bytes);
    (pages / u128::from(config.arena_bytes().max(1))) as u32
}

/// The core's whole configuration. `seed` is drawn at random, and no stamp given out before was
/// newer than `first_stamp`.
pub(crate) fn core_config(
    config: &Config,
    limits: Limits,
    (seed, first_stamp): (u64, Stamp),
    purge: PurgeId,
) -> undercroft_core::Config {
    let directories = config.ssd.iter().flat_map(|ssd| &ssd.directories);
    let devices = directories.map(|directory| DeviceConfig {
        capacity_bytes: directory.bytes,
        // The one being filled, the one kept for relocations, and one to go on with meanwhile.
        low_water_segments: 3,
        read_bytes_per_s: 1 << 30,
        read_latency_us: 200,
    });
    let max_leased_pages = leased_pages_per_domain(config);
    let domain = |domain: &DomainConfig| {
        let max_sessions = domain.max_sessions.saturating_mul(SESSIONS_PER_CONNECTION);
        let shares = domain.shares;
        let limits = DomainLimits {
            max_sessions,
            max_leased_pages,
            ssd_bytes: shares.ssd_bytes.unwrap_or(u64::MAX),
            ssd_floor_bytes: shares.ssd_floor_bytes,
            max_reads: shares.max_reads,
            weight: shares.weight,
            max_pages: shares.max_pages.unwrap_or_else(|| share_of_pages(config, &limits, domain)),
            max_spaces: shares.max_spaces,
            ..DomainLimits::default()
        };
        undercroft_core::DomainConfig { id: domain.id, limits, max_age_s: domain.max_age_s }
    };
    undercroft_core::Config {
        domains: config.domains.iter().map(domain).collect(),
        slab_bytes: config.slab_bytes,
        devices: devices.collect(),
        demote_ahead: config.demote_ahead,
        fetch_window: config.fetch_window,
        step_pages: STEP_PAGES,
        notes: true,
        first_stamp: first_stamp.0,
        unix_s: purge_book::unix_s(),
        purge,
        policy: Policy::Lru,
        limits,
        seed,
    }
}
