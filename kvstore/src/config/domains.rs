//! The domains of the configuration: who belongs to which, and what each may have.

use super::raw::{Quantity, RawDomain};
use super::shares::{self, Shares};
use super::{ConfigError, KIB, MAX_DRAM, choice, nodes, size};
use undercroft_wire::{DomainId, PartId};

/// The domain everybody belongs to where none is configured.
pub(crate) const DEFAULT_NAME: &str = "default";
const MAX_DOMAINS: usize = 64;
const MAX_NAME_BYTES: usize = 64;
/// A hundred years.
const MAX_AGE_S: u32 = 36_500 * 86_400;
const RULES: &str = "a list of 1..=256 different numbers";

/// One security boundary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainConfig {
    pub(crate) name: String,
    pub(crate) id: DomainId,
    pub(crate) rule: Rule,
    /// Bytes of its own arena.
    pub(crate) dram_bytes: u64,
    /// What it has of what domains share.
    pub(crate) shares: Shares,
    /// Whether pages are always delivered into staging.
    pub(crate) copy_mode: bool,
    /// Memory nodes that its parts are spread over in turn; none: wherever the system puts them.
    pub(crate) numa_nodes: Vec<u32>,
    /// Pages that were stored longer ago are served to nobody, seconds; 0: they are as long as there
    /// is room.
    pub(crate) max_age_s: u32,
}

impl DomainConfig {
    /// The memory node that a part is to lie on.
    pub(crate) fn numa_node(&self, part: PartId) -> Option<u32> {
        let at = (part.0 as usize).checked_rem(self.numa_nodes.len())?;
        self.numa_nodes.get(at).copied()
    }
}

/// Which processes a domain is for: all that is given must fit, and of each list one entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rule {
    pub(crate) uids: Option<Vec<u32>>,
    pub(crate) gids: Option<Vec<u32>>,
    pub(crate) cgroups: Option<Vec<String>>,
}

impl Rule {
    /// Whether it fits everybody.
    pub(crate) fn is_open(&self) -> bool {
        *self == Self::default()
    }
}

/// What a domain has where nothing else is said.
#[derive(Debug, Clone)]
pub(super) struct Defaults {
    /// Bytes of the arena where there are no domains.
    pub(super) arena_bytes: u64,
    pub(super) arena_is_given: bool,
    /// Bytes of all SSDs.
    pub(super) ssd_bytes: u64,
    /// Bytes of all staging areas.
    pub(super) staging_bytes: u64,
    pub(super) max_sessions: u32,
    pub(super) copy_mode: bool,
    pub(super) numa_nodes: Vec<u32>,
}

pub(super) fn check(
    raw: &[RawDomain],
    defaults: Defaults,
) -> Result<Vec<DomainConfig>, ConfigError> {
    if raw.is_empty() {
        return Ok(vec![DomainConfig {
            name: DEFAULT_NAME.to_owned(),
            id: DomainId::named(DEFAULT_NAME),
            rule: Rule::default(),
            dram_bytes: defaults.arena_bytes,
            shares: Shares::whole(&defaults),
            copy_mode: defaults.copy_mode,
            numa_nodes: defaults.numa_nodes,
            max_age_s: 0,
        }]);
    }
    if raw.len() > MAX_DOMAINS {
        let allowed = format!("at most {MAX_DOMAINS} domains");
        return Err(refused("domain", &format!("{} tables", raw.len()), &allowed));
    }
    if defaults.arena_is_given {
        let allowed = "left out where there are [[domain]] tables: each says its own `dram`";
        return Err(refused("arena.size", "given", allowed));
    }
    let shares = shares::check(raw, &defaults)?;
    let mut domains: Vec<DomainConfig> = Vec::with_capacity(raw.len());
    for (at, (raw, shares)) in raw.iter().zip(shares).enumerate() {
        let domain = check_one(raw, &defaults, shares)?;
        if domains.iter().any(|known| known.name == domain.name) {
            return Err(refused("domain.name", &domain.name, "a name of its own for each domain"));
        }
        if let Some(open) = domains.iter().find(|known| known.rule.is_open()) {
            let found = format!("none for \"{}\", table {at}", open.name);
            let allowed = "a rule for every domain but the last: behind one that fits everybody \
                           no other is ever chosen";
            return Err(refused("domain.uid, gid, cgroup", &found, allowed));
        }
        domains.push(domain);
    }
    let total = domains.iter().fold(0_u64, |sum, domain| sum.saturating_add(domain.dram_bytes));
    if total > MAX_DRAM {
        return Err(refused("domain.dram", &format!("{total} in all"), "at most 7 TiB in all"));
    }
    Ok(domains)
}

