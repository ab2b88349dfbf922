//! Which domain a peer belongs to. The connection decides, never a field of a request.

use crate::config::{DomainConfig, Rule};
use crate::peer::Peer;
use std::sync::Arc;
use undercroft_wire::DomainId;

/// The domains there are, in the order they are tried.
#[derive(Debug, Clone)]
pub(crate) struct Domains {
    list: Vec<Arc<DomainConfig>>,
}

impl Domains {
    pub(crate) fn new(configured: Vec<DomainConfig>) -> Self {
        Self { list: configured.into_iter().map(Arc::new).collect() }
    }

    /// The first domain that is for this peer.
    pub(crate) fn of(&self, peer: &Peer) -> Option<Arc<DomainConfig>> {
        // Only asked for where a rule needs it: it costs the reading of a file.
        let mut cgroups = None;
        let found = self.list.iter().find(|domain| {
            let rule = &domain.rule;
            fits(rule, peer)
                && rule.cgroups.as_ref().is_none_or(|wanted| {
                    let found = cgroups.get_or_insert_with(|| peer.cgroups());
                    wanted.iter().any(|wanted| found.iter().any(|path| is_below(path, wanted)))
                })
        });
        found.cloned()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<DomainConfig>> {
        self.list.iter()
    }

    /// Its share of what all have in turn.
    pub(crate) fn weight(&self, id: DomainId) -> u32 {
        self.list.iter().find(|domain| domain.id == id).map_or(1, |domain| domain.shares.weight)
    }

    /// What people call the domain.
    pub(crate) fn name(&self, id: DomainId) -> Option<&str> {
        self.list.iter().find(|domain| domain.id == id).map(|domain| domain.name.as_str())
    }
}

fn fits(rule: &Rule, peer: &Peer) -> bool {
    let has = |list: &Option<Vec<u32>>, number| {
        list.as_ref().is_none_or(|list| list.binary_search(&number).is_ok())
    };
    has(&rule.uids, peer.uid) && has(&rule.gids, peer.gid)
}

/// Whether a control group is `wanted` or lies below it.
fn is_below(path: &str, wanted: &str) -> bool {
    path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Shares;

    fn domain(name: &str, rule: Rule) -> DomainConfig {
        DomainConfig {
            name: name.to_owned(),
            id: DomainId::named(name),
            rule,
            dram_bytes: 1 << 20,
            shares: Shares {
                ssd_bytes: None,
                ssd_floor_bytes: 0,
                weight: 1,
                max_reads: 1,
                max_pages: None,
                max_spaces: 1,
                staging_bytes: 0,
                max_sessions: 4,
                session_leases_bytes: None,
            },
            max_age_s: 0,
            copy_mode: false,
            numa_nodes: Vec::new(),
        }
    }

    fn peer(uid: u32, gid: u32) -> Peer {
        Peer { pid: 1, uid, gid, start: 1, process: None }
    }

    #[test]
    fn the_first_domain_whose_whole_rule_fits_is_it() {
        let both = Rule { uids: Some(vec![10, 11]), gids: Some(vec![7]), cgroups: None };
        let users = Rule { uids: Some(vec![10, 12]), ..Rule::default() };
        let hidden = Rule { cgroups: Some(vec!["/a".to_owned()]), ..Rule::default() };
        let list = vec![domain("hidden", hidden), domain("both", both), domain("users", users)];
        let domains = Domains::new(list);
        let name = |uid, gid| domains.of(&peer(uid, gid)).map(|domain| domain.name.clone());
        assert_eq!(name(10, 7).as_deref(), Some("both"));
        assert_eq!(name(10, 8).as_deref(), Some("users"));
        assert_eq!(name(11, 8), None);
        assert_eq!(name(12, 7).as_deref(), Some("users"));
    }

    #[test]
    fn a_group_whose_name_only_begins_alike_is_another() {
        assert!(is_below("/kubepods/a", "/kubepods"));
        assert!(is_below("/kubepods", "/kubepods"));
        assert!(!is_below("/kubepods-b/a", "/kubepods"));
        assert!(!is_below("/", "/kubepods"));
    }
}
