//! What the core is told of its bounds, from the configuration.

use crate::config::{Config, DomainConfig, MAX_PAGES, MAX_SPACES, SsdConfig};
use crate::purge_book;
use crate::succession::leased_pages_per_domain;
use undercroft_core::{DeviceConfig, DomainLimits, Limits, WriteBudget};
use undercroft_wire::{PurgeId, Stamp};

/// What a record takes on an SSD beside its frame, at most: a table block of its own.
const BYTES_BESIDE_RECORD: u64 = 4096;
/// Parts of all arenas together.
pub(crate) const MAX_PARTS: u32 = 4096;
/// Sessions that only hold leases are counted, too: one each for as many as may be connected.
const SESSIONS_PER_CONNECTION: u32 = 2;
/// Pages that one step of the control thread looks at for one request: some 200 microseconds.
const STEP_PAGES: u32 = 1024;

/// Of so many lookups it is remembered what they came to: 700 KiB.
const EXPLAINED_LOOKUPS: u32 = 4096;

/// Pages that can be known where no domain says how many of its own may be: enough for pages of
/// 16 KiB; smaller ones meet the bound before they fill the tiers.
fn pages_of_tiers(config: &Config) -> u32 {
    let ssd_bytes = config.ssd.as_ref().map_or(0, SsdConfig::bytes);
    let total = config.arena_bytes().saturating_add(ssd_bytes);
    (total / (16 << 10)).clamp(1 << 16, u64::from(MAX_PAGES)) as u32
}

/// Pages that can be known of a domain: as many as it says, or its share by DRAM.
fn pages_of(config: &Config, domain: &DomainConfig) -> u32 {
    let share = || {
        let pages = u128::from(pages_of_tiers(config)) * u128::from(domain.dram_bytes);
        (pages / u128::from(config.arena_bytes().max(1))) as u32
    };
    domain.shares.max_pages.unwrap_or_else(share)
}

pub(crate) fn limits(config: &Config) -> Limits {
    let pages = config.domains.iter().map(|domain| u64::from(pages_of(config, domain))).sum();
    Limits {
        // What one domain may know is not to be what another was promised.
        max_pages: u64::clamp(pages, pages_of_tiers(config).into(), MAX_PAGES.into()) as u32,
        max_sessions: config.max_sessions * SESSIONS_PER_CONNECTION,
        max_hold_ms: config.max_hold_ms,
        max_offer_ms: config.max_offer_ms,
        max_spaces: MAX_SPACES,
        max_parts: MAX_PARTS,
        ..Limits::default()
    }
}

/// What the core is told that a domain may have.
pub(crate) fn limits_of(config: &Config, domain: &DomainConfig) -> DomainLimits {
    let shares = domain.shares;
    DomainLimits {
        max_sessions: shares.max_sessions.saturating_mul(SESSIONS_PER_CONNECTION),
        max_leased_pages: leased_pages_per_domain(config),
        max_session_bytes: shares.session_leases_bytes.unwrap_or(u64::MAX),
        ssd_bytes: shares.ssd_bytes.unwrap_or(u64::MAX),
        ssd_floor_bytes: shares.ssd_floor_bytes,
        max_reads: shares.max_reads,
        weight: shares.weight,
        max_pages: pages_of(config, domain),
        max_spaces: shares.max_spaces,
        ..DomainLimits::default()
    }
}

fn write_budget(config: &Config) -> WriteBudget {
    let ssd = config.ssd.as_ref();
    WriteBudget {
        bytes_per_s: ssd.and_then(|ssd| ssd.write_bytes_per_s),
        bytes_per_day: ssd.and_then(|ssd| ssd.write_bytes_per_day),
        bytes_per_record: BYTES_BESIDE_RECORD,
    }
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
    let domain = |domain: &DomainConfig| undercroft_core::DomainConfig {
        id: domain.id,
        limits: limits_of(config, domain),
        max_age_s: domain.max_age_s,
    };
    undercroft_core::Config {
        domains: config.domains.iter().map(domain).collect(),
        slab_bytes: config.slab_bytes,
        devices: devices.collect(),
        demote_ahead: config.demote_ahead,
        fetch_window: config.fetch_window,
        step_pages: STEP_PAGES,
        notes: true,
        firsts: true,
        explained: EXPLAINED_LOOKUPS,
        first_stamp: first_stamp.0,
        unix_s: purge_book::unix_s(),
        purge,
        policy: config.policy,
        admission: config.admission,
        write_budget: write_budget(config),
        load: config.load,
        limits,
        seed,
    }
}
