use crate::cost::LoadPolicy;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use undercroft_wire::{DomainId, FRAME_ALIGN, MAX_KEYS, PurgeId};

/// The most SSDs one core knows: sets of devices are the bits of one word.
pub(crate) const MAX_DEVICES: usize = 64;

/// In which order pages leave DRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Policy {
    /// Least recently used, tail first: inside one request the deepest page is the oldest, so a
    /// page never leaves before its children.
    Lru,
    /// As if a page had been used earlier the deeper it lies in its prefix, and later if it was
    /// used again since it was stored. Where more conversations are active than DRAM has room for,
    /// some of them stay whole, and least recently used keeps none of them.
    #[default]
    Depth,
    /// By what is learnt from the domain's own traffic: when pages of a class (used for the first
    /// time or again; how far from the end of their request) are used again, and for how long it
    /// is worth keeping each. A new page displaces only what was kept for that long.
    Density,
}

/// What of the pages that leave DRAM is written to SSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Admission {
    /// Every page, as soon as it is stored.
    Through,
    /// Every page, when it leaves DRAM.
    Demote,
    /// When they leave DRAM, pages that were used again, and what leads to them; others only
    /// while at least one in so many of their like comes back as long as SSDs would keep it.
    Auto(u32),
}

impl Default for Admission {
    fn default() -> Self {
        Self::Auto(10)
    }
}

/// The text is no admission.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is not an admission: allowed is {}", Admission::ALLOWED)]
pub struct UnknownAdmission {
    found: String,
}

impl Admission {
    /// What is allowed, for people.
    pub const ALLOWED: &str = "\"through\", \"demote\", or \"auto:N\" with N of 1..=1000";
}

impl FromStr for Admission {
    type Err = UnknownAdmission;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let price = || text.strip_prefix("auto:")?.parse().ok().filter(|n| (1..=1000).contains(n));
        match text {
            "through" => Ok(Self::Through),
            "demote" => Ok(Self::Demote),
            _ => price().map(Self::Auto).ok_or_else(|| UnknownAdmission { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Through => to.write_str("through"),
            Self::Demote => to.write_str("demote"),
            Self::Auto(price) => write!(to, "auto:{price}"),
        }
    }
}

/// How much may be written to each SSD, so that it lasts and has time for reads. No stretch of a
/// minute, or of a day, takes more; what an earlier core wrote is taken to have been as much as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WriteBudget {
    /// Bytes per second, averaged over a minute; `None` for no bound.
    pub bytes_per_s: Option<u64>,
    /// Bytes in a day; `None` for no bound.
    pub bytes_per_day: Option<u64>,
    /// What a record takes beside its frame, bytes.
    pub bytes_per_record: u64,
}

impl WriteBudget {
    /// No bound.
    pub const NONE: Self = Self { bytes_per_s: None, bytes_per_day: None, bytes_per_record: 0 };

    /// Whether there is any bound.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.bytes_per_s.is_some() || self.bytes_per_day.is_some()
    }
}

/// The name is no policy's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is not a policy: allowed is {}", Policy::NAMES.join(" or "))]
pub struct UnknownPolicy {
    found: String,
}

impl Policy {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Lru, Self::Depth, Self::Density];
    /// What they are called, in the same order, in configurations and on command lines.
    pub const NAMES: [&str; 3] = ["lru", "depth", "density"];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|policy| policy.name() == text);
        found.ok_or_else(|| UnknownPolicy { found: text.to_owned() })
    }
}

/// One SSD as the core sees it. Until the last [`crate::Event::Recovered`] of it has come, nothing
/// is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Room for records, bytes: each page counts with its frame's size.
    pub capacity_bytes: u64,
    /// Reclaim starts when no more than this many segments are free.
    pub low_water_segments: u32,
    /// Read speed assumed until it was measured, bytes per second.
    pub read_bytes_per_s: u64,
    /// Delay of one read assumed until it was measured, microseconds.
    pub read_latency_us: u64,
}

