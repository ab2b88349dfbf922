//! What of a configuration that was read again counts while the daemon runs.

use super::shares::Shares;
use super::{Config, DomainConfig, KEYS};

/// Keys outside of `[[domain]]` tables whose new values count at once: all others are what something
/// was made of at the start.
const LIVE: [&str; 8] = [
    "arena.size",
    "arena.part",
    "arena.huge_pages",
    "arena.lock",
    "arena.numa_node",
    "arena.staging",
    "arena.staging_total",
    "copy.mode",
];

/// Keys of `[[domain]]` tables that do.
const LIVE_OF_DOMAIN: [&str; 15] = [
    "domain.uid",
    "domain.gid",
    "domain.cgroup",
    "domain.dram",
    "domain.ssd",
    "domain.ssd_floor",
    "domain.weight",
    "domain.max_reads_in_flight",
    "domain.max_pages",
    "domain.max_spaces",
    "domain.staging_total",
    "domain.session_leases",
    "domain.mode",
    "domain.numa_node",
    "domain.max_age",
];

/// Whether a new value of the key counts while the daemon runs.
pub(super) fn is_live(key: &str) -> bool {
    LIVE.contains(&key) || LIVE_OF_DOMAIN.contains(&key)
}

/// What came of it, each by its key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Renewal {
    /// What counts from now on.
    pub(crate) taken: Vec<String>,
    /// What counts from the next start on.
    pub(crate) pending: Vec<String>,
}

impl Renewal {
    fn take<T: PartialEq>(&mut self, key: impl Into<String>, running: &mut T, new: T) {
        if *running != new {
            *running = new;
            self.taken.push(key.into());
        }
    }

    fn take_or_keep<T: PartialEq>(&mut self, take: bool, key: String, running: &mut T, new: T) {
        if take { self.take(key, running, new) } else { self.keep(key, running, &new) }
    }

    /// What a domain has of what is shared.
    fn renew_shares(
        &mut self,
        take: bool,
        key: impl Fn(&str) -> String,
        own: &mut Shares,
        new: &Shares,
    ) {
        self.take_or_keep(take, key("ssd"), &mut own.ssd_bytes, new.ssd_bytes);
        self.take_or_keep(take, key("ssd_floor"), &mut own.ssd_floor_bytes, new.ssd_floor_bytes);
        self.take_or_keep(take, key("weight"), &mut own.weight, new.weight);
        self.take_or_keep(take, key("max_reads_in_flight"), &mut own.max_reads, new.max_reads);
        self.take_or_keep(take, key("max_pages"), &mut own.max_pages, new.max_pages);
        self.take_or_keep(take, key("max_spaces"), &mut own.max_spaces, new.max_spaces);
        self.take_or_keep(take, key("staging_total"), &mut own.staging_bytes, new.staging_bytes);
        let leases = (&mut own.session_leases_bytes, new.session_leases_bytes);
        self.take_or_keep(take, key("session_leases"), leases.0, leases.1);
        self.keep(key("max_sessions"), &own.max_sessions, &new.max_sessions);
    }

    fn keep<T: PartialEq>(&mut self, key: impl Into<String>, running: &T, new: &T) {
        if running != new {
            self.pending.push(key.into());
        }
    }
}

impl Config {
    /// Takes over from `new` what may change while the daemon runs.
    pub(crate) fn renew(&mut self, new: Self) -> Renewal {
        let mut renewal = Renewal::default();
        for key in KEYS {
            let (table, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if table != "domain" && !LIVE.contains(&key.name) {
                renewal.keep(key.name, &self.written(table, name), &new.written(table, name));
            }
        }
        renewal.take("arena.part", &mut self.part_bytes, new.part_bytes);
        renewal.take("arena.huge_pages", &mut self.huge_pages, new.huge_pages);
        renewal.take("arena.lock", &mut self.lock, new.lock);
        renewal.take("arena.staging", &mut self.staging_bytes, new.staging_bytes);
        let staging_total = new.staging_total_bytes;
        renewal.take("arena.staging_total", &mut self.staging_total_bytes, staging_total);
        self.renew_domains(&new, &mut renewal);
        renewal
    }

    fn written(&self, table: &str, name: &str) -> Option<&toml::Value> {
        self.written.get(table)?.get(name)
    }

    /// The core knows the domains there were at the start, and no others can come.
    fn renew_domains(&mut self, new: &Self, renewal: &mut Renewal) {
        let has = |list: &[DomainConfig], one: &DomainConfig| list.iter().any(|d| d.id == one.id);
        let strange = new.domains.iter().filter(|one| !has(&self.domains, one));
        let gone = self.domains.iter().filter(|one| !has(&new.domains, one));
        let both = strange.map(|one| (one, "new")).chain(gone.map(|one| (one, "taken away")));
        let named: Vec<_> = both.map(|(one, how)| format!("domain {} ({how})", one.name)).collect();
        let same = named.is_empty();
        renewal.pending.extend(named);
        if same {
            // Rules are tried in the order of the file.
            self.domains.sort_by_key(|own| new.domains.iter().position(|one| one.id == own.id));
        }
        let tables = new.written.contains_key("domain");
        // Left out, it is fitted to the memory that is free, and that is less while we run.
        let sized = tables || new.written("arena", "size").is_some();
        for own in &mut self.domains {
            let Some(new) = new.domains.iter().find(|one| one.id == own.id) else { continue };
            let name = own.name.clone();
            let key = |key: &str| format!("domain.{key} of {name}");
            if sized {
                let key = if tables { key("dram") } else { "arena.size".to_owned() };
                renewal.take(key, &mut own.dram_bytes, new.dram_bytes);
            }
            renewal.take(key("mode"), &mut own.copy_mode, new.copy_mode);
            let numa_nodes = new.numa_nodes.clone();
            renewal.take(key("numa_node"), &mut own.numa_nodes, numa_nodes);
            renewal.take(key("max_age"), &mut own.max_age_s, new.max_age_s);
            // Alone they may shut out, or let in, whom another domain is for that is not taken, or
            // be more than there is with what that one keeps.
            renewal.renew_shares(same, key, &mut own.shares, &new.shares);
            if same {
                renewal.take(key("uid, gid, cgroup"), &mut own.rule, new.rule.clone());
            } else {
                renewal.keep(key("uid, gid, cgroup"), &own.rule, &new.rule);
            }
        }
    }
}