fn check_one(
    raw: &RawDomain,
    defaults: &Defaults,
    shares: Shares,
) -> Result<DomainConfig, ConfigError> {
    let name = raw.name.clone().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(plain) {
        let allowed = "1..=64 letters, digits, `-`, `_` or `.`";
        return Err(refused("domain.name", &format!("\"{name}\""), allowed));
    }
    let Some(dram) = raw.dram.as_ref() else {
        return Err(refused("domain.dram", &format!("none for \"{name}\""), "a size"));
    };
    let mode = if defaults.copy_mode { "copy" } else { "auto" };
    Ok(DomainConfig {
        id: DomainId::named(&name),
        rule: Rule {
            uids: numbers("domain.uid", raw.uid.as_deref())?,
            gids: numbers("domain.gid", raw.gid.as_deref())?,
            cgroups: cgroups(raw.cgroup.as_deref())?,
        },
        dram_bytes: size("domain.dram", Some(dram), 0, 64 * KIB, MAX_DRAM)?,
        shares,
        copy_mode: choice("domain.mode", raw.mode.as_deref(), mode, &["auto", "copy"])? == 1,
        numa_nodes: match &raw.numa_node {
            Some(nodes) => nodes::check("domain.numa_node", nodes)?,
            None => defaults.numa_nodes.clone(),
        },
        max_age_s: age(raw.max_age.as_ref())?,
        name,
    })
}

/// Seconds, or a text with a unit; none is 0.
fn age(raw: Option<&Quantity>) -> Result<u32, ConfigError> {
    let Some(raw) = raw else { return Ok(0) };
    let seconds = match raw {
        Quantity::Bytes(seconds) => Some(*seconds),
        Quantity::Text(text) => {
            let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (count, unit) = text.split_at(digits);
            let each = match unit.trim() {
                "s" => Some(1),
                "m" => Some(60),
                "h" => Some(3600),
                "d" => Some(86400),
                _ => None,
            };
            count.parse::<u64>().ok().zip(each).and_then(|(count, each)| count.checked_mul(each))
        }
    };
    match seconds.and_then(|seconds| u32::try_from(seconds).ok()) {
        Some(seconds) if (1..=MAX_AGE_S).contains(&seconds) => Ok(seconds),
        _ => {
            let allowed = "1s to 36500d: seconds, or a text with `s`, `m`, `h` or `d`";
            Err(refused("domain.max_age", &raw.to_string(), allowed))
        }
    }
}

fn numbers(key: &'static str, raw: Option<&[u32]>) -> Result<Option<Vec<u32>>, ConfigError> {
    let Some(raw) = raw else { return Ok(None) };
    let mut sorted = raw.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if raw.is_empty() || raw.len() > 256 || sorted.len() != raw.len() {
        return Err(refused(key, &format!("{raw:?}"), RULES));
    }
    Ok(Some(sorted))
}

fn cgroups(raw: Option<&[String]>) -> Result<Option<Vec<String>>, ConfigError> {
    let Some(raw) = raw else { return Ok(None) };
    let is_path = |path: &String| {
        path.len() > 1 && path.starts_with('/') && !path.ends_with('/') && !path.contains("//")
    };
    if raw.is_empty() || raw.len() > 256 || !raw.iter().all(is_path) {
        let allowed = "a list of 1..=256 paths below the cgroup mount, such as \"/kubepods/a\"";
        return Err(refused("domain.cgroup", &format!("{raw:?}"), allowed));
    }
    Ok(Some(raw.to_vec()))
}

pub(super) fn refused(key: &'static str, found: &str, allowed: &str) -> ConfigError {
    ConfigError::Value { key, found: found.to_owned(), allowed: allowed.to_owned() }
}