/// The bounds of every table. A limit reached is a refusal or a declined outcome, never growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages known in any tier, the missing ancestors of known pages included.
    pub max_pages: u32,
    /// Spaces known.
    pub max_spaces: u32,
    /// Sessions, those included whose socket is closed and whose leases are still held.
    pub max_sessions: u32,
    /// Parts of the arena, over all domains.
    pub max_parts: u32,
    /// Leases of one session.
    pub max_leases_per_session: u32,
    /// Pages in all leases of one session.
    pub max_leased_pages_per_session: u32,
    /// How long an offered slot may stay uncommitted, milliseconds. Then its page may be stored by
    /// others; the slot stays its session's until that says what became of it.
    pub max_offer_ms: u32,
    /// The longest a hold may last, milliseconds. Longer wishes are cut to it.
    pub max_hold_ms: u32,
    /// Proofs of records under way on one device.
    pub max_proofs_per_device: u32,
    /// Bytes of reads, and of writes, that one device is given at once where there are several
    /// domains: what goes beyond waits, and domains take turns.
    pub max_lane_bytes: u64,
    /// Bytes that a device may have to read before prefetches wait, frames counted whole.
    pub max_ahead_bytes: u64,
    /// Turns of conversations that are expected in one domain.
    pub max_expected: u32,
    /// Relocations under way on one device: they are many at a time, and reads wait behind them.
    pub max_relocations_per_device: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pages: 1 << 20,
            max_spaces: 1024,
            max_sessions: 1024,
            max_parts: 4096,
            max_leases_per_session: 4096,
            max_leased_pages_per_session: 4 * MAX_KEYS as u32,
            max_offer_ms: 60_000,
            max_hold_ms: 60_000,
            max_proofs_per_device: 4,
            max_lane_bytes: 32 << 20,
            max_ahead_bytes: 8 << 20,
            max_expected: 4096,
            max_relocations_per_device: 8,
        }
    }
}

/// The bounds of what one domain may have, so that it cannot take anything from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DomainLimits {
    /// Sessions, those included whose socket is closed and whose leases are still held.
    pub max_sessions: u32,
    /// Pages in the leases of all its sessions.
    pub max_leased_pages: u32,
    /// Holds of all its sessions.
    pub max_holds: u32,
    /// Bytes of frames that leases of one session may pin: a fetch that wants more goes on as pages
    /// are released.
    pub max_session_bytes: u64,
    /// Pages in all its holds; a page held in several spaces counts once in each.
    pub max_held_pages: u32,
    /// Prefetches under way for all its sessions.
    pub max_prefetches: u32,
    /// Tokens that wait to be taken.
    pub max_tokens: u32,
    /// Bytes of its pages on SSDs, frames counted whole: beyond them its own oldest are forgotten.
    pub ssd_bytes: u64,
    /// While its pages on SSDs have no more bytes than this, reclaim moves them and drops none.
    pub ssd_floor_bytes: u64,
    /// Pages being read for it from SSD at once, over all devices.
    pub max_reads: u32,
    /// Its share of what SSDs do where they cannot do all at once, against those of others.
    pub weight: u32,
    /// Pages known of it, the missing ancestors of known pages included.
    pub max_pages: u32,
    /// Spaces known of it.
    pub max_spaces: u32,
}

impl Default for DomainLimits {
    fn default() -> Self {
        Self {
            max_sessions: 1024,
            max_leased_pages: 64 * MAX_KEYS as u32,
            max_holds: 4096,
            max_session_bytes: u64::MAX,
            max_held_pages: 16 * MAX_KEYS as u32,
            max_prefetches: 64,
            max_tokens: 4096,
            ssd_bytes: u64::MAX,
            ssd_floor_bytes: 0,
            max_reads: u32::MAX,
            weight: 1,
            max_pages: u32::MAX,
            max_spaces: u32::MAX,
        }
    }
}

/// A tenant. Domains share SSDs and the index; frames, spaces and all that is limited here are
/// each domain's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DomainConfig {
    /// Which.
    pub id: DomainId,
    /// What it may have.
    pub limits: DomainLimits,
    /// Pages that were stored longer ago are served to nobody, seconds; 0: they are as long as there
    /// is room.
    pub max_age_s: u32,
}

/// Everything the core must be told before its first step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The domains there are; everything of any other is ignored.
    pub domains: Vec<DomainConfig>,
    /// Parts are cut on demand into slabs of this many bytes, each for frames of one size.
    pub slab_bytes: u64,
    /// The SSDs, in the order of their device numbers: none, no SSD tier.
    pub devices: Vec<DeviceConfig>,
    /// How many of the coldest pages of a nearly full tier are kept written to SSD ahead of need.
    /// Never more than an eighth of the tier.
    pub demote_ahead: u32,
    /// Pages a fetch may have in flight from SSD.
    pub fetch_window: u32,
    /// Pages that one step looks at on behalf of whoever asked for more. The rest is done in the steps
    /// that follow.
    pub step_pages: u32,
    /// Whether to collect what must be remembered over a restart
    /// ([`crate::Core::drain_notes`]).
    pub notes: bool,
    /// Whether to collect which first pages come and go ([`crate::Core::drain_firsts`]).
    pub firsts: bool,
    /// How many of the newest lookups are remembered with what they came to
    /// ([`crate::Core::explanations`]); 0: none, and nothing of why pages left.
    pub explained: u32,
    /// Stamps given out are newer than this: than all of earlier daemons whose pages are restored.
    pub first_stamp: u64,
    /// Seconds since 1970 at the time 0.
    pub unix_s: u32,
    /// The newest purge that was over before.
    pub purge: PurgeId,
    /// In which order pages leave DRAM.
    pub policy: Policy,
    /// What of them is written to SSD.
    pub admission: Admission,
    /// How much of it may be.
    pub write_budget: WriteBudget,
    /// What is made of what loading costs.
    pub load: LoadPolicy,
    /// Bounds of all tables.
    pub limits: Limits,
    /// Decides how keys spread over the index, so that nobody outside can choose collisions, and
    /// which tokens are drawn, so that nobody can guess one. A secret, and new at each start.
    pub seed: u64,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is out of range.
    #[error("{field} is {found}, allowed {allowed}")]
    Range {
        /// Which value.
        field: &'static str,
        /// What it is.
        found: u64,
        /// The allowed range, for people.
        allowed: &'static str,
    },
}

