//! What each domain has of what all of them share, so that none can use up what another needs.

use super::domains::{Defaults, refused};
use super::raw::RawDomain;
use super::{ConfigError, KIB, MAX_DRAM, MIB, number, size};

/// A pebibyte: the most that an SSD tier may be.
const MAX_SSD: u64 = 1 << 50;
const MAX_READS: u32 = 65_536;
/// Spaces of all domains.
pub(crate) const MAX_SPACES: u32 = 1024;
/// Pages that can be known of all domains.
pub(crate) const MAX_PAGES: u32 = 1 << 26;

/// A domain's part in SSDs and tables that it shares with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Bytes on SSD beyond which its own oldest pages are forgotten.
    pub(crate) ssd_bytes: Option<u64>,
    /// Bytes on SSD that reclaim leaves it.
    pub(crate) ssd_floor_bytes: u64,
    pub(crate) weight: u32,
    pub(crate) max_reads: u32,
    /// `None` for its share by DRAM.
    pub(crate) max_pages: Option<u32>,
    pub(crate) max_spaces: u32,
    /// Bytes of its sessions' staging areas.
    pub(crate) staging_bytes: u64,
    /// Connections at once.
    pub(crate) max_sessions: u32,
    /// Bytes of its arena that the leases of one session may pin.
    pub(crate) session_leases_bytes: Option<u64>,
}

impl Shares {
    /// All there is.
    pub(super) fn whole(defaults: &Defaults) -> Self {
        Self {
            ssd_bytes: None,
            ssd_floor_bytes: 0,
            weight: 1,
            max_reads: MAX_READS,
            max_pages: None,
            max_spaces: MAX_SPACES,
            staging_bytes: defaults.staging_bytes,
            max_sessions: defaults.max_sessions,
            session_leases_bytes: None,
        }
    }
}

/// The shares of these domains, which are some.
pub(super) fn check(raw: &[RawDomain], defaults: &Defaults) -> Result<Vec<Shares>, ConfigError> {
    let sessions = u64::from(defaults.max_sessions);
    let sessions = Whole { key: "domain.max_sessions", of: "server.max_sessions", total: sessions };
    let max_sessions =
        sessions.divide(raw.iter().map(|raw| counted(&sessions, raw.max_sessions)))?;
    let spaces = Whole { key: "domain.max_spaces", of: "all spaces", total: MAX_SPACES.into() };
    let max_spaces = spaces.divide(raw.iter().map(|raw| counted(&spaces, raw.max_spaces)))?;
    let total = defaults.staging_bytes;
    let staging = Whole { key: "domain.staging_total", of: "arena.staging_total", total };
    let staging_bytes = staging.divide(raw.iter().map(|raw| {
        let found = raw.staging_total.as_ref();
        found.map(|found| size(staging.key, Some(found), 0, 4 * KIB, total)).transpose()
    }))?;
    let pages = Whole { key: "domain.max_pages", of: "all pages", total: MAX_PAGES.into() };
    pages.divide(raw.iter().map(|raw| counted(&pages, raw.max_pages)))?;
    let mut shares = Vec::with_capacity(raw.len());
    for (at, raw) in raw.iter().enumerate() {
        let found = |found| size("domain.ssd", Some(found), 0, MIB, MAX_SSD);
        let ssd_bytes = raw.ssd.as_ref().map(found).transpose()?;
        let floor = raw.ssd_floor.as_ref();
        let leased = |found| size("domain.session_leases", Some(found), 0, 64 * KIB, MAX_DRAM);
        let leases = raw.session_leases.as_ref();
        let (reads, most) = (raw.max_reads_in_flight, u64::from(MAX_READS));
        shares.push(Shares {
            ssd_bytes,
            ssd_floor_bytes: size("domain.ssd_floor", floor, 0, 0, ssd_bytes.unwrap_or(MAX_SSD))?,
            weight: number("domain.weight", raw.weight, 1, 1, 100)? as u32,
            max_reads: number("domain.max_reads_in_flight", reads, most, 1, most)? as u32,
            max_pages: raw.max_pages.map(|pages| pages as u32),
            max_spaces: max_spaces[at] as u32,
            staging_bytes: staging_bytes[at],
            max_sessions: max_sessions[at] as u32,
            session_leases_bytes: leases.map(leased).transpose()?,
        });
    }
    let floors = shares.iter().map(|shares| shares.ssd_floor_bytes);
    let floors = floors.fold(0_u64, u64::saturating_add);
    if floors > defaults.ssd_bytes / 2 {
        let allowed = "at most half of `ssd.size` in all: what reclaim leaves it must copy";
        return Err(refused("domain.ssd_floor", &format!("{floors} in all"), allowed));
    }
    Ok(shares)
}

fn counted(whole: &Whole, found: Option<u64>) -> Result<Option<u64>, ConfigError> {
    found.map(|found| number(whole.key, Some(found), 0, 1, whole.total)).transpose()
}

/// What is divided among domains.
struct Whole {
    key: &'static str,
    of: &'static str,
    total: u64,
}

impl Whole {
    /// What each domain has: what it says, and the rest in equal parts for those that say nothing.
    fn divide(
        &self,
        given: impl Iterator<Item = Result<Option<u64>, ConfigError>>,
    ) -> Result<Vec<u64>, ConfigError> {
        let given = given.collect::<Result<Vec<_>, _>>()?;
        let sum = given.iter().flatten().fold(0_u64, |sum, one| sum.saturating_add(*one));
        let silent = given.iter().filter(|one| one.is_none()).count() as u64;
        let rest = self.total.checked_sub(sum).filter(|rest| *rest >= silent);
        let Some(rest) = rest else {
            let (of, total) = (self.of, self.total);
            let allowed = format!("at most {total} ({of}) in all, and 1 for each that says none");
            return Err(refused(self.key, &format!("{sum} in all"), &allowed));
        };
        Ok(given.iter().map(|one| one.unwrap_or_else(|| rest / silent.max(1))).collect())
    }
}