impl Default for Config {
    /// One domain, the default one, and no SSD; least recently used leaves first, all that does is
    /// written, and what is there is loaded: what needs no traffic to be known.
    fn default() -> Self {
        Self {
            domains: vec![DomainConfig::default()],
            slab_bytes: 64 << 20,
            devices: Vec::new(),
            demote_ahead: 64,
            fetch_window: 32,
            step_pages: 1024,
            notes: false,
            firsts: false,
            explained: 0,
            first_stamp: 0,
            unix_s: 0,
            purge: PurgeId(0),
            policy: Policy::Lru,
            admission: Admission::Demote,
            write_budget: WriteBudget::default(),
            load: LoadPolicy::Off,
            limits: Limits::default(),
            seed: 0,
        }
    }
}

fn range(
    ok: bool,
    field: &'static str,
    found: u64,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError::Range { field, found, allowed }) }
}

impl DomainLimits {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        range(self.max_reads > 0, "max_reads", 0, "1 or more")?;
        let floor = self.ssd_floor_bytes;
        range(floor <= self.ssd_bytes, "ssd_floor_bytes", floor, "at most ssd_bytes")?;
        let weight = self.weight;
        range((1..=100).contains(&weight), "weight", u64::from(weight), "1..=100")
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let frame = u64::from(FRAME_ALIGN);
        let domains = self.domains.len() as u64;
        range((1..1 << 16).contains(&domains), "domains", domains, "1..2^16")?;
        let ids: BTreeSet<DomainId> = self.domains.iter().map(|domain| domain.id).collect();
        let twice = domains - ids.len() as u64;
        range(twice == 0, "domains configured twice", twice, "0")?;
        self.domains.iter().try_for_each(|domain| domain.limits.validate())?;
        let slab = self.slab_bytes;
        range(slab >= frame, "slab_bytes", slab, "4096 or more")?;
        let stamp = self.first_stamp;
        range(stamp < 1 << 63, "first_stamp", stamp, "less than 2^63")?;
        let devices = self.devices.len();
        range(devices <= MAX_DEVICES, "devices", devices as u64, "64 or fewer")?;
        let window = self.fetch_window;
        range(window > 0, "fetch_window", 0, "1 or more")?;
        range(self.step_pages > 0, "step_pages", 0, "1 or more")?;
        if let Admission::Auto(price) = self.admission {
            range((1..=1000).contains(&price), "admission", u64::from(price), "auto:1..=1000")?;
        }
        let budget = &self.write_budget;
        range(budget.bytes_per_s != Some(0), "write_budget.bytes_per_s", 0, "1 or more")?;
        range(budget.bytes_per_day != Some(0), "write_budget.bytes_per_day", 0, "1 or more")?;
        let limits = &self.limits;
        range(limits.max_proofs_per_device > 0, "max_proofs_per_device", 0, "1 or more")?;
        range(limits.max_lane_bytes > 0, "max_lane_bytes", 0, "1 or more")?;
        range(limits.max_ahead_bytes > 0, "max_ahead_bytes", 0, "1 or more")?;
        range(limits.max_relocations_per_device > 0, "max_relocations_per_device", 0, "1 or more")?;
        for (field, found) in [
            ("max_pages", limits.max_pages),
            ("max_spaces", limits.max_spaces),
            ("max_sessions", limits.max_sessions),
            ("max_parts", limits.max_parts),
        ] {
            // Ids are 32 bits wide and the highest stands for "none".
            let ok = (1..1 << 31).contains(&found);
            range(ok, field, u64::from(found), "1..2^31")?;
        }
        Ok(())
    }
}
